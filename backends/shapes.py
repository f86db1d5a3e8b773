"""A backend that computes nothing: shapes come in, shapes come out. A dry run needs no weights and no memory.

Its arrays have the right shape and one element of storage (stride 0), so a dense run of GauGAN at 512×256 takes
milliseconds, and every layer reports its tiles and MACs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import ImmediateWatch
from .interface import (
    TILE,
    Activation,
    Array,
    Backend,
    ConvGeometry,
    ConvWeights,
    Host,
    MomentPair,
    Padding,
    Position,
    Source,
    Tiles,
    Watch,
)


class ShapesBackend(Backend):
    """Every primitive returns arrays of the right shape and writes nothing."""

    name = "shapes"

    def alloc(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        return np.ndarray(tuple(shape), dtype, np.zeros(1, dtype), strides=(0,) * len(shape))

    def upload(self, host: Host) -> Array:
        return host

    def download(self, array: Array) -> Host:
        return array  # type: ignore[no-any-return]  # Array is Any

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
        return ConvWeights(ConvGeometry.of(weight, stride, padding, groups), weight, bias)

    def channel_moments(self, source: Source) -> tuple[Array, Array]:
        n, _, _, c = source.shape
        return self.alloc((n, c)), self.alloc((n, c))

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
        return used, stale, fresh

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
        samples = max(len(mean), 1 if film is None else len(film))
        return self.alloc((samples, mean.shape[1])), self.alloc((samples, mean.shape[1]))

    def linear(
        self, x: Array, weight: Array, bias: Array | None, *, activation: Activation = "identity"
    ) -> Array:
        return self.alloc((len(x), len(weight)))

    def read_tiles(self, canvas: Array, tiles: Tiles, out: Array | None = None) -> Array:
        return self.alloc((len(tiles), TILE, TILE, canvas.shape[3]))

    def tile_change(self, canvas: Array, tiles: Tiles, old: Array) -> Array:
        return self.read_tiles(canvas, tiles)

    def watch_run(self) -> Watch:
        return ImmediateWatch(self)

    def find_non_finite(self, canvas: Array, tiles: Tiles) -> Position | None:
        return None

    def largest_change(self, canvas: Array, tiles: Tiles, values: Array) -> Host:
        return np.zeros(len(tiles), np.float32)

    def _nothing(self, *args: Any, **keywords: Any) -> None:
        return None

    def _all_finite(self, *args: Any, **keywords: Any) -> bool:
        return True

    def second_moments(self, mean: Array, variance: Array) -> MomentPair:
        return self.alloc(mean.shape, dtype="float64"), self.alloc(mean.shape, dtype="float64")

    def coded_moments(self, codes: Array, rows: Array) -> tuple[Array, Array]:
        shape = (len(codes), int(rows.shape[1]))
        return self.alloc(shape), self.alloc(shape)

    def join_channels(self, arrays: Sequence[Array]) -> Array:
        return self.alloc((len(arrays[0]), sum(int(array.shape[1]) for array in arrays)))

    def sum_change(self, canvas: Array, tiles: Tiles, old: Array) -> Array:
        return np.zeros((canvas.shape[0], 2, canvas.shape[3]))

    conv2d = pointwise = lookup = attention = convolve_windows = _all_finite
    copy_arrays = write_tiles = merge_tiles = add_tiles = narrow_tiles = widen_tiles = _nothing
    encode_windows = forget_windows = _nothing
