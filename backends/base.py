"""The portable backend: every primitive in plain array arithmetic, over an array module that a subclass names.

Read `interface.py` first: each method here is the formula of its docstring there. `xp` is the array module: NumPy, or
a module with NumPy's functions for a device's arrays. Host arrays (lists of tiles, window sets, masks) stay NumPy's. A
new backend defines `xp`, `alloc`, `upload` and `download`, and overrides the primitives that have to be fast.

The matrix product of a convolution has the same shape for every tile (16 rows), so a tile's bits do not depend on the
other tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .interface import (
    LEAKY_SLOPE,
    QUICK_GELU_SLOPE,
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
    WindowSet,
    check_own_pixels,
)

BATCH = 1 << 22
"""Values that one step gathers at most (16 MB): tiles are taken in batches."""

ERFC = (
    *(0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807),
    *(-0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223),
)
"""With t = 1 / (1 + v / 2), v of 0 or more: erfc(v) = t exp(-v² + the polynomial of t), its highest power first."""


def weight_of(statistics: float, share: float) -> float:
    """The weight of fresh moments in `Backend.follow_moments`."""
    return statistics + (1 - statistics) * share


def coded_moments(xp: Any, codes: Array, rows: Array) -> tuple[Array, Array]:
    """`Backend.coded_moments` of arrays of `xp`."""
    values, each = rows.astype(np.float64), codes.reshape(len(codes), -1)
    share = xp.stack([xp.bincount(of_sample, minlength=len(rows)) for of_sample in each])
    share = share[:, :, None] / each.shape[1]  # [N, R, 1]
    mean = (share * values).sum(1)
    off = values - mean[:, None]
    variance = (share * off * off).sum(1)
    return mean.astype(np.float32), variance.astype(np.float32)


class ImmediateWatch(Watch):
    """A watch that checks at each call and keeps the first value that is not finite."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._first: tuple[int, Position] | None = None

    def watch(self, canvas: Array, tiles: Tiles, layer: int) -> None:
        if self._first is None:
            position = self._backend.find_non_finite(canvas, tiles)
            self._first = None if position is None else (layer, position)

    def first_watched(self) -> tuple[int, Position] | None:
        return self._first


class PortableBackend(Backend):
    """Every primitive over `xp`; a subclass adds `alloc`, `upload` and `download`."""

    xp: Any
    """The module of the backend's arrays: NumPy, CuPy, …"""

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
        outputs, inputs, kh, kw = weight.shape
        geometry = ConvGeometry.of(weight, stride, padding, groups)
        # OIHW -> [groups, kh * kw * I, O]: rows in the order in which a window is flattened (y, x, channel)
        packed = weight.reshape(groups, outputs // groups, inputs, kh, kw).transpose(0, 3, 4, 2, 1)
        packed = packed.reshape(groups, kh * kw * inputs, outputs // groups)
        return ConvWeights(geometry, self.upload(packed), None if bias is None else self.upload(bias))

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
        g = weights.geometry
        check_own_pixels(g, source)
        check_own_pixels(None, residual)
        (kh, kw), (top, _, left, _) = g.kernel, g.padding
        size = ((TILE - 1) * g.stride + kh, (TILE - 1) * g.stride + kw)
        for batch in self._batches(tiles, TILE * TILE * kh * kw * g.inputs):
            count = len(batch)
            v = self._read(source, *self._positions(batch, size, stride=g.stride, top=top, left=left))
            v = self._windows(v, g.kernel, stride=g.stride)  # [K, 4, 4, kh * kw, I]
            # -> [groups, K, 16, kh * kw * I / groups]
            v = v.reshape(count, TILE * TILE, kh * kw, g.groups, -1).transpose(3, 0, 1, 2, 4)
            v = v.reshape(g.groups, count, TILE * TILE, -1)
            y = v @ weights.packed[:, None]  # one product of 16 rows a tile and group
            y = y.transpose(1, 2, 0, 3).reshape(count, TILE, TILE, g.outputs)
            if weights.bias is not None:
                y = y + weights.bias
            if shift is not None:
                y = y + shift[batch[:, 0] if len(shift) > 1 else 0].reshape(-1, 1, 1, g.outputs)
            if residual is not None:
                y = y + self._read_pixels(residual, batch)
            self._scatter(out, batch, self._activate(y, activation))
        return False

    def linear(
        self, x: Array, weight: Array, bias: Array | None, *, activation: Activation = "identity"
    ) -> Array:
        y = (x[:, None, :] @ weight.T)[:, 0]  # a product a row: its bits do not depend on the other rows
        return self._activate_rows(y if bias is None else y + bias, activation)

    def _activate_rows(self, y: Array, activation: Activation) -> Array:
        """An activation of a few float32 values, computed in float64 and rounded once."""
        if activation == "identity":
            return y
        return self._activate(y.astype(np.float64), activation).astype(np.float32)

    # -- statistics and pointwise work -------------------------------------------------------------------

    def channel_moments(self, source: Source) -> tuple[Array, Array]:
        check_own_pixels(None, source)
        v = self._read_images(source, self.xp.arange(source.shape[0])).astype(np.float64)
        return v.mean((1, 2)).astype(np.float32), v.var((1, 2)).astype(np.float32)

    def coded_moments(self, codes: Array, rows: Array) -> tuple[Array, Array]:
        return coded_moments(self.xp, codes, rows)

    def second_moments(self, mean: Array, variance: Array) -> MomentPair:
        mean, variance = mean.astype(np.float64), variance.astype(np.float64)
        return mean, variance + mean * mean

    def join_channels(self, arrays: Sequence[Array]) -> Array:
        return arrays[0] if len(arrays) == 1 else self.xp.concatenate(list(arrays), axis=1)

    def sum_change(self, canvas: Array, tiles: Tiles, old: Array) -> Array:
        change = self.xp.zeros((canvas.shape[0], 2, canvas.shape[3]), np.float64)
        for sample in np.unique(tiles.host[:, 0]).tolist():
            of_sample = np.flatnonzero(tiles.host[:, 0] == sample)
            some = self._placed(Tiles(tiles.host[of_sample]))
            inside, pixels = self._inside(canvas, some)
            v = canvas[pixels].astype(np.float64)
            before = old[self.upload(of_sample)][inside].astype(np.float64)
            change[sample, 0] = (v - before).sum(0)
            change[sample, 1] = (v * v - before * before).sum(0)
        return change

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
        if change is not None:
            pixels = size[0] * size[1]
            fresh = fresh[0] + change[:, 0] * (1 / pixels), fresh[1] + change[:, 1] * (1 / pixels)
        mixed, after = [], []
        for old, now in zip(stale, fresh, strict=True):
            of_used, of_stale = old * 1, old * 1  # copies
            for n, (w, s) in enumerate(zip(weight, share, strict=True)):
                moved = now[n] - old[n]
                of_used[n] = now[n] if w == 1 else old[n] + w * moved
                of_stale[n] = now[n] if s == 1 else old[n] + s * w * moved
            mixed.append(of_used)
            after.append(of_stale)
        mean, square = mixed
        variance = self.xp.maximum(square - mean * mean, 0)
        now_used = mean.astype(np.float32), variance.astype(np.float32)
        for n, s in enumerate(share):
            if not s:
                now_used[0][n], now_used[1][n] = used[0][n], used[1][n]
        return now_used, (after[0], after[1]), fresh

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
        # [N, C] -> [N, G, C / G]
        means, variances = (v.astype(np.float64).reshape(len(v), groups, -1) for v in (mean, variance))
        each = means.shape[2]
        of_group = means.mean(2).repeat(each, 1)
        deviation = self.xp.sqrt(variances.mean(2) + means.var(2) + eps).repeat(each, 1)
        scale = (1 if weight is None else weight) / deviation
        shift = -of_group * scale if bias is None else bias - of_group * scale
        if film is not None:
            gain, offset = self.xp.split(film.astype(np.float64), 2, axis=1)
            scale, shift = scale * (1 + gain), shift * (1 + gain) + offset
        return scale.astype(np.float32), shift.astype(np.float32)

    def pointwise(self, out: Array, tiles: Tiles, source: Source, *, residual: Source | None = None) -> bool:
        check_own_pixels(None, residual)
        for batch in self._batches(tiles, TILE * TILE * out.shape[3]):
            v = self._read_pixels(source, batch)
            if residual is not None:
                v = v + self._read_pixels(residual, batch)
            self._scatter(out, batch, v)
        return False

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
        xp, k = self.xp, round(len(table) ** 0.5)
        for batch in self._batches(tiles, TILE * TILE * len(bias)):
            channels = self._windows(
                self._read_indices(indices, batch, k, step), (k, k)
            )  # [K, 4, 4, k * k, P]
            v = xp.broadcast_to(bias, (len(batch), TILE, TILE, len(bias)))
            for tap in range(k * k):
                for plane in range(indices.shape[3]):
                    channel = channels[..., tap, plane]
                    v = v + xp.where(channel[..., None] >= 0, table[tap, channel], np.float32(0))
            self._scatter(out, batch, self._activate(v, activation))
        return False

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
        check_own_pixels(None, query, key, value)
        xp, (_, height, width, channels) = self.xp, query.shape
        scale = np.float32((channels / heads) ** -0.5)

        def all_tokens(source: Source, sample: int) -> Array:  # -> [heads, h * w, C / heads]
            v = self._read_images(source, xp.arange(sample, sample + 1))
            return v.reshape(-1, heads, channels // heads).transpose(1, 0, 2)

        for sample in np.unique(tiles.host[:, 0]).tolist():
            of_keys = sample if key.shape[0] > 1 else 0
            k, v = all_tokens(key, of_keys), all_tokens(value, of_keys)
            of_sample = Tiles(tiles.host[tiles.host[:, 0] == sample])
            for batch in self._batches(of_sample, TILE * TILE * heads * k.shape[1]):
                q = self._read_pixels(query, batch).reshape(len(batch), TILE * TILE, heads, -1)
                scores = q.transpose(0, 2, 1, 3) @ k.transpose(0, 2, 1) * scale  # [K, heads, 16, h * w]
                if causal:
                    _, y, x = self._positions(batch, (TILE, TILE))
                    # a pixel beyond the border stands for one inside: it is dropped, and has a key
                    place = (y.clip(0, height - 1) * width + x.clip(0, width - 1)).reshape(
                        len(batch), 1, -1, 1
                    )
                    scores = xp.where(xp.arange(k.shape[1]) <= place, scores, np.float32(-np.inf))
                weights = xp.exp(scores - scores.max(-1, keepdims=True))
                weights = weights / weights.sum(-1, keepdims=True)
                mixed = (weights @ v).transpose(0, 2, 1, 3)
                self._scatter(out, batch, mixed.reshape(len(batch), TILE, TILE, channels))
        return False

    # -- codebooks ---------------------------------------------------------------------------------------

    def encode_windows(
        self, codes: Array, tiles: Tiles, indices: Array, window_set: WindowSet, *, kernel: int, step: int = 1
    ) -> None:
        if window_set.index is None:
            window_set.index = {window.tobytes(): code for code, window in enumerate(window_set.windows)}
        for batch in self._batches(tiles, TILE * TILE * kernel * kernel * indices.shape[3]):
            inside, pixels = self._inside(codes, batch)
            read = self._windows(self._read_indices(indices, batch, kernel, step), (kernel, kernel))
            found = self.download(read[inside]).reshape(-1, window_set.storage.shape[1])
            of_pixels = np.empty((len(found), 1), np.int32)
            for pixel, window in enumerate(found):
                key = window.tobytes()
                code = window_set.index.get(key)
                if code is None:  # its first occurrence
                    code = len(window_set)
                    window_set.reserve(code + 1)
                    window_set.storage[code] = window
                    window_set.count += 1
                    window_set.index[key] = code
                of_pixels[pixel] = code
            codes[pixels] = self.upload(of_pixels)

    def forget_windows(self, window_set: WindowSet, count: int) -> None:
        window_set.index = None  # made again when it is needed: an interrupt leaves no window half forgotten
        window_set.count[0] = min(len(window_set), count)

    def convolve_windows(self, out: Array, windows: Host, table: Array, weights: ConvWeights) -> bool:
        for start in range(0, len(windows), 256):
            taps = self.upload(windows[start : start + 256])
            rows = self.xp.where(taps[..., None] >= 0, table[taps], np.float32(0))  # [R, k * k, I]
            if weights.geometry.groups > 1:  # depthwise: packed is [I, k * k, 1]
                y = (rows * weights.packed[..., 0].T).sum(1)
                out[start : start + 256] = y if weights.bias is None else y + weights.bias
                continue
            y = self.linear(rows.reshape(len(taps), -1), weights.packed[0].T, weights.bias)
            out[start : start + 256] = y
        return False

    # -- tiles and masks ---------------------------------------------------------------------------------

    def read_tiles(self, canvas: Array, tiles: Tiles, out: Array | None = None) -> Array:
        inside, pixels = self._inside(canvas, self._placed(tiles))
        shape = (len(tiles), TILE, TILE, canvas.shape[3])
        values = self.xp.empty(shape, canvas.dtype) if out is None else out
        values[...] = 0
        values[inside] = canvas[pixels]
        return values

    def write_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        self._scatter(canvas, self._placed(tiles), values)

    def copy_arrays(self, pairs: Sequence[tuple[Array, Array]]) -> None:
        for target, source in pairs:
            target[...] = source

    def merge_tiles(self, canvas: Array, tiles: Tiles, values: Array, pixels: Host) -> None:
        taken = self.upload(pixels)[..., None]
        merged = self.xp.where(taken, values.astype(canvas.dtype), self.read_tiles(canvas, tiles))
        self.write_tiles(canvas, tiles, merged)

    def add_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        self.write_tiles(canvas, tiles, self.read_tiles(canvas, tiles) + values)

    def tile_change(self, canvas: Array, tiles: Tiles, old: Array) -> Array:
        return self.read_tiles(canvas, tiles) - old.astype(np.float32)

    def narrow_tiles(self, halves: Array, canvas: Array, tiles: Tiles, *, watch: Watch, layer: int) -> None:
        with np.errstate(over="ignore"):
            values = self.read_tiles(canvas, tiles).astype(np.float16)
        self.write_tiles(halves, tiles, values)
        self.write_tiles(canvas, tiles, values.astype(np.float32))
        watch.watch(canvas, tiles, layer)

    def widen_tiles(self, canvas: Array, halves: Array, tiles: Tiles) -> None:
        self.write_tiles(canvas, tiles, self.read_tiles(halves, tiles).astype(np.float32))

    def watch_run(self) -> Watch:
        return ImmediateWatch(self)

    def find_non_finite(self, canvas: Array, tiles: Tiles) -> Position | None:
        if not np.issubdtype(canvas.dtype, np.floating):
            return None
        for batch in self._batches(tiles, TILE * TILE * canvas.shape[3]):
            _, pixels = self._inside(canvas, batch)
            finite = self.xp.isfinite(canvas[pixels])  # [pixels, C]
            if not finite.all():
                pixel, channel = np.argwhere(~self.download(finite))[0].tolist()
                n, y, x = (int(position[pixel]) for position in pixels)
                return n, y, x, channel
        return None

    def largest_change(self, canvas: Array, tiles: Tiles, values: Array) -> Host:
        inside, _ = self._inside(canvas, self._placed(tiles))
        change = self.xp.abs(self.read_tiles(canvas, tiles) - values)
        change = self.xp.where(inside[..., None], change, 0).max((1, 2, 3))
        return self.download(change).astype(np.float32)

    # -- gather and scatter ------------------------------------------------------------------------------

    def _placed(self, tiles: Tiles) -> Array:
        """The backend's own `[K, 3]` of a handle, uploaded once."""
        return tiles.on(self, self.upload)

    def _batches(self, tiles: Tiles, values_per_tile: int) -> Iterator[Array]:
        """Runs of the backend's own `[K, 3]` whose gathered windows stay near `BATCH` values."""
        placed, step = self._placed(tiles), max(1, BATCH // max(1, values_per_tile))
        for start in range(0, len(tiles), step):
            yield placed[start : start + step]

    def _positions(
        self,
        tiles: Array,
        size: tuple[int, int],
        *,
        stride: int = 1,
        top: int = 0,
        left: int = 0,
        step: int = 1,
    ) -> tuple[Array, Array, Array]:
        """Sample, rows and columns that the windows of `tiles` read, ready to broadcast to `[K, size0, size1]`.

        A tile's window starts at output pixel `TILE * tile`, times `stride`, less the padding; neighbours lie
        `step` apart. Positions may lie outside the image.
        """
        n, row, column = (tiles[:, i].astype(np.intp) for i in range(3))
        y = (row[:, None] * TILE * stride - top + self.xp.arange(size[0])) * step
        x = (column[:, None] * TILE * stride - left + self.xp.arange(size[1])) * step
        return n[:, None, None], y[:, :, None], x[:, None, :]

    def _read(self, source: Source, n: Array, y: Array, x: Array) -> Array:
        """Values of `source` at pixels (n, y, x), after its prologue; 0 outside the image. `[..., C]`"""
        xp = self.xp
        _, height, width, _ = source.shape
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y, x = y.clip(0, height - 1), x.clip(0, width - 1)
        yy, xx = y // source.upsample, x // source.upsample
        v = xp.concatenate([part[n, yy, xx] for part in source.parts], axis=-1)
        if source.layer_eps is not None:
            mean, variance = v.mean(-1, keepdims=True), v.var(-1, keepdims=True)
            v = (v - mean) / xp.sqrt(variance + np.float32(source.layer_eps))
        if source.scale is not None:
            assert source.shift is not None  # `Source` holds both or neither
            per_sample = n if len(source.scale) > 1 else xp.zeros_like(n)
            v = v * source.scale[per_sample] + source.shift[per_sample]
        if source.modulation is not None:
            row = (n, y, x) if source.codes is None else source.codes[n, y, x, 0]
            gamma, beta = xp.split(source.modulation[row], 2, axis=-1)
            v = v * (1 + gamma) + beta
        return xp.where(inside[..., None], self._activate(v, source.activation), np.float32(0))

    def _read_pixels(self, source: Source, tiles: Array) -> Array:
        """The tiles' own pixels of `source`, after its prologue: `[K, TILE, TILE, C]`."""
        return self._read(source, *self._positions(tiles, (TILE, TILE)))

    def _read_images(self, source: Source, samples: Array) -> Array:
        """All pixels of some samples of `source`, after its prologue: `[len(samples), H, W, C]`."""
        _, height, width, _ = source.shape
        y, x = self.xp.arange(height)[:, None], self.xp.arange(width)
        return self._read(source, samples[:, None, None], y, x)

    def _read_indices(self, indices: Array, tiles: Array, kernel: int, step: int) -> Array:
        """The index pixels around which `tiles`' kernel × kernel windows lie, -1 outside the image: `[K, S, S, P]`."""
        _, height, width, _ = indices.shape
        side = TILE + kernel - 1
        n, y, x = self._positions(tiles, (side, side), top=kernel // 2, left=kernel // 2, step=step)
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return self.xp.where(
            inside[..., None], indices[n, y.clip(0, height - 1), x.clip(0, width - 1)], np.int32(-1)
        )

    def _windows(self, v: Array, kernel: tuple[int, int], *, stride: int = 1) -> Array:
        """The kernel's windows in gathered ones: `[K, S, S', C]` → `[K, TILE, TILE, taps, C]`, taps row by row."""
        span = (TILE - 1) * stride + 1
        taps = [
            v[:, dy : dy + span : stride, dx : dx + span : stride]
            for dy in range(kernel[0])
            for dx in range(kernel[1])
        ]
        return self.xp.stack(taps, axis=3)

    def _inside(self, canvas: Array, tiles: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        """Which of the tiles' pixels lie inside the canvas, bool `[K, TILE, TILE]`, and their (n, y, x)."""
        n, y, x = self.xp.broadcast_arrays(*self._positions(tiles, (TILE, TILE)))
        inside = (y < canvas.shape[1]) & (x < canvas.shape[2])
        return inside, (n[inside], y[inside], x[inside])

    def _scatter(self, canvas: Array, tiles: Array, values: Array) -> None:
        """Write `values` `[K, TILE, TILE, C]` into the canvas; what overhangs its border is dropped."""
        inside, pixels = self._inside(canvas, tiles)
        canvas[pixels] = values[inside]

    def _activate(self, v: Array, activation: Activation) -> Array:
        """An activation of each value, any shape; of "geglu" the channels are the last axis."""
        xp = self.xp
        if activation == "relu":
            return xp.maximum(v, 0)
        if activation == "leaky_relu":
            return xp.where(v > 0, v, v * np.float32(LEAKY_SLOPE))
        if activation in ("silu", "quick_gelu"):
            slope = v.dtype.type(1.0 if activation == "silu" else QUICK_GELU_SLOPE)
            with np.errstate(over="ignore"):  # below -88 exp(-v) is inf, and v / inf the 0 that it should be
                return v / (1 + xp.exp(-slope * v))
        if activation == "gelu":
            return v * self._normal_distribution(v)
        if activation == "tanh":
            return xp.tanh(v)
        if activation == "geglu":
            first, second = xp.split(v, 2, axis=-1)
            return first * self._activate(second, "gelu")
        return v

    def _normal_distribution(self, v: Array) -> Array:
        """Φ(v), the share of a standard normal distribution below v, within 1e-7; any shape.

        Source: Numerical Recipes, third edition, section 6.2.2, whose polynomial gives erfc within 1.2e-7 of its value.
        """
        xp = self.xp
        v = v.astype(np.float64)
        size = xp.abs(v) * 2**-0.5
        t = 1 / (1 + size / 2)
        p = xp.zeros_like(t)
        for coefficient in ERFC:
            p = p * t + coefficient
        tail = t * xp.exp(p - size * size) / 2  # erfc(|v| / sqrt(2)) / 2
        return xp.where(v < 0, tail, 1 - tail).astype(np.float32)


class HostBackend(PortableBackend):
    """A portable backend whose arrays are NumPy's, in main memory."""

    xp: Any = np

    in_main_memory = True

    def alloc(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        return np.zeros(tuple(shape), dtype)

    def upload(self, host: Host) -> Array:
        array = self.alloc(host.shape, dtype="float32" if host.dtype.kind == "f" else host.dtype.name)
        array[...] = host
        return array

    def download(self, array: Array) -> Host:
        return np.array(array)
