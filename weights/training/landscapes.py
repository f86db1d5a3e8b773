"""A seed in, a landscape out: labels uint8 [256, 512], picture uint8 [256, 512, 3] and style float32 [16].

The picture is (but for its finest texture) a function of the label map and of the style, so that a generator
can learn it. ``python -m sparsegen.weights.training.landscapes out.png`` paints a sheet of examples.
"""

import sys

import numpy as np

from .canvas import LABELS, Canvas
from .scenery import clouds, hills, meadow, mountains, road, sky
from .standing import standing, wood
from .waterside import sand, shore, water


def paint(canvas):
    """Paint a whole landscape, back to front; returns the picture, uint8 [256, 512, 3]."""
    rng = canvas.rng
    sky(canvas)
    if rng.random() < 0.85:
        clouds(canvas)
    if rng.random() < 0.85:
        tall = canvas.horizon * rng.uniform(0.45, 0.88)
        if rng.random() < 0.6:
            mountains(canvas, tall, 0.62)
        mountains(canvas, tall * rng.uniform(0.5, 0.8), 0.34)
    for haze in (0.40, 0.22)[: rng.choice([0, 1, 2, 2])]:
        hills(canvas, canvas.horizon * rng.uniform(0.12, 0.30), haze)
    meadow(canvas)
    for _ in range(rng.choice([0, 1, 1, 2])):
        wood(canvas, rng.integers(6, 22))
    wet = rng.random() < 0.72
    if rng.random() < (0.3 if wet else 0.75):
        road(canvas)
    if wet:
        far, near = shore(canvas)
        if rng.random() < 0.6:
            sand(canvas, far, near)
        water(canvas, far, near)
    standing(canvas)
    contrast = np.clip(canvas.rgb, 0, 1.3)
    contrast = contrast / (1 + 0.10 * contrast**3)  # a soft shoulder instead of burnt-out lights
    return np.clip(contrast * 255 + 0.5, 0, 255).astype(np.uint8)


def landscape(seed):
    """Paint the landscape of ``seed``.

    Returns
    -------
    labels : uint8 [256, 512], index into ``LABELS["names"]``
    picture : uint8 [256, 512, 3]
    style : float32 [16], see ``canvas.STYLE``; the last eight entries are noise without meaning
    """
    canvas = Canvas(seed)
    picture = paint(canvas)
    return canvas.labels, picture, canvas.style


def colours(labels):
    """Label map [H, W] -> its palette colours uint8 [H, W, 3]."""
    return np.asarray(LABELS["palette"], np.uint8)[labels]


if __name__ == "__main__":
    from PIL import Image

    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    pairs = [landscape(seed)[:2] for seed in range(first, first + 8)]
    tiles = [np.hstack([colours(labels), picture]) for labels, picture in pairs]
    Image.fromarray(np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, 8, 2)])).save(sys.argv[1])
