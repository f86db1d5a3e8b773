"""The models, one file each. Importing this room registers every architecture in `Model.registry`."""

from .clip_text import CLIPText, CLIPTextConfig
from .ddpm import DDPM, DDPMConfig
from .gaugan import GauGAN, GauGANConfig
from .mobile_gaugan import MobileGauGAN, MobileGauGANConfig
from .pd import PDConfig, ProgressiveDistillation
from .sd_unet import SDUNet, SDUNetConfig
from .tokenizer import Tokenizer, Tokens
from .vae import VAEConfig, VAEDecoder, VAEEncoder

__all__ = [
    "DDPM",
    "CLIPText",
    "CLIPTextConfig",
    "DDPMConfig",
    "GauGAN",
    "GauGANConfig",
    "MobileGauGAN",
    "MobileGauGANConfig",
    "PDConfig",
    "ProgressiveDistillation",
    "SDUNet",
    "SDUNetConfig",
    "Tokenizer",
    "Tokens",
    "VAEConfig",
    "VAEDecoder",
    "VAEEncoder",
]
