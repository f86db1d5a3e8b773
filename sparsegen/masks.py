"""Difference masks and their pyramid: a bool mask `[N, H, W]` comes in, one mask per resolution comes out.

The arithmetic is SIGE's (arXiv 2211.02048, section 3, and `sige/utils.py`), per sample, with its two slips mended:
an empty mask stays empty, and one that downsampling loses keeps the pixels under the edit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsegen.backends.interface import Host

EPS = 1e-3


def dilate(mask: Host, radius: int) -> Host:
    """Grow a mask `[..., H, W]` by a cross: `radius` pixels up, down, left and right, not diagonally.

    SIGE's shape, kept because its published masks and MACs come from it.
    """
    grown = mask.copy()
    for i in range(1, radius + 1):
        grown[..., i:, :] |= mask[..., :-i, :]
        grown[..., :-i, :] |= mask[..., i:, :]
        grown[..., :, i:] |= mask[..., :, :-i]
        grown[..., :, :-i] |= mask[..., :, i:]
    return grown


def _bilinear_axis(v: Host, size: int, axis: int) -> Host:
    """Resample one axis bilinearly, pixel centres aligned as PyTorch's `align_corners=False`, no antialiasing."""
    length = v.shape[axis]
    at = np.maximum((np.arange(size) + 0.5) * (length / size) - 0.5, 0)
    low = at.astype(np.intp)
    high = np.minimum(low + 1, length - 1)
    shape = [1] * v.ndim
    shape[axis] = size
    t = (at - low).astype(np.float32).reshape(shape)
    return np.asarray(v.take(low, axis) * (1 - t) + v.take(high, axis) * t)


def bilinear(v: Host, height: int, width: int) -> Host:
    """Resample `[N, H, W]` to `height` × `width`, as `F.interpolate(mode="bilinear")` does."""
    return _bilinear_axis(_bilinear_axis(v, height, 1), width, 2)


def _any_below(mask: Host) -> Host:
    """Halve a mask `[N, H, W]`: a pixel is True when any of the 2×2 under it is (an odd last line joins in)."""
    n, h, w = mask.shape
    pad = np.pad(mask, ((0, 0), (0, 2 * -(-h // 2) - h), (0, 2 * -(-w // 2) - w)))
    halved = np.asarray(pad.reshape(n, -(-h // 2), 2, -(-w // 2), 2).any((2, 4)))
    if h % 2 and h > 1:
        halved[:, -2] |= halved[:, -1]
    if w % 2 and w > 1:
        halved[:, :, -2] |= halved[:, :, -1]
    return halved[:, : max(1, h // 2), : max(1, w // 2)]


def pyramid(mask: Host, *, dilation: int, threshold: float = 0.3) -> Iterator[Host]:
    """The mask of every resolution, from `[N, H, W]` down to one pixel, halving (rounding down) each time.

    Each level is the level above resampled bilinearly (before its dilation), cut at
    min(`threshold`, its maximum - 1e-3), then dilated by `dilation`. A sample whose values fall under 1e-3 keeps
    the pixels under the edit instead.
    """
    values, under = mask.astype(np.float32), mask
    while True:
        highest = values.max((1, 2), keepdims=True)
        level = values > np.minimum(threshold, highest - EPS)
        level = np.where(highest > EPS, level, under)
        yield dilate(level, dilation)
        _, height, width = values.shape
        if height == 1 and width == 1:
            return
        values = bilinear(values, max(1, height // 2), max(1, width // 2))
        under = _any_below(under)
