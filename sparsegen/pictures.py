"""Pictures in and out: files come in as pictures, label maps and masks, results go out as PNG, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sparsegen.backends.interface import Host

from .errors import InputError
from .tiles import TileSet

Palette = Sequence[tuple[int, int, int]]


class ColourError(InputError):
    """A picture's colours stand for no labels."""


def _open(path: str | os.PathLike[str]) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not a picture that can be read ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def read_labels(path: str | os.PathLike[str], palette: Palette | None = None) -> Host:
    """A label map `[H, W]`: the indices of a palette PNG, the values of a grey one (8 or 16 bits).

    With `palette`, an RGB picture in exactly those colours is a label map too. Raises InputError.
    """
    picture = _open(path)
    if picture.mode in ("P", "L", "1") or picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.int32)
    if palette is None:
        raise ColourError(f"{path}: a {picture.mode} picture; give label maps as palette or grey PNG")
    pixels = np.asarray(picture.convert("RGB")).astype(np.int32)
    key = (pixels << (16, 8, 0)).sum(-1)
    colours = (np.asarray(palette) << (16, 8, 0)).sum(-1)
    labels = np.full(key.shape, -1, np.int32)
    for label, colour in enumerate(colours):
        labels[key == colour] = label
    if (labels < 0).any():
        y, x = np.argwhere(labels < 0)[0]
        raise ColourError(
            f"{path}: the colour {tuple(pixels[y, x].tolist())} at row {y}, column {x} is none of the model's "
            f"{len(colours)} label colours"
        )
    return labels


def read_picture(path: str | os.PathLike[str], *, channels: int = 3, below: Host | None = None) -> Host:
    """A picture, uint8 `[H, W, channels]` (3: RGB, 1: grey), upright as its camera says.

    Where it is transparent, the picture `below` shows, of the same shape. Raises InputError: it cannot be read, is
    transparent over nothing, or of another size than what lies below.
    """
    picture = ImageOps.exif_transpose(_open(path))
    if picture.mode == "F" or (picture.mode.startswith("I") and np.asarray(picture).max() > 65535):
        raise InputError(f"{path}: a {picture.mode} picture; give 8 or 16 bits a channel")
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) // 257).astype(np.uint8))
    mode = "RGB" if channels == 3 else "L"
    if below is not None and picture.size != (below.shape[1], below.shape[0]):
        raise InputError(
            f"{path}: {picture.height}×{picture.width}, but the picture before it is {below.shape[0]}×{below.shape[1]}"
        )
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        least, _ = layer.getchannel("A").getextrema()
        if below is None and least != 255:
            raise InputError(
                f"{path}: has transparent pixels; only an edited picture may, over what was before"
            )
        if below is not None:
            ground = Image.fromarray(below[..., 0] if channels == 1 else below).convert("RGBA")
            picture = Image.alpha_composite(ground, layer)
    pixels = np.asarray(picture.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def read_mask(path: str | os.PathLike[str]) -> Host:
    """A mask `[H, W]`: True where the picture is not black (an alpha channel is ignored)."""
    picture = _open(path)
    return np.asarray(np.asarray(picture.convert("RGB")).any(-1))


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


def colourise(labels: Host, palette: Palette) -> Host:
    """A label map `[H, W]` in its palette's colours, uint8 `[H, W, 3]`."""
    return np.asarray(palette, np.uint8)[labels]


def overlay_tiles(image: Host, active: TileSet, *, sample: int = 0) -> Host:
    """The picture with everything but the active tiles dimmed, and the border of the active area drawn."""
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
    """A picture `[H, W, 3]` with every pixel `factor` times as wide and as high."""
    return image.repeat(factor, 0).repeat(factor, 1)


def sheet(panels: Sequence[tuple[str, Host]], *, columns: int) -> Host:
    """Captioned pictures, uint8 `[H, W, 3]` of one size, in rows of `columns`."""
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
    """Peak signal-to-noise ratio of two uint8 pictures in dB; infinite when they are equal."""
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
