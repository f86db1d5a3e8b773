"""Convolutions as they are defined: any kernel, stride, padding and grouping; and depthwise ones.

A tile's outputs are rows of one matrix product: row = output pixel, depth = (kernel row, kernel column, input channel).
The rows of inputs are no matrix: a row of a kernel's taps lies side by side in the window that is gathered, and the
product takes it from there; a 1×1 kernel takes pixels out of the canvas itself if no work is pending on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ..interface import TILE, Host
from .gemm import DEPTH, PANEL
from .items import take_items, take_tiles
from .jit import inline, kernel
from .packing import PACKED, WIDENED, multiply_piece, pack
from .reading import READING, is_plain, read_lines, read_window, run_of, whole_vectors
from .simd import WIDTH, fma, load, splat, store
from .writing import PIXELS, WRITING, write_tile


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


SHALLOW = 48
"""Steps of k below which sums would be loaded and stored too often: such taps are copied side by side first."""


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
    side = [(TILE - 1) * stride + k for k in kernel]
    window = side[0] * (batch * side[1] * inputs + WIDTH)
    own = inputs // groups
    matrix = rows * taps * own if (own if groups > 1 else own * kernel[1]) < SHALLOW else 0
    joined = rows * outputs if groups > 1 else 0
    rest = PIXELS * outputs if residual else 0
    return window + matrix + rows * (panels * PANEL + 4) + joined + WIDENED + rest + 8 * WIDTH


def scratch_floats_depthwise(channels: int, kernel: tuple[int, int], stride: int, residual: bool) -> int:
    """What `convolve_depthwise` needs."""
    side = [(TILE - 1) * stride + k for k in kernel]
    rest = PIXELS * channels if residual else 0
    return (side[0] * side[1] + PIXELS) * whole_vectors(channels) + rest + 8 * WIDTH


@inline
def _tap(k: int, columns: int, line: int, inputs: int) -> int:
    """Where a kernel's tap lies in a window from its first on."""
    return k // columns * line + k % columns * inputs


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
    own_inputs, own_outputs = inputs // groups, w.channels // groups
    depth = taps * own_inputs
    panels = -(-own_outputs // PANEL)
    lines, side = (TILE - 1) * stride + kernel_rows, (TILE - 1) * stride + kernel_columns
    # what a 1×1 kernel reads lies in the canvases already, if no work is pending on it; else windows are gathered
    in_place = taps == 1 and groups == 1 and top == 0 and left == 0 and is_plain(r)
    in_place &= (w.height - 1) * stride < r.height and (w.width - 1) * stride < r.width  # no pixel outside
    # the taps of a kernel's row lie side by side in a window
    pieces, piece = (taps, own_inputs) if groups > 1 else (kernel_rows, kernel_columns * own_inputs)
    shallow = piece < SHALLOW and not in_place
    parts = 2 if r.second_channels > 0 else 1
    for item in take_items(counter, items):
        first = item // splits * batch
        count = min(batch, len(tiles) - first)
        begin, end = panels * (item % splits) // splits, panels * (item % splits + 1) // splits
        outputs, rows = (end - begin) * PANEL, count * PIXELS
        table = 0  # where each row's inputs begin, int64, for either part
        sums = table + 4 * batch * PIXELS
        joined = sums + batch * PIXELS * outputs + WIDTH
        wide_weights = joined + (batch * PIXELS * w.channels + WIDTH if groups > 1 else 0)
        window = wide_weights + WIDENED
        line = batch * side * inputs + WIDTH  # windows lie side by side
        matrix = window + (0 if in_place else lines * line + WIDTH)
        spare = matrix + (batch * PIXELS * depth + WIDTH if shallow else 0)
        places = scratch[table : table + 2 * batch * PIXELS].view(np.int64)
        others = scratch[table + 2 * batch * PIXELS : table + 4 * batch * PIXELS].view(np.int64)

        t, at = 0, window
        while t < count:
            n: Any = np.int64(tiles[first + t, 0])
            y = np.int64(tiles[first + t, 1]) * TILE * stride - top
            x = np.int64(tiles[first + t, 2]) * TILE * stride - left
            if in_place:
                height, width = r.height >> r.halved, r.width >> r.halved
                for i in range(PIXELS):  # what overhangs the image reads some pixel, and is not written
                    yy = min(y + i // TILE * stride, r.height - 1) >> r.halved
                    xx = min(x + i % TILE * stride, r.width - 1) >> r.halved
                    pixel = (n * height + yy) * width + xx
                    places[t * PIXELS + i] = pixel * r.first_channels
                    others[t * PIXELS + i] = pixel * r.second_channels
                t += 1
                continue
            # neighbours in a row share their windows' columns: each pixel's prologue is computed once for them
            run = run_of(tiles, first + t, first + count)
            columns = (TILE * run - 1) * stride + kernel_columns
            # pixels in ascending order: what is written past the end of one is written again by the next
            read_lines(r, n, y, x, lines, columns, scratch, at, inputs, line)
            for i in range(run * PIXELS):
                corner = i % PIXELS // TILE * line + (i // PIXELS * TILE + i % TILE) * inputs
                places[t * PIXELS + i] = at + corner * stride
            at += columns * inputs
            t += run

        for g in range(groups):
            if shallow:
                for i in range(rows):
                    others[i] = i * depth
                    for k in range(pieces):
                        tap = places[i] + (k * line if groups == 1 else _tap(k, kernel_columns, line, inputs))
                        _copy(scratch, tap + g * own_inputs, matrix + i * depth + k * piece, piece)
            for panel in range(begin, end):
                at, to, done = (g * panels + panel) * depth * PANEL, sums + (panel - begin) * PANEL, 0
                for k in range(parts if in_place else 1 if shallow else pieces):
                    source, where, base, deep = scratch, places, g * own_inputs, piece
                    if in_place:
                        source, where = (r.first, places) if k == 0 else (r.second, others)
                        deep = r.first_channels if k == 0 else r.second_channels
                    elif shallow:
                        where, base, deep = others, matrix, depth
                    else:
                        base += k * line if groups == 1 else _tap(k, kernel_columns, line, inputs)
                    for f in range(0, deep, DEPTH):
                        steps = min(DEPTH, deep - f)
                        w_at = at + done * PANEL
                        multiply_piece(
                            source,
                            base + f,
                            where,
                            weights,
                            w_at,
                            scratch,
                            to,
                            outputs,
                            rows,
                            steps,
                            done,
                            wide_weights,
                        )
                        done += steps
            for i in range(rows if groups > 1 else 0):
                to = joined + i * w.channels + g * own_outputs
                for c in range(own_outputs):
                    scratch[to + c] = scratch[sums + i * outputs + c]

        last = w.channels if groups > 1 else min(end * PANEL, w.channels)
        step, at = (w.channels, joined) if groups > 1 else (outputs, sums)
        for t in range(count):
            n, row, column = tiles[first + t, 0], tiles[first + t, 1], tiles[first + t, 2]
            write_tile(
                w,
                n,
                row,
                column,
                begin * PANEL,
                last,
                at + t * PIXELS * step,
                step,
                TILE * step,
                scratch,
                spare,
            )


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
    pixel = -(-w.channels // WIDTH) * WIDTH
    rows, columns = (TILE - 1) * stride + kernel_rows, (TILE - 1) * stride + kernel_columns
    # a window inside the canvas is read where it is, if no work is pending and vectors do not reach into the next pixel
    in_place = is_plain(r) and r.halved == 0 and r.second_channels == 0 and pixel == w.channels
    sums = rows * columns * pixel + WIDTH
    spare = sums + PIXELS * pixel
    for t in take_tiles(counter, items, batch, len(tiles)):
        n, row, column = tiles[t, 0], tiles[t, 1], tiles[t, 2]
        y, x = np.int64(row) * TILE * stride - top, np.int64(column) * TILE * stride - left
        inside = y >= 0 and x >= 0 and y + rows <= r.height and x + columns <= r.width
        if inside and in_place:
            source, start, line = r.first, ((n * r.height + y) * r.width + x) * pixel, r.width * pixel
        else:
            source, start, line = scratch, 0, columns * pixel
            read_window(r, n, y, x, rows, columns, scratch, 0, pixel)
        for i in range(PIXELS):
            corner = start + i // TILE * stride * line + i % TILE * stride * pixel
            for c in range(0, pixel, WIDTH):
                v = splat(0.0)
                for j in range(kernel_rows):
                    at, tap = corner + j * line + c, j * kernel_columns * pixel + c
                    for k in range(kernel_columns):
                        v = fma(load(source, at + k * pixel), load(weights, tap + k * pixel), v)
                store(scratch, sums + i * pixel + c, v)
        write_tile(w, n, row, column, 0, w.channels, sums, pixel, TILE * pixel, scratch, spare)
