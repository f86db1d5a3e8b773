"""Convolutions by tensor cores: weights are rounded to TF32 or float16 and laid out, and launched for the active tiles.

Products are rounded to 11 bits, sums are float32. Bits depend on the precision and the layer alone: the depth is cut
into chains by the layer's geometry (`kernels/tensor.cuh`), and neither the shape of a block nor the number of blocks
that share a chain's work changes an output.
"""

from __future__ import annotations

from math import prod
from typing import Literal, TypeAlias, get_args

import numpy as np

from ..interface import TILE, Array, BackendError, ConvGeometry, ConvWeights, Host, Source, Tiles
from .chains import AddingChains
from .combined import Combining
from .device import Device
from .launching import PIXELS
from .transforms import padded

Precision: TypeAlias = Literal["float32", "tf32", "float16"]

CHANNELS = 8
"""Fewer input or output channels are convolved in float32: a fragment has eight columns."""
MOST_ACROSS = 32
"""A block of 128 threads writes at most so many fours of a pixel's channels, a thread then every fourth pixel."""
WINDOW_BYTES = 32 << 20
"""Windows of one batch of tiles: in the second-level cache, which H100's has 50 MB of."""
STEP_CHUNKS, CHUNK, STAGES = 8, 16, 3
"""As `kernels/tensor.cuh` defines them: chunks of a step of the depth, bytes of a chunk, steps in shared memory."""
CHAIN_STEPS = 9
"""The most steps of a chain: a deep layer of few rows (512 channels, 3×3) then has 16 chains in TF32, 8 in float16, and
as many times the blocks."""


def tf32(values: Host) -> Host:
    """float32 values rounded to TF32, 10 bits of mantissa: to the nearest, ties away from zero. Finite values alone."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def tensor_weights(weight: Host, precision: Precision) -> Host:
    """`weight` `[O, I, kh, kw]`, rounded, as `[O, steps, values of a step]`: taps × padded I, then zeros.

    Raises
    ------
    BackendError
        A weight is too large for float16.
    """
    outputs, inputs, kh, kw = weight.shape
    each = CHUNK // _bytes(precision)
    depth = kh * kw * padded(inputs, each)
    made = np.zeros((outputs, padded(depth, STEP_CHUNKS * each)), np.float32)
    # OIHW -> O, taps, I
    made[:, :depth].reshape(outputs, kh * kw, -1)[:, :, :inputs] = weight.reshape(
        outputs, inputs, -1
    ).swapaxes(1, 2)
    if precision == "float16":
        if (largest := float(np.abs(made).max(initial=0))) >= 65520:
            raise BackendError(
                f'a weight of {largest:g} is too large for float16 (65504): use precision="tf32"'
            )
        made = made.astype(np.float16)
    else:
        made = tf32(made)
    return made.reshape(outputs, -1, STEP_CHUNKS * each)


def _bytes(precision: Precision) -> int:
    return 2 if precision == "float16" else 4


class TensorConvolutions(Combining, AddingChains):
    """Convolutions of one group by tensor cores.

    Parameters
    ----------
    precision
        "float32": tensor cores are not used. "tf32", "float16": inputs and weights are rounded to 11 bits, and results
        are up to 3e-4 of the layer's largest value off. "float16" halves the weights; inputs over 65504 are infinite.

    Raises
    ------
    BackendError
        The precision is unknown.
    """

    def __init__(self, device: Device, *, precision: Precision = "float32") -> None:
        super().__init__(device)
        if precision not in get_args(Precision):
            raise BackendError(f"unknown precision {precision!r}; known: {', '.join(get_args(Precision))}")
        self.precision: Precision = precision

    def _by_tensor_cores(self, geometry: ConvGeometry) -> bool:
        wide = min(geometry.inputs, geometry.outputs) >= CHANNELS
        return self.precision != "float32" and geometry.groups == 1 and wide

    def _convolve_tensor(
        self, out: Array, tiles: Tiles, source: Source, weights: ConvWeights, epilogue: bytes
    ) -> None:
        g, most, on_device = weights.geometry, self._most(tiles), self._list(tiles)
        _, height, width, _ = out.shape
        precision: Precision = "float16" if weights.packed.dtype == np.float16 else "tf32"
        each = CHUNK // _bytes(precision)
        chunks = padded(g.inputs, each) // each
        row_step, column_step = (min(g.stride, k) for k in g.kernel)
        window = ((TILE - 1) * row_step + g.kernel[0], (TILE - 1) * column_step + g.kernel[1])
        of_tile = prod(window) * chunks
        room = min(padded(most, 8), max(128, WINDOW_BYTES // (of_tile * CHUNK) // 128 * 128))
        windows = self._scratch("tensor windows", (room, of_tile * CHUNK // 4))
        fours = chunks * each // 4
        across = -(-fours // -(-fours // MOST_ACROSS))  # blocks write nearly as many as each other

        steps = weights.packed.shape[1]
        chain_steps = -(
            -steps // -(-steps // CHAIN_STEPS)
        )  # the chains of a layer are nearly as long as each other
        chains = -(-steps // chain_steps)
        block = _block(min(most, room) * PIXELS, g.outputs, self.device.multiprocessors)
        padded_outputs = padded(g.outputs)
        for first in range(0, most, room):
            count = min(room, most - first)
            batch = {"tiles": on_device, "first_tile": first, "tile_room": room}
            if source.combines_channels:
                self._combine_rows(source, tiles, windows, precision, chunks * each, first, room)
            else:
                self._launch(
                    f"tensor_windows_{precision}",
                    (count, -(-fours // across)),
                    source=self._source(source),
                    windows=windows,
                    window_height=window[0],
                    window_width=window[1],
                    chunks=chunks,
                    across=across,
                    kernel_height=g.kernel[0],
                    kernel_width=g.kernel[1],
                    stride=g.stride,
                    top=g.padding[0],
                    left=g.padding[2],
                    **batch,
                )
            blocks = (-(-count * PIXELS // block[0]), -(-g.outputs // block[1]))
            apart = chains > 1 and 2 * prod(blocks) <= self.device.multiprocessors
            sums = self._scratch("chains", (chains, room * PIXELS, padded_outputs)) if apart else None
            self._launch(
                f"tensor_{precision}_{block[0]}x{block[1]}",
                (*blocks, chains if apart else 1),
                shared=STAGES * sum(block) * STEP_CHUNKS * CHUNK,
                windows=windows,
                weight=weights.packed,
                sums=sums,
                out=out,
                epilogue=epilogue,
                window_height=window[0],
                window_width=window[1],
                chunks=chunks,
                taps=prod(g.kernel),
                kernel_width=g.kernel[1],
                row_step=row_step,
                column_step=column_step,
                steps=steps,
                chain_steps=chain_steps,
                height=height,
                width=width,
                outputs=g.outputs,
                padded_outputs=padded_outputs,
                **batch,
            )
            if sums is not None:
                self._add_chains(
                    out, sums, epilogue, count, chains=chains, padded_outputs=padded_outputs, **batch
                )


def _block(rows: int, outputs: int, multiprocessors: int) -> tuple[int, int]:
    """Rows and columns of a block: any choice gives the same bits; larger blocks read less, smaller ones are more."""
    if rows <= 32:
        return (16, 64) if rows <= 16 else (32, 64)
    large = outputs > 64 and rows // 128 * -(-outputs // 128) >= multiprocessors
    return (128, 128) if large else (64, 64)
