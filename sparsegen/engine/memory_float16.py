"""Canvases kept as float16: float32 values come in, are rounded once, and half the memory holds them.

Kernels compute in float32 alone. They work in one set of float32 canvases, which all memories of an allocator share: a
layer's inputs are widened into them first, tile by tile, and its outputs are rounded, there and into the canvas that
is kept. So every reader of a value reads the same bits, in this run and in every later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from sparsegen.backends.interface import TILE, Array, Host, Tiles

from ..errors import InputError, SessionError
from ..tiling.canvas import Canvas
from ..tiling.tiles import TileSet
from ..tiling.windows import Read, read_by
from .finite import FiniteChecks
from .memory import Memory

LEAST_CHANNELS = 8
"""Canvases of fewer channels are kept as they are: they are small, and the output that users see is one of them."""


@dataclass(repr=False)
class HalfMemory(Memory):
    """A memory that keeps layers' canvases as float16. Memories of one allocator run one after another."""

    storage: ClassVar[str] = "float16"
    _warm: dict[str, Host] = field(default_factory=dict)
    """Path -> bool `[N, rows, columns]`: tiles of the shared float32 canvas that hold the values of this memory."""

    def kept_as(self, path: str, shape: Sequence[int], dtype: str) -> str:
        # an odd number of channels does not lie in whole words, as copies of tiles take them
        wide = shape[3] >= LEAST_CHANNELS and shape[3] % 2 == 0 and path not in self.inputs.values()
        return "float16" if self.keep_canvases and dtype == "float32" and wide else dtype

    def begin(self) -> None:
        self._warm.clear()

    def _working(self, path: str) -> Mapping[str, Array]:
        kept = self.canvases[path]
        if kept.dtype != np.float16:
            return self.canvases
        self.allocator.shared(path, kept.shape)
        return self.allocator.shared_arrays

    def ready(self, canvas: Canvas, shape: tuple[int, int, int, int]) -> bool:
        if canvas.path in self.canvases:
            self._working(canvas.path)
        return super().ready(canvas, shape)

    def persist(self, canvas: Canvas, checks: FiniteChecks) -> None:
        path, shape = canvas.path, canvas.shape
        if path in self.canvases or self.kept_as(path, shape, "float32") != "float16":
            super().persist(canvas, checks)
            return
        self.canvases[path] = self.allocator.allocate(shape, dtype="float16")
        self.commit(canvas, TileSet.full(*shape[:3]).tiles, checks)

    def fetch(self, reads: Sequence[Read], active: TileSet) -> None:
        for read in reads:
            warm = None if read.canvas is None else self._warm_tiles(read.canvas.path)
            if read.canvas is None or warm is None or warm.all():
                continue
            if read.everywhere:
                self._widen(read.canvas.path, active.edited[:, None, None])
            else:
                height, width = read.changed.height, read.changed.width
                self._widen(read.canvas.path, read_by(active, read.window, height, width))

    def commit(self, canvas: Canvas, tiles: Tiles, checks: FiniteChecks) -> None:
        path = canvas.path
        warm = self._warm_tiles(path)
        if warm is None:
            return
        layer = checks.entry(lambda _: _beyond(path))
        self.backend.narrow_tiles(self.canvases[path], canvas.array, tiles, watch=checks.watch, layer=layer)
        n, row, column = tiles.host.T
        warm[n, row, column] = True

    def fetch_whole(self, canvas: Canvas) -> None:
        self._widen(canvas.path, np.ones((1, 1, 1), bool))

    def whole(self, canvas: Canvas) -> Host:
        self.fetch_whole(canvas)
        return super().whole(canvas)

    def tiles(self, canvas: Canvas, tiles: Tiles) -> Host:
        warm = self._warm_tiles(canvas.path)
        if warm is not None:
            wanted = np.zeros_like(warm)
            n, row, column = tiles.host.T
            wanted[n, row, column] = True
            self._widen(canvas.path, wanted)
        return super().tiles(canvas, tiles)

    def _warm_tiles(self, path: str) -> Host | None:
        """The entry of `_warm`; None: the canvas is not kept as float16."""
        kept = self.canvases.get(path)
        if kept is None or kept.dtype != np.float16:
            return None
        if path not in self._warm:
            n, height, width, _ = kept.shape
            self._warm[path] = np.zeros((n, -(-height // TILE), -(-width // TILE)), bool)
        return self._warm[path]

    def _widen(self, path: str, tiles: Host) -> None:
        """Widen the `tiles` (bool, as `_warm`) that the shared canvas does not hold yet."""
        warm = self._warm_tiles(path)
        if warm is None:
            return
        cold = np.argwhere(tiles & ~warm).astype(np.int32)
        if len(cold):
            self.backend.widen_tiles(self._working(path)[path], self.canvases[path], Tiles(cold))
            warm |= tiles


def _beyond(path: str) -> SessionError:
    return SessionError(
        f"{path}: a value is beyond 65504, the largest of float16; keep the caches as float32"
    )


def memory_kind(storage: str) -> type[Memory]:
    """The memory that keeps canvases as `storage`. Raises InputError."""
    kinds: dict[str, type[Memory]] = {kind.storage: kind for kind in (Memory, HalfMemory)}
    if storage not in kinds:
        raise InputError(f"unknown storage {storage!r}; known: {', '.join(kinds)}")
    return kinds[storage]
