"""Files of an edit: paths and options come in; decoded files and their crop and size go out, errors and notes too."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, ShapeError
from ..images import Frame, ImageFile, Size, read_file
from ..models.base import Model
from ..pipelines.latents import LatentDiffusion
from .console import print_line

Wanted = Size | Literal["auto"] | None
"""A size that an option gives; "auto": the nearest supported one; None: the files' own."""


@dataclass(frozen=True)
class Fit:
    """The cropping, then resizing, that fits the files of an edit to the model."""

    crop: Wanted = None
    resize: Wanted = None

    @classmethod
    def parse(cls, crop: str | None, resize: str | None) -> Fit:
        """The values of `--crop` and `--resize`. Raises InputError."""
        if crop == "auto" and resize is not None:
            raise InputError("--crop auto: not beside --resize, which fits any crop; give --crop a size")
        return cls(_wanted("--crop", crop), _wanted("--resize", resize))

    def frame(self, model: Model | LatentDiffusion, original: ImageFile) -> Frame:
        """The crop and size of every file of the original's size. Raises InputError: the size is not supported."""
        source = original.size
        crop = source if self.crop is None else self.crop
        if crop == "auto":
            inside = [
                size for size in model.sizes_near(*source) if size[0] <= source[0] and size[1] <= source[1]
            ]
            if not inside:
                raise InputError(
                    f"--crop auto: {original.path} is {_named(source)}, too small; give --resize auto"
                )
            crop = inside[0]
        size = crop if self.resize is None else self.resize
        if size == "auto":
            size = model.sizes_near(*crop)[0]
        try:
            model.check_size(*size)
        except ShapeError as error:
            if self.resize is not None:
                raise InputError(f"--resize {_named(size)}: {error}") from None
            if self.crop is not None:
                raise InputError(f"--crop {_named(size)}: {error}") from None
            raise InputError(
                f"{original.path}: {error}; --resize auto or --crop auto makes the files one of these"
            ) from None
        try:
            return Frame(source, crop, size, original.path)
        except InputError as error:
            raise InputError(f"--crop: {error}") from None


def _wanted(option: str, text: str | None) -> Wanted:
    if text is None or text == "auto":
        return text  # type: ignore[return-value]  # None or "auto"
    return parse_size(option, text, ", or auto")


def parse_size(option: str, text: str, otherwise: str = "") -> Size:
    """(height, width) of an option such as 256x512. Raises InputError."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})[x×]([1-9][0-9]{0,5})", text)
    if found is None:
        raise InputError(f"{option} {text}: expected HEIGHTxWIDTH in pixels, such as 256x512{otherwise}")
    return int(found[1]), int(found[2])


def _named(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Errors about the content of a file name the file."""
    try:
        yield
    except (InputError, ShapeError) as error:
        raise InputError(f"{path}: {error}") from None


def decoded(paths: Iterable[Path]) -> dict[Path, ImageFile]:
    """Each file, decoded once. Pillow's warnings of it become notes, except of its size. Raises InputError."""
    found: dict[Path, ImageFile] = {}
    for path in dict.fromkeys(paths):
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.simplefilter("ignore", RuntimeWarning)  # Pillow's warning of a large size
            warnings.showwarning = partial(_note, path)
            found[path] = read_file(path)
    return found


def _note(path: Path, message: Warning | str, *_: Any, **__: Any) -> None:
    print_line("note", f"{path}: {message}")
