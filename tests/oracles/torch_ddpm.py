"""The UNet of DDPM in plain PyTorch: the oracle that imports and every layer are compared with.

Written from the paper (arXiv 2006.11239, appendix B); names are those of its ports (pesser/pytorch_diffusion,
ermongroup/ddim), so `state_dict()` is a checkpoint like theirs. `fused` gives SIGE's checkpoint of the same model.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoids(time: Tensor, length: int) -> Tensor:
    """`[N]` → `[N, length]`: sines, then cosines, at frequencies falling geometrically from 1 to 1 / 10000.

    The frequencies are computed exactly before they are rounded: the parts in 10⁷ by which float32 would miss them
    become parts in 10⁵ of a sine at time 1000, and would hide what the layers after it do.
    """
    frequencies = torch.exp(torch.linspace(0, -math.log(10000), length // 2, dtype=torch.float64))
    angles = time.float()[:, None] * frequencies.float()
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class TimeEmbedding(nn.Module):
    def __init__(self, length: int, width: int):
        super().__init__()
        self.length = length
        self.dense = nn.ModuleList([nn.Linear(length, width), nn.Linear(width, width)])

    def forward(self, time: Tensor) -> Tensor:
        return self.dense[1](F.silu(self.dense[0](sinusoids(time, self.length))))


class Block(nn.Module):
    """`film`: time scales and shifts the second norm; `resample` -1 halves the resolution, 1 doubles it."""

    def __init__(self, inputs: int, outputs: int, time: int, *, film: bool = False, resample: int = 0):
        super().__init__()
        self.film, self.resample = film, resample
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.temb_proj = nn.Linear(time, outputs * (2 if film else 1))
        self.norm2 = group_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample < 0:
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample else x

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(self.resampled(F.silu(self.norm1(x))))
        t = self.temb_proj(F.silu(temb))[:, :, None, None]
        if self.film:
            gain, offset = t.chunk(2, dim=1)
            h = self.norm2(h) * (1 + gain) + offset
        else:
            h = self.norm2(h + t)
        h = self.conv2(F.silu(h))
        x = self.resampled(x)
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class SelfAttention(nn.Module):
    """One head over all channels; q, k and v are convolutions of their own."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.proj_out(attend(self.q(h), self.k(h), self.v(h), heads=1))


def attend(q: Tensor, k: Tensor, v: Tensor, *, heads: int) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v over pixels, the channels cut into heads: `[N, C, H, W]` thrice → the same."""
    n, c, h, w = q.shape
    q, k, v = (each.reshape(n, heads, c // heads, h * w) for each in (q, k, v))
    scores = torch.einsum("nhci,nhcj->nhij", q, k) / math.sqrt(c // heads)
    return torch.einsum("nhij,nhcj->nhci", scores.softmax(dim=3), v).reshape(n, c, h, w)


class Down(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class UNet(nn.Module):
    """Images `[N, 3, H, W]` and times `[N]` in, `[N, outputs, H, W]` out.

    What the distilled model does otherwise is in the four methods before `forward`.
    """

    def __init__(
        self,
        *,
        ch: int = 32,
        mult: tuple[int, ...] = (1, 2),
        attention: tuple[int, ...] = (1,),
        blocks: int = 1,
        temb: int | None = None,
        outputs: int = 3,
    ):
        super().__init__()
        self.temb_channels = temb or 4 * ch
        self.blocks = blocks
        self.temb = TimeEmbedding(ch, self.temb_channels)
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        widths = [ch * m for m in mult]
        kept, now = [ch], ch
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks):
                level.block.append(self.make_block(now, width))
                level.attn.extend([self.make_attention(width)] if i in attention else [])
                now = width
                kept.append(now)
            if i + 1 < len(widths):
                level.downsample = self.make_down(now)
                kept.append(now)
            self.down.append(level)
        self.mid = nn.Module()
        self.mid.block_1 = self.make_block(now, now)
        self.mid.attn_1 = self.make_attention(now)
        self.mid.block_2 = self.make_block(now, now)
        levels = []
        for i in reversed(range(len(widths))):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks + 1):
                level.block.append(self.make_block(now + kept.pop(), widths[i]))
                level.attn.extend([self.make_attention(widths[i])] if i in attention else [])
                now = widths[i]
            if i:
                level.upsample = self.make_up(now)
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = group_norm(now)
        self.conv_out = nn.Conv2d(now, outputs, 3, padding=1)

    def make_block(self, inputs: int, outputs: int) -> nn.Module:
        return Block(inputs, outputs, self.temb_channels)

    def make_attention(self, channels: int) -> nn.Module:
        return SelfAttention(channels)

    def make_down(self, channels: int) -> nn.Module:
        return Down(channels)

    def make_up(self, channels: int) -> nn.Module:
        return Up(channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        temb = self.temb(time)
        kept = [self.conv_in(x)]
        for level in self.down:
            for j in range(self.blocks):
                h = level.block[j](kept[-1], temb)
                kept.append(level.attn[j](h) if len(level.attn) else h)
            if hasattr(level, "downsample"):
                kept.append(level.downsample(kept[-1], temb))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(kept[-1], temb)), temb)
        for level in reversed(self.up):
            for j in range(self.blocks + 1):
                h = level.block[j](torch.cat([h, kept.pop()], dim=1), temb)
                h = level.attn[j](h) if len(level.attn) else h
            if hasattr(level, "upsample"):
                h = level.upsample(h, temb)
        return self.conv_out(F.silu(self.norm_out(h)))


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """Weights at which signals neither vanish nor explode, norms and biases that differ from 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.normal_(float("norm" in name and name.endswith("weight")), 0.2, generator=generator)
    return network.eval()


def fused(network: UNet) -> dict[str, Tensor]:
    """The state dict that SIGE's fused model has of these weights: the blocks' time projections in one matrix, in the
    order in which they run; q, k and v in one convolution."""
    order: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in network.named_modules()
        if name.endswith("temb_proj")
    ]
    side = 2 ** (len(network.down) - 1)
    with torch.no_grad():
        network(torch.zeros(1, 3, side, side), torch.zeros(1))
    for hook in hooks:
        hook.remove()
    state = dict(network.state_dict())
    for kind in ("weight", "bias"):
        state[f"temb.dense.2.{kind}"] = torch.cat([state.pop(f"{name}.{kind}") for name in order])
        for name in [name for name in state if name.endswith(f".q.{kind}")]:
            at = name.removesuffix(f"q.{kind}")
            state[f"{at}qkv.{kind}"] = torch.cat([state.pop(f"{at}{part}.{kind}") for part in "qkv"])
    return state


def watched(network: UNet) -> dict[str, np.ndarray]:
    """Register hooks; after a forward the dict holds every layer's output `[N, H, W, C]` under the engine's paths.

    Where the engine computes more in one go, its layer has that: a first convolution the added time, a second one and
    an attention's last the residual.
    """
    found: dict[str, np.ndarray] = {}

    def keep(path: str, value: Tensor) -> None:
        found[path] = value.permute(0, 2, 3, 1).detach().numpy()

    def output_of(path: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _module, _inputs, output: keep(path, output))

    def input_of(path: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda _module, inputs: keep(path, inputs[0]))

    def parts_of(path: str, qkv: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            for part, value in zip("qkv", output.chunk(3, dim=1), strict=True):
                keep(f"{path}{part}", value)

        qkv.register_forward_hook(hook)

    for name, module in network.named_modules():
        if isinstance(module, Block):
            output_of(f"{name}.conv2", module)
            input_of(f"{name}.conv1", module.norm2)
            if module.resample < 0:
                input_of(f"{name}.pool", module.conv1)
                module.register_forward_pre_hook(
                    lambda module, inputs, name=name: keep(
                        f"{name}.pool_shortcut", module.resampled(inputs[0])
                    )
                )
        elif name.endswith("qkv"):
            parts_of(name.removesuffix("qkv"), module)
        elif name.endswith("proj_out"):
            input_of(f"{name.removesuffix('proj_out')}attend", module)
            output_of(name, network.get_submodule(name.removesuffix(".proj_out")))
        elif isinstance(module, nn.Conv2d) and not name.endswith(("conv1", "conv2")):
            output_of(name, module)
    return found
