"""The UNet that diffusion models share: a noisy image and an embedded time come in, a prediction comes out.

Levels of halved resolutions lead down to the middle and up again; each block on the way up also reads the output of
its counterpart on the way down. Source: Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239,
appendix B; layers are named as in its PyTorch port (pesser/pytorch_diffusion), whose checkpoints then need no rename.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np

from sparsegen.backends.interface import Array, Host

from ..checks import in_range, whole_number
from ..diffusion.settings import DiffusionDefaults
from ..engine.feature import Feature, concat, silu, upsample
from ..engine.run import Run
from ..errors import InputError, ShapeError
from ..layers import Attention, AvgPool, Conv2d, GroupNorm, Layer, Linear
from .base import Inputs, Model, multiples_near, named_sizes
from .transformer import SpatialTransformer, Text

_MOST = 65536
_RANGES = {
    "in_channels": (1, _MOST),
    "out_channels": (1, _MOST),
    "channels": (4, _MOST),  # the embedding has a first and a last frequency
    "blocks": (1, 64),
    "time_channels": (1, _MOST),
    "head_channels": (0, _MOST),
    "groups": (1, _MOST),
}


@dataclass(frozen=True)
class UNetConfig:
    """The values that determine a UNet's shape, whichever time it is conditioned on.

    Attributes
    ----------
    in_channels, out_channels
        Channels of the noisy image and of the prediction.
    channels
        Channels of the first convolution's output; also the length of the sinusoidal embedding of time.
    levels
        For each level, from the input's resolution down, its channels.
    attention
        For each level, whether an attention block follows each residual block.
    blocks
        Residual blocks of a level on the way down; one more on the way up.
    time_channels
        Length of the embedded time.
    head_channels
        Channels of one attention head; 0: one head over all channels.
    middle_attention, middle_norm
        Whether the middle has an attention block, and whether that begins with a norm, as the others do.
    groups, eps
        Of the group norms.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: int = 128
    levels: tuple[int, ...] = (128, 128, 256, 256, 512, 512)
    attention: tuple[bool, ...] = (False, False, False, False, True, False)
    blocks: int = 2
    time_channels: int = 512
    head_channels: int = 0
    middle_attention: bool = True
    middle_norm: bool = True
    groups: int = 32
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                kind = type(field.default[0])
                if not isinstance(value, (tuple, list)) or any(type(each) is not kind for each in value):
                    raise InputError(f"{field.name} is {value!r}, expected a list of {kind.__name__}")
                object.__setattr__(self, field.name, tuple(value))
            elif type(field.default) is float:
                object.__setattr__(self, field.name, in_range(field.name, value, 0, 1, ends="()"))
            elif field.name in _RANGES:
                object.__setattr__(self, field.name, whole_number(field.name, value, *_RANGES[field.name]))
            elif type(value) is not type(field.default):
                raise InputError(
                    f"{field.name} is {value!r}, expected {type(field.default).__name__}, such as {field.default!r}"
                )
        if not 1 <= len(self.levels) <= 16 or not all(1 <= c <= _MOST for c in self.levels):
            raise InputError(f"levels is {self.levels}, expected 1 to 16 of 1 to {_MOST} channels")
        if len(self.attention) != len(self.levels):
            raise InputError(
                f"attention has {len(self.attention)} entries, expected {len(self.levels)}, one per level"
            )
        for channels in {self.channels, *self.levels}:
            if channels % self.groups:
                raise InputError(
                    f"{channels} channels, expected a multiple of {self.groups}, the groups of a norm"
                )
            if self.head_channels and channels % self.head_channels and channels in self._attended:
                raise InputError(
                    f"{channels} channels, expected a multiple of {self.head_channels}, the channels of a head"
                )

    @property
    def _attended(self) -> set[int]:
        """Channels that have attention."""
        attended = {c for c, has in zip(self.levels, self.attention, strict=True) if has}
        return attended | ({self.levels[-1]} if self.middle_attention else set())


class TimeEmbedding(Layer):
    """The embedding of time: sines and cosines of it at many frequencies, then two linear layers.

    Source: Vaswani et al., arXiv 1706.03762, section 3.5; half of the features are sines, half cosines. With n = half
    the features, frequency k is 10000^(-k / (n - frequency_shift)), which falls from 1 to 1 / 10000 or just above it.
    """

    def __init__(
        self, features: int, outputs: int, *, frequency_shift: int = 1, cosine_first: bool = False
    ) -> None:
        self.features, self.frequency_shift, self.cosine_first = features, frequency_shift, cosine_first
        self.dense: list[Layer] = [Linear(features, outputs), Linear(outputs, outputs)]

    def __call__(self, run: Run, time: Host) -> Array:
        """`time` `[1 or N]` → silu of the embedding, `[1 or N, outputs]`, as every block reads it."""

        def embed() -> tuple[Array]:
            first, second = self.dense
            assert isinstance(first, Linear) and isinstance(second, Linear)
            waves = run.backend.upload(self.waves(time))
            return (second(run, first(run, waves, activation="silu"), activation="silu"),)

        return run.once_per_base(self.path, embed)[0]

    def waves(self, time: Host) -> Host:
        """Sines and cosines, float32 `[1 or N, features]`; of an odd number of features, the last is 0."""
        half = self.features // 2
        frequencies = np.exp(-math.log(10000) * np.arange(half) / (half - self.frequency_shift))
        # frequencies and angles are rounded to float32, as PyTorch's: an angle near 1000 keeps 16 bits of a turn
        angles = time.astype(np.float32)[:, None] * frequencies.astype(np.float32)
        waves = [np.sin(angles), np.cos(angles)]
        found = np.concatenate(waves[::-1] if self.cosine_first else waves, axis=1)
        return np.pad(found, ((0, 0), (0, self.features % 2)))


class BlockConfig(Protocol):
    """The values of a configuration that its blocks depend on."""

    @property
    def groups(self) -> int:
        """Groups of the norms."""

    @property
    def eps(self) -> float:
        """Of the norms."""

    @property
    def time_channels(self) -> int:
        """Length of the embedded time; 0: blocks are not conditioned on time."""

    @property
    def head_channels(self) -> int:
        """Channels of one attention head; 0: one head over all channels."""


class ResBlock(Layer):
    """A residual block: two convolutions, each after group norm and SiLU, conditioned on time in between.

    Time is added to the first convolution's output, or with `film` scales and shifts the second norm (FiLM, arXiv
    1709.07871). `resample` "down" or "up" halves or doubles the resolution between the first norm and its convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, config: BlockConfig, *, film: bool = False, resample: str = ""
    ) -> None:
        self.film, self.resample = film, resample
        self.norm1 = GroupNorm(inputs, groups=config.groups, eps=config.eps)
        self.conv1 = Conv2d(inputs, outputs)
        self.temb_proj: Linear | None = None
        if config.time_channels:
            self.temb_proj = Linear(config.time_channels, 2 * outputs if film else outputs)
        self.norm2 = GroupNorm(outputs, groups=config.groups, eps=config.eps)
        self.conv2 = Conv2d(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = Conv2d(inputs, outputs, 1, kept=False)
        if resample == "down":
            self.pool, self.pool_shortcut = AvgPool(), AvgPool()
        self.learned_shortcut = inputs != outputs

    def __call__(self, x: Feature, temb: Array | None = None) -> Feature:
        """`[N, H, W, inputs]` → `[N, H', W', outputs]`; `temb` `[1 or N, time_channels]`, None without time."""
        time, proj = None, self.temb_proj
        if proj is not None:
            (time,) = x.run.once_per_base(proj.path, lambda: (proj(x.run, temb),))
        h = silu(self.norm1(x))
        if self.resample == "down":
            h, x = self.pool(h), self.pool_shortcut(x)
        elif self.resample == "up":
            h, x = upsample(h), upsample(x)
        h = self.conv1(h, shift=None if self.film else time)
        h = silu(self.norm2(h, film=time if self.film else None))
        return self.conv2(h, residual=self.nin_shortcut(x) if self.learned_shortcut else x)


class AttentionBlock(Layer):
    """Self-attention over all pixels: x + attention(norm(x)), with 1×1 convolutions before and after."""

    def __init__(self, channels: int, config: BlockConfig, *, norm: bool = True) -> None:
        self.norm = GroupNorm(channels, groups=config.groups, eps=config.eps) if norm else None
        self.q, self.k, self.v = (Conv2d(channels, channels, 1) for _ in range(3))
        self.attend = Attention(channels // (config.head_channels or channels))
        self.proj_out = Conv2d(channels, channels, 1)

    def __call__(self, x: Feature) -> Feature:
        h = x if self.norm is None else self.norm(x)
        return self.proj_out(self.attend(self.q(h), self.k(h), self.v(h)), residual=x)


class Downsample(Layer):
    """A convolution of stride 2, padded on the right and at the bottom alone, or on all sides."""

    def __init__(self, channels: int, *, symmetric: bool = False) -> None:
        self.conv = Conv2d(channels, channels, stride=2, padding=(1, 1, 1, 1) if symmetric else (0, 1, 0, 1))

    def __call__(self, x: Feature, temb: Array | None = None) -> Feature:
        return self.conv(x)


class Upsample(Layer):
    """Nearest upsampling and a convolution."""

    def __init__(self, channels: int) -> None:
        self.conv = Conv2d(channels, channels)

    def __call__(self, x: Feature, temb: Array | None = None) -> Feature:
        return self.conv(upsample(x))


class Level(Layer):
    """The blocks of one resolution, on the way down or up."""

    def __init__(self, block: list[ResBlock], attn: list[AttentionBlock | SpatialTransformer]) -> None:
        self.block, self.attn = block, attn

    def __call__(self, number: int, x: Feature, temb: Array, text: Text | None) -> Feature:
        """The residual block of that number, then its attention block if the level has attention."""
        x = self.block[number](x, temb)
        return attended(self.attn[number], x, text) if self.attn else x


def attended(block: AttentionBlock | SpatialTransformer, x: Feature, text: Text | None) -> Feature:
    """x after an attention block; a transformer attends to the text too."""
    if isinstance(block, AttentionBlock):
        return block(x)
    assert text is not None  # a model with transformers has the condition
    return block(x, text)


class DownLevel(Level):
    """A level on the way down."""

    downsample: Downsample | ResBlock | None = None


class UpLevel(Level):
    """A level on the way up."""

    upsample: Upsample | ResBlock | None = None


class Middle(Layer):
    """The lowest resolution: block, attention (in most models), block."""

    attn_1: AttentionBlock | SpatialTransformer | None = None

    def __init__(
        self,
        channels: int,
        config: UNetConfig,
        attn_1: AttentionBlock | SpatialTransformer | None,
        *,
        film: bool,
    ) -> None:
        self.block_1 = ResBlock(channels, channels, config, film=film)
        if attn_1 is not None:
            self.attn_1 = attn_1
        self.block_2 = ResBlock(channels, channels, config, film=film)

    def __call__(self, x: Feature, temb: Array, text: Text | None) -> Feature:
        h = self.block_1(x, temb)
        return self.block_2(h if self.attn_1 is None else attended(self.attn_1, h, text), temb)


class UNet(Model):
    """The model of a diffusion model: a noisy image `[N, H, W, C]` in, a prediction out.

    Subclasses define the embedding of time, the change of resolutions, and the meaning of the prediction.
    """

    role = "unet"
    inputs = ("x",)
    diffusion: ClassVar[DiffusionDefaults]
    temb: TimeEmbedding

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        first, *_ = levels = config.levels
        film = self.film
        self.temb = self._time_embedding()
        self.conv_in = Conv2d(config.in_channels, config.channels)
        self.down: list[DownLevel] = []
        middle = self._middle_attention() if config.middle_attention else None
        self.mid = Middle(levels[-1], config, middle, film=film)
        self.up: list[UpLevel] = []

        def attention(level: int, count: int) -> list[AttentionBlock | SpatialTransformer]:
            return [self._attention(level) for _ in range(count if config.attention[level] else 0)]

        channels, skips = config.channels, [config.channels]
        for i, width in enumerate(levels):
            blocks = []
            for _ in range(config.blocks):
                blocks.append(ResBlock(channels, width, config, film=film))
                channels = width
                skips.append(channels)
            down = DownLevel(blocks, attention(i, config.blocks))
            if i < len(levels) - 1:
                down.downsample = self._downsample(channels)
                skips.append(channels)
            self.down.append(down)
        for i, width in reversed(list(enumerate(levels))):
            blocks = []
            for _ in range(config.blocks + 1):
                blocks.append(ResBlock(channels + skips.pop(), width, config, film=film))
                channels = width
            up = UpLevel(blocks, attention(i, config.blocks + 1))
            if i > 0:
                up.upsample = self._upsample(channels)
            self.up.insert(0, up)
        self.norm_out = GroupNorm(first, groups=config.groups, eps=config.eps)
        self.conv_out = Conv2d(first, config.out_channels)

    def forward(self, canvases: dict[str, Feature], conditions: dict[str, Host]) -> Feature:
        x = canvases["x"]
        temb = self.temb(x.run, self.embedded_time(conditions[self.time]))
        text = self._text(x.run, conditions)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for i in range(self.config.blocks):
                h = level(i, h, temb, text)
                skips.append(h)
            if level.downsample is not None:
                h = level.downsample(h, temb)
                skips.append(h)
        h = self.mid(h, temb, text)
        for up in reversed(self.up):
            for i in range(self.config.blocks + 1):
                h = up(i, concat(h, skips.pop()), temb, text)
            if up.upsample is not None:
                h = up.upsample(h, temb)
        return self.conv_out(silu(self.norm_out(h)))

    @property
    def time(self) -> str:
        """The name of the condition that is embedded: `timestep`, `logsnr`."""
        return self.diffusion.time

    def _attention(self, level: int) -> AttentionBlock | SpatialTransformer:
        """An attention block of a level."""
        return AttentionBlock(self.config.levels[level], self.config)

    def _middle_attention(self) -> AttentionBlock | SpatialTransformer:
        """The attention block of the middle."""
        return AttentionBlock(self.config.levels[-1], self.config, norm=self.config.middle_norm)

    def _text(self, run: Run, conditions: dict[str, Host]) -> Text | None:
        """The text that the run is conditioned on; None: the family has no such condition."""
        return None

    # -- defined by subclasses ---------------------------------------------------------------------------

    @property
    def film(self) -> bool:
        """Whether time scales and shifts the norms instead of being added."""
        raise NotImplementedError

    def _time_embedding(self) -> TimeEmbedding:
        raise NotImplementedError

    def _downsample(self, channels: int) -> Downsample | ResBlock:
        raise NotImplementedError

    def _upsample(self, channels: int) -> Upsample | ResBlock:
        raise NotImplementedError

    def embedded_time(self, time: Host) -> Host:
        """The number `[1 or N]` that is embedded for the time `[1 or N]`."""
        return time

    def prediction(self, output: Host, x: Host, time: float) -> Host:
        """The noise in `x` or the image (`diffusion.predicts`) that an output means: float32 `[N, H, W, in_channels]`.

        Pixel by pixel; `output` is the model's output for `x` at `time`.
        """
        raise NotImplementedError

    # -- inputs and images -----------------------------------------------------------------------------

    def encode(self, image: Any, *, base: Inputs | None = None, **conditions: Any) -> Inputs:
        """A noisy image and its time, checked.

        Parameters
        ----------
        image
            Floats `[H, W, C]` or `[N, H, W, C]`, an image in [-1, 1] with noise on it.
        timestep (logsnr, if the model is conditioned on it)
            A number, or one for each sample `[N]`; None: the base's.

        Raises
        ------
        InputError, ShapeError
        """
        unknown = set(conditions) - {self.time}
        if unknown:
            raise InputError(
                f"unknown condition {', '.join(sorted(unknown))}; {self.family} takes {self.time}"
            )
        x = np.asarray(image)
        if not np.issubdtype(x.dtype, np.floating):
            raise InputError(
                f"the noisy image is {x.dtype}, expected floats; for uint8 images, use sparsegen.SDEdit"
            )
        x = x[None] if x.ndim == 3 else x
        channels = self.config.in_channels
        if x.ndim != 4 or not len(x) or x.shape[3] != channels:
            raise ShapeError(
                f"the noisy image is {np.shape(image)}, expected [H, W, {channels}] or [N, H, W, {channels}]"
            )
        self.check_size(*x.shape[1:3])
        with np.errstate(over="ignore"):  # a value too large for float32 becomes inf, which is refused below
            x = np.ascontiguousarray(x, np.float32)
        if not np.isfinite(x).all():
            n, row, column, _ = np.argwhere(~np.isfinite(x))[0]
            raise InputError(
                f"the noisy image is not finite at sample {n}, row {row}, column {column}; scale or repair it"
            )
        given = conditions.get(self.time)
        if given is None:
            if base is None:
                raise InputError(
                    f"no {self.time} is given; {self.family} needs {self.time}= in the first run"
                )
            return Inputs({"x": x}, base.conditions)
        return Inputs({"x": x}, {self.time: self._time(given, len(x))})

    def sizes_near(self, height: int, width: int) -> list[tuple[int, int]]:
        """Supported sizes, the nearest first: sides in multiples of 2 to the number of halvings."""
        return multiples_near(self.unit, height, width)

    def check_size(self, height: int, width: int) -> None:
        """Raises ShapeError, which names the nearest sizes, if images of that size are not supported."""
        if height % self.unit or width % self.unit or not height or not width:
            raise ShapeError(
                f"the image is {height}×{width}; this model needs sides in multiples of {self.unit}, "
                f"the nearest are {named_sizes(self.sizes_near(height, width))}"
            )

    @property
    def unit(self) -> int:
        """The divisor of an image's sides: 2 to the number of halvings."""
        return int(2 ** (len(self.config.levels) - 1))

    def _time(self, given: Any, samples: int) -> Host:
        try:
            time = np.atleast_1d(np.asarray(given, np.float32))
        except (TypeError, ValueError):
            raise InputError(f"{self.time} is {given!r}, expected a number") from None
        if time.shape not in ((1,), (samples,)):
            raise ShapeError(f"{self.time} is {time.shape}, expected one number or ({samples},)")
        if not np.isfinite(time).all():
            raise InputError(f"{self.time} is {given!r}, expected finite numbers")
        return time

    def images(self, output: Host) -> Host:
        """The first three channels of an output (or an image) in [-1, 1] as uint8, rounded; one channel as grey."""
        v = output[..., :3]
        v = v.repeat(3, -1) if v.shape[-1] == 1 else v
        return np.clip(np.rint((v + 1) * 127.5), 0, 255).astype(np.uint8)
