"""Timing for the benchmarks: a callable comes in, its median and spread come out, with the machine they belong to.

One process times one engine; competitors run one after the other, each in a process of its own. Every figure is
appended to a JSON-lines file in `bench/results/`, so that runs can be compared.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of several repeats."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Largest less smallest, as a share of the median."""
        return (max(self.samples) - min(self.samples)) / self.median


def measure(call: Callable[[], Any], *, repeats: int, between: Callable[[], Any] = lambda: None) -> Timing:
    """Time `call` `repeats` times after one warm-up; `between` runs untimed after each."""
    samples = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e3)
        between()
    return Timing(tuple(samples[1:]))


def machine() -> str:
    """Processor, cores and Python, as far as the system tells."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        processor = models[0] if models else processor
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"


def commit() -> str:
    """The checkout's commit, with a + when files differ from it."""
    words = ["git", "describe", "--always", "--dirty=+", "--abbrev=9"]
    done = subprocess.run(words, cwd=RESULTS.parent, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def record(file: str, row: dict[str, Any]) -> None:
    """Append one figure, with machine, commit and date, to `bench/results/<file>.jsonl`."""
    RESULTS.mkdir(exist_ok=True)
    line = {"machine": machine(), "commit": commit(), "date": time.strftime("%Y-%m-%d"), **row}
    with (RESULTS / f"{file}.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
