"""Output that the commands share: tables, progress bars, and checks of the files to write before the work begins."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sparsegen.weights import shown

from ..errors import InputError

_shown: list[Progress] = []
"""Progress bars that a terminal shows now."""


class _Console(Console):
    """A console whose lines appear above the progress bars of another console, as they do above its own."""

    def print(self, *given: Any, **how: Any) -> None:
        bars = [each for each in _shown if each.console is not self]
        for each in reversed(bars):
            each.stop()
        try:
            super().print(*given, **how)
        finally:
            for each in bars:
                each.start()


def _console(*, stderr: bool) -> Console:
    """A console without markup, so that names out of files are printed as they are."""
    # rich reads COLUMNS=0 as a width, and prints nothing
    width = shutil.get_terminal_size().columns if set(os.environ.get("COLUMNS", "")) == {"0"} else None
    return _Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


out, err = _console(stderr=False), _console(stderr=True)


class Bar(Protocol):
    """A progress bar: calling it moves it to `done`."""

    def __call__(self, done: int, doing: str, total: int | None = None) -> None: ...


def print_line(kind: str, message: str) -> None:
    """One line on stderr: an error, or a note."""
    err.print(f"{kind}: {' '.join(message.split())}", soft_wrap=True)


VALUE = 20
"""The least columns of a table's values beside their names; in a narrower terminal each value has its own line."""
FIRST, EVERY = 2.0, 5.0
"""Seconds until progress is first reported in a line, and between such lines."""


def print_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print two columns under a title. No value is cut off; into a pipe or file, each row is one line."""
    rows = list(rows)
    out.print(title, style="bold", soft_wrap=True)
    width = max((len(name) for name, _ in rows), default=0)
    if out.is_terminal and out.width >= width + VALUE:
        table = Table(show_header=False, box=None)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, value)
        out.print(table)
    else:
        for name, value in rows:
            out.print(
                f" {name}:\n   {value}" if out.is_terminal else f" {name:<{width}}  {value}", soft_wrap=True
            )


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int | None], Bar]]:
    """A maker of progress bars on stderr, `start(description, total)`, which are erased at the end.

    If stderr is a log, or a terminal that cannot move its cursor, a line is written every few seconds instead, and
    none for work that takes less.
    """
    live = err.is_terminal and not err.is_dumb_terminal
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}", markup=False),
    )
    begun = time.monotonic()
    due = begun + FIRST
    with Progress(*columns, console=err, transient=True, disable=not live) as bars, _showing(bars, live):

        def start(description: str, total: int | None) -> Bar:
            task = bars.add_task(description, total=total, doing="")

            def bar(done: int, doing: str, total: int | None = total) -> None:
                nonlocal due
                bars.update(task, completed=done, doing=shown(doing), total=total)
                now = time.monotonic()
                if not live and now >= due:
                    due = now + EVERY
                    share = f"{done / total:.0%}, " if total else ""
                    err.print(f"{description}: {shown(doing)} ({share}{now - begun:.0f} s)", soft_wrap=True)

            return bar

        yield start


@contextmanager
def _showing(bars: Progress, live: bool) -> Iterator[None]:
    """Stop live bars while a line is printed above them."""
    if not live:
        yield
        return
    _shown.append(bars)
    try:
        yield
    finally:
        _shown.remove(bars)


@contextmanager
def bar_without_steps(description: str) -> Iterator[Bar]:
    """A bar for work without steps; a thread writes the lines of a log."""
    done = threading.Event()
    with progress_bars() as start:
        bar = start(description, None)

        def report() -> None:
            while not done.wait(FIRST):
                bar(0, "still at it")

        thread = threading.Thread(target=report, daemon=True)
        with suppress(RuntimeError):  # too little memory for a thread: no lines
            thread.start()
        try:
            yield bar
        finally:
            done.set()
            if thread.ident is not None:
                thread.join()


def numbered(path: Path, mark: str) -> Path:
    """`out.png`, "2" → `out-2.png`."""
    return path.with_name(f"{path.stem}-{mark}{path.suffix}")


def check_writable(path: Path, *, suffix: str = "", inputs: Sequence[Path] = ()) -> None:
    """Raise InputError, before the work begins, if a result could not be written to `path`."""
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of the file to write")
    if suffix and path.suffix.lower() != suffix:
        raise InputError(f"{path}: the image is written as PNG; give a name that ends in {suffix}")
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist")
    if path.exists() and any(_reads(other, path) for other in inputs):
        raise InputError(f"{path}: is also an input; give another name to write to")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{path}: cannot be written (read-only)")


def check_new(path: Path) -> None:
    """As `check_writable`; raise InputError too if there is a file already: it may be one that took hours to get."""
    check_writable(path)
    if os.path.lexists(path):
        raise InputError(f"{path}: exists already; give another name, or delete it first")


def _reads(given: Path, path: Path) -> bool:
    """Whether an input, a file or a whole folder, includes the existing file `path`."""
    if given.is_dir():
        return path.resolve().is_relative_to(given.resolve())
    return given.exists() and path.samefile(given)
