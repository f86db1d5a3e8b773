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
from .epilogue import WRITING, write_tile
from .gemm import PANEL, multiply
from .jit import kernel
from .reading import READING, read_pixel, read_window
from .simd import WIDTH, exponential, largest, load, next_item, peak, splat, store, total

PIXELS = TILE * TILE
BLOCK = max(256 // PANEL, 1) * PANEL
"""Keys taken at a time."""


def packed_floats(tokens: int, width: int) -> tuple[int, int]:
    """Floats of one head's packed keys and packed values, for `tokens` tokens of `width` channels."""
    blocks = -(-tokens // BLOCK)
    return blocks * BLOCK * width, blocks * BLOCK * -(-width // PANEL) * PANEL


def scratch_floats(channels: int, heads: int) -> int:
    """What `attend` needs; `pack` needs less."""
    mixed = -(-(channels // heads) // PANEL) * PANEL
    return PIXELS * (2 * channels + BLOCK + 2 * mixed) + 2 * PIXELS + 16 * WIDTH


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
    """Lay out keys as panels of tokens and values as panels of channels, block by block; items are sample × block.

    keys: `[sample, head, block, BLOCK / PANEL, d, PANEL]`; values: `[sample, head, block, panels of d, BLOCK, PANEL]`.
    """
    channels = key.first_channels + key.second_channels
    d = channels // heads
    mixed = -(-d // PANEL) * PANEL
    tokens = key.height * key.width
    while True:
        item = next_item(counter)
        if item >= items:
            return
        slot, block = item // blocks, item % blocks
        for i in range(min(BLOCK, tokens - block * BLOCK)):
            token = block * BLOCK + i
            y, x = token // key.width, token % key.width
            read_pixel(key, samples[slot], y, x, scratch, 0)
            for c in range(channels):
                head = (slot * heads + c // d) * blocks + block
                keys[head * BLOCK * d + (i // PANEL * d + c % d) * PANEL + i % PANEL] = scratch[c]
            read_pixel(value, samples[slot], y, x, scratch, 0)
            for c in range(channels):
                head = (slot * heads + c // d) * blocks + block
                panel = c % d // PANEL
                values[head * BLOCK * mixed + (panel * BLOCK + i) * PANEL + c % d % PANEL] = scratch[c]


@kernel(
    types.void(
        types.int64[::1],
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
    """Items are tiles; `slots[t]` is where the packed keys and values of tile t's sample lie."""
    channels = w.channels
    d = channels // heads
    mixed = -(-d // PANEL) * PANEL
    scale = splat(np.float32(1.0 / np.sqrt(np.float64(d))))
    q = 0
    scores = q + PIXELS * channels + WIDTH
    mix = scores + PIXELS * BLOCK
    part = mix + PIXELS * mixed
    high = part + PIXELS * mixed
    weight = high + PIXELS
    result = weight + PIXELS
    single = result + PIXELS * channels  # one vector, to take a lane from
    while True:
        t = next_item(counter)
        if t >= items:
            return
        n, row, column = tiles[t, 0], tiles[t, 1], tiles[t, 2]
        read_window(query, n, row * TILE, column * TILE, TILE, TILE, scratch, q, channels)
        for h in range(heads):
            for i in range(PIXELS):
                scratch[high + i] = np.float32(-np.inf)
                scratch[weight + i] = np.float32(0.0)
            for c in range(0, PIXELS * mixed, WIDTH):
                store(scratch, mix + c, splat(0.0))
            head = (slots[t] * heads + h) * blocks
            for block in range(blocks):
                count = min(BLOCK, tokens - block * BLOCK)
                at = (head + block) * BLOCK * d
                panels = -(-count // PANEL)
                multiply(scratch, q + h * d, channels, keys, at, scratch, scores, BLOCK, PIXELS, d, panels)
                for i in range(PIXELS):
                    s = scores + i * BLOCK
                    for j in range(count, panels * PANEL):
                        scratch[s + j] = np.float32(-np.inf)
                    most = splat(np.float32(-np.inf))
                    for j in range(0, panels * PANEL, WIDTH):
                        v = load(scratch, s + j) * scale
                        store(scratch, s + j, v)
                        most = largest(v, most)
                    before = scratch[high + i]
                    now = max(before, peak(most))
                    sums = splat(0.0)
                    for j in range(0, panels * PANEL, WIDTH):
                        v = exponential(load(scratch, s + j) - splat(now))
                        store(scratch, s + j, v)
                        sums = sums + v
                    for j in range(count, panels * PANEL):  # e^-87 is not quite 0
                        scratch[s + j] = np.float32(0.0)
                    summed = total(sums)
                    if count < panels * PANEL:
                        summed = np.float32(0.0)
                        for j in range(count):
                            summed += scratch[s + j]
                    # what was mixed so far is scaled down to the new largest score
                    store(scratch, single, exponential(splat(before - now)))
                    shrink = scratch[single] if block > 0 else np.float32(0.0)
                    scratch[high + i] = now
                    scratch[weight + i] = scratch[weight + i] * shrink + summed
                    for c in range(0, mixed, WIDTH):
                        m = mix + i * mixed + c
                        store(scratch, m, load(scratch, m) * splat(shrink))
                at = (head + block) * BLOCK * mixed
                for panel in range(mixed // PANEL):
                    first = at + panel * BLOCK * PANEL
                    to = part + panel * PANEL
                    multiply(scratch, scores, BLOCK, values, first, scratch, to, mixed, PIXELS, count, 1)
                for c in range(0, PIXELS * mixed, WIDTH):
                    store(scratch, mix + c, load(scratch, mix + c) + load(scratch, part + c))
            for i in range(PIXELS):
                over = splat(np.float32(1.0) / scratch[weight + i])
                for c in range(0, mixed, WIDTH):
                    m = mix + i * mixed + c
                    store(scratch, m, load(scratch, m) * over)
                for c in range(d):
                    scratch[result + i * channels + h * d + c] = scratch[mix + i * mixed + c]
        write_tile(w, n, row, column, 0, channels, result, channels, TILE * channels, scratch, single)
