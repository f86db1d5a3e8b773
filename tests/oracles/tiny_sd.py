"""The configurations of a tiny Stable Diffusion, for tests and quick benchmarks: a second each on two cores."""

from __future__ import annotations

from sparsegen.models import CLIPTextConfig, SDUNetConfig, VAEConfig

UNET = SDUNetConfig(
    channels=32,
    levels=(32, 64),
    attention=(True, False),
    blocks=1,
    time_channels=128,
    heads=(2, 4),
    context=32,
    groups=16,
)
VAE = VAEConfig(levels=(16, 16, 32), blocks=1, groups=8)
TEXT = CLIPTextConfig(width=32, layers=2, heads=4, hidden=48)
