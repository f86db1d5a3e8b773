"""Codebooks: windows of an index canvas come in, numbers and a table with a row for each distinct window come out.

A hash table gives every distinct window the next free number; a convolution's value is then computed once for each
number, not for each pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ..interface import TILE
from .gemm import PANEL, multiply
from .jit import inline, kernel
from .simd import WIDTH, load, next_item, splat, store


@inline
def _hash(key: Any, width: int, mask: int) -> int:
    """FNV-1a over the key's numbers, its high bits folded in."""
    h = np.uint64(14695981039346656037)
    for i in range(width):
        h = (h ^ np.uint64(np.uint32(key[i]))) * np.uint64(1099511628211)
    return np.int64((h ^ (h >> np.uint64(29))) & np.uint64(mask))


@inline
def _find(key: Any, keys: Any, slots: Any) -> int:
    """The slot that holds the key's number, or the empty one (-1) where it belongs."""
    width, mask = keys.shape[1], len(slots) - 1
    slot = _hash(key, width, mask)
    while slots[slot] >= 0:
        number = slots[slot]
        same = True
        for i in range(width):
            same &= keys[number, i] == key[i]
        if same:
            return slot
        slot = (slot + 1) & mask
    return slot


@kernel(types.void(types.int32[:, ::1], types.int64, types.int32[::1]))
def rehash(keys: Any, count: int, slots: Any) -> None:
    """Enter the first `count` keys into empty `slots` (a power of two, all -1)."""
    for number in range(count):
        slots[_find(keys[number], keys, slots)] = number


@kernel(types.void(types.int32[:, ::1], types.int64[::1], types.int32[::1], types.int64))
def forget(keys: Any, count: Any, slots: Any, until: int) -> None:
    """Take the newest windows out, last in first out: no later window's search passes through the slot it leaves."""
    while count[0] > until:
        count[0] -= 1
        slots[_find(keys[count[0]], keys, slots)] = -1


@kernel(
    types.int64(
        types.int32[:, ::1],
        types.int64,
        types.int32[:, :, :, ::1],
        types.int64,
        types.int64,
        types.int32[:, ::1],
        types.int64[::1],
        types.int32[::1],
        types.int32[:, :, :, ::1],
    )
)
def number(
    tiles: Any, start: int, indices: Any, side: int, step: int, keys: Any, count: Any, slots: Any, codes: Any
) -> int:
    """Number the windows of tiles from `start` on; returns the first tile not done (the book must grow), or all.

    A window is `side`² pixels of `indices` `[N, h, w, P]`, `step` apart, -1 outside; `codes` is `[N, H, W, 1]`. A
    book with room for a tile's windows takes the whole tile. The row after the last key serves as scratch.
    """
    samples, height, width, planes = indices.shape
    rows, columns = codes.shape[1:3]
    half = side // 2
    for t in range(start, len(tiles)):
        if count[0] + TILE * TILE + 1 > min(len(keys), len(slots) // 2):
            return t
        n, top, left = tiles[t, 0], tiles[t, 1] * TILE, tiles[t, 2] * TILE
        for y in range(top, min(top + TILE, rows)):
            for x in range(left, min(left + TILE, columns)):
                key = keys[count[0]]
                i = 0
                for dy in range(-half, half + 1):
                    for dx in range(-half, half + 1):
                        yy, xx = (y + dy) * step, (x + dx) * step
                        inside = 0 <= yy < height and 0 <= xx < width
                        for p in range(planes):
                            key[i] = indices[n, yy, xx, p] if inside else -1
                            i += 1
                slot = _find(key, keys, slots)
                if slots[slot] < 0:
                    slots[slot] = count[0]
                    count[0] += 1
                codes[n, y, x, 0] = slots[slot]
    return len(tiles)


def scratch_floats(products: int, rows: int) -> int:
    """What `convolve_windows` needs for `products` rows to multiply and `rows` windows."""
    return (products + rows) * PANEL + 4 * WIDTH


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.float32[::1],
        types.int64,
        types.int64,
        types.int64,
        types.int32[:, ::1],
        types.float32[::1],
        types.float32[::1],
        types.float32[:, ::1],
        types.float32[::1],
    )
)
def convolve_windows(
    counter: Any,
    items: int,
    inputs: Any,
    products: int,
    tap_stride: int,
    depth: int,
    index: Any,
    weights: Any,
    bias: Any,
    out: Any,
    scratch: Any,
) -> None:
    """`out[r] = bias + Σ_taps W[tap] · inputs[tap][index[r, tap]]`, an index of -1 adding nothing; items are panels.

    `inputs` holds `products` rows of `depth` floats, the same for all taps or (`tap_stride` > 0) others for each.
    Every product is computed once, however many windows share it, and taps are added in order: a row's bits depend on
    its window alone. `weights` are packed as the direct convolution's.
    """
    taps = index.shape[1]
    outputs = out.shape[1]
    sums = products * PANEL + WIDTH
    while True:
        panel = next_item(counter)
        if panel >= items:
            return
        for c in range(0, len(index) * PANEL, WIDTH):
            store(scratch, sums + c, splat(0.0))
        for tap in range(taps):
            w = (panel * taps + tap) * depth * PANEL
            multiply(inputs, tap * tap_stride, depth, weights, w, scratch, 0, PANEL, products, depth, 1)
            for r in range(len(index)):
                if index[r, tap] >= 0:
                    at, add = sums + r * PANEL, np.int64(index[r, tap]) * PANEL
                    for c in range(0, PANEL, WIDTH):
                        store(scratch, at + c, load(scratch, at + c) + load(scratch, add + c))
        first = panel * PANEL
        for r in range(len(index)):
            for c in range(min(PANEL, outputs - first)):
                out[r, first + c] = scratch[sums + r * PANEL + c] + bias[first + c]
