"""Codebooks: what depends on a few labels around a pixel alone is computed once for each distinct window of them.

A convolution of a label map, and a convolution of that, have few distinct values: as many as there are distinct
windows of labels, a tenth of the pixels of a street scene. So the distinct windows are numbered (a *book*), a canvas
holds each pixel's number (its *code*), and a layer's values are the rows of a *table*, one for each number. Who reads
the feature looks its row up. An edit adds rows for windows never seen before, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sparsegen.backends.interface import Array, Backend, Host, WindowSet


@dataclass
class Table:
    """A layer's values, a row for each window of a book."""

    rows: Array
    """float32 `[capacity, C]`."""
    count: int = 0
    """Rows that are computed."""


@dataclass
class Codebook:
    """A book of windows and the tables of the layers that are functions of such a window."""

    name: str
    """The index canvas and the windows, in short: `labels.3.1`."""
    source: str
    """Path of the index canvas whose windows these are."""
    window_set: WindowSet
    tables: dict[str, Table] = field(default_factory=dict)
    """Layer path -> its values."""

    def rows(
        self, backend: Backend, path: str, channels: int, fill: Callable[[Array, Host], None]
    ) -> tuple[Array, Array]:
        """A layer's table, `[R, C]`, and which of its rows are new; `fill(rows, windows)` computes those.

        If `fill` fails, the rows it was to compute do not count.
        """
        size = len(self.window_set)
        table = self.tables.get(path)
        if table is None:
            table = self.tables[path] = Table(backend.alloc((0, channels)))
        if size > len(table.rows):
            # room for the windows of some edits; memory that is never written is never taken
            grown = backend.alloc((size + size // 2 + 256, channels))
            grown[: table.count] = table.rows[: table.count]
            table.rows = grown
        new = table.rows[table.count : size]
        if len(new):
            fill(new, self.window_set.windows[table.count :])
            table.count = size
        return table.rows[:size], new

    def clear(self) -> None:
        """Forget every window; the tables' memory stays, to be written again."""
        self.window_set = WindowSet(self.window_set.storage.shape[1])
        for table in self.tables.values():
            table.count = 0

    def truncate(self, backend: Backend, count: int) -> None:
        """Forget the windows from number `count` on: nothing refers to them any more."""
        backend.forget_windows(self.window_set, count)
        for table in self.tables.values():
            table.count = min(table.count, count)

    def restore(self, backend: Backend, count: int, keys: Host) -> None:
        """Know the first `count` windows, and after them `keys` int32 `[R, width]`; done twice, it is done once.

        The rows of `keys` are computed when a layer asks for them.
        """
        self.truncate(backend, count)
        if len(keys):
            self.window_set = WindowSet(keys.shape[1], np.concatenate([self.window_set.windows, keys]))

    @property
    def nbytes(self) -> int:
        """Memory that the windows and the tables take, with the room for windows to come."""
        arrays = [self.window_set.storage, *(table.rows for table in self.tables.values())]
        return sum(int(array.nbytes) for array in arrays) + int(getattr(self.window_set.index, "nbytes", 0))

    @property
    def path(self) -> str:
        """Path of the canvas of codes."""
        return codebook_path(self.name)


def codebook_path(name: str) -> str:
    """The path of the canvas of a codebook's codes."""
    return f"windows.{name}"
