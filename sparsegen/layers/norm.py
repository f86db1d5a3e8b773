"""Norms: statistics come in, a scale and a shift per channel are left pending on the feature.

A layer norm leaves its statistics pending too: they are those of each pixel.
"""

from __future__ import annotations

from typing import overload

from sparsegen.backends.interface import Array, Backend

from ..engine.coded import Coded, measured
from ..engine.feature import Feature
from ..engine.run import Affine
from ..errors import ShapeError
from .base import Layer, Parameter


class BatchNorm(Layer):
    """Batch norm at inference, without affine parameters: `(x - mean) / sqrt(var + eps)`, statistics `[C]`."""

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        self.eps = eps
        self.mean = Parameter(channels)
        self.var = Parameter(channels)

    def __call__(self, x: Feature) -> Feature:
        return x.normalised(Affine(*x.run.prepared(self.path, self._prepare)))

    def _prepare(self, backend: Backend) -> tuple[Array, Array]:
        mean, variance = (backend.upload(v.float32[None]) for v in (self.mean, self.var))
        return backend.norm_affine(mean, variance, groups=self.mean.shape[0], eps=self.eps)


class InstanceNorm(Layer):
    """Instance norm without affine parameters; the statistics are measured in the dense run (see `Run.norm`).

    A norm that does not `follow` edits keeps them, whatever the policy; only such a norm takes coded features.
    """

    def __init__(self, *, eps: float = 1e-5, follows: bool = True) -> None:
        self.eps, self.follows = eps, follows

    @overload
    def __call__(self, x: Feature) -> Feature: ...

    @overload
    def __call__(self, x: Feature | Coded) -> Feature | Coded: ...

    def __call__(self, x: Feature | Coded) -> Feature | Coded:
        backend, channels = x.run.backend, x.shape[3]

        def affine(mean: Array, variance: Array) -> tuple[Array, Array]:
            return backend.norm_affine(mean, variance, groups=channels, eps=self.eps)

        if isinstance(x, Coded):
            if self.follows:
                raise ShapeError(
                    f"{self.path}: statistics that follow edits need a canvas, not a coded feature"
                )
            return measured(self.path, x, affine)
        return x.normalised(x.run.norm(self.path, x.parts, affine, follows=self.follows))


class GroupNorm(Layer):
    """Group norm: the statistics of groups of channels, measured in the dense run.

    Edits reuse them (arXiv 2211.02048, section 3), or under a policy with `statistics` follow them.
    Parameters: `weight` `[C]`, `bias` `[C]`.
    """

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-6) -> None:
        if channels % groups:
            raise ShapeError(f"{channels} channels do not divide into {groups} groups")
        self.groups, self.eps = groups, eps
        self.weight = Parameter(channels)
        self.bias = Parameter(channels)

    def __call__(self, x: Feature, film: Array | None = None) -> Feature:
        """`(x - mean) / sqrt(var + eps) * weight + bias`, pending.

        `film` `[1 or N, 2C]` scales and shifts the result: `norm * (1 + film[:, :C]) + film[:, C:]`.
        """
        backend = x.run.backend
        weight, bias = x.run.prepared(self.path, self._prepare)

        def affine(mean: Array, variance: Array) -> tuple[Array, Array]:
            return backend.norm_affine(
                mean, variance, groups=self.groups, eps=self.eps, weight=weight, bias=bias, film=film
            )

        return x.normalised(x.run.norm(self.path, x.parts, affine))

    def _prepare(self, backend: Backend) -> tuple[Array, Array]:
        return backend.upload(self.weight.float32), backend.upload(self.bias.float32)


class LayerNorm(Layer):
    """Layer norm: each pixel over its channels, pending (Ba et al., arXiv 1607.06450).

    Parameters: `weight` `[C]`, `bias` `[C]`.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        self.eps = eps
        self.weight = Parameter(channels)
        self.bias = Parameter(channels)

    def __call__(self, x: Feature) -> Feature:
        """`(x - mean) / sqrt(var + eps) * weight + bias`, pending; only a pixel's own values can be read of it."""
        return x.layer_normalised(Affine(*x.run.prepared(self.path, self._prepare)), self.eps)

    def _prepare(self, backend: Backend) -> tuple[Array, Array]:
        return backend.upload(self.weight.float32[None]), backend.upload(self.bias.float32[None])
