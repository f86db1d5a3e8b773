"""Numberings of colours: a palette or an original label map comes in, the label of each colour goes out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsegen.backends.interface import Host

from ..checks import warn
from ..errors import InputError
from .files import ImageFile, Palette

NONE, SEVERAL, CLEAR = -1, -2, -3
"""Values in place of a label: the colour stands for no label, for several, or is transparent."""

GREY_SCALES = (1, 3, 15)
"""The largest samples of grey images of 1, 2 and 4 bits."""


class ColourError(InputError):
    """An image's colours stand for no labels."""


@dataclass(frozen=True)
class Numbering:
    """A table of colours and the label of each."""

    whose: str
    """The owner of these colours, for messages."""
    colours: Host
    """int32 `[K, 4]`, RGBA; -1 where there is no entry."""
    labels: Host
    """`[K]`: the label of each."""
    used: Host
    """bool `[K]`: the entries that occur in the original. Of equal colours, the entry that occurs counts."""
    levels: int = 0
    """The largest value of a sample of a grey scale; 0: a table of colours."""

    def of_indices(self, indices: Host, colours: Host) -> Host:
        """The labels of an indexed image's entries `[K]`, which have `colours` `[K, 4]`."""
        inside = indices[indices < len(self.colours)]
        if len(inside) == len(indices) and (self.colours[indices, :3] == colours[:, :3]).all():
            return self.labels[indices]  # nothing was reordered
        return self.of_colours(colours)

    def of_colours(self, colours: Host) -> Host:
        """The labels of colours `[K, 4]`; negative for a colour without a label.

        An opaque colour is compared without its alpha value; any other colour also by its alpha value.
        """
        opaque = colours[:, 3] == 255
        if not self.levels and not len(self.colours):
            return np.full(len(colours), NONE, np.int64)
        if self.levels:
            labels, rest = np.divmod(colours[:, 0].astype(np.int64) * self.levels, 255)
            is_grey = (colours[:, :3] == colours[:, :1]).all(-1)
            return np.where(opaque & is_grey & (rest == 0), labels, NONE)
        exact = self._looked_up(_packed(self.colours), _packed(colours), CLEAR)
        found = self._looked_up(_packed(self.colours) >> 8, _packed(colours) >> 8, NONE)
        return np.where(opaque, found, np.where(colours[:, 3] < 0, NONE, exact))

    def _looked_up(self, known: Host, wanted: Host, otherwise: int) -> Host:
        """The labels of packed colours `wanted`, looked up in this numbering's `known`."""
        keys, place = np.unique(known, return_inverse=True)
        labels = np.array([self._meant(place == i) for i in range(len(keys))], np.int64)
        nearest = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[nearest] == wanted, labels[nearest], otherwise)

    def _meant(self, same: Host) -> int:
        """The label of entries of one colour, bool `[K]`."""
        if np.count_nonzero(same) > 1:
            same = same & self.used
        found = np.unique(self.labels[same])
        return int(found[0]) if len(found) == 1 else SEVERAL


def of_palette(palette: Palette) -> Numbering:
    """The model's numbering: a colour's position in the palette is its label."""
    count = len(palette)
    colours = np.column_stack(
        [np.asarray(palette, np.int32).reshape(count, 3), np.full(count, 255, np.int32)]
    )
    return Numbering(f"the model's {count} label colours", colours, np.arange(count), np.zeros(count, bool))


def of_file(file: ImageFile) -> Numbering:
    """The numbering of an original label map's colours. Raises ColourError: it has no labels, or ambiguous ones."""
    if file.is_grey:
        none = np.zeros((0, 4), np.int32), np.zeros(0, np.int64), np.zeros(0, bool)
        # (with more than 8 bits, an 8-bit colour does not determine the label)
        return Numbering(f"the greys of {file.path}", *none, levels=file.levels if file.levels < 256 else 0)
    if file.image.mode != "P":
        raise ColourError(f"{file.path}: a {file.image.mode} image; give label maps as palette or grey PNG")
    levels, labels = own_labels(file)
    used = np.isin(np.arange(256), np.unique(np.asarray(file.image)))
    return Numbering(
        f"the {'greys' if levels else 'colours'} of {file.path}", file.palette(), labels, used, levels
    )


def own_labels(file: ImageFile) -> tuple[int, Host]:
    """The numbering of an indexed image's entries if no palette gives one: (levels, labels int64 `[256]`).

    With colours, the indices are the labels, and levels is 0. A palette of greys alone may come from a grey image that
    a program converted to an indexed one. Its greys are the labels, and levels the largest label, if the greys are

    - all greys of 1, 2 or 4 bits in any order ({0, 85, 170, 255} are 0 to 3),
    - the indices, or the numbers from 0 on in any order: greys of 8 bits,
    - for each entry that occurs, its index times 255, 85 or 17: a scale of 1, 2 or 4 bits that was cut off.

    Entries that occur in no pixel and repeat a colour of the palette count as padding.

    Raises
    ------
    ColourError
        Other greys, such as {0, 10, 20, 30}: either the greys or the indices could be the labels.
    """
    colours, used = file.palette(), np.unique(np.asarray(file.image))
    entries, indices = colours[colours[:, 3] >= 0, :3], np.arange(256)
    if (entries != entries[:, :1]).any() or (colours[used, 3] < 0).any():
        return 0, indices
    greys, distinct = colours[:, 0].astype(np.int64), np.unique(entries[:, 0])
    if len(np.unique(greys[used])) < len(used) or len(entries) > len(distinct) == 1:
        return 0, indices  # equal colours cannot distinguish labels
    for levels in GREY_SCALES:
        if np.array_equal(distinct, np.arange(levels + 1) * (255 // levels)):
            return levels, greys * levels // 255
    if (greys[used] == used).all() or _count_up(greys[: len(entries)], used):
        return 255, greys
    for levels in GREY_SCALES:
        if (greys[used] == used * (255 // levels)).all():
            return levels, greys * levels // 255
    shown = ", ".join(map(str, greys[used][:4])) + (", …" if len(used) > 4 else "")
    raise ColourError(
        f"{file.path}: an indexed image in the greys {shown}, which are not its indices; either could be the labels. "
        "Save it as a grey image, whose greys are its labels, or in colours, whose indices are"
    )


def warn_if_reordered(file: ImageFile) -> None:
    """Warn about a grey palette of 1, 2 or 4 bits whose indices could as well be the labels as its greys."""
    levels, labels = own_labels(file)
    used = np.unique(np.asarray(file.image))
    if levels in GREY_SCALES and (labels[used] != used).any():
        warn(
            f"{file.path}: its palette has the greys of a {levels.bit_length()}-bit image, out of order; "
            f"labels are the greys (black 0, white {levels}), not the indices"
        )


def _count_up(greys: Host, used: Host) -> bool:
    """Whether the palette's greys are 0, 1, 2, … in any order, apart from its padding."""
    values, counts = np.unique(greys, return_counts=True)
    kept = np.isin(values, greys[used]) | (counts == 1)
    return any(np.array_equal(some, np.arange(len(some))) for some in (values, values[kept]))


def _packed(colours: Host) -> Host:
    """RGBA `[K, 4]` as one number for each colour; different colours have different numbers."""
    # (an entry that the file lacks, -1, is not a colour)
    parts = np.where(colours[:, 3:] < 0, -1, colours).astype(np.int64)
    return np.where(parts[:, 3] < 0, -1, (parts << (24, 16, 8, 0)).sum(-1))
