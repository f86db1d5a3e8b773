"""Structural similarity of two images (Wang et al., "Image Quality Assessment", 2004): uint8 in, -1 to 1 out."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

RADIUS, SIGMA = 5, 1.5
"""Of the Gaussian window, 11×11."""
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601: the weights of red, green and blue."""

_WEIGHTS = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * SIGMA**2))
_WEIGHTS /= _WEIGHTS.sum()


def ssim(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    """The mean similarity of the luma of two images uint8 `[H, W, 3]`, over the pixels `where` (bool `[H, W]`).

    The images are mirrored at their borders, so that every pixel has a window. `where` None: all pixels.
    """
    found = similarity(a @ np.array(LUMA), b @ np.array(LUMA))
    return float(found.mean() if where is None else found[where].mean())


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The similarity at each pixel of two grey images `[H, W]` with values of 0 to 255."""
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a, variance_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    same_mean = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return np.asarray(same_mean * (2 * covariance + C2) / (variance_a + variance_b + C2))


def _blurred(image: np.ndarray) -> np.ndarray:
    padded = np.pad(image, RADIUS, "symmetric")
    rows = sliding_window_view(padded, 2 * RADIUS + 1, axis=0) @ _WEIGHTS
    return np.asarray(sliding_window_view(rows, 2 * RADIUS + 1, axis=1) @ _WEIGHTS)
