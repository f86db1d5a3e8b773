"""CLIP's text encoder: the tokens of a text come in, a vector of features for each token comes out.

A transformer in which a token sees itself and those before it. The tokens lie row by row in a grid, 77 of them in
7 × 11, so that they fill tiles. Sources: Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", arXiv 2103.00020; github.com/openai/CLIP (ViT-L, Stable Diffusion 1.x),
github.com/mlfoundations/open_clip (ViT-H, 2.x). Layers are named as in transformers' `CLIPTextModel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import Activation, Host

from ..checks import in_range, whole_number
from ..engine.feature import Feature
from ..errors import InputError, ShapeError
from ..layers import Attention, Conv2d, Layer, LayerNorm, TokenEmbedding, WriteOut
from ..tiling.policies import Paper
from .base import Inputs, Model

_ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
_RANGES = {
    "vocabulary": (2, 1 << 24),
    "tokens": (2, 65536),
    "width": (1, 65536),
    "layers": (1, 1024),
    "heads": (1, 65536),
    "hidden": (1, 1 << 20),
}


@dataclass(frozen=True)
class CLIPTextConfig:
    """The values that determine a text encoder.

    Attributes
    ----------
    vocabulary
        Ids of tokens.
    tokens
        Tokens of a text, padded.
    width
        Channels of the features.
    layers, heads
        Layers, and attention heads of each.
    hidden
        Channels between the two products of a feed-forward layer.
    activation
        "quick_gelu" or "gelu".
    eps
        Of the layer norms.
    """

    vocabulary: int = 49408
    tokens: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: str = "quick_gelu"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        """Raises InputError: a value is none that a text encoder can have."""
        for name, (least, most) in _RANGES.items():
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least, most))
        object.__setattr__(self, "eps", in_range("eps", self.eps, 0, 1, ends="()"))
        if self.activation not in _ACTIVATIONS:
            raise InputError(f"activation is {self.activation!r}, expected {' or '.join(_ACTIVATIONS)}")
        if self.width % self.heads:
            raise InputError(f"{self.width} channels do not divide into {self.heads} heads")


class SelfAttention(Layer):
    """Attention of each token to itself and to those before it, and a projection."""

    def __init__(self, config: CLIPTextConfig) -> None:
        c = config.width
        self.q_proj = Conv2d(c, c, 1, kept=False)
        self.k_proj = Conv2d(c, c, 1)
        self.v_proj = Conv2d(c, c, 1)
        self.attend = Attention(config.heads, causal=True, kept=False)
        self.out_proj = Conv2d(c, c, 1)

    def __call__(self, x: Feature, *, residual: Feature) -> Feature:
        """`residual + out_proj(attention(x))`."""
        return self.out_proj(self.attend(self.q_proj(x), self.k_proj(x), self.v_proj(x)), residual=residual)


class FeedForward(Layer):
    """Two products, with an activation between them."""

    def __init__(self, config: CLIPTextConfig) -> None:
        self.activation = _ACTIVATIONS[config.activation]
        self.fc1 = Conv2d(config.width, config.hidden, 1, kept=False)
        self.fc2 = Conv2d(config.hidden, config.width, 1)

    def __call__(self, x: Feature, *, residual: Feature) -> Feature:
        """`residual + fc2(activation(fc1(x)))`."""
        return self.fc2(self.fc1(x, activation=self.activation), residual=residual)


class EncoderLayer(Layer):
    """Attention, then a feed-forward layer; each after a layer norm, and added to its input."""

    def __init__(self, config: CLIPTextConfig) -> None:
        self.layer_norm1 = LayerNorm(config.width, eps=config.eps)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = LayerNorm(config.width, eps=config.eps)
        self.mlp = FeedForward(config)

    def __call__(self, x: Feature) -> Feature:
        x = self.self_attn(self.layer_norm1(x), residual=x)
        return self.mlp(self.layer_norm2(x), residual=x)


class CLIPText(Model):
    """The text encoder: ids of tokens `[N, T]` to features `[N, h, w, C]`, h · w = T, of the last layer, normalised.

    The condition `skip` takes an earlier layer's: 1 the last but one's ("clip skip 2" of other programs).
    """

    family = "clip-text"
    role = "text"
    config_type = CLIPTextConfig
    inputs = ("tokens",)
    paper = Paper(dilation=0, level_dilation=0)
    config: CLIPTextConfig

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        self.embeddings = TokenEmbedding(config.vocabulary, config.tokens, config.width)
        self.layer = [EncoderLayer(config) for _ in range(config.layers)]
        self.final_layer_norm = LayerNorm(config.width, eps=config.eps)
        self.output = WriteOut()

    def forward(self, canvases: dict[str, Feature], conditions: dict[str, Host]) -> Feature:
        x = self.embeddings(canvases["tokens"])
        for layer in self.layer[: self.config.layers - int(conditions["skip"])]:
            x = layer(x)
        return self.output(self.final_layer_norm(x))

    def encode(self, image: Any, *, base: Inputs | None = None, **conditions: Any) -> Inputs:
        """Ids of tokens, checked.

        Parameters
        ----------
        image
            Integers `[T]` or `[N, T]`, as `Tokenizer.encode` gives them.
        skip
            Layers to leave out at the end: 0, or up to one less than there are.

        Raises
        ------
        InputError, ShapeError
        """
        skip = conditions.pop("skip", 0)
        if conditions:
            raise InputError(f"unknown condition {', '.join(sorted(conditions))}; {self.family} takes skip")
        skip = whole_number("skip", skip, 0, self.config.layers - 1, unit="of layers")
        ids, count = np.asarray(image), self.config.tokens
        if not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"the tokens are {ids.dtype}, expected ids: integers")
        ids = ids[None] if ids.ndim == 1 else ids
        if ids.ndim != 2 or not len(ids) or ids.shape[1] != count:
            raise ShapeError(f"the tokens are {np.shape(image)}, expected [{count}] or [N, {count}]")
        if ids.min() < 0 or ids.max() >= self.config.vocabulary:
            raise InputError(
                f"the tokens have the id {ids.min() if ids.min() < 0 else ids.max()}, expected 0 to "
                f"{self.config.vocabulary - 1}; does the tokenizer belong to this model?"
            )
        places = np.broadcast_to(self.config.vocabulary + np.arange(count), ids.shape)
        grid = np.stack([ids, places], -1).reshape(len(ids), *token_grid(count), 2)
        return Inputs({"tokens": np.ascontiguousarray(grid, np.int32)}, {"skip": np.array(skip)})

    def sizes_near(self, height: int, width: int) -> list[tuple[int, int]]:
        """The grid of the tokens."""
        return [token_grid(self.config.tokens)]

    def check_size(self, height: int, width: int) -> None:
        if (height, width) != token_grid(self.config.tokens):
            raise ShapeError(f"the tokens lie in {height}×{width}, expected {token_grid(self.config.tokens)}")

    def images(self, output: Host) -> Host:
        """The first three features as colours, uint8 `[N, h, w, 3]`."""
        shown = (
            np.resize(output[..., :3], (*output.shape[:-1], 3)) if output.shape[-1] < 3 else output[..., :3]
        )
        return np.asarray(np.clip(np.round((shown + 1) * 127.5), 0, 255), np.uint8)


def token_grid(count: int) -> tuple[int, int]:
    """The rows and columns, nearest to a square, in which so many tokens lie: 7 × 11 of 77."""
    rows = next(rows for rows in range(int(count**0.5), 0, -1) if count % rows == 0)
    return rows, count // rows
