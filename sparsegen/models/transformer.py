"""The transformer of a UNet that is conditioned on text: pixels attend to each other, then to the words of a text.

Keys, values and the output have canvases. Everything else is read by the same pixels alone, and is scratch. Sources:
Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752, appendix E.2.1; layers
are named as in its `SpatialTransformer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsegen.backends.interface import Array

from ..engine.feature import Feature, geglu
from ..layers import Attention, Conv2d, GroupNorm, Layer, LayerNorm

NORM_EPS = 1e-6
"""Of the group norm before a transformer; those of residual blocks have 1e-5."""


@dataclass(frozen=True)
class Text:
    """The features of a text that a run is conditioned on."""

    features: Array
    """`[1 or N, h, w, C]`, an array of the backend: h · w tokens, row by row."""
    key: bytes
    """Equal for equal features."""


class SelfAttention(Layer):
    """Attention of all pixels to each other, and a projection."""

    def __init__(self, channels: int, heads: int) -> None:
        self.to_q = Conv2d(channels, channels, 1, bias=False, kept=False)
        self.to_k = Conv2d(channels, channels, 1, bias=False)
        self.to_v = Conv2d(channels, channels, 1, bias=False)
        self.attend = Attention(heads, kept=False)
        self.to_out = Conv2d(channels, channels, 1, kept=False)

    def __call__(self, x: Feature, *, residual: Feature) -> Feature:
        """`residual + to_out(attention(x))`, `[N, H, W, C]`."""
        return self.to_out(self.attend(self.to_q(x), self.to_k(x), self.to_v(x)), residual=residual)


class CrossAttention(Layer):
    """Attention of each pixel to the tokens of a text, and a projection."""

    def __init__(self, channels: int, heads: int, context: int) -> None:
        self.to_q = Conv2d(channels, channels, 1, bias=False, kept=False)
        self.to_k = Conv2d(context, channels, 1, bias=False)
        self.to_v = Conv2d(context, channels, 1, bias=False)
        self.attend = Attention(heads, kept=False)
        self.to_out = Conv2d(channels, channels, 1, kept=False)

    def __call__(self, x: Feature, text: Text, *, residual: Feature) -> Feature:
        """`residual + to_out(attention(x, text))`, `[N, H, W, C]`."""
        run = x.run

        def project() -> tuple[Array, ...]:
            return self.to_k.of_array(run, text.features), self.to_v.of_array(run, text.features)

        keys, values = run.once_per_condition(self.path, text.key, project)
        return self.to_out(self.attend.to_text(self.to_q(x), keys, values), residual=residual)


class FeedForward(Layer):
    """Four times as many channels, gated (GEGLU), and back."""

    def __init__(self, channels: int) -> None:
        self.proj = Conv2d(channels, 8 * channels, 1, kept=False)
        self.out = Conv2d(4 * channels, channels, 1, kept=False)

    def __call__(self, x: Feature, *, residual: Feature) -> Feature:
        """`residual + out(geglu(proj(x)))`, `[N, H, W, C]`."""
        return self.out(geglu(self.proj(x)), residual=residual)


class TransformerBlock(Layer):
    """Attention to the other pixels, attention to the text, a feed-forward layer; each after a layer norm."""

    def __init__(self, channels: int, heads: int, context: int) -> None:
        self.norm1, self.norm2, self.norm3 = (LayerNorm(channels) for _ in range(3))
        self.attn1 = SelfAttention(channels, heads)
        self.attn2 = CrossAttention(channels, heads, context)
        self.ff = FeedForward(channels)

    def __call__(self, x: Feature, text: Text) -> Feature:
        x = self.attn1(self.norm1(x), residual=x)
        x = self.attn2(self.norm2(x), text, residual=x)
        return self.ff(self.norm3(x), residual=x)


class SpatialTransformer(Layer):
    """x + a transformer block over all pixels of the normalised x, between two 1×1 convolutions."""

    def __init__(self, channels: int, heads: int, context: int, *, groups: int) -> None:
        self.norm = GroupNorm(channels, groups=groups, eps=NORM_EPS)
        self.proj_in = Conv2d(channels, channels, 1, kept=False)
        self.block = TransformerBlock(channels, heads, context)
        self.proj_out = Conv2d(channels, channels, 1)

    def __call__(self, x: Feature, text: Text) -> Feature:
        """`[N, H, W, C]` → the same shape."""
        return self.proj_out(self.block(self.proj_in(self.norm(x)), text), residual=x)
