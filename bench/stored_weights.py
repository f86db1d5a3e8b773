"""What weights of 16 bits cost and keep: the same runs with weights stored in each type; compared, then timed in turn.

    python -m bench.stored_weights [--rounds 2] [--repeats 3]

The `numba` backend; each type in separate processes. Errors are against weights in float32.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.contest import Error, ask, error_of, take_turns, together
from bench.engines import OURS, STORED
from bench.harness import machine, parse, record, say, table
from bench.threads import Timed, timed
from bench.trajectory import KINDS

FILE = "stored-weights"


def errors(case: Timed, files: dict[str, Any]) -> dict[str, Error]:
    """Engine -> the largest errors of its outputs against those of float32."""
    found: dict[str, Error] = {}
    with tempfile.TemporaryDirectory() as folder:
        first, other = Path(folder) / "first.npz", Path(folder) / "other.npz"
        ask(OURS, case.task, check=True, outputs=first, **files)
        for engine in STORED:
            say(f"comparing {case.task}: {engine}")
            ask(engine, case.task, check=True, outputs=other, **files)
            with np.load(first) as expected, np.load(other) as outputs:
                each = [error_of(outputs[name], expected[name]) for name in expected.files]
            found[engine] = Error(max(one.largest for one in each), max(one.rms for one in each))
    return found


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
            off = errors(case, files)
            settings = {"area": case.area, "repeats": options.repeats, **files}
            workers = {engine: partial(ask, engine, case.task, **settings) for engine in (OURS, *STORED)}
            replies = take_turns(case.task, workers, options.rounds)
        timings = {engine: together(got) for engine, got in replies.items()}
        for what, first in timings[OURS].items():
            if what.endswith(KINDS):  # their mean counts
                continue
            for engine in (OURS, *STORED):
                timing = timings[engine][what]
                row = {"model": case.model, "what": what, "weights": STORED.get(engine, "float32")}
                row |= {"ms": timing.median, "spread": timing.spread, "ratio": timing.median / first.median}
                if engine in off:
                    row |= {"error": off[engine].largest, "error_rms": off[engine].rms}
                record(FILE, {**row, **common, "version": replies[engine][0].version}, folder=options.results)
                name = f"{row['model']}, {what}, {row['weights']}"
                largest = f"{row['error']:.1e}" if engine in off else ""
                shown.append(
                    (name, f"{timing.median:.1f}", f"{timing.spread:.0%}", f"{row['ratio']:.2f}", largest)
                )
    table(["", "ms", "spread", "× float32's time", "largest error"], shown)


if __name__ == "__main__":
    main()
