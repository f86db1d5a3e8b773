"""Backends that tell what they compute: a convolution comes in, its input is kept; on purpose, one computes wrong.

They are the reference backend, whose formulas can be read, with a notebook beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import (
    TILE,
    Array,
    ConvGeometry,
    ConvWeights,
    Host,
    Source,
    Tiles,
)
from sparsegen.backends.reference import ReferenceBackend


@dataclass(frozen=True, eq=False)
class Convolution:
    """The input and the weights of a convolution."""

    source: Source
    weights: ConvWeights

    @property
    def transformed(self) -> bool:
        """Whether the fast backends compute it by Winograd's transforms: kernel 3×3, stride 1, one group."""
        g = self.weights.geometry
        return g.kernel == (3, 3) and g.stride == g.groups == 1


class Observed(ReferenceBackend):
    """The reference backend; keeps the last convolution into each array."""

    def __init__(self) -> None:
        self.convolutions: dict[int, Convolution] = {}
        """`id` of the array that is written -> the convolution. The canvases of a session live as long as it does."""

    def conv2d(self, out: Array, tiles: Tiles, source: Source, weights: ConvWeights, **settings: Any) -> bool:
        self.convolutions[id(out)] = Convolution(source, weights)
        return super().conv2d(out, tiles, source, weights, **settings)


class WithoutHalo(ReferenceBackend):
    """What a tile sees if its neighbours are not read: in an edit, the window around a tile holds zeros.

    Each active tile is convolved as if it were a whole small image. Wrong on purpose, to show what a halo is for.
    """

    def __init__(self) -> None:
        self.broken = False
        """Whether halos are left out; a dense run is to be right."""

    def _positions(self, tiles: Array, size: tuple[int, int], **settings: Any) -> tuple[Array, Array, Array]:
        n, y, x = super()._positions(tiles, size, **settings)
        resampled = settings.get("stride", 1) != 1 or settings.get("step", 1) != 1
        if not self.broken or resampled or not (settings.get("top") or settings.get("left")):
            return n, y, x
        # a row or column of another tile is moved outside the image, where values read as 0
        row, column = (tiles[:, i].astype(np.intp)[:, None] * TILE for i in (1, 2))
        rows, columns = y[:, :, 0], x[:, 0]
        rows = np.where((rows >= row) & (rows < row + TILE), rows, -1)
        columns = np.where((columns >= column) & (columns < column + TILE), columns, -1)
        return n, rows[:, :, None], columns[:, None]


def plain_weights(weights: ConvWeights) -> Host:
    """The reference backend's weights in PyTorch's order, `[O, I / groups, kh, kw]`."""
    g: ConvGeometry = weights.geometry
    (kh, kw), inputs = g.kernel, g.inputs // g.groups
    packed = np.asarray(weights.packed).reshape(g.groups, kh, kw, inputs, g.outputs // g.groups)
    return np.ascontiguousarray(packed.transpose(0, 4, 3, 1, 2).reshape(g.outputs, inputs, kh, kw))
