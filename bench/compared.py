"""How near an edit is to a dense one: two results come in, a row of figures comes out."""

from __future__ import annotations

import numpy as np

import sparsegen
from bench.quality_tables import Row
from bench.similarity import ssim
from sparsegen.images import psnr


def compared(result: sparsegen.Result, dense: sparsegen.Result, original: np.ndarray) -> Row:
    """The figures of an edit beside the dense edit of the same strokes."""
    stats, image, expected = result.stats, result.image, dense.image
    region = (image != original).any(-1) | (expected != original).any(-1)
    return {
        "area": stats.edited_area,
        "macs": stats.macs / stats.macs_dense,
        "psnr": psnr(image, expected),
        "psnr_region": psnr(image[region], expected[region]),
        "ssim": ssim(image, expected),
        "ssim_region": ssim(image, expected, region),
    }
