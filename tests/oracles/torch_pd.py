"""The UNet of progressive distillation in plain PyTorch: the oracle that imports and every layer are compared with.

Written from the paper (arXiv 2202.00512, section 4 and appendix B); names are those of SIGE's port, so
`state_dict()` is a checkpoint like its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.oracles.torch_ddpm import Block, UNet, attend, group_norm


class FusedAttention(nn.Module):
    """Heads of `head` channels each; queries, keys and values of one convolution, in that order."""

    def __init__(self, channels: int, head: int):
        super().__init__()
        self.heads = channels // head
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj_out(attend(*self.qkv(self.norm(x)).chunk(3, dim=1), heads=self.heads))


class DistilledUNet(UNet):
    """Told the logsnr `[N]`; predicts an image and its noise, six channels."""

    def __init__(self, *, head: int = 64, **sizes: object):
        self.head = head
        super().__init__(**{"outputs": 6, "temb": 96, **sizes})  # type: ignore[arg-type]  # sizes by name

    def make_block(self, inputs: int, outputs: int) -> nn.Module:
        return Block(inputs, outputs, self.temb_channels, film=True)

    def make_attention(self, channels: int) -> nn.Module:
        return FusedAttention(channels, self.head)

    def make_down(self, channels: int) -> nn.Module:
        return Block(channels, channels, self.temb_channels, film=True, resample=-1)

    def make_up(self, channels: int) -> nn.Module:
        return Block(channels, channels, self.temb_channels, film=True, resample=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`time` is the logsnr; embedded is how far along the cosine schedule that is, in thousandths."""
        along = torch.atan(torch.exp(-time.double().clamp(-20, 20) / 2)) * (2000 / math.pi)
        return super().forward(x, along.float())
