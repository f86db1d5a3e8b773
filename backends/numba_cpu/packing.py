"""Packed weights: a matrix of weights comes in, panels come out, in 32 or 16 bits; and products by them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from ..interface import BackendError
from .gemm import DEPTH, PANEL, multiply_rows
from .jit import inline
from .simd import WIDTH, store, widen

FLOAT32, FLOAT16, BFLOAT16 = range(3)
STORED = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}
"""How packed weights may be stored, as the kernels number it."""
WIDENED = DEPTH * PANEL
"""Floats of a panel's piece, which half as wide weights are widened into before they are multiplied."""


class Packed(NamedTuple):
    """Packed weights as kernels take them."""

    floats: Any
    """float32, flat; empty when they are stored in 16 bits."""
    halves: Any
    """uint16, flat: the bits of float16 or bfloat16."""
    stored: int


PACKED = types.NamedTuple([types.float32[::1], types.uint16[::1], types.int64], Packed)
"""Numba's type of a `Packed`."""


def store_as(values: np.ndarray[Any, Any], stored: str) -> Packed:
    """Packed float32 values, rounded to the nearest of their stored type (ties to even).

    Raises BackendError where one is too large for that type.
    """
    if stored == "float32":
        return Packed(values, np.zeros(0, np.uint16), FLOAT32)
    if stored == "float16":
        with np.errstate(over="ignore"):  # found below
            halves = values.astype(np.float16).view(np.uint16)
        infinite = 0x7C00
    else:
        bits = values.view(np.uint32)
        halves = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        infinite = 0x7F80
    beyond = ((halves & infinite) == infinite) & np.isfinite(values)
    if beyond.any():
        largest = np.abs(values[beyond]).max()
        raise BackendError(
            f"a weight as the kernels need it is {largest:.4g}, too large for {stored}; store weights as float32"
            + (" or bfloat16" if stored == "float16" else "")
        )
    return Packed(np.zeros(0, np.float32), halves, STORED[stored])


@inline
def multiply_piece(
    inputs: Any,
    input_at: int,
    rows_at: Any,
    weights: Any,
    weight_at: int,
    sums: Any,
    sum_at: int,
    sum_stride: int,
    rows: int,
    steps: int,
    resume: int,
    spare: int,
) -> None:
    """Some ≤ DEPTH steps of a product with one panel, however its weights are stored: `multiply_rows` by them.

    Row m of the inputs begins at `input_at` plus m times `rows_at`, or plus `rows_at[m]` where that is an array.
    `sums[spare:]` takes WIDENED floats.
    """
    if weights.stored == FLOAT32:
        w = weights.floats
        multiply_rows(inputs, input_at, rows_at, w, weight_at, sums, sum_at, sum_stride, rows, steps, resume)
    else:
        for i in range(0, steps * PANEL, WIDTH):
            store(sums, spare + i, widen(weights.halves, weight_at + i, weights.stored == BFLOAT16))
        multiply_rows(inputs, input_at, rows_at, sums, spare, sums, sum_at, sum_stride, rows, steps, resume)


@inline
def multiply_packed(
    inputs: Any,
    input_at: int,
    input_stride: int,
    weights: Any,
    weight_at: int,
    sums: Any,
    sum_at: int,
    sum_stride: int,
    rows: int,
    depth: int,
    panels: int,
    spare: int,
) -> None:
    """`multiply` by packed weights however they are stored; `sums[spare:]` takes WIDENED floats."""
    for panel in range(panels):
        for first in range(0, depth, DEPTH):
            steps = min(DEPTH, depth - first)
            w = weight_at + (panel * depth + first) * PANEL
            a, c = input_at + first, sum_at + panel * PANEL
            multiply_piece(
                inputs, a, input_stride, weights, w, sums, c, sum_stride, rows, steps, first, spare
            )


def pack(weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`[..., depth, O]` → flat `[..., panels, depth, PANEL]`: a panel's outputs of one k side by side, then the next k.

    Outputs are filled up with zeros to whole panels.
    """
    *outer, depth, outputs = weights.shape
    panels = -(-outputs // PANEL)
    packed = np.zeros((*outer, panels, depth, PANEL), np.float32)
    for panel in range(panels):
        columns = weights[..., panel * PANEL : (panel + 1) * PANEL]
        packed[..., panel, :, : columns.shape[-1]] = columns
    return packed.reshape(-1)
