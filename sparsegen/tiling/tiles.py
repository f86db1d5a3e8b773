"""Active tiles and how they grow: a set of pixels comes in, the 4×4 tiles that hold them come out.

A `TileSet` keeps the pixels of one resolution that may have changed, as a mask of the box around them; its active
tiles are the tiles that hold such a pixel. `grow` (`windows.py`) carries a set through the window of a layer; it costs
a few byte operations for each pixel of the box, far less than sorting coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sparsegen.backends.interface import TILE, Host, Tiles

_WORD = np.dtype(f"u{TILE}")
"""A row of a tile's pixels as one number."""


@dataclass(frozen=True, eq=False, repr=False)
class TileSet:
    """The active tiles of a canvas of `samples` × `height` × `width` pixels."""

    samples: int
    height: int
    width: int
    first: tuple[int, int, int]
    """The first sample, tile row and tile column of the box around the active tiles."""
    held: Host
    """bool `[n, r, c]`: which tiles of the box are active; some in each of its outermost rows and columns."""
    box: Host
    """bool `[n, r * TILE, c * TILE]`: which pixels of the box may have changed (all inside the image)."""

    def __repr__(self) -> str:
        return f"<TileSet: {self.count} of {self.total} tiles of {self.samples} × {self.height}×{self.width}>"

    @classmethod
    def empty(cls, samples: int, height: int, width: int) -> TileSet:
        """No tile at all."""
        nothing = np.zeros((0, 0, 0), bool)
        return cls(samples, height, width, (0, 0, 0), nothing, nothing)

    @classmethod
    def full(cls, samples: int, height: int, width: int, *, only: Host | None = None) -> TileSet:
        """Every tile and pixel of all samples, or of the samples where `only` (bool `[N]`) is True."""
        held = np.ones((samples, -(-height // TILE), -(-width // TILE)), bool)
        full = cls(samples, height, width, (0, 0, 0), held, held).whole()
        if only is None or only.all():
            return full
        full.box[~only] = False
        return cls.of_tile_box(full.shape, full.box, full.first)

    @classmethod
    def of_mask(cls, mask: Host) -> TileSet:
        """The tiles that hold a True pixel of `mask`, bool `[N, H, W]`."""
        rows = np.flatnonzero(mask.any(2).any(0))
        if not len(rows):
            return cls.empty(*mask.shape)
        top = int(rows[0])
        return cls.of_box(mask.shape, mask[:, top : rows[-1] + 1], (0, top, 0))

    @classmethod
    def of_box(cls, shape: tuple[int, ...], box: Host, at: tuple[int, int, int] = (0, 0, 0)) -> TileSet:
        """The True pixels of a bool `box` whose first pixel lies at `at` = (n, y, x) of a `shape` = (N, H, W) canvas.

        Pixels of the box outside the image are ignored.
        """
        n, y, x = at
        inside = box[:, max(-y, 0) : max(shape[1] - y, 0), max(-x, 0) : max(shape[2] - x, 0)]
        y, x = max(y, 0), max(x, 0)
        samples, height, width = inside.shape
        top, left = y % TILE, x % TILE
        padded = np.zeros((samples, whole_tiles(top + height), whole_tiles(left + width)), bool)
        padded[:, top : top + height, left : left + width] = inside
        return cls.of_tile_box(shape, padded, (n, y // TILE, x // TILE))

    @classmethod
    def of_tiles(cls, shape: tuple[int, int, int], tiles: Host, pixels: Host | None = None) -> TileSet:
        """The set of `tiles` `[K, 3]` of a `shape` = (N, H, W) canvas, with their changed pixels.

        `pixels` bool `[K, TILE, TILE]`; None: all inside the image. Raises ValueError: a tile lies outside the canvas.
        """
        if not len(tiles):
            return cls.empty(*shape)
        beyond = (shape[0], -(-shape[1] // TILE), -(-shape[2] // TILE))
        if (tiles < 0).any() or (tiles >= beyond).any():
            raise ValueError(f"tiles outside a canvas of {shape}")
        first = tiles.min(0)
        samples, rows, columns = tiles.max(0) - first + 1
        words = np.zeros((samples, rows, TILE, columns), _WORD)
        n, row, column = (tiles - first).T
        if pixels is None:
            pixels = np.ones((len(tiles), TILE, TILE), bool)
        words[n, row, :, column] = np.ascontiguousarray(pixels).reshape(-1, TILE * TILE).view(_WORD)
        box = words.view(bool).reshape(samples, rows * TILE, columns * TILE)
        n, row, column = first.tolist()
        return cls.of_box(shape, box, (n, row * TILE, column * TILE))

    @classmethod
    def of_tile_box(cls, shape: tuple[int, ...], box: Host, first: tuple[int, int, int]) -> TileSet:
        """The set of a box of whole tiles from tile `first` on, cut down to the tiles that hold a True pixel."""
        samples, height, width = shape
        held: Any = np.bitwise_or.reduce(_words(box), axis=2) != 0 if box.size else box
        if not held.any():
            return cls.empty(samples, height, width)
        plane = held[0] if len(held) == 1 else held.any(0)
        n, n_end = (0, 1) if len(held) == 1 else _span(held.any((1, 2)))
        (row, row_end), (column, column_end) = _span(plane.any(1)), _span(plane.any(0))
        if (n_end - n, row_end - row, column_end - column) != held.shape:
            held = held[n:n_end, row:row_end, column:column_end].copy()
            box = box[n:n_end, row * TILE : row_end * TILE, column * TILE : column_end * TILE].copy()
        return cls(samples, height, width, (first[0] + n, first[1] + row, first[2] + column), held, box)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(samples, height, width) of the canvas."""
        return self.samples, self.height, self.width

    @cached_property
    def tiles(self) -> Tiles:
        """The active tiles, sorted: one handle, so that a backend uploads them once."""
        return Tiles(np.argwhere(self.held) + self.first)

    @property
    def pixels(self) -> Host:
        """bool `[K, TILE, TILE]`: the pixels of each active tile that may have changed."""
        n, row, column = np.nonzero(self.held)
        words = np.ascontiguousarray(_words(self.box)[n, row, :, column])
        return words.view(bool).reshape(-1, TILE, TILE)

    @cached_property
    def count(self) -> int:
        """Number of active tiles."""
        return int(np.count_nonzero(self.held))

    @property
    def edited(self) -> Host:
        """bool `[N]`: the samples that have an active tile."""
        edited = np.zeros(self.samples, bool)
        edited[self.tiles.host[:, 0]] = True
        return edited

    @property
    def shares(self) -> list[float]:
        """For each sample, the share of its tiles that are active."""
        return self.tiles.shares(self.samples, (self.height, self.width))

    @property
    def total(self) -> int:
        """Number of tiles of the canvas."""
        return self.samples * -(-self.height // TILE) * -(-self.width // TILE)

    @cached_property
    def area(self) -> int:
        """Number of pixels that the active tiles cover inside the image; a layer recomputes as many."""
        if not self.height % TILE and not self.width % TILE:
            return self.count * TILE * TILE
        h = np.minimum(self.height - self.tiles.host[:, 1] * TILE, TILE)
        w = np.minimum(self.width - self.tiles.host[:, 2] * TILE, TILE)
        return int(h @ w)

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """The box as an index of arrays `[N, H, W, …]`; slicing cuts off the part that overhangs the image."""
        n, y, x = self.first[0], self.first[1] * TILE, self.first[2] * TILE
        samples, height, width = self.box.shape
        return slice(n, n + samples), slice(y, y + height), slice(x, x + width)

    def mask(self, *, whole_tiles: bool = False) -> Host:
        """bool `[N, H, W]`: the changed pixels, or all pixels of the active tiles."""
        box = self.whole().box if whole_tiles else self.box
        mask = np.zeros(self.shape, bool)
        place = mask[self.place]
        place[...] = box[:, : place.shape[1], : place.shape[2]]
        return mask

    def whole(self) -> TileSet:
        """The same tiles, every pixel inside the image counted as changed."""
        return self._with_all_pixels

    @cached_property
    def _with_all_pixels(self) -> TileSet:
        box = self.held.repeat(TILE, 1).repeat(TILE, 2)
        box[:, self.height - self.first[1] * TILE :] = False
        box[:, :, self.width - self.first[2] * TILE :] = False
        return TileSet(*self.shape, self.first, self.held, box)


def strip(length: int) -> Tiles:
    """All tiles of a column of `length` pixels, a canvas `[1, length, 1, C]`."""
    tiles = np.zeros((-(-length // TILE), 3), np.int32)
    tiles[:, 1] = np.arange(len(tiles))
    return Tiles(tiles)


def gather_tiles(array: Host, tiles: Tiles) -> Host:
    """The values of tiles of a host array `[N, H, W, C]`: `[K, TILE, TILE, C]`, 0 where a tile overhangs the border."""
    _, height, width, channels = array.shape
    n, row, column = tiles.host.T
    if height % TILE == width % TILE == 0:
        blocks = array.reshape(len(array), height // TILE, TILE, width // TILE, TILE, channels)
        return np.asarray(blocks[n, row, :, column])
    inside, pixels = _inside(array, tiles)
    values = np.zeros((len(tiles), TILE, TILE, channels), array.dtype)
    values[inside] = array[pixels]
    return values


def scatter_tiles(array: Host, tiles: Tiles, values: Host) -> None:
    """Write `values` `[K, TILE, TILE, C]` into tiles of a host array; values beyond the border are dropped."""
    _, height, width, channels = array.shape
    n, row, column = tiles.host.T
    if height % TILE == width % TILE == 0:
        blocks = array.reshape(len(array), height // TILE, TILE, width // TILE, TILE, channels)
        blocks[n, row, :, column] = values
        return
    inside, pixels = _inside(array, tiles)
    array[pixels] = values[inside]


def _inside(array: Host, tiles: Tiles) -> tuple[Host, tuple[Host, Host, Host]]:
    """Which of the tiles' pixels lie inside the image, bool `[K, TILE, TILE]`, and their sample, row and column."""
    n, row, column = (tiles.host[:, i, None, None].astype(np.intp) for i in range(3))
    y = row * TILE + np.arange(TILE)[:, None]
    x = column * TILE + np.arange(TILE)
    n, y, x = np.broadcast_arrays(n, y, x)
    inside = (y < array.shape[1]) & (x < array.shape[2])
    return inside, (n[inside], y[inside], x[inside])


def union(sets: Iterable[TileSet]) -> TileSet:
    """All tiles and changed pixels of several sets of one canvas (at least one)."""
    different = list(dict.fromkeys(sets))  # by identity
    some = [s for s in different if s.count]
    if len(some) < 2:
        return (some or different)[0]
    first = tuple(min(s.first[i] for s in some) for i in range(3))
    samples, rows, columns = (max(s.first[i] + s.held.shape[i] for s in some) - first[i] for i in range(3))
    held = np.zeros((samples, rows, columns), bool)
    box = np.zeros((samples, rows * TILE, columns * TILE), bool)
    for s in some:
        n, row, column = (s.first[i] - first[i] for i in range(3))
        samples, rows, columns = s.held.shape
        held[n:, row:, column:][:samples, :rows, :columns] |= s.held
        pixels = box[n:, row * TILE :, column * TILE :]
        pixels[:samples, : rows * TILE, : columns * TILE] |= s.box
    return TileSet(*some[0].shape, (first[0], first[1], first[2]), held, box)


def whole_tiles(pixels: int) -> int:
    """A number of pixels rounded up to whole tiles."""
    return -(-pixels // TILE) * TILE


def _span(lines: Host) -> tuple[int, int]:
    """The first True line, and the one after the last; some are True."""
    return int(lines.argmax()), len(lines) - int(lines[::-1].argmax())


def _words(box: Host) -> Host:
    """A box of whole tiles as `[n, r, TILE, c]` of rows of tiles, sharing its memory."""
    samples, height, width = box.shape
    return box.view(_WORD).reshape(samples, height // TILE, TILE, width // TILE)
