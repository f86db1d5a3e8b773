"""Formats of image files: an open file comes in, Pillow's image and details from the file's bytes come out."""

from __future__ import annotations

import os
import re
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sparsegen.backends.interface import Host

FORMATS = {
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO",
    "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "TIFF", "WEBP",
}  # fmt: skip
"""The supported formats. Pillow has more: some start another program (EPS runs Ghostscript), others hold no image."""

LOSSY_FORMATS = {"AVIF", "HEIF", "JPEG", "JPEG2000", "MPO"}
"""Formats that change pixels when saved. (Some can be lossless, but their files do not record it reliably.)"""

HEAD = 4096
"""The number of first bytes of a file that hold the depth of its samples."""

_LOSSY_TIFFS = {"jpeg", "tiff_jpeg", "webp"}

_SEQUENCES = {"AVIF", "GIF", "HEIF", "PNG", "TIFF", "WEBP"}
"""Formats whose further images are frames or pages. (MPO: a preview or depth; PSD: layers; ICO: other sizes.)"""

_BITS_PER_SAMPLE, _SUBFILE_TYPE, _REDUCED = 258, 254, 1
"""Tags of TIFF, and the bit that marks a page as another page's thumbnail."""


def open_image(file: BinaryIO) -> Image.Image:
    """The image of an open file, not yet decoded. Raises UnidentifiedImageError: it has none of `FORMATS`.

    It does the work of `Image.open` without its warnings about size: suppressing them would change the filters of
    warnings, which all threads share.
    """
    file.seek(0)
    prefix, why = file.read(16), ""
    tried: set[str] = set()
    for load in (Image.preinit, Image.init):  # the common formats, then all
        load()
        for kind in [kind for kind in Image.ID if kind in FORMATS and kind not in tried]:
            tried.add(kind)
            factory, accepts = Image.OPEN[kind]
            found = accepts is None or accepts(prefix)
            if isinstance(found, str):  # this Pillow was built without the format
                why += f"; {found}"
            elif found:
                file.seek(0)
                try:
                    return factory(file, "")
                except (
                    SyntaxError,
                    IndexError,
                    TypeError,
                    struct.error,
                ):  # plugins raise these for another format
                    continue
    raise UnidentifiedImageError(why)


def turn_to_page(image: Image.Image) -> int:
    """The number of images in a file, thumbnails of a TIFF excluded; turns to the first of its pages."""
    if image.format not in _SEQUENCES or not getattr(image, "is_animated", False):
        return 1
    count: int = image.n_frames  # type: ignore[attr-defined]  # of images that have frames
    if image.format != "TIFF":
        return count
    pages = []
    for page in range(count):
        image.seek(page)
        if not image.tag_v2.get(_SUBFILE_TYPE, 0) & _REDUCED:  # type: ignore[attr-defined]  # a TIFF's
            pages.append(page)
    image.seek(pages[0] if pages else 0)
    return len(pages) or count


def loss(image: Image.Image, file: BinaryIO) -> str:
    """The name of an image's lossy format; "" if it was saved without loss."""
    kind = image.format or ""
    if kind in LOSSY_FORMATS:
        return "JPEG" if kind == "MPO" else kind
    if kind == "TIFF" and image.info.get("compression") in _LOSSY_TIFFS:
        return "TIFF with lossy compression"
    if kind == "WEBP":
        return "lossy WebP" if _first_webp_image(file) != b"VP8L" else ""
    return ""


def _first_webp_image(file: BinaryIO) -> bytes:
    """The name of the chunk that holds a WebP file's image: `VP8L` without loss, `VP8 ` with."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        if head[:4] in (b"VP8 ", b"VP8L"):
            return head[:4]
        size = int.from_bytes(head[4:], "little")
        # a frame of an animation is 16 bytes of place and time, then chunks
        file.seek(16 if head[:4] == b"ANMF" else size + size % 2, os.SEEK_CUR)
    return b""


def levels(image: Image.Image, head: bytes) -> int:
    """The largest value that a sample can have in the file; 0: above 16 bits, or fractions.

    It follows from Pillow's mode, except in three formats whose samples Pillow spreads over the range of a mode.
    """
    if image.mode == "F":
        return 0
    bits = {"1": 1, "I": 32}.get(image.mode, 16 if image.mode.startswith("I;16") else 8)
    if image.format == "PNG":
        bits = head[24]
    elif image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))[0]  # type: ignore[attr-defined]  # a TIFF's
    elif image.format == "PPM" and head[1:2] in b"2356":  # magic number, width, height, largest value
        return int(re.sub(rb"#[^\r\n]*", b"", head).split(maxsplit=4)[3])
    return 2**bits - 1 if bits <= 16 else 0


def of_deep_png(image: Image.Image, file: BinaryIO, head: bytes) -> tuple[Image.Image, Host] | None:
    """(an upright image, its alpha channel) of a 16-bit PNG of which Pillow drops the lower 8 bits; None: of another.

    Grey with an alpha channel becomes mode I;16. RGB stays at 8 bits; its transparent colour is found among all 16.
    """
    if image.format != "PNG" or head[24] != 16:
        return None
    if image.mode == "RGBA" and head[25] == 4:
        # four bytes a pixel: high and low of grey, high and low of alpha
        parts = _decoded_as(file, "RGBA")
        grey = parts[..., 0].astype(np.uint16) << 8 | parts[..., 1]
        return Image.fromarray(grey), parts[..., 2]
    key = image.info.get("transparency")
    if image.mode == "RGB" and key is not None:
        # read with its bytes swapped, the low bytes remain
        high, low = _decoded_as(file, "RGB;16B"), _decoded_as(file, "RGB;16L")
        clear = (high == np.asarray(key) >> 8).all(-1) & (low == np.asarray(key) & 255).all(-1)
        return Image.fromarray(high), np.where(clear, 0, 255).astype(np.uint8)
    return None


def _decoded_as(file: BinaryIO, layout: str) -> Host:
    """The upright bytes of an image, decoded as if its pixels had this layout."""
    image = open_image(file)
    image.tile = [(*tile[:3], layout) for tile in image.tile]  # type: ignore[attr-defined]  # of a file's image
    return np.asarray(ImageOps.exif_transpose(image))
