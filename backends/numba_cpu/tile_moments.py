"""The moments of one tile's channels: its pixels come in, their mean and their squared distance from it come out.

They are what the moments of a canvas are added up from (`moments.py`), whether its tiles are measured while they are
written, in a cache, or read again later: both give the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import inline
from .simd import WIDTH, fma, load, load_some, splat, store, store_some


@inline
def _measure_vector(
    array: Any,
    at: int,
    line: int,
    pixel: int,
    rows: int,
    columns: int,
    some: int,
    to: Any,
    place: int,
    row: int,
) -> None:
    """`measure_tile` of `some` ≤ WIDTH channels."""
    share = splat(np.float32(1.0) / np.float32(rows * columns))
    mean, added, squared = splat(0.0), splat(0.0), splat(0.0)
    for y in range(rows):
        for x in range(columns):
            mean = mean + load_some(array, at + y * line + x * pixel, some)
    mean = mean * share
    for y in range(rows):
        for x in range(columns):  # again, out of the first-level cache
            off = load_some(array, at + y * line + x * pixel, some) - mean
            added, squared = added + off, fma(off, off, squared)
    store_some(to, place, fma(added, share, mean), some)
    store_some(to, place + row, squared - added * added * share, some)


@inline
def measure_tile(
    array: Any,
    at: int,
    line: int,
    pixel: int,
    rows: int,
    columns: int,
    count: int,
    to: Any,
    place: int,
    row: int,
) -> None:
    """The mean of `rows` × `columns` pixels, `to[place:]`, and Σ (v - mean)², `to[place + row:]`, of `count` channels.

    The first pixel lies at `array[at]`, lines are `line` floats apart, pixels `pixel`. A sum is rounded at every step:
    so distances are taken from the mean m that it gives, and both results are corrected by their sum:

        mean = m + Σ (v - m) / n        Σ (v - mean)² = Σ (v - m)² - (Σ (v - m))² / n
    """
    two, whole = count - count % (2 * WIDTH), count - count % WIDTH
    share = splat(np.float32(1.0) / np.float32(rows * columns))
    for c in range(0, two, 2 * WIDTH):  # two vectors at a time: each waits for its last addition
        mean, other = splat(0.0), splat(0.0)
        for y in range(rows):
            first = at + y * line + c
            for p in range(first, first + columns * pixel, pixel):
                mean, other = mean + load(array, p), other + load(array, p + WIDTH)
        mean, other = mean * share, other * share
        added, sums, squared, squares = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for y in range(rows):  # again, out of the first-level cache
            first = at + y * line + c
            for p in range(first, first + columns * pixel, pixel):
                off, next_off = load(array, p) - mean, load(array, p + WIDTH) - other
                added, sums = added + off, sums + next_off
                squared, squares = fma(off, off, squared), fma(next_off, next_off, squares)
        store(to, place + c, fma(added, share, mean))
        store(to, place + c + WIDTH, fma(sums, share, other))
        store(to, place + row + c, squared - added * added * share)
        store(to, place + row + c + WIDTH, squares - sums * sums * share)
    if two < whole:
        _measure_vector(array, at + two, line, pixel, rows, columns, WIDTH, to, place + two, row)
    if whole < count:
        _measure_vector(array, at + whole, line, pixel, rows, columns, count - whole, to, place + whole, row)
