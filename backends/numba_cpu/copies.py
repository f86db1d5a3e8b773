"""Tiles in and out of canvases, and what changed in them: copies for the journal, differences, values not finite.

Canvases are taken flat, as float32 whatever they hold: a copy moves bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ..interface import TILE
from .items import take_items, take_tiles
from .jit import inline, kernel
from .simd import (
    WIDTH,
    largest,
    load,
    load_some,
    magnitude,
    peak,
    splat,
    store,
    store_first,
    total,
)
from .simd import narrow as store_halves
from .simd import widen as load_halves

_counter, _tiles, _shape = types.int64[::1], types.int32[:, ::1], types.UniTuple(types.int64, 3)
_floats, _halves, _integers = types.float32[::1], types.uint16[::1], types.int32[::1]


@inline
def _extent(tiles: Any, t: int, shape: Any) -> Any:
    """Of tile t of a canvas of `shape` = (height, width, channels): rows inside the image, and floats of such a row."""
    height, width, channels = shape
    return min(TILE, height - tiles[t, 1] * TILE), min(TILE, width - tiles[t, 2] * TILE) * channels


@inline
def _row(tiles: Any, t: int, y: int, shape: Any) -> Any:
    """Where row y of tile t begins in the canvas; the pixels of a tile's row lie side by side."""
    height, width, channels = shape
    pixel = (tiles[t, 0] * height + tiles[t, 1] * TILE + y) * width + tiles[t, 2] * TILE
    return pixel * channels


@inline
def _copy(source: Any, at: int, target: Any, to: int, count: int) -> None:
    whole = count - count % WIDTH
    for c in range(0, whole, WIDTH):
        store(target, to + c, load(source, at + c))
    if whole < count:
        store_first(target, to + whole, load_some(source, at + whole, count - whole), count - whole)


@kernel(types.void(_counter, types.int64, types.int64, _tiles, _shape, _floats, _floats, types.int64))
def copy(
    counter: Any, items: int, batch: int, tiles: Any, shape: Any, canvas: Any, values: Any, into: int
) -> None:
    """Tiles of `canvas` (`shape` = height, width, channels) to `values` `[K, TILE, TILE, C]`, or back when `into`."""
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = _extent(tiles, t, shape)
        for y in range(rows):
            at = _row(tiles, t, y, shape)
            kept = (t * TILE + y) * TILE * shape[2]
            if into:
                _copy(values, kept, canvas, at, count)
            else:
                _copy(canvas, at, values, kept, count)


@kernel(types.void(_counter, types.int64, types.int64, _tiles, _shape, _floats, _halves, types.uint8[::1]))
def narrow(
    counter: Any, items: int, batch: int, tiles: Any, shape: Any, canvas: Any, halves: Any, lost: Any
) -> None:
    """Tiles of `canvas` rounded to float16, there and in `halves` (channels: whole vectors); `lost` `[K]`: where
    one became infinite.
    """
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = _extent(tiles, t, shape)
        zero = splat(0.0)
        for y in range(rows):
            at = _row(tiles, t, y, shape)
            for c in range(at, at + count, WIDTH):
                store_halves(halves, c, load(canvas, c))
                v = load_halves(halves, c, False)
                store(canvas, c, v)
                zero = zero + (v - v)
        lost[t] = total(zero) != 0.0


@kernel(types.void(_counter, types.int64, types.int64, _tiles, _shape, _floats, _halves))
def widen(counter: Any, items: int, batch: int, tiles: Any, shape: Any, canvas: Any, halves: Any) -> None:
    """Tiles of `canvas` out of `halves` (channels: whole vectors)."""
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = _extent(tiles, t, shape)
        for y in range(rows):
            at = _row(tiles, t, y, shape)
            for c in range(at, at + count, WIDTH):
                store(canvas, c, load_halves(halves, c, False))


@kernel(types.void(_counter, types.int64, types.int64, _tiles, _shape, _floats, _floats, _floats))
def change(
    counter: Any, items: int, batch: int, tiles: Any, shape: Any, canvas: Any, values: Any, changes: Any
) -> None:
    """The largest |canvas - values| of each tile, `changes` `[K]`."""
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = _extent(tiles, t, shape)
        whole = count - count % WIDTH
        most = splat(0.0)
        for y in range(rows):
            at = _row(tiles, t, y, shape)
            kept = (t * TILE + y) * TILE * shape[2]
            for c in range(0, whole, WIDTH):
                most = largest(magnitude(load(canvas, at + c) - load(values, kept + c)), most)
            if whole < count:
                rest = count - whole
                off = load_some(canvas, at + whole, rest) - load_some(values, kept + whole, rest)
                most = largest(magnitude(off), most)
        changes[t] = peak(most)


@kernel(types.void(_counter, types.int64, types.int64, _tiles, _shape, _floats, types.uint8[::1]))
def not_finite(counter: Any, items: int, batch: int, tiles: Any, shape: Any, canvas: Any, found: Any) -> None:
    """Which tiles hold a NaN or an infinity, `found` `[K]`: v - v is 0 for every other value, and NaN for these."""
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = _extent(tiles, t, shape)
        whole = count - count % WIDTH
        zero = splat(0.0)
        for y in range(rows):
            at = _row(tiles, t, y, shape)
            for c in range(0, whole, WIDTH):
                v = load(canvas, at + c)
                zero = zero + (v - v)
            if whole < count:
                v = load_some(canvas, at + whole, count - whole)
                zero = zero + (v - v)
        found[t] = total(zero) != 0.0


SPAN = 64
"""Pixels that are compared together first: nearly all of them are the same."""


@kernel(
    types.void(
        _counter, types.int64, types.int64, types.int64, _integers, _integers, types.int64, types.uint8[::1]
    )
)
def differ_int32(
    counter: Any, items: int, batch: int, channels: int, a: Any, b: Any, eps: int, mask: Any
) -> None:
    """`mask[p]`: whether any value of pixel p differs by more than `eps`."""
    for item in take_items(counter, items):
        for first in range(item * batch, min((item + 1) * batch, len(mask)), SPAN):
            last = min(first + SPAN, (item + 1) * batch, len(mask))
            bits: Any = np.int32(0)
            for i in range(first * channels, last * channels):
                bits |= a[i] ^ b[i]
            for p in range(first, last):
                differs: Any = False
                if bits != 0:
                    for i in range(p * channels, (p + 1) * channels):
                        differs |= abs(np.int64(a[i]) - np.int64(b[i])) > eps
                mask[p] = differs


@kernel(
    types.void(
        _counter, types.int64, types.int64, types.int64, _floats, _floats, types.float32, types.uint8[::1]
    )
)
def differ_float32(
    counter: Any, items: int, batch: int, channels: int, a: Any, b: Any, eps: float, mask: Any
) -> None:
    """`mask[p]`: whether any value of pixel p differs by more than `eps`, or is NaN; equal infinities do not differ."""
    for item in take_items(counter, items):
        for first in range(item * batch, min((item + 1) * batch, len(mask)), SPAN):
            last = min(first + SPAN, (item + 1) * batch, len(mask))
            unequal: Any = np.int32(0)
            for i in range(first * channels, last * channels):
                unequal |= np.int32(a[i] != b[i])
            for p in range(first, last):
                differs: Any = False
                if unequal != 0:
                    for i in range(p * channels, (p + 1) * channels):
                        differs |= (a[i] != b[i]) & (not (abs(a[i] - b[i]) <= eps))
                mask[p] = differs
