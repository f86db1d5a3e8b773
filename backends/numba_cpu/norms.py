"""Norms: layer norm over a pixel's channels, and the norms of channels over pixels as a scale and a shift."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.types import float32, float64, int64, void

from ..interface import Array, Tiles
from .arrays import flat
from .items import COUNTER, TILES, take_tiles
from .jit import compile_all, inline, kernel
from .launch import Launcher
from .reading import NO_FLOATS, READING, Reading, read_tile
from .regions import OVERRUN, SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH, fma, load, load_first, splat, store, store_first, total
from .writing import PIXELS, WRITING, Writing, residual_floats, write_tile

# -- layer norm ------------------------------------------------------------------------------------------


class LayerNormLayout(NamedTuple):
    """A thread's scratch for `layer_norm`.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | values | [TILE, TILE, C] + OVERRUN | gather, `_normalise_pixel` | scatter |
    | vector | [WIDTH] | `_normalise_pixel` | `_normalise_pixel` |
    | residual | as `write_tile` takes it | scatter | scatter |
    """

    values: int
    vector: int
    residual: int
    size: int


LAYER_NORM_LAYOUT = layout_type(LayerNormLayout)


@remembered
def layer_norm_layout(channels: int, residual: int) -> LayerNormLayout:
    """The scratch for pixels of so many channels, with `residual` floats for the residual."""
    regions = Regions()
    return LayerNormLayout(
        values=regions.add(PIXELS * channels + OVERRUN),
        vector=regions.add(WIDTH),
        residual=regions.add(residual),
        size=regions.size,
    )


@inline
def _normalise_pixel(
    channels: int, weight: Any, bias: Any, eps: float, scratch: Any, at: int, vector: int
) -> None:
    """`(v - mean) / sqrt(mean((v - mean)²) + eps) * weight + bias` of the pixel `scratch[at:]`, in place."""
    whole = channels - channels % WIDTH
    rest = channels - whole
    share = np.float32(1.0) / np.float32(channels)
    sums = load_first(scratch, at + whole, rest)
    for c in range(0, whole, WIDTH):
        sums = sums + load(scratch, at + c)
    mean = splat(total(sums) * share)
    # the lanes past the last channel would add mean²: they become 0 in memory
    store(scratch, vector, splat(0.0))
    store_first(scratch, vector, load_first(scratch, at + whole, rest) - mean, rest)
    off = load(scratch, vector)
    squares = off * off
    for c in range(0, whole, WIDTH):
        off = load(scratch, at + c) - mean
        squares = fma(off, off, squares)
    scale = splat(np.float32(1.0) / np.sqrt(total(squares) * share + eps))
    for c in range(0, whole, WIDTH):
        off = (load(scratch, at + c) - mean) * scale
        store(scratch, at + c, fma(off, load(weight, c), load(bias, c)))
    off = (load_first(scratch, at + whole, rest) - mean) * scale
    v = fma(off, load_first(weight, whole, rest), load_first(bias, whole, rest))
    store_first(scratch, at + whole, v, rest)


@kernel(
    void(
        COUNTER,
        int64,
        int64,
        TILES,
        READING,
        float32[::1],
        float32[::1],
        float32,
        WRITING,
        LAYER_NORM_LAYOUT,
        SCRATCH,
    )
)
def layer_norm(
    counter: Any,
    items: int,
    batch: int,
    tiles: Any,
    source: Any,
    weight: Any,
    bias: Any,
    eps: float,
    out: Any,
    at: Any,
    scratch: Any,
) -> None:
    """`out[tiles] = (v - mean) / sqrt(var + eps) * weight + bias` over a pixel's channels; items: batches of tiles."""
    channels = out.channels
    for t in take_tiles(counter, items, batch, len(tiles)):
        read_tile(source, tiles, t, scratch, at.values)
        for i in range(PIXELS):
            _normalise_pixel(channels, weight, bias, eps, scratch, at.values + i * channels, at.vector)
        write_tile(out, tiles, t, 0, channels, scratch, at.values, channels, at.residual)


def launch_layer_norm(
    launcher: Launcher,
    canvas: Array,
    tiles: Tiles,
    source: Reading,
    out: Writing,
    *,
    weight: Array,
    bias: Array,
    eps: float,
) -> None:
    """Run `layer_norm` for `tiles` of `canvas`."""
    at = layer_norm_layout(out.channels, residual_floats(out))
    args = (source, flat(weight), flat(bias), np.float32(eps), out, at)
    launcher.over_tiles(layer_norm, canvas, tiles, args, at.size)


# -- a norm as scale and shift ---------------------------------------------------------------------------

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


@kernel(void(_ROWS, _ROWS, int64, float64, _ROW, _ROW, _ROWS, float32[:, :, ::1]))
def affine(
    means: Any, variances: Any, groups: int, eps: float, weight: Any, bias: Any, film: Any, out: Any
) -> None:
    """Scale and shift, `out` `[2, N, C]`, by the formula of `Backend.norm_affine`; what is absent is empty."""
    _, samples, channels = out.shape
    each = channels // groups
    for n in range(samples):
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
    compile_all()
    film = _NO_ROWS if film is None else np.ascontiguousarray(film, np.float32)
    out: Array = np.empty((2, max(len(means), len(film)), means.shape[1]), np.float32)
    affine(
        np.ascontiguousarray(means),
        np.ascontiguousarray(variances),
        groups,
        eps,
        NO_FLOATS if weight is None else flat(weight),
        NO_FLOATS if bias is None else flat(bias),
        film,
        out,
    )
    return out[0], out[1]
