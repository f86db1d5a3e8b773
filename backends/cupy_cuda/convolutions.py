"""Convolutions: the algorithm is chosen when weights are laid out, and launched for the active tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..interface import (
    Activation,
    Array,
    ConvGeometry,
    ConvWeights,
    Host,
    Padding,
    Source,
    Tiles,
    check_own_pixels,
)
from .depthwise import DepthwiseConvolutions, is_depthwise
from .launching import ACTIVATIONS, PIXELS
from .tensor import TensorConvolutions, tensor_weights
from .transforms import depthwise_weights, direct_weights, padded, winograd_weights

WINOGRAD_BYTES = 32 << 20
"""Transformed windows and products of one batch of tiles: in the second-level cache, which H100's has 50 MB of."""
WINOGRAD_CHANNELS = 8
"""Fewer input channels are convolved directly."""
OUTPUT_THREADS = 64
"""Of a block of `winograd_output`: a channel of a tile each."""


@dataclass(frozen=True)
class LaidOut(ConvWeights):
    """Weights as one algorithm takes them."""

    algorithm: str = "direct"


class Convolutions(DepthwiseConvolutions, TensorConvolutions):
    """`conv2d`, by tensor cores, by Winograd's transforms, channel by channel, or directly."""

    def prepare_conv(
        self,
        weight: Host,
        bias: Host | None,
        *,
        stride: int = 1,
        padding: Padding = (0, 0, 0, 0),
        groups: int = 1,
        size: tuple[int, int] | None = None,
    ) -> ConvWeights:
        geometry = ConvGeometry.of(weight, stride, padding, groups)
        if size == (1, 1) and is_depthwise(geometry):  # `convolve_windows` takes one group
            weight = np.eye(groups, dtype=np.float32)[:, :, None, None] * weight
            return self.prepare_conv(weight, bias, stride=stride, padding=padding, size=size)
        algorithm = self.conv_layout(geometry, size)
        if algorithm == "winograd":
            packed = winograd_weights(weight)
        elif algorithm == "depthwise":
            packed = depthwise_weights(weight)
        elif algorithm in ("tf32", "float16"):
            packed = tensor_weights(weight, self.precision)
        else:
            packed = direct_weights(weight, groups)
        on_device = None if bias is None else self.upload(bias)
        whole_tiles = algorithm == "winograd"
        return LaidOut(geometry, self.device.upload(packed), on_device, whole_tiles, algorithm)

    def conv_layout(self, geometry: ConvGeometry, size: tuple[int, int] | None) -> str:
        plain = geometry.kernel == (3, 3) and geometry.stride == geometry.groups == 1
        if size == (1, 1):  # for `convolve_windows`
            return "direct"
        if self._by_tensor_cores(geometry):
            return self.precision
        if plain and geometry.inputs >= WINOGRAD_CHANNELS:
            return "winograd"
        return "depthwise" if is_depthwise(geometry) else "direct"

    def conv2d(
        self,
        out: Array,
        tiles: Tiles,
        source: Source,
        weights: ConvWeights,
        *,
        shift: Array | None = None,
        residual: Source | None = None,
        activation: Activation = "identity",
    ) -> bool:
        if not len(tiles):
            return False
        check_own_pixels(weights.geometry, source)
        bias, apart = weights.bias, weights.geometry.outputs
        for each in (out, bias, shift):
            apart |= 0 if each is None else self.device.address(each) >> 2
        epilogue = self._pack(
            "Epilogue",
            residual=self._source(residual),
            bias=bias,
            shift=shift,
            shift_stride=weights.geometry.outputs if shift is not None and len(shift) > 1 else 0,
            activation=ACTIVATIONS.index(activation),
            fours=int(apart % 4 == 0),
        )
        assert isinstance(weights, LaidOut)
        convolve = {
            "winograd": self._convolve_winograd,
            "depthwise": self._convolve_depthwise,
            "tf32": self._convolve_tensor,
            "float16": self._convolve_tensor,
            "direct": self._convolve_directly,
        }[weights.algorithm]
        convolve(out, tiles, source, weights, epilogue)
        return False

    def _convolve_winograd(
        self, out: Array, tiles: Tiles, source: Source, weights: ConvWeights, epilogue: bytes
    ) -> None:
        g, most, on_device = weights.geometry, self._most(tiles), self._list(tiles)
        inputs, outputs = weights.packed.shape[1:]
        stride = min(padded(most, 16), max(128, WINOGRAD_BYTES // (36 * 4 * (inputs + outputs)) // 128 * 128))
        transformed = self._scratch("windows", (36, stride, inputs))
        products = self._scratch("products", (36, stride, outputs))
        tiles_of_block = OUTPUT_THREADS // min(outputs, OUTPUT_THREADS)
        packed_source = self._source(source)
        _, height, width, _ = out.shape
        for first in range(0, most, stride):
            rows = min(stride, most - first)
            block = product_block(rows, outputs, 36, self.device.multiprocessors, BLOCKS)
            batch = {"tiles": on_device, "first_tile": first, "stride": stride}
            self._launch(
                "winograd_input",
                (rows, -(-inputs // 64)),
                source=packed_source,
                transformed=transformed,
                padded=inputs,
                top=g.padding[0],
                left=g.padding[2],
                **batch,
            )
            self._launch(
                f"winograd_product_{block[0]}x{block[1]}",
                (-(-rows // block[0]), -(-outputs // block[1]), 36),
                left=transformed,
                right=weights.packed,
                out=products,
                depth=inputs,
                outputs=outputs,
                **batch,
            )
            self._launch(
                "winograd_output",
                (-(-rows // tiles_of_block), -(-g.outputs // OUTPUT_THREADS)),
                products=products,
                out=out,
                epilogue=epilogue,
                padded=outputs,
                height=height,
                width=width,
                outputs=g.outputs,
                **batch,
            )

    def _convolve_directly(
        self, out: Array, tiles: Tiles, source: Source, weights: ConvWeights, epilogue: bytes
    ) -> None:
        g, most, on_device = weights.geometry, self._most(tiles), self._list(tiles)
        _, taps, inputs, outputs = weights.packed.shape
        _, height, width, _ = out.shape
        rows, chains, sum_outputs = most * PIXELS, -(-taps * inputs // CHAIN), padded(g.outputs)
        block, apart = direct_block(rows, outputs, g.groups, chains, self.device.multiprocessors)
        sums = self._scratch("chains", (chains, rows, sum_outputs)) if apart else None
        in_rows = source.combines_channels
        packed_source = self._rows_source(source, tiles) if in_rows else self._source(source)
        self._launch(
            f"direct_{block[0]}x{block[1]}",
            (-(-rows // block[0]), -(-outputs // block[1]), g.groups * (chains if apart else 1)),
            source=packed_source,
            weight=weights.packed,
            sums=sums,
            out=out,
            tiles=on_device,
            epilogue=epilogue,
            height=height,
            width=width,
            inputs=inputs if in_rows else g.inputs // g.groups,
            outputs=g.outputs // g.groups,
            padded_inputs=inputs,
            padded_outputs=outputs,
            kernel_height=g.kernel[0],
            kernel_width=g.kernel[1],
            stride=g.stride,
            top=g.padding[0],
            left=g.padding[2],
            groups=g.groups,
            in_rows=int(in_rows),
            tile_room=most,
            sum_outputs=sum_outputs,
        )
        if sums is not None:
            batch = {"tiles": on_device, "first_tile": 0, "tile_room": most}
            self._add_chains(out, sums, epilogue, most, chains=chains, padded_outputs=sum_outputs, **batch)


CHAIN = 128
"""As `kernels/direct.cu` defines it: values of a chain of the depth."""
BLOCKS = {
    (128, 128): 1.08,
    (128, 64): 1.0,
    (64, 64): 1.02,
    (32, 64): 0.98,
    (16, 64): 0.7,
    (8, 64): 0.64,
    (64, 16): 0.35,
}
"""Rows and columns of a block of Winograd's products -> its speed on a full multiprocessor, relative to the second.
Measured on an H200; the last is estimated."""
DIRECT_BLOCKS = {(128, 64): 1.0, (64, 64): 0.88, (32, 64): 0.96, (16, 64): 0.8, (64, 16): 0.37}
"""The same of direct convolutions."""


def product_block(
    rows: int, outputs: int, products: int, multiprocessors: int, blocks: Mapping[tuple[int, int], float]
) -> tuple[int, int]:
    """Rows and columns of a block of a product, one of `blocks`.

    Any choice gives the same bits: larger blocks read less, smaller ones fill the card.
    """
    return min(blocks, key=lambda block: _time(block, rows, outputs, products, multiprocessors, blocks))


def direct_block(
    rows: int, outputs: int, groups: int, chains: int, multiprocessors: int
) -> tuple[tuple[int, int], bool]:
    """Rows and columns of a block of a direct convolution, and whether each chain of the depth is a block of its own.

    Any choice gives the same bits. Chains are added by a second launch, which must be worth it: half of the time.
    """
    blocks, times = [], []
    for products in (groups, groups * chains):
        work = (rows, outputs, products, multiprocessors, DIRECT_BLOCKS)
        blocks.append(product_block(*work))
        times.append(_time(blocks[-1], *work))
    apart = 2 * times[1] / chains <= times[0]
    return blocks[apart], apart


def _time(
    block: tuple[int, int],
    rows: int,
    outputs: int,
    products: int,
    multiprocessors: int,
    blocks: Mapping[tuple[int, int], float],
) -> float:
    """Of products of one depth, in blocks of that shape, relative to others."""
    count = -(-rows // block[0]) * -(-outputs // block[1]) * products
    at_once = -(-count // multiprocessors)  # a block alone on a multiprocessor is as slow as two
    return max(2, at_once) * block[0] * block[1] / blocks[block]
