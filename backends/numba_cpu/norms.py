"""Norms: moments of channels over pixels, and layer norm over a pixel's channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ..interface import TILE
from .items import take_items, take_tiles
from .jit import inline, kernel
from .reading import READING, is_plain, read_pixel, read_window, whole_vectors
from .simd import WIDTH, fma, load, load_first, load_some, splat, store, store_first, total
from .writing import PIXELS, WRITING, write_tile

BLOCK = 32
"""Pixels whose sums float32 holds well."""


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
    for t in take_tiles(counter, items, batch, len(tiles)):
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


@inline
def _sum_vector(
    array: Any, at: int, pixel: int, count: int, share: Any, some: int, scratch: Any, to: int, row: int
) -> None:
    """`_sum_block` of `some` ≤ WIDTH channels."""
    mean, added, squared = splat(0.0), splat(0.0), splat(0.0)
    for x in range(at, at + count * pixel, pixel):
        mean = mean + load_some(array, x, some)
    mean = mean * share
    for x in range(at, at + count * pixel, pixel):
        off = load_some(array, x, some) - mean
        added, squared = added + off, fma(off, off, squared)
    store(scratch, to, mean)
    store(scratch, to + row, added)
    store(scratch, to + 2 * row, squared)


@inline
def _sum_block(
    array: Any, at: int, pixel: int, count: int, channels: int, scratch: Any, to: int, row: int
) -> None:
    """The mean of `count` pixels, every `pixel` floats, and Σ off and Σ off², `off` being a pixel less the mean.

    Three rows of `scratch[to:]`, `row` floats apart; up to WIDTH - 1 floats more than `channels` are written of each.
    The mean is rounded: that is what Σ off is for.
    """
    four = channels - channels % (4 * WIDTH)
    whole = channels - channels % WIDTH
    share = splat(np.float32(1.0) / np.float32(count))
    for c in range(0, four, 4 * WIDTH):
        m0, m1, m2, m3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for x in range(at + c, at + c + count * pixel, pixel):
            m0, m1 = m0 + load(array, x), m1 + load(array, x + WIDTH)
            m2, m3 = m2 + load(array, x + 2 * WIDTH), m3 + load(array, x + 3 * WIDTH)
        m0, m1, m2, m3 = m0 * share, m1 * share, m2 * share, m3 * share
        a0, a1, a2, a3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        s0, s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for x in range(at + c, at + c + count * pixel, pixel):  # again, out of the first-level cache
            d0, d1 = load(array, x) - m0, load(array, x + WIDTH) - m1
            d2, d3 = load(array, x + 2 * WIDTH) - m2, load(array, x + 3 * WIDTH) - m3
            a0, a1, a2, a3 = a0 + d0, a1 + d1, a2 + d2, a3 + d3
            s0, s1, s2, s3 = fma(d0, d0, s0), fma(d1, d1, s1), fma(d2, d2, s2), fma(d3, d3, s3)
        place = to + c
        store(scratch, place, m0)
        store(scratch, place + WIDTH, m1)
        store(scratch, place + 2 * WIDTH, m2)
        store(scratch, place + 3 * WIDTH, m3)
        place += row
        store(scratch, place, a0)
        store(scratch, place + WIDTH, a1)
        store(scratch, place + 2 * WIDTH, a2)
        store(scratch, place + 3 * WIDTH, a3)
        place += row
        store(scratch, place, s0)
        store(scratch, place + WIDTH, s1)
        store(scratch, place + 2 * WIDTH, s2)
        store(scratch, place + 3 * WIDTH, s3)
    for c in range(four, whole, WIDTH):
        _sum_vector(array, at + c, pixel, count, share, WIDTH, scratch, to + c, row)
    if whole < channels:
        _sum_vector(array, at + whole, pixel, count, share, channels - whole, scratch, to + whole, row)


def moments_floats(channels: int) -> int:
    """What `moments` needs."""
    return (BLOCK + 3) * (whole_vectors(channels) + WIDTH) + 8 * WIDTH


@kernel(
    types.void(
        types.int64[::1], types.int64, types.int64, READING, types.float64[:, :, ::1], types.float32[::1]
    )
)
def moments(counter: Any, items: int, span: int, r: Any, sums: Any, scratch: Any) -> None:
    """Σ v and Σ v² of each channel, `sums[item]` float64 `[2, C]`; items are `span` pixels of a sample each.

    BLOCK pixels are summed in float32 about their mean: what rounding loses is a few units in the last place of how far
    they scatter, whatever their mean, and whichever of them is far off. Blocks add up in float64.
    """
    channels = r.first_channels + r.second_channels
    pixels = r.height * r.width
    spans = -(-pixels // span)
    stride = -(-channels // WIDTH) * WIDTH
    row = stride + WIDTH
    plain = is_plain(r) and r.halved == 0
    blocks = BLOCK * stride + WIDTH
    for item in take_items(counter, items):
        n, first = item // spans, item % spans * span
        for c in range(channels):
            sums[item, 0, c] = sums[item, 1, c] = 0.0
        last = min(first + span, pixels)
        for block in range(first, last, BLOCK):
            count = min(BLOCK, last - block)
            if plain:
                at, one, two = n * pixels + block, r.first_channels, r.second_channels
                _sum_block(r.first, at * one, one, count, one, scratch, blocks, row)
                if two > 0:
                    _sum_block(r.second, at * two, two, count, two, scratch, blocks + one, row)
            else:
                for i in range(count):
                    p = block + i
                    read_pixel(r, n, p // r.width, p % r.width, scratch, i * stride)
                _sum_block(scratch, 0, stride, count, channels, scratch, blocks, row)
            for c in range(channels):
                mean = np.float64(scratch[blocks + c])
                added = np.float64(scratch[blocks + row + c])
                squared = np.float64(scratch[blocks + 2 * row + c])
                sums[item, 0, c] += added + count * mean
                sums[item, 1, c] += squared + mean * (2.0 * added + count * mean)
