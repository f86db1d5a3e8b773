"""Frames: files of one size come in, cropped at the centre and resized to the size that a model takes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sparsegen.backends.interface import Host

from ..errors import InputError, ShapeError

Size = tuple[int, int]
"""(height, width)"""


@dataclass(frozen=True)
class Frame:
    """The crop and the size of every file of an edit: `crop` of its `source` size at the centre, resized to `size`.

    A file that has not the source's size but `size` already is used as it is, such as an image painted over a result.
    Raises InputError: a side is below 1, or the crop is larger than the source.
    """

    source: Size
    crop: Size
    size: Size
    whose: str = "the original"
    """The file that has the source size, for messages."""

    def __post_init__(self) -> None:
        if min(*self.crop, *self.size) < 1:
            raise InputError(
                f"crop {self.crop} and size {self.size} have a side below 1; expected a height and width of 1 or more"
            )
        if self.crop[0] > self.source[0] or self.crop[1] > self.source[1]:
            raise InputError(
                f"a crop of {named(self.crop)} is larger than {self.whose}, {named(self.source)} (height × width); "
                "crop less, or resize"
            )

    def nearest(self, values: Host, path: str | os.PathLike[str]) -> Host:
        """Labels or a mask `[H, W]` in the frame: each pixel has the nearest one's value. Raises ShapeError."""
        if self._is_done(values.shape, path):
            return values
        rows, columns = (
            start + (2 * np.arange(to) + 1) * length // (2 * to)
            for start, length, to in zip(self._start, self.crop, self.size, strict=True)
        )
        return values[rows[:, None], columns]

    def filtered(self, image: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
        """An image in the frame, by Lanczos' filter. Raises ShapeError."""
        if self._is_done((image.height, image.width), path):
            return image
        y, x = self._start
        # (`Image.crop` would warn about a large image)
        cropped = Image.fromarray(np.asarray(image)[y : y + self.crop[0], x : x + self.crop[1]])
        if self.size == self.crop:
            return cropped
        return cropped.resize((self.size[1], self.size[0]), Image.Resampling.LANCZOS)

    @property
    def _start(self) -> Size:
        return (self.source[0] - self.crop[0]) // 2, (self.source[1] - self.crop[1]) // 2

    def _is_done(self, shape: tuple[int, ...], path: str | os.PathLike[str]) -> bool:
        """Whether a file has the frame's size and not the source's. Raises ShapeError: it has neither."""
        if shape == self.source:
            return False
        if shape == self.size:
            return True
        raise ShapeError(
            f"{os.fsdecode(path)}: {named(shape)}, expected {named(self.source)} (height × width) like {self.whose}; "
            "give files of one size"
        )


def named(size: tuple[int, ...]) -> str:
    """A size as text: `(256, 512)` → `256×512`."""
    return "×".join(map(str, size))
