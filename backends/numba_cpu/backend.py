"""The Numba backend: the contract's primitives, each a kernel over items that threads share.

Which algorithm computes a convolution is decided once, in `prepare_conv`; how its tiles are cut into items for threads
at every call, here and in `launch.py`, and no bit of a result depends on that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..base import HostBackend
from ..interface import (
    TILE,
    Activation,
    Array,
    BackendError,
    ConvGeometry,
    ConvWeights,
    Host,
    Padding,
    Position,
    Source,
    Tiles,
    Watch,
    WindowSet,
)
from . import attention, direct, pointwise, winograd
from . import tiles as tile_kernels
from . import windows as window_kernels
from .arrays import flat, readable, target
from .cache import CACHE_VARIABLE
from .cores import available_cores
from .epilogue import Writing
from .gemm import PANEL, STORED, Packed, store_as
from .jit import compile_all
from .launch import Launcher, in_order
from .reading import ACTIVATIONS, NO_FLOATS, NOTHING, reading
from .simd import WIDTH
from .target import TARGET

Algorithm = Literal["winograd", "direct", "depthwise"]

_CACHE = 1 << 18
"""Floats of scratch that a thread's own cache holds."""


@dataclass(frozen=True)
class _Packed:
    """A convolution's weights as its algorithm reads them."""

    algorithm: Algorithm
    values: Packed


def _vectors_of_halves(canvas: Array) -> bool:
    """Whether the kernels can narrow and widen a pixel: its channels are whole vectors, which one instruction turns."""
    return TARGET.half and canvas.shape[3] % WIDTH == 0


class NumbaBackend(HostBackend):
    """Kernels compiled for this processor.

    Parameters
    ----------
    threads
        How many threads compute; None: one for each core that this process may use (`cores.py`).
    direct
        Compute every convolution as it is defined, without Winograd's transforms: closest to other engines' results.
    weights
        How convolutions' weights are kept: "float16" and "bfloat16" take half the memory and half the time to read
        (which is what few tiles of low resolutions wait for), are widened as they are multiplied, and round every
        weight to 11 or 8 bits: results move by about 2e-4 or 2e-3 of the largest value.

    Raises
    ------
    BackendError
        Weights cannot be stored so, or not on this processor; `threads` is less than 1. (A weight that is too large
        for float16 is refused when weights are prepared.)
    """

    name = "numba"
    codebooks = True
    takes_threads = True
    options = ("direct", "weights")

    def __init__(
        self,
        threads: int | None = None,
        *,
        direct: bool = False,
        weights: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        if weights not in STORED:
            raise BackendError(f"weights cannot be stored as {weights!r}; choose one of {', '.join(STORED)}")
        if weights == "float16" and not TARGET.half:
            raise BackendError("this processor cannot widen float16; store weights as float32 or bfloat16")
        if threads is not None and threads < 1:
            raise BackendError(f"threads is {threads}, expected a whole number, 1 or more")
        self.threads = available_cores() if threads is None else threads
        self.direct = direct
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
            values = self._pack_winograd(weight)
        elif algorithm == "depthwise":
            values = direct.pack_depthwise(weight)
        else:
            values = direct.pack_direct(weight, groups)
        stored = "float32" if algorithm == "depthwise" else self.weights
        packed = _Packed(algorithm, store_as(values, stored))
        return ConvWeights(geometry, packed, _whole(bias, geometry.outputs), algorithm == "winograd")

    def _pack_winograd(self, weight: Host) -> Host:
        outputs, depth = len(weight), weight[0].size
        panels = -(-outputs // PANEL)
        packed = np.empty(panels * depth * PANEL, np.float32)
        rows = readable(np.asarray(weight, np.float32).reshape(outputs, depth))
        self._launcher.run(winograd.pack, panels, (rows, packed), 0, 16.0 * weight.size)
        return packed

    def conv_layout(self, geometry: ConvGeometry, size: tuple[int, int] | None) -> Algorithm:
        """The fastest algorithm for outputs of `size`; the number of samples or tiles has no say in it."""
        g = geometry
        if g.groups > 1 and g.inputs == g.outputs == g.groups:
            return "depthwise"
        if self.direct or g.kernel != (3, 3) or g.stride != 1 or g.groups != 1 or g.inputs < 8:
            return "direct"
        # one tile's 16 pixels fill the products' rows as they are
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
    ) -> None:
        if not len(tiles):
            return
        active = in_order(tiles)
        g, packed = weights.geometry, weights.packed
        read = reading(source)
        write = _writing(out, weights.bias, shift=shift, residual=residual, activation=activation)
        panels, added = -(-g.outputs // PANEL), residual is not None
        depth = g.kernel[0] * g.kernel[1] * g.inputs // g.groups
        geometry = (*g.kernel, g.stride, g.padding[0], g.padding[2], g.groups)
        args: tuple[Any, ...]
        if packed.algorithm == "winograd":
            work = 2.0 * winograd.PRODUCTS * g.inputs * g.outputs
            batch, splits = self._launcher.items(len(tiles), winograd.BATCH, panels, work)
            items = -(-len(tiles) // batch) * splits
            kept = splits == 1 and items > self.threads
            kept = kept and winograd.kept_floats(g.inputs, g.outputs) <= winograd.KEPT
            floats = winograd.scratch_floats(batch, g.inputs, g.outputs, -(-panels // splits), added, kept)
            args = (batch, splits, int(kept), active, read, g.padding[0], g.padding[2], packed.values, write)
            self._launcher.run(winograd.convolve, items, args, floats, work * len(tiles))
        elif packed.algorithm == "depthwise":
            work = 2.0 * TILE * TILE * depth * g.outputs
            batch, _ = self._launcher.items(len(tiles), 8, 1, work)
            floats = direct.scratch_floats_depthwise(g.outputs, g.kernel, g.stride, added)
            args = (batch, active, read, geometry, packed.values.floats, write)
            self._launcher.run(
                direct.convolve_depthwise, -(-len(tiles) // batch), args, floats, work * len(tiles)
            )
        else:
            work = 2.0 * TILE * TILE * depth * g.outputs
            window = ((TILE - 1) * g.stride + g.kernel[0]) * TILE * g.stride * g.inputs
            limit = max(1, min(32, _CACHE // (window + TILE * TILE * g.outputs)))
            batch, splits = self._launcher.items(len(tiles), limit, panels if g.groups == 1 else 1, work)
            floats = direct.scratch_floats(
                batch, g.inputs, g.outputs, g.kernel, g.stride, g.groups, -(-panels // splits), added
            )
            args = (batch, splits, active, read, geometry, packed.values, write)
            self._launcher.run(
                direct.convolve, -(-len(tiles) // batch) * splits, args, floats, work * len(tiles)
            )

    def linear(
        self, x: Array, weight: Array, bias: Array | None, *, activation: Activation = "identity"
    ) -> Array:
        out = np.empty((len(x), len(weight)), np.float32)
        args = (readable(x), readable(weight), out)
        self._launcher.run(pointwise.linear, len(weight), args, 0, 2.0 * x.size * len(weight))
        return self._activate_rows(out if bias is None else out + bias, activation)

    # -- statistics and pointwise work -------------------------------------------------------------------

    def channel_moments(self, source: Source) -> tuple[Array, Array]:
        if source.modulation is None:
            source = replace(source, upsample=1)  # every pixel as often as every other: the same moments
        samples, height, width, channels = source.shape
        span = 256
        spans = -(-height * width // span)
        sums = np.empty((samples * spans, 2, channels))
        args = (span, reading(source), sums)
        floats = pointwise.moments_floats(channels)
        self._launcher.run(pointwise.moments, samples * spans, args, floats, 8.0 * height * width * channels)
        totals = sums.reshape(samples, spans, 2, channels).sum(1) / (height * width)
        mean, square = totals[:, 0], totals[:, 1]
        return mean.astype(np.float32), np.maximum(square - mean * mean, 0).astype(np.float32)

    def layer_norm(
        self, out: Array, tiles: Tiles, source: Source, *, weight: Array, bias: Array, eps: float
    ) -> None:
        extra = (flat(weight), flat(bias), np.float32(eps))
        self._launcher.over_tiles(pointwise.layer_norm, out, tiles, (reading(source), *extra, _writing(out)))

    def pointwise(self, out: Array, tiles: Tiles, source: Source, *, residual: Source | None = None) -> None:
        write = _writing(out, residual=residual)
        self._launcher.over_tiles(pointwise.write_out, out, tiles, (reading(source), write))

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
    ) -> None:
        taps, labels, _ = table.shape
        write = _writing(out, _whole(bias, len(bias)), activation=activation)
        args = (readable(indices), flat(table), labels, round(taps**0.5), step, write)
        self._launcher.over_tiles(pointwise.look_up, out, tiles, args)

    def attention(
        self, out: Array, tiles: Tiles, query: Source, key: Source, value: Source, *, heads: int
    ) -> None:
        if not len(tiles):
            return
        active = in_order(tiles)
        channels = query.shape[3]
        tokens = key.shape[1] * key.shape[2]
        blocks = -(-tokens // attention.BLOCK)
        samples, slots = np.unique(active[:, 0], return_inverse=True)
        key_floats, value_floats = attention.packed_floats(tokens, channels // heads)
        keys = np.zeros(len(samples) * heads * key_floats, np.float32)
        values = np.zeros(len(samples) * heads * value_floats, np.float32)
        floats = attention.pack_floats(channels)
        args: tuple[Any, ...] = (samples, reading(key), reading(value), heads, blocks, keys, values)
        work = 4.0 * tokens * channels * len(samples)
        self._launcher.run(attention.pack, len(samples) * -(-tokens // PANEL), args, floats, work)
        # no more together than leaves work for every thread
        batch = max(1, min(attention.TOGETHER, len(tiles) // (2 * self.threads)))
        args = (
            batch,
            active,
            slots.astype(np.int32),
            reading(query),
            heads,
            tokens,
            blocks,
            keys,
            values,
            _writing(out),
        )
        work = 4.0 * TILE * TILE * tokens * channels * len(tiles)
        floats = attention.scratch_floats(channels, heads, batch)
        self._launcher.run(attention.attend, -(-len(tiles) // batch), args, floats, work)

    # -- codebooks ---------------------------------------------------------------------------------------

    def encode_windows(
        self, codes: Array, tiles: Tiles, indices: Array, window_set: WindowSet, *, kernel: int, step: int = 1
    ) -> None:
        compile_all()
        active, indices, done = in_order(tiles), readable(indices), 0
        target(codes)
        while True:
            # room for a good part of the windows to come, in the storage and (half full at most) in the hash table
            room = len(window_set) + TILE * TILE * min(len(active) - done, 256) + 1
            window_set.reserve(room)
            if window_set.index is None or len(window_set.index) < 2 * room:
                index = np.full(1 << (4 * room - 1).bit_length(), -1, np.int32)
                window_kernels.rehash(window_set.storage, len(window_set), index)
                window_set.index = index  # once it is filled: an interrupt leaves the old one
            done = window_kernels.number(
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
        compile_all()
        if window_set.index is None:
            window_set.count[0] = min(len(window_set), count)
        else:
            window_kernels.forget(window_set.storage, window_set.count, window_set.index, count)

    def convolve_windows(self, out: Array, windows: Host, table: Array, weights: ConvWeights) -> None:
        for first in range(0, len(windows), window_kernels.ROWS_AT_ONCE):
            some = slice(first, first + window_kernels.ROWS_AT_ONCE)
            self._convolve_windows(out[some], windows[some], table, weights)

    def _convolve_windows(self, out: Array, windows: Host, table: Array, weights: ConvWeights) -> None:
        compile_all()
        target(out)
        windows = readable(windows)
        rows, taps = windows.shape
        starts, index = np.zeros(taps + 1, np.int64), np.empty(windows.shape, np.int32)
        # windows share their parts: each is multiplied once by each tap's weights
        for together in (False, True):
            used = np.empty(len(table) if together else min(len(table), rows) * taps, np.int32)
            places = np.full(len(table), -1, np.int32)
            count = window_kernels.share(windows, places, used, starts, int(together), index)
            if together or count * 4 < 3 * len(table) * taps:
                break  # where every tap uses nearly all of them, they need not be gathered for each
        products, depth = count * taps if together else count, table.shape[1]
        floats = window_kernels.scratch_floats(products)
        parts = flat(table[used[:count]])
        args = (parts, starts, int(together), depth, index, weights.packed.values, weights.bias, out)
        work = 2.0 * products * depth * out.shape[1]
        self._launcher.run(window_kernels.convolve_windows, -(-out.shape[1] // PANEL), args, floats, work)

    # -- tiles and masks ---------------------------------------------------------------------------------

    def read_tiles(self, canvas: Array, tiles: Tiles, out: Array | None = None) -> Array:
        if out is None:
            out = np.empty((len(tiles), TILE, TILE, canvas.shape[3]), canvas.dtype)
        if canvas.shape[1] % TILE or canvas.shape[2] % TILE:
            out[...] = 0
        self._copy(canvas, tiles, out, 0)
        return out

    def write_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        self._copy(canvas, tiles, np.ascontiguousarray(values, canvas.dtype), 1)

    def _copy(self, canvas: Array, tiles: Tiles, values: Array, into: int) -> None:
        if canvas.dtype == np.float16 and not canvas.shape[3] % 2:  # two move as one
            canvas, values = canvas.view(np.float32), values.view(np.float32)
        if canvas.dtype.itemsize != 4:  # masks: small, and rare
            raise BackendError(f"tiles of {canvas.dtype} cannot be copied; canvases are float32 or int32")
        read, written = (values, canvas) if into else (canvas, values)
        arrays = [target(written).view(np.float32), flat(read).view(np.float32)]
        args = (canvas.shape[1:], *(arrays if into else arrays[::-1]), into)
        self._launcher.over_tiles(tile_kernels.copy, canvas, tiles, args, scratch=False)

    def narrow_tiles(self, halves: Array, canvas: Array, tiles: Tiles, *, watch: Watch, layer: int) -> None:
        if not _vectors_of_halves(canvas):
            super().narrow_tiles(halves, canvas, tiles, watch=watch, layer=layer)
            return
        lost = np.zeros(len(tiles), np.uint8)
        args = (canvas.shape[1:], target(canvas), target(halves).view(np.uint16), lost)
        self._launcher.over_tiles(tile_kernels.narrow, canvas, tiles, args, scratch=False)
        if lost.any():  # the kernel has found which tiles; the watch finds the value
            watch.watch(canvas, tiles, layer)

    def widen_tiles(self, canvas: Array, halves: Array, tiles: Tiles) -> None:
        if not _vectors_of_halves(canvas):
            super().widen_tiles(canvas, halves, tiles)
            return
        args = (canvas.shape[1:], target(canvas), flat(halves).view(np.uint16))
        self._launcher.over_tiles(tile_kernels.widen, canvas, tiles, args, scratch=False)

    def find_non_finite(self, canvas: Array, tiles: Tiles) -> Position | None:
        if canvas.dtype != np.float32:
            return None
        found = np.zeros(len(tiles), np.uint8)
        args = (canvas.shape[1:], flat(canvas), found)
        self._launcher.over_tiles(tile_kernels.not_finite, canvas, tiles, args, scratch=False)
        if not found.any():
            return None
        first = int(found.argmax())
        n, row, column = (int(i) for i in tiles.host[first])
        tile = canvas[n, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        y, x, c = (int(i) for i in np.argwhere(~np.isfinite(tile))[0])
        return n, row * TILE + y, column * TILE + x, c

    def largest_change(self, canvas: Array, tiles: Tiles, values: Array) -> Host:
        if canvas.dtype != np.float32:  # indices: small
            change = np.abs(self.read_tiles(canvas, tiles) - values)
            return np.asarray(change.max((1, 2, 3), initial=0), np.float32)
        changes = np.zeros(len(tiles), np.float32)
        before = flat(np.ascontiguousarray(values, np.float32))
        args = (canvas.shape[1:], flat(canvas), before, changes)
        self._launcher.over_tiles(tile_kernels.change, canvas, tiles, args, scratch=False)
        return changes

    def difference_mask(self, original: Array, edited: Array, *, eps: float = 0.0) -> Host:
        mask = np.empty(original.shape[:3], bool)
        pixels, channels = mask.size, original.shape[3]
        a, b = (readable(canvas).reshape(-1) for canvas in (original, edited))
        indices = original.dtype == np.int32
        kernel = tile_kernels.differ_int32 if indices else tile_kernels.differ_float32
        allowed = np.int64(min(eps, 1 << 32)) if indices else np.float32(eps)
        items, batch = -(-pixels // 8192), 8192
        args = (batch, channels, a, b, allowed, target(mask).view(np.uint8))
        self._launcher.run(kernel, items, args, 0, 1.0 * a.size)
        return mask


def _whole(bias: Array | None, outputs: int) -> Array:
    """A bias of `outputs` values (None: zeros) filled up with zeros to whole panels."""
    padded = np.zeros(-(-outputs // PANEL) * PANEL, np.float32)
    if bias is not None:
        padded[:outputs] = bias
    return padded


def _writing(
    out: Array,
    bias: Array | None = None,
    *,
    shift: Array | None = None,
    residual: Source | None = None,
    activation: Activation = "identity",
) -> Writing:
    """The arrays of an output; `bias` is filled up to whole panels already."""
    channels = out.shape[3]
    return Writing(
        target(out),
        out.shape[1],
        out.shape[2],
        channels,
        _whole(None, channels) if bias is None else bias,
        NO_FLOATS if shift is None else flat(shift),
        -1 if shift is None else channels if len(shift) > 1 else 0,
        NOTHING if residual is None else reading(residual),
        int(residual is not None),
        ACTIVATIONS[activation],
    )
