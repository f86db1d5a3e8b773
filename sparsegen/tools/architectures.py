"""Published architectures by name: a name comes in, models without weights come out.

Each entry has the configuration of a published checkpoint and the size that it was trained on, so that its costs can be
counted by people who do not have the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial

import numpy as np

from sparsegen.backends.interface import Host

from ..errors import InputError
from ..models import (
    DDPM,
    DDPMConfig,
    GauGAN,
    GauGANConfig,
    MobileGauGAN,
    MobileGauGANConfig,
    PDConfig,
    ProgressiveDistillation,
    SDUNet,
    SDUNetConfig,
    VAEConfig,
    VAEDecoder,
    VAEEncoder,
)
from ..models.base import Model
from ..tiling.policies import Paper


@dataclass(frozen=True)
class Architecture:
    """The models of a published checkpoint."""

    make: Callable[[], tuple[Model, ...]]
    """Makes its models; each has a role."""
    size: tuple[int, int]
    """(height, width) of the images that it was trained on."""
    source: str
    """Where its configuration is published."""
    papers: Mapping[str, Paper] = field(default_factory=dict)
    """Role -> the settings that the published MACs of edits were counted by, where the family has others."""

    def models(self) -> dict[str, Model]:
        """Role -> model, without weights."""
        return {model.role: model for model in self.make()}


def _autoencoder() -> tuple[Model, ...]:
    return VAEEncoder(VAEConfig()), VAEDecoder(VAEConfig())


def _stable_diffusion(config: SDUNetConfig) -> tuple[Model, ...]:
    encoder, decoder = _autoencoder()
    return encoder, SDUNet(config), decoder


def _published(upsample: str) -> Mapping[str, Paper]:
    """How the MACs of progressive distillation were counted in SIGE's table 1: sparse from 32 pixels on.

    The code that was released later has 64, by which an edit of 1.2 % at 128×128 takes 34.8 G instead of the published
    24.5. Attention is dense in it, and so is a block that doubles the resolution to the lowest sparse one.
    """
    paper = replace(ProgressiveDistillation.paper, least_size=32, whole=("attn", "attn_1", upsample))
    return {ProgressiveDistillation.role: paper}


PD_256 = PDConfig(levels=(64, 64, 128, 256, 384, 512), attention=(False, False, False, True, True, True))

ARCHITECTURES: Mapping[str, Architecture] = {
    "gaugan-cityscapes": Architecture(
        lambda: (GauGAN(GauGANConfig()),),
        (256, 512),
        "NVlabs/SPADE, cityscapes_pretrained: 35 labels and instance edges, ngf 64, 'more' (arXiv 1903.07291)",
    ),
    "gan-compression": Architecture(
        lambda: (MobileGauGAN(MobileGauGANConfig()),),
        (256, 512),
        "mit-han-lab/gan-compression, Cityscapes, sub-mobile SPADE 32_32_32_48_32_24_24_32 (arXiv 2003.08936)",
    ),
    "ddpm-church-256": Architecture(
        lambda: (DDPM(DDPMConfig()),),
        (256, 256),
        "Ho et al., LSUN church (arXiv 2006.11239), as ported in pesser/pytorch_diffusion",
    ),
    "pd-church-128": Architecture(
        lambda: (ProgressiveDistillation(PDConfig()),),
        (128, 128),
        "SIGE's port of progressive distillation, LSUN church (arXiv 2202.00512, 2211.02048)",
        _published("up.3.upsample"),
    ),
    "pd-church-256": Architecture(
        lambda: (ProgressiveDistillation(PD_256),),
        (256, 256),
        "SIGE's port of progressive distillation at 256×256 (arXiv 2202.00512, 2211.02048)",
        _published("up.4.upsample"),
    ),
    "sd-1.5": Architecture(
        lambda: _stable_diffusion(SDUNetConfig()),
        (512, 512),
        "Stable Diffusion 1.x, v1-inference.yaml of CompVis/stable-diffusion (arXiv 2112.10752)",
    ),
    "sd-2.1": Architecture(
        lambda: _stable_diffusion(SDUNetConfig(heads=(5, 10, 20, 20), context=1024)),
        (768, 768),
        "Stable Diffusion 2.x, v2-inference-v.yaml of Stability-AI/stablediffusion",
    ),
    "sd-vae": Architecture(
        _autoencoder,
        (512, 512),
        "the autoencoder of Stable Diffusion 1.x and 2.x (arXiv 2112.10752)",
    ),
}


def architecture(name: str) -> Architecture:
    """The architecture of that name. Raises InputError, which lists the known ones."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = get_close_matches(name, ARCHITECTURES, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"unknown architecture {name!r}{hint}; known: {', '.join(ARCHITECTURES)}")


def with_random_weights(model: Model, *, seed: int = 0) -> Model:
    """The model, which gets random weights: its layers keep the scale of their inputs. They are made when needed.

    Of one dimension, `weight` and `var` are 1, the others 0; the rest repeats a block of normal numbers, of deviation
    1 / sqrt(inputs of an output).
    """
    block = np.random.default_rng(seed).standard_normal(1 << 20, np.float32)
    for path, parameter in model.parameters().items():
        parameter.read = partial(_random, block, parameter.shape, path.endswith(("weight", "var")))
    return model


def _random(block: Host, shape: tuple[int, ...], scales: bool) -> Host:
    if len(shape) == 1:
        return np.full(shape, np.float32(scales))
    return np.resize(block, shape) * np.float32(math.prod(shape[1:]) ** -0.5)
