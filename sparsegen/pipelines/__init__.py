"""Pipelines: models that run many times for one image."""

from .generation import generate
from .latents import LatentDiffusion
from .opening import open_session
from .sampling import sample
from .sdedit import SDEdit
from .stable_diffusion import StableDiffusion

__all__ = ["LatentDiffusion", "SDEdit", "StableDiffusion", "generate", "open_session", "sample"]
