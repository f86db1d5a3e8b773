"""Winograd's transforms of windows, of sums and of kernels: the matrices, and their products with vectors of channels.

For m×m outputs of a 3×3 kernel g over a window d of (m + 2)×(m + 2) pixels (Lavin & Gray, arXiv 1509.09308):

    y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A

F(4×4, 3×3) interpolates at 0, ±3/4, ±3/2, ∞: over random data its error is half that of the textbook's 0, ±1, ±2, ∞.
What each row of G is usually divided by is a factor in Aᵀ instead: every number in G and Bᵀ is then a float32 exactly,
and a kernel takes 54 operations to transform instead of 81.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import inline
from .simd import fma, load, splat, store

_A, _B = 3 / 4, 3 / 2
_A2, _B2 = _A * _A, _B * _B

INPUT_4 = np.array(
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
_S, _SA, _SB = 1 / (_A2 * _B2), 1 / (2 * _A2 * (_A2 - _B2)), 1 / (2 * _B2 * (_B2 - _A2))
OUTPUT_4 = np.array(
    [
        [_S, _SA, _SA, _SB, _SB, 0],
        [0, _A * _SA, -_A * _SA, _B * _SB, -_B * _SB, 0],
        [0, _A2 * _SA, _A2 * _SA, _B2 * _SB, _B2 * _SB, 0],
        [0, _A**3 * _SA, -(_A**3) * _SA, _B**3 * _SB, -(_B**3) * _SB, 1],
    ]
)
"""Aᵀ, `[4, 6]`."""
KERNEL_4 = np.array([[1, 0, 0], [1, _A, _A2], [1, -_A, _A2], [1, _B, _B2], [1, -_B, _B2], [0, 0, 1]])
"""G, `[6, 3]`."""


@inline
def _input_4(d0: Any, d1: Any, d2: Any, d3: Any, d4: Any, d5: Any) -> Any:
    """`INPUT_4 @ d`, even and odd parts shared between ±."""
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
def _output_4(m0: Any, m1: Any, m2: Any, m3: Any, m4: Any, m5: Any) -> Any:
    """`OUTPUT_4 @ m`, sums and differences shared between ±."""
    sum_a, difference_a, sum_b, difference_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        fma(splat(_S), m0, fma(splat(_SA), sum_a, splat(_SB) * sum_b)),
        fma(splat(_A * _SA), difference_a, splat(_B * _SB) * difference_b),
        fma(splat(_A2 * _SA), sum_a, splat(_B2 * _SB) * sum_b),
        fma(splat(_A**3 * _SA), difference_a, fma(splat(_B**3 * _SB), difference_b, m5)),
    )


@inline
def _kernel_4(g0: Any, g1: Any, g2: Any) -> Any:
    """`KERNEL_4 @ g`, even parts shared between ±."""
    even_a, even_b = fma(splat(_A2), g2, g0), fma(splat(_B2), g2, g0)
    return (
        g0,
        fma(splat(_A), g1, even_a),
        fma(splat(-_A), g1, even_a),
        fma(splat(_B), g1, even_b),
        fma(splat(-_B), g1, even_b),
        g2,
    )


@inline
def _load_3(array: Any, at: int, step: int) -> Any:
    return load(array, at), load(array, at + step), load(array, at + 2 * step)


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
def transform_input_4(scratch: Any, window: int, column: int, row: int, at: int, step: int) -> None:
    """Bᵀ d B of a 6×6 window's WIDTH channels: pixels `column` and `row` floats apart, results every `step` floats."""
    c0 = _input_4(*_load_6(scratch, window, row))
    c1 = _input_4(*_load_6(scratch, window + column, row))
    c2 = _input_4(*_load_6(scratch, window + 2 * column, row))
    c3 = _input_4(*_load_6(scratch, window + 3 * column, row))
    c4 = _input_4(*_load_6(scratch, window + 4 * column, row))
    c5 = _input_4(*_load_6(scratch, window + 5 * column, row))
    _store_6(scratch, at, step, _input_4(c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]))
    _store_6(scratch, at + 6 * step, step, _input_4(c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]))
    _store_6(scratch, at + 12 * step, step, _input_4(c0[2], c1[2], c2[2], c3[2], c4[2], c5[2]))
    _store_6(scratch, at + 18 * step, step, _input_4(c0[3], c1[3], c2[3], c3[3], c4[3], c5[3]))
    _store_6(scratch, at + 24 * step, step, _input_4(c0[4], c1[4], c2[4], c3[4], c4[4], c5[4]))
    _store_6(scratch, at + 30 * step, step, _input_4(c0[5], c1[5], c2[5], c3[5], c4[5], c5[5]))


@inline
def transform_output_4(scratch: Any, sums: int, step: int, at: int, pixel: int) -> None:
    """Aᵀ m A, 4×4 pixels of WIDTH outputs: sums every `step` floats, a pixel's result every `pixel` floats."""
    c0 = _output_4(*_load_6(scratch, sums, 6 * step))
    c1 = _output_4(*_load_6(scratch, sums + step, 6 * step))
    c2 = _output_4(*_load_6(scratch, sums + 2 * step, 6 * step))
    c3 = _output_4(*_load_6(scratch, sums + 3 * step, 6 * step))
    c4 = _output_4(*_load_6(scratch, sums + 4 * step, 6 * step))
    c5 = _output_4(*_load_6(scratch, sums + 5 * step, 6 * step))
    _store_4(scratch, at, pixel, _output_4(c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]))
    _store_4(scratch, at + 4 * pixel, pixel, _output_4(c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]))
    _store_4(scratch, at + 8 * pixel, pixel, _output_4(c0[2], c1[2], c2[2], c3[2], c4[2], c5[2]))
    _store_4(scratch, at + 12 * pixel, pixel, _output_4(c0[3], c1[3], c2[3], c3[3], c4[3], c5[3]))


@inline
def transform_kernel_4(weights: Any, kernel: int, tap: int, scratch: Any, at: int, step: int) -> None:
    """G g Gᵀ of WIDTH outputs' kernels: taps `tap` floats apart, row by row; results every `step` floats."""
    c0 = _kernel_4(*_load_3(weights, kernel, 3 * tap))
    c1 = _kernel_4(*_load_3(weights, kernel + tap, 3 * tap))
    c2 = _kernel_4(*_load_3(weights, kernel + 2 * tap, 3 * tap))
    _store_6(scratch, at, step, _kernel_4(c0[0], c1[0], c2[0]))
    _store_6(scratch, at + 6 * step, step, _kernel_4(c0[1], c1[1], c2[1]))
    _store_6(scratch, at + 12 * step, step, _kernel_4(c0[2], c1[2], c2[2]))
    _store_6(scratch, at + 18 * step, step, _kernel_4(c0[3], c1[3], c2[3]))
    _store_6(scratch, at + 24 * step, step, _kernel_4(c0[4], c1[4], c2[4]))
    _store_6(scratch, at + 30 * step, step, _kernel_4(c0[5], c1[5], c2[5]))
