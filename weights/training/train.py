"""Painted landscapes in, a trained SPADE generator out: checkpoint, sample sheets and ``latest_net_G.pth``.

    python -m sparsegen.weights.training.train --minutes 85 --out .training/landscape

Run again with the same folder, it continues from the last checkpoint. Hinge GAN, feature matching and L1; small
windows first, then whole pictures with frozen batch statistics (the statistics that inference will use).
"""

import argparse
import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from .batches import Batches
from .canvas import STYLE_SIZE
from .dataset import UNSEEN, dataset
from .export import calibrate, export, norms, save, sheet
from .network import Discriminator, SPADEGenerator

WHOLE_FROM = 0.60  # from this part of the training on: whole pictures, frozen batch statistics
DECAY_FROM = 0.55  # from here on the learning rates fall linearly
FEATURES, PIXELS = 10.0, 10.0  # weights of feature matching and of L1 beside the adversarial loss


class Training:
    def __init__(self, args):
        torch.manual_seed(args.seed)
        self.args, self.step, self.seconds, self.frozen = args, 0, 0.0, False
        self.batches = Batches(dataset(args.data, args.pictures), args.seed)
        self.g = SPADEGenerator(ngf=args.ngf, nhidden=args.nhidden, z_dim=STYLE_SIZE)
        self.d = Discriminator(ndf=args.ndf)
        with torch.no_grad():
            # The style is to be heard alike everywhere: every cell starts from the same weights, nearly. The
            # biases stay apart, so that no two places look alike.
            fc = self.g.fc.weight.view(16 * args.ngf, 8 * 16, STYLE_SIZE)
            fc.mul_(0.2).add_(torch.randn(16 * args.ngf, 1, STYLE_SIZE) / STYLE_SIZE**0.5)
            self.g.fc.bias.normal_(0, 0.5)
        for network in (self.g, self.d):
            network.to(memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.g).eval()
        self.opt_g = torch.optim.Adam(self.g.parameters(), lr=args.lr, betas=(0.0, 0.99))
        self.opt_d = torch.optim.Adam(self.d.parameters(), lr=args.lr, betas=(0.0, 0.99))
        self.checkpoint = args.out / "checkpoint.pth"
        if self.checkpoint.exists():
            self.resume(torch.load(self.checkpoint, weights_only=True))

    def parts(self):
        return {"g": self.g, "d": self.d, "ema": self.ema, "opt_g": self.opt_g, "opt_d": self.opt_d}

    def resume(self, state):
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step, self.seconds, self.frozen = state["step"], state["seconds"], state["frozen"]
        print(f"resumed at step {self.step}, minute {self.seconds / 60:.1f}", flush=True)

    def keep(self):
        state = {name: part.state_dict() for name, part in self.parts().items()}
        save(state | {"step": self.step, "seconds": self.seconds, "frozen": self.frozen}, self.checkpoint)

    def progress(self):
        """How much of the training is behind, in 0..1: by steps where they were given, otherwise by time."""
        args = self.args
        return self.step / args.steps if args.steps else self.seconds / 60 / args.minutes

    def freeze(self):
        calibrate(self.g, self.batches, count=160)
        self.frozen = True

    def update(self):
        """One step of both networks; returns the losses by name."""
        progress = self.progress()
        rate = self.args.lr * min(1, (self.step + 1) / 100) * min(1, (1 - progress) / (1 - DECAY_FROM))
        for optimiser in (self.opt_g, self.opt_d):
            for group in optimiser.param_groups:
                group["lr"] = max(rate, 1e-6)
        self.g.train()
        if self.frozen:
            for norm in norms(self.g):
                norm.eval()
        seg, real, z, corners = self.batches(self.step, size=1 if self.frozen else 4, whole=self.frozen)
        bf16 = torch.autocast("cpu", torch.bfloat16)

        with bf16:
            fake = self.g(seg, z, corners)
            seen = [
                scale[-1].float() for scale in self.d(torch.cat([seg, seg]), torch.cat([real, fake.detach()]))
            ]
        n = len(seg)
        loss_d = sum(F.relu(1 - s[:n]).mean() + F.relu(1 + s[n:]).mean() for s in seen) / len(seen)
        self.opt_d.zero_grad(set_to_none=True)
        loss_d.backward()
        self.opt_d.step()

        self.d.requires_grad_(False)
        with bf16:
            with torch.no_grad():
                goal = self.d(seg, real)
            made = self.d(seg, fake)
        adversarial = -sum(scale[-1].float().mean() for scale in made) / len(made)
        matching = sum(
            F.l1_loss(a.float(), b.float())
            for m, g in zip(made, goal, strict=True)
            for a, b in zip(m[:-1], g[:-1], strict=True)
        ) / len(made)
        pixels = F.l1_loss(fake.float(), real)
        self.opt_g.zero_grad(set_to_none=True)
        (adversarial + FEATURES * matching + PIXELS * pixels).backward()
        self.opt_g.step()
        self.d.requires_grad_(True)

        keep = min(0.998, 1 - 1 / (self.step + 2))
        with torch.no_grad():
            for average, p in zip(self.ema.parameters(), self.g.parameters(), strict=True):
                average.lerp_(p, 1 - keep)
            for average, b in zip(self.ema.buffers(), self.g.buffers(), strict=True):
                average.copy_(b)
        return {"d": loss_d, "adv": adversarial, "match": matching, "l1": pixels}

    def show(self, seeds=range(UNSEEN, UNSEEN + 4), name=None):
        """Export the averaged generator and paint the sample sheet with it, in eval mode."""
        network = copy.deepcopy(self.ema)
        if not self.frozen:
            calibrate(network, self.batches, count=32)
        export(network, self.args.out / "latest_net_G.pth")
        sheet(network.eval(), seeds, self.args.out / (name or f"step-{self.step:06d}.png"))

    def run(self):
        args, shown, totals, count = self.args, time.monotonic(), {}, 0
        while self.progress() < 1:
            if not self.frozen and self.progress() >= WHOLE_FROM:
                self.freeze()
            start = time.monotonic()
            losses = self.update()
            self.step += 1
            self.seconds += time.monotonic() - start
            count += 1
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + loss.item()
            if self.step % 50 == 0:
                line = " ".join(f"{name} {total / count:.3f}" for name, total in totals.items())
                print(f"step {self.step} minute {self.seconds / 60:.1f} {line}", flush=True)
                totals, count = {}, 0
            if time.monotonic() - shown > 60 * args.every:
                self.keep()
                self.show()
                shown = time.monotonic()
        self.keep()
        self.show(range(UNSEEN, UNSEEN + 8), "final.png")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(".training/data"))
    parser.add_argument("--pictures", type=int, default=1600)
    parser.add_argument(
        "--minutes", type=float, default=85, help="training time, without sheets and checkpoints"
    )
    parser.add_argument("--steps", type=int, help="instead of --minutes: the same steps on any machine")
    parser.add_argument("--every", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ngf", type=int, default=16)
    parser.add_argument("--nhidden", type=int, default=32)
    parser.add_argument("--ndf", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-4)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    Training(args).run()


if __name__ == "__main__":
    main()
