"""Canvases kept as float16: float32 values come in, are rounded once, and half the memory holds them.

Kernels compute in float32 alone. They work in one set of float32 canvases, which all memories of an allocator share: a
layer's inputs are widened into them first, tile by tile, and its outputs are rounded, there and into the canvas that
is kept. So every reader of a value reads the same bits, in this run and in every later one.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    _widened: dict[str, Array] = field(default_factory=dict)
    """Path -> the shared float32 canvas, of this run."""
    _warm: dict[str, Host] = field(default_factory=dict)
    """Path -> bool `[N, rows, columns]`: tiles of the shared canvas that hold the values of this memory."""

    def kept_as(self, path: str, shape: Sequence[int], dtype: str) -> str:
        # an odd number of channels does not lie in whole words, as copies of tiles take them
        wide = shape[3] >= LEAST_CHANNELS and shape[3] % 2 == 0 and path not in self.inputs.values()
        return "float16" if self.keep_canvases and dtype == "float32" and wide else dtype

    def begin(self) -> None:
        self._widened.clear()
        self._warm.clear()

    def canvas(self, path: str, shape: tuple[int, int, int, int], dtype: str) -> Canvas:
        kept = super().canvas(path, shape, self.kept_as(path, shape, dtype))
        if kept.array.dtype != np.float16:
            return kept
        if path not in self._widened:
            self._widened[path] = self.allocator.shared(path, shape)
            self._warm[path] = np.zeros((shape[0], -(-shape[1] // TILE), -(-shape[2] // TILE)), bool)
        return Canvas(path, self._widened[path])

    def fetch(self, reads: Sequence[Read], active: TileSet) -> None:
        for read in reads:
            path = "" if read.canvas is None else read.canvas.path
            if path not in self._warm or self._warm[path].all():
                continue
            if read.everywhere:
                self._widen(path, active.edited[:, None, None])
            else:
                height, width = read.changed.height, read.changed.width
                self._widen(path, read_by(active, read.window, height, width))

    def commit(self, canvas: Canvas, tiles: Tiles, checks: FiniteChecks) -> None:
        path = canvas.path
        if path not in self._warm:
            return
        layer = checks.entry(lambda _: _beyond(path))
        self.backend.narrow_tiles(self.canvases[path], canvas.array, tiles, watch=checks.watch, layer=layer)
        n, row, column = tiles.host.T
        self._warm[path][n, row, column] = True

    def whole(self, canvas: Canvas) -> Host:
        if canvas.path in self._warm:
            self._widen(canvas.path, np.ones((1, 1, 1), bool))
        return super().whole(canvas)

    def tiles(self, canvas: Canvas, tiles: Tiles) -> Host:
        if canvas.path in self._warm:
            wanted = np.zeros_like(self._warm[canvas.path])
            n, row, column = tiles.host.T
            wanted[n, row, column] = True
            self._widen(canvas.path, wanted)
        return super().tiles(canvas, tiles)

    def _widen(self, path: str, tiles: Host) -> None:
        """Widen the `tiles` (bool, as `_warm`) that the shared canvas does not hold yet."""
        warm = self._warm[path]
        cold = np.argwhere(tiles & ~warm).astype(np.int32)
        if len(cold):
            self.backend.widen_tiles(self._widened[path], self.canvases[path], Tiles(cold))
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
