"""What more threads bring: the same runs with 1, 2, 4, 8 and 16 threads, and with 2 on one core; checked, then timed.

    python -m bench.threads [--backend NAME] [--rounds 2] [--repeats 3]

No more threads than this process has cores, each number in separate processes, in turn, after all of them have given
the same bits. Times with more threads are estimated from those with one and with two (`undivided`, `on_paper`).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import CHECKED_AREA, big, unets
from bench.contest import WrongResult, ask, take_turns, together
from bench.engines import OURS
from bench.harness import machine, parse, record, say, table
from bench.trajectory import KINDS

FILE = "threads"
COUNTS = (1, 2, 4, 8, 16)
"""The numbers of threads that are measured, up to the cores of this process, or else estimated."""


@dataclass(frozen=True)
class Timed:
    """A model whose dense run and edit are timed."""

    model: str
    """Its name in the rows."""
    task: str
    """The worker's."""
    area: float
    """Of the edit."""
    net: str = ""
    """The network of the task."""
    checkpoint: str = ""
    """The task with which PyTorch writes random weights; "": the model is built in."""


def timed(quick: bool) -> tuple[Timed, ...]:
    return (
        Timed("landscape", "landscape", 0.01),
        Timed(big(quick).name, "gaugan", CHECKED_AREA, "gaugan", "checkpoint"),
        Timed(unets(quick)["DDPM 256"].name, "unet", CHECKED_AREA, "DDPM 256", "unet_checkpoint"),
    )


@dataclass(frozen=True)
class Setting:
    """How a process computes."""

    threads: int
    cores: int | None = None
    """To which the process is limited; None: it is not."""

    def __str__(self) -> str:
        limit = "" if self.cores is None else f" on {self.cores} core{'s' * (self.cores != 1)}"
        return f"{self.threads} thread{'s' * (self.threads != 1)}{limit}"


ONE, TWO, LIMITED = Setting(1), Setting(2), Setting(2, cores=1)


def settings(cores: int, *, can_limit: bool) -> list[Setting]:
    """The settings to time on so many cores; `can_limit`: the system limits a process to some of them."""
    return [*(Setting(count) for count in COUNTS if count <= cores), *([LIMITED] if can_limit else [])]


# -- on paper --------------------------------------------------------------------------------------------------


def undivided(one: float, two: float) -> float:
    """The share s of the time with one thread that a second one does not divide, by Amdahl's law.

    T(2) = T(1) (s + (1 − s) / 2). Times vary: it may be a little below 0 (a second core brings its caches, too), or
    above 1.
    """
    return 2 * two / one - 1


def on_paper(one: float, share: float, threads: int) -> float:
    """Amdahl's T(n) = T(1) (s + (1 − s) / n), of a share s within 0 and 1."""
    share = min(max(share, 0.0), 1.0)
    return one * (share + (1 - share) / threads)


# -- the driver ------------------------------------------------------------------------------------------------


def check(case: Timed, counts: Sequence[int], files: dict[str, Any]) -> None:
    """Raise WrongResult if the outputs with some number of threads differ from those with the first, in any bit."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{count}.npz" for count in counts]
        for count, path in zip(counts, paths, strict=True):
            say(f"checking {case.task}: {Setting(count)}")
            ask(OURS, case.task, check=True, threads=count, outputs=path, **files)
            with np.load(paths[0]) as expected, np.load(path) as found:
                for name in expected.files:
                    if not np.array_equal(found[name], expected[name]):
                        raise WrongResult(f"{case.model}: {name} differs with {Setting(count)}")


def settings_here(**options: Any) -> list[Setting]:
    """The settings to time in this process. Raises WrongResult if one limited to a core does not choose one thread."""

    def default(cores: int | None) -> int:
        reply = ask(OURS, "default_threads", cores=cores, **options)
        return int(reply.figures["default_threads"])

    can_limit = hasattr(os, "sched_setaffinity")
    found = default(1) if can_limit else 1
    if found != 1:
        raise WrongResult(f"limited to one core, a process computes with {found} threads, expected 1")
    return settings(default(None), can_limit=can_limit)


def rows_of(
    case: Timed, chosen: Sequence[Setting], options: argparse.Namespace, common: dict[str, Any]
) -> list[dict[str, Any]]:
    """Check and time a model: a row for each run and setting."""
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Any] = {"net": case.net, **common}
        if case.checkpoint:
            files["checkpoint"] = Path(folder) / "net.pth"
            ask("torch-nchw", case.checkpoint, **files)
        check(case, [setting.threads for setting in chosen if setting.cores is None], files)
        of_the_worker = {"area": case.area, "repeats": options.repeats, **files}
        workers = {
            setting: partial(
                ask, OURS, case.task, threads=setting.threads, cores=setting.cores, **of_the_worker
            )
            for setting in chosen
        }
        replies = take_turns(case.task, workers, options.rounds)
    return [
        {
            "model": case.model,
            "what": what,
            "threads": setting.threads,
            "cores": setting.cores,
            "ms": timing.median,
            "spread": timing.spread,
            "version": got[0].version,
        }
        for setting, got in replies.items()
        for what, timing in together(got).items()
        if not what.endswith(KINDS)  # their mean counts
    ]


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        known = [case.task for case in timed(False)]
        parser.add_argument("--tasks", nargs="+", default=known, choices=known, help="the worker's (all)")

    options = parse(__doc__, repeats=3, rounds=2, more=more)
    common = {"quick": options.quick, "backend": options.backend, "plain_memory": options.plain_memory}
    print(machine())
    chosen, shown = settings_here(**common), []
    for case in timed(options.quick):
        if case.task not in options.tasks:
            continue
        rows = rows_of(case, chosen, options, common)
        one = {row["what"]: row["ms"] for row in rows if row["threads"] == 1}
        for row in rows:
            record(FILE, {**row, **common}, folder=options.results)
            setting, first, ms = Setting(row["threads"], row["cores"]), one[row["what"]], row["ms"]
            name = f"{row['model']}, {row['what']}, {setting}"
            share = f"{undivided(first, ms):.0%}" if setting == TWO else ""
            shown.append((name, f"{ms:.1f}", f"{row['spread']:.0%}", f"{ms / first:.2f}", share))
    table(["", "ms", "spread", "× one thread", "undivided"], shown)


if __name__ == "__main__":
    main()
