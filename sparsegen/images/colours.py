"""Images: a file comes in, uint8 colours or greys come out; where it is transparent, the image below shows."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sparsegen.backends.interface import Host

from ..errors import InputError
from .files import Source, read_file
from .frames import Frame, named


def read_image(
    source: Source, *, channels: int = 3, below: Host | None = None, frame: Frame | None = None
) -> Host:
    """An image, uint8 `[H, W, channels]` (3: RGB, 1: grey), upright by its EXIF orientation.

    16 bits a channel become 8. `frame` crops and resizes the file first. Where it is transparent, the image `below`
    shows, which has the result's shape. Colour profiles are not applied.

    Raises
    ------
    InputError, ShapeError
        It cannot be read (damaged, several frames, LAB or 32 bits a channel); it is transparent without an image below;
        its size is not that of the image below or of the frame's files.
    """
    file = read_file(source)
    image, alpha = Image.fromarray(file.rgb()), file.alpha()
    if alpha is not None and below is None and alpha.min() != 255:
        raise InputError(
            f"{file.path}: has transparent pixels, expected an opaque image; only an edited image may have them"
        )
    if alpha is not None and below is not None:
        image.putalpha(Image.fromarray(alpha))
    if frame is not None:
        image = frame.filtered(image, file.path)
    size = image.height, image.width
    if below is not None and size != below.shape[:2]:
        raise InputError(
            f"{file.path}: {named(size)}, expected {named(below.shape[:2])} (height × width) like the image before it; "
            "resize it"
        )
    if image.mode == "RGBA" and below is not None:
        ground = Image.fromarray(below[..., 0] if channels == 1 else below).convert("RGBA")
        image = Image.alpha_composite(ground, image)
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)
