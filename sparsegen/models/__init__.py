"""The networks, one file each. Importing this makes every architecture known to `Model.registry`."""

from .ddpm import DDPM, DDPMConfig
from .gaugan import GauGAN, GauGANConfig
from .pd import PDConfig, ProgressiveDistillation

__all__ = ["DDPM", "DDPMConfig", "GauGAN", "GauGANConfig", "PDConfig", "ProgressiveDistillation"]
