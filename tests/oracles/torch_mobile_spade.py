"""GAN Compression's SPADE generator in plain PyTorch: the oracle that its imports are compared with.

Written from the papers (arXiv 2003.08936, 1903.07291); names are mit-han-lab/gan-compression's, so `state_dict()` is a
checkpoint like its own. `published` writes the state that a search leaves, `fused` SIGE's form of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from tests.oracles import torch_spade

State = dict[str, Tensor]


class SeparableConv2d(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs),
            nn.InstanceNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MobileSPADE(nn.Module):
    def __init__(self, channels: int, labels: int, hidden: int):
        super().__init__()
        self.param_free_norm = nn.BatchNorm2d(channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(labels, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = SeparableConv2d(hidden, channels)
        self.mlp_beta = SeparableConv2d(hidden, channels)

    forward = torch_spade.SPADE.forward


class Block(nn.Module):
    """Of `width` times `times` channels; on the way `up` the shortcut is convolved, else the inputs' number is kept."""

    def __init__(self, inputs: int, width: int, times: int, labels: int, *, up: bool, spectral: bool):
        super().__init__()
        wrap = spectral_norm if spectral else (lambda layer: layer)
        middle, self.learned = width * times, up
        self.conv_0 = wrap(nn.Conv2d(inputs, middle, 3, padding=1))
        self.conv_1 = wrap(nn.Conv2d(middle, middle if up else inputs, 3, padding=1))
        self.norm_0 = MobileSPADE(inputs, labels, 2 * width)
        self.norm_1 = MobileSPADE(middle, labels, 2 * width)
        if up:
            self.conv_s = wrap(nn.Conv2d(inputs, middle, 1, bias=False))
            self.norm_s = MobileSPADE(inputs, labels, 2 * width)

    forward = torch_spade.Block.forward


class MobileSPADEGenerator(nn.Module):
    """One-hot maps `[N, semantic_nc, H, W]` in, images `[N, 3, H, W]` out; `config` is upstream's string of widths."""

    def __init__(
        self,
        config: str = "1_2_1_3_2_3_4_4",
        *,
        semantic_nc: int = 5,
        layers: str = "normal",
        size: tuple[int, int] = (64, 128),
        spectral: bool = False,
    ):
        super().__init__()
        fc, *widths = map(int, config.split("_"))
        self.layers, self.z_dim = layers, 0
        self.start = tuple(side >> torch_spade.HALVINGS[layers] for side in size)
        self.fc = nn.Conv2d(semantic_nc, 16 * fc, 3, padding=1)
        inputs = 16 * fc
        names = ("head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3")
        for name, width, times in zip(names, widths, (16, 16, 16, 8, 4, 2, 1), strict=True):
            up = name.startswith("up_")
            setattr(self, name, Block(inputs, width, times, semantic_nc, up=up, spectral=spectral))
            inputs = width * times if up else inputs
        self.conv_img = nn.Conv2d(inputs, 3, 3, padding=1)

    forward = torch_spade.SPADEGenerator.forward
    up = staticmethod(torch_spade.SPADEGenerator.up)


def randomised(seed: int = 0, config: str = "1_2_1_3_2_3_4_4", **options: object) -> MobileSPADEGenerator:
    """A generator with random weights and non-trivial statistics."""
    torch.manual_seed(seed)
    return torch_spade.stirred(MobileSPADEGenerator(config, **options))  # type: ignore[arg-type]  # checked by the call


def published(state: Mapping[str, Tensor], *, more: int = 5) -> State:
    """The state with statistics that are `more` longer than their layers, as those of the model before the search."""
    found = dict(state)
    for name in state:
        if name.endswith(("running_mean", "running_var")):
            found[name] = F.pad(state[name], (0, more), value=1e6)  # wrong values, if anybody reads them
    return found


def fused(state: Mapping[str, Tensor]) -> State:
    """The state as SIGE fuses it: the hidden layers of a block's norms in one, norm_0, norm_1, norm_s."""
    found = {name: value for name, value in state.items() if ".mlp_shared." not in name}
    for name in state:
        if ".norm_0.mlp_shared." in name:
            parts = [name.replace("norm_0", norm) for norm in ("norm_0", "norm_1", "norm_s")]
            rows = [state[part] for part in parts if part in state]
            found[name.replace(".norm_0.mlp_shared.", ".mlp_shared.")] = torch.cat(rows)
    return found
