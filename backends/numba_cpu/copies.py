"""Copies of tiles and comparisons of canvases: for the journal, for storage in float16, for masks, deltas and checks.

Canvases come in flat. Copies take them as float32 whatever their type: they move bits.
"""

from __future__ import annotations

from typing import Any

from numba.types import UniTuple, float32, int64, uint8, uint16, void

from ..interface import TILE
from .handover import shared
from .items import COUNTER, TILES, take_tiles
from .jit import inline
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
    store_some,
    total,
)
from .simd import narrow as store_halves
from .simd import widen as load_halves

SHAPE = UniTuple(int64, 3)
FLOATS, HALVES = float32[::1], uint16[::1]


@inline
def extent(tiles: Any, t: int, shape: Any) -> Any:
    """Tile t's rows inside the image, and the floats of each, in a canvas of `shape` = (height, width, channels)."""
    height, width, channels = shape
    return min(TILE, height - tiles[t, 1] * TILE), min(TILE, width - tiles[t, 2] * TILE) * channels


@inline
def row_at(tiles: Any, t: int, y: int, shape: Any) -> Any:
    """The offset in the canvas of row y of tile t; the pixels of the row follow one another."""
    height, width, channels = shape
    pixel = (tiles[t, 0] * height + tiles[t, 1] * TILE + y) * width + tiles[t, 2] * TILE
    return pixel * channels


@inline
def _copy(source: Any, at: int, target: Any, to: int, count: int) -> None:
    """Exactly `count` floats."""
    whole = count - count % WIDTH
    for c in range(0, whole, WIDTH):
        store(target, to + c, load(source, at + c))
    if whole < count:
        store_first(target, to + whole, load_some(source, at + whole, count - whole), count - whole)


@shared(void(COUNTER, int64, int64, TILES, SHAPE, FLOATS, FLOATS, int64))
def copy(
    counter: Any, items: int, batch: int, tiles: Any, shape: Any, canvas: Any, values: Any, into: int
) -> None:
    """Tiles of `canvas` (`shape` = height, width, channels) to `values` `[K, TILE, TILE, C]`, or back when `into`."""
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = extent(tiles, t, shape)
        for y in range(rows):
            at = row_at(tiles, t, y, shape)
            kept = (t * TILE + y) * TILE * shape[2]
            if into:
                _copy(values, kept, canvas, at, count)
            else:
                _copy(canvas, at, values, kept, count)


@shared(void(COUNTER, int64, int64, TILES, SHAPE, FLOATS, HALVES, uint8[::1]))
def narrow(
    counter: Any, items: int, batch: int, tiles: Any, shape: Any, canvas: Any, halves: Any, lost: Any
) -> None:
    """Round tiles of `canvas` to float16, in place and into `halves`; `lost` `[K]`: tiles with an infinity or a NaN.

    Pixels are whole vectors.
    """
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = extent(tiles, t, shape)
        zero = splat(0.0)
        for y in range(rows):
            at = row_at(tiles, t, y, shape)
            for c in range(at, at + count, WIDTH):
                store_halves(halves, c, load(canvas, c))
                v = load_halves(halves, c, False)
                store(canvas, c, v)
                zero = zero + (v - v)
        lost[t] = total(zero) != 0.0


@shared(void(COUNTER, int64, int64, TILES, SHAPE, FLOATS, HALVES))
def widen(counter: Any, items: int, batch: int, tiles: Any, shape: Any, canvas: Any, halves: Any) -> None:
    """Tiles of `canvas` from `halves`, the bits of float16; pixels are whole vectors."""
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = extent(tiles, t, shape)
        for y in range(rows):
            at = row_at(tiles, t, y, shape)
            for c in range(at, at + count, WIDTH):
                store(canvas, c, load_halves(halves, c, False))


@inline
def load_old(old: Any, halves: Any, at: int, count: int) -> Any:
    """`count` ≤ WIDTH old values: of `old`, or of `halves`, the bits of float16, if that has any (`count` is WIDTH)."""
    if len(halves) > 0:
        return load_halves(halves, at, False)
    return load_some(old, at, count)


@shared(void(COUNTER, int64, int64, TILES, SHAPE, FLOATS, FLOATS, HALVES, FLOATS))
def subtract(
    counter: Any,
    items: int,
    batch: int,
    tiles: Any,
    shape: Any,
    canvas: Any,
    old: Any,
    halves: Any,
    values: Any,
) -> None:
    """`values` = tiles of `canvas` - old values, as `load_old` takes them; all `[K, TILE, TILE, C]`."""
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = extent(tiles, t, shape)
        whole = count - count % WIDTH
        for y in range(rows):
            at = row_at(tiles, t, y, shape)
            kept = (t * TILE + y) * TILE * shape[2]
            for c in range(0, whole, WIDTH):
                store(values, kept + c, load(canvas, at + c) - load_old(old, halves, kept + c, WIDTH))
            if whole < count:
                rest = count - whole
                off = load_some(canvas, at + whole, rest) - load_old(old, halves, kept + whole, rest)
                store_some(values, kept + whole, off, rest)


@shared(void(COUNTER, int64, int64, TILES, SHAPE, FLOATS, FLOATS))
def add(counter: Any, items: int, batch: int, tiles: Any, shape: Any, canvas: Any, values: Any) -> None:
    """Tiles of `canvas` += `values` `[K, TILE, TILE, C]`."""
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = extent(tiles, t, shape)
        whole = count - count % WIDTH
        for y in range(rows):
            at = row_at(tiles, t, y, shape)
            kept = (t * TILE + y) * TILE * shape[2]
            for c in range(0, whole, WIDTH):
                store(canvas, at + c, load(canvas, at + c) + load(values, kept + c))
            if whole < count:
                rest = count - whole
                sums = load_some(canvas, at + whole, rest) + load_some(values, kept + whole, rest)
                store_some(canvas, at + whole, sums, rest)


@shared(void(COUNTER, int64, int64, TILES, SHAPE, FLOATS, FLOATS, FLOATS))
def change(
    counter: Any, items: int, batch: int, tiles: Any, shape: Any, canvas: Any, values: Any, changes: Any
) -> None:
    """The largest |canvas - values| of each tile, `changes` `[K]`."""
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = extent(tiles, t, shape)
        whole = count - count % WIDTH
        most = splat(0.0)
        for y in range(rows):
            at = row_at(tiles, t, y, shape)
            kept = (t * TILE + y) * TILE * shape[2]
            for c in range(0, whole, WIDTH):
                most = largest(magnitude(load(canvas, at + c) - load(values, kept + c)), most)
            if whole < count:
                rest = count - whole
                off = load_some(canvas, at + whole, rest) - load_some(values, kept + whole, rest)
                most = largest(magnitude(off), most)
        changes[t] = peak(most)


@shared(void(COUNTER, int64, int64, TILES, SHAPE, FLOATS, uint8[::1]))
def not_finite(counter: Any, items: int, batch: int, tiles: Any, shape: Any, canvas: Any, found: Any) -> None:
    """Tiles with a NaN or an infinity, `found` `[K]`: v - v is NaN for these, and 0 for every other value."""
    for t in take_tiles(counter, items, batch, len(tiles)):
        rows, count = extent(tiles, t, shape)
        whole = count - count % WIDTH
        zero = splat(0.0)
        for y in range(rows):
            at = row_at(tiles, t, y, shape)
            for c in range(0, whole, WIDTH):
                v = load(canvas, at + c)
                zero = zero + (v - v)
            if whole < count:
                v = load_some(canvas, at + whole, count - whole)
                zero = zero + (v - v)
        found[t] = total(zero) != 0.0
