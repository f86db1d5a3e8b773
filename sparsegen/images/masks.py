"""Masks: a file comes in, booleans come out, True for the pixels to recompute."""

from __future__ import annotations

import numpy as np

from sparsegen.backends.interface import Host

from ..checks import warn
from ..errors import InputError
from .files import ImageFile, Source, read_file
from .frames import Frame, named

NEARLY_ALL, MOST = 0.9, 0.5
"""Shares of masked pixels at which a mask is probably inverted: a mask by brightness, an alpha channel."""


def read_mask(source: Source, *, frame: Frame | None = None) -> Host:
    """A mask, bool `[H, W]`, upright by its EXIF orientation.

    A pixel is masked if its brightest channel is at least half of the format's range: 128 of 255, 32768 of 65535, white
    of 1 bit, the colour (not the index) of a palette. If some pixels are at least half opaque and others are not, the
    opaque pixels must be all bright or all dark: then the alpha channel is the mask, whatever the colour of its
    strokes, and opaque pixels are masked. (Some inpainting tools mask the transparent ones.) `frame` crops and resizes
    the mask (nearest neighbour). A UserWarning is given when 90 % or more is masked; of an alpha channel, more than
    half.

    Raises
    ------
    InputError, ShapeError
        No pixel is masked, or none is opaque; colour and alpha channel both look like the mask; the file cannot be
        read; its size is not that of the frame's files.
    """
    file = read_file(source)
    whole, is_alpha = _masked(file)
    mask = whole if frame is None else frame.nearest(whole, file.path)
    if not whole.any():
        raise InputError(
            f"{file.path}: the mask is empty, no pixel is at least half as bright as white; paint the pixels to "
            "recompute white on black (a mask of 0 and 1 must be saved as 0 and 255)"
        )
    share = float(mask.mean())
    if frame is not None and not share:
        raise InputError(
            f"{file.path}: no masked pixel is left of the middle {named(frame.crop)} of {named(frame.source)}, resized "
            f"to {named(frame.size)}; paint the mask there, or crop less"
        )
    if is_alpha and share > MOST:
        warn(
            f"{file.path}: its alpha channel is the mask, and {share:.1%} of the pixels are opaque, so recomputed; "
            "to recompute the transparent part instead, paint it white on black"
        )
    elif share >= NEARLY_ALL:
        warn(
            f"{file.path}: {share:.1%} of the pixels are masked, nearly everything is recomputed; "
            "a mask is white (or opaque) on the pixels to recompute and black elsewhere"
        )
    return mask


def _masked(file: ImageFile) -> tuple[Host, bool]:
    """(the mask, whether it is the alpha channel)"""
    bright, alpha = _bright(file), file.alpha()
    if alpha is None:
        return bright, False
    opaque = alpha >= 128
    if opaque.all():
        return bright, False
    if not opaque.any():
        raise InputError(
            f"{file.path}: the mask is transparent everywhere; paint the pixels to recompute white on black"
        )
    painted = bright[opaque]
    if painted.any() and not painted.all():
        raise InputError(
            f"{file.path}: colour and transparency both vary, either could be the mask; save white on black without "
            "transparency"
        )
    return opaque, True


def _bright(file: ImageFile) -> Host:
    """Where the brightest channel is at least half of its range."""
    if file.is_grey:
        file.check_range()
        return file.samples() * 2 > file.levels
    return np.asarray(file.rgb().max(-1) >= 128)
