"""Look-ups: a convolution of one-hot channels, as the sum of table rows it is."""

from __future__ import annotations

from typing import Any

from numba import types

from ..interface import TILE
from .items import take_tiles
from .jit import kernel
from .simd import WIDTH, load, splat, store
from .writing import PIXELS, WRITING, write_tile


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int64,
        types.int32[:, ::1],
        types.int32[:, :, :, ::1],
        types.float32[::1],
        types.int64,
        types.int64,
        types.int64,
        WRITING,
        types.float32[::1],
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
    w: Any,
    scratch: Any,
) -> None:
    """The sum of the table's rows that a window of indices names; items are batches of tiles."""
    channels, half = w.channels, side // 2
    height, width, planes = indices.shape[1:]
    whole = channels - channels % WIDTH
    for t in take_tiles(counter, items, batch, len(tiles)):
        n, row, column = tiles[t, 0], tiles[t, 1], tiles[t, 2]
        for i in range(min(TILE, w.height - row * TILE)):
            for j in range(min(TILE, w.width - column * TILE)):
                at = (i * TILE + j) * channels
                for c in range(0, channels, WIDTH):
                    store(scratch, at + c, splat(0.0))
                for tap in range(side * side):
                    y = (row * TILE + i + tap // side - half) * step
                    x = (column * TILE + j + tap % side - half) * step
                    if y < 0 or y >= height or x < 0 or x >= width:
                        continue
                    for plane in range(planes):
                        label = indices[n, y, x, plane]
                        if label >= 0:
                            entry = (tap * labels + label) * channels
                            for c in range(0, whole, WIDTH):
                                v = load(scratch, at + c) + load(table, entry + c)
                                store(scratch, at + c, v)
                            for c in range(whole, channels):
                                scratch[at + c] += table[entry + c]
        spare = PIXELS * channels + WIDTH
        write_tile(w, n, row, column, 0, channels, 0, channels, TILE * channels, scratch, spare)
