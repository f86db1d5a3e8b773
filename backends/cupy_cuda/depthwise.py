"""Depthwise convolutions: each channel with one kernel of its own, for the active tiles."""

from __future__ import annotations

from ..interface import TILE, Array, ConvGeometry, ConvWeights, Source, Tiles
from .launching import Launching

CHANNELS = 64
"""Channels of a block of `kernels/depthwise.cu`."""
MOST_PIXELS = 48 * 1024 // (4 * CHANNELS)
"""Of a tile's window: a block has 48 KB of shared memory for it."""


def is_depthwise(geometry: ConvGeometry) -> bool:
    """Whether `_convolve_depthwise` computes it; others, such as kernels of 11×11, are convolved directly."""
    height, width = ((TILE - 1) * geometry.stride + side for side in geometry.kernel)
    each_its_own = 1 < geometry.groups == geometry.inputs == geometry.outputs
    return each_its_own and height * width <= MOST_PIXELS


class DepthwiseConvolutions(Launching):
    """Convolutions with as many groups as inputs and outputs."""

    def _convolve_depthwise(
        self, out: Array, tiles: Tiles, source: Source, weights: ConvWeights, epilogue: bytes
    ) -> None:
        """`weights.packed` is from `depthwise_weights`."""
        g = weights.geometry
        height, width = ((TILE - 1) * g.stride + side for side in g.kernel)
        self._launch(
            "depthwise",
            (self._most(tiles), -(-g.groups // CHANNELS)),
            shared=4 * height * width * CHANNELS,
            source=self._source(source),
            weight=weights.packed,
            sums=None,
            out=out,
            tiles=self._list(tiles),
            epilogue=epilogue,
            height=out.shape[1],
            width=out.shape[2],
            inputs=1,
            outputs=1,
            padded_inputs=1,
            padded_outputs=1,
            kernel_height=g.kernel[0],
            kernel_width=g.kernel[1],
            stride=g.stride,
            top=g.padding[0],
            left=g.padding[2],
            groups=g.groups,
            in_rows=0,
            tile_room=0,
            sum_outputs=0,
        )
