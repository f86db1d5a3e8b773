"""Active tiles and how they grow: a set of pixels comes in, the 4×4 tiles that hold them come out.

A `TileSet` names the active tiles of one resolution and, inside each, the pixels that may have changed. `grow`
carries such a set through the window of a layer, as a mask of the box around it: that costs a byte or so a pixel of
the box, far less than sorting coordinates would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sparsegen.backends.interface import TILE, Host

_WORD = np.dtype(f"u{TILE}")
"""A row of a tile's pixels as one number."""


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
    def of_mask(cls, mask: Host) -> TileSet:
        """The tiles that hold a True pixel of `mask`, bool `[N, H, W]`."""
        samples, height, width = mask.shape
        padded = np.pad(mask, ((0, 0), (0, -height % TILE), (0, -width % TILE)))
        return _cut((samples, height, width), padded, np.zeros(3, np.int32))

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

    def mask(self, *, whole_tiles: bool = False) -> Host:
        """bool `[N, H, W]`: the changed pixels, or all pixels of the active tiles."""
        mask = np.zeros(self.shape, bool)
        if self.count:
            box, (n, row, column) = _paint([self.whole() if whole_tiles else self])
            place = mask[n : n + len(box), row * TILE :, column * TILE :][:, : box.shape[1], : box.shape[2]]
            place[...] = box[:, : place.shape[1], : place.shape[2]]
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
    return _cut(sets[0].shape, *_paint(sets))


def _paint(sets: Sequence[TileSet]) -> tuple[Host, Host]:
    """The changed pixels of sets of one canvas, none empty, as a mask of the box of whole tiles around them all.

    bool `[n, r * TILE, c * TILE]`, and the first tile of the box, int32 `[3]`.
    """
    first = np.min([s.tiles.min(0) for s in sets], axis=0)
    samples, rows, columns = np.max([s.tiles.max(0) for s in sets], axis=0) - first + 1
    words = np.zeros((samples, rows, TILE, columns), _WORD)
    for s in sets:
        n, row, column = (s.tiles - first).T
        words[n, row, :, column] |= np.ascontiguousarray(s.pixels).reshape(-1, TILE * TILE).view(_WORD)
    return words.reshape(samples, rows * TILE, columns).view(bool), first


def _cut(shape: tuple[int, int, int], box: Host, first: Host) -> TileSet:
    """The tiles of a `shape` = (N, H, W) canvas that hold a True pixel of a box, as `_paint` gives it."""
    samples, height, width = box.shape
    words = box.view(_WORD).reshape(samples, height // TILE, TILE, width // TILE)
    n, row, column = np.nonzero(np.bitwise_or.reduce(words, axis=2))
    pixels = np.ascontiguousarray(words[n, row, :, column]).view(bool).reshape(-1, TILE, TILE)
    return TileSet(*shape, (np.stack([n, row, column], axis=-1) + first).astype(np.int32), pixels)


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


def _readers(box: Host, axis: int, begin: int, window: Window, before: int, size: int) -> tuple[Host, int]:
    """Along one axis, rows say: which output rows (< `size`) read a True one of `box`, whose rows start at `begin`.

    Whole tiles again, and where they start.
    """
    length = box.shape[axis]
    # row r, as it is read, lies in the canvas at r * step // upsample: the first and last that lie in the box,
    first = -(-begin * window.upsample // window.step)
    last = ((begin + length) * window.upsample - 1) // window.step
    # and the first and last outputs o that read these, where r = o * stride + tap - before
    start = max(0, -((window.kernel - 1 - before - first) // window.stride)) // TILE * TILE
    stop = min(size, (last + before) // window.stride + 1)
    outputs = np.arange(start, -(-stop // TILE) * TILE)
    nothing = length  # a line of False, for what is read outside the box
    box = np.concatenate([box, np.zeros_like(box.take([0], axis))], axis)
    grown = np.zeros_like(box.take(np.full(len(outputs), nothing), axis))
    for tap in range(window.kernel):
        read = outputs * window.stride + tap - before
        at = read * window.step // window.upsample - begin
        outside = (outputs >= size) | (read < 0) | (at < 0) | (at >= length)
        grown |= box.take(np.where(outside, nothing, at), axis)
    return grown, start


def grow(changed: TileSet, window: Window, height: int, width: int) -> TileSet:
    """The output pixels (of `height` × `width`) whose window reads a changed pixel, and the tiles that hold them.

    Exact: an output pixel is in the result if and only if its receptive field meets `changed`.
    """
    if changed.count == 0:
        return TileSet.empty(changed.samples, height, width)
    box, (n, row, column) = _paint([changed])
    box, y = _readers(box, 1, int(row) * TILE, window, window.top, height)
    box, x = _readers(box, 2, int(column) * TILE, window, window.left, width)
    return _cut((changed.samples, height, width), box, np.array([n, y // TILE, x // TILE], np.int32))
