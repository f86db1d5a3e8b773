"""Calls of the primitives that write tiles, as a table: a name comes in, a `Case` with its float64 oracle comes out.

Three things are true of every case, whatever the backend (`assert_contract`): its values are the formula's; only the
given tiles of `out` change; a tile's bits do not depend on which tiles are given with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np
from numpy.testing import assert_array_equal

from sparsegen.backends import TILE, Backend, Source
from sparsegen.backends.interface import Activation, Array, Host, Padding, Tiles
from tests.oracles import naive
from tests.tolerances import check

ACTIVATIONS: tuple[Activation, ...] = (
    *("identity", "relu", "leaky_relu", "silu", "gelu", "quick_gelu", "tanh"),
)
"""Those of each value alone."""
Shared = Literal["shared", "per sample"]


class Uploads:
    """Uploads to a backend, and remembers what was given: no primitive may change its inputs."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.given: list[tuple[Array, Host]] = []

    def __call__(self, host: Host | None) -> Array:
        if host is None:
            return None
        array = self.backend.upload(host)
        if isinstance(array, np.ndarray):  # what is only read may be read-only
            array.setflags(write=False)
        self.given.append((array, host))
        return array

    def source(self, host: Source | None) -> Source | None:
        """A source of NumPy arrays as one of the backend's."""
        if host is None:
            return None
        return replace(
            host,
            parts=tuple(self(part) for part in host.parts),
            scale=self(host.scale),
            shift=self(host.shift),
            modulation=self(host.modulation),
            codes=self(host.codes),
        )

    def assert_untouched(self) -> None:
        for array, host in self.given:
            assert_array_equal(self.backend.download(array), host)


@dataclass(frozen=True, eq=False)
class Case:
    """One call of a primitive that writes tiles of `out`, and what all tiles must then hold."""

    tolerance: str
    oracle: Host
    """float64 `[N, H, W, C]`."""
    largest: float
    """The largest value before an activation: what rounding is relative to."""
    launch: Callable[[Uploads, Array, Host], None]
    """`launch(put, out, tiles)` uploads the inputs and calls the primitive."""

    def run(self, backend: Backend, tiles: Tiles) -> Host:
        """The whole canvas after writing `tiles` into one full of NaN (which spreads, should it be read)."""
        put = Uploads(backend)
        out = backend.upload(np.full(self.oracle.shape, np.nan, np.float32))
        self.launch(put, out, tiles)
        backend.synchronize()
        put.assert_untouched()
        return backend.download(out)

    @property
    def tiles(self) -> Tiles:
        return all_tiles(*self.oracle.shape[:3])


def all_tiles(samples: int, height: int, width: int) -> Tiles:
    """Every tile of a canvas."""
    grid = (samples, -(-height // TILE), -(-width // TILE))
    return Tiles(np.array(list(np.ndindex(grid)), np.int32).reshape(-1, 3))


def inside(tiles: Tiles, shape: tuple[int, ...]) -> Host:
    """bool `[N, H, W]`: the pixels that `tiles` cover."""
    covered = np.zeros(shape[:3], bool)
    for n, row, column in tiles.host:
        covered[n, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = True
    return covered


def assert_same_bits(result: Host, expected: Host) -> None:
    """Equal to the last bit, NaNs and zeros' signs included."""
    assert_array_equal(result.view(np.int32), expected.view(np.int32))


def assert_contract(case: Case, backend: Backend, rng: np.random.Generator) -> None:
    """The three properties of every case, and that no tile at all writes nothing."""
    tiles = case.tiles
    full = case.run(backend, tiles)
    check(case.tolerance, full, case.oracle, largest=case.largest)
    blank = np.full(full.shape, np.nan, np.float32)
    some = rng.permutation(tiles.host)[: rng.integers(1, len(tiles) + 1)]
    for subset in map(Tiles, (some, some[:1], some[:0])):
        covered = inside(subset, full.shape)[..., None]
        assert_same_bits(case.run(backend, subset), np.where(covered, full, blank))


# -- making cases ----------------------------------------------------------------------------------------


def normal(rng: np.random.Generator, *shape: int, mean: float = 0.0, std: float = 1.0) -> Host:
    return (mean + std * rng.standard_normal(shape)).astype(np.float32)


def changed_canvas(
    rng: np.random.Generator,
    backend: Backend,
    samples: int,
    size: tuple[int, int],
    channels: int,
    *,
    half: bool,
) -> tuple[Array, Host]:
    """A canvas on the backend as it was, kept as float16 if `half`, and on the host as it is."""
    before, after = (normal(rng, samples, *size, channels) for _ in range(2))
    canvas = backend.upload(before)
    if not half:
        return canvas, after
    halves, watch = backend.alloc(before.shape, dtype="float16"), backend.watch_run()
    backend.narrow_tiles(halves, canvas, all_tiles(samples, *size), watch=watch, layer=0)
    assert watch.first_watched() is None
    return halves, after


def make_source(
    rng: np.random.Generator,
    *,
    samples: int = 1,
    size: tuple[int, int] = (9, 10),
    channels: tuple[int, ...] = (4,),
    upsample: int = 1,
    scale: Shared | None = None,
    modulation: Literal["by pixel", "by code"] | None = None,
    activation: Activation = "identity",
) -> Source:
    """Canvases of `size` with every pending step that is asked for."""
    total, rows = sum(channels), samples if scale == "per sample" else 1
    read = (samples, size[0] * upsample, size[1] * upsample)
    return Source(
        tuple(normal(rng, samples, *size, c) for c in channels),
        upsample,
        normal(rng, rows, total, mean=1, std=0.3) if scale else None,
        normal(rng, rows, total, std=0.5) if scale else None,
        normal(rng, *((7,) if modulation == "by code" else read), 2 * total, std=0.5) if modulation else None,
        activation,
        rng.integers(0, 7, (*read, 1), dtype=np.int32) if modulation == "by code" else None,
    )


def conv_case(
    *,
    outputs: int = 5,
    kernel: tuple[int, int] = (3, 3),
    stride: int = 1,
    padding: Padding = (1, 1, 1, 1),
    groups: int = 1,
    bias: bool = True,
    shift: Shared | None = None,
    residual: Literal["plain", "upsampled", "pending"] | None = None,
    activation: Activation = "identity",
    prologue: Activation = "identity",
    seed: int = 0,
    **source_options: Any,
) -> Case:
    rng = np.random.default_rng(seed)
    source = make_source(rng, activation=prologue, **source_options)
    samples, inputs = source.shape[0], source.shape[3]
    fan_in = inputs // groups * kernel[0] * kernel[1]
    weight = normal(rng, outputs, inputs // groups, *kernel, std=fan_in**-0.5)
    offset = normal(rng, outputs) if bias else None
    v = naive.conv2d(naive.read(source), weight, stride=stride, padding=padding, groups=groups)
    if offset is not None:
        v += offset
    extra = normal(rng, samples if shift == "per sample" else 1, outputs) if shift else None
    if extra is not None:
        v += extra[:, None, None]
    added = None
    if residual is not None:
        factor = 2 if residual == "upsampled" else 1
        added = make_source(
            rng,
            samples=samples,
            size=(v.shape[1] // factor, v.shape[2] // factor),
            channels=(outputs - 1, 1) if residual == "pending" and outputs > 1 else (outputs,),
            upsample=factor,
            scale="shared" if residual == "pending" else None,
            modulation="by pixel" if residual == "pending" else None,
            activation="silu" if residual == "pending" else "identity",
        )
        v += naive.read(added)

    def launch(put: Uploads, out: Array, tiles: Tiles) -> None:
        weights = put.backend.prepare_conv(weight, offset, stride=stride, padding=padding, groups=groups)
        put.backend.conv2d(
            out,
            tiles,
            put.source(source),
            weights,
            shift=put(extra),
            residual=put.source(added),
            activation=activation,
        )

    return Case("conv2d", naive.activate(v, activation), float(np.abs(v).max()), launch)


def lookup_case(
    *,
    samples: int = 1,
    size: tuple[int, int] = (9, 10),
    planes: int = 1,
    labels: int = 6,
    outputs: int = 5,
    kernel: int = 3,
    step: int = 1,
    activation: Activation = "identity",
    seed: int = 0,
) -> Case:
    """`size` is the output's; the map of indices is `step` times as large."""
    rng = np.random.default_rng(seed)
    indices = rng.integers(-1, labels, (samples, size[0] * step, size[1] * step, planes), dtype=np.int32)
    table = normal(rng, kernel * kernel, labels, outputs, std=1 / kernel)
    bias = normal(rng, outputs)
    weight = table.reshape(kernel, kernel, labels, outputs).transpose(3, 2, 0, 1)
    half = kernel // 2
    v = naive.conv2d(naive.one_hot(indices, labels, step=step), weight, padding=(half,) * 4) + bias

    def launch(put: Uploads, out: Array, tiles: Tiles) -> None:
        put.backend.lookup(out, tiles, put(indices), put(table), put(bias), step=step, activation=activation)

    return Case("lookup", naive.activate(v, activation), float(np.abs(v).max()), launch)


def attention_case(
    *,
    samples: int = 1,
    size: tuple[int, int] = (5, 6),
    tokens: tuple[int, int] = (5, 6),
    channels: int = 8,
    heads: int = 1,
    pending: bool = False,
    sharpness: float = 1.0,
    causal: bool = False,
    one_key: bool = False,
    seed: int = 0,
) -> Case:
    """`one_key`: keys and values are of one sample, for all."""
    rng = np.random.default_rng(seed)
    pending_work: dict[str, Any] = {"scale": "per sample", "modulation": "by pixel"} if pending else {}
    query, key, value = (
        make_source(rng, samples=n, size=s, channels=(channels,), **pending_work)
        for n, s in ((samples, size), *(((1 if one_key else samples), tokens),) * 2)
    )
    query = replace(query, parts=(query.parts[0] * np.float32(sharpness),))
    v = naive.attention(*map(naive.read, (query, key, value)), heads=heads, causal=causal)

    def launch(put: Uploads, out: Array, tiles: Tiles) -> None:
        q, k, w = (put.source(s) for s in (query, key, value))
        put.backend.attention(out, tiles, q, k, w, heads=heads, causal=causal)

    largest = float(np.abs(naive.read(value)).max())
    return Case("attention" if sharpness == 1 else "attention, large scores", v, largest, launch)


def combined_source(
    rng: np.random.Generator,
    work: Literal["layer norm", "geglu"],
    *,
    channels: int,
    samples: int = 1,
    size: tuple[int, int] = (5, 6),
    mean: float = 0.0,
) -> Source:
    """A source whose values depend on all channels of their pixel; it has `channels` as it is read."""
    if work == "geglu":
        return make_source(rng, samples=samples, size=size, channels=(2 * channels,), activation="geglu")
    source = make_source(rng, samples=samples, size=size, channels=(channels,), scale="shared")
    return replace(source, parts=(source.parts[0] + np.float32(mean),), layer_eps=1e-5)


def combined_case(
    work: Literal["layer norm", "geglu"],
    *,
    outputs: int = 0,
    residual: bool = False,
    activation: Activation = "identity",
    seed: int = 0,
    **source_options: Any,
) -> Case:
    """Written out; or with `outputs` read by a 1×1 convolution of so many outputs."""
    rng = np.random.default_rng(seed)
    source = combined_source(rng, work, **source_options)
    weight = normal(rng, outputs, source.shape[3], 1, 1, std=source.shape[3] ** -0.5)
    bias = normal(rng, outputs)
    v = read = naive.read(source)
    if outputs:
        v = naive.conv2d(v, weight) + bias
    added = make_source(rng, samples=len(v), size=v.shape[1:3], channels=(v.shape[3],)) if residual else None
    if added is not None:
        v = v + naive.read(added)

    def launch(put: Uploads, out: Array, tiles: Tiles) -> None:
        if not outputs:
            put.backend.pointwise(out, tiles, put.source(source), residual=put.source(added))
            return
        weights = put.backend.prepare_conv(weight, bias, size=out.shape[1:3])
        put.backend.conv2d(
            out, tiles, put.source(source), weights, residual=put.source(added), activation=activation
        )

    name = f"{work}, large mean" if source_options.get("mean") else work
    largest = float(max(np.abs(v).max(), np.abs(read).max()))
    return Case(name, naive.activate(v, activation), largest, launch)


def pointwise_case(*, residual: dict[str, Any] | None = None, seed: int = 0, **source_options: Any) -> Case:
    rng = np.random.default_rng(seed)
    source = make_source(rng, **source_options)
    added = None if residual is None else make_source(rng, **residual)
    linear = naive.read(replace(source, activation="identity"))
    v = naive.activate(linear, source.activation)
    if added is not None:
        v = v + naive.read(added)

    def launch(put: Uploads, out: Array, tiles: Tiles) -> None:
        put.backend.pointwise(out, tiles, put.source(source), residual=put.source(added))

    return Case("pointwise", v, float(max(np.abs(linear).max(), np.abs(v).max())), launch)


def write_tiles_case(*, samples: int = 2, size: tuple[int, int] = (9, 10), channels: int = 3) -> Case:
    """Tiles `[K, TILE, TILE, C]` cut out of a canvas by hand, NaN where they overhang it."""
    canvas = normal(np.random.default_rng(0), samples, *size, channels)

    def launch(put: Uploads, out: Array, tiles: Tiles) -> None:
        values = np.full((len(tiles), TILE, TILE, channels), np.nan, np.float32)
        for k, (n, row, column) in enumerate(tiles.host):
            cut = canvas[n, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            values[k, : cut.shape[0], : cut.shape[1]] = cut
        put.backend.write_tiles(out, tiles, put(values))

    return Case("copy", canvas.astype(np.float64), 1.0, launch)


# -- the table -------------------------------------------------------------------------------------------

CASES: dict[str, Callable[[], Case]] = {
    # geometry
    "conv 3×3": conv_case,
    "conv 3×3, no bias": partial(conv_case, bias=False),
    "conv 3×3, whole tiles": partial(conv_case, size=(8, 12)),
    "conv 3×3, smaller than a tile": partial(conv_case, size=(1, 2)),
    "conv 3×3, one channel": partial(conv_case, channels=(1,), outputs=1),
    "conv 3×3, three samples": partial(conv_case, samples=3, size=(6, 5)),
    "conv 3×3, many tiles": partial(conv_case, size=(38, 41), channels=(6,), outputs=7),
    "conv 3×3, many channels": partial(conv_case, size=(7, 8), channels=(128,), outputs=72),
    "conv 3×3, odd channels": partial(conv_case, size=(7, 8), channels=(37,), outputs=19),
    "conv 3×3, without padding": partial(conv_case, padding=(0, 0, 0, 0)),
    "conv 3×3, wide padding": partial(conv_case, padding=(2, 2, 2, 2), size=(5, 3)),
    "conv 3×3, padded right and bottom": partial(conv_case, padding=(0, 1, 0, 1), stride=2, size=(10, 12)),
    "conv 3×3, padded left and top": partial(conv_case, padding=(2, 0, 1, 0)),
    "conv 3×3, stride 2": partial(conv_case, stride=2, samples=2, size=(17, 12)),
    "conv 1×1": partial(conv_case, kernel=(1, 1), padding=(0, 0, 0, 0), samples=2),
    "conv 1×1, padded right and bottom": partial(
        conv_case, kernel=(1, 1), padding=(0, 3, 0, 5), size=(6, 7), channels=(20,)
    ),
    "conv 1×1, upsampled, concatenated, many tiles": partial(
        conv_case, kernel=(1, 1), padding=(0, 0, 0, 0), size=(13, 9), channels=(33, 20), upsample=2, samples=2
    ),
    "conv 1×1, stride 2": partial(conv_case, kernel=(1, 1), padding=(0, 0, 0, 0), stride=2),
    "conv 1×1, stride 2, pending work, tiles side by side": partial(
        conv_case,
        kernel=(1, 1),
        padding=(0, 0, 0, 0),
        stride=2,
        size=(12, 40),
        scale="shared",
        prologue="silu",
    ),
    "conv 1×1, many channels": partial(
        conv_case, kernel=(1, 1), padding=(0, 0, 0, 0), size=(7, 8), channels=(130,), outputs=66
    ),
    "conv 5×5": partial(conv_case, kernel=(5, 5), padding=(2, 2, 2, 2)),
    "conv 5×5, stride 2, padded unevenly": partial(conv_case, kernel=(5, 5), padding=(1, 3, 0, 4), stride=2),
    "conv 3×1": partial(conv_case, kernel=(3, 1), padding=(1, 1, 0, 0)),
    "conv 3×3, groups": partial(conv_case, channels=(6,), outputs=9, groups=3, samples=2),
    "conv 3×3, depthwise": partial(conv_case, channels=(11,), outputs=11, groups=11),
    "conv 3×3, depthwise, two outputs each": partial(conv_case, channels=(4,), outputs=8, groups=4, stride=2),
    "conv 5×5, depthwise": partial(
        conv_case, kernel=(5, 5), padding=(2, 2, 2, 2), channels=(8,), outputs=8, groups=8
    ),
    # reading
    "conv 3×3, upsampled": partial(conv_case, upsample=2, size=(5, 4), samples=2),
    "conv 5×1, stride 2, upsampled, padded right": partial(
        conv_case,
        kernel=(5, 1),
        padding=(2, 3, 2, 0),
        upsample=2,
        size=(9, 7),
        stride=2,
        channels=(4,),
        outputs=3,
    ),
    "conv 1×5, stride 3, padded below": partial(conv_case, kernel=(1, 5), padding=(0, 3, 1, 2), stride=3),
    "conv 2×1, stride 2, in two groups": partial(
        conv_case,
        kernel=(2, 1),
        padding=(1, 2, 2, 3),
        stride=2,
        size=(6, 7),
        channels=(6,),
        outputs=8,
        groups=2,
    ),
    "conv 3×3, upsampled, stride 2": partial(conv_case, upsample=2, size=(5, 7), stride=2),
    "conv 1×1, upsampled": partial(conv_case, kernel=(1, 1), padding=(0, 0, 0, 0), upsample=2, size=(5, 4)),
    "conv 3×3, concatenated": partial(conv_case, channels=(3, 6), samples=2),
    "conv 3×3, concatenated, upsampled": partial(conv_case, channels=(3, 5), upsample=2, size=(4, 5)),
    "conv 3×3, concatenated across groups": partial(conv_case, channels=(3, 5), outputs=6, groups=2),
    "conv 3×3, scale of all samples": partial(conv_case, scale="shared", samples=2),
    "conv 3×3, scale per sample": partial(conv_case, scale="per sample", samples=3, size=(6, 7)),
    "conv 3×3, modulated": partial(conv_case, modulation="by pixel", samples=2),
    "conv 3×3, modulated by code": partial(conv_case, modulation="by code", samples=2),
    "conv 3×3, modulated by code, many channels": partial(
        conv_case,
        modulation="by code",
        channels=(19, 14),
        outputs=21,
        upsample=2,
        size=(7, 8),
        residual="pending",
    ),
    "conv 1×1, modulated by code": partial(
        conv_case, kernel=(1, 1), padding=(0, 0, 0, 0), modulation="by code", channels=(37,), samples=2
    ),
    **{f"conv 3×3, prologue {a}": partial(conv_case, prologue=a, size=(6, 7)) for a in ACTIVATIONS},
    "conv 3×3, whole prologue": partial(
        conv_case,
        samples=2,
        channels=(3, 4),
        upsample=2,
        size=(5, 4),
        scale="per sample",
        modulation="by pixel",
        prologue="leaky_relu",
    ),
    # epilogue
    "conv 3×3, shift of all samples": partial(conv_case, shift="shared", samples=2),
    "conv 3×3, shift per sample": partial(conv_case, shift="per sample", samples=3, size=(6, 7)),
    "conv 3×3, residual": partial(conv_case, residual="plain", samples=2),
    "conv 3×3, residual upsampled": partial(conv_case, residual="upsampled", size=(6, 10), samples=2),
    "conv 3×3, residual with pending work": partial(conv_case, residual="pending"),
    "conv 1×1, whole epilogue": partial(
        conv_case,
        kernel=(1, 1),
        padding=(0, 0, 0, 0),
        shift="per sample",
        residual="upsampled",
        size=(6, 10),
        samples=2,
    ),
    **{
        f"conv 3×3, then {a}": partial(conv_case, activation=a, residual="plain", shift="shared", size=(6, 7))
        for a in ACTIVATIONS
    },
    # indices
    **{
        f"lookup {k}×{k}, step {step}, planes {planes}": partial(
            lookup_case, kernel=k, step=step, planes=planes, size=(6, 9)
        )
        for k in (1, 3, 5)
        for step in (1, 2, 4)
        for planes in (1, 2)
    },
    "lookup, two samples": partial(lookup_case, samples=2, activation="relu"),
    "lookup, one label": partial(lookup_case, labels=1, outputs=1, size=(1, 1)),
    "lookup, many outputs": partial(lookup_case, labels=36, outputs=131, planes=2, size=(5, 6)),
    **{f"lookup, {a}": partial(lookup_case, activation=a, size=(5, 6)) for a in ACTIVATIONS},
    # tokens
    "attention": attention_case,
    "attention, two samples": partial(attention_case, samples=2),
    "attention, heads": partial(attention_case, channels=12, heads=3),
    "attention, other tokens": partial(attention_case, tokens=(3, 11), samples=2, heads=2),
    "attention, one token": partial(attention_case, size=(1, 1), tokens=(1, 1)),
    "attention, pending work": partial(attention_case, pending=True, samples=2),
    "attention, large scores": partial(attention_case, sharpness=20.0),
    "attention, causal": partial(attention_case, causal=True, channels=12, heads=3, samples=2),
    "attention, causal, whole tiles": partial(attention_case, causal=True, size=(4, 8), tokens=(4, 8)),
    "attention, one prompt for all": partial(
        attention_case, one_key=True, samples=2, size=(6, 5), tokens=(7, 11), channels=80, heads=2
    ),
    **{
        f"attention, heads of {size}": partial(
            attention_case, channels=2 * size, heads=2, size=(6, 7), tokens=(6, 7), samples=2
        )
        for size in (32, 40, 64, 80, 160)
    },
    # work that combines the channels of a pixel
    "layer norm": partial(combined_case, "layer norm", channels=70, samples=2),
    "layer norm, few channels": partial(combined_case, "layer norm", channels=3, size=(9, 10)),
    "layer norm, large mean": partial(combined_case, "layer norm", channels=32, mean=30.0),
    "layer norm, residual": partial(combined_case, "layer norm", channels=32, residual=True),
    "layer norm, 1×1": partial(combined_case, "layer norm", channels=40, outputs=19, samples=2, size=(9, 10)),
    "layer norm, 1×1, many channels": partial(
        combined_case, "layer norm", channels=320, outputs=130, residual=True, activation="quick_gelu"
    ),
    "geglu": partial(combined_case, "geglu", channels=35, samples=2),
    "geglu, few channels": partial(combined_case, "geglu", channels=1, size=(9, 10)),
    "geglu, 1×1": partial(combined_case, "geglu", channels=40, outputs=19, samples=2, size=(9, 10)),
    "geglu, 1×1, many channels": partial(combined_case, "geglu", channels=320, outputs=66, residual=True),
    # one pixel to one pixel
    "pointwise": pointwise_case,
    "pointwise, one pixel": partial(pointwise_case, size=(1, 1), channels=(1,)),
    **{f"pointwise, {a}": partial(pointwise_case, activation=a, scale="shared") for a in ACTIVATIONS},
    "pointwise, whole prologue": partial(
        pointwise_case,
        samples=2,
        channels=(3, 4),
        upsample=2,
        size=(5, 3),
        scale="per sample",
        modulation="by pixel",
        activation="silu",
    ),
    "pointwise, modulated by code": partial(pointwise_case, modulation="by code", samples=2, upsample=2),
    "pointwise, residual": partial(
        pointwise_case,
        samples=2,
        size=(6, 10),
        activation="tanh",
        residual={"samples": 2, "size": (3, 5), "upsample": 2, "scale": "shared", "activation": "relu"},
    ),
    "write tiles": write_tiles_case,
}


@cache
def build(name: str) -> Case:
    """The case of that name; its oracle is computed once for all backends."""
    return CASES[name]()
