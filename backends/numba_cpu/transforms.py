"""Winograd's transforms of windows, of sums and of kernels: the matrices, and their products with vectors of channels.

For m×m outputs of a 3×3 kernel g over a window d of (m + 2)×(m + 2) pixels (Lavin & Gray, arXiv 1509.09308):

    y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A

F(4×4, 3×3) interpolates at 0, ±3/4, ±3/2, ∞: over random data its error is half that of the textbook's 0, ±1, ±2, ∞.
What each row of G is usually divided by is a factor in Aᵀ instead: every number in G and Bᵀ is then a float32 exactly,
and a kernel takes 54 operations to transform instead of 81.

Of a product of three matrices a row, or the two rows that share sums, is computed at a time, from columns that are
loaded again for each: twelve vectors between the two products fit a processor's registers. All 36 would not; they would
be written and read back.
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
def _input_end(d0: Any, d2: Any, d4: Any) -> Any:
    """The first row of `INPUT_4 @ d`; of d1, d3 and d5 the last."""
    return fma(splat(_A2 * _B2), d0, fma(splat(-(_A2 + _B2)), d2, d4))


@inline
def _input_pair(a: float, b: float, d1: Any, d2: Any, d3: Any, d4: Any) -> Any:
    """The two rows of `INPUT_4 @ d` that differ in the sign of `a`; `b` is the other of _A and _B."""
    square = splat(-b * b)
    even, odd = fma(square, d2, d4), fma(square, d1, d3)
    return fma(splat(a), odd, even), fma(splat(-a), odd, even)


@inline
def _input_4(d0: Any, d1: Any, d2: Any, d3: Any, d4: Any, d5: Any) -> Any:
    """`INPUT_4 @ d`."""
    a, b = _input_pair(_A, _B, d1, d2, d3, d4), _input_pair(_B, _A, d1, d2, d3, d4)
    return _input_end(d0, d2, d4), a[0], a[1], b[0], b[1], _input_end(d1, d3, d5)


@inline
def _output_even(m0: Any, m1: Any, m2: Any, m3: Any, m4: Any) -> Any:
    """Rows 0 and 2 of `OUTPUT_4 @ m`."""
    a, b = m1 + m2, m3 + m4
    return (
        fma(splat(_S), m0, fma(splat(_SA), a, splat(_SB) * b)),
        fma(splat(_A2 * _SA), a, splat(_B2 * _SB) * b),
    )


@inline
def _output_odd(m1: Any, m2: Any, m3: Any, m4: Any, m5: Any) -> Any:
    """Rows 1 and 3 of `OUTPUT_4 @ m`."""
    a, b = m1 - m2, m3 - m4
    return (
        fma(splat(_A * _SA), a, splat(_B * _SB) * b),
        fma(splat(_A**3 * _SA), a, fma(splat(_B**3 * _SB), b, m5)),
    )


@inline
def _output_4(m0: Any, m1: Any, m2: Any, m3: Any, m4: Any, m5: Any) -> Any:
    """`OUTPUT_4 @ m`."""
    even, odd = _output_even(m0, m1, m2, m3, m4), _output_odd(m1, m2, m3, m4, m5)
    return even[0], odd[0], even[1], odd[1]


@inline
def _kernel_pair(a: float, g0: Any, g1: Any, g2: Any) -> Any:
    """The two rows of `KERNEL_4 @ g` that differ in the sign of `a`."""
    even = fma(splat(a * a), g2, g0)
    return fma(splat(a), g1, even), fma(splat(-a), g1, even)


@inline
def _kernel_4(g0: Any, g1: Any, g2: Any) -> Any:
    """`KERNEL_4 @ g`."""
    a, b = _kernel_pair(_A, g0, g1, g2), _kernel_pair(_B, g0, g1, g2)
    return g0, a[0], a[1], b[0], b[1], g2


@inline
def _load_3(array: Any, at: int, step: int) -> Any:
    return load(array, at), load(array, at + step), load(array, at + 2 * step)


@inline
def _load_4(array: Any, at: int, step: int) -> Any:
    return load(array, at), load(array, at + step), load(array, at + 2 * step), load(array, at + 3 * step)


@inline
def _load_5(array: Any, at: int, step: int) -> Any:
    return (
        load(array, at),
        load(array, at + step),
        load(array, at + 2 * step),
        load(array, at + 3 * step),
        load(array, at + 4 * step),
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


# -- windows ---------------------------------------------------------------------------------------------


@inline
def _store_input_end(scratch: Any, window: int, column: int, row: int, at: int, step: int) -> None:
    """The first row of Bᵀ d B, of every second row of the window; from its second row on, the last."""
    c0 = _input_end(*_load_3(scratch, window, 2 * row))
    c1 = _input_end(*_load_3(scratch, window + column, 2 * row))
    c2 = _input_end(*_load_3(scratch, window + 2 * column, 2 * row))
    c3 = _input_end(*_load_3(scratch, window + 3 * column, 2 * row))
    c4 = _input_end(*_load_3(scratch, window + 4 * column, 2 * row))
    c5 = _input_end(*_load_3(scratch, window + 5 * column, 2 * row))
    _store_6(scratch, at, step, _input_4(c0, c1, c2, c3, c4, c5))


@inline
def _store_input_pair(
    a: float, b: float, scratch: Any, window: int, column: int, row: int, at: int, step: int
) -> None:
    """The two rows of Bᵀ d B that differ in the sign of `a`; `window` is the second row of the window."""
    c0 = _input_pair(a, b, *_load_4(scratch, window, row))
    c1 = _input_pair(a, b, *_load_4(scratch, window + column, row))
    c2 = _input_pair(a, b, *_load_4(scratch, window + 2 * column, row))
    c3 = _input_pair(a, b, *_load_4(scratch, window + 3 * column, row))
    c4 = _input_pair(a, b, *_load_4(scratch, window + 4 * column, row))
    c5 = _input_pair(a, b, *_load_4(scratch, window + 5 * column, row))
    _store_6(scratch, at, step, _input_4(c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]))
    _store_6(scratch, at + 6 * step, step, _input_4(c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]))


@inline
def transform_input_4(scratch: Any, window: int, column: int, row: int, at: int, step: int) -> None:
    """Bᵀ d B of a 6×6 window's WIDTH channels: pixels `column` and `row` floats apart, results every `step` floats."""
    _store_input_end(scratch, window, column, row, at, step)
    _store_input_pair(_A, _B, scratch, window + row, column, row, at + 6 * step, step)
    _store_input_pair(_B, _A, scratch, window + row, column, row, at + 18 * step, step)
    _store_input_end(scratch, window + row, column, row, at + 30 * step, step)


# -- sums ------------------------------------------------------------------------------------------------


@inline
def transform_output_4(scratch: Any, sums: int, step: int, at: int, pixel: int, line: int) -> None:
    """Aᵀ m A, 4×4 pixels of WIDTH outputs: sums every `step` floats, results every `pixel` and `line` floats."""
    c0 = _output_even(*_load_5(scratch, sums, 6 * step))
    c1 = _output_even(*_load_5(scratch, sums + step, 6 * step))
    c2 = _output_even(*_load_5(scratch, sums + 2 * step, 6 * step))
    c3 = _output_even(*_load_5(scratch, sums + 3 * step, 6 * step))
    c4 = _output_even(*_load_5(scratch, sums + 4 * step, 6 * step))
    c5 = _output_even(*_load_5(scratch, sums + 5 * step, 6 * step))
    _store_4(scratch, at, pixel, _output_4(c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]))
    _store_4(scratch, at + 2 * line, pixel, _output_4(c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]))
    c0 = _output_odd(*_load_5(scratch, sums + 6 * step, 6 * step))
    c1 = _output_odd(*_load_5(scratch, sums + 7 * step, 6 * step))
    c2 = _output_odd(*_load_5(scratch, sums + 8 * step, 6 * step))
    c3 = _output_odd(*_load_5(scratch, sums + 9 * step, 6 * step))
    c4 = _output_odd(*_load_5(scratch, sums + 10 * step, 6 * step))
    c5 = _output_odd(*_load_5(scratch, sums + 11 * step, 6 * step))
    _store_4(scratch, at + line, pixel, _output_4(c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]))
    _store_4(scratch, at + 3 * line, pixel, _output_4(c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]))


# -- kernels ---------------------------------------------------------------------------------------------


@inline
def _store_kernel_pair(
    a: float, weights: Any, kernel: int, tap: int, scratch: Any, at: int, step: int
) -> None:
    """The two rows of G g Gᵀ that differ in the sign of `a`."""
    c0 = _kernel_pair(a, *_load_3(weights, kernel, 3 * tap))
    c1 = _kernel_pair(a, *_load_3(weights, kernel + tap, 3 * tap))
    c2 = _kernel_pair(a, *_load_3(weights, kernel + 2 * tap, 3 * tap))
    _store_6(scratch, at, step, _kernel_4(c0[0], c1[0], c2[0]))
    _store_6(scratch, at + 6 * step, step, _kernel_4(c0[1], c1[1], c2[1]))


@inline
def transform_kernel_4(weights: Any, kernel: int, tap: int, scratch: Any, at: int, step: int) -> None:
    """G g Gᵀ of WIDTH outputs' kernels: taps `tap` floats apart, row by row; results every `step` floats."""
    _store_6(scratch, at, step, _kernel_4(*_load_3(weights, kernel, tap)))
    _store_kernel_pair(_A, weights, kernel, tap, scratch, at + 6 * step, step)
    _store_kernel_pair(_B, weights, kernel, tap, scratch, at + 18 * step, step)
    _store_6(scratch, at + 30 * step, step, _kernel_4(*_load_3(weights, kernel + 6 * tap, tap)))
