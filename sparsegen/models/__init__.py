"""The models, one file each. Importing this room registers every architecture in `Model.registry`."""

from .ddpm import DDPM, DDPMConfig
from .gaugan import GauGAN, GauGANConfig
from .pd import PDConfig, ProgressiveDistillation
from .vae import VAEConfig, VAEDecoder, VAEEncoder

__all__ = [
    "DDPM",
    "DDPMConfig",
    "GauGAN",
    "GauGANConfig",
    "PDConfig",
    "ProgressiveDistillation",
    "VAEConfig",
    "VAEDecoder",
    "VAEEncoder",
]
