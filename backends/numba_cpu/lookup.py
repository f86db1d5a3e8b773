"""Look-ups: a convolution of one-hot channels, as the sum of table rows that it is."""

from __future__ import annotations

from typing import Any, NamedTuple

from numba.types import float32, int32, int64, void

from ..interface import TILE, Array, Tiles
from .arrays import contiguous, flat
from .handover import shared
from .items import COUNTER, TILES, take_tiles
from .jit import inline
from .launch import Launcher
from .regions import OVERRUN, SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH, load, splat, store
from .writing import PIXELS, WRITING, Writing, residual_floats, scatter_tiles


class Layout(NamedTuple):
    """A thread's scratch.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | sums | [TILE, TILE, C] + OVERRUN | `_add_rows` | scatter |
    | residual | as `scatter_tiles` takes it | scatter | scatter |
    """

    sums: int
    residual: int
    size: int


LAYOUT = layout_type(Layout)


@remembered
def layout(channels: int, residual: int) -> Layout:
    """The scratch for tiles of so many channels, with `residual` floats for the residual."""
    regions = Regions()
    return Layout(
        sums=regions.add(PIXELS * channels + OVERRUN),
        residual=regions.add(residual),
        size=regions.size,
    )


@inline
def _add_rows(
    indices: Any,
    table: Any,
    labels: int,
    side: int,
    step: int,
    n: int,
    y: int,
    x: int,
    channels: int,
    scratch: Any,
    at: int,
) -> None:
    """`scratch[at:] = Σ_taps,planes table[tap, indices[n, y + …, x + …, plane]]` of output pixel (y, x).

    Pixels are written in ascending order: up to WIDTH - 1 floats past the channels are cleared with them.
    """
    height, width, planes = indices.shape[1:]
    whole, half = channels - channels % WIDTH, side // 2
    for c in range(0, channels, WIDTH):
        store(scratch, at + c, splat(0.0))
    for tap in range(side * side):
        yy, xx = (y + tap // side - half) * step, (x + tap % side - half) * step
        if yy < 0 or yy >= height or xx < 0 or xx >= width:
            continue
        for plane in range(planes):
            label = indices[n, yy, xx, plane]
            if label >= 0:
                row = (tap * labels + label) * channels
                for c in range(0, whole, WIDTH):
                    store(scratch, at + c, load(scratch, at + c) + load(table, row + c))
                for c in range(whole, channels):
                    scratch[at + c] += table[row + c]


@shared(
    void(
        COUNTER,
        int64,
        int64,
        TILES,
        int32[:, :, :, ::1],
        float32[::1],
        int64,
        int64,
        int64,
        WRITING,
        LAYOUT,
        SCRATCH,
    )
)
def look_up(
    counter: Any,
    items: int,
    batch: int,
    tiles: Any,
    indices: Any,
    table: Any,
    labels: int,
    side: int,
    step: int,
    out: Any,
    at: Any,
    scratch: Any,
) -> None:
    """`out[tiles] = activation(Σ_taps,planes table[tap, index] + bias)`; items are batches of tiles."""
    channels = out.channels
    for t in take_tiles(counter, items, batch, len(tiles)):
        n, top, left = tiles[t, 0], tiles[t, 1] * TILE, tiles[t, 2] * TILE
        for i in range(min(TILE, out.height - top)):
            for j in range(min(TILE, out.width - left)):
                sums = at.sums + (i * TILE + j) * channels
                _add_rows(indices, table, labels, side, step, n, top + i, left + j, channels, scratch, sums)
        scatter_tiles(out, tiles, t, 1, 0, channels, scratch, at.sums, channels, at.residual)


def launch(
    launcher: Launcher, canvas: Array, tiles: Tiles, indices: Array, table: Array, step: int, out: Writing
) -> None:
    """Look `table` `[k * k, V, O]` up for `tiles` of `canvas`, by `indices` int32 `[N, H, W, P]`."""
    taps, labels, _ = table.shape
    at = layout(out.channels, residual_floats(out))
    args = (contiguous(indices, "i"), flat(table), labels, round(taps**0.5), step, out, at)
    launcher.over_tiles(look_up, canvas, tiles, args, at.size)
