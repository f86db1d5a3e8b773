"""Attention: each active pixel against all pixels of its sample, with no matrix of scores.

    out = softmax(q kᵀ / sqrt(d)) v

Keys are taken in blocks (the online softmax of arXiv 1805.02867). Each query keeps its highest score h so far, the sum
w of its weights and their mix m of the values; a block of keys with the scores s changes them to

    h' = max(h, max s)      p = 2^(s - h')      w' = w · 2^(h - h') + Σ p      m' = m · 2^(h - h') + p v

and after the last block out = m / w. Queries are scaled by log2(e) / sqrt(d) first: weights are powers of 2 then.

Scores are kept with a row for each key and a panel of queries in a row, so vectors run along queries in the softmax
too. Keys are read where they lie, in their canvas; a block of values is copied into panels once for all queries of an
item. So nothing is packed before the first query, and a few active tiles take time in proportion to their number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.types import float32, int32, int64, void

from ..interface import TILE, Array, Host
from .gemm import DEPTH, LINE, PANEL, ROWS, multiply_across, multiply_rows
from .handover import shared
from .items import COUNTER, TILES, take_items
from .jit import inline
from .launch import Launcher
from .reading import READING, Reading, is_canvas, read_pixel, read_tile
from .regions import OVERRUN, SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH, fetch, largest, load, power_below, splat, store, store_some, transpose, where_below
from .sizes import ceil_div, round_up, share_of, whole_vectors
from .writing import PIXELS, WRITING, Writing, residual_floats, scatter_tiles

BLOCK = 192 // ROWS * ROWS
"""Keys taken at a time: their scores for a panel of queries fill half of a first-level cache."""
TOGETHER = 8
"""Tiles whose queries are taken together, at most: each reads the keys and values once less."""
CHUNK = 64
"""Tokens of an item of `write_tokens`."""


# -- keys and values that cannot be read where they lie --------------------------------------------------


class TokensLayout(NamedTuple):
    """A thread's scratch for `write_tokens`.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | pixel | [C] + OVERRUN | gather | `write_tokens` |
    """

    pixel: int
    size: int


TOKENS_LAYOUT = layout_type(TokensLayout)


@remembered
def tokens_layout(channels: int) -> TokensLayout:
    """The scratch for tokens of so many channels."""
    regions = Regions()
    return TokensLayout(pixel=regions.add(channels + OVERRUN), size=regions.size)


@shared(void(COUNTER, int64, int32[::1], READING, float32[::1], TOKENS_LAYOUT, SCRATCH))
def write_tokens(
    counter: Any, items: int, samples: Any, source: Any, out: Any, at: Any, scratch: Any
) -> None:
    """The pixels of `samples` with no work pending, `out` `[samples, tokens, C]`; items are CHUNK of a sample's."""
    channels = source.first_channels + source.second_channels
    tokens = source.height * source.width
    chunks = ceil_div(tokens, CHUNK)
    for item in take_items(counter, items):
        slot, first = item // chunks, item % chunks * CHUNK
        for token in range(first, min(first + CHUNK, tokens)):
            y, x = token // source.width, token % source.width
            read_pixel(source, samples[slot], y, x, scratch, at.pixel)
            to = (slot * tokens + token) * channels
            for c in range(channels):
                out[to + c] = scratch[at.pixel + c]


# -- attending -------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """A thread's scratch for `attend`: R rows are queries, in whole panels; D the channels of a head in whole vectors.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | pixels | [R, C] + OVERRUN | gather, `_divide`: a head's results | `_take_queries`, scatter |
    | queries | [R / PANEL, d, PANEL] | `_take_queries` | `_score` |
    | values | [panels of D, BLOCK, PANEL], then vectors | `_take_values` | `_mix` |
    | scores | [BLOCK, PANEL] | `_score`; `_weigh`: weights | `_weigh`, `_mix` |
    | mixes | [R, D] | `_mix` | `_mix`, `_divide` |
    | highest | [R] | `_weigh` | `_weigh` |
    | weights | [R]: sums of weights | `_weigh` | `_weigh`, `_divide` |
    | shrinks | [PANEL] | `_weigh` | `_mix` |
    | places | [R]: each query's token | `_locate` | `_hide` |
    | residual | as `scatter_tiles` takes it | scatter | scatter |
    """

    pixels: int
    queries: int
    values: int
    scores: int
    mixes: int
    highest: int
    weights: int
    shrinks: int
    places: int
    residual: int
    size: int
    channels: int
    """d: channels of a head."""
    mixed: int
    """D: floats from one row to the next in `mixes`."""


LAYOUT = layout_type(Layout)


@remembered
def layout(batch: int, channels: int, heads: int, *, residual: int) -> Layout:
    """The scratch for batches of `batch` tiles of so many channels, with `residual` floats for the residual."""
    rows, d = round_up(batch * PIXELS, PANEL), channels // heads
    mixed = whole_vectors(d)
    regions = Regions()
    return Layout(
        pixels=regions.add(rows * channels + OVERRUN),
        queries=regions.add(rows * d),
        values=regions.add(BLOCK * mixed),
        scores=regions.add(BLOCK * PANEL),
        mixes=regions.add(rows * mixed),
        highest=regions.add(rows),
        weights=regions.add(rows),
        shrinks=regions.add(PANEL),
        places=regions.add(rows),
        residual=regions.add(residual),
        size=regions.size,
        channels=d,
        mixed=mixed,
    )


@inline
def _locate(tiles: Any, first: int, count: int, out: Any, at: Any, scratch: Any) -> None:
    """`places` of the queries of `count` tiles; one that overhangs the image has the place of one inside."""
    for i in range(count * PIXELS):
        tile, pixel = first + i // PIXELS, i % PIXELS
        y = min(tiles[tile, 1] * TILE + pixel // TILE, out.height - 1)
        x = min(tiles[tile, 2] * TILE + pixel % TILE, out.width - 1)
        scratch[at.places + i] = np.float32(y * out.width + x)


@inline
def _take_queries(rows: int, head: int, channels: int, scale: Any, at: Any, scratch: Any) -> None:
    """`queries = pixels · scale` of one head, in panels, and `h = -∞`, `w = 0`, `m = 0`; rows past `rows` are 0."""
    d = at.channels
    for panel in range(0, rows, PANEL):
        to, count = at.queries + panel * d, min(PANEL, rows - panel)
        if count < PANEL:
            for c in range(0, PANEL * d, WIDTH):
                store(scratch, to + c, splat(0.0))
        whole = d - d % WIDTH
        for i in range(0, count, WIDTH):
            row = at.pixels + (panel + i) * channels + head * d
            for c in range(0, whole, WIDTH):
                transpose(scratch, row + c, channels, splat(scale), scratch, to + c * PANEL + i, PANEL)
            for k in range(WIDTH):
                for c in range(whole, d):
                    scratch[to + c * PANEL + i + k] = scratch[row + k * channels + c] * scale
    end = round_up(rows, PANEL)
    for i in range(0, end, WIDTH):
        store(scratch, at.highest + i, splat(-np.inf))
        store(scratch, at.weights + i, splat(0.0))
    for c in range(0, end * at.mixed, WIDTH):
        store(scratch, at.mixes + c, splat(0.0))


@inline
def _take_values(count: int, values: Any, first: int, stride: int, at: Any, scratch: Any) -> None:
    """A block's values in panels: `count` tokens of one head, the first from `values[first]` on, `stride` apart."""
    whole = at.mixed - at.mixed % PANEL
    for j in range(count):
        token, to = first + j * stride, at.values + j * PANEL
        for panel in range(0, whole, PANEL):
            for c in range(0, PANEL, WIDTH):
                store(scratch, to + panel * BLOCK + c, load(values, token + panel + c))
        for c in range(whole, at.mixed, WIDTH):
            store(scratch, at.values + c * BLOCK + j * WIDTH, load(values, token + c))


@inline
def _fetch(count: int, of: Any, first: int, stride: int, at: Any) -> None:
    """Prefetch one head of `count` tokens, the first from `of[first]` on, `stride` floats apart."""
    for j in range(count):
        for c in range(0, at.channels + LINE - 1, LINE):
            fetch(of, first + j * stride + c)


@inline
def _score(count: int, panel: int, keys: Any, first: int, stride: int, at: Any, scratch: Any) -> None:
    """`scores = k qᵀ` of one head: `count` keys, the first from `keys[first]` on, and a panel of queries."""
    for c in range(0, at.channels, DEPTH):
        steps, queries = min(DEPTH, at.channels - c), at.queries + panel * at.channels + c * PANEL
        k = first + c
        multiply_rows(keys, k, stride, scratch, queries, scratch, at.scores, PANEL, count, steps, c)


@inline
def _hide(count: int, panel: int, first: int, at: Any, scratch: Any) -> None:
    """-∞ for the scores of keys behind a query's place: `count` keys, the first being token `first`."""
    for v in range(0, PANEL, WIDTH):
        place = load(scratch, at.places + panel + v)
        for j in range(count):
            s = at.scores + j * PANEL + v
            token = splat(np.float32(first + j))
            store(scratch, s, where_below(place, token, splat(-np.inf), load(scratch, s)))


@inline
def _weigh(count: int, panel: int, at: Any, scratch: Any) -> None:
    """`p = 2^(s - h')` in the place of the scores s of a panel of queries, their h' and w', and `2^(h - h')`."""
    four = count - count % 4
    for v in range(0, PANEL, WIDTH):
        s = at.scores + v
        before = load(scratch, at.highest + panel + v)
        now, a, b, c = before, before, before, before  # four chains: each waits for its last comparison
        for j in range(s, s + four * PANEL, 4 * PANEL):
            now, a = largest(load(scratch, j), now), largest(load(scratch, j + PANEL), a)
            b, c = largest(load(scratch, j + 2 * PANEL), b), largest(load(scratch, j + 3 * PANEL), c)
        for j in range(s + four * PANEL, s + count * PANEL, PANEL):
            now = largest(load(scratch, j), now)
        now = largest(largest(now, a), largest(b, c))
        sums = splat(0.0)
        for j in range(s, s + count * PANEL, PANEL):
            p = power_below(load(scratch, j) - now)
            store(scratch, j, p)
            sums = sums + p
        shrink = power_below(before - now)
        store(scratch, at.highest + panel + v, now)
        weights = at.weights + panel + v
        store(scratch, weights, load(scratch, weights) * shrink + sums)
        store(scratch, at.shrinks + v, shrink)


@inline
def _mix(count: int, panel: int, at: Any, scratch: Any) -> None:
    """`m' = m · 2^(h - h') + p v` of a panel of queries and the block's `count` values."""
    mixes = at.mixes + panel * at.mixed
    for i in range(PANEL):
        shrink, row = splat(scratch[at.shrinks + i]), mixes + i * at.mixed
        for c in range(row, row + at.mixed, WIDTH):
            store(scratch, c, load(scratch, c) * shrink)
    whole = at.mixed - at.mixed % PANEL
    for j in range(0, count, DEPTH):
        steps, p = min(DEPTH, count - j), at.scores + j * PANEL
        for c in range(0, whole, PANEL):
            v = at.values + c * BLOCK + j * PANEL
            multiply_across(scratch, p, scratch, v, scratch, mixes + c, at.mixed, steps, False)
        for c in range(whole, at.mixed, WIDTH):
            v = at.values + c * BLOCK + j * WIDTH
            multiply_across(scratch, p, scratch, v, scratch, mixes + c, at.mixed, steps, True)


@inline
def _divide(rows: int, head: int, channels: int, at: Any, scratch: Any) -> None:
    """`m / w` of one head, in the place of its queries' pixels."""
    whole = at.channels - at.channels % WIDTH
    for i in range(rows):
        mix, result = at.mixes + i * at.mixed, at.pixels + i * channels + head * at.channels
        over = splat(np.float32(1.0) / scratch[at.weights + i])
        for c in range(0, whole, WIDTH):
            store(scratch, result + c, load(scratch, mix + c) * over)
        if whole < at.channels:
            v = load(scratch, mix + whole) * over
            store_some(scratch, result + whole, v, at.channels - whole)


@shared(
    void(
        COUNTER,
        int64,
        int64,
        int64,
        TILES,
        int32[::1],
        READING,
        float32[::1],
        float32[::1],
        int64,
        int64,
        int64,
        WRITING,
        LAYOUT,
        SCRATCH,
    )
)
def attend(
    counter: Any,
    items: int,
    batch: int,
    splits: int,
    tiles: Any,
    slots: Any,
    query: Any,
    keys: Any,
    values: Any,
    tokens: int,
    heads: int,
    causal: int,
    out: Any,
    at: Any,
    scratch: Any,
) -> None:
    """`out[tiles] = softmax(q kᵀ / sqrt(d)) v`; items are batches of tiles × one of `splits` shares of the heads.

    `keys` and `values` are `[slots, tokens, C]`; `slots[t]` is the one of tile t's sample.
    """
    channels, d = out.channels, at.channels
    scale = np.float32(1.4426950408889634 / np.sqrt(np.float64(d)))
    for item in take_items(counter, items):
        t, end = item // splits * batch, min((item // splits + 1) * batch, len(tiles))
        begin_head, end_head = share_of(heads, item % splits, splits)
        while t < end:
            together = 1  # tiles of one sample
            while t + together < end and slots[t + together] == slots[t]:
                together += 1
            rows = together * PIXELS
            for i in range(together):
                read_tile(query, tiles, t + i, scratch, at.pixels + i * PIXELS * channels)
            if causal:
                _locate(tiles, t, together, out, at, scratch)
            for head in range(begin_head, end_head):
                _take_queries(rows, head, channels, scale, at, scratch)
                for first in range(0, tokens, BLOCK):
                    count = min(BLOCK, tokens - first)
                    block = (slots[t] * tokens + first) * channels + head * d
                    following = min(BLOCK, tokens - first - count)
                    _fetch(following, keys, block + BLOCK * channels, channels, at)
                    _fetch(following, values, block + BLOCK * channels, channels, at)
                    _take_values(count, values, block, channels, at, scratch)
                    for panel in range(0, rows, PANEL):
                        _score(count, panel, keys, block, channels, at, scratch)  # s = k qᵀ
                        if causal:
                            _hide(count, panel, first, at, scratch)
                        _weigh(count, panel, at, scratch)  # p = 2^(s - h')
                        _mix(count, panel, at, scratch)  # m' = m · 2^(h - h') + p v
                _divide(rows, head, channels, at, scratch)  # m / w
            for i in range(together):
                result = at.pixels + i * PIXELS * channels + begin_head * d
                scatter_tiles(
                    out,
                    tiles,
                    t + i,
                    1,
                    begin_head * d,
                    end_head * d,
                    scratch,
                    result,
                    channels,
                    at.residual,
                )
            t += together


def _in_place(source: Reading, width: int) -> bool:
    """Whether heads of `width` channels are read where they lie: whole vectors of them, with no work pending."""
    return is_canvas(source) and width % WIDTH == 0


def _written(launcher: Launcher, source: Reading, samples: Host) -> Array:
    """The tokens of `samples`, flat `[samples, tokens, C]`, and a vector more, with no work pending."""
    channels, tokens = source.first_channels + source.second_channels, source.height * source.width
    out: Array = np.zeros(len(samples) * tokens * channels + OVERRUN, np.float32)
    at = tokens_layout(channels)
    args = (samples, source, out, at)
    launcher.queue(write_tokens, len(samples) * ceil_div(tokens, CHUNK), args, at.size, 8.0 * out.size)
    return out


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
    """Attend; where keys or values cannot be read where they lie, write out those of the samples of `tiles` first.

    `shared`: keys and values are of one sample, for all.
    """
    channels, tokens = out.channels, key.height * key.width
    width = channels // heads
    slots = np.zeros(len(tiles), np.int32) if shared else np.ascontiguousarray(tiles[:, 0])
    if _in_place(key, width) and _in_place(value, width):
        keys, values = key.first, value.first
    else:
        samples, places = np.unique(slots, return_inverse=True)
        slots = places.astype(np.int32)
        keys, values = (_written(launcher, source, samples) for source in (key, value))

    work = 4.0 * PIXELS * tokens * channels
    batch, splits = launcher.items(len(tiles), TOGETHER, heads if width % WIDTH == 0 else 1, work)
    at = layout(batch, channels, heads, residual=residual_floats(out))
    args = (batch, splits, tiles, slots, query, keys, values, tokens, heads, int(causal), out, at)
    launcher.queue(attend, ceil_div(len(tiles), batch) * splits, args, at.size, work * len(tiles))
