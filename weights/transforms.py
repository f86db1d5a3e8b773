"""Source tensors of one parameter in, the parameter out: the operations of key maps beside renaming."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError

Array = NDArray[np.float32]
Shape = tuple[int, ...]


class ShapeMismatch(ValueError):
    """The sources of one parameter do not fit together; the message gives the reason."""


@dataclass(frozen=True)
class Transform:
    """One operation: the parts that it needs, the shape of its result, and the computation."""

    parts: tuple[str, ...]
    shape: Callable[[Mapping[str, Shape]], Shape]
    apply: Callable[[Mapping[str, Array]], Array]
    checks: bool = False
    """Whether the computation may fail, by the values."""
    by_rows: bool = False
    """Whether the result's rows are distributed to several parameters in turn."""
    may_be_longer: bool = False
    """Of rows that are distributed: whether more than the parameters take are left out."""


def _spectral_shape(shapes: Mapping[str, Shape]) -> Shape:
    weight = shapes["orig"]
    rows, columns = (weight[0], math.prod(weight[1:])) if weight else (0, 0)
    if shapes["u"] != (rows,) or shapes["v"] != (columns,):
        raise ShapeMismatch(
            f"weight_orig {list(weight)} needs u [{rows}] and v [{columns}],"
            f" the checkpoint has {list(shapes['u'])} and {list(shapes['v'])}"
        )
    return weight


def fold_spectral_norm(parts: Mapping[str, Array]) -> Array:
    """W / sigma with sigma = uᵀ W v, W as the matrix [outputs, the rest], as PyTorch computes it in evaluation.

    u and v are the stored ones: power iteration belongs to training (torch.nn.utils.spectral_norm).
    """
    weight = parts["orig"]
    matrix = weight.reshape(weight.shape[0], -1)
    # In float64: sigma scales every weight of the layer, and its sum may have 10,000 terms.
    with np.errstate(
        all="ignore"
    ):  # a damaged file may hold any values: a sigma that is not finite is refused below
        v = parts["v"].astype(np.float64)
        products = np.array([np.dot(row.astype(np.float64), v) for row in matrix])
        sigma = float(np.dot(parts["u"].astype(np.float64), products))
    if not math.isfinite(sigma) or abs(sigma) < 1e-30:
        raise CheckpointError(f"its spectral norm is {sigma}, which cannot be divided by")
    folded: Array = weight / np.float32(sigma)
    return folded


def _stacked_shape(shapes: Mapping[str, Shape]) -> Shape:
    first, second = shapes["first"], shapes["second"]
    if not first or not second or first[1:] != second[1:]:
        raise ShapeMismatch(f"{list(first)} and {list(second)} cannot be stacked")
    return (first[0] + second[0], *first[1:])


def _pointwise_shape(shapes: Mapping[str, Shape]) -> Shape:
    weight = shapes["value"]
    if len(weight) == 1:
        return weight
    if not weight or any(side != 1 for side in weight[2:]):
        raise ShapeMismatch(f"{list(weight)} is no matrix over channels")
    return (*weight[:2], 1, 1)


def _pointwise(parts: Mapping[str, Array]) -> Array:
    weight = parts["value"]
    return weight if weight.ndim == 1 else weight.reshape(*weight.shape[:2], 1, 1)


def _stack(parts: Mapping[str, Array]) -> Array:
    return np.concatenate([parts["first"], parts["second"]])


TRANSFORMS: dict[str, Transform] = {
    "copy": Transform(("value",), lambda shapes: shapes["value"], lambda parts: parts["value"]),
    "split": Transform(
        ("value",), lambda shapes: shapes["value"], lambda parts: parts["value"], by_rows=True
    ),
    # As many rows as the parameter has: more are not needed.
    "leading": Transform(
        ("value",),
        lambda shapes: shapes["value"],
        lambda parts: parts["value"],
        by_rows=True,
        may_be_longer=True,
    ),
    # Two tensors' rows, one below the other.
    "stack": Transform(("first", "second"), _stacked_shape, _stack),
    # A matrix over channels, as a 1×1 convolution, or its bias.
    "pointwise": Transform(("value",), _pointwise_shape, _pointwise),
    "split_pointwise": Transform(("value",), _pointwise_shape, _pointwise, by_rows=True),
    "spectral": Transform(("orig", "u", "v"), _spectral_shape, fold_spectral_norm, checks=True),
}
