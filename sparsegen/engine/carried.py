"""Deltas of an edit, carried from one denoising step to the next: tiles of canvases come in, and go to later steps.

An edit's *delta* in a canvas is the edited canvas minus the original's. From one denoising step to the next the canvas
changes, its delta changes little, and smoothly. So at most steps a canvas is that step's original plus a delta on the
parabola through the deltas of the last three steps that computed it; nothing below it is computed at all. That canvas
may be the output itself: then the step computes nothing. (DeepCache, arXiv 2312.00858, carries the canvases
themselves; Chipmunk carries deltas; neither follows their course.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsegen.backends.interface import Array, Backend

from ..tiling.canvas import Canvas, Compute
from ..tiling.tiles import TileSet


@dataclass(frozen=True, eq=False)
class Delta:
    """How an edit changed the tiles of one canvas."""

    changed: TileSet
    values: Array
    """Edited minus original, float32 `[K, TILE, TILE, C]`."""


@dataclass(frozen=True, eq=False)
class Deltas:
    """The deltas of the frontier at one denoising step."""

    step: int
    rows: int
    """Layers of at most so many rows are not computed where the deltas go; see `Program.frontier`."""
    of: dict[str, Delta]
    """Path -> delta; none for a canvas that did not change."""

    def at(self, step: int, *before: Deltas) -> Deltas:
        """The deltas at a later step, on the polynomial through these and the ones `before`: one, a line; two, a
        parabola. A canvas without a delta there, or with one of other tiles, does without it.
        """
        later: dict[str, Delta] = {}
        for path, delta in self.of.items():
            olds = {each.step: each.of[path] for each in before if path in each.of}
            olds = {k: old for k, old in olds.items() if old.changed is delta.changed}
            values = delta.values
            for k, old in olds.items():
                # Lagrange's weights add up to 1: a delta that does not change stays as it is, to the bit
                weight = math.prod((step - m) / (k - m) for m in (self.step, *olds) if m != k)
                values = values + (old.values - delta.values) * weight
            later[path] = Delta(delta.changed, values)
        return Deltas(step, self.rows, later)

    def kernel(self, backend: Backend, canvas: Canvas) -> tuple[TileSet, Compute] | None:
        """The tiles of a canvas that take a delta, and the kernel that adds it; None: it is not of the frontier."""
        delta = self.of.get(canvas.path)
        if delta is None:
            return None
        values = delta.values
        return delta.changed, lambda array, tiles: backend.add_tiles(array, tiles, values)
