"""Every primitive of the contract in plain NumPy: sources and tiles come in, tiles of `out` are written.

Read `interface.py` first. Each method is the formula of its docstring there, one tile like the next: the matrix
product of a convolution has the same shape for every tile (16 rows), so a tile's bits cannot depend on its company.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..interface import (
    TILE,
    Activation,
    Array,
    Backend,
    Book,
    ConvGeometry,
    ConvWeights,
    Host,
    Padding,
    Source,
    Tiles,
)
from .tiling import (
    activate,
    batches,
    inside_pixels,
    read_indices,
    read_pixels,
    read_source,
    scatter,
    window_positions,
)


class ReferenceBackend(Backend):
    """NumPy alone. Slow and plain on purpose."""

    name = "reference"

    def alloc(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        return np.zeros(tuple(shape), dtype)

    def upload(self, host: Host) -> Array:
        is_float = np.issubdtype(host.dtype, np.floating)
        return np.array(host, np.float32 if is_float else host.dtype, order="C")

    def download(self, array: Array) -> Host:
        return np.array(array)

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
    ) -> None:
        g = weights.geometry
        (kh, kw), (top, _, left, _) = g.kernel, g.padding
        size = ((TILE - 1) * g.stride + kh, (TILE - 1) * g.stride + kw)
        for batch in batches(tiles.host, TILE * TILE * kh * kw * g.inputs):
            positions = window_positions(batch, size, stride=g.stride, top=top, left=left)
            v = read_source(source, *positions)  # [K, size0, size1, I]
            v = sliding_window_view(v, (kh, kw), axis=(1, 2))[:, :: g.stride, :: g.stride]
            # [K, 4, 4, I, kh, kw] -> [groups, K, 16, kh * kw * I / groups]
            v = v.reshape(*v.shape[:3], g.groups, -1, kh, kw).transpose(3, 0, 1, 2, 5, 6, 4)
            v = v.reshape(g.groups, len(batch), TILE * TILE, -1)
            y = v @ weights.packed[:, None]  # one product of 16 rows a tile and group
            y = y.transpose(1, 2, 0, 3).reshape(len(batch), TILE, TILE, g.outputs)
            if weights.bias is not None:
                y = y + weights.bias
            if shift is not None:
                y = y + shift[batch[:, 0] if len(shift) > 1 else 0].reshape(-1, 1, 1, g.outputs)
            if residual is not None:
                y = y + read_pixels(residual, batch)
            scatter(out, batch, activate(y, activation))

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        y = (x[:, None, :] @ weight.T)[:, 0]  # a product a row: its bits do not depend on the other rows
        return y if bias is None else y + bias

    def channel_moments(self, source: Source) -> tuple[Array, Array]:
        samples, height, width, _ = source.shape
        n, y, x = np.ogrid[:samples, :height, :width]
        v = read_source(source, n, y, x).astype(np.float64)
        return v.mean((1, 2)).astype(np.float32), v.var((1, 2)).astype(np.float32)

    def layer_norm(
        self, out: Array, tiles: Tiles, source: Source, *, weight: Array, bias: Array, eps: float
    ) -> None:
        for batch in batches(tiles.host, TILE * TILE * len(weight)):
            v = read_pixels(source, batch)
            mean = v.mean(-1, keepdims=True)
            variance = v.var(-1, keepdims=True)
            scatter(out, batch, (v - mean) / np.sqrt(variance + np.float32(eps)) * weight + bias)

    def pointwise(self, out: Array, tiles: Tiles, source: Source, *, residual: Source | None = None) -> None:
        for batch in batches(tiles.host, TILE * TILE * out.shape[3]):
            v = read_pixels(source, batch)
            if residual is not None:
                v = v + read_pixels(residual, batch)
            scatter(out, batch, v)

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
        k = round(len(table) ** 0.5)
        for batch in batches(tiles.host, TILE * TILE * len(bias)):
            channels = read_indices(indices, batch, k, step)  # [K, 4+k-1, 4+k-1, P]
            v = np.broadcast_to(bias, (len(batch), TILE, TILE, len(bias)))
            for tap in range(k * k):
                dy, dx = divmod(tap, k)
                for plane in range(indices.shape[3]):
                    channel = channels[:, dy : dy + TILE, dx : dx + TILE, plane]
                    v = v + np.where(channel[..., None] >= 0, table[tap, channel], np.float32(0))
            scatter(out, batch, activate(v, activation))

    def number_windows(
        self, codes: Array, tiles: Tiles, indices: Array, book: Book, *, kernel: int, step: int = 1
    ) -> None:
        if book.index is None:
            book.index = {key.tobytes(): number for number, key in enumerate(book.keys)}
        for batch in batches(tiles.host, TILE * TILE * kernel * kernel * indices.shape[3]):
            # [K, S, S, P] -> [K, 4, 4, P, kernel, kernel] -> [pixels, kernel * kernel * P]
            windows = sliding_window_view(
                read_indices(indices, batch, kernel, step), (kernel, kernel), axis=(1, 2)
            )
            inside, pixels = inside_pixels(codes, batch)
            windows = windows.transpose(0, 1, 2, 4, 5, 3)[inside].reshape(-1, book.storage.shape[1])
            for n, y, x, key in zip(*pixels, windows, strict=True):
                number = book.index.setdefault(key.tobytes(), len(book))
                if number == len(book):
                    book.reserve(number + 1)
                    book.storage[number] = key
                    book.count += 1
                codes[n, y, x, 0] = number

    def forget_windows(self, book: Book, count: int) -> None:
        for key in book.keys[count:]:
            if book.index is not None:
                del book.index[key.tobytes()]
        book.count[0] = min(len(book), count)

    def convolve_windows(self, out: Array, windows: Host, table: Array, weights: ConvWeights) -> None:
        for start in range(0, len(windows), 256):
            taps = windows[start : start + 256]
            rows = np.where(taps[..., None] >= 0, table[taps], np.float32(0))  # [R, k * k, I]
            y = self.linear(rows.reshape(len(taps), -1), weights.packed[0].T, weights.bias)
            out[start : start + 256] = y

    def attention(
        self, out: Array, tiles: Tiles, query: Source, key: Source, value: Source, *, heads: int
    ) -> None:
        channels = query.shape[3]
        scale = np.float32((channels / heads) ** -0.5)

        def all_tokens(source: Source, sample: int) -> Host:  # -> [heads, h * w, C / heads]
            _, h, w, c = source.shape
            v = read_source(source, np.array(sample), *np.ogrid[:h, :w])
            return v.reshape(h * w, heads, c // heads).transpose(1, 0, 2)

        for sample in np.unique(tiles.host[:, 0]):
            k, v = all_tokens(key, sample), all_tokens(value, sample)
            for batch in batches(tiles.host[tiles.host[:, 0] == sample], TILE * TILE * heads * k.shape[1]):
                q = (
                    read_pixels(query, batch)
                    .reshape(len(batch), TILE * TILE, heads, -1)
                    .transpose(0, 2, 1, 3)
                )
                scores = q @ k.transpose(0, 2, 1) * scale  # [K, heads, 16, h * w]
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                weights /= weights.sum(-1, keepdims=True)
                mixed = (weights @ v).transpose(0, 2, 1, 3)
                scatter(out, batch, mixed.reshape(len(batch), TILE, TILE, channels))

    def read_tiles(self, canvas: Array, tiles: Tiles, out: Array | None = None) -> Array:
        inside, pixels = inside_pixels(canvas, tiles.host)
        values = np.empty((len(tiles), TILE, TILE, canvas.shape[3]), canvas.dtype) if out is None else out
        values[...] = 0
        values[inside] = canvas[pixels]
        return values

    def write_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        scatter(canvas, tiles.host, values)

    def difference_mask(self, original: Array, edited: Array, *, eps: float = 0.0) -> Host:
        if original.dtype == np.int32:  # whose differences may take one bit more
            return np.asarray((np.abs(original.astype(np.int64) - edited) > eps).any(-1))
        with np.errstate(invalid="ignore"):  # equal infinities
            near = (original == edited) | (np.abs(original - edited) <= eps)
        return np.asarray(~near.all(-1))

    def find_non_finite(self, canvas: Array, tiles: Tiles) -> tuple[int, int, int, int] | None:
        for batch in batches(tiles.host, TILE * TILE * canvas.shape[3]):
            _, (n, y, x) = inside_pixels(canvas, batch)
            finite = np.isfinite(canvas[n, y, x])  # [pixels, C]
            if not finite.all():
                pixel, channel = np.argwhere(~finite)[0]
                return int(n[pixel]), int(y[pixel]), int(x[pixel]), int(channel)
        return None

    def largest_change(self, canvas: Array, tiles: Tiles, values: Array) -> Host:
        inside, _ = inside_pixels(canvas, tiles.host)
        change = np.where(inside[..., None], np.abs(self.read_tiles(canvas, tiles) - values), 0)
        return np.asarray(change.max((1, 2, 3), initial=0), np.float32)
