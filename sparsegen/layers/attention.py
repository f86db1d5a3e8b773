"""Attention: each active pixel against all keys and values of its sample, or of a text."""

from __future__ import annotations

from dataclasses import replace

from sparsegen.backends.interface import (
    Array,
    Source,
    Tiles,
)

from ..engine.feature import Feature
from ..errors import ShapeError
from ..tiling.windows import Window
from .base import Layer


class Attention(Layer):
    """softmax(q kᵀ / sqrt(d)) v over all pixels of a sample, `heads` times over C / heads channels each.

    Each active pixel is computed against the whole canvases of keys and values. Under the `paper` policy a key or value
    that changes makes no other pixel active; under `exact`, every pixel of its sample.

    Parameters
    ----------
    heads
        The number of heads.
    causal
        Whether a pixel attends to those up to itself alone, row by row: in a text.
    kept
        False: a scratch layer (`engine.scratch`).
    """

    def __init__(self, heads: int, *, causal: bool = False, kept: bool = True) -> None:
        self.heads, self.causal, self.kept = heads, causal, kept

    def __call__(self, q: Feature, k: Feature, v: Feature) -> Feature:
        """Three features `[N, H, W, C]` (k and v may have other H, W) → `[N, H, W, C]`."""
        run, (n, _, _, c) = q.run, q.shape
        if c % self.heads or k.shape != v.shape or (k.shape[0], k.shape[3]) != (n, c):
            raise ShapeError(f"{self.path}: cannot attend {q.shape} to {k.shape} in {self.heads} heads")

        def attend(canvas: Array, tiles: Tiles) -> bool:
            return run.backend.attention(
                canvas, tiles, q.source, k.source, v.source, heads=self.heads, causal=self.causal
            )

        reads = [
            *q.reads(Window()),
            *(replace(r, everywhere=True) for of in (k, v) for r in of.reads(Window())),
        ]
        macs = 2 * k.shape[1] * k.shape[2] * c
        canvas = run.compute(self.path, q.shape, reads, attend, macs_per_pixel=macs, kept=self.kept)
        return Feature(run, (canvas,))

    def to_text(self, q: Feature, k: Array, v: Array) -> Feature:
        """The same against keys and values `[1 or N, h, w, C]` that no edit changes, arrays of the backend."""
        run, c = q.run, q.shape[3]
        if c % self.heads or k.shape != v.shape or k.shape[3] != c or k.shape[0] not in (1, q.shape[0]):
            raise ShapeError(f"{self.path}: cannot attend {q.shape} to {k.shape} in {self.heads} heads")

        def attend(canvas: Array, tiles: Tiles) -> bool:
            return run.backend.attention(
                canvas, tiles, q.source, Source((k,)), Source((v,)), heads=self.heads
            )

        macs = 2 * k.shape[1] * k.shape[2] * c
        canvas = run.compute(
            self.path, q.shape, q.reads(Window()), attend, macs_per_pixel=macs, kept=self.kept
        )
        return Feature(run, (canvas,))
