"""Convolutions as they are defined: any kernel, stride, padding and grouping; and depthwise ones.

A tile's outputs are rows of one matrix product: row = output pixel, depth = (kernel row, kernel column, input channel).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ..interface import TILE, Host
from .epilogue import WRITING, write_tile
from .gemm import PACKED, PANEL, WIDENED, multiply_packed, pack
from .jit import inline, kernel
from .reading import READING, read_window, run_of, whole_vectors
from .simd import WIDTH, fma, load, next_item, splat, store

PIXELS = TILE * TILE


def pack_direct(weight: Host, groups: int) -> Host:
    """`[O, I / groups, kh, kw]` → panels, flat `[groups, panels, kh * kw * I / groups, PANEL]`."""
    outputs = len(weight)
    by_group = weight.reshape(groups, outputs // groups, *weight.shape[1:])
    return pack(by_group.transpose(0, 3, 4, 2, 1).reshape(groups, -1, outputs // groups))


def pack_depthwise(weight: Host) -> Host:
    """`[C, 1, kh, kw]` → flat `[kh * kw, C]`, channels filled up with zeros to whole vectors."""
    taps = weight.reshape(len(weight), -1).T
    packed = np.zeros((len(taps), whole_vectors(len(weight))), np.float32)
    packed[:, : len(weight)] = taps
    return packed.reshape(-1)


def scratch_floats(
    batch: int,
    inputs: int,
    outputs: int,
    kernel: tuple[int, int],
    stride: int,
    groups: int,
    panels: int,
    residual: bool,
) -> int:
    """What `convolve` needs for batches of `batch` tiles and `panels` panels at a time."""
    taps, rows = kernel[0] * kernel[1], PIXELS * batch
    lines, columns = (TILE - 1) * stride + kernel[0], (TILE * batch - 1) * stride + kernel[1]
    window = lines * columns * whole_vectors(inputs)
    joined = rows * outputs if groups > 1 else 0
    rest = PIXELS * outputs if residual else 0
    return window + rows * (taps * inputs + panels * PANEL) + joined + WIDENED + rest + 8 * WIDTH


def scratch_floats_depthwise(channels: int, kernel: tuple[int, int], stride: int, residual: bool) -> int:
    """What `convolve_depthwise` needs."""
    side = [(TILE - 1) * stride + k for k in kernel]
    rest = PIXELS * channels if residual else 0
    return (side[0] * side[1] + PIXELS) * whole_vectors(channels) + rest + 8 * WIDTH


@inline
def _copy(scratch: Any, source: int, target: int, count: int) -> None:
    """`count` floats, and up to WIDTH - 1 more of no meaning."""
    if count < WIDTH:
        for c in range(count):
            scratch[target + c] = scratch[source + c]
        return
    for c in range(0, count, WIDTH):
        store(scratch, target + c, load(scratch, source + c))


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int64,
        types.int64,
        types.int32[:, ::1],
        READING,
        types.UniTuple(types.int64, 6),
        PACKED,
        WRITING,
        types.float32[::1],
    )
)
def convolve(
    counter: Any,
    items: int,
    batch: int,
    splits: int,
    tiles: Any,
    r: Any,
    geometry: Any,
    weights: Any,
    w: Any,
    scratch: Any,
) -> None:
    """Take items (a batch of tiles × a share of the output panels) until none is left.

    `geometry` is kernel rows, kernel columns, stride, top, left, groups; with groups, `splits` is 1.
    """
    kernel_rows, kernel_columns, stride, top, left, groups = geometry
    taps = kernel_rows * kernel_columns
    inputs = r.first_channels + r.second_channels
    pixel = -(-inputs // WIDTH) * WIDTH
    own_inputs, own_outputs = inputs // groups, w.channels // groups
    depth = taps * own_inputs
    panels = -(-own_outputs // PANEL)
    lines = (TILE - 1) * stride + kernel_rows
    # a 1×1 kernel multiplies pixels as they are gathered, row by row of several tiles; else a matrix is made of them
    as_gathered = taps == 1 and stride == 1 and groups == 1
    while True:
        item = next_item(counter)
        if item >= items:
            return
        first = item // splits * batch
        count = min(batch, len(tiles) - first)
        begin, end = panels * (item % splits) // splits, panels * (item % splits + 1) // splits
        outputs = (end - begin) * PANEL
        window = 0
        matrix = window + lines * ((TILE * batch - 1) * stride + kernel_columns) * pixel + WIDTH
        sums = matrix + batch * PIXELS * taps * inputs + WIDTH
        joined = sums + batch * PIXELS * outputs + WIDTH
        wide_weights = joined + (batch * PIXELS * w.channels + WIDTH if groups > 1 else 0)
        spare = wide_weights + WIDENED

        t = 0
        while t < count:
            run = run_of(tiles, first + t, first + count)
            n = tiles[first + t, 0]
            y, x = tiles[first + t, 1] * TILE * stride - top, tiles[first + t, 2] * TILE * stride - left
            # rows in ascending order: what is written past the end of one is written again by the next
            if as_gathered:
                read_window(r, n, y, x, TILE, TILE * run, scratch, matrix + t * PIXELS * inputs, inputs)
            else:
                columns = (TILE * run - 1) * stride + kernel_columns
                read_window(r, n, y, x, lines, columns, scratch, window, pixel)
                for i in range(run * groups * PIXELS):
                    p, g = i % PIXELS, i // PIXELS % groups
                    corner = p // TILE * columns + i // (PIXELS * groups) * TILE + p % TILE
                    corner = window + corner * stride * pixel + g * own_inputs
                    at = matrix + (t * groups * PIXELS + i) * depth
                    for tap in range(taps):
                        source = corner + (tap // kernel_columns * columns + tap % kernel_columns) * pixel
                        _copy(scratch, source, at + tap * own_inputs, own_inputs)
            t += run

        if groups == 1:
            at, all_rows = begin * depth * PANEL, count * PIXELS
            multiply_packed(
                scratch,
                matrix,
                depth,
                weights,
                at,
                scratch,
                sums,
                outputs,
                all_rows,
                depth,
                end - begin,
                wide_weights,
            )
        for i in range(count * groups if groups > 1 else 0):
            t, g = i // groups, i % groups
            at = g * panels * depth * PANEL
            multiply_packed(
                scratch,
                matrix + i * PIXELS * depth,
                depth,
                weights,
                at,
                scratch,
                sums,
                outputs,
                PIXELS,
                depth,
                panels,
                wide_weights,
            )
            for p in range(PIXELS):
                to = joined + (t * PIXELS + p) * w.channels + g * own_outputs
                for c in range(own_outputs):
                    scratch[to + c] = scratch[sums + p * outputs + c]

        t = 0
        last = w.channels if groups > 1 else min(end * PANEL, w.channels)
        while t < count:
            run = run_of(tiles, first + t, first + count)
            n, row, column = tiles[first + t, 0], tiles[first + t, 1], tiles[first + t, 2]
            for i in range(run):
                step = w.channels if groups > 1 else outputs
                at = (joined if groups > 1 else sums) + (t + i) * PIXELS * step
                line = TILE * step
                if as_gathered:
                    at, line = sums + (t * PIXELS + i * TILE) * step, TILE * run * step
                write_tile(w, n, row, column + i, begin * PANEL, last, at, step, line, scratch, spare)
            t += run


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int64,
        types.int32[:, ::1],
        READING,
        types.UniTuple(types.int64, 6),
        types.float32[::1],
        WRITING,
        types.float32[::1],
    )
)
def convolve_depthwise(
    counter: Any,
    items: int,
    batch: int,
    tiles: Any,
    r: Any,
    geometry: Any,
    weights: Any,
    w: Any,
    scratch: Any,
) -> None:
    """A kernel for each channel: vectors run along channels. Items are batches of tiles."""
    kernel_rows, kernel_columns, stride, top, left, _ = geometry
    taps = kernel_rows * kernel_columns
    pixel = -(-w.channels // WIDTH) * WIDTH
    rows, columns = (TILE - 1) * stride + kernel_rows, (TILE - 1) * stride + kernel_columns
    sums = rows * columns * pixel + WIDTH
    spare = sums + PIXELS * pixel
    while True:
        item = next_item(counter)
        if item >= items:
            return
        for t in range(item * batch, min((item + 1) * batch, len(tiles))):
            n, row, column = tiles[t, 0], tiles[t, 1], tiles[t, 2]
            y, x = row * TILE * stride - top, column * TILE * stride - left
            read_window(r, n, y, x, rows, columns, scratch, 0, pixel)
            for i in range(PIXELS):
                corner = (i // TILE * columns + i % TILE) * stride * pixel
                for c in range(0, pixel, WIDTH):
                    v = splat(0.0)
                    for tap in range(taps):
                        at = corner + (tap // kernel_columns * columns + tap % kernel_columns) * pixel + c
                        v = fma(load(scratch, at), load(weights, tap * pixel + c), v)
                    store(scratch, sums + i * pixel + c, v)
            write_tile(w, n, row, column, 0, w.channels, sums, pixel, TILE * pixel, scratch, spare)
