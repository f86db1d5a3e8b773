"""Convolutions: a feature comes in, a feature comes out, with everything around the product fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np

from sparsegen.backends.interface import (
    TILE,
    Activation,
    Array,
    Backend,
    ConvGeometry,
    ConvWeights,
    Host,
    Padding,
    Source,
    Tiles,
)

from ..engine.coded import Coded, encode, tabulate
from ..engine.feature import Feature
from ..engine.run import Run
from ..errors import ShapeError
from ..tiling.tiles import TileSet
from ..tiling.windows import Read, Window
from .base import Layer, Parameter


class Conv2d(Layer):
    """A convolution with everything around it fused: pending work before, bias, residual, activation after.

    Parameters: `weight` `[O, I / groups, k, k]`, `bias` `[O]`. Border: zeros, after the pending work. A layer that is
    not `kept` is a scratch layer (`engine.scratch`).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: Padding | None = None,
        groups: int = 1,
        bias: bool = True,
        kept: bool = True,
    ) -> None:
        self.kept = kept
        half = kernel // 2
        self.geometry = ConvGeometry(
            inputs, outputs, (kernel, kernel), stride, padding or (half, half, half, half), groups
        )
        self.weight = Parameter(outputs, inputs // groups, kernel, kernel)
        self.bias = Parameter(outputs) if bias else None

    @overload
    def __call__(
        self,
        x: Feature,
        *,
        shift: Array | None = None,
        residual: Feature | None = None,
        activation: Activation = "identity",
        also: Sequence[Read] = (),
    ) -> Feature: ...

    @overload
    def __call__(self, x: Feature | Coded, *, also: Sequence[Read] = ()) -> Feature | Coded: ...

    def __call__(
        self,
        x: Feature | Coded,
        *,
        shift: Array | None = None,
        residual: Feature | None = None,
        activation: Activation = "identity",
        also: Sequence[Read] = (),
    ) -> Feature | Coded:
        """`activation(conv(x) + bias + shift + residual)`; `shift` is `[1 or N, O]`.

        `also`: reads that make tiles active beside the layer's own, as of the layers that SIGE computes in one block.
        (A coded feature's rows are computed for the tiles of its codes.)

        A coded feature gives a coded feature: one row of values for each window, computed once. It takes no shift,
        residual or activation, the size stays the same, and the convolution is 1×1, depthwise or of one group.
        """
        if isinstance(x, Coded):
            return self._by_window(x)
        run, shape, reads = x.run, self._shape(x), [*self.reads(x), *also]
        if residual is not None and residual.shape != shape:
            raise ShapeError(f"{self.path}: the residual is {residual.shape}, the output {shape}")
        if residual is not None:
            reads += residual.reads(Window())
        weights = self._weights(x)

        def kernel(canvas: Array, tiles: Tiles) -> bool:
            added = None if residual is None else residual.source
            if run.wants_moments(self.path):
                finite, run.measured[self.path] = run.backend.conv2d_measured(
                    canvas, tiles, x.source, weights, shift=shift, residual=added, activation=activation
                )
                return finite
            return run.backend.conv2d(
                canvas, tiles, x.source, weights, shift=shift, residual=added, activation=activation
            )

        canvas = run.compute(
            self.path,
            shape,
            reads,
            kernel,
            macs_per_pixel=self.macs_per_pixel,
            whole_tiles=weights.whole_tiles,
            kept=self.kept,
        )
        return Feature(run, (canvas,))

    def of_array(self, run: Run, x: Array) -> Array:
        """The convolution of an array of the backend `[N, H, W, I]` that no edit changes; it is not kept."""
        n, height, width, _ = x.shape
        size = self.geometry.output_size(height, width)
        weights = _laid_out(run, self.path, self.geometry, self._prepare, size)
        out = run.backend.alloc((n, *size, self.geometry.outputs))
        run.backend.conv2d(out, TileSet.full(n, *size).tiles, Source((x,)), weights)
        return out

    def _shape(self, x: Feature) -> tuple[int, int, int, int]:
        g, (n, h, w, c) = self.geometry, x.shape
        if c != g.inputs:
            raise ShapeError(f"{self.path}: expected {g.inputs} input channels, got {c}")
        return n, *g.output_size(h, w), g.outputs

    def reads(self, x: Feature | Coded) -> list[Read]:
        """What the layer reads of `x`, through its window."""
        g = self.geometry
        return x.reads(Window(g.kernel[0], g.stride, g.padding[0], g.padding[2]))

    def _weights(self, x: Feature) -> ConvWeights:
        size = self.geometry.output_size(*x.shape[1:3])
        return _laid_out(x.run, self.path, self.geometry, self._prepare, size)

    def _by_window(self, x: Coded) -> Coded:
        g, run = self.geometry, x.run
        _, h, w, c = x.shape
        k = g.kernel[0]
        grouped = g.groups not in (1, g.inputs) or g.groups not in (1, g.outputs)
        if (
            g.stride != 1
            or g.kernel != (k, k)
            or g.padding != (k // 2,) * 4
            or c != g.inputs
            or (k > 1 and (grouped or x.affine is not None))
        ):
            raise ShapeError(
                f"{self.path}: {g} cannot read a coded feature of {c} channels; expected {c} inputs, stride 1, a "
                "padding that keeps the size, and, but for 1×1, one group or one for each channel and no norm pending"
            )
        weights = _laid_out(run, self.path, self.geometry, self._prepare, (1, 1))
        if k == 1:
            return self._by_row(x, weights)

        def fill(rows: Array, windows: Host) -> bool:
            return run.backend.convolve_windows(rows, windows, x.rows, weights)

        codes = encode(x.codes, kernel=k, size=(h, w))
        return tabulate(self.path, codes, g.outputs, fill, macs_per_pixel=self.macs_per_pixel)

    def _by_row(self, x: Coded, weights: ConvWeights) -> Coded:
        """A 1×1 convolution of a table's rows; the codes stay."""
        run, outputs = x.run, self.geometry.outputs

        def fill(rows: Array, windows: Host) -> bool:
            read = x.rows[len(x.rows) - len(rows) :]
            scale, shift = (None, None) if x.affine is None else (x.affine.scale, x.affine.shift)
            # rows as pixels of whole tiles, and those left over: a tile's bits do not depend on the others
            whole, finite = len(rows) // TILE**2 * TILE**2, True
            for some, width in ((slice(0, whole), TILE), (slice(whole, None), 1)):
                out = rows[some].reshape(1, -1, width, outputs)
                if len(out[0]):
                    source = Source((read[some].reshape(1, -1, width, x.channels),), scale=scale, shift=shift)
                    known = run.backend.conv2d(out, TileSet.full(*out.shape[:3]).tiles, source, weights)
                    finite = finite and known
            return finite

        return tabulate(self.path, x.codes, outputs, fill, macs_per_pixel=self.macs_per_pixel)

    def _prepare(self, backend: Backend, size: tuple[int, int]) -> ConvWeights:
        g = self.geometry
        bias = None if self.bias is None else self.bias.float32
        return backend.prepare_conv(
            self.weight.float32, bias, stride=g.stride, padding=g.padding, groups=g.groups, size=size
        )

    @property
    def macs_per_pixel(self) -> int:
        g = self.geometry
        return g.outputs * (g.inputs // g.groups) * g.kernel[0] * g.kernel[1]


def _laid_out(
    run: Run,
    path: str,
    geometry: ConvGeometry,
    prepare: Callable[[Backend, tuple[int, int]], ConvWeights],
    size: tuple[int, int],
) -> ConvWeights:
    """A convolution's weights for outputs of `size`, shared with every size that the backend lays out alike."""
    layout = run.backend.conv_layout(geometry, size)
    return run.prepared(path, lambda backend, _: prepare(backend, size), layout)


class AvgPool(Layer):
    """The mean of every 2×2 pixels, after the pending work: half the rows and columns (an odd last one is left out)."""

    def __call__(self, x: Feature) -> Feature:
        run = x.run
        n, h, w, c = x.shape
        size = (h // 2, w // 2)

        def prepare(backend: Backend, size: tuple[int, int]) -> ConvWeights:
            quarter = np.full((c, 1, 2, 2), 0.25, np.float32)
            return backend.prepare_conv(quarter, None, stride=2, groups=c, size=size)

        weights = _laid_out(run, self.path, ConvGeometry(c, c, (2, 2), 2, groups=c), prepare, size)

        def pool(canvas: Array, tiles: Tiles) -> bool:
            return run.backend.conv2d(canvas, tiles, x.source, weights)

        canvas = run.compute(self.path, (n, *size, c), x.reads(Window(2, 2)), pool, macs_per_pixel=0)
        return Feature(run, (canvas,))
