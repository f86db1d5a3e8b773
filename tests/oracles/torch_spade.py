"""The SPADE generator in plain PyTorch, with every upstream option: the oracle that imports are compared with.

Written from the paper (arXiv 1903.07291); names are NVlabs/SPADE's, so `state_dict()` is a checkpoint like its own.
`nhidden` is an option here, as in our importer.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

Net = TypeVar("Net", bound=nn.Module)

HALVINGS = {"normal": 5, "more": 6, "most": 7}


class SPADE(nn.Module):
    def __init__(self, channels: int, labels: int, hidden: int, norm: str, kernel: int):
        super().__init__()
        norms = {"batch": nn.BatchNorm2d, "syncbatch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}
        self.param_free_norm = norms[norm](channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(labels, hidden, kernel, padding=kernel // 2), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2)
        self.mlp_beta = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        hidden = self.mlp_shared(F.interpolate(seg, size=x.shape[2:], mode="nearest"))
        return self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class Block(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, labels: int, hidden: int, norm: str, kernel: int, spectral: bool
    ):
        super().__init__()
        middle = min(inputs, outputs)
        wrap = spectral_norm if spectral else (lambda layer: layer)
        self.conv_0 = wrap(nn.Conv2d(inputs, middle, 3, padding=1))
        self.conv_1 = wrap(nn.Conv2d(middle, outputs, 3, padding=1))
        self.norm_0 = SPADE(inputs, labels, hidden, norm, kernel)
        self.norm_1 = SPADE(middle, labels, hidden, norm, kernel)
        self.learned = inputs != outputs
        if self.learned:
            self.conv_s = wrap(nn.Conv2d(inputs, outputs, 1, bias=False))
            self.norm_s = SPADE(inputs, labels, hidden, norm, kernel)

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, seg)) if self.learned else x
        h = self.conv_0(F.leaky_relu(self.norm_0(x, seg), 0.2))
        return shortcut + self.conv_1(F.leaky_relu(self.norm_1(h, seg), 0.2))


class SPADEGenerator(nn.Module):
    """One-hot maps `[N, semantic_nc, H, W]` (and z `[N, z_dim]`) in, images `[N, 3, H, W]` out."""

    def __init__(
        self,
        *,
        ngf: int = 4,
        semantic_nc: int = 5,
        nhidden: int = 8,
        layers: str = "normal",
        norm: str = "batch",
        kernel: int = 3,
        spectral: bool = False,
        z_dim: int = 0,
        size: tuple[int, int] = (32, 64),
    ):
        super().__init__()
        self.layers, self.z_dim, self.channels = layers, z_dim, 16 * ngf
        self.start = (size[0] >> HALVINGS[layers], size[1] >> HALVINGS[layers])
        if z_dim:
            self.fc = nn.Linear(z_dim, self.channels * self.start[0] * self.start[1])
        else:
            self.fc = nn.Conv2d(semantic_nc, self.channels, 3, padding=1)
        widths = [16, 16, 16, 16, 8, 4, 2, 1]
        names = ["head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3"]
        options = (semantic_nc, nhidden, norm, kernel, spectral)
        for name, inputs, outputs in zip(names, widths[:-1], widths[1:], strict=True):
            setattr(self, name, Block(inputs * ngf, outputs * ngf, *options))
        if layers == "most":
            self.up_4 = Block(ngf, ngf // 2, *options)
        self.conv_img = nn.Conv2d(ngf // 2 if layers == "most" else ngf, 3, 3, padding=1)

    def forward(self, seg: Tensor, z: Tensor | None = None) -> Tensor:
        if self.z_dim:
            x = self.fc(z).view(-1, self.channels, *self.start)
        else:
            x = self.fc(F.interpolate(seg, size=self.start))
        x = self.head_0(x, seg)
        x = self.G_middle_0(self.up(x), seg)
        x = self.G_middle_1(x if self.layers == "normal" else self.up(x), seg)
        for name in ("up_0", "up_1", "up_2", "up_3", "up_4"):
            if hasattr(self, name):
                x = getattr(self, name)(self.up(x), seg)
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))

    @staticmethod
    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")


def randomised(seed: int = 0, **options: object) -> SPADEGenerator:
    """A generator with random weights, spectral vectors that have been trained on, and non-trivial statistics."""
    torch.manual_seed(seed)
    return stirred(SPADEGenerator(**options))  # type: ignore[arg-type]  # options by name, checked by the call


def stirred(net: Net) -> Net:
    """The generator with spectral vectors that have been trained on, and random statistics."""
    for module in net.modules():
        if hasattr(
            module, "weight_orig"
        ):  # power iteration, as training does it: fresh vectors give any sigma
            for _ in range(20):
                module._forward_pre_hooks[next(iter(module._forward_pre_hooks))](module.train(), ())
    for name, tensor in net.named_buffers():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.5)
        elif name.endswith("running_var"):
            tensor.uniform_(0.3, 2.0)
    return net.eval()


def one_hot(labels: Tensor, instances: Tensor | None, semantic_nc: int) -> Tensor:
    """`[N, H, W]` integers to `[N, semantic_nc, H, W]`; with instances the last channel marks their borders."""
    classes = semantic_nc - (instances is not None)
    seg = F.one_hot(labels.long(), classes).permute(0, 3, 1, 2).float()
    if instances is None:
        return seg
    edge = torch.zeros_like(instances, dtype=torch.bool)
    across, down = instances[:, :, 1:] != instances[:, :, :-1], instances[:, 1:] != instances[:, :-1]
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    return torch.cat([seg, edge[:, None].float()], 1)
