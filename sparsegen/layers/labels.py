"""Look-ups: labels or the tokens of a text come in, a feature or a coded feature comes out.

A convolution of a one-hot label map is a sum of table rows; so is the embedding of tokens.
"""

from __future__ import annotations

import math
from typing import overload

import numpy as np

from sparsegen.backends.interface import (
    Activation,
    Array,
    Backend,
    Host,
    Tiles,
)

from ..engine.coded import Coded, encode, tabulate
from ..engine.feature import Feature
from ..errors import ShapeError
from ..tiling.tiles import strip
from ..tiling.windows import Window
from .base import Layer, Parameter


class LabelConv(Layer):
    """A k×k convolution of a one-hot label map, computed as table look-ups.

    Reads an index feature (int32 `[N, H, W, P]`: the channels that are 1), nearest-downsampled to the given size.
    Parameters as the convolution's: `weight` `[O, V, k, k]`, `bias` `[O]`. Border: zeros.
    """

    def __init__(self, labels: int, outputs: int, kernel: int = 3) -> None:
        self.weight = Parameter(outputs, labels, kernel, kernel)
        self.bias = Parameter(outputs)

    @overload
    def __call__(
        self, labels: Feature, *, size: tuple[int, int], activation: Activation = "identity"
    ) -> Feature: ...

    @overload
    def __call__(
        self, labels: Feature, *, size: tuple[int, int], activation: Activation = "identity", by_window: bool
    ) -> Feature | Coded: ...

    def __call__(
        self,
        labels: Feature,
        *,
        size: tuple[int, int],
        activation: Activation = "identity",
        by_window: bool = False,
    ) -> Feature | Coded:
        """`activation(conv(one_hot(labels resized to size)) + bias)`, `[N, *size, O]`.

        `by_window`: in runs that keep codebooks, return a coded feature, a row for each distinct window of labels.
        """
        run = labels.run
        outputs, _, kernel, _ = self.weight.shape
        n, h, w, _ = labels.shape
        step = h // size[0]
        if (size[0] * step, size[1] * step) != (h, w):
            raise ShapeError(f"{self.path}: a label map of {h}×{w} does not divide into {size[0]}×{size[1]}")
        if by_window and run.memory.coded:
            return self._by_window(labels, size, step, activation)
        half = kernel // 2
        table, bias = run.prepared(self.path, self._prepare)

        def look_up(canvas: Array, tiles: Tiles) -> bool:
            return run.backend.lookup(
                canvas, tiles, labels.parts[0].array, table, bias, step=step, activation=activation
            )

        reads = labels.reads(Window(kernel, top=half, left=half, step=step))
        shape = (n, *size, outputs)
        canvas = run.compute(self.path, shape, reads, look_up, macs_per_pixel=self.macs_per_pixel)
        return Feature(run, (canvas,))

    def _by_window(self, labels: Feature, size: tuple[int, int], step: int, activation: Activation) -> Coded:
        run = labels.run
        outputs, classes, kernel, _ = self.weight.shape
        table, bias = run.prepared(self.path, self._prepare)
        codes = encode(labels, kernel=kernel, step=step, size=size)
        codebook = run.memory.codebooks[codes.parts[0].path]

        def fill(rows: Array, windows: Host) -> bool:
            # a strip of pixels, one for each window, whose planes are the window's taps: a 1×1 look-up
            def places() -> tuple[Array, Tiles]:
                taps = windows.reshape(len(windows), kernel * kernel, -1)
                first = np.arange(0, kernel * kernel * classes, classes, dtype=np.int32)
                rows_of_taps = np.where(taps >= 0, taps + first[:, None], np.int32(-1))
                return run.backend.upload(rows_of_taps.reshape(1, len(windows), 1, -1)), strip(len(windows))

            # many layers of a generator read the same windows
            new = range(len(codebook.window_set) - len(windows), len(codebook.window_set))
            indices, pixels = run.once(("places", codebook.path, classes, new), places)
            out = rows.reshape(1, len(windows), 1, outputs)
            by_place = table.reshape(1, kernel * kernel * classes, outputs)
            return run.backend.lookup(out, pixels, indices, by_place, bias, activation=activation)

        return tabulate(self.path, codes, outputs, fill, macs_per_pixel=self.macs_per_pixel)

    def _prepare(self, backend: Backend) -> tuple[Array, Array]:
        outputs, labels, k, _ = self.weight.shape
        # OIHW -> [taps, V, O]: a label's contribution at a tap is one contiguous row
        table = self.weight.float32.transpose(2, 3, 1, 0).reshape(k * k, labels, outputs)
        return backend.upload(table), backend.upload(self.bias.float32)

    @property
    def macs_per_pixel(self) -> int:
        return math.prod(self.weight.shape)


class TokenEmbedding(Layer):
    """The embedding of a text: the row of a token plus the row of its place in the text.

    Reads an index feature (int32 `[N, H, W, 2]`: the id of a token; V plus its place). Parameters: `token_embedding`
    `[V, C]`, `position_embedding` `[T, C]`.
    """

    def __init__(self, vocabulary: int, tokens: int, channels: int) -> None:
        self.token_embedding = Parameter(vocabulary, channels)
        self.position_embedding = Parameter(tokens, channels)

    def __call__(self, tokens: Feature) -> Feature:
        """`[N, H, W, 2]` → `[N, H, W, C]`."""
        run, (n, h, w, _) = tokens.run, tokens.shape
        table, zeros = run.prepared(self.path, self._prepare)

        def look_up(canvas: Array, tiles: Tiles) -> bool:
            return run.backend.lookup(canvas, tiles, tokens.parts[0].array, table, zeros)

        shape = (n, h, w, self.token_embedding.shape[1])
        canvas = run.compute(self.path, shape, tokens.reads(Window()), look_up, macs_per_pixel=0)
        return Feature(run, (canvas,))

    def _prepare(self, backend: Backend) -> tuple[Array, Array]:
        table = np.concatenate([self.token_embedding.float32, self.position_embedding.float32])
        return backend.upload(table[None]), backend.alloc((table.shape[1],))
