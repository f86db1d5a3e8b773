"""Image files: a file comes in decoded and upright, or as one error that names it; arrays go out as PNG."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sparsegen.backends.interface import Host

from ..errors import InputError
from . import formats

Palette = Sequence[tuple[int, int, int]]

CONVERTED = {"RGB", "RGBA", "CMYK", "YCbCr", "HSV"}
"""Pillow's modes that are converted to RGB. (CMYK by the plain formula: colour profiles are not applied.)"""

_PLAIN = {"La": "LA", "PA": "RGBA", "RGBX": "RGB"}
"""Rare modes -> the common mode that holds the same values."""


@dataclass(frozen=True)
class ImageFile:
    """A decoded file."""

    path: str
    image: Image.Image
    """Upright."""
    lossy: str
    """The name of its lossy format, such as JPEG; "" where it was saved without loss."""
    levels: int
    """The largest value of a sample in the file: 1, 3, 15, 255, 65535, or as a PGM declares; 0: unknown."""
    opacity: Host | None = None
    """uint8 `[H, W]`: the alpha channel, where the image's mode cannot hold it."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.image.height, self.image.width

    @property
    def is_grey(self) -> bool:
        """Whether it has one channel of numbers (beside an alpha channel)."""
        return self.image.mode in ("1", "L", "LA", "I") or self.image.mode.startswith("I;16")

    @property
    def texts(self) -> dict[str, str]:
        """The text chunks of a PNG by their keys, as the file has them."""
        return {str(key): text for key, text in self.image.info.items() if isinstance(text, str)}

    def samples(self) -> Host:
        """The numbers of a grey image as the file has them, int64 `[H, W]`: 0 to `levels`."""
        image = self.image.getchannel(0) if self.image.mode == "LA" else self.image
        values: Host = np.asarray(image).astype(np.int64)
        # Pillow spreads the values of a file with fewer bits over the range of its mode
        spread = {"L": 255, "I": 65535}.get(image.mode, self.levels)
        if self.levels not in (0, spread):
            values = (values * self.levels + spread // 2) // spread
        return values

    def palette(self) -> Host:
        """The colours of an indexed image, int32 `[256, 4]` (RGBA); -1 where the file has no entry."""
        found = np.full((256, 4), -1, np.int32)
        colours = np.asarray(self.image.getpalette("RGBA"), np.int32).reshape(-1, 4)[:256]
        found[: len(colours)] = colours
        clear = self.image.info.get("transparency")
        if isinstance(clear, bytes):
            alpha = np.frombuffer(clear, np.uint8)[: len(colours)]
            found[: len(alpha), 3] = alpha
        elif isinstance(clear, int) and clear < len(colours):
            found[clear, 3] = 0
        return found

    def rgb(self) -> Host:
        """The colours, uint8 `[H, W, 3]`; 16 bits a channel become 8. Raises InputError: neither RGB nor grey."""
        if self.is_grey:
            self.check_range()
            grey = (self.samples() * 255 // self.levels).astype(np.uint8)
            return grey[..., None].repeat(3, -1)
        if self.image.mode == "P":
            entries = np.maximum(self.palette()[:, :3], 0).astype(np.uint8)
            return np.asarray(entries[np.asarray(self.image)])
        if self.image.mode not in CONVERTED:
            raise InputError(
                f"{self.path}: a {self.image.mode} image, expected RGB or grey; save it as one of these"
            )
        return np.asarray(self.image.convert("RGB"))

    def check_range(self) -> None:
        """Raises InputError: a grey image's numbers have no range of 8 or 16 bits, or lie outside it."""
        values = self.samples() if self.image.mode == "I" else np.zeros(1)
        if not self.levels or values.min() < 0 or values.max() > 65535:
            raise InputError(
                f"{self.path}: a grey image of 32 bits or with negative values, expected 8 or 16 bits; convert it to 16"
            )

    def alpha(self) -> Host | None:
        """The opacity of each pixel, uint8 `[H, W]`; None: the file has no transparency."""
        image, key = self.image, self.image.info.get("transparency")
        if self.opacity is not None:
            return self.opacity
        if image.mode in ("LA", "RGBA"):
            return np.asarray(image.getchannel("A"))
        if image.mode == "P":
            entries = np.maximum(self.palette()[:, 3], 0).astype(np.uint8)
            return np.asarray(entries[np.asarray(image)])
        if key is None or not (self.is_grey or image.mode == "RGB"):
            return None
        if image.mode == "RGB":
            clear = (np.asarray(image) == key).all(-1)
        else:
            clear = self.samples() == (min(key, 1) if image.mode == "1" else key)
        return np.where(clear, 0, 255).astype(np.uint8)


Source = Union[str, os.PathLike[str], ImageFile]  # noqa: UP007  # evaluated
"""A path, or a decoded file."""


def read_file(source: Source) -> ImageFile:
    """Decode a file of one image and turn it upright by its EXIF orientation; a decoded file is returned as it is.

    The format is found from the content, not from the name. Pillow's warnings, such as about damaged EXIF data, pass
    through.

    Raises
    ------
    InputError
        The file is missing, unreadable, damaged, not an image, too large, or holds several images.
    """
    if isinstance(source, ImageFile):
        return source
    name = os.fsdecode(source)
    try:
        with open(source, "rb") as file:
            return _decode(name, file)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not an image of a supported format{error}; save it as PNG") from None
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except MemoryError:
        raise InputError(f"{name}: not enough memory to decode it; scale it down") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a decoder of a damaged file may raise any exception
        if any(word in str(error).lower() for word in ("decompressed data too large", "text chunks")):
            raise InputError(
                f"{name}: holds a colour profile or texts of more than 1 MB, Pillow's limit; save it without metadata"
            ) from None
        raise InputError(
            f"{name}: a damaged image ({error or type(error).__name__}); save it again"
        ) from None


def _decode(path: str, file: BinaryIO) -> ImageFile:
    head = file.read(formats.HEAD)
    with formats.open_image(file) as image:
        count = formats.turn_to_page(image)
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > 2 * Image.MAX_IMAGE_PIXELS:
            raise _too_large(path)
        if count > 1:
            raise InputError(
                f"{path}: holds {count} images (frames or pages), expected one; save the one to use as PNG"
            )
        if image.format == "SGI" and head[3] == 2:
            raise InputError(f"{path}: an SGI file of 16 bits, of which 8 would be lost; save it as PNG")
        lossy, levels = formats.loss(image, file), formats.levels(image, head)
        deep = formats.of_deep_png(image, file, head)
        if deep is not None:
            return ImageFile(path, deep[0], lossy, levels, deep[1])
        image.load()
        upright = ImageOps.exif_transpose(image)
    plain = _PLAIN.get(upright.mode)
    return ImageFile(path, upright.convert(plain) if plain else upright, lossy, levels)


def _too_large(path: str) -> InputError:
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return InputError(f"{path}: has more than {most:,} pixels, the largest size supported; scale it down")


def png_bytes(image: Host, *, text: dict[str, str] | None = None, palette: Palette | None = None) -> bytes:
    """A PNG file of uint8 `[H, W, 3]` (or labels `[H, W]` with a palette); `text` goes into its chunks."""
    info = PngInfo()
    for key, value in (text or {}).items():
        # a file's name may hold bytes that are not text, which the chunk cannot hold
        info.add_text(key, value.encode("utf-8", "replace").decode("utf-8"))
    made = Image.fromarray(np.ascontiguousarray(image))
    if palette is not None:
        made = made.convert("L")
        made.putpalette([part for colour in palette for part in colour])
    file = io.BytesIO()
    made.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def write_png(
    path: str | os.PathLike[str],
    image: Host,
    *,
    text: dict[str, str] | None = None,
    palette: Palette | None = None,
) -> None:
    """Write `png_bytes`, atomically.

    Raises
    ------
    InputError
        The folder is missing or cannot be written; an old file stays as it was.
    """
    write_whole(path, png_bytes(image, text=text, palette=palette))


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all. Raises InputError, as `write_png`."""
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            part.write_bytes(content)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from None
