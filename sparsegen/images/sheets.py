"""Results for display: images, label maps and active tiles come in, one image or a number comes out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sparsegen.backends.interface import Host

from ..tiling.tiles import TileSet
from .files import Palette

MARGIN, CAPTION, LINE, HEADING = 12, 26, 19, 34
"""Pixels of a sheet: around images; of a caption, of each further line of it, and of a heading."""


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


def sheet(panels: Sequence[tuple[str, Host]], *, columns: int, heading: str | None = None) -> Host:
    """Captioned images, uint8 `[H, W, 3]` of one size, in rows of `columns`, under a heading.

    Captions wider than an image have more lines, all of a sheet as many.
    """
    h, w, _ = panels[0][1].shape
    lines = [_wrapped(title, w) for title, _ in panels]
    title, caption = 0 if heading is None else HEADING, CAPTION + LINE * (max(map(len, lines)) - 1)
    rows = -(-len(panels) // columns)
    size = (MARGIN + columns * (w + MARGIN), title + MARGIN + rows * (h + caption + MARGIN))
    canvas = Image.new("RGB", size, (250, 250, 248))
    draw = ImageDraw.Draw(canvas)
    if heading is not None:
        draw.text((MARGIN, MARGIN), heading, fill=(40, 40, 40), font=ImageFont.load_default(20))
    for i, (words, (_, image)) in enumerate(zip(lines, panels, strict=True)):
        x, y = MARGIN + i % columns * (w + MARGIN), title + MARGIN + i // columns * (h + caption + MARGIN)
        for k, line in enumerate(words):
            draw.text((x, y + 3 + LINE * k), line, fill=(40, 40, 40), font=_font())
        canvas.paste(Image.fromarray(image), (x, y + caption))
    return np.asarray(canvas)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of captions."""
    return ImageFont.load_default(15)


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a caption, each no wider than `width` pixels unless a word is."""
    lines, font = [""], _font()
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def psnr(a: Host, b: Host) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB; infinite when they are equal."""
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
