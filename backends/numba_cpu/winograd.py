"""3×3 convolutions of stride 1 by Winograd's transforms: 36 products a tile instead of 144, or 64.

Summed over the input channels, `y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A` (see `transforms.py`) is, for each position in the
transformed window, a plain product of [tiles, inputs] with [inputs, outputs]. A batch of tiles goes through gather,
transform, products, transform and epilogue while it lies in the cache.

F(4×4, 3×3) takes a tile's 6×6 window whole. F(2×2, 3×3) takes four 4×4 windows of it: 1.8 times the products, but
transformed weights of less than half the size, which is what counts where tiles are few and channels many.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numba import types

from ..interface import TILE, Host
from .epilogue import WRITING, write_tile
from .gemm import PACKED, PANEL, WIDENED, multiply_packed
from .jit import kernel
from .reading import READING, read_window, run_of, whole_vectors
from .simd import WIDTH, next_item
from .transforms import (
    KERNEL_2,
    KERNEL_4,
    transform_input_2,
    transform_input_4,
    transform_output_2,
    transform_output_4,
)

Side = Literal[4, 6]
"""Pixels along one side of a transformed window: 6 for F(4×4, 3×3), 4 for F(2×2, 3×3)."""
WINDOW = TILE + 2
"""Pixels along one side of what a tile reads."""


def matrix(side: Side) -> Host:
    """G, float64 `[side, 3]`."""
    return KERNEL_4 if side == WINDOW else KERNEL_2


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.float32[:, :, :, ::1],
        types.float64[:, ::1],
        types.float64[:, :, ::1],
        types.float32[::1],
    )
)
def transform_weights(counter: Any, items: int, weight: Any, g: Any, work: Any, packed: Any) -> None:
    """`weight` `[O, I, 3, 3]` → G w Gᵀ in panels, `packed` `[side², panels, I, PANEL]`; items are panels.

    Computed in float64 and rounded once, a panel's outputs side by side; `work` is `[panels, 9 + 3 * side, PANEL]`.
    """
    outputs, inputs = weight.shape[:2]
    side = len(g)
    while True:
        panel = next_item(counter)
        if panel >= items:
            return
        count = min(PANEL, outputs - panel * PANEL)
        values, half = work[panel, :9], work[panel, 9:]  # w, and G w: [3 * row + column, output]
        for i in range(inputs):
            for j in range(9):
                for o in range(count):
                    values[j, o] = weight[panel * PANEL + o, i, j // 3, j % 3]
            for a in range(side):
                for j in range(3):
                    for o in range(PANEL):
                        half[3 * a + j, o] = (
                            g[a, 0] * values[j, o] + g[a, 1] * values[3 + j, o] + g[a, 2] * values[6 + j, o]
                        )
            for a in range(side):
                for b in range(side):
                    at = (((a * side + b) * items + panel) * inputs + i) * PANEL
                    for o in range(PANEL):
                        packed[at + o] = np.float32(
                            half[3 * a, o] * g[b, 0]
                            + half[3 * a + 1, o] * g[b, 1]
                            + half[3 * a + 2, o] * g[b, 2]
                        )


def rows_per_tile(side: Side) -> int:
    """Windows of `side`² pixels that a tile is made of."""
    return 1 if side == WINDOW else 4


def scratch_floats(batch: int, side: Side, inputs: int, outputs: int, panels: int, residual: bool) -> int:
    """What `convolve` needs for batches of `batch` tiles and shares of `panels` panels."""
    stride = whole_vectors(inputs)
    window = WINDOW * (TILE * batch + 2) * stride
    tile = TILE * TILE * panels * PANEL
    rest = TILE * TILE * outputs if residual else 0
    rows = batch * rows_per_tile(side)
    return (
        window
        + side * side * (rows * (stride + panels * PANEL) + 2 * WIDTH)
        + tile
        + WIDENED
        + rest
        + 8 * WIDTH
    )


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int64,
        types.int64,
        types.int64,
        types.int32[:, ::1],
        READING,
        types.int64,
        types.int64,
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
    side: int,
    tiles: Any,
    r: Any,
    top: int,
    left: int,
    weights: Any,
    w: Any,
    scratch: Any,
) -> None:
    """Take items (a batch of tiles × a share of the output panels) until none is left."""
    inputs = r.first_channels + r.second_channels
    stride = -(-inputs // WIDTH) * WIDTH
    panels = -(-w.channels // PANEL)
    products = side * side
    rows = 1 if side == WINDOW else 4  # of each product, for a tile
    while True:
        item = next_item(counter)
        if item >= items:
            return
        first = item // splits * batch
        count = min(batch, len(tiles) - first)
        share = item % splits
        begin, end = panels * share // splits, panels * (share + 1) // splits
        outputs = (end - begin) * PANEL
        # where things lie in the scratch; a line more than needed between products keeps them in different sets
        window = 0
        inner = window + WINDOW * (TILE * batch + 2) * stride + WIDTH
        inner_step = batch * rows * stride + WIDTH
        sums = inner + products * inner_step
        sums_step = batch * rows * outputs + WIDTH
        tile = sums + products * sums_step
        wide_weights = tile + TILE * TILE * outputs
        spare = wide_weights + WIDENED

        t = 0
        while t < count:
            # neighbours in a row share their windows' columns: each pixel's prologue is computed once for them
            n, row, column = tiles[first + t, 0], tiles[first + t, 1], tiles[first + t, 2]
            run = run_of(tiles, first + t, first + count)
            wide = TILE * run + 2
            read_window(r, n, row * TILE - top, column * TILE - left, WINDOW, wide, scratch, window, stride)
            for i in range(run):
                for c in range(0, stride, WIDTH):
                    corner = window + TILE * i * stride + c
                    to = inner + (t + i) * rows * stride + c
                    if side == WINDOW:
                        transform_input_4(scratch, corner, stride, wide * stride, to, inner_step)
                    else:
                        for part in range(4):
                            at = corner + (part // 2 * 2 * wide + part % 2 * 2) * stride
                            transform_input_2(
                                scratch, at, stride, wide * stride, to + part * stride, inner_step
                            )
            t += run

        for p in range(products):
            multiply_packed(
                scratch,
                inner + p * inner_step,
                stride,
                weights,
                (p * panels + begin) * inputs * PANEL,
                scratch,
                sums + p * sums_step,
                outputs,
                count * rows,
                inputs,
                end - begin,
                wide_weights,
            )

        for t in range(count):
            for c in range(0, outputs, WIDTH):
                at = sums + t * rows * outputs + c
                if side == WINDOW:
                    transform_output_4(scratch, at, sums_step, tile + c, outputs)
                else:
                    for part in range(4):
                        to = tile + (part // 2 * 2 * TILE + part % 2 * 2) * outputs + c
                        transform_output_2(
                            scratch, at + part * outputs, sums_step, to, outputs, TILE * outputs
                        )
            n, row, column = tiles[first + t, 0], tiles[first + t, 1], tiles[first + t, 2]
            last = min(end * PANEL, w.channels)
            write_tile(w, n, row, column, begin * PANEL, last, tile, outputs, TILE * outputs, scratch, spare)
