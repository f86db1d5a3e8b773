"""Scatter: a tile's sums come in; bias, shift, residual and activation are applied, and its pixels are written."""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import types

from ..interface import TILE
from .jit import inline
from .reading import READING, activate, load_some, read_window, store_some
from .simd import WIDTH, load


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

    `begin` is a multiple of WIDTH; `scratch[spare:]` takes the residual, TILE * TILE * C + WIDTH floats.
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
