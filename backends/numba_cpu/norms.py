"""Norms: moments of channels over pixels, and layer norm over a pixel's channels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.types import float32, float64, int64, void

from ..interface import Array, Tiles
from .arrays import flat
from .items import COUNTER, TILES, take_items, take_tiles
from .jit import inline, kernel
from .launch import Launcher
from .reading import READING, Reading, is_plain, read_pixel, read_tile
from .regions import OVERRUN, SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH, fma, load, load_first, load_some, splat, store, store_first, total
from .sizes import ceil_div, whole_vectors
from .writing import PIXELS, WRITING, Writing, residual_floats, write_tile

# -- layer norm ------------------------------------------------------------------------------------------


class LayerNormLayout(NamedTuple):
    """A thread's scratch for `layer_norm`.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | values | [TILE, TILE, C] + OVERRUN | gather, `_normalise_pixel` | scatter |
    | vector | [WIDTH] | `_normalise_pixel` | `_normalise_pixel` |
    | residual | as `write_tile` takes it | scatter | scatter |
    """

    values: int
    vector: int
    residual: int
    size: int


LAYER_NORM_LAYOUT = layout_type(LayerNormLayout)


@remembered
def layer_norm_layout(channels: int, residual: int) -> LayerNormLayout:
    """The scratch for pixels of so many channels, with `residual` floats for the residual."""
    regions = Regions()
    return LayerNormLayout(
        values=regions.add(PIXELS * channels + OVERRUN),
        vector=regions.add(WIDTH),
        residual=regions.add(residual),
        size=regions.size,
    )


@inline
def _normalise_pixel(
    channels: int, weight: Any, bias: Any, eps: float, scratch: Any, at: int, vector: int
) -> None:
    """`(v - mean) / sqrt(mean((v - mean)²) + eps) * weight + bias` of the pixel `scratch[at:]`, in place."""
    whole = channels - channels % WIDTH
    rest = channels - whole
    share = np.float32(1.0) / np.float32(channels)
    sums = load_first(scratch, at + whole, rest)
    for c in range(0, whole, WIDTH):
        sums = sums + load(scratch, at + c)
    mean = splat(total(sums) * share)
    # the lanes past the last channel would add mean²: they become 0 in memory
    store(scratch, vector, splat(0.0))
    store_first(scratch, vector, load_first(scratch, at + whole, rest) - mean, rest)
    off = load(scratch, vector)
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


@kernel(
    void(
        COUNTER,
        int64,
        int64,
        TILES,
        READING,
        float32[::1],
        float32[::1],
        float32,
        WRITING,
        LAYER_NORM_LAYOUT,
        SCRATCH,
    )
)
def layer_norm(
    counter: Any,
    items: int,
    batch: int,
    tiles: Any,
    source: Any,
    weight: Any,
    bias: Any,
    eps: float,
    out: Any,
    at: Any,
    scratch: Any,
) -> None:
    """`out[tiles] = (v - mean) / sqrt(var + eps) * weight + bias` over a pixel's channels; items: batches of tiles."""
    channels = out.channels
    for t in take_tiles(counter, items, batch, len(tiles)):
        read_tile(source, tiles, t, scratch, at.values)
        for i in range(PIXELS):
            _normalise_pixel(channels, weight, bias, eps, scratch, at.values + i * channels, at.vector)
        write_tile(out, tiles, t, 0, channels, scratch, at.values, channels, at.residual)


def launch_layer_norm(
    launcher: Launcher,
    canvas: Array,
    tiles: Tiles,
    source: Reading,
    out: Writing,
    *,
    weight: Array,
    bias: Array,
    eps: float,
) -> None:
    """Run `layer_norm` for `tiles` of `canvas`."""
    at = layer_norm_layout(out.channels, residual_floats(out))
    args = (source, flat(weight), flat(bias), np.float32(eps), out, at)
    launcher.over_tiles(layer_norm, canvas, tiles, args, at.size)


# -- moments ---------------------------------------------------------------------------------------------

BLOCK = 32
"""Pixels summed in float32 before they are added in float64."""
SPAN = 256
"""Pixels of an item."""


class MomentsLayout(NamedTuple):
    """A thread's scratch for `moments`; V: the channels in whole vectors.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | values | [BLOCK, V] + OVERRUN, unless read in place | gather | `_sum_block` |
    | sums | [3, V + OVERRUN]: mean, Σ off, Σ off² | `_sum_block` | `moments` |
    """

    values: int
    sums: int
    size: int
    row: int
    """Floats from one row of `sums` to the next."""


MOMENTS_LAYOUT = layout_type(MomentsLayout)


@remembered
def moments_layout(channels: int, in_place: bool) -> MomentsLayout:
    """The scratch for pixels of so many channels; `in_place`: they are not gathered."""
    pixel = whole_vectors(channels)
    row = pixel + OVERRUN
    regions = Regions()
    return MomentsLayout(
        values=regions.add(0 if in_place else BLOCK * pixel + OVERRUN),
        sums=regions.add(3 * row),
        size=regions.size,
        row=row,
    )


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
    """The mean of `count` pixels, every `pixel` floats, and Σ off and Σ off², where off = pixel - mean.

    Three rows of `scratch[to:]`, `row` floats apart; up to WIDTH - 1 floats more than `channels` are written of each.
    The mean is rounded, and Σ off corrects for it.
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


@kernel(void(COUNTER, int64, int64, READING, float64[:, :, ::1], MOMENTS_LAYOUT, SCRATCH))
def moments(counter: Any, items: int, in_place: int, source: Any, sums: Any, at: Any, scratch: Any) -> None:
    """Σ v and Σ v² of each channel, `sums[item]` float64 `[2, C]`; items are SPAN pixels of a sample each.

    BLOCK pixels are summed in float32 about their mean: rounding loses a few units in the last place of their spread,
    whatever their mean, and whichever of them is far off. Blocks are added in float64:

        Σ v = Σ off + count · mean        Σ v² = Σ off² + mean · (2 · Σ off + count · mean)
    """
    one, two = source.first_channels, source.second_channels
    channels = one + two
    pixels = source.height * source.width
    spans = ceil_div(pixels, SPAN)
    pixel = whole_vectors(channels)
    for item in take_items(counter, items):
        n, first = item // spans, item % spans * SPAN
        for c in range(channels):
            sums[item, 0, c] = sums[item, 1, c] = 0.0
        last = min(first + SPAN, pixels)
        for block in range(first, last, BLOCK):
            count = min(BLOCK, last - block)
            if in_place:
                p = n * pixels + block
                _sum_block(source.first, p * one, one, count, one, scratch, at.sums, at.row)
                if two > 0:
                    _sum_block(source.second, p * two, two, count, two, scratch, at.sums + one, at.row)
            else:
                for i in range(count):
                    p = block + i
                    y, x = p // source.width, p % source.width
                    read_pixel(source, n, y, x, scratch, at.values + i * pixel)
                _sum_block(scratch, at.values, pixel, count, channels, scratch, at.sums, at.row)
            for c in range(channels):
                mean = np.float64(scratch[at.sums + c])
                added = np.float64(scratch[at.sums + at.row + c])
                squared = np.float64(scratch[at.sums + 2 * at.row + c])
                sums[item, 0, c] += added + count * mean
                sums[item, 1, c] += squared + mean * (2.0 * added + count * mean)


def launch_moments(launcher: Launcher, samples: int, source: Reading) -> tuple[Array, Array]:
    """Mean and biased variance of each channel over all pixels: two float32 `[N, C]`."""
    channels = source.first_channels + source.second_channels
    pixels = source.height * source.width
    spans = ceil_div(pixels, SPAN)
    sums = np.empty((samples * spans, 2, channels))
    in_place = is_plain(source) and source.halved == 0
    at = moments_layout(channels, in_place)
    args = (int(in_place), source, sums, at)
    launcher.run(moments, samples * spans, args, at.size, 8.0 * pixels * channels)
    totals = sums.reshape(samples, spans, 2, channels).sum(1) / pixels
    mean, square = totals[:, 0], totals[:, 1]
    return mean.astype(np.float32), np.maximum(square - mean * mean, 0).astype(np.float32)
