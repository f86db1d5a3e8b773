"""Norms of channels over pixels: moments come in, the scale and the shift of a `Source` come out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.types import float32, float64, int64, void

from ..interface import Array
from .arrays import contiguous, flat
from .handover import shared
from .items import COUNTER, take_items
from .jit import inline
from .launch import Launcher
from .reading import NO_FLOATS

LARGEST_GROUP = 128
"""Channels of a group that NumPy adds up without halving it first."""


@inline
def _term(values: Any, n: int, c: int, about: float, power: int) -> Any:
    """A channel's value, or with `power` 2 its squared distance from `about`, as a double."""
    v = np.float64(values[n, c])
    return (v - about) * (v - about) if power == 2 else v


@inline
def _mean(values: Any, n: int, first: int, count: int, about: float, power: int) -> Any:
    """The mean of `count` ≤ LARGEST_GROUP terms, added in NumPy's order: `norm_affine` has the bits of the base's."""
    if count < 8:
        sums = 0.0
        for c in range(first, first + count):
            sums += _term(values, n, c, about, power)
        return sums / count
    a, b = _term(values, n, first, about, power), _term(values, n, first + 1, about, power)
    c, d = _term(values, n, first + 2, about, power), _term(values, n, first + 3, about, power)
    e, f = _term(values, n, first + 4, about, power), _term(values, n, first + 5, about, power)
    g, h = _term(values, n, first + 6, about, power), _term(values, n, first + 7, about, power)
    whole = first + count - count % 8
    for i in range(first + 8, whole, 8):
        a, b = a + _term(values, n, i, about, power), b + _term(values, n, i + 1, about, power)
        c, d = c + _term(values, n, i + 2, about, power), d + _term(values, n, i + 3, about, power)
        e, f = e + _term(values, n, i + 4, about, power), f + _term(values, n, i + 5, about, power)
        g, h = g + _term(values, n, i + 6, about, power), h + _term(values, n, i + 7, about, power)
    sums = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, first + count):
        sums += _term(values, n, i, about, power)
    return sums / count


_ROWS, _ROW = float32[:, ::1], float32[::1]


@shared(void(COUNTER, int64, _ROWS, _ROWS, int64, float64, _ROW, _ROW, _ROWS, float32[:, :, ::1]))
def affine(
    counter: Any,
    items: int,
    means: Any,
    variances: Any,
    groups: int,
    eps: float,
    weight: Any,
    bias: Any,
    film: Any,
    out: Any,
) -> None:
    """Scale and shift, `out` `[2, N, C]`, by the formula of `Backend.norm_affine`; what is absent is empty.

    Items are samples.
    """
    channels = out.shape[2]
    each = channels // groups
    for n in take_items(counter, items):
        m, f = min(n, len(means) - 1), min(n, len(film) - 1)
        for g in range(groups):
            mean = _mean(means, m, g * each, each, 0.0, 1)
            spread = _mean(variances, m, g * each, each, 0.0, 1) + _mean(means, m, g * each, each, mean, 2)
            deviation = np.sqrt(spread + eps)
            for c in range(g * each, (g + 1) * each):
                scale = (np.float64(weight[c]) if len(weight) else 1.0) / deviation
                shift = np.float64(bias[c]) - mean * scale if len(bias) else -mean * scale
                if len(film):
                    gain = 1.0 + np.float64(film[f, c])
                    scale, shift = scale * gain, shift * gain + np.float64(film[f, channels + c])
                out[0, n, c], out[1, n, c] = scale, shift


_NO_ROWS = np.zeros((0, 0), np.float32)


def scale_and_shift(
    launcher: Launcher,
    means: Array,
    variances: Array,
    *,
    groups: int,
    eps: float,
    weight: Array | None,
    bias: Array | None,
    film: Array | None,
) -> tuple[Array, Array]:
    """`Backend.norm_affine` of float32 moments in groups of at most LARGEST_GROUP channels."""
    film = _NO_ROWS if film is None else contiguous(film, "f")
    out: Array = np.empty((2, max(len(means), len(film)), means.shape[1]), np.float32)
    args = (
        contiguous(means, "f"),
        contiguous(variances, "f"),
        groups,
        eps,
        NO_FLOATS if weight is None else flat(weight),
        NO_FLOATS if bias is None else flat(bias),
        film,
        out,
    )
    launcher.queue(affine, out.shape[1], args, 0, 32.0 * out.size)
    return out[0], out[1]
