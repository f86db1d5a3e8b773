"""What each trick of the CPU kernels gains: kernels as they are and with one trick turned off, in alternating bursts.

    python -m bench.switches [--switches NAME ...] [--rounds 2] [--repeats 7] [--as-avx2]

`switch_table.py` names the tricks and the text replacements that turn them off, `switch_cases.py` what is timed. The
package is copied into a folder as it is, and once more for each switch, with its replacements. In each round a process
of each copy, with kernels of its own, takes a burst of calls of each case in turn; who begins alternates. A case's
outputs are compared before it is timed. The *gain* is the time without the trick over the time with it, of two bursts
in a row: their median, and their quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import sparsegen
from bench.commits import FOLDERS, ROOT
from bench.contest import TOLERANCE, WrongResult, environment
from bench.harness import (
    RESULTS,
    THREADS,
    apply_limit,
    machine,
    measure,
    offer_limit,
    record,
    say,
    table,
)
from bench.switch_cases import CASES, Prepared, Timed
from bench.switch_table import SWITCHES, Switch, SwitchError, named
from sparsegen.backends import get_backend
from sparsegen.backends.caches import CACHE_VARIABLE

FILE = "switches"
"""Its file of results."""
SECONDS = 0.1
"""Seconds that a burst takes at least."""
CALLS = 3
"""Calls that a burst has at least, beside one before them that is not timed."""
COLD_FLOATS = 24 << 20
"""Floats that are written before each call whose weights must not be in a cache: more than a core's caches hold."""

# -- a worker --------------------------------------------------------------------------------------------------


def work(*, quick: bool) -> None:
    """Answer each line of stdin, [case, path or null]: write the case's output there, or time a burst of it."""
    folder = Path.cwd()
    if not Path(sparsegen.__file__).is_relative_to(folder):
        raise SystemExit(f"the package of {sparsegen.__file__} was imported, expected that of {folder}")
    backend = get_backend("numba", threads=THREADS)
    known: dict[str, Prepared] = {}
    others = np.ones(0 if quick else COLD_FLOATS, np.float32)
    for line in sys.stdin:
        name, path = json.loads(line)
        case = CASES[name]
        samples: tuple[float, ...] = ()
        if path is not None:
            known[name] = prepared = (case.small() if quick else case).prepare(backend)
            prepared.call()
            np.save(path, backend.download(prepared.out))
            prepared.between()
        else:
            prepared = known[name]
            between = partial(np.add, others, 1, out=others) if case.cold else prepared.between
            seconds = 0 if quick or case.cold else SECONDS
            samples = measure(prepared.call, repeats=CALLS, seconds=seconds, between=between).samples
        print(json.dumps(samples), flush=True)


class Worker:
    """A process that computes with the package in a folder, and keeps its kernels there."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder = folder
        settings = {
            **environment(),
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            CACHE_VARIABLE: str(folder / "kernels"),
        }
        words = [sys.executable, "-m", "bench.switches", "--worker", *["--quick"] * quick]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(words, cwd=folder, env=settings, **pipes)

    def _ask(self, *words: str | None) -> list[float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps(words), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"the worker of {self.folder} failed (its message is above)")
        answer: list[float] = json.loads(line)
        return answer

    def output(self, case: Timed) -> np.ndarray:
        """The output of a case."""
        path = self.folder / "output.npy"
        self._ask(case.name, str(path))
        return np.asarray(np.load(path))

    def burst(self, case: Timed) -> float:
        """The median milliseconds of a burst of calls."""
        return statistics.median(self._ask(case.name, None))

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed, and a request is still to be written
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


# -- the driver ------------------------------------------------------------------------------------------------


def copy_package(folder: Path, switch: Switch | None = None) -> Path:
    """Copy the package's sources into a folder, without the models' weights; with a switch, turn its trick off.

    Raises
    ------
    SwitchError
        The switch does not fit the sources.
    """
    changed = {} if switch is None else switch.sources(ROOT)
    for source, target in FOLDERS.items():
        for path in (ROOT / source).rglob("*.py"):
            copied = folder / target / path.relative_to(ROOT / source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            if path in changed:
                copied.write_text(changed[path], "utf-8")
            else:
                shutil.copyfile(path, copied)
    return folder


def compare(switch: Switch, case: Timed, plain: Worker, other: Worker) -> float:
    """The largest difference between both workers' outputs, relative to the largest value. Raises WrongResult."""
    expected, found = plain.output(case), other.output(case)
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise WrongResult(
            f"without {switch.name}, {case.name} is off by {error:.1e} of the largest value, expected at most "
            f"{TOLERANCE:.0e}"
        )
    return error


def in_turn(
    switch: Switch, folders: tuple[Path, Path], *, rounds: int, repeats: int, quick: bool
) -> dict[str, list[tuple[float, float]]]:
    """Case -> milliseconds of pairs of bursts, with the trick and without it; `folders` hold the two packages."""
    pairs: dict[str, list[tuple[float, float]]] = {case.name: [] for case in switch.cases}
    for number in range(rounds):
        say(f"timing {switch.name}, round {number + 1} of {rounds}")
        plain, other = workers = [Worker(folder, quick=quick) for folder in folders]
        try:
            for case in switch.cases:
                compare(switch, case, plain, other)
            for turn in range(repeats):
                order = workers if (number + turn) % 2 == 0 else workers[::-1]
                for case in switch.cases:
                    taken = {worker: worker.burst(case) for worker in order}
                    pairs[case.name].append((taken[plain], taken[other]))
        finally:
            for worker in workers:
                worker.close()
    return pairs


def row(switch: Switch, case: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The figures of a case, off its pairs of bursts, at least two."""
    low, gain, high = statistics.quantiles([without / with_it for with_it, without in pairs], n=4)
    return {
        "switch": switch.name,
        "what": case,
        "ms": statistics.median(with_it for with_it, _ in pairs),
        "ms_without": statistics.median(without for _, without in pairs),
        "gain": gain,
        "quartiles": [low, high],
        "pairs": len(pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--switches", nargs="+", default=(), metavar="NAME", help="of the table (all)")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each copy (2)")
    parser.add_argument("--repeats", type=int, default=7, help="bursts of a process and a case (7)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--results", type=Path, help="folder of JSON lines (bench/results, quick: none)")
    parser.add_argument(
        "--folder", type=Path, help="where packages and kernels are kept (a temporary folder)"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    offer_limit(parser)
    options = parser.parse_args()
    apply_limit(options)
    if options.worker:
        return work(quick=options.quick)
    if options.quick:
        options.rounds, options.repeats = 1, 2
    elif options.results is None:
        options.results = RESULTS
    if options.rounds * options.repeats < 2:
        parser.error("quartiles take two bursts or more; give more --rounds or --repeats")
    try:
        chosen = named(options.switches)
        for switch in SWITCHES:  # before minutes are spent on the first
            switch.sources(ROOT)
    except SwitchError as error:
        parser.error(str(error))

    print(machine())
    shown = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.folder is None else options.folder.absolute()
        plain = copy_package(folder / "as it is")
        for switch in chosen:
            folders = plain, copy_package(folder / switch.name, switch)
            settings = {name: getattr(options, name) for name in ("rounds", "repeats", "quick")}
            for case, pairs in in_turn(switch, folders, **settings).items():
                found = row(switch, case, pairs)
                record(FILE, {**found, "quick": options.quick}, folder=options.results)
                low, high = found["quartiles"]
                times = (f"{found['ms']:.3f}", f"{found['ms_without']:.3f}")
                shown.append((switch.name, case, *times, f"{found['gain']:.2f}", f"{low:.2f} to {high:.2f}"))
                say(f"{switch.name}, {case}: {found['gain']:.2f}")
    table(["switch", "case", "ms", "without", "gain", "quartiles"], shown)


if __name__ == "__main__":
    main()
