"""The UNet of Stable Diffusion: noisy latents, a time and the features of a text come in, a prediction comes out.

The UNet of `unet.py` whose attention blocks are transformers (`transformer.py`). Sources: Rombach et al.,
"High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752; the configurations of Stable Diffusion
1.x, 2.x and inpainting (github.com/CompVis/stable-diffusion, github.com/Stability-AI/stablediffusion).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host

from ..checks import whole_number
from ..engine.run import Run
from ..errors import InputError, ShapeError
from ..tiling.policies import Fast, Paper
from .base import Inputs
from .clip_text import token_grid
from .transformer import SpatialTransformer, Text
from .unet import Downsample, TimeEmbedding, UNet, UNetConfig, Upsample

USUAL_STEPS = 40
"""The steps of an edit at the usual settings, 50 at strength 0.8. `SDUNet.fast` suits so many."""
FEW_STEPS = range(8, 27)
"""Numbers of steps of which one that carries computes the highest resolutions. Of fewer, `fast` computes all."""

_MOST = 65536


@dataclass(frozen=True)
class SDUNetConfig(UNetConfig):
    """The values that determine the model's shape; those of `UNetConfig`, with Stable Diffusion's defaults, and:

    Attributes
    ----------
    heads
        For each level, the number of attention heads; the middle has those of the last. 1.x: 8 everywhere; 2.x: heads
        of 64 channels.
    context
        Channels of the text's features: 768 of 1.x, 1024 of 2.x.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: int = 320
    levels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    blocks: int = 2
    time_channels: int = 1280
    eps: float = 1e-5
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context: int = 768

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "context", whole_number("context", self.context, 1, _MOST))
        if len(self.heads) != len(self.levels):
            raise InputError(
                f"heads has {len(self.heads)} entries, expected {len(self.levels)}, one per level"
            )
        for channels, heads in zip(self.levels, self.heads, strict=True):
            if heads < 1 or channels % heads:
                raise InputError(f"{channels} channels do not divide into {heads} heads")


class SDUNet(UNet):
    """Stable Diffusion's predictor of noise, or of the velocity between noise and latents.

    `timestep` counts from 0, nearly clean, to 999. Of the inpainting model, x has nine channels: noisy latents, the
    mask (1: to be painted), the latents of the masked image.
    """

    family = "sd-unet"
    config_type = SDUNetConfig
    time = "timestep"
    film = False
    # SIGE's edits; its code also projects keys and values of unchanged tokens again, to the same values
    paper = Paper(dilation=5, level_dilation=1, sparse_levels=16, whole=("conv_in", "mid", "conv_out"))
    # by `python -m bench.quality --model landscape-sd`, of 40 steps: 4 costs the farthest edit of 1 % 2.6 dB, 6 costs
    # edits of 5 and 15 % 6 to 9 dB at the median
    fast_settings = MappingProxyType({"refresh": 3})
    config: SDUNetConfig

    def fast_for(self, steps: int) -> Fast:
        """The settings of the `fast` policy for a trajectory of so many steps.

        From one of few steps to the next, an edit's delta in the output changes too much to be carried far; in the
        canvases below it changes less. There, steps that carry compute the two highest resolutions from the deltas of
        the third. (A session then keeps most canvases at all steps, of which it has few.)
        """
        if steps in FEW_STEPS:
            return replace(self.fast, frontier=2)
        return self.fast.for_steps(steps, USUAL_STEPS)

    def _time_embedding(self) -> TimeEmbedding:
        c = self.config
        return TimeEmbedding(c.channels, c.time_channels, frequency_shift=0, cosine_first=True)

    def _downsample(self, channels: int) -> Downsample:
        return Downsample(channels, symmetric=True)

    def _upsample(self, channels: int) -> Upsample:
        return Upsample(channels)

    def _attention(self, level: int) -> SpatialTransformer:
        c = self.config
        return SpatialTransformer(c.levels[level], c.heads[level], c.context, groups=c.groups)

    def _middle_attention(self) -> SpatialTransformer:
        return self._attention(len(self.config.levels) - 1)

    def _text(self, run: Run, conditions: dict[str, Host]) -> Text:
        text = conditions["text"]
        n, tokens, channels = text.shape
        key = hashlib.sha256(text.tobytes()).digest() + bytes(str(text.shape), "ascii")
        features = text.reshape(n, *token_grid(tokens), channels)
        (uploaded,) = run.once_per_condition("text", key, lambda: (run.backend.upload(features),))
        return Text(uploaded, key)

    def encode(self, image: Any, *, base: Inputs | None = None, **conditions: Any) -> Inputs:
        """Noisy latents, their time and the text, checked.

        Parameters
        ----------
        image
            Floats `[h, w, C]` or `[N, h, w, C]`.
        timestep
            A number, or one for each sample `[N]`; None: the base's.
        text
            Features of a text, floats `[T, context]` for all samples, or `[N, T, context]`; None: the base's.

        Raises
        ------
        InputError, ShapeError
        """
        text = conditions.pop("text", None)
        inputs = super().encode(image, base=base, **conditions)
        if text is None and base is None:
            raise InputError(
                f"no text is given; {self.family} needs text= in the first run: features [N, T, C]"
            )
        given = base.conditions["text"] if text is None and base is not None else self._features(text)
        if given.shape[0] not in (1, inputs.shape[0]):
            raise ShapeError(f"text is {given.shape}, expected features of 1 or {inputs.shape[0]} texts")
        return Inputs(inputs.canvases, {**inputs.conditions, "text": given})

    def _features(self, text: Any) -> Host:
        features = np.asarray(text)
        if not np.issubdtype(features.dtype, np.floating):
            raise InputError(f"text is {features.dtype}, expected floats: the features of a text")
        features = features[None] if features.ndim == 2 else features
        if features.ndim != 3 or not features.size or features.shape[2] != self.config.context:
            expected = f"[T, {self.config.context}] or [N, T, {self.config.context}]"
            raise ShapeError(f"text is {np.shape(text)}, expected {expected}")
        if not np.isfinite(features).all():
            raise InputError("text holds values that are not finite")
        return np.ascontiguousarray(features, np.float32)

    def prediction(self, output: Host, x: Host, time: float) -> Host:
        """The output as it is: noise or velocity."""
        return output
