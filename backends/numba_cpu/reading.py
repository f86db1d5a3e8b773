"""Gather: a `Reading` (a `Source` as kernels take it) and pixel positions come in, values after the prologue come out.

Pixels outside the image are 0 after the prologue.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.types import NamedTuple as NamedTupleType
from numba.types import float32, int32, int64

from ..interface import LEAKY_SLOPE, QUICK_GELU_SLOPE, TILE, Source
from .arrays import flat
from .jit import inline
from .simd import (
    WIDTH,
    exponential,
    fma,
    load,
    load_first,
    magnitude,
    splat,
    store,
    store_first,
    total,
    where_below,
)

IDENTITY, RELU, LEAKY_RELU, SILU, GELU, QUICK_GELU, TANH, GEGLU = range(8)
ACTIVATIONS = {
    "identity": IDENTITY,
    "relu": RELU,
    "leaky_relu": LEAKY_RELU,
    "silu": SILU,
    "gelu": GELU,
    "quick_gelu": QUICK_GELU,
    "tanh": TANH,
    "geglu": GEGLU,
}
"""The contract's activations -> the numbers that kernels know them by."""

PLAIN, PER_PIXEL, BY_CODE = range(3)
"""Modulation: none; a row of gamma and beta for each pixel; the row of the pixel's code."""

_SLOPE = np.float32(LEAKY_SLOPE)

_NEAR = 0.4
_Q0, _Q1, _Q2, _Q3, _Q4, _Q5 = (
    *(0.1571134775876999, 0.18602851033210754, 0.020133420825004578),
    *(0.3308035433292389, -0.24904942512512207, 0.054970480501651764),
)
"""With t = 1 / (1 + 0.4 u), u of 0 or more: Φ(-u) = e^(-u² / 2) t (q0 + q1 t + … + q5 t⁵) within 3e-8.

The form is that of Abramowitz & Stegun's 7.1.26; these coefficients are the minimax fit to float64 values, by Lawson's
weighted least squares.
"""


class Reading(NamedTuple):
    """A source, as kernels take it; arrays are flat, absent ones are empty."""

    first: Any
    """float32: the first part's canvas."""
    second: Any
    """float32: the second part's canvas."""
    first_channels: int
    """Channels of the first part as they are read: with GEGLU half of the canvas's."""
    second_channels: int
    height: int
    """Rows as read, after upsampling."""
    width: int
    halved: int
    """1: nearest upsampling, pixel (y, x) is read at (y // 2, x // 2)."""
    scale: Any
    """float32 `[1 or N, C]`."""
    shift: Any
    norm_stride: int
    """-1: no scale and shift; 0: one row for all samples; C: a row a sample."""
    rows: Any
    """float32 `[*, 2C]`: gamma and beta."""
    codes: Any
    """int32 `[N, H, W]`: each pixel's row."""
    modulation: int
    activation: int
    layer_eps: Any
    """float32, of a layer norm; below 0: there is none."""
    combined: int
    """1: a value depends on other channels of its pixel, so `read_combined_window` reads it."""


_floats, _ints = float32[::1], int32[::1]
READING = NamedTupleType(
    [
        *(_floats, _floats, *[int64] * 5, _floats, _floats, int64, _floats, _ints, *[int64] * 2),
        *(float32, int64),
    ],
    Reading,
)
"""Numba's type of a `Reading`."""

NO_FLOATS, _NO_INTS = np.zeros(0, np.float32), np.zeros(0, np.int32)


def reading(source: Source) -> Reading:
    """A source's `Reading`."""
    parts, upsample = source.parts, source.upsample
    _, height, width, one = parts[0].shape
    if source.activation == "geglu":
        one //= 2
    second, two = (flat(parts[1]), parts[1].shape[3]) if len(parts) == 2 else (NO_FLOATS, 0)
    scale, shift, norm_stride = NO_FLOATS, NO_FLOATS, -1
    if source.scale is not None:
        scale, shift = flat(source.scale), flat(source.shift)
        norm_stride = one + two if len(source.scale) > 1 else 0
    rows, codes, modulation = NO_FLOATS, _NO_INTS, PLAIN
    if source.modulation is not None:
        rows, modulation = flat(source.modulation), PER_PIXEL
        if source.codes is not None:
            codes, modulation = flat(source.codes, "i"), BY_CODE
    return Reading(
        flat(parts[0]),
        second,
        one,
        two,
        height * upsample,
        width * upsample,
        upsample - 1,
        scale,
        shift,
        norm_stride,
        rows,
        codes,
        modulation,
        ACTIVATIONS[source.activation],
        np.float32(-1.0 if source.layer_eps is None else source.layer_eps),
        int(source.combines_channels),
    )


def is_plain(r: Reading) -> bool:
    """Whether no work is pending on a reading: its values are the canvases', though maybe upsampled."""
    return r.norm_stride < 0 and r.modulation == PLAIN and r.activation == IDENTITY


def is_canvas(r: Reading) -> bool:
    """Whether a reading is one canvas, pixel by pixel."""
    return is_plain(r) and not r.halved and not r.second_channels


NOTHING = reading(Source((np.zeros((1, 1, 1, 0), np.float32),)))
"""The reading of an absent residual."""


@inline
def activate(v: Any, activation: int) -> Any:
    """The contract's activations of each value alone, on a vector."""
    zero, one = splat(0.0), splat(1.0)
    if activation == RELU:
        v = where_below(v, zero, zero, v)
    elif activation == LEAKY_RELU:
        v = where_below(v, zero, v * splat(_SLOPE), v)
    elif activation == SILU:
        v = v / (one + exponential(zero - v))
    elif activation == QUICK_GELU:
        v = v / (one + exponential(splat(-QUICK_GELU_SLOPE) * v))
    elif activation == GELU:
        t = one / fma(splat(_NEAR), magnitude(v), one)
        q = fma(splat(_Q5), t, splat(_Q4))
        q = fma(q, t, splat(_Q3))
        q = fma(q, t, splat(_Q2))
        q = fma(q, t, splat(_Q1))
        q = fma(q, t, splat(_Q0))
        tail = q * t * exponential(splat(-0.5) * v * v)  # Φ(-|v|)
        v = v * where_below(v, zero, tail, one - tail)
    elif activation == TANH:
        # near 0 the odd polynomial of Cephes' tanhf, elsewhere 1 - 2 / (e^2|v| + 1) with v's sign
        size = magnitude(v)
        far = one - splat(2.0) / (exponential(size + size) + one)
        far = where_below(v, zero, zero - far, far)
        square = v * v
        p = fma(splat(-5.70498872745e-3), square, splat(2.06390887954e-2))
        p = fma(p, square, splat(-5.37397155531e-2))
        p = fma(p, square, splat(1.33314422036e-1))
        p = fma(p, square, splat(-3.33332819422e-1))
        near = fma(p * square, v, v)
        v = where_below(size, splat(0.625), near, far)
    return v


@inline
def _normalise(part: Any, start: int, count: int, r: Any, norm: int, buffer: Any, at: int) -> None:
    """`count` channels of one part into `buffer[at:]`, scaled and shifted; up to WIDTH - 1 floats more are written.

    `norm` is where the scale of the first of them lies, -1 for none.
    """
    whole = count - count % WIDTH
    if norm < 0:
        for c in range(0, whole, WIDTH):
            store(buffer, at + c, load(part, start + c))
        if whole < count:
            store(buffer, at + whole, load_first(part, start + whole, count - whole))
        return
    for c in range(0, whole, WIDTH):
        store(buffer, at + c, fma(load(part, start + c), load(r.scale, norm + c), load(r.shift, norm + c)))
    if whole < count:
        rest = count - whole
        scale, shift = load_first(r.scale, norm + whole, rest), load_first(r.shift, norm + whole, rest)
        store(buffer, at + whole, fma(load_first(part, start + whole, rest), scale, shift))


@inline
def _modulate(r: Any, row: int, channels: int, buffer: Any, at: int) -> None:
    """`v * (1 + gamma) + beta` in place, `row` being where the pixel's gamma lies."""
    whole, one = channels - channels % WIDTH, splat(1.0)
    for c in range(0, whole, WIDTH):
        gamma, beta = load(r.rows, row + c), load(r.rows, row + channels + c)
        store(buffer, at + c, fma(load(buffer, at + c), one + gamma, beta))
    if whole < channels:
        rest = channels - whole
        gamma = load_first(r.rows, row + whole, rest)
        beta = load_first(r.rows, row + channels + whole, rest)
        store(buffer, at + whole, fma(load(buffer, at + whole), one + gamma, beta))


@inline
def _activate(activation: int, channels: int, buffer: Any, at: int) -> None:
    """The activation in place: a loop for each, so that none tests its kind at every vector."""
    if activation == RELU:
        for c in range(0, channels, WIDTH):
            store(buffer, at + c, activate(load(buffer, at + c), RELU))
    elif activation == LEAKY_RELU:
        for c in range(0, channels, WIDTH):
            store(buffer, at + c, activate(load(buffer, at + c), LEAKY_RELU))
    elif activation == SILU:
        for c in range(0, channels, WIDTH):
            store(buffer, at + c, activate(load(buffer, at + c), SILU))
    elif activation == GELU:
        for c in range(0, channels, WIDTH):
            store(buffer, at + c, activate(load(buffer, at + c), GELU))
    elif activation == QUICK_GELU:
        for c in range(0, channels, WIDTH):
            store(buffer, at + c, activate(load(buffer, at + c), QUICK_GELU))
    elif activation == TANH:
        for c in range(0, channels, WIDTH):
            store(buffer, at + c, activate(load(buffer, at + c), TANH))


@inline
def _clear(count: int, buffer: Any, at: int) -> None:
    """`count` zeros, and up to WIDTH - 1 more, into `buffer[at:]`."""
    for c in range(0, count, WIDTH):
        store(buffer, at + c, splat(0.0))


@inline
def _read_pixels(r: Any, sample: int, y: int, x: int, count: int, buffer: Any, at: int, pixel: int) -> None:
    """`count` pixels of the image, from (y, x) to the right, every `pixel` floats of `buffer[at:]`.

    What is done to every value alike is one loop over all pixels, and over what is between them where `pixel` is more
    than the channels: a loop for each pixel takes longer than its few vectors.
    """
    channels = r.first_channels + r.second_channels
    line = (sample * (r.height >> r.halved) + (y >> r.halved)) * (r.width >> r.halved)
    norm = -1 if r.norm_stride < 0 else sample * r.norm_stride
    after = -1 if norm < 0 else norm + r.first_channels
    joined = norm < 0 and r.modulation == PLAIN and not r.halved and pixel == r.first_channels
    if joined:
        _normalise(r.first, (line + x) * pixel, count * pixel, r, norm, buffer, at)
    for i in range(0 if joined else count):
        place, to = line + ((x + i) >> r.halved), at + i * pixel
        _normalise(r.first, place * r.first_channels, r.first_channels, r, norm, buffer, to)
        if r.second_channels > 0:
            start = place * r.second_channels
            _normalise(r.second, start, r.second_channels, r, after, buffer, to + r.first_channels)
        if r.modulation != PLAIN:
            row = (sample * r.height + y) * r.width + x + i
            if r.modulation == BY_CODE:
                row = np.int64(r.codes[row])
            _modulate(r, row * 2 * channels, channels, buffer, to)
    if r.activation != IDENTITY:
        _activate(r.activation, count * pixel, buffer, at)


@inline
def read_window(
    r: Any,
    sample: int,
    top: int,
    left: int,
    rows: int,
    columns: int,
    buffer: Any,
    at: int,
    pixel: int,
    line: int,
) -> None:
    """Pixels (top …, left …) of a window: rows every `line` floats of `buffer[at:]`, pixels every `pixel` floats.

    Pixels are written in ascending order. Each writes up to WIDTH - 1 floats past its channels: the next pixel's, or
    the OVERRUN of the buffer's region.
    """
    for y in range(rows):
        to, begin, end = at + y * line, 0, 0
        if 0 <= top + y < r.height:
            begin = min(max(0, -left), columns)
            end = max(begin, min(r.width - left, columns))
        _clear(begin * pixel, buffer, to)
        _read_pixels(r, sample, top + y, left + begin, end - begin, buffer, to + begin * pixel, pixel)
        _clear((columns - end) * pixel, buffer, to + end * pixel)


@inline
def read_pixel(r: Any, sample: int, y: int, x: int, buffer: Any, at: int) -> None:
    """All channels of pixel (y, x) into `buffer[at:]`, and up to WIDTH - 1 more floats of no meaning."""
    read_window(r, sample, y, x, 1, 1, buffer, at, r.first_channels + r.second_channels, 0)


@inline
def _normalise_pixel(r: Any, start: int, norm: int, buffer: Any, at: int) -> None:
    """A layer norm of the pixel at `start` of the canvas into `buffer[at:]`, and up to WIDTH - 1 floats more.

    `(v - mean) / sqrt(mean((v - mean)²) + eps) * scale + shift`; `norm` is where the first scale lies.
    """
    channels = r.first_channels
    two = channels - channels % (2 * WIDTH)
    whole = channels - channels % WIDTH
    rest = channels - whole
    share = np.float32(1.0) / np.float32(channels)
    sums, others = splat(0.0), splat(0.0)  # two chains: each waits for its last addition
    for c in range(0, two, 2 * WIDTH):
        sums, others = sums + load(r.first, start + c), others + load(r.first, start + c + WIDTH)
    if two < whole:
        sums = sums + load(r.first, start + two)
    if rest:
        others = others + load_first(r.first, start + whole, rest)
    mean = splat(total(sums + others) * share)
    squares, others = splat(0.0), splat(0.0)
    for c in range(0, two, 2 * WIDTH):
        off, next_off = load(r.first, start + c) - mean, load(r.first, start + c + WIDTH) - mean
        store(buffer, at + c, off)
        store(buffer, at + c + WIDTH, next_off)
        squares, others = fma(off, off, squares), fma(next_off, next_off, others)
    if two < whole:
        off = load(r.first, start + two) - mean
        store(buffer, at + two, off)
        squares = fma(off, off, squares)
    if rest:  # through memory, where the lanes past the last channel are 0
        store(buffer, at + whole, splat(0.0))
        store_first(buffer, at + whole, load_first(r.first, start + whole, rest) - mean, rest)
        off = load(buffer, at + whole)
        others = fma(off, off, others)
    over = splat(np.float32(1.0) / np.sqrt(total(squares + others) * share + r.layer_eps))
    for c in range(0, whole, WIDTH):
        off = load(buffer, at + c) * over
        store(buffer, at + c, fma(off, load(r.scale, norm + c), load(r.shift, norm + c)))
    if rest:
        scale, shift = load_first(r.scale, norm + whole, rest), load_first(r.shift, norm + whole, rest)
        store(buffer, at + whole, fma(load(buffer, at + whole) * over, scale, shift))


@inline
def _gate_pixel(r: Any, start: int, buffer: Any, at: int) -> None:
    """`v · gelu(w)` of the pixel at `start` of the canvas into `buffer[at:]`, and up to WIDTH - 1 floats more.

    v is the first half of the canvas's channels, w the second.
    """
    channels = r.first_channels
    whole = channels - channels % WIDTH
    for c in range(0, whole, WIDTH):
        gate = activate(load(r.first, start + channels + c), GELU)
        store(buffer, at + c, load(r.first, start + c) * gate)
    if whole < channels:
        rest = channels - whole
        gate = activate(load_first(r.first, start + channels + whole, rest), GELU)
        store(buffer, at + whole, load_first(r.first, start + whole, rest) * gate)


@inline
def read_combined_window(
    r: Any,
    sample: int,
    top: int,
    left: int,
    rows: int,
    columns: int,
    buffer: Any,
    at: int,
    pixel: int,
    line: int,
) -> None:
    """`read_window` of a reading that is `combined`: layer norms and GEGLU, which have a single part, not upsampled."""
    for y in range(top, top + rows):
        for x in range(left, left + columns):
            to = at + (y - top) * line + (x - left) * pixel
            if y < 0 or y >= r.height or x < 0 or x >= r.width:
                for c in range(0, r.first_channels, WIDTH):
                    store(buffer, to + c, splat(0.0))
                continue
            place = ((sample * r.height + y) * r.width + x) * r.first_channels
            if r.activation == GEGLU:
                _gate_pixel(r, 2 * place, buffer, to)
            else:
                _normalise_pixel(r, place, sample * r.norm_stride, buffer, to)


@inline
def read_tile(r: Any, tiles: Any, t: int, buffer: Any, at: int) -> None:
    """The pixels of tile t itself, `[TILE, TILE, C]`, into `buffer[at:]`; 0 where it overhangs the image."""
    channels = r.first_channels + r.second_channels
    row, column = tiles[t, 1] * TILE, tiles[t, 2] * TILE
    read_window(r, tiles[t, 0], row, column, TILE, TILE, buffer, at, channels, TILE * channels)


@inline
def run_of(tiles: Any, at: int, end: int) -> int:
    """How many of the tiles `at` … `end` - 1 lie side by side in a row, from `at` on: their windows share columns."""
    run = 1
    while (
        at + run < end
        and tiles[at + run, 0] == tiles[at, 0]
        and tiles[at + run, 1] == tiles[at, 1]
        and tiles[at + run, 2] == tiles[at, 2] + run
    ):
        run += 1
    return run


@inline
def rows_of(tiles: Any, at: int, end: int, run: int) -> int:
    """How many rows of `run` tiles each, one below the other, the tiles `at` … `end` - 1 begin with."""
    rows = 1
    while (
        at + (rows + 1) * run <= end
        and tiles[at + rows * run, 0] == tiles[at, 0]
        and tiles[at + rows * run, 1] == tiles[at, 1] + rows
        and tiles[at + rows * run, 2] == tiles[at, 2]
        and run_of(tiles, at + rows * run, at + (rows + 1) * run) == run
    ):
        rows += 1
    return rows
