"""A dense layer on a few rows, such as a time embedding: each output is one dot product.

No panels and no blocks of rows (`gemm.py`): with one or two rows, the weights are read once as they are stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.types import float32, int64, void

from ..interface import Array
from .items import COUNTER, take_items
from .jit import kernel
from .launch import Launcher
from .simd import WIDTH, fma, load, load_first, total

_matrix = float32[:, ::1]


@kernel(void(COUNTER, int64, _matrix, _matrix, _matrix))
def multiply(counter: Any, items: int, x: Any, weight: Any, out: Any) -> None:
    """`out = x @ weight.T`: `[M, I]`, `[O, I]` → `[M, O]`; items are rows of `weight`.

    Each dot product is a vector of partial sums, added halves first.
    """
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


def launch(launcher: Launcher, x: Array, weight: Array) -> Array:
    """`x @ weight.T`, float32 `[M, O]`."""
    out = np.empty((len(x), len(weight)), np.float32)
    args = (np.ascontiguousarray(x, np.float32), np.ascontiguousarray(weight, np.float32), out)
    launcher.run(multiply, len(weight), args, 0, 2.0 * x.size * len(weight))
    return out
