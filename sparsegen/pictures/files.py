"""Image files: a file comes in decoded and upright, or as one error that names it; arrays go out as PNG."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sparsegen.backends.interface import Host

from ..checks import warn
from ..errors import InputError

Palette = Sequence[tuple[int, int, int]]

FORMATS = {
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO",
    "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "TIFF", "WEBP",
}  # fmt: skip
"""What is read. Pillow knows more: some start another program (EPS runs Ghostscript), others hold no picture."""

LOSSY_FORMATS = {"AVIF", "HEIF", "JPEG", "JPEG2000", "MPO"}
"""Formats that change pixels when they are saved. (Some can do without, which their files do not say reliably.)"""

CONVERTED = {"RGB", "RGBA", "CMYK", "YCbCr", "HSV"}
"""Pillow's modes that it turns into RGB. (CMYK by the plain formula: colour profiles are not applied.)"""

_LOSSY_TIFFS = {"jpeg", "tiff_jpeg", "webp"}

_SEQUENCES = {"AVIF", "GIF", "HEIF", "PNG", "TIFF", "WEBP"}
"""Formats whose further pictures are frames or pages. (MPO: a preview or depth; PSD: layers; ICO: other sizes.)"""

# `warnings.catch_warnings` replaces state of the whole process: two threads that left it crosswise would lose it
_recording = threading.Lock()


@dataclass(frozen=True)
class ImageFile:
    """A decoded file."""

    path: str
    image: Image.Image
    """Upright."""
    lossy: str
    """The name of its lossy format, such as JPEG; "" where it was saved without loss."""
    levels: int
    """The largest value that a sample can have in the file: 1, 3, 15, 255, 65535; a PGM says it. 0: none is known."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.image.height, self.image.width

    @property
    def is_grey(self) -> bool:
        """Whether it has one channel of numbers (beside an alpha channel)."""
        return self.image.mode in ("1", "L", "LA", "I") or self.image.mode.startswith("I;16")

    def samples(self) -> Host:
        """The numbers of a grey picture as the file has them, int64 `[H, W]`: 0 to `levels`."""
        image = self.image.getchannel(0) if self.image.mode == "LA" else self.image
        values: Host = np.asarray(image).astype(np.int64)
        # where a file has fewer bits, Pillow has spread its values over the range of its mode
        spread = {"L": 255, "I": 65535}.get(image.mode, self.levels)
        if self.levels not in (0, spread):
            values = (values * self.levels + spread // 2) // spread
        return values

    def palette(self) -> Host:
        """The colours of an indexed picture, int32 `[256, 4]` (RGBA); -1 where the file has no entry."""
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
        """The colours, uint8 `[H, W, 3]`; 16 bits a channel become 8. Raises InputError: no such colours are known."""
        if self.is_grey:
            self.check_range()
            grey = (self.samples() * 255 // self.levels).astype(np.uint8)
            return grey[..., None].repeat(3, -1)
        if self.image.mode == "P":
            entries = np.maximum(self.palette()[:, :3], 0).astype(np.uint8)
            return np.asarray(entries[np.asarray(self.image)])
        if self.image.mode not in CONVERTED:
            raise InputError(
                f"{self.path}: a {self.image.mode} picture, expected RGB or grey; save it as one of these"
            )
        return np.asarray(self.image.convert("RGB"))

    def check_range(self) -> None:
        """Raises InputError: a grey picture's numbers have no range of 8 or 16 bits, or lie outside it."""
        values = self.samples() if self.image.mode == "I" else np.zeros(1)
        if not self.levels or values.min() < 0 or values.max() > 65535:
            raise InputError(
                f"{self.path}: a grey picture of 32 bits or with negative values, expected 8 or 16 bits; save it so"
            )

    def alpha(self) -> Host | None:
        """How opaque each pixel is, uint8 `[H, W]`; None where the file cannot say that."""
        image, key = self.image, self.image.info.get("transparency")
        if image.mode in ("LA", "RGBA"):
            return np.asarray(image.getchannel("A"))
        if image.mode == "P":
            entries = np.maximum(self.palette()[:, 3], 0).astype(np.uint8)
            return np.asarray(entries[np.asarray(image)])
        if key is None or not (self.is_grey or image.mode == "RGB"):
            return None
        if image.mode == "RGB":
            if self.levels == 65535:
                key = [part >> 8 for part in key]  # Pillow decodes the upper 8 bits
            clear = (np.asarray(image) == key).all(-1)
        else:
            clear = self.samples() == (min(key, 1) if image.mode == "1" else key)
        return np.where(clear, 0, 255).astype(np.uint8)


def read_file(path: str | os.PathLike[str]) -> ImageFile:
    """Decode a file of one picture and turn it upright, as its camera says.

    What it is, its content says, not its name. What Pillow warns of is a UserWarning that names the file.

    Raises
    ------
    InputError
        There is no such file; it is damaged, no picture, too large, or holds several; it cannot be read.
    """
    name = os.fsdecode(path)
    with _recording, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with open(path, "rb") as file:
                found = _decode(name, file)
        except InputError:
            raise
        except Image.DecompressionBombError:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise InputError(
                f"{name}: has more than {most:,} pixels, the most that is read; scale it down"
            ) from None
        except UnidentifiedImageError:
            why = "".join(f"; {warning.message}" for warning in caught)
            raise InputError(f"{name}: not a picture that can be read{why}; save it as PNG") from None
        except FileNotFoundError:
            raise InputError(f"{name}: no such file") from None
        except MemoryError:
            raise InputError(f"{name}: not enough memory to decode it; scale it down") from None
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror or error})") from None
        except Exception as error:  # a decoder that meets damage raises whatever it stumbles over
            raise InputError(
                f"{name}: a damaged picture ({error or type(error).__name__}); save it again"
            ) from None
    for warning in caught:
        if not issubclass(warning.category, Image.DecompressionBombWarning | DeprecationWarning):
            warn(f"{name}: {' '.join(str(warning.message).split())}")
    return found


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of a picture that is upright. Raises InputError, as `read_file`."""
    return read_file(path).size


def lossy_format(path: str | os.PathLike[str]) -> str:
    """The lossy format that a picture's content shows, such as JPEG; "": saved without loss. Raises InputError."""
    return read_file(path).lossy


def _decode(path: str, file: BinaryIO) -> ImageFile:
    with Image.open(file) as image:
        kind = image.format or ""
        if kind not in FORMATS:
            raise InputError(
                f"{path}: a file of the format {kind}, which is not read; save the picture as PNG"
            )
        if kind in _SEQUENCES and getattr(image, "is_animated", False):
            count = getattr(image, "n_frames", "several")
            raise InputError(
                f"{path}: holds {count} pictures (frames or pages), expected one; save that one as PNG"
            )
        lossy, levels = _loss(image, kind, file), _levels(image, kind)
        image.load()
        upright = ImageOps.exif_transpose(image)
    # premultiplied and rare modes become the mode that holds the same
    plain = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA", "RGBX": "RGB"}.get(upright.mode)
    return ImageFile(path, upright.convert(plain) if plain else upright, lossy, levels)


def _loss(image: Image.Image, kind: str, file: BinaryIO) -> str:
    """The lossy format's name, or ""."""
    if kind in LOSSY_FORMATS:
        return "JPEG" if kind == "MPO" else kind
    if kind == "TIFF" and image.info.get("compression") in _LOSSY_TIFFS:
        return "TIFF with lossy compression"
    if kind == "WEBP":
        return "lossy WebP" if _first_webp_image(file) != b"VP8L" else ""
    return ""


def _first_webp_image(file: BinaryIO) -> bytes:
    """The name of the chunk that holds a WebP file's picture: `VP8L` without loss, `VP8 ` with."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        if head[:4] in (b"VP8 ", b"VP8L"):
            return head[:4]
        size = int.from_bytes(head[4:], "little")
        file.seek(size + size % 2, os.SEEK_CUR)
    return b""


def _levels(image: Image.Image, kind: str) -> int:
    """`ImageFile.levels`, off Pillow's word for how the file's bytes are laid out, before they are decoded."""
    tiles = getattr(image, "tile", ())
    args = tiles[0][3] if tiles else ()
    words = args if isinstance(args, tuple) else (args,)
    raw = next((word for word in words if isinstance(word, str)), "")
    if kind == "PPM" and isinstance(words[-1], int) and len(words) == 2:
        return words[-1]
    bits = re.search(r";(\d+)", raw)
    if bits is not None and image.mode != "P":
        return 2 ** min(int(bits[1]), 32) - 1 if image.mode != "I" or int(bits[1]) == 16 else 0
    if image.mode == "1":
        return 1
    return 0 if image.mode in ("I", "F") else 255


def write_png(
    path: str | os.PathLike[str],
    image: Host,
    *,
    text: dict[str, str] | None = None,
    palette: Palette | None = None,
) -> None:
    """Write uint8 `[H, W, 3]` (or labels `[H, W]` with a palette) as PNG, atomically; `text` goes into its chunks.

    Raises
    ------
    InputError
        The folder is missing or cannot be written; an old file stays as it was.
    """
    target = Path(path)
    info = PngInfo()
    for key, value in (text or {}).items():
        # (what is no text in a file's name would have no place in the chunk)
        info.add_text(key, value.encode("utf-8", "replace").decode("utf-8"))
    picture = Image.fromarray(np.ascontiguousarray(image))
    if palette is not None:
        picture = picture.convert("L")
        picture.putpalette([part for colour in palette for part in colour])
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            picture.save(part, format="PNG", pnginfo=info)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from None
