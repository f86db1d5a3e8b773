"""An averaged DDPM in, ``landscape-ddpm.pth`` and sheets of edited pictures out.

    python -m sparsegen.weights.training.ddpm_export landscape-ddpm.pth weights/training/ddpm_sheet.png

paints the contact sheet of an exported network; ``train_ddpm.py`` exports by itself, at every sheet.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation

from .batches import to_bytes, to_tensor
from .dataset import UNSEEN
from .ddpm_network import Model
from .landscapes import landscape

SIZE = 128  # of the square pictures: half the painter's height
STEPS = 25  # of DDIM, spread evenly over the timesteps from the noise level down
ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)  # linear betas


def halve(pictures):
    """uint8 [N, H, W, 3] -> uint8 [N, H / 2, W / 2, 3]: means of four pixels."""
    n, h, w, _ = pictures.shape
    fours = pictures.reshape(n, h // 2, 2, w // 2, 2, 3).astype(np.uint16).sum((2, 4))
    return ((fours + 2) // 4).astype(np.uint8)


def unseen(seed):
    """A picture uint8 [128, 128, 3] that no training has seen."""
    picture = halve(landscape(seed)[1][None])[0]
    left = np.random.default_rng(seed).integers(0, picture.shape[1] - SIZE + 1)
    return picture[:, left : left + SIZE]


def strokes(picture, seed):
    """Paint flat strokes onto a copy of ``picture`` [128, 128, 3]: the thing to make real, chosen by ``seed``."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(seed)
    x, y = rng.integers(24, 104), rng.integers(92, 112)
    kind = seed % 4
    if kind == 0:  # a house
        draw.rectangle((x - 14, y - 13, x + 14, y + 4), fill=(214, 205, 190))
        draw.polygon(
            [(x - 18, y - 13), (x + 18, y - 13), (x + 10, y - 25), (x - 10, y - 25)], fill=(165, 60, 50)
        )
    elif kind == 1:  # a round tree
        draw.rectangle((x - 2, y - 20, x + 2, y + 6), fill=(80, 60, 45))
        draw.ellipse((x - 16, y - 46, x + 16, y - 14), fill=(62, 98, 44))
    elif kind == 2:  # a fir
        draw.polygon([(x - 13, y + 4), (x + 13, y + 4), (x, y - 50)], fill=(34, 58, 42))
    else:  # a cloud, and a fir
        draw.ellipse((x - 22, 14, x + 22, 30), fill=(238, 238, 242))
        draw.ellipse((x - 12, 8, x + 10, 24), fill=(238, 238, 242))
        draw.polygon([(118 - x, y + 2), (136 - x, y + 2), (127 - x, y - 34)], fill=(34, 58, 42))
    return np.asarray(image)


@torch.no_grad()
def sdedit(network, original, painted, level, *, seed=0, margin=2):
    """Make the strokes real: SDEdit (Meng et al. 2021) from noise ``level`` with DDIM, the rest of the picture kept.

    ``original`` and ``painted`` are uint8 [N, 128, 128, 3]. Outside of the strokes, dilated by ``margin`` pixels,
    every step puts the original back, noised to that step's level with the same noise.
    """
    edited = (original != painted).any(-1)
    inside = np.stack([binary_dilation(m, np.ones((3, 3)), iterations=margin) for m in edited])
    inside = torch.from_numpy(inside)[:, None]
    original, x = to_tensor(original), to_tensor(painted)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    times = np.linspace(level - 1, -1, STEPS + 1).round().astype(int)
    alphas = [float(ALPHAS[t]) if t >= 0 else 1.0 for t in times]
    x = alphas[0] ** 0.5 * x + (1 - alphas[0]) ** 0.5 * noise
    for t, alpha, below in zip(times[:-1], alphas[:-1], alphas[1:], strict=True):
        predicted = network(x, torch.full((len(x),), int(t))).float()
        clean = ((x - (1 - alpha) ** 0.5 * predicted) / alpha**0.5).clamp(-1, 1)
        predicted = (x - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        x = below**0.5 * clean + (1 - below) ** 0.5 * predicted
        x = torch.where(inside, x, below**0.5 * original + (1 - below) ** 0.5 * noise)
        x = x.contiguous(memory_format=torch.channels_last)
    return to_bytes(x)


def sheet(network, seeds, path, *, levels=(300, 400, 500), fresh=0):
    """Write original, strokes and SDEdit from each of ``levels`` for every seed; ``fresh``: rows made of noise only."""
    original = np.stack([unseen(seed) for seed in seeds])
    painted = np.stack([strokes(*pair) for pair in zip(original, seeds, strict=True)])
    tiles = [original, painted, *(sdedit(network, original, painted, level) for level in levels)]
    rows = [np.hstack(row) for row in zip(*tiles, strict=True)]
    if fresh:
        blank = np.zeros((fresh * len(tiles), SIZE, SIZE, 3), np.uint8)
        samples = sdedit(network, blank, blank + 1, 1000, seed=1)
        rows += [np.hstack(samples[i::fresh]) for i in range(fresh)]
    Image.fromarray(np.vstack(rows)).save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="an exported network, landscape-ddpm.pth")
    parser.add_argument("target", type=Path, help="the PNG to write")
    args = parser.parse_args()
    network = Model()
    network.load_state_dict(torch.load(args.source, weights_only=True))
    network.eval().to(memory_format=torch.channels_last)
    sheet(network, range(UNSEEN, UNSEEN + 8), args.target)


if __name__ == "__main__":
    main()
