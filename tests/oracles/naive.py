"""The contract's primitives as naive loops in float64: `Source`s of NumPy arrays come in, whole canvases come out.

Nothing here knows of tiles. Convolution and attention compute the formulas of `backends/interface.py`, one output pixel
after another; nothing is shared with any backend.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from sparsegen.backends import Source
from sparsegen.backends.interface import LEAKY_SLOPE, Activation, Host, Padding


def activate(v: Host, activation: Activation) -> Host:
    """The textbook formula, any shape."""
    v = np.asarray(v, np.float64)
    return {
        "identity": lambda: v,
        "relu": lambda: v * (v > 0),
        "leaky_relu": lambda: v * np.where(v > 0, 1, LEAKY_SLOPE),
        "silu": lambda: v * np.exp(-np.logaddexp(0, -v)),  # v * sigmoid(v), without an overflow
        "gelu": lambda: v * ndtr(v),
        "quick_gelu": lambda: v * np.exp(-np.logaddexp(0, -1.702 * v)),
        "tanh": lambda: np.tanh(v),
        "geglu": lambda: (lambda first, second: first * second * ndtr(second))(*np.split(v, 2, axis=-1)),
    }[activation]()


def read(source: Source) -> Host:
    """What a layer reads, `[N, H, W, C]`: each pending step on the whole canvas, in the contract's order."""
    v = np.concatenate([np.asarray(part, np.float64) for part in source.parts], axis=-1)
    v = np.repeat(np.repeat(v, source.upsample, axis=1), source.upsample, axis=2)
    if source.layer_eps is not None:
        v = layer_norm(v, source.layer_eps)
    if source.scale is not None:
        v = v * source.scale[:, None, None, :] + source.shift[:, None, None, :]
    if source.modulation is not None:
        c, rows = v.shape[-1], source.modulation
        rows = rows if source.codes is None else rows[source.codes[..., 0]]
        v = v * (1.0 + rows[..., :c]) + rows[..., c:]
    return activate(v, source.activation)


def conv2d(
    v: Host,
    weight: Host,
    *,
    stride: int = 1,
    padding: Padding = (0, 0, 0, 0),
    groups: int = 1,
) -> Host:
    """`[N, H, W, I]` and `[O, I / groups, kh, kw]` → `[N, H', W', O]`, without bias."""
    top, bottom, left, right = padding
    v = np.pad(v, ((0, 0), (top, bottom), (left, right), (0, 0)))
    outputs, per_group, kh, kw = weight.shape
    samples, rows, columns, _ = v.shape
    out = np.zeros((samples, (rows - kh) // stride + 1, (columns - kw) // stride + 1, outputs))
    weight = weight.astype(np.float64).transpose(0, 2, 3, 1)  # OIHW -> OHWI
    for n, y, x in np.ndindex(out.shape[:3]):
        window = v[n, y * stride : y * stride + kh, x * stride : x * stride + kw]
        for group in range(groups):
            o = slice(group * outputs // groups, (group + 1) * outputs // groups)
            i = slice(group * per_group, (group + 1) * per_group)
            out[n, y, x, o] = np.tensordot(weight[o], window[..., i], 3)
    return out


def one_hot(indices: Host, labels: int, *, step: int = 1) -> Host:
    """int `[N, H, W, P]` → `[N, H / step, W / step, labels]`: how many planes name each channel; -1 names none."""
    nearest = indices[:, ::step, ::step]
    return (nearest[..., None] == np.arange(labels)).sum(-2).astype(np.float64)


def windows(indices: Host, kernel: int, step: int) -> Host:
    """int `[N, h, w, P]` → `[N, h / step, w / step, kernel * kernel * P]`: what `lookup` reads; -1 outside."""
    samples, height, width, planes = indices.shape
    out = np.full((samples, height // step, width // step, kernel, kernel, planes), -1, np.int32)
    for n, y, x, i, j in np.ndindex(out.shape[:5]):
        row, column = (y + i - kernel // 2) * step, (x + j - kernel // 2) * step
        if 0 <= row < height and 0 <= column < width:
            out[n, y, x, i, j] = indices[n, row, column]
    return out.reshape(*out.shape[:3], -1)


def attention(query: Host, key: Host, value: Host, *, heads: int, causal: bool = False) -> Host:
    """softmax(q kᵀ / sqrt(C / heads)) v of `[N, H, W, C]` and `[1 or N, h, w, C]`, one pixel and head after another."""
    channels = query.shape[-1]
    out = np.zeros(query.shape)
    for n, y, x in np.ndindex(query.shape[:3]):
        sample = n if len(key) > 1 else 0
        for c in np.split(np.arange(channels), heads):
            k, v = key[sample][..., c].reshape(-1, len(c)), value[sample][..., c].reshape(-1, len(c))
            if causal:
                before = y * query.shape[2] + x + 1
                k, v = k[:before], v[:before]
            scores = k @ query[n, y, x, c] / np.sqrt(len(c))
            weights = np.exp(scores - scores.max())
            out[n, y, x, c] = weights @ v / weights.sum()
    return out


def layer_norm(v: Host, eps: float) -> Host:
    """Each pixel over its channels, `[N, H, W, C]`."""
    out = np.zeros(v.shape)
    for n, y, x in np.ndindex(v.shape[:3]):
        pixel = v[n, y, x]
        out[n, y, x] = (pixel - pixel.mean()) / np.sqrt(pixel.var() + eps)
    return out
