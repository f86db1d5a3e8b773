"""The timed cases of the switches: a backend comes in, a call of one of its primitives, with its output, comes out.

Sizes are those of the model families' layers. All values are random with a fixed seed, the same in every process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from bench import street
from bench.cases import Case
from sparsegen import Session
from sparsegen.backends.interface import Array, Backend, Source, WindowSet
from sparsegen.models import GauGAN, GauGANConfig, PDConfig, ProgressiveDistillation
from sparsegen.tiling.tiles import TileSet
from sparsegen.tools.architectures import with_random_weights


class Prepared(NamedTuple):
    """A case that is ready to be timed."""

    call: Callable[[], Any]
    out: Array
    """The array that a call writes."""
    between: Callable[[], Any] = lambda: None
    """Makes it ready for the next call, untimed."""


@dataclass(frozen=True)
class Layer:
    """A convolution."""

    case: Case
    tiles: int | None = None
    """How many tiles are active, in one corner, as in an edit; None: all."""
    pending: bool = False
    """Whether a norm and a SiLU are pending on its input."""
    cold: bool = False
    """Whether no cache holds its weights and its input when it begins; a network's layers find only the input there."""

    @property
    def name(self) -> str:
        edit = "" if self.tiles is None else f", {self.tiles} tile{'s' * (self.tiles > 1)}"
        return f"{self.case.name}{edit}{', SiLU pending' * self.pending}{', cold weights' * self.cold}"

    def small(self) -> Layer:
        h, w = (min(side, 16) for side in self.case.size)
        inputs, outputs = (min(channels, 16) for channels in (self.case.inputs, self.case.outputs))
        return replace(self, case=replace(self.case, size=(h, w), inputs=inputs, outputs=outputs))

    def prepare(self, backend: Backend) -> Prepared:
        case = self.case
        x, weight, bias = case.values()
        padding = (case.padding,) * 4
        weights = backend.prepare_conv(
            weight, bias, stride=case.stride, padding=padding, size=case.output_size
        )
        source = Source((backend.upload(x),))
        if self.pending:
            scale, shift = (np.full((1, case.inputs), value, np.float32) for value in (0.9, 0.1))
            source = replace(
                source, scale=backend.upload(scale), shift=backend.upload(shift), activation="silu"
            )
        out = backend.alloc((1, *case.output_size, case.outputs))
        tiles = TileSet.full(1, *case.output_size)
        if self.tiles is not None:
            side = math.isqrt(self.tiles - 1) + 1
            corner = tiles.tiles.host[(tiles.tiles.host[:, 1:] < side).all(1)][: self.tiles]
            tiles = TileSet.of_tiles((1, *case.output_size), corner)
        return Prepared(lambda: backend.conv2d(out, tiles.tiles, source, weights), out)


@dataclass(frozen=True)
class Attention:
    """All pixels of a square against all pixels."""

    side: int
    channels: int
    heads: int
    cold = False

    @property
    def name(self) -> str:
        return f"attention {self.side}×{self.side}, {self.heads} × {self.channels // self.heads} channels"

    def small(self) -> Attention:
        return replace(self, side=8, channels=16 * self.heads)

    def prepare(self, backend: Backend) -> Prepared:
        rng = np.random.default_rng(0)
        shape = (1, self.side, self.side, self.channels)
        query, key, value = (
            Source((backend.upload(rng.standard_normal(shape, np.float32)),)) for _ in range(3)
        )
        out, tiles = backend.alloc(shape), TileSet.full(*shape[:3]).tiles
        return Prepared(lambda: backend.attention(out, tiles, query, key, value, heads=self.heads), out)


@dataclass(frozen=True)
class Windows:
    """SPADE's gamma and beta of all distinct windows of a street: 3×3 windows of the codes of 3×3 windows of labels."""

    size: tuple[int, int]
    inputs: int
    outputs: int
    cold = False

    @property
    def name(self) -> str:
        return f"windows of a street {self.size[1]}×{self.size[0]}, {self.inputs}→{self.outputs}"

    def small(self) -> Windows:
        return replace(self, size=(64, 128), inputs=8, outputs=16)

    def prepare(self, backend: Backend) -> Prepared:
        codes, hidden = _numbered(backend, _indices(backend, self.size))
        _, distinct = _numbered(backend, codes)
        windows = distinct.windows.copy()
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((self.outputs, self.inputs, 3, 3), np.float32)
        weight *= np.float32((self.inputs * 9) ** -0.5)
        weights = backend.prepare_conv(weight, None, padding=(1,) * 4, size=(1, 1))
        table = backend.upload(rng.standard_normal((len(hidden), self.inputs), np.float32))
        out = backend.alloc((len(windows), self.outputs))
        return Prepared(lambda: backend.convolve_windows(out, windows, table, weights), out)


@dataclass(frozen=True)
class Numbering:
    """The codes of the 3×3 windows of a street's labels and edges, none of them seen before."""

    size: tuple[int, int]
    cold = False

    @property
    def name(self) -> str:
        return f"numbering the windows of a street {self.size[1]}×{self.size[0]}"

    def small(self) -> Numbering:
        return replace(self, size=(64, 128))

    def prepare(self, backend: Backend) -> Prepared:
        indices = _indices(backend, self.size)
        codes, _ = _numbered(backend, indices)
        return Prepared(lambda: _number(backend, indices, codes), codes)


def _indices(backend: Backend, size: tuple[int, int]) -> Array:
    """int32 `[1, H, W, 2]`: a street's labels and edges."""
    scene = street.street(size=size)
    return backend.upload(np.stack([scene.labels, scene.edges], -1)[None].astype(np.int32))


def _number(backend: Backend, indices: Array, codes: Array) -> WindowSet:
    """The distinct 3×3 windows of `indices`; `codes` is written."""
    _, height, width, planes = indices.shape
    found = WindowSet(9 * planes)
    backend.encode_windows(codes, TileSet.full(1, height, width).tiles, indices, found, kernel=3)
    return found


def _numbered(backend: Backend, indices: Array) -> tuple[Array, WindowSet]:
    codes = backend.upload(np.zeros((*indices.shape[:3], 1), np.int32))
    return codes, _number(backend, indices, codes)


@dataclass(frozen=True)
class DenseStep:
    """A dense step of progressive distillation, as a session repeats it."""

    side: int = 128
    config: PDConfig = field(default_factory=PDConfig)
    cold = False

    @property
    def name(self) -> str:
        return f"dense step of PD {self.side}"

    def small(self) -> DenseStep:
        levels, attention = (8, 16), (False, True)
        config = PDConfig(
            channels=8,
            levels=levels,
            attention=attention,
            blocks=1,
            time_channels=16,
            head_channels=8,
            groups=4,
        )
        return DenseStep(16, config)

    def prepare(self, backend: Backend) -> Prepared:
        session = Session(with_random_weights(ProgressiveDistillation(self.config)), backend)
        x = np.random.default_rng(0).standard_normal((self.side, self.side, 3)).astype(np.float32)
        out: Array = np.empty((1, self.side, self.side, self.config.out_channels), np.float32)

        def call() -> None:
            out[...] = session.run(x, logsnr=0.5).output

        return Prepared(call, out)


@dataclass(frozen=True)
class StreetEdit:
    """Edits of 1.2 % of a street by GauGAN, each new to the session, with their undo between them."""

    policy: str = "paper"
    config: GauGANConfig = field(default_factory=GauGANConfig)
    size: tuple[int, int] = (256, 512)
    cold = False

    @property
    def name(self) -> str:
        policy = "" if self.policy == "paper" else f", {self.policy}"
        return f"edits of 1.2 % of a street {self.size[1]}×{self.size[0]} by GauGAN{policy}"

    def small(self) -> StreetEdit:
        return replace(self, config=replace(self.config, ngf=4, nhidden=8), size=(64, 128))

    def prepare(self, backend: Backend) -> Prepared:
        session = Session(with_random_weights(GauGAN(self.config)), backend, policy=self.policy)
        before = street.street(size=self.size)
        out = session.run(before.labels, instances=before.instances).output.copy()
        scenes = (street.edited(before, 0.012, variant=number) for number in count())
        after, mask = next(scenes)

        def call() -> None:
            out[...] = session.edit(after.labels, instances=after.instances, mask=mask).output

        def between() -> None:
            nonlocal after, mask
            session.undo()
            after, mask = next(scenes)

        return Prepared(call, out, between)


Timed = Layer | Attention | Windows | Numbering | DenseStep | StreetEdit

BIG = Layer(Case((256, 256), 128, 128))
WIDE = Layer(Case((64, 128), 256, 256))
MIDDLE = Layer(Case((64, 64), 256, 256))
DEEP_32, DEEP_16, DEEP_8 = (Layer(Case((side, side), 512, 512)) for side in (32, 16, 8))
FOUR = Layer(Case((16, 16), 512, 512), tiles=4)
TWELVE = Layer(Case((32, 32), 512, 512), tiles=12)
LOWEST = Layer(Case((4, 8), 1024, 1024))
COLD_LOWEST, COLD_8, COLD_FOUR, COLD_TWELVE = (
    replace(layer, cold=True) for layer in (LOWEST, DEEP_8, FOUR, TWELVE)
)
PENDING = Layer(Case((128, 128), 128, 128), pending=True)
PENDING_16 = Layer(Case((16, 16), 384, 384), pending=True, cold=True)
NARROW = Layer(Case((256, 256), 64, 64), pending=True)
FIRST = Layer(Case((256, 256), 3, 128))
POINTS = Layer(Case((256, 256), 256, 128, kernel=1))
BIG_POINTS = Layer(Case((256, 512), 128, 64, kernel=1))
DEEP_POINTS = Layer(Case((16, 16), 512, 512, kernel=1))
WIDE_POINTS = Layer(Case((64, 64), 512, 256, kernel=1))
FEW_POINTS = Layer(Case((16, 16), 128, 128, kernel=1), tiles=4)
ONE_TILE = Layer(Case((16, 16), 128, 128, kernel=1), tiles=1)
STRIDED = Layer(Case((128, 128), 128, 128, stride=2))
ATTENTION_16, ATTENTION_32 = Attention(16, 512, 1), Attention(32, 256, 4)
WINDOWS = Windows((256, 512), 128, 128)
NUMBERING = Numbering((256, 512))
STEP, STREET_EDIT, EXACT_STREET_EDIT = DenseStep(), StreetEdit(), StreetEdit(policy="exact")

CASES: dict[str, Timed] = {
    case.name: case
    for case in (
        *(BIG, WIDE, MIDDLE, DEEP_32, DEEP_16, DEEP_8, TWELVE, FOUR),
        *(COLD_LOWEST, COLD_8, COLD_TWELVE, COLD_FOUR),
        *(
            PENDING,
            PENDING_16,
            NARROW,
            FIRST,
            POINTS,
            BIG_POINTS,
            WIDE_POINTS,
            DEEP_POINTS,
            FEW_POINTS,
            ONE_TILE,
            STRIDED,
        ),
        *(ATTENTION_16, ATTENTION_32, WINDOWS, NUMBERING, STEP, STREET_EDIT, EXACT_STREET_EDIT),
    )
}
"""All cases, by name."""
