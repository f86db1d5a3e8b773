"""Active tiles and how they grow: a set of pixels comes in, the 4×4 tiles that hold them come out.

A `TileSet` names the active tiles of one resolution and, inside each, the pixels that may have changed. `grow`
carries such a set through the window of a layer. Both cost in proportion to the set, never to the image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sparsegen.backends.interface import TILE, Host


@dataclass(frozen=True, eq=False)
class TileSet:
    """The active tiles of a canvas of `samples` × `height` × `width` pixels."""

    samples: int
    height: int
    width: int
    tiles: Host
    """int32 `[K, 3]`: sample, tile row, tile column; sorted, each once."""
    pixels: Host
    """bool `[K, TILE, TILE]`: the pixels of each tile that may have changed (all inside the image)."""

    @classmethod
    def empty(cls, samples: int, height: int, width: int) -> TileSet:
        """No tile at all."""
        return cls(samples, height, width, np.zeros((0, 3), np.int32), np.zeros((0, TILE, TILE), bool))

    @classmethod
    def full(cls, samples: int, height: int, width: int, *, only: Host | None = None) -> TileSet:
        """Every tile and pixel, of all samples or of those where `only` (bool `[N]`) holds."""
        rows, columns = -(-height // TILE), -(-width // TILE)
        chosen = np.arange(samples) if only is None else np.flatnonzero(only)
        n, r, c = np.meshgrid(chosen, np.arange(rows), np.arange(columns), indexing="ij")
        tiles = np.stack([n, r, c], axis=-1).reshape(-1, 3).astype(np.int32)
        return cls.of_tiles((samples, height, width), tiles)

    @classmethod
    def of_tiles(cls, shape: tuple[int, int, int], tiles: Host) -> TileSet:
        """These tiles of a `shape` = (N, H, W) canvas, every pixel inside the image counted as changed."""
        y = tiles[:, 1, None] * TILE + np.arange(TILE) < shape[1]
        x = tiles[:, 2, None] * TILE + np.arange(TILE) < shape[2]
        return cls(*shape, tiles, y[:, :, None] & x[:, None, :])

    @classmethod
    def of_pixels(cls, shape: tuple[int, int, int], n: Host, y: Host, x: Host) -> TileSet:
        """The tiles that hold pixels (n, y, x) (any order, repeats allowed) of a `shape` = (N, H, W) canvas."""
        samples, height, width = shape
        rows, columns = -(-height // TILE), -(-width // TILE)
        key, which = np.unique((n * rows + y // TILE) * columns + x // TILE, return_inverse=True)
        tiles = np.stack([key // columns // rows, key // columns % rows, key % columns], axis=-1)
        pixels = np.zeros((len(key), TILE, TILE), bool)
        pixels[which, y % TILE, x % TILE] = True
        return cls(samples, height, width, tiles.astype(np.int32), pixels)

    @classmethod
    def of_mask(cls, mask: Host) -> TileSet:
        """The tiles that hold a True pixel of `mask`, bool `[N, H, W]`."""
        samples, height, width = mask.shape
        # NumPy searches one dimension many times as fast as three
        row, x = np.divmod(np.flatnonzero(mask), width)
        return cls.of_pixels((samples, height, width), row // height, row % height, x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(samples, height, width) of the canvas."""
        return self.samples, self.height, self.width

    @property
    def count(self) -> int:
        """Number of active tiles."""
        return len(self.tiles)

    @property
    def total(self) -> int:
        """Number of tiles of the canvas."""
        return self.samples * -(-self.height // TILE) * -(-self.width // TILE)

    @cached_property
    def area(self) -> int:
        """Pixels that the active tiles cover inside the image: what a layer recomputes."""
        h = np.minimum(self.height - self.tiles[:, 1] * TILE, TILE)
        w = np.minimum(self.width - self.tiles[:, 2] * TILE, TILE)
        return int((h * w).sum())

    def coordinates(self) -> tuple[Host, Host, Host]:
        """(n, y, x) of every changed pixel, three int64 `[P]`."""
        k, dy, dx = np.nonzero(self.pixels)
        n, row, column = self.tiles[k].T.astype(np.int64)
        return n, row * TILE + dy, column * TILE + dx

    def mask(self, *, whole_tiles: bool = False) -> Host:
        """bool `[N, H, W]`: the changed pixels, or all pixels of the active tiles. For pictures and tests."""
        mask = np.zeros(self.shape, bool)
        chosen = self if not whole_tiles else self.whole()
        mask[chosen.coordinates()] = True
        return mask

    def whole(self) -> TileSet:
        """The same tiles, every pixel inside the image counted as changed."""
        return TileSet.of_tiles(self.shape, self.tiles)


def union(sets: Iterable[TileSet]) -> TileSet:
    """All tiles and changed pixels of several sets of one canvas (at least one)."""
    sets = list(sets)
    sets = [s for s in sets if s.count] or sets[:1]
    if len(sets) == 1:
        return sets[0]
    n, y, x = (np.concatenate(part) for part in zip(*(s.coordinates() for s in sets), strict=True))
    return TileSet.of_pixels(sets[0].shape, n, y, x)


@dataclass(frozen=True)
class Window:
    """Which pixels of its input a layer's output pixel reads, the same along rows (`top`) and columns (`left`).

    Output row o reads, for tap t in 0 … kernel - 1, row r = o * stride + t - top of the input *as it is read*;
    that row lies in the canvas at r * step // upsample (`step` > 1: read nearest-downsampled).
    """

    kernel: int = 1
    stride: int = 1
    top: int = 0
    left: int = 0
    step: int = 1
    upsample: int = 1


def _readers(position: Host, window: Window, before: int, size: int) -> tuple[Host, Host]:
    """For canvas rows `position` `[P]`: which output rows (< size) read them. (index into P, output row)."""
    tap = np.arange(window.kernel)[:, None]
    sub = np.arange(window.upsample)
    # solve r = o * stride + t - before for o, where r * step // upsample = position
    read, misses = np.divmod(position[:, None, None] * window.upsample + sub, window.step)
    out, uneven = np.divmod(read + before - tap, window.stride)
    which, *_ = hit = np.nonzero((misses == 0) & (uneven == 0) & (out >= 0) & (out < size))
    return which, out[hit]


def grow(changed: TileSet, window: Window, height: int, width: int) -> TileSet:
    """The output pixels (of `height` × `width`) whose window reads a changed pixel, and the tiles that hold them.

    Exact: an output pixel is in the result if and only if its receptive field meets `changed`.
    """
    if changed.count == 0:
        return TileSet.empty(changed.samples, height, width)
    n, y, x = changed.coordinates()
    which, out_y = _readers(y, window, window.top, height)
    # rows first, each (n, row, x) kept once, so that columns multiply few pixels
    key = np.unique((n[which] * height + out_y) * changed.width + x[which])
    n_row, x = np.divmod(key, changed.width)
    which, out_x = _readers(x, window, window.left, width)
    n_row = n_row[which]
    return TileSet.of_pixels((changed.samples, height, width), n_row // height, n_row % height, out_x)
