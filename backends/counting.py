"""A backend that counts: shapes and labels come in, the multiply-adds and bytes of another backend's primitives go out.

It computes nothing but the codes of labels' windows, because their number decides how many rows of a codebook are
computed. A run that measures closes each layer with `synchronize`; there this backend closes the layer's account.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .interface import (
    TILE,
    Activation,
    Array,
    Backend,
    ConvGeometry,
    ConvWeights,
    Host,
    Padding,
    Source,
    Tiles,
    WindowSet,
)
from .reference import ReferenceBackend
from .shapes import ShapesBackend

PIXELS = TILE * TILE
WINOGRAD = "winograd"
"""The key that `conv_layout` gives for Winograd's F(4×4, 3×3) (Lavin and Gray, arXiv 1509.09308) in every backend."""
DIRECT = "direct"
"""The key of a convolution as it is defined."""
PRODUCTS = (TILE + 2) ** 2
"""Multiply-adds that F(4×4, 3×3) takes for a tile and a pair of channels, instead of 144; without its transforms."""


@dataclass(frozen=True)
class Work:
    """What computing some tiles takes. A multiply-add of the transforms, norms and activations does not count."""

    multiplied: int = 0
    """Multiply-adds: of the algorithm that the backend chooses, over whole tiles. An addition of a row that a look-up
    reads counts as one."""
    weights: int = 0
    """Bytes of weights that are read, each once."""
    read: int = 0
    """Bytes that are read of canvases, each value once: the pixels that the tiles need at least."""
    written: int = 0
    """Bytes that are written."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.multiplied + other.multiplied,
            self.weights + other.weights,
            self.read + other.read,
            self.written + other.written,
        )

    def __mul__(self, times: int) -> Work:
        return Work(*(times * each for each in (self.multiplied, self.weights, self.read, self.written)))

    @property
    def moved(self) -> int:
        """All bytes."""
        return self.weights + self.read + self.written


def tile_products(geometry: ConvGeometry, layout: object) -> int:
    """Multiply-adds that a convolution with that `conv_layout` takes for one tile."""
    g = geometry
    pairs = g.inputs // g.groups * g.outputs
    return pairs * (PRODUCTS if layout == WINOGRAD else PIXELS * g.kernel[0] * g.kernel[1])


def stored_bytes(backend: Backend, layout: object = None) -> int:
    """Bytes of a weight as a backend stores it, by its options: 4, or 2 in 16 bits.

    `layout` is the convolution's `conv_layout`. With a precision of bfloat16 direct ones count 2, though the first
    layer of a network and grouped ones keep float32; without a layout, weights count 4.
    """
    weights, precision = (getattr(backend, name, "") for name in ("weights", "precision"))
    narrow = weights in ("float16", "bfloat16") or precision == "float16"
    return 2 if narrow or (precision == "bfloat16" and layout == DIRECT) else 4


class CountingBackend(ShapesBackend):
    """Every primitive notes its work and writes nothing.

    Parameters
    ----------
    like
        The backend whose work is counted: its layouts, its codebooks, the type of its weights.
    """

    name = "counting"

    def __init__(self, like: Backend) -> None:
        self.like = like
        self.codebooks = like.codebooks
        self.layers: list[Work] = []
        """The work up to each call of `synchronize`; whoever listens takes it out."""
        self.rest = Work()
        """The work of no layer: embeddings, moments."""
        self._open = Work()
        self._weight_bytes = stored_bytes(like)
        self._plain = ReferenceBackend()

    def begin(self) -> None:
        """Begin the accounts of another run."""
        self.layers, self.rest, self._open = [], Work(), Work()

    def synchronize(self) -> None:
        self.layers.append(self._open)
        self._open = Work()

    # -- arrays ------------------------------------------------------------------------------------------

    def alloc(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        if dtype == "int32":  # codes, whose values count
            return np.zeros(tuple(shape), dtype)
        # one element of storage for all, which may be written
        return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), tuple(shape), (0,) * len(shape))

    def upload(self, host: Host) -> Array:
        return np.array(host) if np.issubdtype(host.dtype, np.integer) else self.alloc(host.shape)

    def largest_change(self, canvas: Array, tiles: Tiles, values: Array) -> Host:
        return np.full(len(tiles), np.inf, np.float32)  # the most that an edit can cost: every tile moves

    # -- layers ------------------------------------------------------------------------------------------

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
        prepared = super().prepare_conv(
            weight, bias, stride=stride, padding=padding, groups=groups, size=size
        )
        layout = self.conv_layout(prepared.geometry, size)
        return replace(prepared, packed=layout, whole_tiles=layout == WINOGRAD)

    def conv_layout(self, geometry: ConvGeometry, size: tuple[int, int] | None) -> Any:
        return self.like.conv_layout(geometry, size)

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
        g, count = weights.geometry, len(tiles)
        pixels = _inside(out, count)
        read = _read(source, pixels * g.stride**2) + (0 if residual is None else _read(residual, pixels))
        self._note(
            count * tile_products(g, weights.packed),
            self._stored(g, weights) if count else 0,
            read,
            4 * pixels * out.shape[3],
        )
        return True

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
        count, planes = len(tiles), indices.shape[3]
        pixels, rows = _inside(out, count), len(table) * planes
        read = 4 * min(indices.size, pixels * planes)  # taps lie `step` apart too
        weights = 4 * min(table.size, pixels * rows * out.shape[3]) + bias.nbytes if count else 0
        self._note(count * PIXELS * rows * out.shape[3], weights, read, 4 * pixels * out.shape[3])
        return True

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
        n, h, w, channels = key.shape
        pixels, samples = _inside(out, len(tiles)), len(np.unique(tiles.host[:, 0]))
        tokens = h * w * (min(n, samples) if len(tiles) else 0)
        read = _read(query, pixels) + _read(key, tokens) + _read(value, tokens)
        multiplied = len(tiles) * PIXELS * 2 * h * w * channels
        self._note(multiplied, 0, read, 4 * pixels * channels)
        return True

    def pointwise(self, out: Array, tiles: Tiles, source: Source, *, residual: Source | None = None) -> bool:
        pixels = _inside(out, len(tiles))
        read = _read(source, pixels) + (0 if residual is None else _read(residual, pixels))
        self._note(0, 0, read, 4 * pixels * out.shape[3])
        return True

    def convolve_windows(self, out: Array, windows: Host, table: Array, weights: ConvWeights) -> bool:
        g, rows = weights.geometry, len(windows)
        taps = g.kernel[0] * g.kernel[1]
        stored = self._stored(g, weights) if rows else 0
        read = windows.nbytes + 4 * min(table.size, rows * taps * g.inputs)
        multiplied = rows * taps * g.inputs // g.groups * g.outputs
        self._note(multiplied, stored, read, 4 * rows * g.outputs)
        return True

    def encode_windows(
        self, codes: Array, tiles: Tiles, indices: Array, window_set: WindowSet, *, kernel: int, step: int = 1
    ) -> None:
        plain, count = self._plain, len(window_set)
        placed = plain._placed(tiles)
        inside, pixels = plain._inside(codes, placed)
        found = plain._windows(plain._read_indices(indices, placed, kernel, step), (kernel, kernel))[inside]
        width = window_set.storage.shape[1]
        every = np.concatenate([window_set.windows, found.reshape(-1, width)]).astype(np.int32)
        rows = np.ascontiguousarray(every).view(f"V{4 * width}").ravel()
        _, first, which = np.unique(rows, return_index=True, return_inverse=True)
        new = np.sort(first[first >= count])  # in the order in which they were first seen
        number = np.where(first < count, first, count + np.searchsorted(new, first))
        window_set.reserve(count + len(new))
        window_set.storage[count : count + len(new)] = every[new]
        window_set.count += len(new)
        codes[pixels] = number[which.reshape(-1)[count:], None]
        planes = indices.shape[3]
        self._note(0, 0, 4 * planes * len(found), 4 * len(found))

    def forget_windows(self, window_set: WindowSet, count: int) -> None:
        self._plain.forget_windows(window_set, count)

    # -- beside the layers -------------------------------------------------------------------------------

    def linear(
        self, x: Array, weight: Array, bias: Array | None, *, activation: Activation = "identity"
    ) -> Array:
        stored = weight.size * self._weight_bytes
        self.rest += Work(len(x) * weight.size, stored, 4 * x.size, 4 * len(x) * len(weight))
        return super().linear(x, weight, bias, activation=activation)

    def channel_moments(self, source: Source) -> tuple[Array, Array]:
        n, h, w, _ = source.shape
        self.rest += Work(0, 0, _read(source, n * h * w), 0)
        return super().channel_moments(source)

    # -- tiles -------------------------------------------------------------------------------------------

    def read_tiles(self, canvas: Array, tiles: Tiles, out: Array | None = None) -> Array:
        copied = canvas.itemsize * _inside(canvas, len(tiles)) * canvas.shape[3]
        self._note(0, 0, copied, copied)
        return self.alloc((len(tiles), TILE, TILE, canvas.shape[3]), dtype=str(canvas.dtype))

    def merge_tiles(self, canvas: Array, tiles: Tiles, values: Array, pixels: Host) -> None:
        if np.issubdtype(canvas.dtype, np.integer):  # labels, whose values count
            self._plain.merge_tiles(canvas, tiles, values, pixels)

    def write_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        if np.issubdtype(canvas.dtype, np.integer):
            self._plain.write_tiles(canvas, tiles, values)

    def add_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        copied = 4 * _inside(canvas, len(tiles)) * canvas.shape[3]
        self._note(0, 0, 2 * copied, copied)

    def _note(self, multiplied: int, weights: int, read: int, written: int) -> None:
        self._open += Work(int(multiplied), int(weights), int(read), int(written))

    def _stored(self, g: ConvGeometry, weights: ConvWeights) -> int:
        """Bytes of a convolution's weights."""
        count = g.outputs * g.inputs // g.groups * g.kernel[0] * g.kernel[1]
        stored = stored_bytes(self.like, weights.packed)
        return count * stored + (0 if weights.bias is None else 4 * g.outputs)


def _inside(canvas: Array, count: int) -> int:
    """The pixels that so many tiles of a canvas have inside it, at most."""
    n, h, w, _ = canvas.shape
    return int(min(count * PIXELS, n * h * w))


def _read(source: Source, pixels: int) -> int:
    """Bytes that reading so many pixels of a source takes at least; no more than it has."""
    if not pixels:
        return 0
    found = 0
    for part in source.parts:
        n, h, w, c = part.shape
        found += 4 * c * min(n * h * w, math.ceil(pixels / source.upsample**2))
    if source.modulation is not None:
        n, h, w, _ = source.shape
        values = min(pixels, n * h * w)
        channels = source.modulation.shape[-1]
        if source.codes is None:
            found += 4 * values * channels
        else:
            found += 4 * values + 4 * channels * min(values, len(source.modulation))
    return found
