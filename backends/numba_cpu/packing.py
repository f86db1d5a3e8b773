"""Packed weights: a matrix of weights comes in, panels of 32 or 16 bits come out, and products with them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba.types import NamedTuple as NamedTupleType
from numba.types import float32, int64, uint16

from ..interface import BackendError
from .arrays import aligned
from .gemm import DEPTH, LINE, PANEL, multiply_pairs, multiply_rows
from .jit import inline
from .simd import WIDTH, fetch, store, widen
from .sizes import ceil_div
from .target import TARGET

FLOAT32, FLOAT16, BFLOAT16, PAIRS = range(4)
STORED = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}
"""Types that packed weights may be stored in -> the number that kernels know them by."""
PAIRED = bool(TARGET.dot)
"""Whether any kernel takes PAIRS: without, their product is not compiled."""
WIDENED = DEPTH * PANEL
"""Floats of the scratch that a panel's piece of 16-bit weights is widened into before it is multiplied."""


class Packed(NamedTuple):
    """Packed weights, as kernels take them."""

    floats: Any
    """float32, flat; of PAIRS each holds two bfloat16, of one output and two k; empty where `halves` are not."""
    halves: Any
    """uint16, flat: the bits of float16 or bfloat16; empty where they are stored in 32 bits."""
    stored: int


PACKED = NamedTupleType([float32[::1], uint16[::1], int64], Packed)
"""Numba's type of a `Packed`."""


def store_as(
    values: np.ndarray[Any, Any], stored: str, *, instead: str = "store weights as float32"
) -> Packed:
    """Packed float32 values as `Packed`, rounded to the nearest value of the stored type (ties to even).

    Raises BackendError where a value is too large for that type; `instead` says what to do.
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
            f"a weight of {largest:.4g} is too large for {stored}; {instead}"
            + (" or bfloat16" if stored == "float16" else "")
        )
    kept = aligned(halves.size, "uint16").reshape(halves.shape)
    kept[...] = halves
    return Packed(np.zeros(0, np.float32), kept, STORED[stored])


def store_as_pairs(values: np.ndarray[Any, Any]) -> Packed:
    """Packed float32 values of an even depth, flat `[depth, PANEL]` of all panels, as PAIRS, flat `[depth / 2, PANEL]`.

    Raises BackendError where a value is too large for bfloat16.
    """
    rounded = store_as(values, "bfloat16", instead="leave precision at float32")
    halves = rounded.halves.reshape(-1, 2, PANEL)
    pairs = aligned(values.size // 2, "float32")
    pairs.view(np.uint16).reshape(-1, PANEL, 2)[...] = halves.transpose(0, 2, 1)
    return Packed(pairs, np.zeros(0, np.uint16), PAIRS)


@inline
def widen_piece(weights: Any, at: int, scratch: Any, to: int, count: int) -> None:
    """`count` floats, whole vectors, to `scratch[to:]`, from weights that are stored in 16 bits."""
    for i in range(0, count, WIDTH):
        store(scratch, to + i, widen(weights.halves, at + i, weights.stored == BFLOAT16))


@inline
def fetch_packed(weights: Any, at: int, part: int, parts: int, count: int) -> None:
    """Prefetch one of `parts` parts of `count` weights, from weight `at` on; they may lie past the end."""
    count //= parts
    first = at + part * count
    if weights.stored == FLOAT32:
        for i in range(0, count, LINE):
            fetch(weights.floats, first + i)
    else:
        for i in range(0, count, 2 * LINE):
            fetch(weights.halves, first + i)


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
    """`multiply_rows` with packed weights, for at most DEPTH steps; `sums[spare:]` takes WIDENED floats.

    With PAIRS a step is a pair, and `inputs` are pairs too.

    Row m of the inputs begins at `input_at` plus m times `rows_at`, or plus `rows_at[m]` where that is an array.
    """
    w = weights.floats
    if weights.stored == FLOAT32:
        multiply_rows(inputs, input_at, rows_at, w, weight_at, sums, sum_at, sum_stride, rows, steps, resume)
    elif PAIRED and weights.stored == PAIRS:
        multiply_pairs(inputs, input_at, rows_at, w, weight_at, sums, sum_at, sum_stride, rows, steps, resume)
    else:
        widen_piece(weights, weight_at, sums, spare, steps * PANEL)
        multiply_rows(inputs, input_at, rows_at, sums, spare, sums, sum_at, sum_stride, rows, steps, resume)


def pack(weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`[..., depth, O]` → flat `[..., panels, depth, PANEL]`: a panel's outputs of one k side by side, then the next k.

    Outputs are filled with zeros to whole panels.
    """
    *outer, depth, outputs = weights.shape
    panels = ceil_div(outputs, PANEL)
    flat = aligned(math.prod(outer) * panels * depth * PANEL, "float32")
    packed: np.ndarray[Any, Any] = flat.reshape(*outer, panels, depth, PANEL)
    for panel in range(panels):
        columns = weights[..., panel * PANEL : (panel + 1) * PANEL]
        packed[..., panel, :, : columns.shape[-1]] = columns
    return packed.reshape(-1)
