"""Codebooks: activations that depend on a window of labels alone, computed once for each distinct window.

A convolution of a label map, and a convolution of its output, have few distinct values: one for each distinct window of
labels, a tenth of the pixels of a street scene. So a *window set* holds the distinct windows, a canvas the *code* of
each pixel (its window's place in the set), and a layer's values are the rows of a *table*, one for each code. A layer
that reads the feature looks the rows up. An edit computes rows only for windows that are new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sparsegen.backends.interface import Array, Backend, Host, WindowSet


@dataclass
class Table:
    """A layer's values, a row for each window of a window set."""

    rows: Array
    """float32 `[capacity, C]`."""
    count: int = 0
    """Number of rows that are computed."""


@dataclass
class Codebook:
    """A window set, and the tables of the layers that are functions of such a window."""

    name: str
    """The index canvas, the kernel and the step, such as `labels.3.1`."""
    source: str
    """Path of the index canvas whose windows these are."""
    window_set: WindowSet
    tables: dict[str, Table] = field(default_factory=dict)
    """Layer path -> its values."""

    def rows(
        self, backend: Backend, path: str, channels: int, fill: Callable[[Array, Host], bool]
    ) -> tuple[Array, Array, bool]:
        """A layer's table `[R, C]`, its new rows, which `fill(rows, windows)` has just computed, and what it returned.

        If `fill` fails, the new rows do not count as computed.
        """
        size = len(self.window_set)
        table = self.tables.get(path)
        if table is None:
            table = self.tables[path] = Table(backend.alloc((0, channels)))
        if size > len(table.rows):
            # spare rows for the windows of later edits: the system provides memory only when it is written
            grown = backend.alloc((size + size // 2 + 256, channels))
            backend.copy_arrays([(grown[: table.count], table.rows[: table.count])])
            table.rows = grown
        new, finite = table.rows[table.count : size], True
        if len(new):
            finite = fill(new, self.window_set.windows[table.count :])
            table.count = size
        return table.rows[:size], new, finite

    def clear(self) -> None:
        """Drop every window; the tables' memory stays, to be overwritten."""
        self.window_set = WindowSet(self.window_set.storage.shape[1])
        for table in self.tables.values():
            table.count = 0

    def truncate(self, backend: Backend, count: int) -> None:
        """Drop the windows from number `count` on, to which no canvas refers any more."""
        backend.forget_windows(self.window_set, count)
        for table in self.tables.values():
            table.count = min(table.count, count)

    def restore(self, backend: Backend, count: int, keys: Host) -> None:
        """Make the windows the first `count`, then `keys` int32 `[R, width]`. Repeating it changes nothing more.

        The rows of `keys` are computed when a layer next needs them.
        """
        self.truncate(backend, count)
        if len(keys):
            self.window_set = WindowSet(keys.shape[1], np.concatenate([self.window_set.windows, keys]))

    @property
    def nbytes(self) -> int:
        """Memory of the windows and the tables, spare rows included."""
        arrays = [self.window_set.storage, *(table.rows for table in self.tables.values())]
        return sum(int(array.nbytes) for array in arrays) + int(getattr(self.window_set.index, "nbytes", 0))

    @property
    def path(self) -> str:
        """Path of the canvas of codes."""
        return codebook_path(self.name)


def codebook_path(name: str) -> str:
    """The path of the canvas of a codebook's codes."""
    return f"windows.{name}"
