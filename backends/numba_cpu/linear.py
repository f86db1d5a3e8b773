"""A dense layer on a few rows, such as a time embedding: each output is one dot product.

No panels (`gemm.py`): with one or two rows, the weights are read once as they are stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.types import float32, int64, void

from ..interface import Array, Host
from .arrays import flat
from .handover import shared
from .items import COUNTER, take_items
from .jit import inline
from .launch import Launcher
from .packing import BFLOAT16, FLOAT16, FLOAT32, PACKED, Packed, store_as
from .reading import NO_FLOATS
from .simd import WIDTH, fma, load, load_first, load_some, splat, total, widen
from .sizes import ceil_div, whole_vectors

_matrix = float32[:, ::1]

ROWS = 8
"""Rows of x taken together: each weight is loaded once for them."""
OUTPUTS = 16
"""Outputs of an item: each row of x is read once for them."""


@inline
def _weights(weights: Any, at: int, count: int) -> Any:
    """`count` ≤ WIDTH weights as floats; lanes past them are 0, or behind the row's end in 16 bits."""
    if weights.stored == FLOAT32:
        return load_some(weights.floats, at, count)
    return widen(weights.halves, at, weights.stored == BFLOAT16)


@inline
def _one(x: Any, m: int, depth: int, weights: Any, w: int, out: Any, o: int) -> None:
    """`out[m, o]`, the product of row m, flat `x`, with the weights from `w` on: partial sums, added halves first."""
    whole, row = depth - depth % WIDTH, m * depth
    sums = splat(0.0)
    if whole < depth:
        sums = load_first(x, row + whole, depth - whole) * _weights(weights, w + whole, depth - whole)
    for k in range(0, whole, WIDTH):
        sums = fma(load(x, row + k), _weights(weights, w + k, WIDTH), sums)
    out[m, o] = total(sums)


@inline
def _four(x: Any, m: int, depth: int, weights: Any, w: int, step: int, out: Any, o: int) -> None:
    """`_one` of four outputs from o on, with the same bits: their weights are `step` apart."""
    whole, row = depth - depth % WIDTH, m * depth
    s0, s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    if whole < depth:
        rest, at = depth - whole, w + whole
        v = load_first(x, row + whole, rest)
        s0, s1 = v * _weights(weights, at, rest), v * _weights(weights, at + step, rest)
        s2, s3 = v * _weights(weights, at + 2 * step, rest), v * _weights(weights, at + 3 * step, rest)
    for k in range(0, whole, WIDTH):
        v, at = load(x, row + k), w + k
        s0, s1 = fma(v, _weights(weights, at, WIDTH), s0), fma(v, _weights(weights, at + step, WIDTH), s1)
        s2 = fma(v, _weights(weights, at + 2 * step, WIDTH), s2)
        s3 = fma(v, _weights(weights, at + 3 * step, WIDTH), s3)
    out[m, o], out[m, o + 1], out[m, o + 2], out[m, o + 3] = total(s0), total(s1), total(s2), total(s3)


@inline
def _eight(x: Any, m: int, depth: int, weights: Any, w: int, out: Any, o: int) -> None:
    """`_one` of ROWS rows from m on, with the same bits."""
    whole, row = depth - depth % WIDTH, m * depth
    s0, s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    s4, s5, s6, s7 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    if whole < depth:
        rest, at = depth - whole, row + whole
        v = _weights(weights, w + whole, rest)
        s0, s1 = load_first(x, at, rest) * v, load_first(x, at + depth, rest) * v
        s2, s3 = load_first(x, at + 2 * depth, rest) * v, load_first(x, at + 3 * depth, rest) * v
        s4, s5 = load_first(x, at + 4 * depth, rest) * v, load_first(x, at + 5 * depth, rest) * v
        s6, s7 = load_first(x, at + 6 * depth, rest) * v, load_first(x, at + 7 * depth, rest) * v
    for k in range(0, whole, WIDTH):
        v, at = _weights(weights, w + k, WIDTH), row + k
        s0, s1 = fma(load(x, at), v, s0), fma(load(x, at + depth), v, s1)
        s2, s3 = fma(load(x, at + 2 * depth), v, s2), fma(load(x, at + 3 * depth), v, s3)
        s4, s5 = fma(load(x, at + 4 * depth), v, s4), fma(load(x, at + 5 * depth), v, s5)
        s6, s7 = fma(load(x, at + 6 * depth), v, s6), fma(load(x, at + 7 * depth), v, s7)
    out[m, o], out[m + 1, o], out[m + 2, o], out[m + 3, o] = total(s0), total(s1), total(s2), total(s3)
    out[m + 4, o], out[m + 5, o], out[m + 6, o], out[m + 7, o] = total(s4), total(s5), total(s6), total(s7)


@shared(void(COUNTER, int64, float32[::1], int64, PACKED, int64, _matrix))
def multiply(counter: Any, items: int, x: Any, depth: int, weights: Any, step: int, out: Any) -> None:
    """`out = x @ weight.T`: `[M, I]`, `[O, I]` → `[M, O]`; items are OUTPUTS outputs.

    `x` is flat, `depth` is I; a row of weights begins every `step` weights.
    """
    rows, outputs = out.shape
    for item in take_items(counter, items):
        first, last = item * OUTPUTS, min((item + 1) * OUTPUTS, outputs)
        whole = rows - rows % ROWS
        for m in range(0, whole, ROWS):
            for o in range(first, last):
                _eight(x, m, depth, weights, o * step, out, o)
        for m in range(whole, rows):
            fours = last - (last - first) % 4
            for o in range(first, fours, 4):
                _four(x, m, depth, weights, o * step, step, out, o)
            for o in range(fours, last):
                _one(x, m, depth, weights, o * step, out, o)


def stored_as(weight: Host, stored: str) -> Array:
    """A weight matrix `[O, I]` in its stored type: float32; or 16 bits, `[O, I in whole vectors]`, zeros behind a row.

    bfloat16, which NumPy lacks, is uint16. Raises BackendError where a value is too large for that type.
    """
    if stored == "float32":
        return np.ascontiguousarray(weight, np.float32)
    outputs, inputs = weight.shape
    padded = np.zeros((outputs, whole_vectors(inputs)), np.float32)
    padded[:, :inputs] = weight
    halves = store_as(padded, stored).halves
    return halves.view(np.float16) if stored == "float16" else halves


def _packed(weight: Array) -> Packed:
    """A matrix from `stored_as`, or any of float32, as kernels take it."""
    if weight.dtype in (np.float16, np.uint16):
        stored = FLOAT16 if weight.dtype == np.float16 else BFLOAT16
        return Packed(NO_FLOATS, weight.ravel().view(np.uint16), stored)
    return Packed(flat(np.ascontiguousarray(weight, np.float32)), np.zeros(0, np.uint16), FLOAT32)


def launch(launcher: Launcher, x: Array, weight: Array) -> Array:
    """`x @ weight.T`, float32 `[M, O]`; `weight` comes from `stored_as`, or is any matrix of float32."""
    out = np.empty((len(x), len(weight)), np.float32)
    rows = np.ascontiguousarray(x, np.float32)
    args = (rows.ravel(), x.shape[1], _packed(weight), weight.shape[1], out)
    launcher.run(multiply, ceil_div(len(weight), OUTPUTS), args, 0, 2.0 * x.size * len(weight))
    return out
