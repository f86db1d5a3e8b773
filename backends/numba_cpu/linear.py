"""A dense layer on a few rows, such as a time embedding: each output is one dot product."""

from __future__ import annotations

from typing import Any

from numba import types

from .items import take_items
from .jit import kernel
from .simd import WIDTH, fma, load, load_first, total


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.float32[:, ::1],
        types.float32[:, ::1],
        types.float32[:, ::1],
    )
)
def linear(counter: Any, items: int, x: Any, weight: Any, out: Any) -> None:
    """`x @ weight.T`; items are rows of `weight`. Each dot product is a vector of partial sums, added halves first."""
    depth = x.shape[1]
    whole = depth - depth % WIDTH
    rows, values = x.reshape(-1), weight.reshape(-1)
    for o in take_items(counter, items):
        for m in range(len(x)):
            sums = load_first(rows, m * depth + whole, depth - whole)
            sums = sums * load_first(values, o * depth + whole, depth - whole)
            for k in range(0, whole, WIDTH):
                sums = fma(load(rows, m * depth + k), load(values, o * depth + k), sums)
            out[m, o] = total(sums)
