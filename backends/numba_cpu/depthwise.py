"""Depthwise convolutions: a kernel for each channel, any stride and padding.

    out[y, x, c] = Σ_i,j weight[c, i, j] · in[y · stride + i - top, x · stride + j - left, c]

Vectors run along channels. Of windows of codes (`codebooks.py`), `in` is a row of a table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.types import float32, int64, uint8, void

from ..interface import TILE, Array, Host, Tiles
from . import queued
from .arrays import flat, writable
from .copies import FLOATS
from .geometry import GEOMETRY, Geometry
from .handover import shared
from .items import COUNTER, TILES, take_tiles
from .jit import inline
from .launch import Launcher
from .packing import Packed
from .reading import READING, Reading, is_canvas, read_window
from .regions import OVERRUN, SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH, fma, load, load_some, mark_odd, splat, store, store_some, total
from .sizes import ceil_div, whole_vectors
from .writing import PIXELS, WRITING, Writing, residual_floats, scatter_tiles

BATCH = 8
"""Tiles in a batch, at most."""
ROWS = 256
"""Windows of codes in a batch."""


def prepare(weight: Host) -> Array:
    """`[C, 1, kh, kw]` → flat `[kh * kw, C]`, channels filled with zeros to whole vectors."""
    taps = weight.reshape(len(weight), -1).T
    packed = np.zeros((len(taps), whole_vectors(len(weight))), np.float32)
    packed[:, : len(weight)] = taps
    return packed.reshape(-1)


class Layout(NamedTuple):
    """A thread's scratch; V: the channels in whole vectors.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | window | [rows, columns, V] + OVERRUN | gather | `_multiply` |
    | sums | [TILE, TILE, V] | `_multiply` | scatter |
    | residual | as `scatter_tiles` takes it | scatter | scatter |
    """

    window: int
    sums: int
    residual: int
    size: int


LAYOUT = layout_type(Layout)


@remembered
def layout(g: Geometry, *, residual: int) -> Layout:
    """The scratch for a depthwise convolution with `residual` floats for the residual."""
    rows, columns = ((TILE - 1) * g.stride + k for k in (g.kernel_rows, g.kernel_columns))
    pixel = whole_vectors(g.outputs)
    regions = Regions()
    return Layout(
        window=regions.add(rows * columns * pixel + OVERRUN),
        sums=regions.add(PIXELS * pixel),
        residual=regions.add(residual),
        size=regions.size,
    )


@inline
def _multiply(
    values: Any, window: int, line: int, pixel: int, g: Any, weights: Any, scratch: Any, sums: int
) -> None:
    """`sums[y, x] = Σ_i,j weights[i, j] · window[y · stride + i, x · stride + j]` of a tile's pixels.

    The window's lines are `line` floats apart, its pixels and those of `sums` `pixel` floats.
    """
    for i in range(PIXELS):
        corner = window + i // TILE * g.stride * line + i % TILE * g.stride * pixel
        for c in range(0, pixel, WIDTH):
            v = splat(0.0)
            for j in range(g.kernel_rows):
                at, tap = corner + j * line + c, j * g.kernel_columns * pixel + c
                for k in range(g.kernel_columns):
                    v = fma(load(values, at + k * pixel), load(weights, tap + k * pixel), v)
            store(scratch, sums + i * pixel + c, v)


@shared(void(COUNTER, int64, int64, int64, TILES, READING, GEOMETRY, float32[::1], WRITING, LAYOUT, SCRATCH))
def convolve(
    counter: Any,
    items: int,
    batch: int,
    in_place: int,
    tiles: Any,
    source: Any,
    g: Any,
    weights: Any,
    out: Any,
    at: Any,
    scratch: Any,
) -> None:
    """`out[tiles] = activation(Σ_taps weights[tap] · in[tap] + bias + shift + residual)`; items are batches of tiles.

    With `in_place`, a window that lies inside the canvas is not gathered.
    """
    pixel = whole_vectors(out.channels)
    rows, columns = (TILE - 1) * g.stride + g.kernel_rows, (TILE - 1) * g.stride + g.kernel_columns
    for t in take_tiles(counter, items, batch, len(tiles)):
        n = tiles[t, 0]
        y = np.int64(tiles[t, 1]) * TILE * g.stride - g.top
        x = np.int64(tiles[t, 2]) * TILE * g.stride - g.left
        inside = y >= 0 and x >= 0 and y + rows <= source.height and x + columns <= source.width
        if inside and in_place:
            values, line = source.first, source.width * pixel
            window = ((n * source.height + y) * source.width + x) * pixel
        else:
            values, line, window = scratch, columns * pixel, at.window
            read_window(source, n, y, x, rows, columns, scratch, window, pixel, line)
        _multiply(values, window, line, pixel, g, weights, scratch, at.sums)
        scatter_tiles(out, tiles, t, 1, 0, out.channels, scratch, at.sums, pixel, at.residual)


@shared(void(COUNTER, int64, int64, TILES, FLOATS, FLOATS, FLOATS, FLOATS, uint8[::1]))
def convolve_windows(
    counter: Any,
    items: int,
    batch: int,
    windows: Any,
    table: Any,
    weights: Any,
    bias: Any,
    out: Any,
    odd: Any,
) -> None:
    """`out[r] = bias + Σ_taps weights[tap] · table[windows[r, tap]]`, a code of -1 adding nothing.

    Items are batches of windows; `odd` `[1]` is set if a value is not finite.
    """
    rows, taps = windows.shape
    channels = len(out) // rows
    pixel = whole_vectors(channels)
    for r in take_tiles(counter, items, batch, rows):
        marks = splat(0.0)
        for c in range(0, channels, WIDTH):
            some = min(WIDTH, channels - c)
            v = load(bias, c)
            for tap in range(taps):
                code = np.int64(windows[r, tap])
                if code >= 0:
                    v = fma(load_some(table, code * channels + c, some), load(weights, tap * pixel + c), v)
            store_some(out, r * channels + c, v, some)
            marks = mark_odd(marks, v)  # past the channels table, weights and bias are 0
        if total(marks) != 0.0:
            odd[0] = 1


def launch_windows(
    launcher: Launcher, out: Array, windows: Host, table: Array, weights: Packed, bias: Array
) -> bool:
    """Convolve windows of codes: `out` `[R, C]`, `windows` `[R, taps]`, `table` `[V, C]`.

    Returns whether all values are computed, and finite.
    """
    odd = queued.odd()
    if len(windows):
        windows, to = np.ascontiguousarray(windows, np.int32), writable(out)
        args = (ROWS, windows, flat(table), weights.floats, bias, to, odd)
        launcher.queue(convolve_windows, ceil_div(len(out), ROWS), args, 0, 2.0 * windows.shape[1] * out.size)
    return queued.known_finite(odd)


def launch(
    launcher: Launcher, tiles: Tiles, source: Reading, g: Geometry, weights: Packed, out: Writing
) -> None:
    """Convolve `tiles`: choose the batch and whether windows can be read in place, and run."""
    # vectors of a pixel read in place must not reach into the next
    in_place = is_canvas(source) and out.channels % WIDTH == 0
    work = 2.0 * PIXELS * g.kernel_rows * g.kernel_columns * g.outputs
    batch, _ = launcher.items(len(tiles), BATCH, 1, work)
    at = layout(g, residual=residual_floats(out))
    args = (batch, int(in_place), tiles.host, source, g, weights.floats, out, at)
    launcher.queue(convolve, ceil_div(len(tiles), batch), args, at.size, work * len(tiles))
