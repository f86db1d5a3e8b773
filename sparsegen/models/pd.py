"""Progressive distillation: a noisy image and its log signal-to-noise ratio come in, image and noise come out.

Source: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv 2202.00512, section 4
and appendix B; layers are named as in SIGE's port.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from sparsegen.backends.interface import Host

from ..diffusion.settings import DiffusionDefaults, Settings
from ..errors import InputError
from ..tiling.policies import Paper
from .unet import Downsample, ResBlock, TimeEmbedding, UNet, UNetConfig, Upsample


@dataclass(frozen=True)
class PDConfig(UNetConfig):
    """The values that determine the model's shape; the defaults give SIGE's LSUN church model of 128×128."""

    out_channels: int = 6
    channels: int = 64
    levels: tuple[int, ...] = (64, 128, 256, 384, 512)
    attention: tuple[bool, ...] = (False, False, True, True, True)
    blocks: int = 3
    time_channels: int = 768
    head_channels: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out_channels != 2 * self.in_channels:
            raise InputError(
                f"out_channels is {self.out_channels}, expected {2 * self.in_channels}, twice in_channels: "
                "an image and its noise"
            )


class ProgressiveDistillation(UNet):
    """A model for few steps, which predicts the clean image and the noise; each is weighted where it is the safer."""

    family = "pd"
    config_type = PDConfig
    # SIGE's edits: the last five of eight steps
    diffusion = DiffusionDefaults(
        time="logsnr",
        predicts="image",
        edit=Settings(steps=8, noise_level=5, sampler="pd"),
        sample_steps=8,
    )
    # their quality is not measured: no trained model of the family is at hand
    fast_settings = MappingProxyType({"refresh": 4, "frontier": 3})
    paper = Paper(dilation=2, level_dilation=1, sparse_levels=16, least_size=64)
    eps = 2e-2

    @property
    def film(self) -> bool:
        return True

    def _time_embedding(self) -> TimeEmbedding:
        return TimeEmbedding(self.config.channels, self.config.time_channels)

    def _downsample(self, channels: int) -> Downsample | ResBlock:
        return ResBlock(channels, channels, self.config, film=True, resample="down")

    def _upsample(self, channels: int) -> Upsample | ResBlock:
        return ResBlock(channels, channels, self.config, film=True, resample="up")

    def embedded_time(self, time: Host) -> Host:
        """The inverse of the cosine schedule, in thousandths: 0 for a clean image, 1000 for noise."""
        angle = np.arctan(np.exp(-0.5 * np.clip(time.astype(np.float64), -20, 20)))
        return (1000 * angle / (math.pi / 2)).astype(np.float32)

    def prediction(self, output: Host, x: Host, time: float) -> Host:
        """The predicted image mixed with the image that the predicted noise implies; `time` is the logsnr.

        `σ² x̂ + α² (x - σ ε̂) / α`, with α² = sigmoid(logsnr), σ² = 1 - α²: near pure noise x̂, near the end ε̂.
        """
        channels = self.config.in_channels
        image, noise = output[..., :channels], output[..., channels:]
        alpha2 = 1 / (1 + math.exp(-time))
        sigma2 = 1 / (1 + math.exp(time))
        alpha, sigma = np.float32(math.sqrt(alpha2)), np.float32(math.sqrt(sigma2))
        return np.asarray(
            np.float32(sigma2) * image + np.float32(alpha2) * ((x - sigma * noise) / alpha), np.float32
        )
