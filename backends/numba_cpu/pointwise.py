"""Work on single pixels and on their statistics: pending work written out, layer norm, moments, label look-ups."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ..interface import TILE
from .epilogue import WRITING, write_tile
from .jit import kernel
from .reading import READING, read_pixel, read_window
from .simd import WIDTH, fma, load, load_first, next_item, splat, store, store_first, total

PIXELS = TILE * TILE
BLOCK = 16
"""Pixels whose sums float32 holds well."""


def scratch_floats(channels: int) -> int:
    """What any kernel of this file needs."""
    return (2 * PIXELS + 4) * (channels + WIDTH) + 8 * WIDTH


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int64,
        types.int32[:, ::1],
        READING,
        WRITING,
        types.float32[::1],
    )
)
def write_out(counter: Any, items: int, batch: int, tiles: Any, r: Any, w: Any, scratch: Any) -> None:
    """Write what a source reads, and the residual, into tiles; items are batches of tiles."""
    spare = PIXELS * w.channels + WIDTH
    while True:
        item = next_item(counter)
        if item >= items:
            return
        for t in range(item * batch, min((item + 1) * batch, len(tiles))):
            n, row, column = tiles[t, 0], tiles[t, 1], tiles[t, 2]
            read_window(r, n, row * TILE, column * TILE, TILE, TILE, scratch, 0, w.channels)
            write_tile(w, n, row, column, 0, w.channels, 0, w.channels, TILE * w.channels, scratch, spare)


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int64,
        types.int32[:, ::1],
        READING,
        types.float32[::1],
        types.float32[::1],
        types.float32,
        WRITING,
        types.float32[::1],
    )
)
def layer_norm(
    counter: Any,
    items: int,
    batch: int,
    tiles: Any,
    r: Any,
    weight: Any,
    bias: Any,
    eps: float,
    w: Any,
    scratch: Any,
) -> None:
    """`(v - mean) / sqrt(var + eps) * weight + bias` over a pixel's channels; items are batches of tiles."""
    channels = w.channels
    whole = channels - channels % WIDTH
    rest = channels - whole
    share = np.float32(1.0) / np.float32(channels)
    while True:
        item = next_item(counter)
        if item >= items:
            return
        for t in range(item * batch, min((item + 1) * batch, len(tiles))):
            n, row, column = tiles[t, 0], tiles[t, 1], tiles[t, 2]
            read_window(r, n, row * TILE, column * TILE, TILE, TILE, scratch, 0, channels)
            for i in range(PIXELS):
                at = i * channels
                sums = load_first(scratch, at + whole, rest)
                for c in range(0, whole, WIDTH):
                    sums = sums + load(scratch, at + c)
                mean = splat(total(sums) * share)
                # the lanes past the last channel would add mean²: they are made 0
                off = load_first(scratch, at + whole, rest) - mean
                store(scratch, PIXELS * channels + WIDTH, splat(0.0))
                store_first(scratch, PIXELS * channels + WIDTH, off, rest)
                off = load(scratch, PIXELS * channels + WIDTH)
                squares = off * off
                for c in range(0, whole, WIDTH):
                    off = load(scratch, at + c) - mean
                    squares = fma(off, off, squares)
                scale = splat(np.float32(1.0) / np.sqrt(total(squares) * share + eps))
                for c in range(0, whole, WIDTH):
                    off = (load(scratch, at + c) - mean) * scale
                    store(scratch, at + c, fma(off, load(weight, c), load(bias, c)))
                off = (load_first(scratch, at + whole, rest) - mean) * scale
                v = fma(off, load_first(weight, whole, rest), load_first(bias, whole, rest))
                store_first(scratch, at + whole, v, rest)
            spare = PIXELS * channels + WIDTH
            write_tile(w, n, row, column, 0, channels, 0, channels, TILE * channels, scratch, spare)


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int64,
        READING,
        types.float64[:, :, ::1],
        types.float32[:, ::1],
        types.float32[::1],
    )
)
def moments(counter: Any, items: int, span: int, r: Any, sums: Any, pivots: Any, scratch: Any) -> None:
    """Sums and sums of squares about a pivot (`pivots` `[N, C]`), `sums[item]` `[2, C]`; items are `span` pixels each.

    BLOCK pixels are summed in float32 about a value near the mean, so that little is lost; blocks add up in float64.
    """
    channels = r.first_channels + r.second_channels
    pixels = r.height * r.width
    spans = -(-pixels // span)
    added = channels + WIDTH
    squared = added + channels + WIDTH
    pivot = squared + channels + WIDTH
    while True:
        item = next_item(counter)
        if item >= items:
            return
        n, first = item // spans, item % spans * span
        for c in range(channels):
            scratch[pivot + c] = pivots[n, c]
            sums[item, 0, c] = sums[item, 1, c] = 0.0
        last = min(first + span, pixels)
        for block in range(first, last, BLOCK):
            for c in range(0, channels, WIDTH):
                store(scratch, added + c, splat(0.0))
                store(scratch, squared + c, splat(0.0))
            for p in range(block, min(block + BLOCK, last)):
                read_pixel(r, n, p // r.width, p % r.width, scratch, 0)
                for c in range(0, channels, WIDTH):
                    off = load(scratch, c) - load(scratch, pivot + c)
                    store(scratch, added + c, load(scratch, added + c) + off)
                    store(scratch, squared + c, fma(off, off, load(scratch, squared + c)))
            for c in range(channels):
                sums[item, 0, c] += scratch[added + c]
                sums[item, 1, c] += scratch[squared + c]


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int64,
        types.int32[:, ::1],
        types.int32[:, :, :, ::1],
        types.float32[::1],
        types.int64,
        types.int64,
        types.int64,
        WRITING,
        types.float32[::1],
    )
)
def look_up(
    counter: Any,
    items: int,
    batch: int,
    tiles: Any,
    indices: Any,
    table: Any,
    labels: int,
    side: int,
    step: int,
    w: Any,
    scratch: Any,
) -> None:
    """The sum of the table's rows that a window of indices names; items are batches of tiles."""
    channels, half = w.channels, side // 2
    height, width, planes = indices.shape[1:]
    whole = channels - channels % WIDTH
    while True:
        item = next_item(counter)
        if item >= items:
            return
        for t in range(item * batch, min((item + 1) * batch, len(tiles))):
            n, row, column = tiles[t, 0], tiles[t, 1], tiles[t, 2]
            for i in range(min(TILE, w.height - row * TILE)):
                for j in range(min(TILE, w.width - column * TILE)):
                    at = (i * TILE + j) * channels
                    for c in range(0, channels, WIDTH):
                        store(scratch, at + c, splat(0.0))
                    for tap in range(side * side):
                        y = (row * TILE + i + tap // side - half) * step
                        x = (column * TILE + j + tap % side - half) * step
                        if y < 0 or y >= height or x < 0 or x >= width:
                            continue
                        for plane in range(planes):
                            label = indices[n, y, x, plane]
                            if label >= 0:
                                entry = (tap * labels + label) * channels
                                for c in range(0, whole, WIDTH):
                                    v = load(scratch, at + c) + load(table, entry + c)
                                    store(scratch, at + c, v)
                                for c in range(whole, channels):
                                    scratch[at + c] += table[entry + c]
            spare = PIXELS * channels + WIDTH
            write_tile(w, n, row, column, 0, channels, 0, channels, TILE * channels, scratch, spare)


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.float32[:, ::1],
        types.float32[:, ::1],
        types.float32[:, ::1],
    )
)
def linear(counter: Any, items: int, x: Any, weight: Any, out: Any) -> None:
    """`x @ weight.T`; items are rows of `weight`. Each dot product is a vector of partial sums, added halves first."""
    depth = x.shape[1]
    whole = depth - depth % WIDTH
    rows, values = x.reshape(-1), weight.reshape(-1)
    while True:
        o = next_item(counter)
        if o >= items:
            return
        for m in range(len(x)):
            sums = load_first(rows, m * depth + whole, depth - whole)
            sums = sums * load_first(values, o * depth + whole, depth - whole)
            for k in range(0, whole, WIDTH):
                sums = fma(load(rows, m * depth + k), load(values, o * depth + k), sums)
            out[m, o] = total(sums)
