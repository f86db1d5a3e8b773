"""Painted landscapes in, a trained DDPM out: checkpoint, sample sheets and ``landscape-ddpm.pth``.

    python -m sparsegen.weights.training.train_ddpm --minutes 90 --out .training/landscape-ddpm

Run again with the same folder, it continues from the last checkpoint. The network predicts the noise (the simple loss
of Ho et al. 2020); small windows first, then whole pictures.
"""

import argparse
import copy
import datetime
import statistics
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch

from .batches import to_tensor
from .dataset import UNSEEN, dataset
from .ddpm_export import ALPHAS, SIZE, halve, sheet
from .ddpm_network import Model
from .export import save

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


class Clock:
    """Counts the time of the steps, a step as at most three median ones: pauses are not training."""

    def __init__(self, seconds=0.0):
        self.seconds, self.recent = seconds, deque(maxlen=51)

    def add(self, duration):
        self.recent.append(duration)
        self.seconds += min(duration, 3 * statistics.median(self.recent))


def next_time(text):
    """ "HH:MM" -> the next moment, in seconds since 1970, at which a local clock shows it."""
    now = datetime.datetime.now()
    then = datetime.datetime.combine(now.date(), datetime.time.fromisoformat(text))
    return (then if then > now else then + datetime.timedelta(days=1)).timestamp()


class Training:
    def __init__(self, args):
        torch.manual_seed(args.seed)
        self.args, self.step, self.seen, self.clock = args, 0, 0, Clock()
        self.until = next_time(args.until) if args.until else None
        self.examples = Examples(small(args.data, args.pictures), args.seed)
        self.network = Model(resolution=SIZE).to(memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.network).eval()
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=args.lr, fused=True)
        self.checkpoint = args.out / "checkpoint.pth"
        if self.checkpoint.exists():
            self.resume(torch.load(self.checkpoint, weights_only=True))

    def parts(self):
        return {"network": self.network, "ema": self.ema, "optimiser": self.optimiser}

    def resume(self, state):
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step, self.seen, self.clock = state["step"], state["seen"], Clock(state["seconds"])
        print(f"resumed at step {self.step}, minute {self.clock.seconds / 60:.1f}", flush=True)

    def keep(self):
        state = {name: part.state_dict() for name, part in self.parts().items()}
        save(state | {"step": self.step, "seen": self.seen, "seconds": self.clock.seconds}, self.checkpoint)

    def progress(self):
        """How much of the training is behind, in 0..1: by steps, by the time of day or by the time it took."""
        args, trained = self.args, self.clock.seconds
        if args.steps:
            return self.step / args.steps
        if self.until:
            left = max(0.0, self.until - time.time())
            return trained / (trained + left) if left else 1.0
        return trained / 60 / args.minutes

    def update(self):
        """One step; returns the loss."""
        progress, args = self.progress(), self.args
        warm = min(1, (self.step + 1) / 200)
        rate = args.lr * warm * (0.5 + 0.5 * np.cos(np.pi * min(1, progress)))
        for group in self.optimiser.param_groups:
            group["lr"] = max(float(rate), 1e-6)
        windows = progress < args.whole_from
        count, size = (args.batch * 4, WINDOW) if windows else (args.batch, SIZE)
        x, t, noise = self.examples(self.step, count=count, size=size)
        loss = (self.network(x, t) - noise).square().mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.seen += count
        keep = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.network.parameters()), 1 - keep)
        return loss.item()

    def show(self, seeds=range(UNSEEN, UNSEEN + 4), name=None, **options):
        """Export the averaged network and paint the sample sheet with it."""
        weights = {key: value.contiguous() for key, value in self.ema.state_dict().items()}
        save(weights, self.args.out / "landscape-ddpm.pth")
        sheet(self.ema, seeds, self.args.out / (name or f"step-{self.step:06d}.png"), **options)

    def run(self):
        args, losses = self.args, []
        kept = shown = time.monotonic()
        while self.progress() < 1:
            start = time.monotonic()
            losses.append(self.update())
            self.step += 1
            self.clock.add(time.monotonic() - start)
            if self.step % 50 == 0:
                minutes, median = self.clock.seconds / 60, statistics.median(self.clock.recent)
                print(
                    f"step {self.step} seen {self.seen} minute {minutes:.1f} progress {self.progress():.3f} "
                    f"loss {statistics.fmean(losses):.4f} step {median:.2f} s",
                    flush=True,
                )
                losses.clear()
            if time.monotonic() - kept > 60 * args.every:
                self.keep()
                kept = time.monotonic()
            if time.monotonic() - shown > 60 * args.sheets:
                self.show()
                shown = time.monotonic()
        self.keep()
        self.show(range(UNSEEN, UNSEEN + 8), "final.png", fresh=2)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(".training/data"))
    parser.add_argument("--pictures", type=int, default=1800)
    parser.add_argument("--minutes", type=float, default=90, help="training time, without sheets and pauses")
    parser.add_argument("--until", metavar="HH:MM", help="instead of --minutes: when the clock shows this")
    parser.add_argument("--steps", type=int, help="instead of --minutes: the same steps on any machine")
    parser.add_argument("--every", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--sheets", type=float, default=15, help="minutes between sheets of samples")
    parser.add_argument("--whole-from", type=float, default=0.7, help="from this part on: whole pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batch", type=int, default=2, help="whole pictures a step; of windows, four times as many"
    )
    parser.add_argument("--lr", type=float, default=6e-4)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    Training(args).run()


if __name__ == "__main__":
    main()
