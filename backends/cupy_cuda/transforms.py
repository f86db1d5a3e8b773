"""Winograd's transform of kernels: weights come in, and are laid out for the product, in double and rounded once."""

from __future__ import annotations

import numpy as np

from ..interface import Host

_A, _B = 3 / 4, 3 / 2

KERNEL_4 = np.array(
    [[1, 0, 0], [1, _A, _A * _A], [1, -_A, _A * _A], [1, _B, _B * _B], [1, -_B, _B * _B], [0, 0, 1]]
)
"""G of F(4×4, 3×3), `[6, 3]`; `kernels/winograd.cu` has the matrices of windows and of sums."""


def padded(size: int, multiple: int = 4) -> int:
    """`size` rounded up: kernels read four neighbours at once."""
    return -(-size // multiple) * multiple


def winograd_weights(weight: Host) -> Host:
    """U = G g Gᵀ of each kernel of `weight` `[O, I, 3, 3]`: float32 `[36, I, O]`, I and O padded by zeros."""
    outputs, inputs = weight.shape[:2]
    made = np.zeros((36, padded(inputs), padded(outputs)), np.float32)
    for start in range(0, inputs, 128):  # of a large layer, doubles of all of it would take 75 MB
        some = weight[:, start : start + 128].astype(np.float64)
        # -> [6, 6, I, O]
        products = np.einsum("ai,ocij,bj->abco", KERNEL_4, some, KERNEL_4, optimize=True)
        made[:, start : start + some.shape[1], :outputs] = products.reshape(36, some.shape[1], outputs)
    return made


def direct_weights(weight: Host, groups: int) -> Host:
    """`weight` `[O, I / groups, kh, kw]` as `[groups, kh * kw, I / groups, O / groups]`; zeros pad the last two."""
    outputs, inputs, kh, kw = weight.shape
    each = outputs // groups
    made = np.zeros((groups, kh * kw, padded(inputs), padded(each)), np.float32)
    split = weight.reshape(groups, each, inputs, kh * kw)
    made[:, :, :inputs, :each] = split.transpose(0, 3, 2, 1)  # OIHW -> taps, I, O
    return made


def depthwise_weights(weight: Host) -> Host:
    """`weight` `[C, 1, kh, kw]` as `[kh * kw, C]`."""
    return np.ascontiguousarray(weight.reshape(len(weight), -1).T, np.float32)
