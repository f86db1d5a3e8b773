"""Scatter: a tile's sums come in; bias, shift, residual and activation are applied, and its pixels are written."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from ..interface import TILE, Activation, Array, Source
from .arrays import flat, writable
from .gemm import PANEL
from .items import take_tiles
from .jit import inline, kernel
from .reading import ACTIVATIONS, NO_FLOATS, NOTHING, READING, activate, read_window, reading
from .simd import WIDTH, load, load_some, store_some

PIXELS = TILE * TILE
"""Pixels of a tile."""


class Writing(NamedTuple):
    """Where a convolution writes, and what it does last; arrays are flat, absent ones are empty."""

    out: Any
    """float32 `[N, H, W, C]`."""
    height: int
    width: int
    channels: int
    bias: Any
    """float32, filled up with zeros to whole panels."""
    shift: Any
    """float32 `[1 or N, C]`."""
    shift_stride: int
    """-1: no shift; 0: one row for all samples; C: a row a sample."""
    residual: Any
    """What is added at the output's pixels: a `Reading`."""
    has_residual: int
    activation: int


_floats = types.float32[::1]
WRITING = types.NamedTuple(
    [_floats, *[types.int64] * 3, _floats, _floats, types.int64, READING, *[types.int64] * 2], Writing
)
"""Numba's type of a `Writing`."""


def padded_bias(bias: Array | None, outputs: int) -> Array:
    """A bias of `outputs` values (None: zeros) filled up with zeros to whole panels."""
    padded = np.zeros(-(-outputs // PANEL) * PANEL, np.float32)
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
) -> Writing:
    """The arrays of an output; `bias` is filled up to whole panels already."""
    channels = out.shape[3]
    return Writing(
        writable(out),
        out.shape[1],
        out.shape[2],
        channels,
        padded_bias(None, channels) if bias is None else bias,
        NO_FLOATS if shift is None else flat(shift),
        -1 if shift is None else channels if len(shift) > 1 else 0,
        NOTHING if residual is None else reading(residual),
        int(residual is not None),
        ACTIVATIONS[activation],
    )


@inline
def _finish(v: Any, w: Any, c: int, count: int, shift: int, scratch: Any, residual: int, at: int) -> None:
    v = v + load(w.bias, c)
    if shift >= 0:
        v = v + load_some(w.shift, shift + c, count)
    if residual >= 0:
        v = v + load_some(scratch, residual + c, count)
    store_some(w.out, at + c, activate(v, w.activation), count)


@inline
def write_tile(
    w: Any,
    sample: int,
    row: int,
    column: int,
    begin: int,
    end: int,
    sums: int,
    pixel: int,
    line: int,
    scratch: Any,
    spare: int,
) -> None:
    """Write channels `begin` … `end` of a tile; its sums lie from `scratch[sums]` on, `pixel` and `line` floats apart.

    `begin` is a multiple of WIDTH; `scratch[spare:]` takes the residual, PIXELS * C + WIDTH floats.
    """
    shift = -1 if w.shift_stride < 0 else sample * w.shift_stride
    rows, columns = min(TILE, w.height - row * TILE), min(TILE, w.width - column * TILE)
    if w.has_residual:
        read_window(w.residual, sample, row * TILE, column * TILE, rows, columns, scratch, spare, w.channels)
    whole = end - (end - begin) % WIDTH
    for y in range(rows):
        for x in range(columns):
            at = ((sample * w.height + row * TILE + y) * w.width + column * TILE + x) * w.channels
            residual = spare + (y * columns + x) * w.channels if w.has_residual else -1
            value = sums + y * line + x * pixel - begin
            for c in range(begin, whole, WIDTH):
                _finish(load(scratch, value + c), w, c, WIDTH, shift, scratch, residual, at)
            if whole < end:
                v = load(scratch, value + whole)
                _finish(v, w, whole, end - whole, shift, scratch, residual, at)


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
    for t in take_tiles(counter, items, batch, len(tiles)):
        n, row, column = tiles[t, 0], tiles[t, 1], tiles[t, 2]
        read_window(r, n, row * TILE, column * TILE, TILE, TILE, scratch, 0, w.channels)
        write_tile(w, n, row, column, 0, w.channels, 0, w.channels, TILE * w.channels, scratch, spare)
