"""Gather and scatter in NumPy: a source and tiles come in, windows `[K, S, S', C]` come out, and back again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..interface import LEAKY_SLOPE, TILE, Activation, Host, Source


def activate(v: Host, activation: Activation) -> Host:
    """Apply an activation elementwise, any shape."""
    if activation == "relu":
        return np.maximum(v, 0)
    if activation == "leaky_relu":
        return np.where(v > 0, v, v * np.float32(LEAKY_SLOPE))
    if activation == "silu":
        with np.errstate(over="ignore"):  # below -88 exp(-v) is inf, and v / inf the 0 that it should be
            return np.asarray(v / (1 + np.exp(-v)))
    if activation == "tanh":
        return np.tanh(v)
    return v


def batches(tiles: Host, values_per_tile: int, *, limit: int = 1 << 22) -> Iterator[Host]:
    """Cut `tiles` `[K, 3]` into runs whose gathered windows stay near `limit` floats (16 MB)."""
    step = max(1, limit // max(1, values_per_tile))
    for start in range(0, len(tiles), step):
        yield tiles[start : start + step]


def window_positions(
    tiles: Host, size: tuple[int, int], *, stride: int = 1, top: int = 0, left: int = 0, step: int = 1
) -> tuple[Host, Host, Host]:
    """Sample, rows and columns that the windows of `tiles` read, ready to broadcast to `[K, size0, size1]`.

    A tile's window starts at output pixel `TILE * tile`, times `stride`, less the padding; neighbours lie
    `step` apart. Positions may lie outside the image.
    """
    n, row, column = (tiles[:, i].astype(np.intp) for i in range(3))
    y = (row[:, None] * TILE * stride - top + np.arange(size[0])) * step
    x = (column[:, None] * TILE * stride - left + np.arange(size[1])) * step
    return n[:, None, None], y[:, :, None], x[:, None, :]


def read_source(source: Source, n: Host, y: Host, x: Host) -> Host:
    """Values of `source` at pixels (n, y, x), after its prologue; 0 outside the image. `[..., C]`"""
    _, height, width, _ = source.shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = y.clip(0, height - 1), x.clip(0, width - 1)
    yy, xx = y // source.upsample, x // source.upsample
    v = np.concatenate([part[n, yy, xx] for part in source.parts], axis=-1)
    if source.scale is not None:
        per_sample = n if len(source.scale) > 1 else np.zeros_like(n)
        v = v * source.scale[per_sample] + source.shift[per_sample]  # type: ignore[index]  # given with scale
    if source.modulation is not None:
        row = (n, y, x) if source.codes is None else source.codes[n, y, x, 0]
        gamma, beta = np.split(source.modulation[row], 2, axis=-1)
        v = v * (1 + gamma) + beta
    return np.where(inside[..., None], activate(v, source.activation), np.float32(0))


def read_pixels(source: Source, tiles: Host) -> Host:
    """The tiles' own pixels of `source`, after its prologue: `[K, TILE, TILE, C]`."""
    return read_source(source, *window_positions(tiles, (TILE, TILE)))


def read_indices(indices: Host, tiles: Host, kernel: int, step: int) -> Host:
    """The index pixels around which `tiles`' kernel × kernel windows lie, -1 outside the image: `[K, S, S, P]`."""
    _, height, width, _ = indices.shape
    side = TILE + kernel - 1
    n, y, x = window_positions(tiles, (side, side), top=kernel // 2, left=kernel // 2, step=step)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return np.where(inside[..., None], indices[n, y.clip(0, height - 1), x.clip(0, width - 1)], -1)


def inside_pixels(canvas: Host, tiles: Host) -> tuple[Host, tuple[Host, Host, Host]]:
    """Which of the tiles' pixels lie inside the canvas, bool `[K, TILE, TILE]`, and their (n, y, x)."""
    n, y, x = np.broadcast_arrays(*window_positions(tiles, (TILE, TILE)))
    inside = (y < canvas.shape[1]) & (x < canvas.shape[2])
    return inside, (n[inside], y[inside], x[inside])


def scatter(canvas: Host, tiles: Host, values: Host) -> None:
    """Write `values` `[K, TILE, TILE, C]` into the canvas; what overhangs its border is dropped."""
    inside, pixels = inside_pixels(canvas, tiles)
    canvas[pixels] = values[inside]
