"""Layers: parameters and how they are used. A feature comes in, a feature comes out; nothing else is remembered.

A layer holds its parameters and its path (`up_3.conv_0`); canvases, statistics and prepared weights are asked
of the `Run` under that path. No layer knows whether a run is dense or an edit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from sparsegen.backends.interface import (
    Activation,
    Array,
    Backend,
    ConvGeometry,
    ConvWeights,
    Host,
    Padding,
    Source,
)

from .errors import ShapeError
from .policies import Read
from .run import Coded, Feature, Part, Run
from .tiles import TileSet, Window, strip


class Parameter:
    """One array of a layer: its shape when the model is built, its values when they are loaded."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        # zeros without storage: a model can be profiled before it has weights
        self.read: Callable[[], Host] = lambda: np.broadcast_to(np.float32(0), shape)
        """Gives the values: those that are kept here, or out of a file, each time anew."""

    @property
    def value(self) -> Host:
        """The values as they were loaded."""
        return self.read()

    @property
    def float32(self) -> Host:
        """The values as float32 (exactly, from float16 and bfloat16)."""
        return np.asarray(self.value, np.float32)


class Layer:
    """A node of the model's tree: sublayers and parameters are the attributes that hold one."""

    path: str = ""

    def children(self) -> Iterator[tuple[str, Layer]]:
        """(name, sublayer), in order of definition; the layers of a list `block` are called `block.0`, `block.1`, …"""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list):
                for i, layer in enumerate(value):
                    if isinstance(layer, Layer):
                        yield f"{name}.{i}", layer

    def layers(self) -> Iterator[Layer]:
        """This layer and all below it."""
        yield self
        for _, child in self.children():
            yield from child.layers()

    def name_paths(self, path: str = "") -> None:
        """Give every layer below its path. Called once, by the model."""
        self.path = path
        for name, child in self.children():
            child.name_paths(f"{path}.{name}" if path else name)

    def parameters(self) -> dict[str, Parameter]:
        """Path -> parameter, of this layer and all below it."""
        found: dict[str, Parameter] = {}
        for layer in self.layers():
            for name, value in vars(layer).items():
                if isinstance(value, Parameter):
                    found[f"{layer.path}.{name}" if layer.path else name] = value
        return found

    @property
    def macs_per_pixel(self) -> int:
        """Multiply-accumulates of one output pixel, by the layer's plain formula; 0 for what has no product."""
        return 0

    def macs(self, tiles: TileSet) -> int:
        """Multiply-accumulates of recomputing `tiles` of the output; no run is needed to know."""
        return self.macs_per_pixel * tiles.area


class Conv2d(Layer):
    """A convolution with everything around it fused: pending work before, bias, residual, activation after.

    Parameters: `weight` `[O, I / groups, k, k]`, `bias` `[O]`. Border: zeros, after the pending work.
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
    ) -> None:
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
        residual: Feature | Added | None = None,
        activation: Activation = "identity",
    ) -> Feature: ...

    @overload
    def __call__(self, x: Feature | Coded) -> Feature | Coded: ...

    def __call__(
        self,
        x: Feature | Coded,
        *,
        shift: Array | None = None,
        residual: Feature | Added | None = None,
        activation: Activation = "identity",
    ) -> Feature | Coded:
        """`activation(conv(x) + bias + shift + residual)`; `shift` is `[1 or N, O]`.

        A coded feature gives a coded feature: the values by window, each computed once (then nothing else is added,
        and the size stays as it is).
        """
        if isinstance(x, Coded):
            return self._by_window(x)
        run, shape, reads = x.run, self._shape(x), self._reads(x)
        if residual is not None and residual.shape != shape:
            raise ShapeError(f"{self.path}: the residual is {residual.shape}, the output {shape}")
        if residual is not None:
            reads += residual.reads(Window())
        weights = self._weights(x)
        within, whole_tiles = None, weights.whole_tiles
        if isinstance(residual, Added):
            within = Part(residual.conv.path, residual.conv.macs_per_pixel)
            whole_tiles |= residual.conv._weights(residual.x).whole_tiles

        def kernel(canvas: Array, tiles: Host) -> None:
            if isinstance(residual, Added):
                assert within is not None
                source: Source | None = residual.computed(tiles, within)
            else:
                source = None if residual is None else residual.source
            run.backend.conv2d(
                canvas, tiles, x.source, weights, shift=shift, residual=source, activation=activation
            )

        return run.compute(
            self.path,
            shape,
            reads,
            kernel,
            macs_per_pixel=self.macs_per_pixel,
            whole_tiles=whole_tiles,
            within=within,
        )

    def added(self, x: Feature) -> Added:
        """The convolution of x as another's `residual`: computed for the tiles that the other computes, not kept."""
        return Added(self, x, self._shape(x))

    def _shape(self, x: Feature) -> tuple[int, int, int, int]:
        g, (n, h, w, c) = self.geometry, x.shape
        if c != g.inputs:
            raise ShapeError(f"{self.path}: expected {g.inputs} input channels, got {c}")
        return n, *g.output_size(h, w), g.outputs

    def _reads(self, x: Feature) -> list[Read]:
        g = self.geometry
        return x.reads(Window(g.kernel[0], g.stride, g.padding[0], g.padding[2]))

    def _weights(self, x: Feature) -> ConvWeights:
        size = self.geometry.output_size(*x.shape[1:3])
        return _laid_out(x.run, self.path, self.geometry, self._prepare, size)

    def _by_window(self, x: Coded) -> Coded:
        g, run = self.geometry, x.run
        _, h, w, c = x.shape
        k = g.kernel[0]
        if (
            g.stride != 1
            or g.groups != 1
            or g.kernel != (k, k)
            or g.padding != (k // 2,) * 4
            or c != g.inputs
        ):
            raise ShapeError(f"{self.path}: {g} does not keep the windows of a coded feature of {c} channels")
        weights = _laid_out(run, self.path, self.geometry, self._prepare, (1, 1))

        def fill(rows: Array, windows: Host) -> None:
            run.backend.convolve_windows(rows, windows, x.rows, weights)

        codes = run.numbered(x.codes, kernel=k, size=(h, w))
        return run.tabulated(self.path, codes, g.outputs, fill, macs_per_pixel=self.macs_per_pixel)

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


@dataclass(frozen=True)
class Added:
    """A convolution that exists only where another adds it: no canvas, nothing to keep when it changes."""

    conv: Conv2d
    x: Feature
    shape: tuple[int, int, int, int]
    """`(N, H, W, C)`."""

    def reads(self, window: Window) -> list[Read]:
        """What its pixels depend on; `window` is that of a residual, the pixel itself."""
        return self.conv._reads(self.x)

    def computed(self, tiles: Host, part: Part) -> Source:
        """The values of `tiles`, in an array that the next such layer will write over."""
        run, start = self.x.run, time.perf_counter()
        canvas = run.memory.scratch(self.shape)
        run.backend.conv2d(canvas, tiles, self.x.source, self.conv._weights(self.x))
        run.check_finite(part.path, canvas, tiles)
        run.backend.synchronize()
        part.milliseconds = (time.perf_counter() - start) * 1e3
        return Source((canvas,))


def _laid_out(
    run: Run,
    path: str,
    geometry: ConvGeometry,
    prepare: Callable[[Backend, tuple[int, int]], ConvWeights],
    size: tuple[int, int],
) -> ConvWeights:
    """A convolution's weights for outputs of `size`: those of another size where the backend lays both out alike."""
    layout = run.backend.conv_layout(geometry, size)
    return run.prepared(path, lambda backend, _: prepare(backend, size), layout)


class LabelConv(Layer):
    """A k×k convolution of a one-hot label map, computed as the table look-ups that it is.

    Reads an index feature (int32 `[N, H, W, P]`: the channels that are 1), nearest-downsampled to the size asked
    for. Parameters as the convolution's: `weight` `[O, V, k, k]`, `bias` `[O]`.
    """

    def __init__(self, labels: int, outputs: int, kernel: int = 3) -> None:
        self.weight = Parameter(outputs, labels, kernel, kernel)
        self.bias = Parameter(outputs)

    @overload
    def __call__(
        self, labels: Feature, *, size: tuple[int, int], activation: Activation = "identity"
    ) -> Feature: ...

    @overload
    def __call__(
        self, labels: Feature, *, size: tuple[int, int], activation: Activation = "identity", by_window: bool
    ) -> Feature | Coded: ...

    def __call__(
        self,
        labels: Feature,
        *,
        size: tuple[int, int],
        activation: Activation = "identity",
        by_window: bool = False,
    ) -> Feature | Coded:
        """`activation(conv(one_hot(labels resized to size)) + bias)`, `[N, *size, O]`.

        `by_window`: as a coded feature, a value for each distinct window of labels, in runs that keep codebooks.
        """
        run = labels.run
        outputs, _, kernel, _ = self.weight.shape
        n, h, w, _ = labels.shape
        step = h // size[0]
        if (size[0] * step, size[1] * step) != (h, w):
            raise ShapeError(f"{self.path}: a label map of {h}×{w} does not divide into {size[0]}×{size[1]}")
        if by_window and run.memory.coded:
            return self._by_window(labels, size, step, activation)
        half = kernel // 2
        table, bias = run.prepared(self.path, self._prepare)

        def look_up(canvas: Array, tiles: Host) -> None:
            run.backend.lookup(canvas, tiles, labels.parts[0], table, bias, step=step, activation=activation)

        return run.compute(
            self.path,
            (n, *size, outputs),
            labels.reads(Window(kernel, top=half, left=half, step=step)),
            look_up,
            macs_per_pixel=self.macs_per_pixel,
        )

    def _by_window(self, labels: Feature, size: tuple[int, int], step: int, activation: Activation) -> Coded:
        run = labels.run
        outputs, classes, kernel, _ = self.weight.shape
        table, bias = run.prepared(self.path, self._prepare)

        def fill(rows: Array, windows: Host) -> None:
            # a strip of pixels, one for each window, whose planes are the window's taps: a 1×1 look-up
            taps = windows.reshape(len(windows), kernel * kernel, -1)
            first = np.arange(0, kernel * kernel * classes, classes, dtype=np.int32)
            places = np.where(taps >= 0, taps + first[:, None], np.int32(-1))
            indices = run.backend.upload(places.reshape(1, len(windows), 1, -1))
            pixels = rows.reshape(1, len(windows), 1, outputs)
            by_place = table.reshape(1, kernel * kernel * classes, outputs)
            run.backend.lookup(pixels, strip(len(rows)), indices, by_place, bias, activation=activation)

        codes = run.numbered(labels, kernel=kernel, step=step, size=size)
        return run.tabulated(self.path, codes, outputs, fill, macs_per_pixel=self.macs_per_pixel)

    def _prepare(self, backend: Backend) -> tuple[Array, Array]:
        outputs, labels, k, _ = self.weight.shape
        # OIHW -> [taps, V, O]: a label's contribution at a tap is one contiguous row
        table = self.weight.float32.transpose(2, 3, 1, 0).reshape(k * k, labels, outputs)
        return backend.upload(table), backend.upload(self.bias.float32)

    @property
    def macs_per_pixel(self) -> int:
        return math.prod(self.weight.shape)


class LatentStart(Layer):
    """A latent vector spread over the lowest resolution by one matrix: where a generator with z begins.

    Parameters: `weight` `[C * cells, z_dim]`, `bias` `[C * cells]`; a row of the product is one sample's `[C, h, w]`,
    as PyTorch views it.
    """

    def __init__(self, z_dim: int, channels: int, cells: int) -> None:
        self.channels = channels
        self.weight = Parameter(channels * cells, z_dim)
        self.bias = Parameter(channels * cells)

    def __call__(self, z: Host, x: Feature, *, size: tuple[int, int]) -> Feature:
        """z `[N, z_dim]` → `[N, *size, C]`, in the run of `x`; it reads nothing of x, so no edit touches it."""
        run, backend = x.run, x.run.backend

        def spread(canvas: Array, tiles: Host) -> None:
            weight, bias = backend.upload(self.weight.float32), backend.upload(self.bias.float32)
            rows = backend.download(backend.linear(backend.upload(z), weight, bias))
            start = rows.reshape(len(z), self.channels, *size).transpose(0, 2, 3, 1)
            start = backend.upload(np.ascontiguousarray(start))
            backend.write_tiles(canvas, tiles, backend.read_tiles(start, tiles))

        return run.compute(
            self.path, (len(z), *size, self.channels), [], spread, macs_per_pixel=self.macs_per_pixel
        )

    @property
    def macs_per_pixel(self) -> int:
        return self.channels * self.weight.shape[1]


class Linear(Layer):
    """`x @ weight.T + bias` of a few rows: what a network makes of a number that it is told.

    Parameters: `weight` `[O, I]`, `bias` `[O]`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = Parameter(outputs, inputs)
        self.bias = Parameter(outputs)

    def __call__(self, run: Run, x: Array) -> Array:
        """`[M, I]` → `[M, O]`, arrays of the backend."""
        weight, bias = run.prepared(self.path, self._prepare)
        return run.backend.linear(x, weight, bias)

    def _prepare(self, backend: Backend) -> tuple[Array, Array]:
        return backend.upload(self.weight.float32), backend.upload(self.bias.float32)


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

        def pool(canvas: Array, tiles: Host) -> None:
            run.backend.conv2d(canvas, tiles, x.source, weights)

        return run.compute(self.path, (n, *size, c), x.reads(Window(2, 2)), pool, macs_per_pixel=0)


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

        def attend(canvas: Array, tiles: Host) -> None:
            run.backend.attention(canvas, tiles, q.source, k.source, v.source, heads=self.heads)

        reads = [
            *q.reads(Window()),
            *(replace(r, everywhere=True) for of in (k, v) for r in of.reads(Window())),
        ]
        macs = 2 * k.shape[1] * k.shape[2] * c
        return run.compute(self.path, (n, h, w, c), reads, attend, macs_per_pixel=macs)


class BatchNorm(Layer):
    """Batch norm at inference, without affine parameters: `(x - mean) / sqrt(var + eps)`, statistics `[C]`."""

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        self.eps = eps
        self.mean = Parameter(channels)
        self.var = Parameter(channels)

    def __call__(self, x: Feature) -> Feature:
        return x.normalised(*x.run.prepared(self.path, self._prepare))

    def _prepare(self, backend: Backend) -> tuple[Array, Array]:
        return _affine(backend, self.mean.float32[None], self.var.float32[None], self.eps)


class InstanceNorm(Layer):
    """Instance norm without affine parameters; the statistics are measured in the dense run and reused in edits."""

    def __init__(self, *, eps: float = 1e-5) -> None:
        self.eps = eps

    def __call__(self, x: Feature) -> Feature:
        backend = x.run.backend

        def measure() -> tuple[Array, Array]:
            mean, var = (backend.download(moment) for moment in backend.channel_moments(x.source))
            return _affine(backend, mean, var, self.eps)

        return x.normalised(*x.run.measured(self.path, measure))


class GroupNorm(Layer):
    """Group norm: the statistics of groups of channels, measured in the dense run and reused in edits.

    Parameters: `weight` `[C]`, `bias` `[C]`. Source of the reuse: arXiv 2211.02048, section 3.
    """

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-6) -> None:
        if channels % groups:
            raise ShapeError(f"{channels} channels do not divide into {groups} groups")
        self.groups, self.eps = groups, eps
        self.weight = Parameter(channels)
        self.bias = Parameter(channels)

    def __call__(self, x: Feature, film: Array | None = None) -> Feature:
        """`(x - mean) / sqrt(var + eps) * weight + bias`, pending.

        `film` `[1 or N, 2C]` scales and shifts the result: `norm * (1 + film[:, :C]) + film[:, C:]`. It is part of
        what is measured: a run's edits have the same.
        """
        backend = x.run.backend

        def measure() -> tuple[Array, Array]:
            mean, var = (
                backend.download(moment).astype(np.float64) for moment in backend.channel_moments(x.source)
            )
            # [N, C] -> [N, G, C / G]: a group's variance is what its channels vary by and what their means do
            means, variances = (v.reshape(len(v), self.groups, -1) for v in (mean, var))
            mean, var = means.mean(2), variances.mean(2) + means.var(2)
            each = means.shape[2]
            scale = self.weight.float32 / np.sqrt(var + self.eps).repeat(each, 1)
            shift = self.bias.float32 - mean.repeat(each, 1) * scale
            if film is not None:
                gain, offset = np.split(backend.download(film).astype(np.float64), 2, axis=1)
                scale, shift = scale * (1 + gain), shift * (1 + gain) + offset
            return backend.upload(scale.astype(np.float32)), backend.upload(shift.astype(np.float32))

        return x.normalised(*x.run.measured(self.path, measure))


def _affine(backend: Backend, mean: Host, var: Host, eps: float) -> tuple[Array, Array]:
    """Statistics as the scale and shift that a prologue applies: x * scale + shift."""
    scale = 1 / np.sqrt(var.astype(np.float64) + eps)
    return backend.upload(scale.astype(np.float32)), backend.upload((-mean * scale).astype(np.float32))
