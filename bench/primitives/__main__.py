"""Time every primitive on every backend that can run here, save the medians, and print their ratios to earlier ones.

    python -m bench.primitives [--against 0003] [options of pytest, such as -k "conv2d and numba"]

Each case is compared with the newest earlier run on this machine that has it, or with run `--against`. Exits with 1 if
the median and the fastest round of a case take `SLOWER` times as long or longer.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contest import environment
from bench.harness import machine, say, table

HERE = Path(__file__).parent
STORAGE = HERE.parents[1] / ".benchmarks"
SLOWER = 1.25
"""Of two runs on two cores of a virtual machine, one case in eighty differed so much (by where its arrays lay)."""


def storage() -> Path:
    """The folder of this machine's runs; pytest-benchmark's own folders tell only systems and Pythons apart."""
    return STORAGE / re.sub(r"\W+", "-", machine().partition(", Python")[0])


@dataclass(frozen=True)
class Seconds:
    """The median of a case's rounds, and the fastest: on a machine that others use, medians alone lie."""

    median: float
    fastest: float


def measured(runs: Sequence[Path]) -> dict[str, Seconds]:
    """Case -> its times in the newest of some saved runs that has it."""
    found: dict[str, Seconds] = {}
    for run in runs:
        for each in json.loads(run.read_text(encoding="utf-8"))["benchmarks"]:
            found[each["params"]["name"]] = Seconds(each["stats"]["median"], each["stats"]["min"])
    return found


def compare(before: dict[str, Seconds], now: dict[str, Seconds]) -> list[str]:
    """Print medians and ratios of medians and of fastest rounds; returns the cases in which both are `SLOWER`."""
    rows, slower = [], []
    for name, taken in now.items():
        row = [name, f"{taken.median * 1e3:.3f} ms", "new", "", ""]
        if name in before:
            ratios = taken.median / before[name].median, taken.fastest / before[name].fastest
            row[2:] = f"{before[name].median * 1e3:.3f} ms", *(f"{ratio:.2f}" for ratio in ratios)
            slower += [name] * (min(ratios) >= SLOWER)
        rows.append(row)
    table(["median", "now", "before", "ratio", "fastest"], rows)
    return slower


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against", metavar="NUMBER", default="", help="a saved run, by the number in its name"
    )
    options, more = parser.parse_known_args()
    folder = storage()
    earlier = sorted(folder.rglob("*.json"), key=lambda run: run.name)
    if options.against:
        earlier = [run for run in earlier if run.name.startswith(f"{options.against}_")]
        if not earlier:
            parser.error(f"no run {options.against} in {folder}")
    words = [sys.executable, "-m", "pytest", "-q", str(HERE / "test_primitives.py")]
    words += [f"--benchmark-storage=file://{folder}", "--benchmark-autosave", "--benchmark-quiet"]
    words += ["--benchmark-max-time=0.5", *more]
    done = subprocess.run(words, env=environment())
    if done.returncode:
        raise SystemExit(done.returncode)
    newest = max(folder.rglob("*.json"), key=lambda run: run.name)
    print(machine())
    slower = compare(measured(earlier), measured([newest]))
    if not earlier:
        say(f"no earlier run on this machine: {newest} is what the next run is compared with")
    for name in slower:
        say(f"slower: {name}")
    raise SystemExit(bool(slower))


if __name__ == "__main__":
    main()
