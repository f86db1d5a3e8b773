"""Label map one-hot [N, 11, H, W] and style [N, 16] in, picture [N, 3, H, W] in -1..1 out: SPADE, in PyTorch.

The generator is NVlabs's (github.com/NVlabs/SPADE, ``SPADEGenerator`` with ``use_vae``), with the same parameter
names, so that importers of NVlabs checkpoints read its own. The discriminator is their multi-scale PatchGAN, smaller.
Paper: Park et al. 2019, arXiv:1903.07291.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm


class SPADE(nn.Module):
    """Batch norm without parameters, then scaled and shifted at each place by functions of the label map."""

    def __init__(self, channels, label_nc, nhidden):
        super().__init__()
        self.param_free_norm = nn.BatchNorm2d(channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, nhidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(nhidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(nhidden, channels, 3, padding=1)

    def forward(self, x, seg):
        hidden = self.mlp_shared(F.interpolate(seg, size=x.shape[2:], mode="nearest"))
        return self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class SPADEResnetBlock(nn.Module):
    def __init__(self, fin, fout, label_nc, nhidden):
        super().__init__()
        fmiddle = min(fin, fout)
        self.conv_0 = spectral_norm(nn.Conv2d(fin, fmiddle, 3, padding=1))
        self.conv_1 = spectral_norm(nn.Conv2d(fmiddle, fout, 3, padding=1))
        self.norm_0 = SPADE(fin, label_nc, nhidden)
        self.norm_1 = SPADE(fmiddle, label_nc, nhidden)
        self.learned_shortcut = fin != fout
        if self.learned_shortcut:
            self.conv_s = spectral_norm(nn.Conv2d(fin, fout, 1, bias=False))
            self.norm_s = SPADE(fin, label_nc, nhidden)

    def forward(self, x, seg):
        shortcut = self.conv_s(self.norm_s(x, seg)) if self.learned_shortcut else x
        dx = self.conv_0(F.leaky_relu(self.norm_0(x, seg), 0.2))
        dx = self.conv_1(F.leaky_relu(self.norm_1(dx, seg), 0.2))
        return shortcut + dx


class SPADEGenerator(nn.Module):
    """NVlabs's generator with five doublings: an [8, 16] seed map becomes a 256 x 512 picture."""

    def __init__(self, *, ngf=16, nhidden=32, label_nc=11, z_dim=16, size=(256, 512)):
        super().__init__()
        self.sh, self.sw, self.ngf = size[0] // 32, size[1] // 32, ngf
        self.fc = nn.Linear(z_dim, 16 * ngf * self.sh * self.sw)

        def block(fin, fout):
            return SPADEResnetBlock(fin * ngf, fout * ngf, label_nc, nhidden)

        self.head_0, self.G_middle_0, self.G_middle_1 = block(16, 16), block(16, 16), block(16, 16)
        self.up_0, self.up_1, self.up_2, self.up_3 = block(16, 8), block(8, 4), block(4, 2), block(2, 1)
        self.conv_img = nn.Conv2d(ngf, 3, 3, padding=1)

    def forward(self, seg, z, corners=None):
        """``corners`` [N, 2], in cells of 32 pixels, says where in the picture each window ``seg`` was cut."""
        x = self.fc(z).view(-1, 16 * self.ngf, self.sh, self.sw)
        if corners is not None:
            h, w = seg.shape[2] // 32, seg.shape[3] // 32
            x = torch.stack([m[:, r : r + h, c : c + w] for m, (r, c) in zip(x, corners, strict=True)])
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.interpolate(self.head_0(x, seg), scale_factor=2)
        x = self.G_middle_1(self.G_middle_0(x, seg), seg)
        for block in (self.up_0, self.up_1, self.up_2, self.up_3):
            x = block(F.interpolate(x, scale_factor=2), seg)
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))


class PatchDiscriminator(nn.Module):
    """Labels and picture [N, 11 + 3, H, W] -> the features of every layer, the last one the scores [N, 1, h, w]."""

    def __init__(self, channels, ndf, layers):
        super().__init__()
        stages = [nn.Sequential(nn.Conv2d(channels, ndf, 4, 2, 2), nn.LeakyReLU(0.2))]
        for i in range(1, layers):
            wide = min(ndf * 2**i, 256)
            conv = spectral_norm(
                nn.Conv2d(min(ndf * 2 ** (i - 1), 256), wide, 4, 1 if i == layers - 1 else 2, 2, bias=False)
            )
            stages.append(nn.Sequential(conv, nn.InstanceNorm2d(wide), nn.LeakyReLU(0.2)))
        stages.append(nn.Conv2d(wide, 1, 4, 1, 2))
        self.stages = nn.ModuleList(stages)

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Discriminator(nn.Module):
    """Two patch discriminators, at full and at half size: -> two lists of features."""

    def __init__(self, *, ndf=32, layers=4, label_nc=11):
        super().__init__()
        self.scales = nn.ModuleList([PatchDiscriminator(label_nc + 3, ndf, layers) for _ in range(2)])

    def forward(self, seg, picture):
        x = torch.cat([seg, picture], 1).contiguous(memory_format=torch.channels_last)
        small = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return [self.scales[0](x), self.scales[1](small)]
