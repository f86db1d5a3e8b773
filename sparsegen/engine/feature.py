"""Features: canvases come in, and with the pointwise work pending on them a layer's input comes out.

Pending work (a norm, a modulation, an activation, upsampling) is applied by the layer that reads the feature while it
gathers its tiles, so normalised, activated, upsampled or concatenated copies never exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from sparsegen.backends.interface import Activation, Array, Source

from ..errors import ShapeError
from ..tiling.canvas import Canvas
from ..tiling.windows import Read, Window
from .run import Affine, Run


class Modulation(Protocol):
    """Gamma and beta for every pixel, as a `Source` takes them."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, 2C)`: gamma in the first C channels, beta in the last C."""

    @property
    def modulation(self) -> tuple[Array, Array | None]:
        """A canvas and None; or rows `[R, 2C]` and the canvas of codes that choose among them."""

    def reads(self, window: Window) -> list[Read]:
        """The canvases that a layer depends on if it reads this through `window`."""


@dataclass(frozen=True)
class Feature:
    """An activation: canvases of one resolution, and pending work.

    Pending work (a norm, a modulation, an activation, upsampling) is applied by the layer that reads the feature while
    it gathers its tiles, so normalised, activated, upsampled or concatenated copies never exist.
    """

    run: Run
    parts: tuple[Canvas, ...]
    """Canvases `[N, h, w, C_i]`, read as if concatenated along channels."""
    upsample: int = 1
    affine: Affine | None = None
    """A norm's scale and shift."""
    modulated_by: Modulation | None = None
    activation: Activation = "identity"
    layer_eps: float | None = None
    """Of a layer norm, which normalises each pixel over its channels."""

    @property
    def source(self) -> Source:
        """The arrays and the pending work, as a kernel reads them."""
        arrays = tuple(part.array for part in self.parts)
        scale, shift = (None, None) if self.affine is None else (self.affine.scale, self.affine.shift)
        modulation, codes = (None, None) if self.modulated_by is None else self.modulated_by.modulation
        return Source(arrays, self.upsample, scale, shift, modulation, self.activation, codes, self.layer_eps)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, C)` as read."""
        n, h, w, c = self.parts[0].shape
        for part in self.parts[1:]:
            c += part.shape[3]
        return n, h * self.upsample, w * self.upsample, c // 2 if self.activation == "geglu" else c

    @property
    def modulation(self) -> tuple[Array, None]:
        """The canvas of a modulating feature. Raises ShapeError: it has several parts, upsampling or pending work."""
        if len(self.parts) != 1 or self.upsample != 1:
            raise ShapeError(
                "gamma and beta must be one canvas of the size of the feature that they modulate"
            )
        self._nothing_pending("a modulation")
        return self.parts[0].array, None

    def reads(self, window: Window) -> list[Read]:
        """The canvases that a layer depends on if it reads this feature through `window`.

        Raises ShapeError: a layer norm or GEGLU is pending, and the window has more than a pixel's own values.
        """
        if (self.layer_eps is not None or self.activation == "geglu") and window != Window():
            raise ShapeError("after a layer norm or GEGLU, only a pixel's own values can be read")
        resampled = window if self.upsample == window.upsample else replace(window, upsample=self.upsample)
        reads = [Read(part.changed, resampled, canvas=part) for part in self.parts]
        return reads if self.modulated_by is None else reads + self.modulated_by.reads(window)

    def normalised(self, norm: Affine) -> Feature:
        """`x * scale + shift` per channel, pending. Before any other pending work but upsampling."""
        self._nothing_pending("a norm")
        return self._but(affine=norm)

    def layer_normalised(self, norm: Affine, eps: float) -> Feature:
        """`(x - mean) / sqrt(var + eps) * scale + shift`, pending; the moments are those of a pixel's channels."""
        self._nothing_pending("a layer norm")
        if len(self.parts) > 1 or self.upsample != 1:
            raise ShapeError("a layer norm needs one part, not upsampled")
        return self._but(affine=norm, layer_eps=eps)

    def modulated(self, gamma_beta: Modulation) -> Feature:
        """`x * (1 + gamma) + beta` per pixel, pending; `gamma_beta` has 2C channels and nothing pending."""
        if self.modulated_by is not None or self.activation != "identity":
            raise ShapeError("a modulation must come before an activation, and only once")
        n, h, w, c = self.shape
        if gamma_beta.shape != (n, h, w, 2 * c):
            raise ShapeError(f"gamma and beta are {gamma_beta.shape}, expected {(n, h, w, 2 * c)}")
        _ = gamma_beta.modulation  # raises where it cannot modulate
        return self._but(modulated_by=gamma_beta)

    def activated(self, activation: Activation) -> Feature:
        """An activation, pending after everything else."""
        if self.activation != "identity" or (activation != "identity" and self.layer_eps is not None):
            pending = "a layer norm" if self.activation == "identity" else self.activation
            raise ShapeError(f"{pending} is pending already; write it out before {activation}")
        return self._but(activation=activation)

    def upsampled(self) -> Feature:
        """Nearest upsampling by two, as a way to read. Per-channel work commutes with it, a modulation does not."""
        if self.modulated_by is not None or self.layer_eps is not None or self.upsample != 1:
            raise ShapeError("upsampling must come before a modulation and a layer norm, and only once")
        return self._but(upsample=2)

    def _but(self, **changes: Any) -> Feature:
        """The same with some fields changed: `dataclasses.replace`, which takes ten times as long, hundreds a run."""
        other = object.__new__(Feature)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def _nothing_pending(self, operation: str) -> None:
        if self.affine is not None or self.modulated_by is not None or self.activation != "identity":
            raise ShapeError(f"{operation} needs a feature without pending work")


def upsample(x: Feature) -> Feature:
    """Nearest upsampling by two."""
    return x.upsampled()


def leaky_relu(x: Feature) -> Feature:
    """`x if x > 0 else 0.2 x`."""
    return x.activated("leaky_relu")


def silu(x: Feature) -> Feature:
    """`x * sigmoid(x)`."""
    return x.activated("silu")


def concat(*features: Feature) -> Feature:
    """Concatenation along channels, as a list of parts to read; no part may have pending work but upsampling."""
    first = features[0]
    for feature in features:
        feature._nothing_pending("concatenation")
        if feature.upsample != first.upsample or feature.shape[:3] != first.shape[:3]:
            raise ShapeError(f"cannot concatenate {feature.shape} with {first.shape}")
    return first._but(parts=tuple(part for feature in features for part in feature.parts))


def quick_gelu(x: Feature) -> Feature:
    """`x * sigmoid(1.702 x)`."""
    return x.activated("quick_gelu")


def gelu(x: Feature) -> Feature:
    """`x * Φ(x)`, with the distribution function Φ of the normal distribution."""
    return x.activated("gelu")


def geglu(x: Feature) -> Feature:
    """`a * gelu(b)`, a and b being the two halves of the channels (Shazeer, arXiv 2002.05202)."""
    x._nothing_pending("GEGLU")
    return x.activated("geglu")
