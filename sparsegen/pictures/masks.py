"""Masks: a file comes in as booleans, True for the pixels to compute anew."""

from __future__ import annotations

import os

import numpy as np

from sparsegen.backends.interface import Host

from ..checks import warn
from ..errors import InputError
from .files import ImageFile, read_file
from .frames import Frame

NEARLY_ALL = 0.9
"""Share of a mask from which on it was probably meant otherwise."""


def read_mask(path: str | os.PathLike[str], *, frame: Frame | None = None) -> Host:
    """A mask, bool `[H, W]`, upright as its camera says.

    A pixel is masked where its brightest channel is at least half of the format's range: 128 of 255, 32768 of 65535,
    white of 1 bit, the colour (not the index) of a palette. Where some pixels are at least half opaque and others are
    not, the opaque ones must be all bright or all dark: then the alpha channel is the mask, whatever the colour of its
    strokes. `frame` crops and resizes the mask (nearest neighbour). A UserWarning says when 90 % or more is masked.

    Raises
    ------
    InputError, ShapeError
        Nothing is masked, or nothing is opaque; colour and alpha channel both look like the mask; the file cannot be
        read; it has another size than the frame's files.
    """
    file = read_file(path)
    mask = _masked(file)
    if frame is not None:
        mask = frame.nearest(mask, path)
    share = float(mask.mean())
    if not share:
        raise InputError(
            f"{file.path}: the mask is empty, no pixel is at least half as bright as white; paint what to compute anew "
            "white on black (a mask of 0 and 1 must be saved as 0 and 255)"
        )
    if share >= NEARLY_ALL:
        warn(
            f"{file.path}: {share:.1%} of the pixels are masked, nearly everything is computed anew; "
            "a mask is white (or opaque) where to compute and black elsewhere"
        )
    return mask


def _masked(file: ImageFile) -> Host:
    bright, alpha = _bright(file), file.alpha()
    if alpha is None:
        return bright
    opaque = alpha >= 128
    if opaque.all():
        return bright
    if not opaque.any():
        raise InputError(
            f"{file.path}: the mask is transparent everywhere; paint what to compute anew white on black"
        )
    painted = bright[opaque]
    if painted.any() and not painted.all():
        raise InputError(
            f"{file.path}: colour and transparency both vary, either could be the mask; save white on black without "
            "transparency"
        )
    return opaque


def _bright(file: ImageFile) -> Host:
    """Where the brightest channel is at least half of its range."""
    if file.is_grey:
        file.check_range()
        return file.samples() * 2 > file.levels
    return np.asarray(file.rgb().max(-1) >= 128)
