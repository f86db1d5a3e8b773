"""Windows: the input pixels that an output pixel reads, and the growth of active tiles through them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from sparsegen.backends.interface import TILE, Host

from .canvas import Canvas
from .tiles import TileSet, whole_tiles


@dataclass(frozen=True)
class Window:
    """The input pixels that a layer's output pixel reads, alike along rows (`top`) and columns (`left`).

    Output row o reads, for tap t in 0 … kernel - 1, row r = o * stride + t - top of the input *as it is read*;
    that row lies in the canvas at r * step // upsample (`step` > 1: read nearest-downsampled).
    """

    kernel: int = 1
    stride: int = 1
    top: int = 0
    left: int = 0
    step: int = 1
    upsample: int = 1

    @property
    def holds_its_pixel(self) -> bool:
        """Whether output pixel (y, x) reads input pixel (y, x)."""
        same = self.stride == self.step == self.upsample == 1
        return same and 0 <= self.top < self.kernel and 0 <= self.left < self.kernel

    def resampled(self, height: int, width: int) -> tuple[int, int]:
        """The size at which a canvas of `height` × `width` is read."""
        return height * self.upsample // self.step, width * self.upsample // self.step


@dataclass(frozen=True)
class Read:
    """One canvas that a layer reads: the pixels that may have changed, and the window through which it is read."""

    changed: TileSet
    window: Window
    everywhere: bool = False
    """Whether every pixel of the output reads every pixel of its sample (attention's keys and values)."""
    canvas: Canvas | None = field(default=None, compare=False, repr=False)
    """The canvas; None where only tiles are counted."""

    def now(self) -> Read:
        """The same read with the changes that its canvas has now."""
        canvas = self.canvas
        return self if canvas is None else Read(canvas.changed, self.window, self.everywhere, canvas)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the canvas as it is read."""
        return self.window.resampled(self.changed.height, self.changed.width)


def _readers(box: Host, axis: int, begin: int, window: Window, before: int, size: int) -> tuple[Host, int]:
    """Along one axis (here rows): the output rows below `size` that read a True row of `box`, which starts at `begin`.

    Returns a box of whole tiles, and the row at which it starts.
    """
    # row r, as it is read, lies in the canvas at r * step // upsample: the first and last that lie in the box,
    low = -(-begin * window.upsample // window.step)
    high = ((begin + box.shape[axis]) * window.upsample - 1) // window.step
    # and the first and last outputs o that read these, where r = o * stride + tap - before
    start = max(0, -((window.kernel - 1 - before - low) // window.stride)) // TILE * TILE
    stop = min(size, (high + before) // window.stride + 1)
    if high < low or stop <= start:
        return np.zeros((0, 0, 0), bool), start
    # all rows that these outputs read; False outside the box
    top = start * window.stride - before
    shape = list(box.shape)
    shape[axis] = (stop - 1 - start) * window.stride + window.kernel
    read = np.zeros(shape, bool)
    low, high = max(low, top), min(high, top + shape[axis] - 1)
    inside = np.arange(low, high + 1) * window.step // window.upsample - begin
    read[_lines(axis, low - top, high + 1 - top)] = box.take(inside, axis)
    shape[axis] = whole_tiles(stop) - start
    grown = np.zeros(shape, bool)
    outputs = grown[_lines(axis, 0, stop - start)]
    for tap in range(window.kernel):
        outputs |= read[_lines(axis, tap, tap + (stop - 1 - start) * window.stride + 1, window.stride)]
    return grown, start


def _lines(axis: int, start: int, stop: int, step: int = 1) -> tuple[slice, ...]:
    """The index of some lines of an axis, and of all lines of the axes before it."""
    return (*(slice(None),) * axis, slice(start, stop, step))


def grow(changed: TileSet, window: Window, height: int, width: int) -> TileSet:
    """The output pixels (of `height` × `width`) whose window reads a changed pixel, and the tiles that hold them.

    Exact: an output pixel is in the result if and only if its receptive field meets `changed`.
    """
    if window == Window() and (height, width) == (changed.height, changed.width):
        return changed
    n, row, column = changed.first
    box, y = _readers(changed.box, 1, row * TILE, window, window.top, height)
    box, x = _readers(box, 2, column * TILE, window, window.left, width)
    return TileSet.of_tile_box((changed.samples, height, width), box, (n, y // TILE, x // TILE))


@lru_cache(maxsize=256)
def _read_along(window: Window, before: int, size: int, outputs: int) -> Host:
    """Along one axis, float32 `[tiles of size, tiles of outputs]`: 1 where an output tile reads from an input tile."""
    first = np.arange(0, outputs, TILE)
    last = np.minimum(first + TILE, outputs) - 1
    low, high = first * window.stride - before, last * window.stride + window.kernel - 1 - before
    low, high = (np.clip(r * window.step // window.upsample, 0, size - 1) // TILE for r in (low, high))
    tile = np.arange(-(-size // TILE))[:, None]
    return ((low <= tile) & (tile <= high)).astype(np.float32)


def read_by(active: TileSet, window: Window, height: int, width: int) -> Host:
    """The tiles, bool `[N, rows, columns]`, of an input of `height` × `width` that the `active` output tiles read.

    The inverse of `grow`, by whole tiles; tiles that lie between two read tiles may be included.
    """
    samples, rows, columns = active.held.shape
    n, row, column = active.first
    down = _read_along(window, window.top, height, active.height)[:, row : row + rows]
    across = _read_along(window, window.left, width, active.width)[:, column : column + columns]
    read = np.zeros((active.samples, len(down), len(across)), bool)
    read[n : n + samples] = down @ active.held.astype(np.float32) @ across.T > 0
    return read
