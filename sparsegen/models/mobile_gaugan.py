"""GAN Compression's GauGAN: a label map comes in, an image comes out, at a ninth of GauGAN's multiply-accumulates.

Every layer has a width of its own, found by search, and gamma and beta come from separable convolutions. Source: Li et
al., "GAN Compression", arXiv 2003.08936; layers are named as in its code, mit-han-lab/gan-compression (the sub-mobile
SPADE generator), whose blocks are NVlabs/SPADE's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..checks import whole_number
from ..engine.coded import Coded, twice
from ..engine.feature import Feature, Modulation
from ..errors import InputError
from ..layers import BatchNorm, Conv2d, InstanceNorm, LabelConv, Layer
from ..tiling.policies import Paper
from .spade import HALVINGS, SPADEGenerator, SPADEResnetBlock, SpatiallyAdaptiveNorm

_WIDTHS = 8
_WIDEST = 4096


@dataclass(frozen=True)
class MobileGauGANConfig:
    """The values that determine the model's shape, by upstream's names.

    Attributes
    ----------
    channels
        Eight widths, also as upstream's string `"32_32_32_48_32_24_24_32"`: of `fc`, `head_0`, `G_middle_0`,
        `G_middle_1` (each times 16 channels), `up_0` (times 8), `up_1` (4), `up_2` (2) and `up_3` (1). The hidden
        layers of a block's SPADEs have twice its width.
    semantic_nc
        Channels of the one-hot input: the labels, plus one for instance edges when `edge_channel`.
    num_upsampling_layers
        "normal": 5 doublings of the size, "more": 6.
    edge_channel
        Whether the last channel marks the borders of instances.
    """

    channels: tuple[int, ...] = (32, 32, 32, 48, 32, 24, 24, 32)
    semantic_nc: int = 36
    num_upsampling_layers: Literal["normal", "more"] = "more"
    edge_channel: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", _widths(self.channels))
        object.__setattr__(self, "semantic_nc", whole_number("semantic_nc", self.semantic_nc, 1, 65536))
        known = [name for name in HALVINGS if name != "most"]
        if self.num_upsampling_layers not in known:
            raise InputError(
                f"num_upsampling_layers is {self.num_upsampling_layers!r}, expected one of {', '.join(known)}"
            )
        if not isinstance(self.edge_channel, bool):
            raise InputError(f"edge_channel is {self.edge_channel!r}, expected true or false")
        if self.semantic_nc <= self.edge_channel:
            raise InputError(
                f"semantic_nc is {self.semantic_nc}, expected 2 or more: a label and the edge channel"
            )


def _widths(channels: object) -> tuple[int, ...]:
    """Eight widths, of a list or of upstream's string. Raises InputError."""
    given: object = channels
    if isinstance(channels, str):
        given = [int(each) if each.isdecimal() else each for each in channels.split("_")]
    if not isinstance(given, list | tuple) or len(given) != _WIDTHS:
        raise InputError(
            f"channels is {channels!r}, expected {_WIDTHS} widths, such as 32_32_32_48_32_24_24_32"
        )
    return tuple(whole_number(f"channels[{i}]", each, 1, _WIDEST) for i, each in enumerate(given))


class SeparableGammaBeta(Layer):
    """Gamma and beta by a separable convolution each: depthwise, instance norm, pointwise; computed side by side.

    The hidden channels are read twice. Of the depthwise convolution's outputs the first half makes gamma, the second
    beta, so the pointwise one has two groups. The norm's statistics are those of the original in every edit.
    """

    def __init__(self, hidden: int, channels: int) -> None:
        self.depthwise = Conv2d(2 * hidden, 2 * hidden, groups=2 * hidden)
        self.norm = InstanceNorm(follows=False)
        self.pointwise = Conv2d(2 * hidden, 2 * channels, 1, groups=2)

    def __call__(self, hidden: Feature | Coded) -> Feature | Coded:
        """`[N, H, W, hidden]` → `[N, H, W, 2 * channels]`."""
        hidden = twice(hidden)
        # both convolutions recompute the same tiles under `paper` too, as SIGE does
        return self.pointwise(self.norm(self.depthwise(hidden)), also=self.depthwise.reads(hidden))


class MobileSPADE(SpatiallyAdaptiveNorm):
    """A SPADE whose gamma and beta depend on the 5×5 labels around a pixel, and on the statistics of the original.

    So one image has a row of them for each window of labels. In a batch each image has statistics of its own, which
    rows that all images share cannot have: there gamma and beta have canvases.
    """

    def __init__(self, channels: int, hidden: int, labels: int) -> None:
        self.norm = BatchNorm(channels)
        self.mlp_shared = LabelConv(labels, hidden)
        self.mlp_gamma_beta = SeparableGammaBeta(hidden, channels)

    def gamma_beta(self, labels: Feature, *, size: tuple[int, int]) -> Modulation:
        by_window = labels.shape[0] == 1
        return self.mlp_gamma_beta(self.mlp_shared(labels, size=size, activation="relu", by_window=by_window))


class MobileGauGAN(SPADEGenerator):
    """The sub-mobile SPADE generator."""

    family = "mobile-gaugan"
    config_type = MobileGauGANConfig
    paper = Paper(dilation=1, level_dilation=2, sparse_levels=4)

    def __init__(self, config: MobileGauGANConfig) -> None:
        super().__init__(config)
        fc, head, middle_0, middle_1, *up = config.channels
        self.fc = LabelConv(config.semantic_nc, 16 * fc)
        self.head_0 = self._block(16 * fc, 16 * head, head)
        self.G_middle_0 = self._block(16 * fc, 16 * middle_0, middle_0)
        self.G_middle_1 = self._block(16 * fc, 16 * middle_1, middle_1)
        self.up_0 = self._block(16 * fc, 8 * up[0], up[0], up=True)
        self.up_1 = self._block(8 * up[0], 4 * up[1], up[1], up=True)
        self.up_2 = self._block(4 * up[1], 2 * up[2], up[2], up=True)
        self.up_3 = self._block(2 * up[2], up[3], up[3], up=True)
        self.conv_img = Conv2d(up[3], 3)

    def _block(self, inputs: int, middle: int, width: int, *, up: bool = False) -> SPADEResnetBlock:
        """A block of a width; one on the way up has `middle` outputs, another keeps the number of its inputs."""
        return SPADEResnetBlock(
            inputs,
            middle,
            middle if up else inputs,
            lambda channels: MobileSPADE(channels, 2 * width, self.config.semantic_nc),
            learned_shortcut=up,
        )
