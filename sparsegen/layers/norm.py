"""Norms: statistics come in, a scale and a shift per channel are left pending on the feature."""

from __future__ import annotations

import numpy as np

from sparsegen.backends.interface import (
    Array,
    Backend,
    Host,
)

from ..engine.run import Feature
from ..errors import ShapeError
from .base import Layer, Parameter


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

        return x.normalised(*x.run.once_per_base(self.path, measure))


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

        return x.normalised(*x.run.once_per_base(self.path, measure))


def _affine(backend: Backend, mean: Host, var: Host, eps: float) -> tuple[Array, Array]:
    """Statistics as the scale and shift that a prologue applies: x * scale + shift."""
    scale = 1 / np.sqrt(var.astype(np.float64) + eps)
    return backend.upload(scale.astype(np.float32)), backend.upload((-mean * scale).astype(np.float32))
