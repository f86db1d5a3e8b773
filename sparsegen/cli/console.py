"""What the commands share: tables and progress bars go out, and what is to be written is looked at beforehand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..errors import InputError

# names out of files are printed: no markup, so that none of them means anything
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


class Bar(Protocol):
    """A progress bar goes where it is called to."""

    def __call__(self, done: int, doing: str, total: int | None = None) -> None: ...


def print_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Two columns under a title."""
    out.print(title, style="bold", soft_wrap=True)
    table = Table(show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    out.print(table)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int | None], Bar]]:
    """A maker of bars on stderr, `start(description, total)`, which vanish in the end; shown on terminals alone."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}"),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:

        def start(description: str, total: int | None) -> Bar:
            task = bars.add_task(description, total=total, doing="")

            def bar(done: int, doing: str, total: int | None = total) -> None:
                bars.update(task, completed=done, doing=doing, total=total)

            return bar

        yield start


def numbered(path: Path, mark: str) -> Path:
    """`out.png`, "2" → `out-2.png`."""
    return path.with_name(f"{path.stem}-{mark}{path.suffix}")


def check_writable(path: Path, *, suffix: str = "", inputs: Sequence[Path] = ()) -> None:
    """Fail before the work, not after it, when a result could not be written."""
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of the file to write")
    if suffix and path.suffix.lower() != suffix:
        raise InputError(f"{path}: the picture is written as PNG; give a name that ends in {suffix}")
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist")
    if path.exists() and any(_reads(other, path) for other in inputs):
        raise InputError(f"{path}: is also an input; give another name to write to")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{path}: cannot be written (read-only)")


def _reads(given: Path, path: Path) -> bool:
    """Whether an input, a file or a whole folder, takes in the existing file `path`."""
    if given.is_dir():
        return path.resolve().is_relative_to(given.resolve())
    return given.exists() and path.samefile(given)
