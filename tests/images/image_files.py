"""Image files that Pillow does not write: PNGs of any depth, byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

GREY, RGB, INDEXED, GREY_ALPHA = 0, 2, 3, 4
"""Colour types of PNG."""


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    pixels: np.ndarray, depth: int, colour: int, *, palette: bytes = b"", transparent: Sequence[int] = ()
) -> bytes:
    """A PNG of samples `[H, W]` or `[H, W, C]` of `depth` bits; `transparent` is the value of tRNS."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels, ">u2" if depth == 16 else "u1")
    if depth < 8:
        bits = np.unpackbits(rows[..., None], -1)[..., -depth:]
        rows = np.packbits(bits.reshape(height, -1), -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    colours = chunk(b"PLTE", palette) if palette else b""
    clear = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    body = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + colours + clear + body


def empty_png(height: int, width: int) -> bytes:
    """A black grey PNG of any size: a few kilobytes."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes((width + 1) * height), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def indexed(indices: np.ndarray, colours: Sequence[Sequence[int]]) -> Image.Image:
    """An indexed image with exactly that palette."""
    image = Image.frombytes("P", indices.shape[::-1], np.ascontiguousarray(indices, np.uint8).tobytes())
    image.putpalette([part for colour in colours for part in colour])
    return image


def turned(image: Image.Image, orientation: int, path: Path) -> None:
    """Save an image whose EXIF data say how its camera was held."""
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
