"""Attention: each active pixel against all pixels of its sample, with no matrix of scores.

    out = softmax(q kᵀ / sqrt(d)) v

Keys are taken in blocks; each query keeps the largest score so far, the sum of its exponentials and the mix of
values, and scales the latter two down when a larger score comes (the online softmax of arXiv 1805.02867).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ..interface import TILE
from .gemm import PANEL, multiply
from .items import take_items
from .jit import inline, kernel
from .reading import READING, read_pixel, read_window
from .simd import WIDTH, exponential, largest, load, peak, splat, store, total
from .writing import PIXELS, WRITING, write_tile

BLOCK = max(256 // PANEL, 1) * PANEL
"""Keys taken at a time."""


def packed_floats(tokens: int, width: int) -> tuple[int, int]:
    """Floats of one head's packed keys and packed values, for `tokens` tokens of `width` channels."""
    blocks = -(-tokens // BLOCK)
    return blocks * BLOCK * width, blocks * BLOCK * -(-width // PANEL) * PANEL


TOGETHER = 4
"""Tiles whose queries are taken together, at most: each reads the keys and values once less."""


def scratch_floats(channels: int, heads: int, batch: int) -> int:
    """What `attend` needs for batches of `batch` tiles."""
    mixed = -(-(channels // heads) // PANEL) * PANEL
    return batch * PIXELS * (2 * channels + BLOCK + 2 * mixed + 2) + 16 * WIDTH


def pack_floats(channels: int) -> int:
    """What `pack` needs."""
    return PANEL * channels + 2 * WIDTH


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int32[::1],
        READING,
        READING,
        types.int64,
        types.int64,
        types.float32[::1],
        types.float32[::1],
        types.float32[::1],
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
    scratch: Any,
) -> None:
    """Lay out keys as panels of tokens and values as panels of channels, block by block.

    Items are PANEL tokens of a sample.

    keys: `[sample, head, block, BLOCK / PANEL, d, PANEL]`; values: `[sample, head, block, panels of d, BLOCK, PANEL]`.
    """
    channels = key.first_channels + key.second_channels
    d = channels // heads
    mixed = -(-d // PANEL) * PANEL
    tokens = key.height * key.width
    groups = -(-tokens // PANEL)
    for item in take_items(counter, items):
        slot, begin = item // groups, item % groups * PANEL
        block, first = begin // BLOCK, begin % BLOCK
        count = min(PANEL, tokens - begin)
        for i in range(count):
            y, x = (begin + i) // key.width, (begin + i) % key.width
            read_pixel(key, samples[slot], y, x, scratch, i * channels)
        for h in range(heads):
            at = ((slot * heads + h) * blocks + block) * BLOCK * d + first * d
            for c in range(d):
                for i in range(count):
                    keys[at + c * PANEL + i] = scratch[i * channels + h * d + c]
        for i in range(count):
            y, x = (begin + i) // key.width, (begin + i) % key.width
            read_pixel(value, samples[slot], y, x, scratch, 0)
            for h in range(heads):
                at = ((slot * heads + h) * blocks + block) * BLOCK * mixed + (first + i) * PANEL
                for panel in range(mixed // PANEL):
                    to, of = at + panel * BLOCK * PANEL, h * d + panel * PANEL
                    for c in range(min(PANEL, d - panel * PANEL)):
                        values[to + c] = scratch[of + c]


@inline
def _weigh(
    scratch: Any, s: int, count: int, scale: Any, high: int, weight: int, single: int, block: int
) -> Any:
    """One query's scores of a block become weights, in place; what it mixed so far is to be scaled by the result.

    `scratch[high]` is its largest score so far, `scratch[weight]` the sum of its weights.
    """
    end = -(-count // PANEL) * PANEL
    for j in range(count, end):
        scratch[s + j] = np.float32(-np.inf)
    most = splat(np.float32(-np.inf))
    for j in range(0, end, WIDTH):
        v = load(scratch, s + j) * scale
        store(scratch, s + j, v)
        most = largest(v, most)
    before = scratch[high]
    now = max(before, peak(most))
    sums = splat(0.0)
    for j in range(0, end, WIDTH):
        v = exponential(load(scratch, s + j) - splat(now))
        store(scratch, s + j, v)
        sums = sums + v
    for j in range(count, end):  # e^-87 is not quite 0
        scratch[s + j] = np.float32(0.0)
    summed = total(sums)
    if count < end:
        summed = np.float32(0.0)
        for j in range(count):
            summed += scratch[s + j]
    # what was mixed so far is scaled down to the new largest score
    store(scratch, single, exponential(splat(before - now)))
    shrink = scratch[single] if block > 0 else np.float32(0.0)
    scratch[high] = now
    scratch[weight] = scratch[weight] * shrink + summed
    return shrink


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int64,
        types.int32[:, ::1],
        types.int32[::1],
        READING,
        types.int64,
        types.int64,
        types.int64,
        types.float32[::1],
        types.float32[::1],
        WRITING,
        types.float32[::1],
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
    tokens: int,
    blocks: int,
    keys: Any,
    values: Any,
    w: Any,
    scratch: Any,
) -> None:
    """Items are batches of tiles; `slots[t]` is where the packed keys and values of tile t's sample lie."""
    channels = w.channels
    d = channels // heads
    mixed = -(-d // PANEL) * PANEL
    scale = splat(np.float32(1.0 / np.sqrt(np.float64(d))))
    most_rows = batch * PIXELS
    q = 0
    scores = q + most_rows * channels + WIDTH
    mix = scores + most_rows * BLOCK
    part = mix + most_rows * mixed
    high = part + most_rows * mixed
    weight = high + most_rows
    result = weight + most_rows
    single = result + most_rows * channels  # one vector, to take a lane from
    for item in take_items(counter, items):
        t, end = item * batch, min((item + 1) * batch, len(tiles))
        while t < end:
            together = 1  # tiles of one sample
            while t + together < end and slots[t + together] == slots[t]:
                together += 1
            rows = together * PIXELS
            for i in range(together):
                n, row, column = tiles[t + i, 0], tiles[t + i, 1], tiles[t + i, 2]
                at = q + i * PIXELS * channels
                read_window(query, n, row * TILE, column * TILE, TILE, TILE, scratch, at, channels)
            for h in range(heads):
                for i in range(rows):
                    scratch[high + i] = np.float32(-np.inf)
                    scratch[weight + i] = np.float32(0.0)
                for c in range(0, rows * mixed, WIDTH):
                    store(scratch, mix + c, splat(0.0))
                head = (slots[t] * heads + h) * blocks
                for block in range(blocks):
                    count = min(BLOCK, tokens - block * BLOCK)
                    at = (head + block) * BLOCK * d
                    panels = -(-count // PANEL)
                    multiply(scratch, q + h * d, channels, keys, at, scratch, scores, BLOCK, rows, d, panels)
                    for i in range(rows):
                        shrink = _weigh(
                            scratch, scores + i * BLOCK, count, scale, high + i, weight + i, single, block
                        )
                        for c in range(0, mixed, WIDTH):
                            m = mix + i * mixed + c
                            store(scratch, m, load(scratch, m) * splat(shrink))
                    at = (head + block) * BLOCK * mixed
                    for panel in range(mixed // PANEL):
                        first = at + panel * BLOCK * PANEL
                        to = part + panel * PANEL
                        multiply(scratch, scores, BLOCK, values, first, scratch, to, mixed, rows, count, 1)
                    for c in range(0, rows * mixed, WIDTH):
                        store(scratch, mix + c, load(scratch, mix + c) + load(scratch, part + c))
                for i in range(rows):
                    over = splat(np.float32(1.0) / scratch[weight + i])
                    for c in range(0, mixed, WIDTH):
                        m = mix + i * mixed + c
                        store(scratch, m, load(scratch, m) * over)
                    for c in range(d):
                        scratch[result + i * channels + h * d + c] = scratch[mix + i * mixed + c]
            for i in range(together):
                n, row, column = tiles[t + i, 0], tiles[t + i, 1], tiles[t + i, 2]
                at = result + i * PIXELS * channels
                write_tile(w, n, row, column, 0, channels, at, channels, TILE * channels, scratch, single)
            t += together
