"""The models, one file each. Importing this room registers every architecture in `Model.registry`."""

from .ddpm import DDPM, DDPMConfig
from .gaugan import GauGAN, GauGANConfig
from .pd import PDConfig, ProgressiveDistillation
from .tokenizer import Tokenizer, Tokens
from .vae import VAEConfig, VAEDecoder, VAEEncoder

__all__ = [
    "DDPM",
    "DDPMConfig",
    "GauGAN",
    "GauGANConfig",
    "PDConfig",
    "ProgressiveDistillation",
    "Tokenizer",
    "Tokens",
    "VAEConfig",
    "VAEDecoder",
    "VAEEncoder",
]
