"""Codebooks: windows of an index canvas come in; their codes, and a table row for each distinct window, come out.

A hash table gives every distinct window the next free number. A convolution is then computed once for each number, not
for each pixel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.types import float32, int32, int64, uint8, void

from ..interface import TILE, Array, Host
from . import queued
from .arrays import aligned, flat, writable
from .gemm import DEPTH, PANEL
from .handover import shared
from .items import COUNTER, take_items
from .jit import inline, kernel
from .launch import Launcher
from .packing import PACKED, PAIRED, PAIRS, WIDENED, Packed, multiply_piece
from .regions import SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH, load, load_some, mark_odd, splat, store_pairs, store_some, total
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


@inline
def _read_key(indices: Any, flat: Any, n: int, y: int, x: int, half: int, step: int, key: Any) -> None:
    """The window of pixel (y, x), row by row, into `key`; -1 outside. `flat` has the values of `indices`."""
    height, width, planes = indices.shape[1:]
    y0, x0 = (y - half) * step, (x - half) * step
    y1, x1 = (y + half) * step, (x + half) * step
    inside = y0 >= 0 and x0 >= 0 and y1 < height and x1 < width
    if inside and step == 1:  # a row of the window lies in one piece
        piece = (2 * half + 1) * planes
        for dy in range(2 * half + 1):
            at = ((n * height + y0 + dy) * width + x0) * planes
            for i in range(piece):
                key[dy * piece + i] = flat[at + i]
        return
    i = 0
    for yy in range(y0, y1 + 1, step):
        for xx in range(x0, x1 + 1, step):
            known = inside or (0 <= yy < height and 0 <= xx < width)
            for p in range(planes):
                key[i] = indices[n, yy, xx, p] if known else -1
                i += 1


@inline
def _is_uniform(flat: Any, at: int, line: int, column: int, rows: int, columns: int, planes: int) -> Any:
    """Whether all pixels of a rectangle, `line` and `column` apart, have the indices of its first, at `flat[at]`."""
    same = True
    for y in range(rows):
        for x in range(columns):
            for p in range(planes):
                same &= flat[at + y * line + x * column + p] == flat[at + p]
        if not same:
            break
    return same


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

    Most labels lie in areas of one label. Where one pixel fills all windows of a tile, or of a row of it, they are one
    window, which is looked up once; others are compared with their left neighbour's first.
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
        bottom, right = min(top + TILE, rows), min(left + TILE, columns)
        first_y, first_x = (top - half) * step, (left - half) * step
        last_y, last_x = (bottom - 1 + half) * step, (right - 1 + half) * step
        within = first_y >= 0 and first_x >= 0 and last_y < height and last_x < width
        line, column = step * width * planes, step * planes
        down, across = bottom - top + 2 * half, right - left + 2 * half
        corner = ((n * height + first_y) * width + first_x) * planes
        one_tile = within and _is_uniform(flat, corner, line, column, down, across, planes)
        for y in range(top, bottom):
            at = corner + (y - top) * line
            one_row = one_tile or (within and _is_uniform(flat, at, line, column, side, across, planes))
            for x in range(left, right):
                if (one_row and x > left) or (one_tile and y > top):
                    codes[n, y, x, 0] = last
                    continue
                key = keys[count[0]]
                _read_key(indices, flat, n, y, x, half, step, key)
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


CHUNK = 1 << 14
"""Windows computed together. It bounds the memory for products, and no more: far windows share codes too, so smaller
chunks, whose products stay in a core's second-level cache, have so many more of them that they gain nothing."""


@kernel(int64(int32[:, ::1], int64, int32[::1], int64[::1], int64[::1], int32[:, ::1]))
def share(windows: Any, depth: int, places: Any, rows_at: Any, starts: Any, index: Any) -> int:
    """List the codes that each tap of every CHUNK windows uses, each once, as the offsets of their rows in a table.

    Tap t of chunk c has `rows_at[starts[i]:starts[i + 1]]`, i = c * taps + t, in units of floats: code * `depth`.
    `index[r, t]` is where the product of `windows[r, t]` lies among those of its chunk: behind a row of zeros, which
    is that of -1, one row of PANEL floats for each place in the list. `places`, all -1, has room for every code.
    Returns the length of the longest chunk's list.
    """
    count, longest, taps = 0, 0, windows.shape[1]
    for first in range(0, len(windows), CHUNK):
        last, listed = min(first + CHUNK, len(windows)), count
        for t in range(taps):
            start = count
            starts[first // CHUNK * taps + t] = start
            for r in range(first, last):
                code = windows[r, t]
                if code < 0:
                    index[r, t] = 0
                    continue
                if places[code] < start:  # not listed, or only for an earlier tap
                    places[code] = count
                    rows_at[count] = np.int64(code) * depth
                    count += 1
                index[r, t] = (1 + places[code] - listed) * PANEL
        longest = max(longest, count - listed)
    starts[ceil_div(len(windows), CHUNK) * taps] = count
    return longest


class Layout(NamedTuple):
    """A thread's scratch for `convolve`.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | products | [1 + products, PANEL], the first row 0 | `convolve` | `_add_products` |
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
        products=regions.add((1 + products) * PANEL),
        widened=regions.add(WIDENED),
        size=regions.size,
    )


@inline
def _add_products(
    index: Any, first: int, last: int, bias: Any, begin: int, out: Any, odd: Any, at: Any, scratch: Any
) -> None:
    """`out[r, begin:] = bias + Σ_taps products[index[r, tap]]` of one panel, for the rows `first` … `last`.

    Sets `odd` if a value is not finite.
    """
    taps, outputs = index.shape[1], out.shape[1]
    flat, marks = out.reshape(-1), splat(0.0)
    for r in range(first, last):
        for c in range(0, min(PANEL, outputs - begin), 2 * WIDTH):  # panels are even numbers of vectors wide
            low, high = splat(0.0), splat(0.0)
            for tap in range(taps):
                product = at.products + np.int64(index[r, tap]) + c
                low, high = low + load(scratch, product), high + load(scratch, product + WIDTH)
            low, high = low + load(bias, begin + c), high + load(bias, begin + c + WIDTH)
            marks = mark_odd(mark_odd(marks, low), high)  # past the outputs weights and bias are 0
            to, left = r * outputs + begin + c, outputs - begin - c
            store_some(flat, to, low, min(WIDTH, left))
            if left > WIDTH:
                store_some(flat, to + WIDTH, high, min(WIDTH, left - WIDTH))
    if total(marks) != 0.0:
        odd[0] = 1


@shared(
    void(
        COUNTER,
        int64,
        float32[::1],
        int64,
        int64[::1],
        int64[::1],
        int32[:, ::1],
        PACKED,
        float32[::1],
        float32[:, ::1],
        uint8[::1],
        LAYOUT,
        SCRATCH,
    )
)
def convolve(
    counter: Any,
    items: int,
    table: Any,
    depth: int,
    rows_at: Any,
    starts: Any,
    index: Any,
    weights: Any,
    bias: Any,
    out: Any,
    odd: Any,
    at: Any,
    scratch: Any,
) -> None:
    """`out[r] = bias + Σ_taps W[tap] · table[windows[r, tap]]`, a code of -1 adding nothing.

    `odd` `[1]` is set if a value is not finite.

    An item is a chunk of windows and a panel. `share` has listed the codes: every product of a tap and a code is
    computed once for a chunk, however many of its windows share it. Taps are added in order: a row's bits depend on
    its window alone. `table` holds rows of `depth` floats, or of `depth` pairs of bfloat16 where `weights` are PAIRS;
    these are packed as the direct convolution's.
    """
    taps, panels = index.shape[1], ceil_div(out.shape[1], PANEL)
    for c in range(PANEL):
        scratch[at.products + c] = 0.0
    for item in take_items(counter, items):
        chunk, panel = item // panels, item % panels
        listed = starts[chunk * taps]  # by the chunks before
        for tap in range(taps):
            first, last = starts[chunk * taps + tap], starts[chunk * taps + tap + 1]
            rows, products = rows_at[first:last], at.products + (1 + first - listed) * PANEL
            for k in range(0, depth, DEPTH):
                w, steps = ((panel * taps + tap) * depth + k) * PANEL, min(DEPTH, depth - k)
                multiply_piece(
                    table, k, rows, weights, w, scratch, products, PANEL, len(rows), steps, k, at.widened
                )
        first = chunk * CHUNK
        _add_products(
            index, first, min(first + CHUNK, len(index)), bias, panel * PANEL, out, odd, at, scratch
        )


_ITEM = 1 << 15
"""Values of an item of `round_to_pairs`."""

if PAIRED:

    @shared(void(COUNTER, int64, float32[::1], float32[::1]))
    def round_to_pairs(counter: Any, items: int, values: Any, pairs: Any) -> None:
        """`values` rounded to bfloat16, two in each float of `pairs`, which has room for a vector more."""
        for item in take_items(counter, items):
            for i in range(item * _ITEM, min((item + 1) * _ITEM, len(values)), WIDTH):
                store_pairs(pairs, i // 2, load_some(values, i, min(WIDTH, len(values) - i)))


def launch(launcher: Launcher, out: Array, windows: Host, table: Array, weights: Packed, bias: Array) -> bool:
    """`out[r] = bias + Σ taps t of W[t] · table[windows[r, t]]`; whether all values are computed, and finite."""
    writable(out)
    windows = np.ascontiguousarray(windows, np.int32)
    (rows, taps), depth, values = windows.shape, table.shape[1], flat(table)
    if weights.stored == PAIRS:
        pairs = aligned(values.size // 2 + WIDTH, "float32")
        launcher.queue(round_to_pairs, ceil_div(values.size, _ITEM), (values, pairs), 0, 16.0 * values.size)
        depth, values = depth // 2, pairs
    chunks, panels = ceil_div(rows, CHUNK), ceil_div(out.shape[1], PANEL)
    starts, index = np.empty(chunks * taps + 1, np.int64), np.empty(windows.shape, np.int32)
    rows_at = np.empty(windows.size, np.int64)
    at = layout(share.beside(windows, depth, np.full(len(table), -1, np.int32), rows_at, starts, index))
    odd = queued.odd()
    args = (values, depth, rows_at, starts, index, weights, bias, out, odd, at)
    launcher.queue(convolve, chunks * panels, args, at.size, 2.0 * starts[-1] * depth * out.shape[1])
    return queued.known_finite(odd)
