"""Images in and out: files come in as images, label maps and masks, results go out as PNG, whole or not at all.

`files` decodes every image file alike (limits, damage, orientation, transparency), and writes PNG; `formats` reads the
details of their formats (loss, depth, pages). A decoded file becomes a label map in `labels` (`palettes`: by its
colours), a mask in `masks`, an image in `colours`; `frames` crops and resizes all three. `sheets` lays results out for
display.
"""

from .colours import read_image
from .files import ImageFile, Palette, png_bytes, read_file, write_png, write_whole
from .frames import Frame, Size
from .labels import read_labels
from .masks import read_mask
from .palettes import ColourError
from .sheets import colourise, enlarge, overlay_tiles, psnr, sheet

__all__ = [
    "ColourError",
    "Frame",
    "ImageFile",
    "Palette",
    "Size",
    "colourise",
    "enlarge",
    "overlay_tiles",
    "png_bytes",
    "psnr",
    "read_file",
    "read_image",
    "read_labels",
    "read_mask",
    "sheet",
    "write_png",
    "write_whole",
]
