"""Codebooks: windows of an index canvas come in, numbers and a table with a row for each distinct window come out.

A hash table gives every distinct window the next free number; a convolution's value is then computed once for each
number, not for each pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ..interface import TILE
from .gemm import PANEL
from .items import take_items
from .jit import inline, kernel
from .packing import PACKED, WIDENED, multiply_packed
from .simd import WIDTH, load, splat, store_some

_MIX = np.array([pow(0x9E3779B97F4A7C15, i, 1 << 64) | 1 for i in range(1, 65)], np.uint64)
"""Odd multipliers, one for each place of a key (then again from the first)."""


@inline
def _hash(key: Any, width: int, mask: int) -> Any:
    """A sum of products, which a processor computes side by side, and its high bits folded into the low ones."""
    h = np.uint64(width)
    for i in range(width):
        h += np.uint64(np.uint32(key[i]) + np.uint32(2)) * _MIX[i & 63]
    h ^= h >> np.uint64(32)
    h *= np.uint64(0xD6E8FEB86659FD93)
    return np.int64((h ^ (h >> np.uint64(32))) & np.uint64(mask))


@inline
def _find(key: Any, keys: Any, slots: Any) -> Any:
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
    height, width, planes = indices.shape[1:]
    flat = indices.reshape(-1)
    last: Any = -1
    rows, columns = codes.shape[1:3]
    half = side // 2
    for t in range(start, len(tiles)):
        if count[0] + TILE * TILE + 1 > min(len(keys), len(slots) // 2):
            return t
        n, top, left = tiles[t, 0], tiles[t, 1] * TILE, tiles[t, 2] * TILE
        for y in range(top, min(top + TILE, rows)):
            for x in range(left, min(left + TILE, columns)):
                key = keys[count[0]]
                y0, x0 = (y - half) * step, (x - half) * step
                y1, x1 = (y + half) * step, (x + half) * step
                inside = y0 >= 0 and x0 >= 0 and y1 < height and x1 < width
                if inside and step == 1:  # a row of the window lies in one piece
                    for dy in range(side):
                        at = ((n * height + y0 + dy) * width + x0) * planes
                        for i in range(side * planes):
                            key[dy * side * planes + i] = flat[at + i]
                else:
                    i = 0
                    for yy in range(y0, y1 + 1, step):
                        for xx in range(x0, x1 + 1, step):
                            known = inside or (0 <= yy < height and 0 <= xx < width)
                            for p in range(planes):
                                key[i] = indices[n, yy, xx, p] if known else -1
                                i += 1
                if last >= 0:  # most windows are their neighbour's
                    same = True
                    for i in range(len(key)):
                        same &= keys[last, i] == key[i]
                    if same:
                        codes[n, y, x, 0] = last
                        continue
                slot = _find(key, keys, slots)
                if slots[slot] < 0:
                    slots[slot] = count[0]
                    count[0] += 1
                last = np.int64(slots[slot])
                codes[n, y, x, 0] = last
    return len(tiles)


@kernel(
    types.int64(
        types.int32[:, ::1],
        types.int32[::1],
        types.int32[::1],
        types.int64[::1],
        types.int64,
        types.int32[:, ::1],
    )
)
def share(windows: Any, places: Any, used: Any, starts: Any, together: int, index: Any) -> int:
    """The codes that windows use, each once: for all taps `together`, or once for each tap.

    Tap t's codes are `used[starts[t]:starts[t + 1]]`, or all of `used` together; `index[r, t]` says which of them
    `windows[r, t]` is, -1 staying -1. `places`, all -1, has room for every code. Returns how many are used.
    """
    count, rows, taps = 0, windows.shape[0], windows.shape[1]
    for t in range(taps):
        start = 0 if together else count
        starts[t] = start
        for r in range(rows):
            code = windows[r, t]
            if code < 0:
                index[r, t] = -1
                continue
            if places[code] < start:  # not yet, or only for an earlier tap
                places[code] = count
                used[count] = code
                count += 1
            index[r, t] = places[code] - start
    starts[taps] = count
    return count


ROWS_AT_ONCE = 1 << 14
"""Windows computed at a time: bounds the memory for products."""


def scratch_floats(products: int) -> int:
    """What `convolve_windows` needs for `products` products of a row with a tap's weights."""
    return products * PANEL + WIDENED + 4 * WIDTH


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.float32[::1],
        types.int64[::1],
        types.int64,
        types.int64,
        types.int32[:, ::1],
        PACKED,
        types.float32[::1],
        types.float32[:, ::1],
        types.float32[::1],
    )
)
def convolve_windows(
    counter: Any,
    items: int,
    inputs: Any,
    starts: Any,
    together: int,
    depth: int,
    index: Any,
    weights: Any,
    bias: Any,
    out: Any,
    scratch: Any,
) -> None:
    """`out[r] = bias + Σ_taps W[tap] · inputs[tap][index[r, tap]]`, an index of -1 adding nothing; items are panels.

    `inputs` holds rows of `depth` floats: tap t's from row `starts[t]` to `starts[t + 1]`, or all of them `together`.
    Every product is computed once, however many windows share it, and taps are added in order: a row's bits depend on
    its window alone. `weights` are packed as the direct convolution's.
    """
    taps, outputs = index.shape[1], out.shape[1]
    flat = out.reshape(-1)
    all_rows = starts[taps]
    products = all_rows * taps if together else all_rows
    for panel in take_items(counter, items):
        for tap in range(taps):
            first = 0 if together else starts[tap]
            rows = all_rows if together else starts[tap + 1] - first
            multiply_packed(
                inputs,
                first * depth,
                depth,
                weights,
                (panel * taps + tap) * depth * PANEL,
                scratch,
                (tap * all_rows if together else first) * PANEL,
                PANEL,
                rows,
                depth,
                1,
                products * PANEL,
            )
        begin = panel * PANEL
        for r in range(len(index)):
            for c in range(
                0, min(PANEL, outputs - begin), 2 * WIDTH
            ):  # panels are even numbers of vectors wide
                low, high = splat(0.0), splat(0.0)
                for tap in range(taps):
                    if index[r, tap] >= 0:
                        row = (tap * all_rows if together else starts[tap]) + np.int64(index[r, tap])
                        at = row * PANEL + c
                        low, high = low + load(scratch, at), high + load(scratch, at + WIDTH)
                low, high = low + load(bias, begin + c), high + load(bias, begin + c + WIDTH)
                to, left = r * outputs + begin + c, outputs - begin - c
                store_some(flat, to, low, min(WIDTH, left))
                if left > WIDTH:
                    store_some(flat, to + WIDTH, high, min(WIDTH, left - WIDTH))
