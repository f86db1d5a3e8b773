"""The networks, one file each. Importing this makes every architecture known to `Model.registry`."""

from .gaugan import GauGAN, GauGANConfig

__all__ = ["GauGAN", "GauGANConfig"]
