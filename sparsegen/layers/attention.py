"""Attention: each active pixel against all keys and values of its sample."""

from __future__ import annotations

from dataclasses import replace

from sparsegen.backends.interface import (
    Array,
    Tiles,
)

from ..engine.run import Feature
from ..errors import ShapeError
from ..tiling.windows import Window
from .base import Layer


class Attention(Layer):
    """softmax(q kᵀ / sqrt(d)) v over all pixels of a sample, `heads` times over C / heads channels each.

    Each active pixel is computed against the whole canvases of keys and values. Under the `paper` policy a key or value
    that changes makes no other pixel active; under `exact`, every pixel of its sample.
    """

    def __init__(self, heads: int) -> None:
        self.heads = heads

    def __call__(self, q: Feature, k: Feature, v: Feature) -> Feature:
        """Three features `[N, H, W, C]` (k and v may have other H, W) → `[N, H, W, C]`."""
        run, (n, h, w, c) = q.run, q.shape
        if c % self.heads or k.shape != v.shape or (k.shape[0], k.shape[3]) != (n, c):
            raise ShapeError(f"{self.path}: cannot attend {q.shape} to {k.shape} in {self.heads} heads")

        def attend(canvas: Array, tiles: Tiles) -> None:
            run.backend.attention(canvas, tiles, q.source, k.source, v.source, heads=self.heads)

        reads = [
            *q.reads(Window()),
            *(replace(r, everywhere=True) for of in (k, v) for r in of.reads(Window())),
        ]
        macs = 2 * k.shape[1] * k.shape[2] * c
        return run.compute(self.path, (n, h, w, c), reads, attend, macs_per_pixel=macs)
