"""The autoencoder of Stable Diffusion: an image comes in, latents come out, an eighth of its size; and the way back.

Both halves are convolutional models of the blocks of `unet.py` without time; the middle has attention of one head.
Sources: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752, and its
`first_stage_model`, whose layers have the same names here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from sparsegen.backends.interface import Host

from ..checks import in_range, whole_number
from ..engine.feature import Feature, silu
from ..errors import InputError, ShapeError
from ..layers import Conv2d, GroupNorm, Layer
from ..tiling.policies import Paper
from .base import Inputs, Model, multiples_near, named_sizes
from .unet import AttentionBlock, Downsample, ResBlock, Upsample

_MOST = 65536


@dataclass(frozen=True)
class VAEConfig:
    """The values that determine the shape of an autoencoder's half.

    Attributes
    ----------
    channels
        Of an image: 3.
    latents
        Channels of the latents.
    levels
        For each level, from the image's resolution down, its channels; each but the last halves the resolution.
    blocks
        Residual blocks of a level of the encoder; the decoder has one more.
    groups, eps
        Of the group norms.
    scale
        What latents are multiplied by where a denoising model reads them: their deviation is then about 1.
    """

    channels: int = 3
    latents: int = 4
    levels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    groups: int = 32
    eps: float = 1e-6
    scale: float = 0.18215

    head_channels: ClassVar[int] = 0
    """Attention has one head over all channels."""
    time_channels: ClassVar[int] = 0
    """Blocks are not conditioned on time."""

    def __post_init__(self) -> None:
        """Raises InputError: a value is none that an autoencoder can have."""
        if not isinstance(self.levels, (tuple, list)) or not 1 <= len(self.levels) <= 16:
            raise InputError(f"levels is {self.levels!r}, expected a list of 1 to 16 numbers of channels")
        for level in self.levels:
            whole_number("levels", level, 1, _MOST)
        object.__setattr__(self, "levels", tuple(map(int, self.levels)))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("eps", "scale"):
                object.__setattr__(self, field.name, in_range(field.name, value, 0, 1000, ends="()"))
            elif field.name != "levels":
                object.__setattr__(self, field.name, whole_number(field.name, value, 1, _MOST))
        for level in self.levels:
            if level % self.groups:
                raise InputError(
                    f"{level} channels, expected a multiple of {self.groups}, the groups of a norm"
                )

    @property
    def reduction(self) -> int:
        """How many pixels of the image, along each side, a latent stands for: 8 of four levels."""
        return int(2 ** (len(self.levels) - 1))


class _Level(Layer):
    """The blocks of one resolution."""

    downsample: Downsample | None = None
    upsample: Upsample | None = None

    def __init__(self, block: list[ResBlock]) -> None:
        self.block = block

    def __call__(self, x: Feature) -> Feature:
        for block in self.block:
            x = block(x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class _Middle(Layer):
    """The lowest resolution: block, attention, block."""

    def __init__(self, channels: int, config: VAEConfig) -> None:
        self.block_1 = ResBlock(channels, channels, config)
        self.attn_1 = AttentionBlock(channels, config)
        self.block_2 = ResBlock(channels, channels, config)

    def __call__(self, x: Feature) -> Feature:
        return self.block_2(self.attn_1(self.block_1(x)))


class VAEEncoder(Model):
    """The encoder: an image `[N, H, W, 3]` in [-1, 1] to the moments of its latents, `[N, H / 8, W / 8, 8]`.

    The first half of the output's channels is the mean of each latent, the second half the logarithm of its variance.
    """

    family = "vae-encoder"
    role = "encoder"
    config_type = VAEConfig
    inputs = ("image",)
    # SIGE's edits of an encoder's input, in pixels of the image
    paper = Paper(dilation=5, level_dilation=1, sparse_levels=10)
    eps = 2e-2

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        channels = config.levels[0]
        self.conv_in = Conv2d(config.channels, channels)
        self.down: list[_Level] = []
        for i, width in enumerate(config.levels):
            blocks = []
            for _ in range(config.blocks):
                blocks.append(ResBlock(channels, width, config))
                channels = width
            level = _Level(blocks)
            if i < len(config.levels) - 1:
                level.downsample = Downsample(channels)
            self.down.append(level)
        self.mid = _Middle(channels, config)
        self.norm_out = GroupNorm(channels, groups=config.groups, eps=config.eps)
        self.conv_out = Conv2d(channels, 2 * config.latents)
        self.quant_conv = Conv2d(2 * config.latents, 2 * config.latents, 1)

    def forward(self, canvases: dict[str, Feature], conditions: dict[str, Host]) -> Feature:
        h = self.conv_in(canvases["image"])
        for level in self.down:
            h = level(h)
        return self.quant_conv(self.conv_out(silu(self.norm_out(self.mid(h)))))

    def encode(self, image: Any, *, base: Inputs | None = None, **conditions: Any) -> Inputs:
        """An image, floats `[H, W, 3]` or `[N, H, W, 3]` in [-1, 1], checked. Raises InputError, ShapeError."""
        _no_conditions(self, conditions)
        x = _checked("image", image, self.config.channels)
        self.check_size(*x.shape[1:3])
        return Inputs({"image": x})

    def sizes_near(self, height: int, width: int) -> list[tuple[int, int]]:
        """Supported sizes, the nearest first: sides in multiples of the reduction."""
        return multiples_near(self.config.reduction, height, width)

    def check_size(self, height: int, width: int) -> None:
        unit = self.config.reduction
        if height % unit or width % unit or not height or not width:
            raise ShapeError(
                f"the image is {height}×{width}; this autoencoder needs sides in multiples of {unit}, the nearest are "
                f"{named_sizes(self.sizes_near(height, width))}"
            )

    def images(self, output: Host) -> Host:
        """The means of the first latents in false colours, uint8 `[N, h, w, 3]`."""
        shown = np.repeat(output[..., : self.config.latents], 3, -1)[..., :: self.config.latents][..., :3]
        return _as_bytes(np.asarray(shown) * self.config.scale / 3)


class VAEDecoder(Model):
    """The decoder: latents `[N, h, w, 4]` to an image `[N, 8 h, 8 w, 3]`, in [-1, 1] but for overshoots."""

    family = "vae-decoder"
    role = "decoder"
    config_type = VAEConfig
    inputs = ("latents",)
    # SIGE's edits of a decoder: 40 pixels of the image around the changed ones, all resolutions sparse
    paper = Paper(dilation=5, level_dilation=1, sparse_levels=10)
    # by the study of `landscape-sd`: 0 costs 7 dB of edits of 1 %, 2 gains nothing
    fast_settings = MappingProxyType({"dilation": 1})

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        channels = config.levels[-1]
        self.post_quant_conv = Conv2d(config.latents, config.latents, 1)
        self.conv_in = Conv2d(config.latents, channels)
        self.mid = _Middle(channels, config)
        self.up: list[_Level] = []
        for i, width in reversed(list(enumerate(config.levels))):
            blocks = []
            for _ in range(config.blocks + 1):
                blocks.append(ResBlock(channels, width, config))
                channels = width
            level = _Level(blocks)
            if i > 0:
                level.upsample = Upsample(channels)
            self.up.insert(0, level)
        self.norm_out = GroupNorm(channels, groups=config.groups, eps=config.eps)
        self.conv_out = Conv2d(channels, config.channels)

    def forward(self, canvases: dict[str, Feature], conditions: dict[str, Host]) -> Feature:
        h = self.mid(self.conv_in(self.post_quant_conv(canvases["latents"])))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(silu(self.norm_out(h)))

    def encode(self, image: Any, *, base: Inputs | None = None, **conditions: Any) -> Inputs:
        """Latents, floats `[h, w, 4]` or `[N, h, w, 4]`, not scaled, checked. Raises InputError, ShapeError."""
        _no_conditions(self, conditions)
        return Inputs({"latents": _checked("latents", image, self.config.latents)})

    def sizes_near(self, height: int, width: int) -> list[tuple[int, int]]:
        """Latents may have any size."""
        return [(height, width)]

    def check_size(self, height: int, width: int) -> None:
        if not height or not width:
            raise ShapeError(f"the latents are {height}×{width}, expected at least 1×1")

    def images(self, output: Host) -> Host:
        """The image, uint8 `[N, H, W, 3]`."""
        return _as_bytes(output[..., :3])


def _no_conditions(model: Model, conditions: dict[str, Any]) -> None:
    if conditions:
        raise InputError(f"unknown condition {', '.join(sorted(conditions))}; {model.family} takes none")


def _checked(name: str, values: Any, channels: int) -> Host:
    """Finite floats `[N, H, W, channels]`, float32. Raises InputError, ShapeError."""
    x = np.asarray(values)
    if not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"the {name} are {x.dtype}, expected floats")
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or not x.size or x.shape[3] != channels:
        raise ShapeError(
            f"the {name} are {np.shape(values)}, expected [H, W, {channels}] or [N, H, W, {channels}]"
        )
    with np.errstate(over="ignore"):  # a value too large for float32 becomes inf, which is refused below
        x = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(x).all():
        n, row, column, _ = np.argwhere(~np.isfinite(x))[0]
        raise InputError(
            f"the {name} are not finite at sample {n}, row {row}, column {column}; scale or repair them"
        )
    return x


def _as_bytes(values: Host) -> Host:
    """Values in [-1, 1] as uint8; others are clipped."""
    return np.asarray(np.round((np.clip(values, -1, 1) + 1) * 127.5), np.uint8)
