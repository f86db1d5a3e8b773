"""What weights of 16 bits cost and keep: the same runs with weights stored in each type; compared, then timed in turn.

    python -m bench.stored_weights [--rounds 2] [--repeats 3]

The `numba` backend; each type in separate processes. Errors are against weights in float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench.contest import ask, check, in_turn, together, worst
from bench.engines import OURS, STORED
from bench.harness import machine, parse, record, table
from bench.threads import timed
from bench.trajectory import KINDS

FILE = "stored-weights"


def main() -> None:
    options = parse(__doc__, repeats=3, rounds=2)
    common = {"quick": options.quick, "plain_memory": options.plain_memory}
    print(machine())
    shown = []
    for case in timed(options.quick):
        with tempfile.TemporaryDirectory() as folder:
            files: dict[str, Any] = {"net": case.net, **common}
            if case.checkpoint:
                files["checkpoint"] = Path(folder) / "net.pth"
                ask("torch-nchw", case.checkpoint, **files)
            errors = check(STORED, case.task, oracle=OURS, **files)
            settings = {"area": case.area, "repeats": options.repeats, **files}
            replies = in_turn((OURS, *STORED), case.task, rounds=options.rounds, **settings)
        timings = {engine: together(got) for engine, got in replies.items()}
        for what, first in timings[OURS].items():
            if what.endswith(KINDS):  # their mean counts
                continue
            for engine in (OURS, *STORED):
                timing = timings[engine][what]
                row = {"model": case.model, "what": what, "weights": STORED.get(engine, "float32")}
                row |= {"ms": timing.median, "spread": timing.spread, "ratio": timing.median / first.median}
                row |= worst(errors, engine)
                record(FILE, {**row, **common, "version": replies[engine][0].version}, folder=options.results)
                name = f"{row['model']}, {what}, {row['weights']}"
                largest = f"{row['error']:.1e}" if "error" in row else ""
                shown.append(
                    (name, f"{timing.median:.1f}", f"{timing.spread:.0%}", f"{row['ratio']:.2f}", largest)
                )
    table(["", "ms", "spread", "× float32's time", "largest error"], shown)


if __name__ == "__main__":
    main()
