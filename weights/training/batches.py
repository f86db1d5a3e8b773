"""Painted landscapes in, tensors out: the batch of a step, and the conversion of images between bytes and tensors."""

import numpy as np
import torch
import torch.nn.functional as F

from .canvas import LABELS, STYLE, STYLE_SIZE

CELL = 32  # pixels per cell of the generator's first map: windows are cut on this grid
WINDOW = (4, 8)  # cells, of the (8, 16) of a whole picture


def one_hot(labels):
    """uint8 [N, H, W] -> float32 [N, 11, H, W], channels last in memory."""
    seg = F.one_hot(torch.from_numpy(labels.astype(np.int64)), len(LABELS["names"])).permute(0, 3, 1, 2)
    return seg.float().contiguous(memory_format=torch.channels_last)


def to_tensor(pictures):
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in -1..1, channels last in memory."""
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
        memory_format=torch.channels_last
    )


def to_bytes(pictures):
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5 + 0.5).byte().permute(0, 2, 3, 1).numpy()


class Batches:
    """Batches that depend on (seed, step) alone: a resumed training uses the same data as an unbroken one."""

    def __init__(self, arrays, seed):
        self.labels, self.pictures, self.styles = arrays
        self.seed = seed

    def __call__(self, step, *, size, whole):
        """-> seg [N, 11, h, w], pictures [N, 3, h, w], z [N, 16], corners [N, 2] in cells (None: whole)."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.integers(0, len(self.labels), size)
        z = self.styles[chosen].copy()
        z[:, len(STYLE) :] = rng.standard_normal((size, STYLE_SIZE - len(STYLE)))
        if whole:
            return one_hot(self.labels[chosen]), to_tensor(self.pictures[chosen]), torch.from_numpy(z), None
        (h, w), pixels = WINDOW, CELL
        corners = [(rng.integers(0, 8 - h + 1), rng.integers(0, 16 - w + 1)) for _ in chosen]
        cuts = [np.s_[r * pixels : (r + h) * pixels, c * pixels : (c + w) * pixels] for r, c in corners]
        labels = np.stack([self.labels[i][cut] for i, cut in zip(chosen, cuts, strict=True)])
        pictures = np.stack([self.pictures[i][cut] for i, cut in zip(chosen, cuts, strict=True)])
        return one_hot(labels), to_tensor(pictures), torch.from_numpy(z), corners
