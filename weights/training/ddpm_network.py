"""Noisy pictures [N, 3, H, W] and their timesteps [N] in, the noise in them [N, 3, H, W] out: DDPM, in PyTorch.

The network is the ``Model`` of ermongroup/ddim (``models/diffusion.py``, after github.com/pesser), with the same
parameter names, so that importers of those checkpoints read its own: Ho et al. 2020, arXiv:2006.11239. No dropout.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def timestep_embedding(timesteps, channels):
    """Timesteps [N] -> their sines, then their cosines [N, channels], at frequencies from 1 down to 1 / 10000."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / (half - 1))
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, cin, cout, temb):
        super().__init__()
        self.norm1, self.conv1 = norm(cin), nn.Conv2d(cin, cout, 3, padding=1)
        self.temb_proj = nn.Linear(temb, cout)
        self.norm2, self.conv2 = norm(cout), nn.Conv2d(cout, cout, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # every block starts as its shortcut: training starts faster
        if cin != cout:
            self.nin_shortcut = nn.Conv2d(cin, cout, 1)

    def forward(self, x, temb):
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """Attention among all places of the map, one head."""

    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, x):
        h = self.norm(x)
        # [N, C, H, W] -> [N, H W, C]
        q, k, v = (project(h).flatten(2).transpose(1, 2) for project in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(1, 2) * q.shape[2] ** -0.5, 2)
        return x + self.proj_out((weights @ v).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution; ``attn`` is empty where the resolution has no attention."""

    def __init__(self, widths, cout, temb, *, attention):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(cin, cout, temb) for cin in widths)
        self.attn = nn.ModuleList(AttnBlock(cout) for _ in widths if attention)

    def forward(self, x, temb, j):
        x = self.block[j](x, temb)
        return self.attn[j](x) if len(self.attn) else x


class Model(nn.Module):
    def __init__(
        self, *, ch=32, ch_mult=(1, 1, 2, 3, 4), num_res_blocks=1, attn_resolutions=(16,), resolution=128
    ):
        super().__init__()
        self.ch, self.num_res_blocks = ch, num_res_blocks
        temb, last = 4 * ch, len(ch_mult) - 1
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, temb), nn.Linear(temb, temb)])
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        attention = [resolution >> i in attn_resolutions for i in range(len(ch_mult))]

        skips, width = [ch], ch
        self.down = nn.ModuleList()
        for i, mult in enumerate(ch_mult):
            cout = ch * mult
            level = Level([width] + [cout] * (num_res_blocks - 1), cout, temb, attention=attention[i])
            skips += [cout] * num_res_blocks
            if i < last:
                level.downsample = Downsample(cout)
                skips.append(cout)
            self.down.append(level)
            width = cout

        self.mid = nn.Module()
        self.mid.block_1, self.mid.block_2 = ResnetBlock(width, width, temb), ResnetBlock(width, width, temb)
        self.mid.attn_1 = AttnBlock(width)

        levels = []
        for i in reversed(range(len(ch_mult))):
            cout, widths = ch * ch_mult[i], []
            for _ in range(num_res_blocks + 1):
                widths.append(width + skips.pop())
                width = cout
            level = Level(widths, cout, temb, attention=attention[i])
            if i:
                level.upsample = Upsample(cout)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x, timesteps):
        dense = self.temb.dense
        temb = dense[1](F.silu(dense[0](timestep_embedding(timesteps, self.ch))))
        skips = [self.conv_in(x)]
        for level in self.down:
            for j in range(self.num_res_blocks):
                skips.append(level(skips[-1], temb, j))
            if hasattr(level, "downsample"):
                skips.append(level.downsample(skips[-1]))
        x = self.mid.block_1(skips[-1], temb)
        x = self.mid.block_2(self.mid.attn_1(x), temb)
        for level in reversed(self.up):
            for j in range(self.num_res_blocks + 1):
                x = level(torch.cat([x, skips.pop()], 1), temb, j)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))
