"""DDPM: a noisy image and its timestep come in, the noise in it comes out.

Source: Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239; the model of its LSUN models, with
the options of diffusers' `UNet2DModel` that change the computation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsegen.backends.interface import Host

from ..diffusion.settings import DiffusionDefaults, Settings
from ..errors import InputError
from ..tiling.policies import Paper
from .unet import Downsample, ResBlock, TimeEmbedding, UNet, UNetConfig, Upsample


@dataclass(frozen=True)
class DDPMConfig(UNetConfig):
    """The values that determine the model's shape and its embedding of time.

    Attributes
    ----------
    film
        Whether time scales and shifts the second norm of a block instead of being added before it.
    resample_blocks
        Whether resolutions change inside residual blocks (by pooling and repeating pixels) instead of by convolutions.
    symmetric_downsampling
        Whether a downsampling convolution is padded on all sides instead of on the right and at the bottom.
    frequency_shift
        1: the lowest frequency of the embedding is 1 / 10000; 0: it is the one before, of one frequency more.
    cosine_first
        Whether the embedding's cosines come before its sines.
    """

    film: bool = False
    resample_blocks: bool = False
    symmetric_downsampling: bool = False
    frequency_shift: int = 1
    cosine_first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frequency_shift not in (0, 1):
            raise InputError(f"frequency_shift is {self.frequency_shift}, expected 0 or 1")


class DDPM(UNet):
    """The noise predictor of denoising diffusion; `timestep` counts from 0, nearly clean, to 999."""

    family = "ddpm"
    config_type = DDPMConfig
    # SIGE's edits: every 20th of 500 timesteps
    diffusion = DiffusionDefaults(
        time="timestep",
        predicts="noise",
        edit=Settings(steps=25, noise_level=500, sampler="ddim"),
        sample_steps=50,
    )
    paper = Paper(dilation=5, level_dilation=1, sparse_levels=16, least_size=64)
    eps = 1e-2

    @property
    def film(self) -> bool:
        return bool(self.config.film)

    def _time_embedding(self) -> TimeEmbedding:
        c = self.config
        return TimeEmbedding(
            c.channels, c.time_channels, frequency_shift=c.frequency_shift, cosine_first=c.cosine_first
        )

    def _downsample(self, channels: int) -> Downsample | ResBlock:
        if self.config.resample_blocks:
            return ResBlock(channels, channels, self.config, film=self.film, resample="down")
        return Downsample(channels, symmetric=self.config.symmetric_downsampling)

    def _upsample(self, channels: int) -> Upsample | ResBlock:
        if self.config.resample_blocks:
            return ResBlock(channels, channels, self.config, film=self.film, resample="up")
        return Upsample(channels)

    def prediction(self, output: Host, x: Host, time: float) -> Host:
        """The output, or its first half of the channels if the model predicts a variance too."""
        return np.ascontiguousarray(output[..., : self.config.in_channels])
