"""Scatter: a tile's sums come in; bias, shift, residual and activation are applied, and its pixels are written.

The primitive `pointwise` is here too: it is a gather and a scatter with nothing between.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.types import NamedTuple as NamedTupleType
from numba.types import float32, int64, uint8, void

from ..interface import TILE, Activation, Array, Source, Tiles, check_own_pixels
from . import queued
from .arrays import flat, writable
from .gemm import PANEL
from .handover import shared
from .items import COUNTER, TILES, take_tiles
from .jit import inline
from .launch import Launcher
from .reading import (
    ACTIVATIONS,
    NO_FLOATS,
    NOTHING,
    READING,
    Reading,
    activate,
    is_canvas,
    read_combined_window,
    read_tile,
    read_window,
    reading,
    run_of,
)
from .regions import OVERRUN, SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH, load, load_first, load_some, mark_odd, splat, store_some, total
from .sizes import ceil_div, round_up
from .tile_moments import measure_tile

PIXELS = TILE * TILE
"""Pixels of a tile."""


GATHERED, IN_PLACE = 1, 2
"""Ways to read a residual; 0: there is none."""


class Writing(NamedTuple):
    """An output as kernels take it: the canvas, and the epilogue; arrays are flat, absent ones are empty."""

    canvas: Any
    """float32 `[N, H, W, C]`."""
    height: int
    width: int
    channels: int
    bias: Any
    """float32, filled with zeros to whole panels."""
    shift: Any
    """float32 `[1 or N, C]`."""
    shift_stride: int
    """-1: no shift; 0: one row for all samples; C: a row for each sample."""
    residual: Any
    """A `Reading` of the residual, at the output's pixels."""
    has_residual: int
    """GATHERED: it is read into scratch; IN_PLACE: out of its canvas, on which no work is pending."""
    activation: int
    measures: Any
    """float32 `[N, rows of tiles, columns, 2, C]`: each written tile by `measure_tile`; empty: they are not wanted."""
    odd: Any
    """uint8 `[1]`: set to 1 where a value that is written is not finite."""

    @property
    def finite(self) -> bool:
        """Whether every value is written, and finite."""
        return queued.known_finite(self.odd)


_floats = float32[::1]
WRITING = NamedTupleType(
    [_floats, int64, int64, int64, _floats, _floats, int64, READING, int64, int64, _floats, uint8[::1]],
    Writing,
)
"""Numba's type of a `Writing`."""


def padded_bias(bias: Array | None, outputs: int) -> Array:
    """A bias of `outputs` values (None: zeros) filled with zeros to whole panels."""
    padded = np.zeros(round_up(outputs, PANEL), np.float32)
    if bias is not None:
        padded[:outputs] = bias
    return padded


def writing(
    out: Array,
    bias: Array | None = None,
    *,
    shift: Array | None = None,
    residual: Source | None = None,
    activation: Activation = "identity",
    measures: Array = NO_FLOATS,
) -> Writing:
    """An output's `Writing`. `bias` comes from `padded_bias`. Raises BackendError where `out` cannot be written."""
    _, height, width, channels = out.shape
    added, has_residual = NOTHING, 0
    if residual is not None:
        check_own_pixels(None, residual)
        added = reading(residual)
        has_residual = IN_PLACE if is_canvas(added) else GATHERED
    return Writing(
        writable(out),
        height,
        width,
        channels,
        padded_bias(None, channels) if bias is None else bias,
        NO_FLOATS if shift is None else flat(shift),
        -1 if shift is None else channels if len(shift) > 1 else 0,
        added,
        has_residual,
        ACTIVATIONS[activation],
        measures,
        queued.odd(),
    )


def residual_floats(out: Writing, tiles: int = 1) -> int:
    """Floats of the scratch region in which `scatter_tiles` gathers a line of so many tiles' residual, if it does."""
    return tiles * TILE * out.channels + OVERRUN if out.has_residual == GATHERED else 0


@inline
def _finish(
    v: Any, out: Any, c: int, count: int, shift: int, scratch: Any, residual: int, at: int, marks: Any
) -> Any:
    """`activation(v + bias + shift + residual)` of channels `c` … `c + count`, to `out.canvas[at + c:]`.

    Returns `marks` with those of values that are not finite.
    """
    v = v + load(out.bias, c)
    if shift >= 0:
        v = v + load_some(out.shift, shift + c, count)
    if out.has_residual == IN_PLACE:
        v = v + load_some(out.residual.first, at + c, count)
    elif residual >= 0:
        v = v + load_some(scratch, residual + c, count)
    v = activate(v, out.activation)
    store_some(out.canvas, at + c, v, count)
    return mark_odd(marks, v)


@inline
def _scatter_run(
    out: Any,
    tiles: Any,
    first: int,
    run: int,
    begin: int,
    end: int,
    scratch: Any,
    sums: int,
    pixel: int,
    spare: int,
) -> None:
    """`scatter_tiles` of a run."""
    n, top, left = tiles[first, 0], tiles[first, 1] * TILE, tiles[first, 2] * TILE
    channels = out.channels
    shift = -1 if out.shift_stride < 0 else n * out.shift_stride
    rows, columns = min(TILE, out.height - top), min(TILE * run, out.width - left)
    whole, marks = end - (end - begin) % WIDTH, splat(0.0)
    for y in range(rows):
        if out.has_residual == GATHERED:
            read_window(out.residual, n, top + y, left, 1, columns, scratch, spare, channels, 0)
        line = sums + y * TILE * run * pixel - begin
        for x in range(columns):
            at = ((n * out.height + top + y) * out.width + left + x) * channels
            residual = spare + x * channels if out.has_residual == GATHERED else -1
            value = line + x * pixel
            for c in range(begin, whole, WIDTH):
                v = load(scratch, value + c)
                marks = _finish(v, out, c, WIDTH, shift, scratch, residual, at, marks)
            if whole < end:
                v = load_first(scratch, value + whole, end - whole)  # the lanes past the last channel are 0
                marks = _finish(v, out, whole, end - whole, shift, scratch, residual, at, marks)
    if total(marks) != 0.0:
        out.odd[0] = 1
    if len(out.measures):
        across, down = ceil_div(out.width, TILE), ceil_div(out.height, TILE)
        for i in range(run):
            corner = (n * out.height + top) * out.width + left + i * TILE
            tile = (n * down + tiles[first, 1]) * across + tiles[first, 2] + i
            measure_tile(
                out.canvas,
                corner * channels + begin,
                out.width * channels,
                channels,
                rows,
                min(TILE, columns - i * TILE),
                end - begin,
                out.measures,
                tile * 2 * channels + begin,
                channels,
            )


@inline
def scatter_tiles(
    out: Any,
    tiles: Any,
    first: int,
    count: int,
    begin: int,
    end: int,
    scratch: Any,
    sums: int,
    pixel: int,
    spare: int,
) -> None:
    """`out[tiles] = activation(sums + bias + shift + residual)` of `count` tiles from `first` on.

    It writes the channels `begin` … `end` and what is in the image. Sets `out.odd` if a value is not finite; notes the
    tiles' moments in `out.measures`, if that is not empty.

    Tiles that lie side by side (`run_of`) are written line by line, and so lie their sums: run after run, and in each
    the pixels of its first line, the second, … A processor fetches ahead what is written in long stretches. A pixel's
    sums for these channels lie every `pixel` floats of `scratch[sums:]`, and have OVERRUN floats behind them; `begin`
    is a multiple of WIDTH. `scratch[spare:]` takes a line of the residual, `residual_floats`.
    """
    t = 0
    while t < count:
        run = run_of(tiles, first + t, first + count)
        _scatter_run(out, tiles, first + t, run, begin, end, scratch, sums + t * PIXELS * pixel, pixel, spare)
        t += run


# -- the primitive `pointwise` ---------------------------------------------------------------------------


class Layout(NamedTuple):
    """Scratch of `write_out`.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | values | [TILE, TILE, C] + OVERRUN | gather | scatter |
    | residual | as `scatter_tiles` takes it | scatter | scatter |
    """

    values: int
    residual: int
    size: int


LAYOUT = layout_type(Layout)


@remembered
def layout(channels: int, residual: int) -> Layout:
    """The scratch for tiles of so many channels, with `residual` floats for the residual."""
    regions = Regions()
    return Layout(
        values=regions.add(PIXELS * channels + OVERRUN),
        residual=regions.add(residual),
        size=regions.size,
    )


@shared(void(COUNTER, int64, int64, TILES, READING, WRITING, LAYOUT, SCRATCH))
def write_out(
    counter: Any, items: int, batch: int, tiles: Any, source: Any, out: Any, at: Any, scratch: Any
) -> None:
    """`out[tiles] = activation(source + residual)`; items are batches of tiles."""
    channels = out.channels
    for t in take_tiles(counter, items, batch, len(tiles)):
        if source.combined:
            n, top, left = tiles[t, 0], tiles[t, 1] * TILE, tiles[t, 2] * TILE
            line = TILE * channels
            read_combined_window(source, n, top, left, TILE, TILE, scratch, at.values, channels, line)
        else:
            read_tile(source, tiles, t, scratch, at.values)
        scatter_tiles(out, tiles, t, 1, 0, channels, scratch, at.values, channels, at.residual)


def launch_pointwise(launcher: Launcher, canvas: Array, tiles: Tiles, source: Reading, out: Writing) -> None:
    """Run `write_out` for `tiles` of `canvas`."""
    at = layout(out.channels, residual_floats(out))
    launcher.over_tiles(write_out, canvas, tiles, (source, out, at), at.size)
