"""A tile in numbers: a convolution and an active tile of it come in, its window, transform and sums come out.

Of all channels, one pair is shown: the output channel that has the largest value in the tile, and the input channel
that adds most to it. Winograd's F(4×4, 3×3) with the textbook's points 0, ±1, ±2, ∞ (Lavin & Gray, arXiv 1509.09308),
for a kernel g and a 6×6 window d:

    y = Aᵀ [ Σ_inputs (G g Gᵀ) ⊙ (Bᵀ d B) ] A
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsegen.backends.interface import TILE, Host, Source, Tiles
from sparsegen.backends.reference import ReferenceBackend

from ...tiling.tiles import TileSet
from .observed import Convolution, plain_weights

INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    float,
)
"""Bᵀ, `[6, 6]`."""
KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
"""G, `[6, 3]`."""
OUTPUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    float,
)
"""Aᵀ, `[4, 6]`."""


@dataclass(frozen=True, eq=False)
class TileNumbers:
    """One tile of a convolution, of one input and one output channel."""

    row: int
    column: int
    """Of the tile."""
    top: int
    left: int
    """The window's first row and column in the input as it is read."""
    stride: int
    input_channel: int
    output_channel: int
    window: Host
    """The input, after its pending work; 0 outside the image: `[S, S]`."""
    kernel: Host
    """`[kh, kw]`."""
    sums: Host
    """The sum over all input channels, without bias: `[TILE, TILE]`."""
    output: Host
    """The layer's values: bias, what is added, and the activation included: `[TILE, TILE]`."""
    transformed_window: Host | None = None
    """Bᵀ d B, `[6, 6]`; None: the layer is not computed by transforms."""
    transformed_kernel: Host | None = None
    """G g Gᵀ, `[6, 6]`."""
    products: Host | None = None
    """Σ_inputs (G g Gᵀ) ⊙ (Bᵀ d B), `[6, 6]`."""


def numbers(convolution: Convolution, canvas: Host, tiles: Host) -> list[TileNumbers]:
    """The numbers of some `tiles` `[K, 3]` that a convolution has written into a canvas `[N, H, W, C]`."""
    g = convolution.weights.geometry
    weights = plain_weights(convolution.weights).astype(np.float64)
    x = _read_whole(convolution.source)
    (kh, kw), (top, _, left, _), each = g.kernel, g.padding, g.inputs // g.groups
    size = ((TILE - 1) * g.stride + kh, (TILE - 1) * g.stride + kw)
    found = []
    for n, row, column in tiles.tolist():
        y, z = row * TILE * g.stride - top, column * TILE * g.stride - left
        window = _window(x[n], y, z, size)
        output = _window(canvas[n], row * TILE, column * TILE, (TILE, TILE))
        o = int(np.abs(output).sum((0, 1)).argmax())
        group = o // (g.outputs // g.groups)
        inputs = window[..., group * each : (group + 1) * each].astype(np.float64)
        kernels = weights[o]
        sums = np.zeros((TILE, TILE, each))
        for dy in range(kh):
            for dx in range(kw):
                span_y = slice(dy, dy + (TILE - 1) * g.stride + 1, g.stride)
                span_x = slice(dx, dx + (TILE - 1) * g.stride + 1, g.stride)
                sums += inputs[span_y, span_x] * kernels[:, dy, dx]
        i = int(np.abs(sums).sum((0, 1)).argmax())
        transforms: dict[str, Host] = {}
        if convolution.transformed:
            v = np.einsum("ai,ijc,bj->abc", INPUT, inputs, INPUT)
            u = np.einsum("ai,cij,bj->abc", KERNEL, kernels, KERNEL)
            transforms = {
                "transformed_window": v[..., i],
                "transformed_kernel": u[..., i],
                "products": (u * v).sum(-1),
            }
        found.append(
            TileNumbers(
                row,
                column,
                y,
                z,
                g.stride,
                group * each + i,
                o,
                window[..., group * each + i],
                kernels[i],
                sums.sum(-1),
                output[..., o],
                **transforms,
            )
        )
    return found


def _read_whole(source: Source) -> Host:
    """All values of a source after its pending work, `[N, H, W, C]`."""
    x = np.empty(source.shape, np.float32)
    tiles: Tiles = TileSet.full(*source.shape[:3]).tiles
    ReferenceBackend().pointwise(x, tiles, source)
    return x


def _window(x: Host, top: int, left: int, size: tuple[int, int]) -> Host:
    """`[*size, C]` of `x` `[H, W, C]` from a row and a column on, which may lie outside: 0 there."""
    window = np.zeros((*size, x.shape[2]), x.dtype)
    y, z = max(0, -top), max(0, -left)
    inside = x[max(0, top) : top + size[0], max(0, left) : left + size[1]]
    window[y : y + inside.shape[0], z : z + inside.shape[1]] = inside
    return window
