"""Moments of channels over pixels: of a whole canvas, and how they follow an edit of some of its tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba.types import float32, float64, int64, void

from ..interface import TILE, Array, MomentPair, Tiles
from .arrays import flat
from .copies import FLOATS, HALVES, SHAPE, extent, load_old, row_at
from .handover import shared
from .items import COUNTER, TILES, take_items
from .jit import inline, kernel
from .launch import Launcher
from .reading import NO_FLOATS, READING, Reading, is_plain, read_window
from .regions import OVERRUN, SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH, extend, load, load_doubles, load_some, splat, store_doubles
from .sizes import ceil_div, whole_vectors
from .tile_moments import measure_tile
from .writing import PIXELS

# -- of a canvas ---------------------------------------------------------------------------------------------

SPAN = 16
"""Tiles of an item."""


class Layout(NamedTuple):
    """A thread's scratch for `moments`; V: the channels in whole vectors.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | values | [TILE, TILE, V] + OVERRUN, unless read in place | gather | `measure_tile` |
    | measured | [2, V]: mean, Σ off² | `measure_tile` | `_add_tile` |
    """

    values: int
    measured: int
    size: int


LAYOUT = layout_type(Layout)


@remembered
def layout(channels: int, in_place: bool) -> Layout:
    """The scratch for tiles of so many channels; `in_place`: they are not gathered."""
    pixel = whole_vectors(channels)
    regions = Regions()
    return Layout(
        values=regions.add(0 if in_place else PIXELS * pixel + OVERRUN),
        measured=regions.add(2 * pixel),
        size=regions.size,
    )


@inline
def _add_tile(measured: Any, at: int, row: int, pixels: int, channels: int, sums: Any, to: int) -> None:
    """Add a tile of so many pixels, as `measure_tile` measures it, to the two rows of `sums[to:]`.

    Σ v = pixels · mean        Σ v² = Σ off² + pixels · mean²
    """
    whole, every = channels - channels % WIDTH, extend(splat(np.float32(pixels)))
    for c in range(0, whole, WIDTH):
        mean, squared = extend(load(measured, at + c)), extend(load(measured, at + row + c))
        added = every * mean
        store_doubles(sums, to + c, load_doubles(sums, to + c) + added)
        square = to + channels + c
        store_doubles(sums, square, load_doubles(sums, square) + (squared + added * mean))
    for c in range(whole, channels):
        one_mean = np.float64(measured[at + c])
        one_added = pixels * one_mean
        sums[to + c] += one_added
        sums[to + channels + c] += np.float64(measured[at + row + c]) + one_added * one_mean


@shared(void(COUNTER, int64, int64, READING, FLOATS, float64[::1], LAYOUT, SCRATCH))
def moments(
    counter: Any, items: int, in_place: int, source: Any, known: Any, sums: Any, at: Any, scratch: Any
) -> None:
    """Σ v and Σ v² of each channel, float64 `sums[item]` `[2, C]`; items are SPAN tiles of a sample each.

    Tiles are measured in float32 about their mean: rounding loses a few units in the last place of their spread,
    whatever their mean, and whichever of them is far off. They are added in float64, row by row. `known`, if it is not
    empty, are all tiles' measures, `[N, rows, columns, 2, C]`: the source itself is not read then.
    """
    one, two = source.first_channels, source.second_channels
    channels = one + two
    across = ceil_div(source.width, TILE)
    tiles = ceil_div(source.height, TILE) * across
    spans, pixel = ceil_div(tiles, SPAN), whole_vectors(channels)
    for item in take_items(counter, items):
        n, first = item // spans, item % spans * SPAN
        to_sums = item * 2 * channels
        for c in range(to_sums, to_sums + 2 * channels):
            sums[c] = 0.0
        for tile in range(first, min(first + SPAN, tiles)):
            top, left = tile // across * TILE, tile % across * TILE
            rows, columns = min(TILE, source.height - top), min(TILE, source.width - left)
            if len(known):
                at_tile = (n * tiles + tile) * 2 * channels
                _add_tile(known, at_tile, channels, rows * columns, channels, sums, to_sums)
                continue
            if in_place:
                p, width = (n * source.height + top) * source.width + left, source.width
                measure_tile(
                    source.first, p * one, width * one, one, rows, columns, one, scratch, at.measured, pixel
                )
                if two > 0:
                    to = at.measured + one
                    measure_tile(
                        source.second, p * two, width * two, two, rows, columns, two, scratch, to, pixel
                    )
            else:
                read_window(source, n, top, left, rows, columns, scratch, at.values, pixel, TILE * pixel)
                measure_tile(
                    scratch,
                    at.values,
                    TILE * pixel,
                    pixel,
                    rows,
                    columns,
                    channels,
                    scratch,
                    at.measured,
                    pixel,
                )
            _add_tile(scratch, at.measured, pixel, rows * columns, channels, sums, to_sums)


@shared(void(COUNTER, int64, float64[:, :, :, ::1], int64, float32[:, :, ::1]))
def average(counter: Any, items: int, sums: Any, pixels: int, out: Any) -> None:
    """The mean and biased variance of each channel, `out` `[2, N, C]`, from `sums` `[N, spans, 2, C]`.

    Spans are added in order, into the first; items are samples.
    """
    _, spans, _, channels = sums.shape
    for n in take_items(counter, items):
        for span in range(1, spans):
            for c in range(channels):
                sums[n, 0, 0, c] += sums[n, span, 0, c]
                sums[n, 0, 1, c] += sums[n, span, 1, c]
        for c in range(channels):
            mean = sums[n, 0, 0, c] / pixels
            variance = sums[n, 0, 1, c] / pixels - mean * mean
            out[0, n, c], out[1, n, c] = mean, variance if variance > 0.0 else 0.0


def launch_moments(
    launcher: Launcher, samples: int, source: Reading, known: Array = NO_FLOATS
) -> tuple[Array, Array]:
    """Mean and biased variance of each channel over all pixels: two float32 `[N, C]`.

    `known`: the tiles' measures, flat, as a kernel that wrote all tiles of the source left them; empty: there are none.
    """
    channels = source.first_channels + source.second_channels
    tiles = ceil_div(source.height, TILE) * ceil_div(source.width, TILE)
    spans, pixels = ceil_div(tiles, SPAN), source.height * source.width
    sums: Array = np.empty((samples, spans, 2, channels))
    out: Array = np.empty((2, samples, channels), np.float32)
    in_place = is_plain(source) and source.halved == 0
    at = layout(channels, in_place)
    args = (int(in_place), source, known, sums.ravel(), at)
    work = 8.0 * (tiles if len(known) else pixels) * channels
    launcher.queue(moments, samples * spans, args, at.size, work)
    launcher.queue(average, samples, (sums, pixels, out), 0, 4.0 * sums.size)
    return out[0], out[1]


# -- of a table's rows -----------------------------------------------------------------------


@shared(void(COUNTER, int64, FLOATS, FLOATS, int64, float64[::1]))
def of_rows(counter: Any, items: int, rows: Any, counts: Any, channels: int, sums: Any) -> None:
    """The mean of rows `[R, C]` of which there are so many, `counts` `[N, R]`, and of (rows - mean)²: `[N, 2, V]`.

    V is the channels in whole vectors; items are vectors of a sample's channels.
    """
    pixel, count = whole_vectors(channels), len(rows) // channels
    vectors = pixel // WIDTH
    for item in take_items(counter, items):
        n, c = item // vectors, item % vectors * WIDTH
        some = min(WIDTH, channels - c)
        pixels = 0.0
        for r in range(count):
            pixels += np.float64(counts[n * count + r])
        mean = 2 * n * pixel + c
        for i in range(WIDTH):
            sums[mean + i] = 0.0
        for to in (mean, mean + pixel):
            about, total = load_doubles(sums, mean), extend(splat(0.0))
            for r in range(count):
                off = extend(load_some(rows, r * channels + c, some)) - about
                many = extend(splat(counts[n * count + r]))
                total = total + many * (off if to == mean else off * off)
            store_doubles(sums, to, total)
            for i in range(WIDTH):
                sums[to + i] /= pixels


def launch_of_rows(launcher: Launcher, codes: Array, rows: Array) -> tuple[Array, Array]:
    """Mean and biased variance of pixels that are rows by their codes `[N, H, W, 1]`: two float32 `[N, C]`."""
    samples, (count, channels) = len(codes), rows.shape
    # float32 is exact up to 2^24 pixels, and then rounds by less than the sums do
    counts = np.stack([np.bincount(each.ravel(), minlength=count) for each in codes]).astype(np.float32)
    pixel = whole_vectors(channels)
    sums = np.empty((samples, 2, pixel))
    args = (flat(rows), counts.ravel(), channels, sums.ravel())
    launcher.run(of_rows, samples * pixel // WIDTH, args, 0, 8.0 * samples * count * channels)
    return sums[:, 0, :channels].astype(np.float32), sums[:, 1, :channels].astype(np.float32)


# -- after an edit ---------------------------------------------------------------------------

GROUP, CHUNK = 64, 64
"""Channels and tiles of an item of `sum_change`."""


@inline
def _add_change(
    tiles: Any,
    t: int,
    shape: Any,
    c: int,
    some: int,
    canvas: Any,
    old: Any,
    halves: Any,
    sums: Any,
    at: int,
    row: int,
) -> None:
    """`sum_change` of one tile and `some` ≤ WIDTH channels from `c` on: added to `sums[at:]` and `sums[at + row:]`."""
    rows, count = extent(tiles, t, shape)
    channels = shape[2]
    added, squared = load_doubles(sums, at), load_doubles(sums, at + row)
    for y in range(rows):
        first, kept = row_at(tiles, t, y, shape) + c, (t * TILE + y) * TILE * channels + c
        for x in range(0, count, channels):
            v = extend(load_some(canvas, first + x, some))
            before = extend(load_old(old, halves, kept + x, some))
            added, squared = added + (v - before), squared + (v * v - before * before)
    store_doubles(sums, at, added)
    store_doubles(sums, at + row, squared)


@shared(void(COUNTER, int64, TILES, SHAPE, FLOATS, FLOATS, HALVES, float64[::1]))
def sum_change(
    counter: Any, items: int, tiles: Any, shape: Any, canvas: Any, old: Any, halves: Any, sums: Any
) -> None:
    """Σ (v - old) and Σ (v² - old²) of each channel over chunks of tiles, `sums` `[chunks, N, 2, C in whole vectors]`.

    An item is a chunk × GROUP channels. Chunks are of CHUNK tiles whatever the number of threads, so no sum depends on
    that. Old values are `[K, TILE, TILE, C]`, as `load_old` takes them.
    """
    channels = shape[2]
    row, groups = whole_vectors(channels), ceil_div(channels, GROUP)
    step = len(sums) // ceil_div(len(tiles), CHUNK)  # from one chunk's sums to the next
    for item in take_items(counter, items):
        chunk, group = item // groups, item % groups
        for t in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(tiles))):
            first, last = group * GROUP, min((group + 1) * GROUP, channels)
            whole = last - (last - first) % WIDTH
            place = chunk * step + tiles[t, 0] * 2 * row
            for c in range(first, whole, WIDTH):
                _add_change(tiles, t, shape, c, WIDTH, canvas, old, halves, sums, place + c, row)
            if whole < last:
                _add_change(
                    tiles, t, shape, whole, last - whole, canvas, old, halves, sums, place + whole, row
                )


def launch_sum_change(launcher: Launcher, canvas: Array, tiles: Tiles, old: Array, halves: Array) -> Array:
    """`Backend.sum_change`; the old values are `old`, or the bits of float16 in `halves` if that is not empty."""
    samples, _, _, channels = canvas.shape
    chunks = ceil_div(len(tiles), CHUNK)
    sums: Array = np.zeros((max(1, chunks), samples, 2, whole_vectors(channels)))
    if chunks:
        args = (tiles.host, canvas.shape[1:], flat(canvas), old, halves, sums.ravel())
        work = 16.0 * PIXELS * channels * len(tiles)
        launcher.run(sum_change, chunks * ceil_div(channels, GROUP), args, 0, work)
    of_all = sums[0] if chunks < 2 else sums.sum(0)
    return of_all[:, :, :channels]


_DOUBLES = float64[:, ::1]


@kernel(
    void(
        float32[:, ::1],
        float32[:, ::1],
        *[_DOUBLES] * 4,
        float64[:, :, ::1],
        float64,
        float64[:, ::1],
        float32[:, :, ::1],
        float64[:, :, ::1],
    )
)
def follow(
    used_mean: Any,
    used_variance: Any,
    stale_mean: Any,
    stale_square: Any,
    fresh_mean: Any,
    fresh_square: Any,
    change: Any,
    per_pixel: float,
    weights: Any,
    used: Any,
    means: Any,
) -> None:
    """The formula of `Backend.follow_moments`: `used` `[2, N, C]`, and stale and fresh `means` `[4, N, C]`.

    `weights` `[2, N]`: weight and share; `change` is empty where the fresh moments are those after the edit.
    """
    samples, channels = stale_mean.shape
    for n in range(samples):
        w, s = weights[0, n], weights[1, n]
        for c in range(channels):
            mean, square = fresh_mean[n, c], fresh_square[n, c]
            if len(change):
                mean, square = mean + change[n, 0, c] * per_pixel, square + change[n, 1, c] * per_pixel
            old_mean, old_square = stale_mean[n, c], stale_square[n, c]
            by, by_square = mean - old_mean, square - old_square
            means[0, n, c] = mean if s == 1.0 else old_mean + s * w * by
            means[1, n, c] = square if s == 1.0 else old_square + s * w * by_square
            means[2, n, c], means[3, n, c] = mean, square
            if s == 0.0:
                used[0, n, c], used[1, n, c] = used_mean[n, c], used_variance[n, c]
            else:
                mixed = mean if w == 1.0 else old_mean + w * by
                variance = (square if w == 1.0 else old_square + w * by_square) - mixed * mixed
                used[0, n, c], used[1, n, c] = mixed, 0.0 if variance < 0.0 else variance


_NO_CHANGE = np.zeros((0, 2, 0))


def followed(
    used: MomentPair,
    stale: MomentPair,
    fresh: MomentPair,
    change: Array | None,
    *,
    pixels: int,
    weight: Sequence[float],
    share: Sequence[float],
) -> tuple[MomentPair, MomentPair, MomentPair]:
    """`Backend.follow_moments`, with the weight and the share of each sample."""
    shape = used[0].shape
    now: Array = np.empty((2, *shape), np.float32)
    means: Array = np.empty((4, *shape))
    follow(
        *(np.ascontiguousarray(each, np.float32) for each in used),
        *(np.ascontiguousarray(each, np.float64) for each in (*stale, *fresh)),
        _NO_CHANGE if change is None else np.ascontiguousarray(change, np.float64),
        1 / pixels,
        np.array((weight, share), np.float64),
        now,
        means,
    )
    return (now[0], now[1]), (means[0], means[1]), (means[2], means[3])
