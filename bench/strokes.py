"""The edits whose quality is measured: seeds or a built-in model's examples come in, images with strokes come out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sparsegen.images import read_image
from sparsegen.weights import builtin

EDITS = 32
"""Edits of a set."""
AREAS = (0.01, 0.20)
FIRST = 2_000_000
"""The seed of a set's first image. Nothing is chosen by edits of other sets, such as 3,000,000's."""
EXAMPLES = "examples"
"""The group of a built-in model's examples."""
COLOURS = (
    (62, 98, 44),
    (34, 58, 42),
    (165, 60, 50),
    (238, 238, 242),
    (46, 104, 168),
    (214, 205, 190),
    (240, 214, 120),
)
"""Leaves, fir, roof, snow and cloud, water, wall, sand."""


@dataclass(frozen=True, eq=False)
class Strokes:
    """An image, and a copy with strokes painted over it, uint8 `[H, W, 3]`."""

    group: str
    name: str
    original: np.ndarray
    edited: np.ndarray


def group_of(first: int) -> str:
    """The name of a set of unseen images by the seed of its first."""
    return f"unseen {first}"


def unseen_image(seed: int) -> np.ndarray:
    """An image uint8 `[128, 128, 3]` that is not in the training data of `landscape-ddpm`."""
    from sparsegen.weights.training.ddpm_export import unseen  # the painter; imports PyTorch

    image: np.ndarray = unseen(seed)
    return image


def unseen(first: int, count: int) -> Iterator[Strokes]:
    """The first edits of a set: one stroke each, on images outside the training data."""
    for i in range(count):
        image = unseen_image(first + i)
        edited = painted(image, first - FIRST + i, _area(i))
        yield Strokes(group_of(first), str(i), image, edited)


def examples(model: str) -> Iterator[Strokes]:
    """The edits of a built-in model's examples; none of another model."""
    known = builtin.get(model)
    for example in () if known is None else known.examples:
        original = read_image(example.original)
        for edit in example.edits:
            yield Strokes(EXAMPLES, edit.path.stem, original, read_image(edit.path))


def _area(i: int) -> float:
    """The area of a set's i-th stroke, a share of the image: evenly spaced on a logarithmic scale."""
    low, high = np.log(AREAS)
    return float(np.exp(low + (high - low) * (i % EDITS) / (EDITS - 1)))


def painted(image: np.ndarray, seed: int, area: float) -> np.ndarray:
    """A copy of an image with a flat stroke on it, an ellipse, a box or a triangle of that share of the pixels."""
    rng = np.random.default_rng(seed)
    height, width, _ = image.shape
    kind, ratio = rng.integers(3), rng.uniform(0.6, 1.6)
    tall = (area * height * width / ratio / (np.pi / 4, 1.0, 0.5)[kind]) ** 0.5
    wide = tall * ratio
    x, y = rng.uniform(0, max(1, width - wide)), rng.uniform(0, max(1, height - tall))
    copy = Image.fromarray(image)
    draw = ImageDraw.Draw(copy)
    colour = COLOURS[rng.integers(len(COLOURS))]
    if kind == 0:
        draw.ellipse((x, y, x + wide, y + tall), fill=colour)
    elif kind == 1:
        draw.rectangle((x, y, x + wide, y + tall), fill=colour)
    else:
        draw.polygon([(x, y + tall), (x + wide, y + tall), (x + wide / 2, y)], fill=colour)
    return np.asarray(copy)
