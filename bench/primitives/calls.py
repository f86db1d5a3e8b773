"""Calls of primitives: a case and a backend come in; arrays are made, and a call comes out that returns its results.

`check` holds the results to the reference backend's, of a case's first tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from bench.contest import TOLERANCE, WrongResult
from sparsegen.backends.interface import TILE, Array, Backend, ConvWeights, Host, Source, Tiles, WindowSet
from sparsegen.backends.reference import ReferenceBackend

from .cases import Case

Call = Callable[[], Any]
"""Calls a primitive once, and returns what it wrote or made: arrays of the backend, in tuples or lists, or None."""

CHECKED = 6
"""Tiles that are compared with the reference, which is slow: the first of a case."""


@dataclass(eq=False)
class Bench:
    """What a call is made of: random arrays on a backend, the same on each; of fewer tiles, the first values."""

    case: Case
    backend: Backend
    tiles: Tiles
    _seeds: Iterator[int] = field(default_factory=count)

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(next(self._seeds))

    def host(self, *shape: int, scale: float = 1.0) -> Host:
        """Normal values."""
        return self._rng().standard_normal(shape, np.float32) * np.float32(scale)

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        return self.backend.upload(self.host(*shape, scale=scale))

    def indices(self, *shape: int, below: int) -> Array:
        """int32, of 0 or more."""
        return self.backend.upload(self._rng().integers(0, below, shape, np.int32))

    def canvas(self, channels: int | None = None, *, times: int = 1) -> Array:
        """Of the case's size, or `times` as many rows and columns."""
        height, width = self.case.size
        return self.normal(1, height * times, width * times, channels or self.case.channels)

    def old(self) -> Array:
        """Values of the tiles, as `read_tiles` gives them."""
        return self.normal(len(self.tiles), TILE, TILE, self.case.channels)

    def labels(self) -> Array:
        """A map of squares of one label, as large as the things in a street."""
        height, width = self.case.size
        coarse = self._rng().integers(0, self.case.channels, (1, height // 4, width // 4, 1), np.int32)
        return self.backend.upload(coarse.repeat(4, 1).repeat(4, 2))

    def source(self) -> Source:
        """The case's input, with its prologue pending."""
        c = self.case
        part = self.canvas(c.channels * (2 if c.prologue == "geglu" else 1), times=c.stride)
        if c.prologue in ("", "geglu"):
            return Source((part,), activation=c.prologue or "identity")
        scale, shift = (self.normal(1, c.channels, scale=0.5) for _ in range(2))
        if c.prologue == "layer norm":
            return Source((part,), scale=scale, shift=shift, layer_eps=1e-5)
        if c.prologue == "silu":
            return Source((part,), scale=scale, shift=shift, activation="silu")
        book = self.normal(c.rows, 2 * c.channels, scale=0.5)
        codes = self.indices(1, *c.size, 1, below=c.rows)
        return Source((part,), 1, scale, shift, book, "leaky_relu", codes)

    def weights(self, size: tuple[int, int] | None = None) -> ConvWeights:
        """Of the case's convolution; outputs are about ±1."""
        c = self.case
        inputs, padding = c.channels // c.groups, (c.kernel // 2,) * 4
        weight = self.host(c.outputs, inputs, c.kernel, c.kernel, scale=(inputs * c.kernel**2) ** -0.5)
        settings: dict[str, Any] = {"stride": c.stride, "padding": padding, "groups": c.groups}
        return self.backend.prepare_conv(weight, self.host(c.outputs), size=size or c.size, **settings)

    def moments(self, dtype: Any = np.float32) -> tuple[Array, Array]:
        """The means of v and of v² of channels."""
        mean = self.host(self.case.rows, self.case.channels).astype(dtype)
        pair = (
            self.backend.upload(mean.astype(np.float32)),
            self.backend.upload((1 + mean**2).astype(np.float32)),
        )
        return pair if dtype == np.float32 else self.backend.second_moments(*pair)

    @cached_property
    def out(self) -> Array:
        """What is written into."""
        return self.backend.alloc((1, *self.case.size, self.case.outputs or self.case.channels))

    def writes(self, *targets: Array, call: Callable[[], Any]) -> Call:
        """A call that returns what it has written: `targets`, or `out`."""

        def called() -> Any:
            call()
            return targets or self.out

        return called


MAKERS: dict[str, Callable[[Bench], Call]] = {}
"""Primitive -> the function of that name below."""


def _of(make: Callable[[Bench], Call]) -> Callable[[Bench], Call]:
    MAKERS[make.__name__] = make
    return make


# -- convolution -----------------------------------------------------------------------------------------


@_of
def prepare_conv(on: Bench) -> Call:
    """Nothing to compare: each backend has a layout of its own, which `conv2d` reads."""
    c = on.case
    weight = on.host(c.outputs, c.channels, c.kernel, c.kernel)
    return lambda: [on.backend.prepare_conv(weight, None, padding=(c.kernel // 2,) * 4, size=c.size)][:0]


@_of
def conv2d(on: Bench) -> Call:
    source, weights = on.source(), on.weights()
    more: dict[str, Any] = {
        "shift": on.normal(1, on.case.outputs),
        "residual": Source((on.canvas(on.case.outputs),)),
    }
    return on.writes(call=lambda: on.backend.conv2d(on.out, on.tiles, source, weights, **more))


@_of
def conv2d_measured(on: Bench) -> Call:
    """Of the results the output alone is compared: its moments are those of `channel_moments`, bit for bit."""
    source, weights = on.source(), on.weights()
    return on.writes(call=lambda: on.backend.conv2d_measured(on.out, on.tiles, source, weights))


@_of
def upload_weight(on: Bench) -> Call:
    """Nothing to compare: `linear` reads it."""
    weight = on.host(on.case.outputs, on.case.channels)
    return lambda: [on.backend.upload_weight(weight)][:0]


@_of
def linear(on: Bench) -> Call:
    c = on.case
    weight = on.backend.upload_weight(on.host(c.outputs, c.channels, scale=c.channels**-0.5))
    x, bias = on.normal(c.rows, c.channels), on.normal(c.outputs)
    return lambda: on.backend.linear(x, weight, bias, activation="silu")


# -- statistics and pointwise work -----------------------------------------------------------------------


@_of
def channel_moments(on: Bench) -> Call:
    source = on.source()
    return lambda: on.backend.channel_moments(source)


@_of
def coded_moments(on: Bench) -> Call:
    codes = on.indices(1, *on.case.size, 1, below=on.case.rows)
    rows = on.normal(on.case.rows, on.case.channels)
    return lambda: on.backend.coded_moments(codes, rows)


@_of
def second_moments(on: Bench) -> Call:
    mean, variance = on.moments()
    return lambda: on.backend.second_moments(mean, variance)


@_of
def join_channels(on: Bench) -> Call:
    arrays = on.moments()
    return lambda: on.backend.join_channels(arrays)


@_of
def sum_change(on: Bench) -> Call:
    canvas, old = on.canvas(), on.old()
    return lambda: on.backend.sum_change(canvas, on.tiles, old)


@_of
def follow_moments(on: Bench) -> Call:
    c, used, stale, fresh = on.case, on.moments(), on.moments(np.float64), on.moments(np.float64)
    change = on.backend.sum_change(on.canvas(), on.tiles, on.old())
    settings: dict[str, Any] = {"tiles": on.tiles, "size": c.size, "statistics": 0.4}
    return lambda: on.backend.follow_moments(used, stale, fresh, change, **settings)


@_of
def norm_affine(on: Bench) -> Call:
    c, (mean, variance) = on.case, on.moments()
    settings: dict[str, Any] = {"groups": c.groups, "eps": 1e-5}
    settings |= {"weight": on.normal(c.channels), "bias": on.normal(c.channels)}
    return lambda: on.backend.norm_affine(mean, variance, **settings)


@_of
def pointwise(on: Bench) -> Call:
    source, residual = on.source(), Source((on.canvas(),))
    return on.writes(call=lambda: on.backend.pointwise(on.out, on.tiles, source, residual=residual))


# -- reading by index ------------------------------------------------------------------------------------


@_of
def lookup(on: Bench) -> Call:
    c, labels = on.case, on.labels()
    table, bias = on.normal(c.kernel**2, c.channels, c.outputs), on.normal(c.outputs)
    return on.writes(call=lambda: on.backend.lookup(on.out, on.tiles, labels, table, bias, activation="relu"))


@_of
def attention(on: Bench) -> Call:
    c = on.case
    query = Source((on.canvas(),))
    key, value = (Source((on.normal(1, *(c.tokens or c.size), c.channels),)) for _ in range(2))
    return on.writes(call=lambda: on.backend.attention(on.out, on.tiles, query, key, value, heads=c.heads))


# -- codebooks -------------------------------------------------------------------------------------------


def _encoder(on: Bench) -> tuple[Array, WindowSet, Callable[[], None]]:
    """A canvas of codes, its windows, and a call that encodes the tiles."""
    kernel, labels = on.case.kernel, on.labels()
    codes, windows = on.backend.alloc((1, *on.case.size, 1), dtype="int32"), WindowSet(kernel**2)
    return codes, windows, lambda: on.backend.encode_windows(codes, on.tiles, labels, windows, kernel=kernel)


@_of
def encode_windows(on: Bench) -> Call:
    """From the second call on, no window is new."""
    codes, _, encode = _encoder(on)
    return on.writes(codes, call=encode)


@_of
def forget_windows(on: Bench) -> Call:
    """Together with the encoding that gives it something to forget."""
    codes, windows, encode = _encoder(on)

    def encode_and_forget() -> None:
        encode()
        on.backend.forget_windows(windows, 1)

    return on.writes(codes, call=encode_and_forget)


@_of
def convolve_windows(on: Bench) -> Call:
    c, table, weights = on.case, on.normal(on.case.rows, on.case.channels), on.weights((1, 1))
    out, windows = (
        on.normal(c.rows, c.outputs),
        on._rng().integers(-1, c.rows, (c.rows, c.kernel**2), np.int32),
    )
    return on.writes(out, call=lambda: on.backend.convolve_windows(out, windows, table, weights))


# -- tiles and masks -------------------------------------------------------------------------------------


@_of
def read_tiles(on: Bench) -> Call:
    canvas, kept = on.canvas(), on.old()
    return lambda: on.backend.read_tiles(canvas, on.tiles, kept)


@_of
def write_tiles(on: Bench) -> Call:
    values = on.old()
    return on.writes(call=lambda: on.backend.write_tiles(on.out, on.tiles, values))


@_of
def read_many_tiles(on: Bench) -> Call:
    places = [(on.canvas(), on.tiles) for _ in range(on.case.rows)]
    return lambda: on.backend.read_many_tiles(places)


@_of
def write_many_tiles(on: Bench) -> Call:
    places = [(on.canvas(), on.tiles, on.old()) for _ in range(on.case.rows)]
    return on.writes(*(canvas for canvas, *_ in places), call=lambda: on.backend.write_many_tiles(places))


@_of
def copy_arrays(on: Bench) -> Call:
    pairs = [(on.canvas(), on.canvas()) for _ in range(on.case.rows)]
    return on.writes(*(target for target, _ in pairs), call=lambda: on.backend.copy_arrays(pairs))


@_of
def merge_tiles(on: Bench) -> Call:
    values, pixels = on.old(), on.host(len(on.tiles), TILE, TILE) > 0
    return on.writes(call=lambda: on.backend.merge_tiles(on.out, on.tiles, values, pixels))


@_of
def add_tiles(on: Bench) -> Call:
    values = on.old()
    return on.writes(call=lambda: on.backend.add_tiles(on.out, on.tiles, values))


@_of
def tile_change(on: Bench) -> Call:
    canvas, old = on.canvas(), on.old()
    return lambda: on.backend.tile_change(canvas, on.tiles, old)


def _halves(on: Bench) -> tuple[Array, Array, Callable[[], None]]:
    """A canvas in float16 and in float32, and a call that narrows the tiles."""
    canvas, watch = on.canvas(), on.backend.watch_run()
    halves = on.backend.alloc(canvas.shape, dtype="float16")
    return halves, canvas, lambda: on.backend.narrow_tiles(halves, canvas, on.tiles, watch=watch, layer=0)


@_of
def narrow_tiles(on: Bench) -> Call:
    halves, canvas, narrow = _halves(on)
    return on.writes(halves, canvas, call=narrow)


@_of
def widen_tiles(on: Bench) -> Call:
    halves, _, narrow = _halves(on)
    narrow()
    return on.writes(call=lambda: on.backend.widen_tiles(on.out, halves, on.tiles))


@_of
def watch_run(on: Bench) -> Call:
    """A run of one check: the watch, the check and the answer, that all values are finite."""
    canvas = on.canvas()

    def watched() -> Any:
        watch = on.backend.watch_run()
        watch.watch(canvas, on.tiles, 0)
        return watch.first_watched()

    return watched


@_of
def find_non_finite(on: Bench) -> Call:
    canvas = on.canvas()
    return lambda: on.backend.find_non_finite(canvas, on.tiles)


@_of
def largest_change(on: Bench) -> Call:
    canvas, values = on.canvas(), on.old()
    return lambda: on.backend.largest_change(canvas, on.tiles, values)


# -- checks ----------------------------------------------------------------------------------------------


def make(case: Case, backend: Backend, tiles: Tiles | None = None) -> Call:
    """A call of a case on a backend, with `tiles` instead of the case's."""
    return MAKERS[case.primitive](Bench(case, backend, case.tiles if tiles is None else tiles))


def check(case: Case, backend: Backend, result: Any) -> None:
    """Raise WrongResult if `result`, of the first call of a case, differs from the reference's by over `TOLERANCE`."""
    one_by_one = case.active and case.primitive != "sum_change"
    tiles = Tiles(case.tiles.host[:CHECKED]) if one_by_one else case.tiles
    reference = ReferenceBackend()
    expected = list(_arrays(make(case, reference, tiles)(), reference))
    found = list(_arrays(result, backend))
    if len(found) != len(expected):
        raise WrongResult(f"{case.name}: {len(found)} arrays, expected {len(expected)}")
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape[1:3] == case.size and case.active:
            ours, theirs = (reference.read_tiles(each, tiles) for each in (ours, theirs))
        off = np.abs(ours[: len(theirs)].astype(np.float64) - theirs)
        allowed = 0.0 if theirs.dtype.kind == "i" else TOLERANCE * np.abs(theirs).max(initial=0)
        if not (off <= allowed).all():
            raise WrongResult(
                f"{case.name}: off by {off.max():.1e} from the reference, allowed {allowed:.1e}"
            )


def _arrays(result: Any, backend: Backend) -> Iterator[Host]:
    """The arrays of a result on the host."""
    if isinstance(result, (tuple, list)):
        for each in result:
            yield from _arrays(each, backend)
    elif result is not None:
        yield result if isinstance(result, np.ndarray) else backend.download(result)
