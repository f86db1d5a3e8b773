"""Dense layers on a few rows: embeddings, and the latent vector that a generator starts from."""

from __future__ import annotations

import numpy as np

from sparsegen.backends.interface import (
    Activation,
    Array,
    Backend,
    Host,
    Tiles,
)

from ..engine.feature import Feature
from ..engine.run import Run
from .base import Layer, Parameter


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
        """z `[N, z_dim]` → `[N, *size, C]`, in the run of `x`; it reads no canvas, so no edit changes it."""
        run, backend = x.run, x.run.backend

        def spread(canvas: Array, tiles: Tiles) -> None:
            weight, bias = backend.upload(self.weight.float32), backend.upload(self.bias.float32)
            rows = backend.download(backend.linear(backend.upload(z), weight, bias))
            start = rows.reshape(len(z), self.channels, *size).transpose(0, 2, 3, 1)
            start = backend.upload(np.ascontiguousarray(start))
            backend.write_tiles(canvas, tiles, backend.read_tiles(start, tiles))

        shape = (len(z), *size, self.channels)
        return Feature(run, (run.compute(self.path, shape, [], spread, macs_per_pixel=self.macs_per_pixel),))

    @property
    def macs_per_pixel(self) -> int:
        return self.channels * self.weight.shape[1]


class Linear(Layer):
    """A dense layer on a few rows, such as a time embedding.

    Parameters: `weight` `[O, I]`, `bias` `[O]`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = Parameter(outputs, inputs)
        self.bias = Parameter(outputs)

    def __call__(self, run: Run, x: Array, *, activation: Activation = "identity") -> Array:
        """`activation(x @ weight.T + bias)`: `[M, I]` → `[M, O]`, arrays of the backend."""
        weight, bias = run.prepared(self.path, self._prepare)
        return run.backend.linear(x, weight, bias, activation=activation)

    def _prepare(self, backend: Backend) -> tuple[Array, Array]:
        return backend.upload_weight(self.weight.float32), backend.upload(self.bias.float32)
