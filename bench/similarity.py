"""Structural similarity of two images: uint8 in, -1 to 1 out, by scikit-image.

With the window of its paper (Wang et al., "Image Quality Assessment", 2004): Gaussian, 11×11 pixels of sigma 1.5, and
moments that are the window's plain weighted means.
"""

from __future__ import annotations

import numpy as np

SIGMA = 1.5
"""Of the Gaussian window; scikit-image cuts it at 3.5 sigma, which makes 11×11 pixels."""
LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601: the weights of red, green and blue."""


def ssim(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    """The mean similarity of the luma of two images uint8 `[H, W, 3]`, over the pixels `where` (bool `[H, W]`).

    The images are mirrored at their borders, so that every pixel has a window. `where` None: all pixels.
    """
    found = similarity(a @ np.array(LUMA), b @ np.array(LUMA))
    return float(found.mean() if where is None else found[where].mean())


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The similarity at each pixel of two grey images `[H, W]` with values of 0 to 255."""
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "sigma": SIGMA, "use_sample_covariance": False, "data_range": 255}
    _, found = structural_similarity(a, b, full=True, **options)
    return np.asarray(found)
