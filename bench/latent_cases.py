"""Stable Diffusion as it is timed: its configuration, an image and edits, the settings of a session, targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench.cases import DENSE, rectangle
from bench.trajectory import Edit
from sparsegen.backends.interface import TILE
from sparsegen.diffusion.settings import LatentSettings, latent_settings
from sparsegen.models import CLIPTextConfig, SDUNetConfig, VAEConfig
from sparsegen.models.base import Inputs
from sparsegen.pipelines.latent_edit import MARGIN
from sparsegen.pipelines.latents import reduced
from sparsegen.tiling.masks import dilated
from sparsegen.tiling.policies import Paper, Policy
from sparsegen.tiling.tiles import TileSet
from tests.oracles import tiny_sd

PROMPT, NEGATIVE = "a lake in front of snowy mountains", "people, fog"
TIME = 401.0
"""The timestep of a step that is timed alone."""


@dataclass(frozen=True)
class Latent:
    """Latent diffusion with random weights, and its targets, factors over PyTorch's dense run."""

    name: str = "Stable Diffusion 1.x, 512×512"
    size: int = 512
    """Rows and columns of the image."""
    unet: SDUNetConfig = field(default_factory=SDUNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    steps: int = 15
    """Of the session that is timed; with its strength, 12 are taken."""
    strength: float = 0.8
    usual_steps: int = 40
    """The steps taken by a session with the default settings, over which a step of an edit is averaged."""
    over_torch: Mapping[float, float] = field(default_factory=lambda: {DENSE: 2.5, 0.012: 20, 0.15: 6})
    """Edited area (`DENSE`: a dense step) -> how many times as fast as PyTorch, on average over the steps."""
    decoder_over_torch: float = 40.0
    """Of an edit of `small`."""
    session_over_torch: float = 12.0
    """Of the second edit of a session, of `small`."""
    small: float = 0.01
    ram_bytes: float = 8e9
    """The most that the process of a session may take, with weights and caches in 16 bits."""
    macs: float = 45e9
    """The most MACs of a step of an edit of `small`, for one of the two halves of guidance."""

    @property
    def areas(self) -> tuple[float, ...]:
        """The edited areas of the steps."""
        return tuple(area for area in self.over_torch if area != DENSE)

    def settings(self) -> LatentSettings:
        """Of the session that is timed."""
        return latent_settings({}, "noise", steps=self.steps, strength=self.strength)

    def image(self) -> np.ndarray:
        """Smooth colours, uint8 `[size, size, 3]`."""
        rng = np.random.default_rng(1)
        y, x = np.mgrid[: self.size, : self.size] / self.size
        waves = [np.sin(2 * np.pi * (rng.uniform(-3, 3) * x + rng.uniform(-3, 3) * y)) for _ in range(3)]
        return np.asarray((np.stack(waves, -1) + 1) * 127.5, np.uint8)

    def painted(self, image: np.ndarray, variant: int) -> np.ndarray:
        """A copy of an image with a stroke of `small`."""
        copy = image.copy()
        copy[rectangle(self.size, self.small, variant)] = (200, 30, 30)
        return copy

    def latents(self) -> np.ndarray:
        """float32 `[1, h, w, C]`: scaled latents, about as large as noise."""
        side = self.size // self.vae.reduction
        return np.random.default_rng(2).standard_normal((1, side, side, self.vae.latents), np.float32)

    def features(self) -> np.ndarray:
        """float32 `[2, T, C]`: features of two texts."""
        shape = (2, self.text.tokens, self.unet.context)
        return np.random.default_rng(3).standard_normal(shape, np.float32)

    def inputs(self, unet: Any) -> Inputs:
        """The inputs of a guided step: of both texts, one after the other."""
        x = self.latents()
        inputs: Inputs = unet.encode(np.concatenate([x, x]), timestep=TIME, text=self.features())
        return inputs

    def region(self, area: float, variant: int) -> np.ndarray:
        """bool `[size, size]`: the pixels that an edit of a rectangle recomputes."""
        return self.with_margin(rectangle(self.size, area, variant))

    def middle(self) -> np.ndarray:
        """bool `[size, size]`: the pixels that an edit of a square of `small` in the middle recomputes."""
        side = round(self.size * self.small**0.5)
        first, mask = (self.size - side) // 2, np.zeros((self.size, self.size), bool)
        mask[first : first + side, first : first + side] = True
        return self.with_margin(mask)

    def everywhere(self) -> np.ndarray:
        """bool `[size, size]`: all pixels."""
        return np.ones((self.size, self.size), bool)

    def with_margin(self, mask: np.ndarray) -> np.ndarray:
        """The pixels `[size, size]` that an edit of those of a mask recomputes."""
        changed = TileSet.of_mask(mask[None])
        n, row, column = changed.first
        return dilated(changed.shape, changed.box, (n, row * TILE, column * TILE), MARGIN).mask()[0]

    def step_edit(self, region: np.ndarray, policy: Policy, *, halves: int = 2) -> Edit:
        """The edit of a region of pixels in a step of the UNet, as a session makes it: masks are made of pixels."""
        if isinstance(policy, Paper):
            policy = replace(policy, dilation=0)
        pixels = np.tile(region, (halves, 1, 1))
        return Edit(TileSet.of_mask(reduced(pixels, self.vae.reduction)), policy.plan(pixels))

    def decoder_edit(self, region: np.ndarray, policy: Policy) -> Edit:
        """The edit of a region of pixels in the decoder, as a session makes it."""
        if isinstance(policy, Paper):
            policy = replace(policy, dilation=policy.dilation * self.vae.reduction)
        return Edit(TileSet.of_mask(reduced(region[None], self.vae.reduction)), policy.plan(region[None]))

    def step_edits(self, area: float, policy: Policy, count: int) -> Iterator[Edit]:
        """Edits of rectangles elsewhere."""
        return (self.step_edit(self.region(area, variant), policy) for variant in range(count))


LATENT = Latent()
QUICK_LATENT = Latent(
    "a tiny Stable Diffusion",
    size=64,
    unet=tiny_sd.UNET,
    vae=tiny_sd.VAE,
    text=tiny_sd.TEXT,
    steps=5,
    usual_steps=8,
)


def latent(quick: bool) -> Latent:
    return QUICK_LATENT if quick else LATENT
