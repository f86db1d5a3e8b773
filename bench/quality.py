"""The distance of a sparse edit from a dense one: 32 seeded strokes of 1 to 20 % on images outside the training data.

    python -m bench.quality [--backend NAME] [--model landscape-ddpm]

For each edit, SDEdit runs sparse and, as the reference, whole at every step, on the same noise. PSNR is of the whole
image and of the recomputed region; figures go to bench/results/quality.jsonl, a sheet of images beside it.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import sparsegen
from bench.harness import RESULTS, machine, record, say, table
from sparsegen.images import overlay_tiles, psnr, sheet, write_png

EDITS = 32
AREAS = (0.01, 0.20)
BINS = (0.0, 0.02, 0.05, 0.10, 0.25)
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


@dataclass(frozen=True)
class Edit:
    """One stroke and its results."""

    seed: int
    area: float
    macs: float
    """MACs as a share of the dense run's."""
    faster: float
    whole_db: float
    region_db: float
    panels: tuple[np.ndarray, ...]


def painted(picture: np.ndarray, seed: int) -> np.ndarray:
    """A flat stroke (an ellipse, a box or a triangle) of the seed's share of the image, on a copy of it."""
    rng = np.random.default_rng(seed)
    height, width, _ = picture.shape
    low, high = np.log(AREAS)
    area = float(np.exp(low + (high - low) * (seed % EDITS) / (EDITS - 1))) * height * width
    kind, ratio = rng.integers(3), rng.uniform(0.6, 1.6)
    tall = (area / ratio / (np.pi / 4, 1.0, 0.5)[kind]) ** 0.5
    wide = tall * ratio
    x, y = rng.uniform(0, max(1, width - wide)), rng.uniform(0, max(1, height - tall))
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    colour = COLOURS[rng.integers(len(COLOURS))]
    if kind == 0:
        draw.ellipse((x, y, x + wide, y + tall), fill=colour)
    elif kind == 1:
        draw.rectangle((x, y, x + wide, y + tall), fill=colour)
    else:
        draw.polygon([(x, y + tall), (x + wide, y + tall), (x + wide / 2, y)], fill=colour)
    return np.asarray(image)


def compare(session: sparsegen.SDEdit, picture: np.ndarray, seed: int) -> Edit:
    """The results of the sparse and the dense edit of the same stroke."""
    strokes = painted(picture, seed)
    session.run(picture)
    dense = session.dense(strokes)
    sparse = session.edit(strokes)
    new = (sparse.images[0] != picture).any(-1) | (dense.images[0] != picture).any(-1)
    return Edit(
        seed,
        sparse.stats.edited_area,
        sparse.stats.macs / sparse.stats.macs_dense,
        dense.stats.milliseconds / sparse.stats.milliseconds,
        psnr(sparse.images, dense.images),
        psnr(sparse.images[0][new], dense.images[0][new]),
        (picture, strokes, dense.image, sparse.image, overlay_tiles(sparse.image, sparse.active)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", help="sparsegen's backend (its default)")
    parser.add_argument("--model", default="landscape-ddpm", help="a DDPM of 128×128 images (landscape-ddpm)")
    parser.add_argument("--edits", type=int, default=EDITS, help=f"number of edits, of {EDITS}")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    from sparsegen.weights.training.ddpm_export import unseen  # the painter; imports PyTorch

    model = sparsegen.load(options.model)
    edits = []
    with sparsegen.SDEdit(model, backend=options.backend) as session:
        for seed in range(options.edits):
            say(f"edit {seed + 1} of {options.edits}")
            edits.append(compare(session, unseen(2_000_000 + seed), seed))
    for edit in edits:
        record(
            "quality",
            {
                "model": options.model,
                "seed": edit.seed,
                "area": edit.area,
                "macs": edit.macs,
                "faster": edit.faster,
                "psnr": edit.whole_db,
                "psnr_region": edit.region_db,
            },
            folder=options.results,
        )
    print(machine())
    rows = []
    for low, high in pairwise(BINS):
        some = [edit for edit in edits if low <= edit.area < high]
        if some:
            rows.append((f"{low:.0%} to {high:.0%}", *_summary(some)))
    rows.append(("all", *_summary(edits)))
    table(["edited", "edits", "MACs", "× dense", "PSNR, picture", "lowest", "PSNR, region", "lowest"], rows)
    shown = edits[:: max(1, len(edits) // 8)]
    names = ("original", "strokes", "dense", "sparse", "tiles")
    panels = [
        (f"{name} {edit.area:.1%}" if name == "strokes" else name, panel)
        for edit in shown
        for name, panel in zip(names, edit.panels, strict=True)
    ]
    write_png(options.results / "quality.png", sheet(panels, columns=len(names)))


def _summary(edits: list[Edit]) -> tuple[str, ...]:
    """Medians, and the lowest PSNR."""
    whole, region = [e.whole_db for e in edits], [e.region_db for e in edits]
    return (
        str(len(edits)),
        f"{statistics.median(e.macs for e in edits):.0%}",
        f"{statistics.median(e.faster for e in edits):.1f}",
        f"{statistics.median(whole):.1f} dB",
        f"{min(whole):.1f} dB",
        f"{statistics.median(region):.1f} dB",
        f"{min(region):.1f} dB",
    )


if __name__ == "__main__":
    main()
