"""Pictures in and out: files come in as pictures, label maps and masks, results go out as PNG, whole or not at all.

`files` decodes every image file alike, whatever it is read as (limits, damage, orientation, loss, transparency), and
writes PNG. `labels` makes label maps of it, `masks` masks, `colours` pictures; `frames` crops and resizes all three.
`sheets` lays results out to be shown.
"""

from .colours import read_picture
from .files import Palette, lossy_format, read_size, write_png
from .frames import Frame, Size
from .labels import ColourError, read_labels
from .masks import read_mask
from .sheets import colourise, enlarge, overlay_tiles, psnr, sheet

__all__ = [
    "ColourError",
    "Frame",
    "Palette",
    "Size",
    "colourise",
    "enlarge",
    "lossy_format",
    "overlay_tiles",
    "psnr",
    "read_labels",
    "read_mask",
    "read_picture",
    "read_size",
    "sheet",
    "write_png",
]
