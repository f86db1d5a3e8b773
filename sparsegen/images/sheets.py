"""Results for display: images, label maps and active tiles come in, one image or a number comes out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sparsegen.backends.interface import Host

from ..tiling.tiles import TileSet
from .files import Palette


def colourise(labels: Host, palette: Palette) -> Host:
    """A label map `[H, W]` in its palette's colours, uint8 `[H, W, 3]`."""
    return np.asarray(palette, np.uint8)[labels]


def overlay_tiles(image: Host, active: TileSet, *, sample: int = 0) -> Host:
    """The image with everything but the active tiles dimmed, and the border of the active area drawn."""
    mask = active.mask(whole_tiles=True)[sample]
    grey = image.mean(-1, keepdims=True) * 0.35 + image * 0.1 + 20
    shown = np.where(mask[..., None], image, grey)
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    shown[mask & ~inner] = (255, 200, 0)
    return shown.round().astype(np.uint8)


def enlarge(image: Host, factor: int) -> Host:
    """An image `[H, W, 3]` with every pixel `factor` times as wide and as high."""
    return image.repeat(factor, 0).repeat(factor, 1)


def sheet(panels: Sequence[tuple[str, Host]], *, columns: int) -> Host:
    """Captioned images, uint8 `[H, W, 3]` of one size, in rows of `columns`."""
    h, w, _ = panels[0][1].shape
    margin, caption = 12, 26
    rows = -(-len(panels) // columns)
    size = (margin + columns * (w + margin), margin + rows * (h + caption + margin))
    canvas = Image.new("RGB", size, (250, 250, 248))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for i, (title, image) in enumerate(panels):
        x, y = margin + i % columns * (w + margin), margin + i // columns * (h + caption + margin)
        draw.text((x, y + 3), title, fill=(40, 40, 40), font=font)
        canvas.paste(Image.fromarray(image), (x, y + caption))
    return np.asarray(canvas)


def psnr(a: Host, b: Host) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB; infinite when they are equal."""
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
