"""Attention: each active pixel against all pixels of its sample, with no matrix of scores.

    out = softmax(q kᵀ / sqrt(d)) v

Keys are taken in blocks (the online softmax of arXiv 1805.02867). Each query keeps its highest score h so far, the sum
w of its weights and their mix m of the values; a block of keys with the scores s changes them to

    h' = max(h, max s)      p = e^(s - h')      w' = w · e^(h - h') + Σ p      m' = m · e^(h - h') + p v

and after the last block out = m / w.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.types import float32, int32, int64, void

from ..interface import TILE, Array, Host
from .gemm import PANEL, multiply
from .items import COUNTER, TILES, take_items
from .jit import inline, kernel
from .launch import Launcher
from .reading import READING, Reading, read_pixel, read_tile
from .regions import OVERRUN, SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH, exponential, largest, load, peak, splat, store, total
from .sizes import ceil_div, round_up
from .writing import PIXELS, WRITING, Writing, residual_floats, write_tile

BLOCK = max(256 // PANEL, 1) * PANEL
"""Keys taken at a time."""
TOGETHER = 4
"""Tiles whose queries are taken together, at most: each reads the keys and values once less."""


# -- packing keys and values -----------------------------------------------------------------------------


class PackLayout(NamedTuple):
    """A thread's scratch for `pack`.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | pixels | [PANEL, C] + OVERRUN | gather | `pack` |
    """

    pixels: int
    size: int


PACK_LAYOUT = layout_type(PackLayout)


@remembered
def pack_layout(channels: int) -> PackLayout:
    """The scratch for tokens of so many channels."""
    regions = Regions()
    return PackLayout(pixels=regions.add(PANEL * channels + OVERRUN), size=regions.size)


def packed_floats(tokens: int, width: int) -> tuple[int, int]:
    """Floats of one head's packed keys and packed values, for `tokens` tokens of `width` channels."""
    keys = round_up(tokens, BLOCK)
    return keys * width, keys * round_up(width, PANEL)


@kernel(
    void(
        COUNTER,
        int64,
        int32[::1],
        READING,
        READING,
        int64,
        int64,
        float32[::1],
        float32[::1],
        PACK_LAYOUT,
        SCRATCH,
    )
)
def pack(
    counter: Any,
    items: int,
    samples: Any,
    key: Any,
    value: Any,
    heads: int,
    blocks: int,
    keys: Any,
    values: Any,
    at: Any,
    scratch: Any,
) -> None:
    """Lay out keys as panels of tokens and values as panels of channels, block by block.

    Items are PANEL tokens of a sample.

    keys: `[sample, head, block, BLOCK / PANEL, d, PANEL]`; values: `[sample, head, block, panels of d, BLOCK, PANEL]`.
    """
    channels = key.first_channels + key.second_channels
    d = channels // heads
    mixed = round_up(d, PANEL)
    tokens = key.height * key.width
    groups = ceil_div(tokens, PANEL)
    for item in take_items(counter, items):
        slot, begin = item // groups, item % groups * PANEL
        block, first = begin // BLOCK, begin % BLOCK
        count = min(PANEL, tokens - begin)
        for i in range(count):
            y, x = (begin + i) // key.width, (begin + i) % key.width
            read_pixel(key, samples[slot], y, x, scratch, at.pixels + i * channels)
        for h in range(heads):
            to = ((slot * heads + h) * blocks + block) * BLOCK * d + first * d
            for c in range(d):
                for i in range(count):
                    keys[to + c * PANEL + i] = scratch[at.pixels + i * channels + h * d + c]
        for i in range(count):
            y, x = (begin + i) // key.width, (begin + i) % key.width
            read_pixel(value, samples[slot], y, x, scratch, at.pixels)
            for h in range(heads):
                row = ((slot * heads + h) * blocks + block) * BLOCK * mixed + (first + i) * PANEL
                for panel in range(mixed // PANEL):
                    to, of = row + panel * BLOCK * PANEL, at.pixels + h * d + panel * PANEL
                    for c in range(min(PANEL, d - panel * PANEL)):
                        values[to + c] = scratch[of + c]


# -- attending -------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """A thread's scratch for `attend`: R rows are queries, D the channels of a head in whole panels.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | queries | [R, C] + OVERRUN | gather | `_score` |
    | scores | [R, BLOCK] | `_score`; `_weigh`: weights | `_weigh`, `_mix` |
    | mixes | [R, D] | `_mix` | `_mix`, `_divide` |
    | parts | [R, D] | `_mix`: a block's share | `_mix` |
    | highest | [R] | `_weigh` | `_weigh` |
    | weights | [R]: sums of weights | `_weigh` | `_weigh`, `_divide` |
    | results | [R, C] + OVERRUN | `_divide` | scatter |
    | vector | [WIDTH] | `_weigh` | `_weigh` |
    | residual | as `write_tile` takes it | scatter | scatter |
    """

    queries: int
    scores: int
    mixes: int
    parts: int
    highest: int
    weights: int
    results: int
    vector: int
    residual: int
    size: int
    channels: int
    """Channels of a head."""
    mixed: int
    """The same in whole panels: floats from one row to the next in `mixes` and `parts`."""


LAYOUT = layout_type(Layout)


@remembered
def layout(batch: int, channels: int, heads: int, *, residual: int) -> Layout:
    """The scratch for batches of `batch` tiles of so many channels, with `residual` floats for the residual."""
    rows, mixed = batch * PIXELS, round_up(channels // heads, PANEL)
    regions = Regions()
    return Layout(
        queries=regions.add(rows * channels + OVERRUN),
        scores=regions.add(rows * BLOCK),
        mixes=regions.add(rows * mixed),
        parts=regions.add(rows * mixed),
        highest=regions.add(rows),
        weights=regions.add(rows),
        results=regions.add(rows * channels + OVERRUN),
        vector=regions.add(WIDTH),
        residual=regions.add(residual),
        size=regions.size,
        channels=channels // heads,
        mixed=mixed,
    )


@inline
def _start(rows: int, at: Any, scratch: Any) -> None:
    """`h = -∞`, `w = 0`, `m = 0` for each of `rows` queries."""
    for i in range(rows):
        scratch[at.highest + i] = np.float32(-np.inf)
        scratch[at.weights + i] = np.float32(0.0)
    for c in range(0, rows * at.mixed, WIDTH):
        store(scratch, at.mixes + c, splat(0.0))


@inline
def _score(
    rows: int, count: int, head: int, channels: int, keys: Any, block: int, at: Any, scratch: Any
) -> None:
    """`scores = q kᵀ` of one head: `rows` queries, `count` keys of the block that begins at `keys[block]`."""
    queries, panels = at.queries + head * at.channels, ceil_div(count, PANEL)
    multiply(scratch, queries, channels, keys, block, scratch, at.scores, BLOCK, rows, at.channels, panels)


@inline
def _weigh(row: int, count: int, all_keys: int, scale: Any, first: bool, at: Any, scratch: Any) -> Any:
    """`p = e^(scale · s - h')` in the place of one query's scores s, and its h' and w'; returns `e^(h - h')`.

    0 for the first block: nothing is mixed yet. The query sees the first `count` of the block's `all_keys` keys.
    """
    s, end = at.scores + row * BLOCK, round_up(all_keys, PANEL)
    for j in range(count, end):
        scratch[s + j] = np.float32(-np.inf)
    most = splat(np.float32(-np.inf))
    for j in range(0, end, WIDTH):
        v = load(scratch, s + j) * scale
        store(scratch, s + j, v)
        most = largest(v, most)
    before = scratch[at.highest + row]
    now = max(before, peak(most))
    sums = splat(0.0)
    for j in range(0, end, WIDTH):
        p = exponential(load(scratch, s + j) - splat(now))
        store(scratch, s + j, p)
        sums = sums + p
    for j in range(count, end):  # e^-87 is not quite 0
        scratch[s + j] = np.float32(0.0)
    summed = total(sums)
    if count < end:
        summed = np.float32(0.0)
        for j in range(count):
            summed += scratch[s + j]
    store(scratch, at.vector, exponential(splat(before - now)))
    shrink = np.float32(0.0) if first else scratch[at.vector]
    scratch[at.highest + row] = now
    scratch[at.weights + row] = scratch[at.weights + row] * shrink + summed
    return shrink


@inline
def _shrink(row: int, factor: Any, at: Any, scratch: Any) -> None:
    """`m · factor`, one query's mix, in place."""
    mix = at.mixes + row * at.mixed
    for c in range(0, at.mixed, WIDTH):
        store(scratch, mix + c, load(scratch, mix + c) * splat(factor))


@inline
def _mix(rows: int, count: int, values: Any, block: int, at: Any, scratch: Any) -> None:
    """`m + p v` of `rows` queries, in place: `count` values of the block that begins at `values[block]`."""
    for panel in range(at.mixed // PANEL):
        first, part = block + panel * BLOCK * PANEL, at.parts + panel * PANEL
        multiply(scratch, at.scores, BLOCK, values, first, scratch, part, at.mixed, rows, count, 1)
    for c in range(0, rows * at.mixed, WIDTH):
        store(scratch, at.mixes + c, load(scratch, at.mixes + c) + load(scratch, at.parts + c))


@inline
def _divide(rows: int, head: int, channels: int, at: Any, scratch: Any) -> None:
    """`results = m / w` of one head."""
    for i in range(rows):
        mix, result = at.mixes + i * at.mixed, at.results + i * channels + head * at.channels
        over = splat(np.float32(1.0) / scratch[at.weights + i])
        for c in range(0, at.mixed, WIDTH):
            store(scratch, mix + c, load(scratch, mix + c) * over)
        for c in range(at.channels):
            scratch[result + c] = scratch[mix + c]


@kernel(
    void(
        COUNTER,
        int64,
        int64,
        TILES,
        int32[::1],
        READING,
        int64,
        int64,
        int64,
        float32[::1],
        float32[::1],
        WRITING,
        LAYOUT,
        SCRATCH,
    )
)
def attend(
    counter: Any,
    items: int,
    batch: int,
    tiles: Any,
    slots: Any,
    query: Any,
    heads: int,
    causal: int,
    tokens: int,
    keys: Any,
    values: Any,
    out: Any,
    at: Any,
    scratch: Any,
) -> None:
    """`out[tiles] = softmax(q kᵀ / sqrt(d)) v`; items are batches of tiles.

    `slots[t]` is where the packed keys and values of tile t's sample lie.
    """
    channels, d = out.channels, at.channels
    blocks = ceil_div(tokens, BLOCK)
    scale = splat(np.float32(1.0 / np.sqrt(np.float64(d))))
    for item in take_items(counter, items):
        t, end = item * batch, min((item + 1) * batch, len(tiles))
        while t < end:
            together = 1  # tiles of one sample
            while t + together < end and slots[t + together] == slots[t]:
                together += 1
            rows = together * PIXELS
            for i in range(together):
                read_tile(query, tiles, t + i, scratch, at.queries + i * PIXELS * channels)
            for head in range(heads):
                _start(rows, at, scratch)
                for b in range(blocks):
                    count = min(BLOCK, tokens - b * BLOCK)
                    block = ((slots[t] * heads + head) * blocks + b) * BLOCK
                    _score(rows, count, head, channels, keys, block * d, at, scratch)  # s = q kᵀ
                    for i in range(rows):
                        some = count
                        if causal:
                            tile, pixel = t + i // PIXELS, i % PIXELS
                            y = min(tiles[tile, 1] * TILE + pixel // TILE, out.height - 1)
                            x = min(tiles[tile, 2] * TILE + pixel % TILE, out.width - 1)
                            some = max(0, min(count, y * out.width + x + 1 - b * BLOCK))
                        shrink = _weigh(
                            i, some, count, scale, b == 0, at, scratch
                        )  # p = e^(s / sqrt(d) - h')
                        _shrink(i, shrink, at, scratch)
                    _mix(rows, count, values, block * at.mixed, at, scratch)  # m' = m · e^(h - h') + p v
                _divide(rows, head, channels, at, scratch)  # m / w
            for i in range(together):
                result = at.results + i * PIXELS * channels
                write_tile(out, tiles, t + i, 0, channels, scratch, result, channels, at.residual)
            t += together


def launch(
    launcher: Launcher,
    tiles: Host,
    query: Reading,
    key: Reading,
    value: Reading,
    heads: int,
    out: Writing,
    *,
    shared: bool,
    causal: bool,
) -> None:
    """Pack the keys and values of the samples that `tiles` lie in, and attend.

    `shared`: keys and values are of one sample, for all.
    """
    channels = out.channels
    tokens = key.height * key.width
    blocks = ceil_div(tokens, BLOCK)
    of_tiles = np.zeros_like(tiles[:, 0]) if shared else tiles[:, 0]
    samples, slots = np.unique(of_tiles, return_inverse=True)
    key_floats, value_floats = packed_floats(tokens, channels // heads)
    keys: Array = np.zeros(len(samples) * heads * key_floats, np.float32)
    values: Array = np.zeros(len(samples) * heads * value_floats, np.float32)
    places = pack_layout(channels)
    args: tuple[Any, ...] = (samples, key, value, heads, blocks, keys, values, places)
    work = 4.0 * tokens * channels * len(samples)
    launcher.run(pack, len(samples) * ceil_div(tokens, PANEL), args, places.size, work)

    # no more tiles together than leaves work for every thread
    batch = max(1, min(TOGETHER, len(tiles) // (2 * launcher.threads)))
    at = layout(batch, channels, heads, residual=residual_floats(out))
    args = (batch, tiles, slots.astype(np.int32), query, heads, int(causal), tokens, keys, values, out, at)
    work = 4.0 * PIXELS * tokens * channels * len(tiles)
    launcher.run(attend, ceil_div(len(tiles), batch), args, at.size, work)
