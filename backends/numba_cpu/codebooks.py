"""Codebooks: windows of an index canvas come in; their codes, and a table row for each distinct window, come out.

A hash table gives every distinct window the next free number. A convolution is then computed once for each number, not
for each pixel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.types import float32, int32, int64, void

from ..interface import TILE, Array, Host
from .arrays import flat, writable
from .gemm import PANEL
from .items import COUNTER, take_items
from .jit import compile_all, inline, kernel
from .launch import Launcher
from .packing import PACKED, WIDENED, Packed, multiply_packed
from .regions import SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH, load, splat, store_some
from .sizes import ceil_div

_MIX = np.array([pow(0x9E3779B97F4A7C15, i, 1 << 64) | 1 for i in range(1, 65)], np.uint64)
"""Odd multipliers, one for each place of a key (then again from the first)."""


@inline
def _hash(key: Any, width: int, mask: int) -> Any:
    """A sum of independent products, its high bits folded into the low ones, cut to `mask`."""
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


@kernel(void(int32[:, ::1], int64, int32[::1]))
def rehash(keys: Any, count: int, slots: Any) -> None:
    """Enter the first `count` keys into empty `slots` (a power of two, all -1)."""
    for number in range(count):
        slots[_find(keys[number], keys, slots)] = number


@kernel(void(int32[:, ::1], int64[::1], int32[::1], int64))
def forget(keys: Any, count: Any, slots: Any, until: int) -> None:
    """Remove windows down to `until`, the newest first: no other window's search passes through the slot it leaves."""
    while count[0] > until:
        count[0] -= 1
        slots[_find(keys[count[0]], keys, slots)] = -1


@kernel(
    int64(
        int32[:, ::1],
        int64,
        int32[:, :, :, ::1],
        int64,
        int64,
        int32[:, ::1],
        int64[::1],
        int32[::1],
        int32[:, :, :, ::1],
    )
)
def number(
    tiles: Any, start: int, indices: Any, side: int, step: int, keys: Any, count: Any, slots: Any, codes: Any
) -> int:
    """Number the windows of tiles from `start` on; returns the first tile not done (the window set must grow), or all.

    A window is `side`² pixels of `indices` `[N, h, w, P]`, `step` apart, -1 outside; `codes` is `[N, H, W, 1]`. A
    window set with room for a tile's windows takes the whole tile. The row after the last key serves as scratch.
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
    int64(
        int32[:, ::1],
        int32[::1],
        int32[::1],
        int64[::1],
        int64,
        int32[:, ::1],
    )
)
def share(windows: Any, places: Any, used: Any, starts: Any, together: int, index: Any) -> int:
    """List the codes that windows use, each once: once for all taps `together`, or once for each tap.

    Tap t's codes are `used[starts[t]:starts[t + 1]]`, or all of `used` together; `index[r, t]` is the place there of
    `windows[r, t]`, -1 for -1. `places`, all -1, has room for every code. Returns the length of the list.
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
            if places[code] < start:  # not listed, or only for an earlier tap
                places[code] = count
                used[count] = code
                count += 1
            index[r, t] = places[code] - start
    starts[taps] = count
    return count


ROWS_AT_ONCE = 1 << 14
"""Windows computed at a time: bounds the memory for products."""


class Layout(NamedTuple):
    """A thread's scratch for `convolve`.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | products | [products, PANEL] | `convolve` | `_add_products` |
    | widened | [DEPTH, PANEL] | the product, of 16-bit weights | the product |
    """

    products: int
    widened: int
    size: int


LAYOUT = layout_type(Layout)


@remembered
def layout(products: int) -> Layout:
    """The scratch for so many products of a row with a tap's weights."""
    regions = Regions()
    return Layout(
        products=regions.add(products * PANEL),
        widened=regions.add(WIDENED),
        size=regions.size,
    )


@inline
def _add_products(
    index: Any, starts: Any, together: int, bias: Any, begin: int, out: Any, at: Any, scratch: Any
) -> None:
    """`out[r, begin:] = bias + Σ_taps products[tap, index[r, tap]]` of one panel, an index of -1 adding nothing."""
    taps, outputs = index.shape[1], out.shape[1]
    flat = out.reshape(-1)
    for r in range(len(index)):
        for c in range(0, min(PANEL, outputs - begin), 2 * WIDTH):  # panels are even numbers of vectors wide
            low, high = splat(0.0), splat(0.0)
            for tap in range(taps):
                if index[r, tap] >= 0:
                    row = (tap * starts[taps] if together else starts[tap]) + np.int64(index[r, tap])
                    product = at.products + row * PANEL + c
                    low, high = low + load(scratch, product), high + load(scratch, product + WIDTH)
            low, high = low + load(bias, begin + c), high + load(bias, begin + c + WIDTH)
            to, left = r * outputs + begin + c, outputs - begin - c
            store_some(flat, to, low, min(WIDTH, left))
            if left > WIDTH:
                store_some(flat, to + WIDTH, high, min(WIDTH, left - WIDTH))


@kernel(
    void(
        COUNTER,
        int64,
        float32[::1],
        int64[::1],
        int64,
        int64,
        int32[:, ::1],
        PACKED,
        float32[::1],
        float32[:, ::1],
        LAYOUT,
        SCRATCH,
    )
)
def convolve(
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
    at: Any,
    scratch: Any,
) -> None:
    """`out[r] = bias + Σ_taps W[tap] · inputs[tap][index[r, tap]]`, an index of -1 adding nothing; items are panels.

    `inputs` holds rows of `depth` floats: tap t's from row `starts[t]` to `starts[t + 1]`, or all of them `together`.
    Every product is computed once, however many windows share it, and taps are added in order: a row's bits depend on
    its window alone. `weights` are packed as the direct convolution's.
    """
    taps = index.shape[1]
    all_rows = starts[taps]
    for panel in take_items(counter, items):
        for tap in range(taps):
            first = 0 if together else starts[tap]
            rows = all_rows if together else starts[tap + 1] - first
            products = at.products + (tap * all_rows if together else first) * PANEL
            w = (panel * taps + tap) * depth * PANEL
            multiply_packed(
                inputs, first * depth, depth, weights, w, scratch, products, PANEL, rows, depth, 1, at.widened
            )
        _add_products(index, starts, together, bias, panel * PANEL, out, at, scratch)


def launch(launcher: Launcher, out: Array, windows: Host, table: Array, weights: Packed, bias: Array) -> None:
    """`out[r] = bias + Σ taps t of W[t] · table[windows[r, t]]`, ROWS_AT_ONCE windows at a time."""
    for first in range(0, len(windows), ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        _launch(launcher, out[some], windows[some], table, weights, bias)


def _launch(
    launcher: Launcher, out: Array, windows: Host, table: Array, weights: Packed, bias: Array
) -> None:
    compile_all()
    writable(out)
    windows = np.ascontiguousarray(windows, np.int32)
    rows, taps = windows.shape
    starts, index = np.zeros(taps + 1, np.int64), np.empty(windows.shape, np.int32)
    # windows share codes: each code's row is multiplied once by each tap's weights
    for together in (False, True):
        used = np.empty(len(table) if together else min(len(table), rows) * taps, np.int32)
        places = np.full(len(table), -1, np.int32)
        count = share(windows, places, used, starts, int(together), index)
        if together or count * 4 < 3 * len(table) * taps:
            break  # else every tap uses nearly all codes, and one list for all is shorter to gather
    products, depth = count * taps if together else count, table.shape[1]
    at = layout(products)
    args = (flat(table[used[:count]]), starts, int(together), depth, index, weights, bias, out, at)
    work = 2.0 * products * depth * out.shape[1]
    launcher.run(convolve, ceil_div(out.shape[1], PANEL), args, at.size, work)
