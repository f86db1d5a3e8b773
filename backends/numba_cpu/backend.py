"""The Numba backend: the contract's primitives, each handed to the algorithm that computes it.

The algorithm of a convolution is chosen once, in `prepare_conv`. At every call its `launch` cuts the tiles into items
for threads; no bit of a result depends on that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..base import HostBackend, ImmediateWatch, weight_of
from ..caches import CACHE_VARIABLE
from ..interface import (
    TILE,
    Activation,
    Array,
    Backend,
    BackendError,
    ConvGeometry,
    ConvWeights,
    Host,
    MomentPair,
    Padding,
    Position,
    Source,
    Tiles,
    Watch,
    WindowSet,
    check_own_pixels,
)
from . import (
    attention,
    codebooks,
    copies,
    depthwise,
    direct,
    linear,
    lookup,
    moments,
    norms,
    queued,
    winograd,
)
from .arrays import aligned, contiguous, flat, writable
from .cores import available_cores
from .geometry import Geometry, geometry_of
from .jit import compile_all
from .launch import Launcher
from .packing import STORED, Packed, store_as
from .queued import outside, settle
from .reading import NO_FLOATS, reading
from .simd import WIDTH
from .sizes import ceil_div
from .target import TARGET
from .writing import Writing, launch_pointwise, padded_bias, writing

Algorithm = Literal["winograd", "direct", "depthwise"]

_LAUNCHES = {"winograd": winograd.launch, "direct": direct.launch, "depthwise": depthwise.launch}


@dataclass(frozen=True)
class _Packed:
    """A convolution's weights as its algorithm reads them."""

    algorithm: Algorithm
    geometry: Geometry
    values: Packed


_NO_HALVES = np.zeros(0, np.uint16)


def _vectors_of_halves(canvas: Array) -> bool:
    """Whether the kernels can convert a canvas: one instruction converts a vector, and a pixel is whole vectors."""
    return TARGET.half and canvas.shape[3] % WIDTH == 0


def _overhangs(canvas: Array) -> bool:
    """Whether tiles at the canvas's border reach beyond it."""
    return bool(canvas.shape[1] % TILE or canvas.shape[2] % TILE)


def _old_values(old: Array) -> tuple[Array, Array]:
    """Old values of tiles, also of a float16 copy, as `copies.load_old` takes them."""
    if old.dtype == np.float32:
        return flat(old), _NO_HALVES
    if _vectors_of_halves(old):
        return NO_FLOATS, flat(old, "e").view(np.uint16)
    settle()
    return old.astype(np.float32).ravel(), _NO_HALVES


class QueueWatch(ImmediateWatch):
    """A watch that checks what a queue computes when it is asked, and only where a kernel has marked the queue."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._noted: list[tuple[queued.Odd, Array, Tiles, int]] = []

    def watch(self, canvas: Array, tiles: Tiles, layer: int) -> None:
        if queued.is_within():
            self._noted.append((queued.odd(), canvas, tiles, layer))
        else:
            super().watch(canvas, tiles, layer)

    def look(self) -> None:
        """Wait, and check what was noted so far."""
        settle()
        for odd, canvas, tiles, layer in self._noted:
            if odd[0] and (self._first is None or layer < self._first[0]):
                position = self._backend.find_non_finite(canvas, tiles)
                if position is not None:
                    self._first = layer, position
        self._noted.clear()

    def first_watched(self) -> tuple[int, Position] | None:
        self.look()
        return super().first_watched()


class NumbaBackend(HostBackend):
    """Kernels compiled for this processor.

    Parameters
    ----------
    threads
        How many threads compute; None: one for each core that this process may use (`cores.py`).
    direct
        Compute every 3×3 convolution directly, without Winograd's transforms: closest to other engines' results.
    precision
        "bfloat16": convolutions that are computed directly (1×1, strided; with `direct` all), and tables of windows,
        round inputs and weights to 8 bits: 1.2 to 1.9 times as fast on a Zen 4, sums are float32. Results move by about
        2e-3 of a layer's largest value. Those by Winograd's algorithm stay float32, and so do attention, dense layers,
        groups, odd numbers of inputs and rows of taps of fewer than 48 inputs.
    weights
        How weights of convolutions and dense layers are stored. "float16" and "bfloat16" take half the memory and half
        the time to read, on which edits of few tiles at low resolutions spend most of their time. They round every
        weight to 11 or 8 bits: results move by about 2e-4 or 2e-3 of the largest value.

    Raises
    ------
    BackendError
        `weights` or `precision` is unknown, or not supported by this processor; `threads` is less than 1.
        `prepare_conv` and `upload_weight` raise it for a weight that is too large for its stored type.
    """

    name = "numba"
    codebooks = True
    takes_threads = True
    options = ("direct", "precision", "weights")

    def __init__(
        self,
        threads: int | None = None,
        *,
        direct: bool = False,
        precision: Literal["float32", "bfloat16"] = "float32",
        weights: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise BackendError(f"precision is {precision!r}; choose one of float32, bfloat16")
        if precision == "bfloat16" and not TARGET.dot:
            raise BackendError(
                "this processor cannot multiply bfloat16, or Numba's LLVM is older than 17; leave precision at "
                'float32 (weights="bfloat16" takes half the memory on every processor)'
            )
        if weights not in STORED:
            raise BackendError(f"weights cannot be stored as {weights!r}; choose one of {', '.join(STORED)}")
        if weights == "float16" and not TARGET.half:
            raise BackendError("this processor cannot widen float16; store weights as float32 or bfloat16")
        if threads is not None and threads < 1:
            raise BackendError(f"threads is {threads}, expected a whole number, 1 or more")
        self.threads = available_cores() if threads is None else threads
        self.direct, self.precision = direct, precision
        self.weights = weights
        self._launcher = Launcher(self.threads)

    def warm_up(self) -> str:
        ready = compile_all()
        if ready.lost is not None:
            raise BackendError(
                f"the kernels were compiled, but the next process must compile them again: {ready.lost}; "
                f"name a folder that can be written in {CACHE_VARIABLE}"
            )
        where = " and ".join(map(str, ready.folders))
        because = "" if ready.why is None else f", until the system clears it, because {ready.why}"
        return f"kernels for this processor in {where}{because}"

    def alloc(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        return aligned(math.prod(shape), dtype).reshape(shape)

    def download(self, array: Array) -> Host:
        settle()
        return super().download(array)

    def queue(self) -> AbstractContextManager[None]:
        return queued.within()

    def synchronize(self) -> None:
        settle()

    # -- convolution -------------------------------------------------------------------------------------

    def prepare_conv(
        self,
        weight: Host,
        bias: Host | None,
        *,
        stride: int = 1,
        padding: Padding = (0, 0, 0, 0),
        groups: int = 1,
        size: tuple[int, int] | None = None,
    ) -> ConvWeights:
        geometry = ConvGeometry.of(weight, stride, padding, groups)
        algorithm = self.conv_layout(geometry, size)
        if algorithm == "winograd":
            values = store_as(winograd.prepare(self._launcher, weight), self.weights)
        elif algorithm == "direct":
            values = direct.prepare(weight, groups, self.weights, pairs=self.precision == "bfloat16")
        else:
            values = store_as(depthwise.prepare(weight), "float32")
        packed = _Packed(algorithm, geometry_of(geometry), values)
        bias = padded_bias(bias, geometry.outputs)
        return ConvWeights(geometry, packed, bias, algorithm == "winograd")

    def conv_layout(self, geometry: ConvGeometry, size: tuple[int, int] | None) -> Algorithm:
        """The fastest algorithm for outputs of `size`, whatever the number of samples or tiles."""
        g = geometry
        if g.groups > 1 and g.inputs == g.outputs == g.groups:
            return "depthwise"
        if self.direct or g.kernel != (3, 3) or g.stride != 1 or g.groups != 1 or g.inputs < 8:
            return "direct"
        # a single tile leaves one row to each of Winograd's products; directly its 16 pixels are 16 rows
        return "direct" if size is not None and max(size) <= TILE else "winograd"

    def conv2d(
        self,
        out: Array,
        tiles: Tiles,
        source: Source,
        weights: ConvWeights,
        *,
        shift: Array | None = None,
        residual: Source | None = None,
        activation: Activation = "identity",
    ) -> bool:
        write = writing(out, weights.bias, shift=shift, residual=residual, activation=activation)
        self._convolve(tiles, source, weights, write)
        return write.finite

    def conv2d_measured(
        self,
        out: Array,
        tiles: Tiles,
        source: Source,
        weights: ConvWeights,
        *,
        shift: Array | None = None,
        residual: Source | None = None,
        activation: Activation = "identity",
    ) -> tuple[bool, MomentPair]:
        samples, height, width, outputs = out.shape
        every = samples * ceil_div(height, TILE) * ceil_div(width, TILE)
        if len(tiles) != every:
            raise BackendError(f"moments are of all {every} tiles, got {len(tiles)}; measure them afterwards")
        measures: Array = np.empty(every * 2 * outputs, np.float32)
        write = writing(
            out, weights.bias, shift=shift, residual=residual, activation=activation, measures=measures
        )
        self._convolve(tiles, source, weights, write)
        written = moments.launch_moments(self._launcher, samples, reading(Source((out,))), measures)
        return write.finite, written

    def _convolve(self, tiles: Tiles, source: Source, weights: ConvWeights, write: Writing) -> None:
        if not len(tiles):
            return
        check_own_pixels(weights.geometry, source)
        packed: _Packed = weights.packed
        launch = _LAUNCHES[packed.algorithm]
        launch(self._launcher, tiles, reading(source), packed.geometry, packed.values, write)

    def upload_weight(self, weight: Host) -> Array:
        return linear.stored_as(weight, self.weights)

    def linear(
        self, x: Array, weight: Array, bias: Array | None, *, activation: Activation = "identity"
    ) -> Array:
        settle()
        out = linear.launch(self._launcher, x, weight)
        return self._activate_rows(out if bias is None else out + bias, activation)

    # -- statistics and pointwise work -------------------------------------------------------------------

    def channel_moments(self, source: Source) -> tuple[Array, Array]:
        check_own_pixels(None, source)
        if source.modulation is None and source.upsample != 1:
            source = replace(source, upsample=1)  # every pixel as often as every other: the same moments
        return moments.launch_moments(self._launcher, source.shape[0], reading(source))

    def second_moments(self, mean: Array, variance: Array) -> MomentPair:
        settle()
        return super().second_moments(mean, variance)

    def join_channels(self, arrays: Sequence[Array]) -> Array:
        if len(arrays) > 1:
            settle()
        return super().join_channels(arrays)

    def coded_moments(self, codes: Array, rows: Array) -> tuple[Array, Array]:
        settle()
        return moments.launch_of_rows(self._launcher, codes, rows)

    def sum_change(self, canvas: Array, tiles: Tiles, old: Array) -> Array:
        return moments.launch_sum_change(self._launcher, canvas, tiles, *_old_values(old))

    def follow_moments(
        self,
        used: MomentPair,
        stale: MomentPair,
        fresh: MomentPair,
        change: Array | None,
        *,
        tiles: Tiles,
        size: tuple[int, int],
        statistics: float,
    ) -> tuple[MomentPair, MomentPair, MomentPair]:
        share = tiles.shares(len(used[0]), size)
        weight = [weight_of(statistics, each) for each in share]
        pixels = size[0] * size[1]
        return moments.followed(used, stale, fresh, change, pixels=pixels, weight=weight, share=share)

    def norm_affine(
        self,
        mean: Array,
        variance: Array,
        *,
        groups: int,
        eps: float,
        weight: Array | None = None,
        bias: Array | None = None,
        film: Array | None = None,
    ) -> tuple[Array, Array]:
        given: dict[str, Any] = {"groups": groups, "eps": eps, "weight": weight, "bias": bias, "film": film}
        if mean.shape[1] <= norms.LARGEST_GROUP * groups and mean.dtype == np.float32:
            return norms.scale_and_shift(self._launcher, mean, variance, **given)
        with outside():
            return super().norm_affine(mean, variance, **given)

    def pointwise(self, out: Array, tiles: Tiles, source: Source, *, residual: Source | None = None) -> bool:
        write = writing(out, residual=residual)
        launch_pointwise(self._launcher, out, tiles, reading(source), write)
        return write.finite

    # -- reading by index --------------------------------------------------------------------------------

    def lookup(
        self,
        out: Array,
        tiles: Tiles,
        indices: Array,
        table: Array,
        bias: Array,
        *,
        step: int = 1,
        activation: Activation = "identity",
    ) -> bool:
        write = writing(out, padded_bias(bias, len(bias)), activation=activation)
        lookup.launch(self._launcher, out, tiles, indices, table, step, write)
        return write.finite

    def attention(
        self,
        out: Array,
        tiles: Tiles,
        query: Source,
        key: Source,
        value: Source,
        *,
        heads: int,
        causal: bool = False,
    ) -> bool:
        if not len(tiles):
            return True
        check_own_pixels(None, query, key, value)
        q, k, v = reading(query), reading(key), reading(value)
        shared, write = key.shape[0] == 1, writing(out)
        attention.launch(self._launcher, tiles.host, q, k, v, heads, write, shared=shared, causal=causal)
        return write.finite

    # -- codebooks ---------------------------------------------------------------------------------------

    def encode_windows(
        self, codes: Array, tiles: Tiles, indices: Array, window_set: WindowSet, *, kernel: int, step: int = 1
    ) -> None:
        active, indices, done = tiles.host, contiguous(indices, "i"), 0
        writable(codes, "i")
        while True:
            # room for a good part of the windows to come, in the storage and (half full at most) in the hash table
            room = len(window_set) + TILE * TILE * min(len(active) - done, 256) + 1
            window_set.reserve(room)
            if window_set.index is None or len(window_set.index) < 2 * room:
                index = np.full(1 << (4 * room - 1).bit_length(), -1, np.int32)
                codebooks.rehash(window_set.storage, len(window_set), index)
                window_set.index = index  # once it is filled: an interrupt leaves the old one
            done = codebooks.number(
                active,
                done,
                indices,
                kernel,
                step,
                window_set.storage,
                window_set.count,
                window_set.index,
                codes,
            )
            if done == len(active):
                return

    def forget_windows(self, window_set: WindowSet, count: int) -> None:
        if window_set.index is None:
            window_set.count[0] = min(len(window_set), count)
        else:
            codebooks.forget(window_set.storage, window_set.count, window_set.index, count)

    def convolve_windows(self, out: Array, windows: Host, table: Array, weights: ConvWeights) -> bool:
        packed: _Packed = weights.packed
        launch = depthwise.launch_windows if packed.algorithm == "depthwise" else codebooks.launch
        return launch(self._launcher, out, windows, table, packed.values, weights.bias)

    # -- tiles and masks ---------------------------------------------------------------------------------

    def read_tiles(self, canvas: Array, tiles: Tiles, out: Array | None = None) -> Array:
        if out is None:
            out = np.empty((len(tiles), TILE, TILE, canvas.shape[3]), canvas.dtype)
        if _overhangs(canvas):
            out[...] = 0
        self._copy(canvas, tiles, out, 0)
        return out

    def write_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        self._copy(canvas, tiles, contiguous(values, canvas.dtype.char), 1)

    def copy_arrays(self, pairs: Sequence[tuple[Array, Array]]) -> None:
        settle()
        super().copy_arrays(pairs)

    def merge_tiles(self, canvas: Array, tiles: Tiles, values: Array, pixels: Host) -> None:
        with outside():
            super().merge_tiles(canvas, tiles, values, pixels)

    def _copy(self, canvas: Array, tiles: Tiles, values: Array, into: int) -> None:
        kind, shape = canvas.dtype.char, canvas.shape[1:]
        if kind == "e" and not shape[2] % 2:  # two move as one
            shape = (*shape[:2], shape[2] // 2)
        elif canvas.dtype.itemsize != 4:  # masks: small, and rare
            raise BackendError(f"tiles of {canvas.dtype} cannot be copied; canvases are float32 or int32")
        arrays = (
            (writable(canvas, kind), flat(values, kind))
            if into
            else (flat(canvas, kind), writable(values, kind))
        )
        if kind != "f":  # bits move, whatever they mean
            arrays = arrays[0].view(np.float32), arrays[1].view(np.float32)
        self._launcher.over_tiles(copies.copy, canvas, tiles, (shape, *arrays, into))

    def add_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        args = (canvas.shape[1:], writable(canvas), flat(values))
        self._launcher.over_tiles(copies.add, canvas, tiles, args)
        queued.odd()[0] = 1  # a sum may be infinite

    def tile_change(self, canvas: Array, tiles: Tiles, old: Array) -> Array:
        new = np.zeros if _overhangs(canvas) else np.empty
        values: Array = new((len(tiles), TILE, TILE, canvas.shape[3]), np.float32)
        args = (canvas.shape[1:], flat(canvas), *_old_values(old), values.ravel())
        self._launcher.over_tiles(copies.subtract, canvas, tiles, args)
        return values

    def narrow_tiles(self, halves: Array, canvas: Array, tiles: Tiles, *, watch: Watch, layer: int) -> None:
        if isinstance(watch, QueueWatch):
            watch.look()  # at what it noted of the values that change here
        if not _vectors_of_halves(canvas):
            with outside():
                super().narrow_tiles(halves, canvas, tiles, watch=watch, layer=layer)
            return
        lost = np.zeros(len(tiles), np.uint8)
        args = (canvas.shape[1:], writable(canvas), writable(halves, "e").view(np.uint16), lost)
        self._launcher.over_tiles(copies.narrow, canvas, tiles, args)
        settle()
        if np.count_nonzero(lost):  # the kernel has found which tiles; the watch finds the value
            with outside():
                watch.watch(canvas, tiles, layer)

    def widen_tiles(self, canvas: Array, halves: Array, tiles: Tiles) -> None:
        if not _vectors_of_halves(canvas):
            with outside():
                super().widen_tiles(canvas, halves, tiles)
            return
        args = (canvas.shape[1:], writable(canvas), flat(halves, "e").view(np.uint16))
        self._launcher.over_tiles(copies.widen, canvas, tiles, args)

    def watch_run(self) -> Watch:
        return QueueWatch(self)

    def find_non_finite(self, canvas: Array, tiles: Tiles) -> Position | None:
        if canvas.dtype != np.float32:
            return None
        found = np.zeros(len(tiles), np.uint8)
        args = (canvas.shape[1:], flat(canvas), found)
        self._launcher.over_tiles(copies.not_finite, canvas, tiles, args)
        settle()
        if not np.count_nonzero(found):  # quicker than `any`
            return None
        first = int(found.argmax())
        n, row, column = (int(i) for i in tiles.host[first])
        tile = canvas[n, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        y, x, c = (int(i) for i in np.argwhere(~np.isfinite(tile))[0])
        return n, row * TILE + y, column * TILE + x, c

    def largest_change(self, canvas: Array, tiles: Tiles, values: Array) -> Host:
        if canvas.dtype != np.float32:  # indices: small
            with outside():
                change = np.abs(self.read_tiles(canvas, tiles) - values)
            return np.asarray(change.max((1, 2, 3), initial=0), np.float32)
        changes = np.zeros(len(tiles), np.float32)
        before = flat(contiguous(values, "f"))
        args = (canvas.shape[1:], flat(canvas), before, changes)
        self._launcher.over_tiles(copies.change, canvas, tiles, args)
        settle()
        return changes
