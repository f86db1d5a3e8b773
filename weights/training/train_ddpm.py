"""Painted landscapes in, a trained DDPM out: checkpoint, sample sheets and ``landscape-ddpm.pth``.

    python -m sparsegen.weights.training.train_ddpm --minutes 90 --out .training/landscape-ddpm

Run again with the same folder, it continues from the last checkpoint. The network predicts the noise (the simple loss
of Ho et al. 2020); small windows first, then whole pictures.
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch

from .batches import to_tensor
from .dataset import UNSEEN, dataset
from .ddpm_export import ALPHAS, SIZE, halve, sheet
from .ddpm_network import Model
from .export import save
from .loop import Training, options

WINDOW = 64  # pixels: the size of the windows before ``whole_from``
EDITED = 600  # SDEdit uses timesteps below: four of five examples are drawn from them, the fifth from all


def small(folder, count):
    """The pictures of the training, halved: uint8 [count, 128, 256, 3], made once."""
    path = Path(folder) / f"landscapes-{count}" / "halved.npy"
    if not path.exists():
        pictures = dataset(folder, count)[1]
        chunks = [halve(pictures[i : i + 64]) for i in range(0, count, 64)]
        np.save(path, np.concatenate(chunks))
    return np.load(path)


class Examples:
    """Noisy images that depend on (seed, step) alone: a resumed training uses the same data as an unbroken one."""

    def __init__(self, pictures, seed):
        self.pictures, self.seed = pictures, seed

    def __call__(self, step, *, count, size):
        """-> noisy pictures [N, 3, size, size], their timesteps [N], the noise in them."""
        rng = np.random.default_rng([self.seed, step])
        _, h, w, _ = self.pictures.shape
        windows = []
        for i in rng.integers(0, len(self.pictures), count):
            top, left = rng.integers(0, h - size + 1), rng.integers(0, w - size + 1)
            window = self.pictures[i, top : top + size, left : left + size]
            windows.append(window[:, ::-1] if rng.random() < 0.5 else window)
        x = to_tensor(np.stack(windows))
        # Stratified: every batch has timesteps from all over the range.
        u = (np.arange(count) + rng.random(count)) / count
        t = np.where(u < 0.8, u / 0.8 * EDITED, (u - 0.8) / 0.2 * len(ALPHAS)).astype(np.int64)
        noise = torch.from_numpy(rng.standard_normal(x.permute(0, 2, 3, 1).shape, np.float32)).permute(
            0, 3, 1, 2
        )
        alpha = ALPHAS[t].float().view(-1, 1, 1, 1)
        return alpha.sqrt() * x + (1 - alpha).sqrt() * noise, torch.from_numpy(t), noise


class DDPMTraining(Training):
    """The simple loss on windows, later on whole pictures."""

    def __init__(self, args):
        self.examples = Examples(small(args.data, args.pictures), args.seed)
        super().__init__(args)

    def build(self):
        return Model(resolution=SIZE)

    def optimise(self, parameters):
        return torch.optim.Adam(parameters, lr=self.args.lr, fused=True)

    def loss(self, progress):
        windows, args = progress < self.args.whole_from, self.args
        count, size = (args.batch * 4, WINDOW) if windows else (args.batch, SIZE)
        x, t, noise = (each.to(args.device) for each in self.examples(self.step, count=count, size=size))
        return (self.network(x, t) - noise).square().mean()

    def show(self, name, seeds=range(UNSEEN, UNSEEN + 4), **choices):
        """Export the averaged network and paint the sample sheet with it."""
        network = copy.deepcopy(self.ema).cpu()
        save(
            {key: value.contiguous() for key, value in network.state_dict().items()},
            self.args.out / "landscape-ddpm.pth",
        )
        sheet(network, seeds, self.args.out / name, **choices)

    def finish(self):
        self.show("final.png", range(UNSEEN, UNSEEN + 8), fresh=2)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(".training/data"))
    parser.add_argument("--pictures", type=int, default=1800)
    options(parser, minutes=90)
    parser.add_argument("--whole-from", type=float, default=0.7, help="from this part on: whole pictures")
    parser.add_argument(
        "--batch", type=int, default=2, help="whole pictures a step; of windows, four times as many"
    )
    parser.add_argument("--lr", type=float, default=6e-4)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    DDPMTraining(args).run()


if __name__ == "__main__":
    main()
