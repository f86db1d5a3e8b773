"""Timing for the benchmarks: a callable comes in, its median and spread come out, with the machine they belong to.

One process times one engine; competitors take turns, each in a separate process (`contest.py`). Every figure is
appended to a JSON-lines file in `bench/results/`, so that runs can be compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import processor
from bench.engines import UNLIMITED, usual

RESULTS = Path(__file__).parent / "results"
THREADS = 2
"""Of every engine."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of several repeats."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """The distance between the quartiles of the samples, as a share of the median."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / self.median

    @property
    def row(self) -> dict[str, float]:
        """What a recorded row says of the samples beside their median."""
        return {"spread": self.spread, "samples": len(self.samples)}


def measure(
    call: Callable[[], Any],
    *,
    repeats: int,
    seconds: float = 0.0,
    between: Callable[[], Any] = lambda: None,
) -> Timing:
    """The times of `repeats` calls after one warm-up, and of further calls until `seconds` have passed.

    `between` runs untimed after each call; garbage is collected before the first and not again until the end.
    """
    samples: list[float] = []
    gc.collect()
    gc.disable()
    try:
        call()
        between()
        begin = time.perf_counter()
        while len(samples) < repeats or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            call()
            samples.append((time.perf_counter() - start) * 1e3)
            between()
    finally:
        gc.enable()
    return Timing(tuple(samples))


def peak_bytes() -> int:
    """The peak main memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # not getrusage: on Linux its value starts at the parent's memory
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def anonymous_bytes() -> int:
    """Memory of this process that no file backs, in bytes; 0 if the system does not report it."""
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024 if "RssAnon:" in text else 0


def machine() -> str:
    """Processor, kind of vectors, cores and Python, as far as the system reports them."""
    kind = processor.kind(processor.features())
    named = [processor.model(), *([kind] if kind else [])]
    return ", ".join([*named, f"{os.cpu_count()} cores", f"Python {platform.python_version()}"])


WRITTEN = ("bench/results", "docs/benchmarks.md")
"""Files that benchmarks write: they do not change what is measured."""


def commit() -> str:
    """The checkout's commit, with a + if files differ from it, except those of `WRITTEN`."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip()

    name = git("describe", "--always", "--abbrev=9")
    changed = git("diff", "--name-only", "HEAD", "--", ":/", *(f":(top,exclude){path}" for path in WRITTEN))
    return f"{name}+" if name and changed else name or "unknown"


# -- options and output of every driver --------------------------------------------------------------------


def parse(
    description: str | None,
    *,
    repeats: int | None = None,
    rounds: int | None = None,
    engines: Sequence[str] = (),
    model: str | None = None,
    more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """The options of a driver: backend, quick, results (None: record nothing); repeats, rounds, engines, model if any.

    `more(parser)` adds the driver's own.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", help="sparsegen's backend (its default)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help=f"timed runs at a time ({repeats})")
        offer_limit(parser)
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each engine ({rounds})")
        parser.add_argument("--plain-memory", action="store_true", help="do not keep freed memory for rivals")
    if engines:
        parser.add_argument("--engines", nargs="+", choices=engines)
    if model is not None:
        parser.add_argument("--model", default=model, help=f"a DDPM of 128×128 images ({model})")
    parser.add_argument(
        "--results", type=Path, help="folder of JSON lines and plots (bench/results, quick: none)"
    )
    more(parser)
    options = parser.parse_args()
    if repeats is not None:
        apply_limit(options)
    if engines:
        options.engines = options.engines or usual(engines)
        limited = processor.kind(processor.features()) == processor.LIMITED
        if limited and (free := set(UNLIMITED).intersection(options.engines)):
            parser.error(
                f"{', '.join(sorted(free))}: nothing limits these to AVX2; leave them out with --as-avx2"
            )
    if options.quick:
        options.repeats, options.rounds = 1, 1
    elif options.results is None:
        options.results = RESULTS
    return options


def offer_limit(parser: argparse.ArgumentParser) -> None:
    """The option that limits all that is timed to AVX2."""
    parser.add_argument(
        "--as-avx2", action="store_true", help="limit sparsegen and PyTorch to AVX2 where there is AVX-512"
    )


def apply_limit(options: argparse.Namespace) -> None:
    """Limit the processes that this one starts from now on, if the options say so."""
    if options.as_avx2:
        os.environ.update(processor.AS_AVX2)


def record(file: str, row: dict[str, Any], *, folder: Path | None = RESULTS) -> None:
    """Append one figure, with machine, commit and date, to `<folder>/<file>.jsonl`; nothing without a folder."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    line = {"machine": machine(), "commit": commit(), "date": time.strftime("%Y-%m-%d"), **row}
    with (folder / f"{file}.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with columns as wide as their cells, the first aligned left, the others right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join([line[0].ljust(len(first)), *others]).rstrip())


def verdict(reached: bool) -> str:
    return "yes" if reached else "NO"


class Report:
    """The measured rows of a model: printed as a table, and recorded in `<folder>/<file>.jsonl` (folder None: not)."""

    def __init__(self, file: str, model: str, common: dict[str, Any], folder: Path | None) -> None:
        self.file, self.model, self.common, self.folder = file, model, common, folder
        self.rows: list[tuple[str, ...]] = []

    def add(self, what: str, value: float, unit: str, *, ratio: float | None = None, **row: Any) -> None:
        """A figure, how many times as fast as PyTorch it is, and (`target`, `reached`) if it has a target."""
        record(
            self.file,
            {"model": self.model, **self.common, "what": what, unit: value, "ratio": ratio, **row},
            folder=self.folder,
        )
        asked = (row["aim"], verdict(row["reached"])) if "aim" in row else ("", "")
        shown = (
            f"{value:.{1 if unit in ('ms', 'MB') else 2}f} {unit}",
            "" if ratio is None else f"{ratio:.1f}",
        )
        self.rows.append((what, *shown, f"{row['macs']:.1%}" if "macs" in row else "", *asked))

    def print(self) -> None:
        table([self.model, "", "× PyTorch dense", "MACs", "aimed at", "reached"], self.rows)
        print()
