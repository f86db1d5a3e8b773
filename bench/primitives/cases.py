"""The timed cases as a table: a primitive, the network whose shape it has, sizes, and which tiles are active."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from sparsegen.backends.interface import TILE, Tiles

Prologue = Literal["", "silu", "codes", "layer norm", "geglu"]
Active = Literal["edit", "dense", ""]
"""A square of about 1.2 % of the tiles; all tiles; or the primitive takes none."""

SIDE = 0.11
"""Of the square of an edit, as a share of each side of the image."""


@dataclass(frozen=True)
class Case:
    """One call of a primitive, as a network of this project makes it."""

    primitive: str
    """A method of `Backend`."""
    network: str
    size: tuple[int, int]
    """Rows and columns of what is written, or read by a primitive that writes no canvas."""
    channels: int
    """Of the input."""
    outputs: int = 0
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    prologue: Prologue = ""
    heads: int = 1
    tokens: tuple[int, int] | None = None
    """Rows and columns of an attention's keys; None: those of the queries."""
    rows: int = 0
    """Of a codebook, of a dense layer's input, or canvases in one call."""
    active: Active = ""

    @property
    def name(self) -> str:
        """In ASCII, for pytest escapes other letters."""
        height, width = self.size
        words = {
            f"{self.primitive}: {self.network}": True,
            f"{self.kernel}x{self.kernel}": self.kernel > 1,
            f"/{self.stride}": self.stride > 1,
            f"{self.channels} to {self.outputs}" if self.outputs else f"{self.channels}": True,
            f"at {height}x{width}": height * width > 1,
            f"{self.tokens and np.prod(self.tokens)} tokens": self.tokens,
            f"after {self.prologue}": self.prologue,
            f", {self.active}": self.active,
        }
        return " ".join(word for word, shown in words.items() if shown).replace(" ,", ",")

    @property
    def tiles(self) -> Tiles:
        """The active tiles; of a primitive without tiles, all of them."""
        grid = [-(-side // TILE) for side in self.size]
        chosen = [max(1, round(SIDE * n)) if self.active == "edit" else n for n in grid]
        rows, columns = (np.arange(some) + (n - some) // 2 for n, some in zip(grid, chosen, strict=True))
        y, x = np.meshgrid(rows, columns, indexing="ij")
        return Tiles(np.stack([np.zeros_like(y), y, x], -1).reshape(-1, 3))

    @property
    def tiny(self) -> Case:
        """The same call with a few pixels and channels."""
        small = {"size": (8, 12), "channels": 8 * self.heads, "groups": 8 if self.groups > 1 else 1}
        if self.outputs:
            small["outputs"] = 8 * self.heads
        return replace(self, **small, rows=min(self.rows, 5), tokens=(2, 3) if self.tokens else None)


def _case(primitive: str, network: str, size: int | tuple[int, int], *channels: int, **more: Any) -> Case:
    """`size` is a square's side, or rows and columns; `channels` are inputs and outputs."""
    return Case(primitive, network, (size, size) if isinstance(size, int) else size, *channels, **more)


GAUGAN, MOBILE, DDPM, SD = "GauGAN", "GAN Compression", "DDPM 256", "Stable Diffusion"
STREET = (256, 512)

# by tiles: each is timed for an edit and for a dense run
_BY_TILES = (
    _case("conv2d", GAUGAN, STREET, 128, 64, kernel=3, prologue="codes", rows=1000),
    _case("conv2d", DDPM, 256, 128, 128, kernel=3, prologue="silu"),
    _case("conv2d", DDPM, 64, 256, 256, kernel=3, prologue="silu"),
    _case("conv2d", DDPM, 16, 512, 512, kernel=3, prologue="silu"),
    _case("conv2d", DDPM, 8, 512, 512, kernel=3, prologue="silu"),
    _case("conv2d", DDPM, 128, 256, 128),
    _case("conv2d", DDPM, 128, 128, 128, kernel=3, stride=2),
    _case("conv2d", SD, 64, 320, 320, kernel=3, prologue="silu"),
    _case("conv2d", SD, 16, 1280, 1280, kernel=3, prologue="silu"),
    _case("conv2d", SD, 64, 320, 2560, prologue="layer norm"),
    _case("conv2d", SD, 32, 2560, 640, prologue="geglu"),
    _case("conv2d", MOBILE, STREET, 64, 64, kernel=3, groups=64, prologue="codes", rows=1000),
    _case("pointwise", DDPM, 256, 128, prologue="silu"),
    _case("pointwise", GAUGAN, STREET, 64, prologue="codes", rows=1000),
    _case("lookup", GAUGAN, STREET, 36, 128, kernel=3),
    _case("attention", DDPM, 16, 512),
    _case("attention", SD, 64, 320, heads=8),
    _case("attention", SD, 64, 320, heads=8, tokens=(7, 11)),
    _case("encode_windows", GAUGAN, STREET, 36, kernel=5),
    _case("sum_change", DDPM, 128, 128),
    *(
        _case(primitive, DDPM, 256, 128)
        for primitive in (
            *("read_tiles", "write_tiles", "merge_tiles", "add_tiles", "tile_change", "narrow_tiles"),
            *("widen_tiles", "watch_run", "find_non_finite", "largest_change"),
        )
    ),
    _case("read_many_tiles", SD, 64, 320, rows=20),
    _case("write_many_tiles", SD, 64, 320, rows=20),
)

# on whole canvases, or on a few rows: an edit calls them as a dense run does
_WHOLE = (
    _case("prepare_conv", DDPM, 16, 512, 512, kernel=3),
    _case("prepare_conv", GAUGAN, STREET, 128, 64, kernel=3),
    _case("upload_weight", SD, 1, 1280, 1280),
    _case("linear", SD, 1, 1280, 1280, rows=2),
    _case("linear", DDPM, 1, 512, 256, rows=1),
    _case("conv2d_measured", DDPM, 256, 128, 128, kernel=3, prologue="silu"),
    _case("channel_moments", DDPM, 256, 128),
    _case("channel_moments", SD, 64, 320, prologue="silu"),
    _case("coded_moments", GAUGAN, STREET, 64, rows=4000),
    _case("second_moments", SD, 1, 1280, rows=2),
    _case("join_channels", SD, 1, 640, rows=2),
    _case("follow_moments", SD, 64, 320, rows=1),
    _case("norm_affine", SD, 1, 320, groups=32, rows=2),
    _case("norm_affine", DDPM, 1, 128, groups=32, rows=1),
    _case("forget_windows", GAUGAN, (64, 128), 36, kernel=5),
    _case("convolve_windows", GAUGAN, 1, 128, 128, kernel=3, rows=4000),
    _case("copy_arrays", SD, 64, 320, rows=8),
)

CASES = tuple(replace(case, active=active) for case in _BY_TILES for active in ("edit", "dense")) + _WHOLE

NOT_TIMED = {
    "alloc": "zeros of the array module",
    "alloc_in_ram": "zeros of the array module",
    "memory_left": "a number",
    "upload": "the array module's copy",
    "download": "the array module's copy",
    "fetch": "the array module's copy",
    "warm_up": "compiles; bench.startup times it",
    "queue": "computes nothing; every run of a network is within one",
    "synchronize": "ends every timed call",
    "record": "queues nothing; edits of the networks time its replays",
    "conv_layout": "a choice",
}
"""Methods of a backend that compute nothing per call, and why."""


def cases_of(backend: str) -> Iterator[Case]:
    """The cases to time on a backend: the reference's dense runs take minutes."""
    for case in CASES:
        if backend != "reference" or case.active != "dense":
            yield case
