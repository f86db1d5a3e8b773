"""Pending work written out: a feature comes in, a feature of one canvas without pending work comes out."""

from __future__ import annotations

from sparsegen.backends.interface import Array, Tiles

from ..engine.feature import Feature
from ..tiling.windows import Window
from .base import Layer


class WriteOut(Layer):
    """The values of a feature, written into a canvas: where a model ends with work pending."""

    def __call__(self, x: Feature) -> Feature:
        """`[N, H, W, C]` → the same, with nothing pending."""
        run = x.run

        def write(canvas: Array, tiles: Tiles) -> bool:
            return run.backend.pointwise(canvas, tiles, x.source)

        canvas = run.compute(self.path, x.shape, x.reads(Window()), write, macs_per_pixel=0)
        return Feature(run, (canvas,))
