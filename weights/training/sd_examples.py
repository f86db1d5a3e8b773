"""Scenes by name in, masks (PNGs [128, 128]) and texts out: the examples of ``weights/builtin/landscape-sd``.

    python -m sparsegen.weights.training.sd_examples

The images and strokes are those of ``landscape-ddpm``, which no training has seen. The texts use the captions' words.
"""

import json
from pathlib import Path

from PIL import Image, ImageDraw

from .ddpm_export import SIZE
from .sd_export import PROMPTS

FOLDER = Path(__file__).parents[1] / "builtin" / "landscape-sd"
IMAGES = "../landscape-ddpm"

MORE = (
    "autumn, round trees, a lake, hills, evening light",
    "winter, mountains, a village, pine trees, day",
)
"""Beside those of the contact sheet."""

# name: (caption, text of the whole image, {strokes, or the box of an ellipse to paint in: (caption, text)})
SCENES = {
    "lake": (
        "a mountain lake",
        "winter, a lake in front of snowy mountains, firs, day",
        {
            "lake-cloud": ("a cloud above the mountains", "white clouds, mountains, a lake, summer, day"),
            "lake-firs": ("two firs at the shore", "firs, a lake in front of mountains, summer, day"),
        },
    ),
    "firs": (
        "firs in a wide meadow",
        "autumn, firs, a meadow, mountains, evening",
        {
            (8, 76, 96, 126): ("a lake in the meadow", "a lake, summer, day"),
            "firs-lake": ("a lake across the meadow", "a lake, firs, mountains, summer, day"),
        },
    ),
    "water": (
        "a wide lake",
        "a lake in front of mountains, autumn, sunset",
        {"water-shore": ("a green shore", "a meadow, a lake, summer, day")},
    ),
    "rocks": (
        "bare mountains in the evening",
        "winter, a winding road, snowy mountains, evening",
        {"rocks-snow": ("snow on the mountain", "snowy mountains, a meadow, evening")},
    ),
    "meadow": (
        "a meadow with a tree",
        "autumn, a tree, a meadow, hills, evening",
        {
            "meadow-pond": ("a pond", "a pond, a tree, a meadow, evening"),
            (14, 92, 78, 118): ("a pond beside the tree", "a pond, evening"),
        },
    ),
}
DEMO = "lake"


def main():
    listing = []
    for name, (caption, text, edits) in SCENES.items():
        original = f"{IMAGES}/{name}.png"
        entry = {"original": original, "caption": caption, "prompt": text, "demo": name == DEMO, "edits": []}
        for edit, (what, towards) in edits.items():
            if isinstance(edit, str):
                given = {"file": f"{IMAGES}/{edit}.png"}
            else:
                given = {"mask": f"{name}-mask.png"}
                mask = Image.new("1", (SIZE, SIZE))
                ImageDraw.Draw(mask).ellipse(edit, fill=1)
                mask.save(FOLDER / given["mask"], optimize=True)
            entry["edits"].append({**given, "caption": what, "prompt": towards})
        listing.append(entry)
    described = {"kind": "prompts", "prompts": [*PROMPTS, *MORE], "examples": listing}
    (FOLDER / "examples.json").write_text(json.dumps(described, indent=2) + "\n")


if __name__ == "__main__":
    main()
