"""Difference masks and their pyramid: an input's changed pixels come in, changed pixels of every resolution come out.

The arithmetic is SIGE's (arXiv 2211.02048, section 3, and `sige/utils.py`), per sample, with two corrections: an empty
mask stays empty, and a mask that vanishes in downsampling keeps the pixels under the edit. It runs in the box around
the changed pixels, so its cost depends on the size of the edit, not of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sparsegen.backends.interface import TILE, Host

from ..errors import InputError, ShapeError
from .tiles import TileSet

EPS = 1e-3


def dilate(mask: Host, radius: int) -> Host:
    """Grow a mask `[..., H, W]` by a cross: `radius` pixels up, down, left and right, not diagonally.

    The cross is SIGE's shape; its published masks and MACs depend on it.
    """
    grown = mask.copy()
    for i in range(1, radius + 1):
        grown[..., i:, :] |= mask[..., :-i, :]
        grown[..., :-i, :] |= mask[..., i:, :]
        grown[..., :, i:] |= mask[..., :, :-i]
        grown[..., :, :-i] |= mask[..., :, i:]
    return grown


def dilated(shape: tuple[int, int, int], box: Host, at: tuple[int, int, int], radius: int) -> TileSet:
    """The True pixels of a `box`, placed as in `TileSet.of_box`, grown by a cross of `radius` within the image."""
    samples, height, width = box.shape
    wide = np.zeros((samples, height + 2 * radius, width + 2 * radius), bool)
    wide[:, radius : radius + height, radius : radius + width] = box
    return TileSet.of_box(shape, dilate(wide, radius), (at[0], at[1] - radius, at[2] - radius))


def resample(v: Host, axis: int, size: int, *, begin: int, length: int) -> tuple[Host, int]:
    """Resample one axis of `length` to `size`, as `F.interpolate(mode="bilinear")` does (no antialiasing).

    `v` holds the values from `begin` on (at least one); all others are 0. Returns the resampled values in the same
    form, and the index at which they begin.
    """
    end = begin + v.shape[axis]
    # output i reads the line at (i + 0.5) * length / size - 0.5 and the next one; every output that reads a line of
    # begin … end lies in start … stop, with at most one other on each side
    start = max(0, (2 * begin - 1) * size // (2 * length) - 1)
    stop = min(size, (2 * end + 1) * size // (2 * length) + 1)
    # pixel centres aligned, as PyTorch's align_corners=False
    at = np.maximum((np.arange(start, stop) + 0.5) * (length / size) - 0.5, 0)
    low = at.astype(np.intp)
    high = np.minimum(low + 1, length - 1)
    shape = [1] * v.ndim
    shape[axis] = stop - start
    t = (at - low).astype(np.float32).reshape(shape)
    # one line of zeros on each side stands for every line outside
    shape = [*v.shape]
    shape[axis] += 2
    padded = np.zeros(shape, np.float32)
    padded[(*(slice(None),) * axis, slice(1, -1))] = v
    below, above = (padded.take(i - (begin - 1), axis, mode="clip") for i in (low, high))
    return np.asarray(below * (1 - t) + above * t), start


def halvings(height: int, width: int) -> list[tuple[int, int]]:
    """The sizes of all resolutions, from the input's down to one pixel, halving (rounding down) each time."""
    sizes = [(height, width)]
    while sizes[-1] != (1, 1):
        height, width = sizes[-1]
        sizes.append((max(1, height // 2), max(1, width // 2)))
    return sizes


def pyramid(changed: TileSet, *, dilation: int, threshold: float = 0.3) -> Iterator[TileSet]:
    """The changed pixels of every resolution, in the order of `halvings`.

    Each level is the level above resampled bilinearly (before its dilation), cut at
    min(`threshold`, its maximum - 1e-3), then dilated by `dilation`. A sample whose largest value is at most 1e-3
    keeps the pixels under the edit instead.
    """
    n, top, left = changed.first[0], changed.first[1] * TILE, changed.first[2] * TILE
    values = changed.box.astype(np.float32)
    sizes = halvings(changed.height, changed.width)
    for level, (height, width) in enumerate(sizes):
        shape = (changed.samples, height, width)
        if not changed.count:
            yield TileSet.empty(*shape)
            continue
        if level:
            values, top = resample(values, 1, height, begin=top, length=sizes[level - 1][0])
            values, left = resample(values, 2, width, begin=left, length=sizes[level - 1][1])
        highest = values.max((1, 2), keepdims=True)
        mask = values > np.minimum(threshold, highest - EPS)
        faded = highest[:, 0, 0] <= EPS
        if faded.any():
            mask[faded] = False
            sample, y, x = _under(changed, faded, sizes[1 : level + 1])
            mask[sample, y - top, x - left] = True
        yield dilated(shape, mask, (n, top, left), dilation)


def _under(changed: TileSet, samples: Host, sizes: Sequence[tuple[int, int]]) -> tuple[Host, Host, Host]:
    """Sample, row and column of the pixels under the changed pixels, after halving to each of `sizes`.

    `samples` bool: the samples of the box to take. Where an odd size is halved, its last line joins the one before.
    """
    sample, y, x = np.nonzero(changed.box & samples[:, None, None])
    y, x = y + changed.first[1] * TILE, x + changed.first[2] * TILE
    for height, width in sizes:
        y, x = np.minimum(y // 2, height - 1), np.minimum(x // 2, width - 1)
    return sample, y, x


def check_mask(mask: Any, shape: tuple[int, int, int]) -> Host:
    """A user's mask as bool `[N, H, W]`; one `[H, W]` serves all samples. Raises InputError, ShapeError."""
    array = np.asarray(mask)
    if array.dtype != bool:
        if not np.isin(array, (0, 1)).all():
            raise InputError(f"the mask is {array.dtype} with values other than 0 and 1; give booleans")
        array = array.astype(bool)
    if array.shape not in (shape, shape[1:]):
        raise ShapeError(f"the mask is {array.shape}, expected {shape[1:]} or {shape}")
    return np.broadcast_to(array, shape)


def difference_mask(original: Mapping[str, Host], edited: Mapping[str, Host], *, eps: float = 0.0) -> Host:
    """bool `[N, H, W]`: the pixels where any channel of two inputs differs by more than `eps` ≥ 0.

    Both hold the same names and shapes `[N, H, W, P]`. A NaN differs from every value, also from a NaN; equal
    infinities do not differ.
    """
    mask: Host | None = None
    for name, before in original.items():
        after = edited[name]
        for channel in range(before.shape[3]):  # one by one: reductions over a short last axis are slow
            a, b = before[..., channel], after[..., channel]
            differs: Host = a != b
            if eps and differs.any():
                rows = np.flatnonzero(differs.any((0, 2)))
                part = slice(rows[0], rows[-1] + 1)
                a, b = a[:, part], b[:, part]
                if np.issubdtype(a.dtype, np.integer):  # the difference of two int32 may need 33 bits
                    a = a.astype(np.int64)
                with np.errstate(invalid="ignore"):  # the difference of equal infinities
                    differs[:, part] &= ~(np.abs(a - b) <= eps)
            mask = differs if mask is None else mask | differs
    assert mask is not None  # an input has a canvas, and a canvas a channel
    return np.asarray(mask)
