"""Canvases kept as float16: float32 values come in, are rounded once, and half the memory holds them.

Kernels know float32 alone. They work in one set of float32 canvases, which all memories of a store share: what a layer
reads is brought there first, tile by tile, and what it wrote is rounded, there and into the canvas that is kept. So
whoever reads a value reads the same bits, in this run and in every later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from sparsegen.backends.interface import TILE, Array, Host, Tiles

from ..errors import InputError, SessionError
from ..tiling.tiles import TileSet
from ..tiling.windows import Read, read_by
from .memory import Memory, input_path
from .store import Store

LEAST_CHANNELS = 8
"""Canvases of fewer are kept as they are: they are small, and among them is what the user sees."""


@dataclass(repr=False)
class HalfMemory(Memory):
    """A memory that keeps layers' canvases as float16. Those of one store take turns: one run after another."""

    storage: ClassVar[str] = "float16"
    _paths: dict[int, str] = field(default_factory=dict)
    """id of a shared canvas -> its path, of this run."""
    _warm: dict[str, Host] = field(default_factory=dict)
    """Path -> bool `[N, rows, columns]`: tiles of the shared canvas that hold what this memory keeps."""

    def __post_init__(self) -> None:
        self._store = self.store = self.store or Store()

    def kept_as(self, path: str, shape: Sequence[int], dtype: str) -> str:
        # an odd number of channels does not lie in whole words, as copies of tiles take them
        wide = shape[3] >= LEAST_CHANNELS and shape[3] % 2 == 0 and not path.startswith(input_path(""))
        return "float16" if self.recording and dtype == "float32" and wide else dtype

    def begin(self) -> None:
        self._paths.clear()
        self._warm.clear()

    def canvas(self, path: str, shape: tuple[int, int, int, int], dtype: str) -> Array:
        kept = super().canvas(path, shape, self.kept_as(path, shape, dtype))
        if kept.dtype != np.float16:
            return kept
        shared = self._store.shared(path, shape)
        if path not in self._warm:
            self._paths[id(shared)] = path
            self._warm[path] = np.zeros((shape[0], -(-shape[1] // TILE), -(-shape[2] // TILE)), bool)
        return shared

    def fetch(self, reads: Sequence[Read], active: TileSet) -> None:
        for read in reads:
            path = self._paths.get(id(read.canvas))
            if path is None or self._warm[path].all():
                continue
            if read.everywhere:
                self._bring(path, read.canvas, active.edited[:, None, None])
            else:
                height, width = read.changed.height, read.changed.width
                self._bring(path, read.canvas, read_by(active, read.window, height, width))

    def keep(self, path: str, canvas: Array, tiles: Tiles) -> None:
        kept = self.canvases.get(path)
        if kept is None or kept.dtype != np.float16:
            return
        watch = self.backend.watch_run()
        self.backend.narrow_tiles(kept, canvas, tiles, watch=watch, layer=0)
        if watch.first_watched() is not None:
            raise SessionError(
                f"{path}: a value is beyond 65504, the largest of float16; keep the caches as float32"
            )
        n, row, column = tiles.host.T
        self._warm[path][n, row, column] = True

    def whole(self, canvas: Array) -> Host:
        path = self._paths.get(id(canvas))
        if path is not None:
            self._bring(path, canvas, np.ones((1, 1, 1), bool))
        return super().whole(canvas)

    def _bring(self, path: str, shared: Array, tiles: Host) -> None:
        """Widen those of `tiles` (bool, as `_warm`) that are not in the shared canvas yet."""
        warm = self._warm[path]
        cold = Tiles(np.argwhere(tiles & ~warm))
        if len(cold):
            self.backend.widen_tiles(shared, self.canvases[path], cold)
            warm |= tiles


def memory_kind(storage: str) -> type[Memory]:
    """The memory that keeps canvases as `storage`. Raises InputError."""
    kinds: dict[str, type[Memory]] = {kind.storage: kind for kind in (Memory, HalfMemory)}
    if storage not in kinds:
        raise InputError(f"storage is {storage!r}, expected {' or '.join(kinds)}")
    return kinds[storage]
