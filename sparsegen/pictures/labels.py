"""Label maps: a file comes in as the label of each pixel, whatever order a paint program gave its palette."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from sparsegen.backends.interface import Host

from ..errors import InputError
from .files import ImageFile, Palette, read_file
from .frames import Frame

UNKNOWN = 255
"""The label that data sets give to pixels without one."""

_NONE, _SEVERAL, _CLEAR = -1, -2, -3
"""In place of a label: a colour stands for none, for several, or is transparent."""


class ColourError(InputError):
    """A picture's colours stand for no labels."""


def read_labels(
    path: str | os.PathLike[str],
    palette: Palette | None = None,
    *,
    like: str | os.PathLike[str] | None = None,
    unknown_label: int | None = None,
    frame: Frame | None = None,
) -> Host:
    """A label map, int32 `[H, W]`, upright as its camera says.

    Grey pictures hold the labels themselves, with any number of bits (a 4-bit sample of 5 is label 5). Of an indexed
    picture, paint programs keep the colours and renumber the indices. So its labels are

    - with `palette`: those of its colours in it;
    - else with `like`: those that its colours have in that file, which decides alone where a colour occurs twice;
    - else the indices, or the greys where the whole palette is grey. A palette that lists all greys of its depth in
      order (0, 85, 170, 255) is a grey picture.

    A copy in RGB is read by its colours, where `palette` or an indexed file `like` gives them labels.

    Parameters
    ----------
    path
        A file without loss: PNG, BMP, GIF, TIFF, lossless WebP and others.
    palette
        The model's colours (R, G, B); position is the label.
    like
        The original label map, where `path` is an edited copy of it.
    unknown_label
        The label that 255 ("unknown") becomes; None: it stays.
    frame
        Crops and resizes the map (nearest neighbour).

    Raises
    ------
    ColourError
        A pixel's colour stands for no label, or for several; or the picture has no labels (RGB without a palette).
    InputError, ShapeError
        The file cannot be read, was saved with loss, or has another depth than `like`; another size than the frame's.
    """
    file = _read(path)
    original = None if like is None else _read(like)
    numbering = None
    if palette is not None:
        numbering = _of_palette(palette, has_unknown=unknown_label is not None)
    elif original is not None:
        numbering = _of_file(original)
    if original is not None:
        _check_depth(file, original)
    labels: Host = _labels(file, numbering).astype(np.int32)
    if unknown_label is not None:
        labels[labels == UNKNOWN] = unknown_label
    return labels if frame is None else frame.nearest(labels, path)


def _read(path: str | os.PathLike[str]) -> ImageFile:
    file = read_file(path)
    if file.lossy:
        raise InputError(
            f"{file.path}: a label or instance map saved as {file.lossy}, which changes pixels: its labels are no "
            "longer those that were painted; save the map that was painted as PNG"
        )
    return file


# -- numberings ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Numbering:
    """Which label each colour stands for."""

    whose: str
    """What has these colours, for messages."""
    colours: Host
    """int32 `[K, 4]`, RGBA; -1 where there is no entry."""
    labels: Host
    """`[K]`: the label of each."""
    used: Host
    """bool `[K]`: those that occur in the original. Of equal colours, the one that occurs is meant."""
    levels: int = 0
    """Of a grey scale: the largest value of a sample. 0: it has colours."""
    has_unknown: bool = False
    """Whether index 255 may have a colour of its own: its pixels become another label."""

    def of_indices(self, indices: Host, colours: Host) -> Host:
        """The labels of an indexed picture's entries, `[K]`; `colours` are theirs, `[K, 4]`."""
        inside = indices[indices < len(self.colours)]
        if len(inside) == len(indices) and (self.colours[indices, :3] == colours[:, :3]).all():
            return self.labels[indices]  # nothing was reordered
        return self.of_colours(colours)

    def of_colours(self, colours: Host) -> Host:
        """The labels of colours `[K, 4]`; negative where there is none."""
        return np.array([self._label(colour) for colour in colours], np.int64)

    def _label(self, colour: Host) -> int:
        if colour[3] == -1:
            return _NONE
        if self.levels:
            grey, rest = divmod(int(colour[0]) * self.levels, 255)
            return grey if not rest and colour[3] == 255 and (colour[:3] == colour[0]).all() else _NONE
        same = (self.colours[:, :3] == colour[:3]).all(-1)
        if colour[3] != 255:
            same &= self.colours[:, 3] == colour[3]
            if not same.any():
                return _CLEAR
        meant = same & self.used if np.count_nonzero(same) > 1 else same
        found = np.unique(self.labels[meant])
        if len(found) == 1:
            return int(found[0])
        return _SEVERAL if same.any() else _NONE


def _of_palette(palette: Palette, *, has_unknown: bool) -> _Numbering:
    count = len(palette)
    colours = np.column_stack([np.asarray(palette, np.int32), np.full(count, 255, np.int32)])
    return _Numbering(
        f"the model's {count} label colours",
        colours,
        np.arange(count),
        np.zeros(count, bool),
        has_unknown=has_unknown,
    )


def _of_file(file: ImageFile) -> _Numbering:
    """How an original label map numbers its colours."""
    if file.is_grey:
        none = np.zeros((0, 4), np.int32), np.zeros(0, np.int64), np.zeros(0, bool)
        return _Numbering(f"the greys of {file.path}", *none, levels=file.levels)
    if file.image.mode != "P":
        raise ColourError(f"{file.path}: a {file.image.mode} picture; give label maps as palette or grey PNG")
    colours, used = file.palette(), np.unique(np.asarray(file.image))
    levels = _grey_levels(colours, used)
    return _Numbering(
        f"the {'greys' if levels else 'colours'} of {file.path}",
        colours,
        _own_labels(colours, levels),
        np.isin(np.arange(256), used),
        levels,
    )


def _check_depth(file: ImageFile, original: ImageFile) -> None:
    """Raise InputError where one of two grey pictures may hold the other's labels scaled to another depth."""
    levels = original.levels if original.is_grey else 0
    if original.image.mode == "P":
        levels = _grey_levels(original.palette(), np.unique(np.asarray(original.image)))
    if file.is_grey and levels not in (0, file.levels):
        raise InputError(
            f"{file.path}: its samples go up to {file.levels or 'what 32 bits hold'}, those of {original.path} to "
            f"{levels}: a program may have scaled the labels; save both maps with the same number of bits"
        )


def _own_labels(colours: Host, levels: int) -> Host:
    """The labels of a palette's entries, int64 `[256]`: their greys, else their indices."""
    return colours[:, 0].astype(np.int64) * levels // 255 if levels else np.arange(256)


def _grey_levels(colours: Host, used: Host) -> int:
    """The largest sample of a palette that is a grey scale in any order; 0: its colours are more, or no numbers."""
    entries = colours[colours[:, 3] >= 0, :3]
    if (entries != entries[:, :1]).any() or (colours[used, 3] < 0).any():
        return 0
    if len(np.unique(colours[used, 0])) < len(used) or len(entries) > len(np.unique(entries[:, 0])) == 1:
        return 0  # equal colours do not tell labels apart
    for levels in (1, 3, 15):
        if np.array_equal(entries[:, 0], np.arange(levels + 1) * (255 // levels)):
            return levels
    return 255


# -- labels of a file ------------------------------------------------------------------------------------


def _labels(file: ImageFile, numbering: _Numbering | None) -> Host:
    image = file.image
    if image.mode == "P":
        return _of_indexed(file, numbering)
    if file.is_grey:
        return _of_grey(file)
    if image.mode not in ("RGB", "RGBA") or numbering is None or not len(numbering.colours):
        raise ColourError(f"{file.path}: a {image.mode} picture; give label maps as palette or grey PNG")
    alpha = file.alpha()
    opaque = np.full(file.size, 255, np.int64) if alpha is None else alpha.astype(np.int64)
    pixels = np.dstack([np.asarray(image.convert("RGB")).astype(np.int64), opaque])
    keys, inverse = np.unique((pixels << (24, 16, 8, 0)).sum(-1), return_inverse=True)
    colours = (keys[:, None] >> (24, 16, 8, 0)) & 255
    labels = numbering.of_colours(colours)[inverse.reshape(file.size)]
    _check(file, labels, numbering)
    return labels


def _of_grey(file: ImageFile) -> Host:
    """The samples themselves."""
    alpha = file.alpha()
    if alpha is not None and (alpha < 255).any():
        y, x = np.argwhere(alpha < 255)[0]
        raise ColourError(
            f"{file.path}: transparent at row {y}, column {x}, where it has no label; fill the map"
        )
    return file.samples()


def _of_indexed(file: ImageFile, numbering: _Numbering | None) -> Host:
    indices, colours = np.asarray(file.image), file.palette()
    used = np.unique(indices)
    levels = _grey_levels(colours, used)
    own = _own_labels(colours, levels)
    is_grey_picture = levels == 255 and np.array_equal(own, np.arange(256))
    if numbering is None or (is_grey_picture and not numbering.levels):
        return np.asarray(own[indices])
    found = numbering.of_indices(used, colours[used])
    if levels and not numbering.levels and (found < 0).any():
        return np.asarray(own[indices])
    if numbering.has_unknown and used[-1] == UNKNOWN and found[-1] == _NONE:
        found[-1] = UNKNOWN
    lut = np.zeros(256, np.int64)
    lut[used] = found
    labels = np.asarray(lut[indices])
    _check(file, labels, numbering)
    return labels


def _check(file: ImageFile, labels: Host, numbering: _Numbering) -> None:
    """Raise ColourError that names the first pixel without a label."""
    if (labels >= 0).all():
        return
    y, x = np.argwhere(labels < 0)[0]
    place, index = f"row {y}, column {x}", ""
    if file.image.mode == "P":
        number = int(np.asarray(file.image)[y, x])
        index = f" (index {number}" + (
            ", 'unknown': map it with unknown_label)" if number == UNKNOWN else ")"
        )
        red, green, blue, alpha = file.palette()[number].tolist()
        if alpha == -1:
            raise ColourError(f"{file.path}: index {number} at {place} has no colour in the file's palette")
    else:
        red, green, blue = np.asarray(file.image.convert("RGB"))[y, x].tolist()
    colour = f"{file.path}: the colour {(red, green, blue)}{index} at {place}"
    if labels[y, x] == _CLEAR:
        raise ColourError(f"{colour} is transparent, where the map has no label; fill it")
    if labels[y, x] == _SEVERAL:
        raise ColourError(f"{colour} occurs more than once in {numbering.whose}: its label cannot be told")
    raise ColourError(f"{colour} is none of {numbering.whose}")
