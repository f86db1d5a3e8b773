"""3×3 convolutions of stride 1 by Winograd's F(4×4, 3×3): 36 products a tile instead of 144.

With d a tile's 6×6 window, g a 3×3 kernel and y its 4×4 outputs (Lavin & Gray, arXiv 1509.09308):

    y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A

summed over the input channels: for each of the 36 positions a plain product of [tiles, inputs] with [inputs, outputs].
The interpolation points are 0, ±3/4, ±3/2, ∞: over random data their error is half that of the textbook's 0, ±1, ±2, ∞.
A window is exactly what a tile reads: gather, transforms, products and epilogue run on a batch of tiles in the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ..interface import TILE, Host
from .epilogue import WRITING, write_tile
from .gemm import PANEL, multiply
from .jit import inline, kernel
from .reading import READING, read_window
from .simd import WIDTH, fma, load, next_item, splat, store

SIDE = TILE + 2
"""Pixels along one side of a tile's window."""
PRODUCTS = SIDE * SIDE

_A, _B = 3 / 4, 3 / 2
_A2, _B2 = _A * _A, _B * _B

INPUT = np.array(
    [
        [_A2 * _B2, 0, -(_A2 + _B2), 0, 1, 0],
        [0, -_A * _B2, -_B2, _A, 1, 0],
        [0, _A * _B2, -_B2, -_A, 1, 0],
        [0, -_B * _A2, -_A2, _B, 1, 0],
        [0, _B * _A2, -_A2, -_B, 1, 0],
        [0, _A2 * _B2, 0, -(_A2 + _B2), 0, 1],
    ]
)
"""Bᵀ, `[6, 6]`."""
OUTPUT = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, _A, -_A, _B, -_B, 0],
        [0, _A2, _A2, _B2, _B2, 0],
        [0, _A**3, -(_A**3), _B**3, -(_B**3), 1],
    ]
)
"""Aᵀ, `[4, 6]`."""
_NA, _NB = 2 * _A2 * (_A2 - _B2), 2 * _B2 * (_B2 - _A2)
KERNEL = np.array(
    [
        [1 / (_A2 * _B2), 0, 0],
        [1 / _NA, _A / _NA, _A2 / _NA],
        [1 / _NA, -_A / _NA, _A2 / _NA],
        [1 / _NB, _B / _NB, _B2 / _NB],
        [1 / _NB, -_B / _NB, _B2 / _NB],
        [0, 0, 1],
    ]
)
"""G, `[6, 3]`."""


def pack_winograd(weight: Host) -> Host:
    """`[O, I, 3, 3]` → G g Gᵀ in panels, flat `[36, panels, I, PANEL]`; computed in float64, rounded once."""
    outputs, inputs = weight.shape[:2]
    panels = -(-outputs // PANEL)
    packed = np.zeros((PRODUCTS, panels, inputs, PANEL), np.float32)
    both = np.kron(KERNEL, KERNEL)  # [36, 9]
    for panel in range(panels):  # a panel at a time: the float64 copy stays small
        g = weight[panel * PANEL : (panel + 1) * PANEL].astype(np.float64)
        transformed = both @ g.reshape(-1, 9).T
        transformed = transformed.reshape(PRODUCTS, len(g), inputs).transpose(0, 2, 1)
        packed[:, panel, :, : len(g)] = transformed
    return packed.reshape(-1)


def pixel_stride(channels: int) -> int:
    """Floats from one pixel of a gathered window to the next: whole vectors."""
    return -(-channels // WIDTH) * WIDTH


def scratch_floats(batch: int, inputs: int, outputs: int, panels: int, residual: bool) -> int:
    """What `convolve` needs for batches of `batch` tiles and groups of `panels` panels."""
    stride = pixel_stride(inputs)
    window = SIDE * (TILE * batch + 2) * stride
    tile = TILE * TILE * panels * PANEL
    rest = TILE * TILE * outputs if residual else 0
    return window + PRODUCTS * (batch * (stride + panels * PANEL) + 2 * WIDTH) + tile + rest + 8 * WIDTH


@inline
def _input_1d(d0: Any, d1: Any, d2: Any, d3: Any, d4: Any, d5: Any) -> Any:
    """`INPUT @ d`, even and odd parts shared between ±."""
    a2, b2 = splat(-_A2), splat(-_B2)
    total, product = splat(-(_A2 + _B2)), splat(_A2 * _B2)
    even_a, odd_a = fma(b2, d2, d4), fma(b2, d1, d3)
    even_b, odd_b = fma(a2, d2, d4), fma(a2, d1, d3)
    return (
        fma(product, d0, fma(total, d2, d4)),
        fma(splat(_A), odd_a, even_a),
        fma(splat(-_A), odd_a, even_a),
        fma(splat(_B), odd_b, even_b),
        fma(splat(-_B), odd_b, even_b),
        fma(product, d1, fma(total, d3, d5)),
    )


@inline
def _output_1d(m0: Any, m1: Any, m2: Any, m3: Any, m4: Any, m5: Any) -> Any:
    """`OUTPUT @ m`, sums and differences shared between ±."""
    sum_a, difference_a, sum_b, difference_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        m0 + (sum_a + sum_b),
        fma(splat(_A), difference_a, splat(_B) * difference_b),
        fma(splat(_A2), sum_a, splat(_B2) * sum_b),
        fma(splat(_A**3), difference_a, fma(splat(_B**3), difference_b, m5)),
    )


@inline
def _load_6(array: Any, at: int, step: int) -> Any:
    return (
        load(array, at),
        load(array, at + step),
        load(array, at + 2 * step),
        load(array, at + 3 * step),
        load(array, at + 4 * step),
        load(array, at + 5 * step),
    )


@inline
def _store_4(array: Any, at: int, step: int, v: Any) -> None:
    store(array, at, v[0])
    store(array, at + step, v[1])
    store(array, at + 2 * step, v[2])
    store(array, at + 3 * step, v[3])


@inline
def _store_6(array: Any, at: int, step: int, v: Any) -> None:
    store(array, at, v[0])
    store(array, at + step, v[1])
    store(array, at + 2 * step, v[2])
    store(array, at + 3 * step, v[3])
    store(array, at + 4 * step, v[4])
    store(array, at + 5 * step, v[5])


@inline
def _transform_input(scratch: Any, window: int, column: int, row: int, at: int, step: int) -> None:
    """Bᵀ d B of WIDTH channels: windows' pixels `column` and `row` floats apart, results every `step` floats."""
    c0 = _input_1d(*_load_6(scratch, window, row))
    c1 = _input_1d(*_load_6(scratch, window + column, row))
    c2 = _input_1d(*_load_6(scratch, window + 2 * column, row))
    c3 = _input_1d(*_load_6(scratch, window + 3 * column, row))
    c4 = _input_1d(*_load_6(scratch, window + 4 * column, row))
    c5 = _input_1d(*_load_6(scratch, window + 5 * column, row))
    _store_6(scratch, at, step, _input_1d(c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]))
    _store_6(scratch, at + 6 * step, step, _input_1d(c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]))
    _store_6(scratch, at + 12 * step, step, _input_1d(c0[2], c1[2], c2[2], c3[2], c4[2], c5[2]))
    _store_6(scratch, at + 18 * step, step, _input_1d(c0[3], c1[3], c2[3], c3[3], c4[3], c5[3]))
    _store_6(scratch, at + 24 * step, step, _input_1d(c0[4], c1[4], c2[4], c3[4], c4[4], c5[4]))
    _store_6(scratch, at + 30 * step, step, _input_1d(c0[5], c1[5], c2[5], c3[5], c4[5], c5[5]))


@inline
def _transform_output(scratch: Any, sums: int, step: int, at: int, pixel: int) -> None:
    """Aᵀ m A of WIDTH outputs: sums every `step` floats, a pixel's result every `pixel` floats from `at` on."""
    c0 = _output_1d(*_load_6(scratch, sums, SIDE * step))
    c1 = _output_1d(*_load_6(scratch, sums + step, SIDE * step))
    c2 = _output_1d(*_load_6(scratch, sums + 2 * step, SIDE * step))
    c3 = _output_1d(*_load_6(scratch, sums + 3 * step, SIDE * step))
    c4 = _output_1d(*_load_6(scratch, sums + 4 * step, SIDE * step))
    c5 = _output_1d(*_load_6(scratch, sums + 5 * step, SIDE * step))
    _store_4(scratch, at, pixel, _output_1d(c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]))
    _store_4(scratch, at + 4 * pixel, pixel, _output_1d(c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]))
    _store_4(scratch, at + 8 * pixel, pixel, _output_1d(c0[2], c1[2], c2[2], c3[2], c4[2], c5[2]))
    _store_4(scratch, at + 12 * pixel, pixel, _output_1d(c0[3], c1[3], c2[3], c3[3], c4[3], c5[3]))


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int64,
        types.int64,
        types.int32[:, ::1],
        READING,
        types.int64,
        types.int64,
        types.float32[::1],
        WRITING,
        types.float32[::1],
    )
)
def convolve(
    counter: Any,
    items: int,
    batch: int,
    groups: int,
    tiles: Any,
    r: Any,
    top: int,
    left: int,
    weights: Any,
    w: Any,
    scratch: Any,
) -> None:
    """Take items (a batch of tiles × a group of output panels) until none is left."""
    inputs = r.first_channels + r.second_channels
    stride = -(-inputs // WIDTH) * WIDTH
    panels = -(-w.channels // PANEL)
    while True:
        item = next_item(counter)
        if item >= items:
            return
        first = item // groups * batch
        count = min(batch, len(tiles) - first)
        group = item % groups
        begin, end = panels * group // groups, panels * (group + 1) // groups
        outputs = (end - begin) * PANEL
        # where things lie in the scratch; a line more than needed between products keeps them in different sets
        window = 0
        inner = window + SIDE * (TILE * batch + 2) * stride + WIDTH
        inner_step = batch * stride + WIDTH
        sums = inner + PRODUCTS * inner_step
        sums_step = batch * outputs + WIDTH
        tile = sums + PRODUCTS * sums_step
        spare = tile + TILE * TILE * outputs

        t = 0
        while t < count:
            # neighbours in a row share their windows' columns: each pixel's prologue is computed once for them
            n, row, column = tiles[first + t, 0], tiles[first + t, 1], tiles[first + t, 2]
            run = 1
            while (
                t + run < count
                and tiles[first + t + run, 0] == n
                and tiles[first + t + run, 1] == row
                and tiles[first + t + run, 2] == column + run
            ):
                run += 1
            wide = TILE * run + 2
            read_window(r, n, row * TILE - top, column * TILE - left, SIDE, wide, scratch, window, stride)
            for i in range(run):
                for c in range(0, stride, WIDTH):
                    _transform_input(
                        scratch,
                        window + TILE * i * stride + c,
                        stride,
                        wide * stride,
                        inner + (t + i) * stride + c,
                        inner_step,
                    )
            t += run

        for p in range(PRODUCTS):
            multiply(
                scratch,
                inner + p * inner_step,
                stride,
                weights,
                (p * panels + begin) * inputs * PANEL,
                scratch,
                sums + p * sums_step,
                outputs,
                count,
                inputs,
                end - begin,
            )

        for t in range(count):
            for c in range(0, outputs, WIDTH):
                _transform_output(scratch, sums + t * outputs + c, sums_step, tile + c, outputs)
            n, row, column = tiles[first + t, 0], tiles[first + t, 1], tiles[first + t, 2]
            last = min(end * PANEL, w.channels)
            write_tile(w, n, row, column, begin * PANEL, last, tile, outputs, scratch, spare)
