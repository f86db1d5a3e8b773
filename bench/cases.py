"""The timed cases: the layers of the model families and the big GauGANs, each with the targets that it must reach.

A `Case` is a convolution with random values, the same in every process. `Big` is a large GauGAN and its edits.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Case:
    """One convolution, zero padding of `kernel // 2` all around."""

    size: tuple[int, int]
    """Rows and columns of the input."""
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    over_torch: float = 1.0
    """How many times as fast as PyTorch's better layout it must be."""
    over_ncnn: float | None = None
    """How many times as fast as ncnn it must be; None: no target."""

    @property
    def name(self) -> str:
        strided = f"/{self.stride}" if self.stride > 1 else ""
        return (
            f"{self.kernel}×{self.kernel}{strided} {self.size[0]}×{self.size[1]} {self.inputs}→{self.outputs}"
        )

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def output_size(self) -> tuple[int, int]:
        h, w = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in self.size)
        return h, w

    @property
    def macs(self) -> int:
        h, w = self.output_size
        return h * w * self.outputs * self.inputs * self.kernel**2

    def values(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Input `[1, H, W, I]`, weight `[O, I, k, k]` and bias `[O]`, float32; outputs are about ±1."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        x = rng.standard_normal((1, *self.size, self.inputs), np.float32)
        weight = rng.standard_normal((self.outputs, self.inputs, self.kernel, self.kernel), np.float32)
        weight *= np.float32((self.inputs * self.kernel**2) ** -0.5)
        return x, weight, rng.standard_normal(self.outputs, np.float32)


def _family(height: int, width: int, inputs: int, outputs: int) -> Case:
    """The kind of layer that takes most of the work."""
    return Case((height, width), inputs, outputs, over_torch=3.0, over_ncnn=1.2)


LAYERS = (
    _family(256, 256, 128, 128),
    _family(128, 128, 128, 256),
    _family(64, 64, 256, 256),
    _family(32, 32, 512, 512),
    _family(16, 16, 512, 512),
    _family(8, 8, 512, 512),
    _family(256, 512, 128, 64),
    Case((64, 64), 512, 256, kernel=1),
    Case((128, 128), 256, 128, kernel=1),
    Case((256, 512), 128, 64, kernel=1),
    Case((32, 32), 1024, 512, kernel=1),
    Case((16, 16), 512, 1536, kernel=1),
    Case((256, 256), 128, 128, stride=2),
    Case((128, 128), 128, 128, stride=2),
    Case((64, 64), 256, 256, stride=2),
    Case((32, 32), 256, 256, stride=2),
)

QUICK_LAYERS = (_family(16, 16, 8, 16), Case((8, 8), 16, 8, kernel=1), Case((9, 9), 8, 8, stride=2))


def layers(quick: bool) -> tuple[Case, ...]:
    return QUICK_LAYERS if quick else LAYERS


CHECKED_AREA = 0.012
"""The edit that is compared with PyTorch before anything is timed."""


@dataclass(frozen=True)
class Big:
    """A GauGAN of 36 input channels (Cityscapes' labels and the edges), "more", and the areas of its edits."""

    size: tuple[int, int] = (256, 512)
    ngf: int = 64
    nhidden: int = 128
    widths: str = ""
    """Of GAN Compression's generator, which has neither ngf nor nhidden; "": GauGAN."""
    areas: tuple[float, ...] = (0.0, 0.01, 0.012, 0.02, 0.05, 0.10, 0.15, 0.20, 0.50, 1.0)

    policies: tuple[str, ...] = ("paper", "exact")

    semantic_nc = 36

    @property
    def name(self) -> str:
        size = f"{self.size[1]}×{self.size[0]}"
        return f"GAN Compression {size}" if self.widths else f"GauGAN {size}, ngf {self.ngf}"


QUICK_AREAS = (0.0, 0.012, 0.15, 1.0)
BIG = {"gaugan": Big(), "gan-compression": Big(widths="32_32_32_48_32_24_24_32")}
QUICK_BIG = {
    "gaugan": Big((64, 128), ngf=2, nhidden=4, areas=QUICK_AREAS),
    "gan-compression": Big((128, 256), widths="1_2_1_2_2_3_4_4", areas=QUICK_AREAS),
}


def big(quick: bool, case: str = "gaugan") -> Big:
    return (QUICK_BIG if quick else BIG)[case]


def edit_name(area: float, policy: str) -> str:
    """The name of an edit's timings."""
    return f"edit {area:.1%} {policy}"


MEAN = "mean over the steps"


def step_name(area: float, kind: str) -> str:
    """The name of the timings of a kind of denoising step under `fast`, or of their `MEAN`."""
    return f"{edit_name(area, 'fast')}, {kind}"


def rectangle(size: int, area: float, variant: int) -> np.ndarray:
    """bool `[size, size]`: a rectangle of that share of the pixels, at a random place."""
    mask = np.zeros((size, size), bool)
    if area >= 1:
        return ~mask
    rng = np.random.default_rng([variant, round(area * 1e4)])
    pixels = area * size**2
    height = min(size, round(pixels**0.5 * rng.uniform(0.8, 1.25)))
    width = min(size, round(pixels / max(height, 1)))
    top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
    mask[top : top + height, left : left + width] = True
    return mask


@dataclass(frozen=True)
class Unet:
    """A diffusion model with random weights, a noisy image, and the areas of its edits."""

    name: str
    family: str
    """ddpm or pd."""
    size: int
    channels: int
    multipliers: tuple[int, ...]
    attention: tuple[int, ...]
    """Levels, counted from the input's."""
    blocks: int
    time_channels: int
    time: float
    """The timestep, or the logsnr."""
    over_torch: Mapping[float, float]
    """Edited area under `paper` (`DENSE`: a dense run) -> how many times as fast as PyTorch's dense run it must be."""
    over_torch_fast: Mapping[float, float]
    """Edited area under `fast` -> likewise, on average over the steps of a trajectory."""
    macs_fast: float = math.inf
    """The most MACs that a step of an edit of `CHECKED_AREA` may take under `fast`, on average."""
    areas: tuple[float, ...] = (0.0, 0.012, 0.0378, 0.0719, 0.155, 1.0)

    def noisy(self, seed: int = 0) -> np.ndarray:
        """float32 `[size, size, 3]`."""
        return np.random.default_rng(seed).standard_normal((self.size, self.size, 3)).astype(np.float32)

    def strokes(self, area: float, variant: int) -> np.ndarray:
        """bool `[size, size]`: `rectangle`."""
        return rectangle(self.size, area, variant)


DENSE = -1.0
"""The key of a dense run's target among the edited areas."""
FAST_AREAS = (0.012, 0.155)
"""The edited areas of the steps under `fast`."""

UNETS = {
    net.name: net
    for net in (
        Unet(
            "DDPM 256", "ddpm", 256, 128, (1, 1, 2, 2, 4, 4), (4,), 2, 512, 300.0,
            over_torch={DENSE: 3, 0.012: 25, 0.155: 8}, over_torch_fast={0.012: 30, 0.155: 10}, macs_fast=9e9,
        ),
        Unet(
            "PD 128", "pd", 128, 64, (1, 2, 4, 6, 8), (2, 3, 4), 3, 768, 0.5,
            over_torch={0.012: 5}, over_torch_fast={0.012: 8}, macs_fast=6e9,
        ),
        Unet(
            "PD 256", "pd", 256, 64, (1, 1, 2, 4, 6, 8), (3, 4, 5), 3, 768, 0.5,
            over_torch={0.012: 10}, over_torch_fast={0.012: 15},
        ),
    )
}  # fmt: skip


def _tiny(net: Unet, channels: int, areas: tuple[float, ...]) -> Unet:
    return replace(
        net,
        size=32,
        channels=channels,
        multipliers=(1, 2),
        attention=(1,),
        blocks=1,
        time_channels=64,
        areas=areas,
    )


QUICK_UNETS = {
    "DDPM 256": _tiny(UNETS["DDPM 256"], 32, (0.0, 0.012, 1.0)),
    "PD 128": _tiny(UNETS["PD 128"], 64, (0.0, 0.012)),
}


def unets(quick: bool) -> dict[str, Unet]:
    return QUICK_UNETS if quick else UNETS


SDEDIT_STEPS, SDEDIT_LEVEL, SDEDIT_CACHE = 25, 500, "4GB"
SDEDITS = (("paper", "float32"), ("fast", "float32"), ("fast", "float16"))
"""The policies and storages with which SDEdit is timed."""


def sdedit_name(policy: str, storage: str) -> str:
    """The end of the names of an SDEdit session's figures."""
    return policy if storage == "float32" else f"{policy} in {storage}"
