"""Statistics of channels, norms and pointwise work: moments are summed, followed, and made into scales and shifts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from ..base import coded_moments
from ..interface import TILE, Array, MomentPair, Source, Tiles
from .combined import Combining
from .launching import PIXELS

WIDTH = 32
"""Channels of a block of `kernels/moments.cu`."""
THREADS = 256
"""Threads of a block there."""


class Statistics(Combining):
    """The primitives on moments, norms and pending work."""

    def channel_moments(self, source: Source) -> tuple[Array, Array]:
        samples, height, width, channels = source.shape
        blocks, pixels = -(-channels // WIDTH), height * width
        most = max(16, 1024 // blocks)  # a thousand blocks fill a card
        per_part = max(128, -(-pixels // most))
        parts = -(-pixels // per_part)
        mean, variance = (self.device.empty((samples, channels), np.float32) for _ in range(2))
        arguments = {
            "source": self._source(source),
            "sums": self._scratch("sums", (samples, parts, 2, channels), "float64"),
            "mean": mean,
            "variance": variance,
            "parts": parts,
            "pixels_per_part": per_part,
        }
        self._launch("moments_of_parts", (parts, blocks, samples), **arguments)
        self._launch("moments", (1, blocks, samples), **arguments)
        return mean, variance

    def coded_moments(self, codes: Array, rows: Array) -> tuple[Array, Array]:
        # on the host: sessions on a card keep no codebooks, and those that moved here measured elsewhere
        mean, variance = coded_moments(np, self.download(codes), self.download(rows))
        return self.upload(mean), self.upload(variance)

    def join_channels(self, arrays: Sequence[Array]) -> Array:
        if len(arrays) == 1:
            return arrays[0]
        rows, dtype = len(arrays[0]), arrays[0].dtype
        joined = self.device.empty((rows, sum(each.shape[1] for each in arrays)), dtype)
        words, offset = dtype.itemsize // 4, 0
        for first, second in zip_longest(arrays[::2], arrays[1::2]):
            first_words = first.shape[1] * words
            second_words = 0 if second is None else second.shape[1] * words
            self._launch(
                "join_channels",
                (-(-(first_words + second_words) // 256), rows),
                first=first,
                second=second,
                out=joined,
                first_words=first_words,
                second_words=second_words,
                stride=joined.shape[1] * words,
                offset=offset,
            )
            offset += first_words + second_words
        return joined

    def sum_change(self, canvas: Array, tiles: Tiles, old: Array) -> Array:
        samples, height, width, channels = canvas.shape
        blocks = -(-channels // WIDTH)
        parts = min(64, max(1, -(-height // TILE) * -(-width // TILE) // 4))
        change = self.device.empty((samples, 2, channels), np.float64)
        arguments = {
            "canvas": canvas,
            "old": old,
            "old_place": self._place_of(old),
            "sums": self._scratch("sums", (samples, parts, 2, channels), "float64"),
            "change": change,
            "tiles": self._list(tiles),
            "height": height,
            "width": width,
            "channels": channels,
            "parts": parts,
            "halves": int(old.dtype == np.float16),
        }
        self._launch("change_of_parts", (parts, blocks, samples), **arguments)
        self._launch("sum_change", (1, blocks, samples), **arguments)
        return change

    def second_moments(self, mean: Array, variance: Array) -> MomentPair:
        first, second = (self.device.empty(mean.shape, np.float64) for _ in range(2))
        self._launch(
            "second_moments",
            (-(-mean.size // THREADS),),
            mean=mean,
            variance=variance,
            first=first,
            second=second,
            count=mean.size,
        )
        return first, second

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
        shape = samples, channels = used[0].shape
        new_used, new_stale, new_fresh = (
            (self.device.empty(shape, dtype), self.device.empty(shape, dtype))
            for dtype in (np.float32, np.float64, np.float64)
        )
        if change is None:
            new_fresh = fresh
        self._launch(
            "follow_moments",
            (-(-channels // THREADS), samples),
            used_mean=used[0],
            used_variance=used[1],
            stale_mean=stale[0],
            stale_square=stale[1],
            fresh_mean=fresh[0],
            fresh_square=fresh[1],
            change=change,
            new_used_mean=new_used[0],
            new_used_variance=new_used[1],
            new_stale_mean=new_stale[0],
            new_stale_square=new_stale[1],
            new_fresh_mean=None if change is None else new_fresh[0],
            new_fresh_square=None if change is None else new_fresh[1],
            tiles=self._list(tiles),
            statistics=statistics,
            pixels=size[0] * size[1],
            channels=channels,
            of_sample=-(-size[0] // TILE) * -(-size[1] // TILE),
        )
        return new_used, new_stale, new_fresh

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
        of_film = 1 if film is None else len(film)
        samples, channels = max(len(mean), of_film), mean.shape[1]
        scale, shift = (self.device.empty((samples, channels), np.float32) for _ in range(2))
        self._launch(
            "norm_affine",
            (-(-groups // (THREADS // 32)), samples),
            mean=mean,
            variance=variance,
            weight=weight,
            bias=bias,
            film=film,
            scale=scale,
            shift=shift,
            eps=eps,
            channels=channels,
            groups=groups,
            moment_stride=channels if len(mean) > 1 else 0,
            film_stride=2 * channels if of_film > 1 else 0,
            mean_doubles=int(mean.dtype == np.float64),
            variance_doubles=int(variance.dtype == np.float64),
        )
        return scale, shift

    def pointwise(self, out: Array, tiles: Tiles, source: Source, *, residual: Source | None = None) -> bool:
        if source.combines_channels:
            self._write_combined(out, tiles, source, residual)
            return False
        self._launch(
            "pointwise",
            (self._most(tiles), -(-PIXELS * -(-out.shape[3] // 4) // 256)),
            source=self._source(source),
            residual=self._source(residual),
            out=out,
            tiles=self._list(tiles),
        )
        return False
