"""Scenes and strokes by name in, PNGs [128, 128, 3] out: the example edits of ``weights/builtin/landscape-ddpm``.

    python -m sparsegen.weights.training.ddpm_examples

Every scene is one of the painter's, of a seed that no training has seen, cut at ``left``; the strokes are flat colours,
laid on as by a hand with a coarse brush.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .ddpm_export import SIZE, halve
from .landscapes import landscape

FOLDER = Path(__file__).parents[1] / "builtin" / "landscape-ddpm"
WALL, ROOF, FIR, LEAVES, TRUNK = (224, 214, 194), (176, 62, 44), (34, 66, 40), (46, 82, 32), (84, 62, 44)
SUN, WHITE, SNOW = (255, 244, 214), (244, 244, 248), (232, 236, 244)
WATER, GRASS = (58, 92, 138), (96, 124, 44)


def house(draw, x, y, size):
    """Two rectangles: walls that stand at (x, y), and a roof."""
    draw.rectangle((x - size, y - size, x + size, y), fill=WALL)
    draw.rectangle((x - size - 2, y - 1.8 * size, x + size + 2, y - size), fill=ROOF)


def tree(draw, x, y, size):
    """A trunk and a round crown."""
    draw.rectangle((x - 1, y - size, x + 2, y), fill=TRUNK)
    draw.ellipse((x - 0.5 * size, y - 1.6 * size, x + 0.5 * size, y - 0.5 * size), fill=LEAVES)


def fir(draw, x, y, height):
    draw.polygon([(x - 0.26 * height, y), (x + 0.26 * height, y), (x, y - height)], fill=FIR)


def cloud(draw, x, y, width):
    for dx, dy, size in ((-0.3, 0, 0.22), (0, -0.07, 0.3), (0.3, 0.02, 0.2)):
        draw.ellipse(
            (
                x + (dx - size) * width,
                y + (dy - 0.5 * size) * width,
                x + (dx + size) * width,
                y + (dy + 0.5 * size) * width,
            ),
            fill=WHITE,
        )


def disc(draw, x, y, radius, colour, flat=1.0):
    draw.ellipse((x - radius, y - flat * radius, x + radius, y + flat * radius), fill=colour)


def line(draw, points, width, colour):
    """A stroke of a round brush."""
    draw.line(points, fill=colour, width=width, joint="curve")
    for x, y in (points[0], points[-1]):
        disc(draw, x, y, width / 2 - 0.5, colour)


# name: (seed, left, caption, {edit: (caption, its strokes)})
SCENES = {
    "lake": (
        3000022,
        90,
        "a mountain lake",
        {
            "lake-house": ("a house in the meadow", lambda d: house(d, 34, 116, 13)),
            "lake-cloud": ("a cloud above the mountains", lambda d: cloud(d, 23, 13, 36)),
            "lake-firs": (
                "two firs at the shore",
                lambda d: (fir(d, 18, 112, 52), fir(d, 40, 120, 62)),
            ),
        },
    ),
    "rocks": (
        3000003,
        96,
        "bare mountains in the evening",
        {
            "rocks-snow": (
                "snow on the mountain",
                lambda d: line(d, [(80, 41), (91, 35), (101, 32), (112, 36), (122, 38)], 7, SNOW),
            ),
            "rocks-tree": ("a tree beside the road", lambda d: tree(d, 94, 112, 36)),
        },
    ),
    "meadow": (
        3000019,
        100,
        "a meadow with a tree",
        {
            "meadow-pond": ("a pond", lambda d: disc(d, 36, 108, 29, WATER, 0.26)),
            "meadow-house": ("a house behind the tree", lambda d: house(d, 32, 84, 11)),
        },
    ),
    "water": (
        3000039,
        20,
        "a wide lake",
        {
            "water-sun": ("a sun between the clouds", lambda d: disc(d, 72, 14, 8, SUN)),
            "water-shore": (
                "a green shore",
                lambda d: line(d, [(-9, 119), (60, 121), (140, 116)], 22, GRASS),
            ),
        },
    ),
    "firs": (
        3000017,
        20,
        "firs in a wide meadow",
        {
            "firs-house": ("a house to the left", lambda d: house(d, 26, 104, 14)),
            "firs-lake": (
                "a lake across the meadow",
                lambda d: line(d, [(-4, 84), (40, 86), (90, 84)], 15, WATER),
            ),
        },
    ),
}
DEMO = "lake"


def original(seed, left):
    """The painter's picture of a seed, halved and cut: uint8 [128, 128, 3]."""
    return halve(landscape(seed)[1][None])[0][:, left : left + SIZE]


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    listing = []
    for name, (seed, left, caption, edits) in SCENES.items():
        picture = original(seed, left)
        Image.fromarray(picture).save(FOLDER / f"{name}.png", optimize=True)
        entry = {"original": f"{name}.png", "caption": caption, "demo": name == DEMO, "edits": []}
        for edit, (what, strokes) in edits.items():
            image = Image.fromarray(picture)
            strokes(ImageDraw.Draw(image))
            image.save(FOLDER / f"{edit}.png", optimize=True)
            area = round(float((np.asarray(image) != picture).any(-1).mean()), 4)
            entry["edits"].append({"file": f"{edit}.png", "caption": what, "area": area})
            print(f"{edit}: {100 * area:.1f} % of the area")
        listing.append(entry)
    described = {"kind": "strokes", "examples": listing}
    (FOLDER / "examples.json").write_text(json.dumps(described, indent=2) + "\n")


if __name__ == "__main__":
    main()
