"""Scenes and edits by name in, palette PNGs [256, 512] out: the example label maps of ``weights/builtin/landscape``.

    python -m sparsegen.weights.training.examples

Every scene is one of the painter's, of a seed that no training has seen; every edit is drawn with the painter's
own brushes onto a copy of it.
"""

import copy
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation
from scipy.ndimage import label as components

from . import scenery
from .canvas import CLOUD, LABELS, MEADOW, SKY, SUN, WATER, Canvas, X, Y
from .fields import HEIGHT, WIDTH, ridge
from .landscapes import paint
from .standing import house, tree

FOLDER = Path(__file__).parents[1] / "builtin" / "landscape"


def cloud(canvas, x, y, width, height):
    """A cloud in front of the sky, behind all else."""
    canvas.cloud_body = np.full((HEIGHT, WIDTH), -9.0, np.float32)
    scenery.cloud(canvas, x, y, width, height)
    canvas.labels[(canvas.cloud_body > -0.01) & np.isin(canvas.labels, (SKY, CLOUD))] = CLOUD


def sun(canvas, x, y, radius):
    """The sun moved to (x, y)."""
    canvas.labels[canvas.labels == SUN] = SKY
    canvas.labels[(np.hypot(X - x, Y - y) < radius) & (canvas.labels == SKY)] = SUN


def pond(canvas, x, y, half, thick):
    """A pond amid the meadow, ``half`` as wide to either side, ``thick`` as deep."""
    bulge = np.sqrt(np.clip(1 - ((X[0] - x) / half) ** 2, 0, 1)) * (
        1 + 0.15 * ridge(canvas.rng, first=6, octaves=3)
    )
    inside = (Y - y > -0.8 * thick * bulge) & (Y - y < thick * bulge)
    canvas.labels[inside & (canvas.labels == MEADOW)] = WATER


def without(canvas, x, y, *, ground):
    """Take away the thing at (x, y): its connected region, crumbs included, becomes ``ground``."""
    same = canvas.labels == canvas.labels[y, x]
    regions, _ = components(binary_dilation(same, iterations=3))
    canvas.labels[same & (regions == regions[y, x])] = ground


def grove(canvas, places):
    for x, base, height, fir in sorted(places, key=lambda place: place[1]):
        tree(canvas, x, base, height, fir=fir)


# name: (seed, caption, {edit: (caption, its drawing)}); a drawing changes the canvas's labels in place
SCENES = {
    "lake": (
        2000124,
        "a mountain lake with firs at its shore",
        {
            "lake-house": ("a house on the shore", lambda c: house(c, 300, 238, 43)),
            "lake-cloud": ("a cloud above the lake", lambda c: cloud(c, 262, 42, 52, 21)),
            "lake-woods": (
                "a wood in the foreground",
                lambda c: grove(
                    c,
                    [(40, 246, 128, True), (92, 240, 104, True), (140, 251, 120, True), (14, 236, 100, True)],
                ),
            ),
        },
    ),
    "valley": (
        2000136,
        "a road through a valley, a tree beside it",
        {
            "valley-pond": ("a pond beside the road", lambda c: pond(c, 345, 213, 84, 11)),
            "valley-sun": ("the sun moved to the left", lambda c: sun(c, 42, 48, 15)),
        },
    ),
    "bay": (
        2000110,
        "a bay with a beach, a house behind firs",
        {
            "bay-tree": ("a round tree at the beach", lambda c: tree(c, 318, 240, 104, fir=False)),
            "bay-cloud": (
                "a cloud moved to the right",
                lambda c: (without(c, 80, 30, ground=SKY), cloud(c, 262, 40, 50, 19)),
            ),
        },
    ),
    "beach": (
        2000153,
        "a lake seen from its beach",
        {
            "beach-house": ("a house behind the beach", lambda c: house(c, 66, 236, 44)),
            "beach-trees": (
                "three trees at the left",
                lambda c: grove(c, [(40, 240, 150, False), (118, 250, 118, True), (0, 252, 130, True)]),
            ),
        },
    ),
    "pond": (
        2000162,
        "a pond in a meadow below the mountains",
        {
            "pond-house": ("a house beside the pond", lambda c: house(c, 150, 214, 50)),
            "pond-fir": ("a fir beside the pond", lambda c: tree(c, 452, 236, 112, fir=True)),
        },
    ),
    "village": (
        2000096,
        "two houses at a pond",
        {
            "village-house": ("one house fewer", lambda c: without(c, 290, 180, ground=MEADOW)),
            "village-tree": ("a tree in front of the houses", lambda c: tree(c, 108, 232, 98, fir=False)),
        },
    ),
}
DEMO = "lake"


def write(labels, name):
    """Write a label map [H, W] as palette PNG; the pixels are the labels, the palette their colours."""
    image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    image.putpalette(bytes(np.asarray(LABELS["palette"], np.uint8)))
    image.save(FOLDER / f"{name}.png", optimize=True)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    listing = []
    for name, (seed, caption, edits) in SCENES.items():
        canvas = Canvas(seed)
        paint(canvas)
        write(canvas.labels, name)
        entry = {"original": f"{name}.png", "caption": caption, "demo": name == DEMO, "edits": []}
        for edit, (what, draw) in edits.items():
            edited = copy.deepcopy(canvas)
            draw(edited)
            write(edited.labels, edit)
            area = round(float((edited.labels != canvas.labels).mean()), 4)
            entry["edits"].append({"file": f"{edit}.png", "caption": what, "area": area})
            print(f"{edit}: {100 * area:.1f} % of the area")
        listing.append(entry)
    (FOLDER / "examples.json").write_text(
        json.dumps({"kind": "labels", "examples": listing}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
