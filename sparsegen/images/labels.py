"""Label maps: a file comes in, the label of each pixel comes out, however a paint program ordered its palette."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from sparsegen.backends.interface import Host

from ..errors import InputError
from .files import ImageFile, Palette, Source, read_file
from .frames import Frame
from .palettes import (
    CLEAR,
    SEVERAL,
    ColourError,
    Numbering,
    of_file,
    of_palette,
    own_labels,
    warn_if_reordered,
)

UNKNOWN = 255
"""The label that data sets give to pixels without one."""


def read_labels(
    source: Source,
    palette: Palette | None = None,
    *,
    like: Source | None = None,
    unknown_label: int | None = None,
    frame: Frame | None = None,
) -> Host:
    """A label map, int32 `[H, W]`, upright by its EXIF orientation.

    Grey images hold the labels themselves, with any number of bits (a 4-bit sample of 5 is label 5). In an indexed
    image, paint programs keep the colours and renumber the indices. So its labels are

    - with `palette`: the positions of its colours in the palette;
    - else with `like`: the labels of its colours in that file. If that file has a colour twice, the entry that occurs
      in its pixels counts;
    - else its indices. A palette of greys is read as a grey image if its greys are the indices, are 0, 1, 2, … in any
      order, or are the greys of 1, 2 or 4 bits (`palettes.own_labels` has the rule); other greys are refused.

    A copy in RGB is read by its colours, if `palette` or an indexed file `like` gives them labels, or if they are greys
    and the greys of `like` are its labels.

    Parameters
    ----------
    source
        A file without loss: PNG, BMP, GIF, TIFF, lossless WebP and others.
    palette
        The model's colours (R, G, B); position is the label.
    like
        The original label map, if `source` is an edited copy of it. With `palette`, it still gives the depth of greys,
        and numbers greys that the palette does not have.
    unknown_label
        The label that 255 ("unknown") becomes; None: it stays. Index 255 of an indexed image then needs no colour.
    frame
        Crops and resizes the map (nearest neighbour).

    Raises
    ------
    ColourError
        A pixel's colour stands for no label, or for several; the image has no labels (RGB without a palette, saved
        with loss) or ambiguous ones.
    InputError, ShapeError
        The file cannot be read, its labels may have been scaled from the depth of `like`, or its size is not the
        frame's.
    """
    file = _read(source)
    original = None if like is None else _read(like)
    if file.is_grey:
        labels = _of_grey(file, original)
    elif file.image.mode == "P":
        labels = _of_indexed(file, palette, original, has_unknown=unknown_label is not None)
    elif file.image.mode in ("RGB", "RGBA"):
        labels = _of_rgb(file, palette, original)
    else:
        raise _no_labels(file)
    labels = labels.astype(np.int32)
    if unknown_label is not None:
        labels[labels == UNKNOWN] = unknown_label
    return labels if frame is None else frame.nearest(labels, file.path)


def _read(source: Source) -> ImageFile:
    file = read_file(source)
    if file.lossy:
        raise ColourError(
            f"{file.path}: a label or instance map saved as {file.lossy}, which changes pixels and so labels; "
            "expected a lossless format: save the painted map as PNG"
        )
    return file


# -- three kinds of files --------------------------------------------------------------------------------


def _of_grey(file: ImageFile, original: ImageFile | None) -> Host:
    """The labels of a grey image: its samples."""
    alpha = file.alpha()
    if alpha is not None and (alpha < 255).any():
        y, x = np.argwhere(alpha < 255)[0]
        raise ColourError(
            f"{file.path}: transparent at row {y}, column {x}, where it has no label; fill the map"
        )
    samples = file.samples()
    _check_depth(file, samples, file.levels, original)
    return samples


def _of_indexed(
    file: ImageFile, palette: Palette | None, original: ImageFile | None, *, has_unknown: bool
) -> Host:
    """The labels of an indexed image's colours, or of its greys if nothing else numbers them."""
    indices, colours = np.asarray(file.image), file.palette()
    used = np.flatnonzero(np.bincount(indices.reshape(-1), minlength=256))
    lut, error = np.zeros(256, np.int64), None
    for numbering in _numberings(palette, original, colours[used]):
        if not numbering.levels and np.array_equal(colours[:, :3], np.arange(256)[:, None].repeat(3, 1)):
            break  # a grey image, whatever labels these colours have elsewhere
        lut[used] = numbering.of_indices(used, colours[used])
        if has_unknown and lut[UNKNOWN] < 0:
            lut[UNKNOWN] = UNKNOWN
        if (lut[used] >= 0).all():
            if original is not None and original.path == file.path:
                warn_if_reordered(file)
            return np.asarray(lut[indices])
        error = error or _error(file, np.asarray(lut[indices]), numbering)
    levels, labels = own_labels(file)
    if error is not None and not levels:
        raise error
    found = np.asarray(labels[indices])
    if levels:
        warn_if_reordered(file)
        _check_depth(file, found, levels, original)
    return found


def _of_rgb(file: ImageFile, palette: Palette | None, original: ImageFile | None) -> Host:
    """The labels of an RGB image's colours."""
    alpha = file.alpha()
    opaque = np.full(file.size, 255, np.int64) if alpha is None else alpha.astype(np.int64)
    pixels = np.dstack([np.asarray(file.image.convert("RGB")).astype(np.int64), opaque])
    keys, places = np.unique((pixels << (24, 16, 8, 0)).sum(-1), return_inverse=True)
    colours = (keys[:, None] >> (24, 16, 8, 0)) & 255
    error = None
    for numbering in _numberings(palette, original, colours):
        found = numbering.of_colours(colours)
        labels = np.asarray(found[places.reshape(file.size)])
        if (found >= 0).all():
            return labels
        error = error or _error(file, labels, numbering)
    raise error or _no_labels(file)


def _numberings(palette: Palette | None, original: ImageFile | None, colours: Host) -> Iterator[Numbering]:
    """The numberings to try on an image of colours `[K, 4]`, in order, until one has them all.

    The model's palette; without one, the original. With a palette, the original numbers greys, if it has labels of
    greys.
    """
    if palette is None:
        if original is not None:
            yield of_file(original)
        return
    greys = None
    if original is not None and (colours[:, :3] == colours[:, :1]).all():
        with suppress(ColourError):  # the original is RGB, or its labels are ambiguous
            greys = of_file(original)
    if original is not None and original.is_grey and greys is not None:
        yield greys
    yield of_palette(palette)
    if greys is not None and greys.levels:
        yield greys


# -- ambiguous and missing labels ------------------------------------------------------------------------


def _no_labels(file: ImageFile) -> ColourError:
    return ColourError(f"{file.path}: a {file.image.mode} image; give label maps as palette or grey PNG")


def _error(file: ImageFile, labels: Host, numbering: Numbering) -> ColourError:
    """The error of labels of which some are negative; it names the first such pixel."""
    y, x = np.argwhere(labels < 0)[0]
    place, index = f"row {y}, column {x}", ""
    if file.image.mode == "P":
        number = int(np.asarray(file.image)[y, x])
        index = f" (index {number}" + (
            ", 'unknown': map it with unknown_label, --unknown-label)" if number == UNKNOWN else ")"
        )
        red, green, blue, alpha = file.palette()[number].tolist()
        if alpha == -1:
            return ColourError(f"{file.path}: index {number} at {place} has no colour in the file's palette")
    else:
        red, green, blue = np.asarray(file.image.convert("RGB"))[y, x].tolist()
    colour = f"{file.path}: the colour {(red, green, blue)}{index} at {place}"
    if labels[y, x] == CLEAR:
        return ColourError(f"{colour} is transparent, where the map has no label; fill it")
    if labels[y, x] == SEVERAL:
        return ColourError(f"{colour} occurs more than once in {numbering.whose}, so its label is ambiguous")
    return ColourError(f"{colour} is none of {numbering.whose}")


def _check_depth(file: ImageFile, values: Host, levels: int, original: ImageFile | None) -> None:
    """Raise InputError where the greys of a file may be the original's labels, scaled to another depth."""
    if original is None:
        return
    known, most = _greys(original)
    if known is not None and _may_be_scaled(values, levels, known, most):
        raise InputError(
            f"{file.path}: its samples go up to {levels or 'the 32-bit range'}, the samples of {original.path} to "
            f"{most or 'the 32-bit range'}: a program may have scaled the labels; save both maps with the same number "
            "of bits"
        )


def _greys(file: ImageFile) -> tuple[Host | None, int]:
    """(the samples of a grey or grey indexed map, the largest value they can have); (None, 0): it has colours."""
    if file.is_grey:
        return file.samples(), file.levels
    if file.image.mode == "P":
        with suppress(ColourError):
            levels, labels = own_labels(file)
            if levels:
                return labels[np.asarray(file.image)], levels
    return None, 0


def _may_be_scaled(values: Host, levels: int, known: Host, most: int) -> bool:
    """Whether samples of 0 to `levels` look like `known` ones of 0 to `most`, scaled. 0 is 0 at every depth."""
    levels, most = levels or 2**32 - 1, most or 2**32 - 1
    if levels == most or not values.any():
        return False
    if levels > most:
        return _is_scaled(values, levels / most)
    # a scale was cut off, or labels were rounded
    ratio, given = most / levels, np.unique(known)
    rounded = np.concatenate([np.rint(given / ratio), given // ratio])
    return _is_scaled(known, ratio) or bool(np.isin(np.unique(values), rounded).all())


def _is_scaled(values: Host, ratio: float) -> bool:
    """Whether numbers are multiples of a ratio, not all 0."""
    distinct = np.unique(values)
    return bool(distinct.any() and (np.abs(np.rint(distinct / ratio) * ratio - distinct) < 1).all())
