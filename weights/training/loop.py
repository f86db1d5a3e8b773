"""A network and its loss in, training steps out: schedule, averaged weights, checkpoints, sheets, one log.

`Training` is the loop of the diffusion models that this folder trains; a subclass brings the network, the loss and the
pictures to show. Run again with the same folder, it continues from its last checkpoint.
"""

import copy
import datetime
import statistics
import time
from collections import deque

import numpy as np
import torch

from .export import save


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


def default_device():
    """ "cuda" where PyTorch finds a card, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def laid_out(network, device):
    """``network`` on its device, in the layout of memory that is faster there."""
    faster = torch.channels_last if torch.device(device).type == "cpu" else torch.contiguous_format
    return network.to(device=device, memory_format=faster)


def options(parser, *, minutes):
    """Add what every training takes to an ``argparse`` parser. ``minutes``: the default of ``--minutes``."""
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="training time, without sheets and pauses"
    )
    parser.add_argument("--until", metavar="HH:MM", help="instead of --minutes: when the clock shows this")
    parser.add_argument("--steps", type=int, help="instead of --minutes: the same steps on any machine")
    parser.add_argument("--every", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--sheets", type=float, default=15, help="minutes between sheets of samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=default_device(), help="cpu, cuda, cuda:1")


class Training:
    """Steps under a clock: warm-up, cosine, averaged weights, checkpoints that a later run continues from.

    ``args`` holds `options`, ``out`` (a folder) and ``lr``. A subclass defines ``name`` (of its checkpoint), ``decay``
    (of the averaged weights), `build` (the network), `loss` of a step and `show` (a sheet of samples).
    """

    name = "checkpoint"
    decay = 0.999

    def __init__(self, args):
        torch.manual_seed(args.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        self.args, self.step, self.clock = args, 0, Clock()
        self.until = next_time(args.until) if args.until else None
        self.network = laid_out(self.build(), args.device)
        self.ema = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimiser = self.optimise(self.network.parameters())
        self.checkpoint = args.out / f"{self.name}.pth"
        if self.checkpoint.exists():
            self.resume(torch.load(self.checkpoint, weights_only=True, map_location=args.device))

    def build(self):
        """The network to train."""
        raise NotImplementedError

    def loss(self, progress):
        """The loss of the step ``self.step``, ``progress`` (0..1) of the training behind."""
        raise NotImplementedError

    def show(self, name):
        """Write what there is to look at under ``name`` into ``args.out``."""
        raise NotImplementedError

    def finish(self):
        """After the last step."""

    def optimise(self, parameters):
        """The optimiser of ``parameters``."""
        return torch.optim.AdamW(
            parameters, lr=self.args.lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )

    def parts(self):
        """Name -> what a checkpoint holds."""
        return {"network": self.network, "ema": self.ema, "optimiser": self.optimiser}

    def resume(self, state):
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step, self.clock = state["step"], Clock(state["seconds"])
        print(f"resumed at step {self.step}, minute {self.clock.seconds / 60:.1f}", flush=True)

    def keep(self):
        state = {name: part.state_dict() for name, part in self.parts().items()}
        save(state | {"step": self.step, "seconds": self.clock.seconds}, self.checkpoint)

    def generator(self):
        """Random numbers on the device that depend on seed and step alone: resumed, a training draws the same."""
        return torch.Generator(self.args.device).manual_seed(self.args.seed * 10**9 + self.step)

    def progress(self):
        """How much of the training is behind, in 0..1: by steps, by the time of day or by the time it took."""
        args, trained = self.args, self.clock.seconds
        if args.steps:
            return self.step / args.steps
        if self.until:
            left = max(0.0, self.until - time.time())
            return trained / (trained + left) if left else 1.0
        return trained / 60 / args.minutes

    def descend(self, optimiser, parameters, loss):
        """One step of ``optimiser`` at this step's rate: warm-up over 200 steps, then half a cosine; norm 1 at most."""
        warm, progress = min(1, (self.step + 1) / 200), min(1, self.progress())
        for group in optimiser.param_groups:
            group["lr"] = max(float(self.args.lr * warm * (0.5 + 0.5 * np.cos(np.pi * progress))), 1e-6)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    def update(self):
        """One step; returns its loss, on the device."""
        loss = self.loss(self.progress())
        self.descend(self.optimiser, self.network.parameters(), loss)
        keep = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.network.parameters()), 1 - keep)
        return loss.detach()

    def run(self):
        args, losses = self.args, []
        kept = shown = time.monotonic()
        while self.progress() < 1:
            start = time.monotonic()
            losses.append(self.update())
            self.step += 1
            if self.step % 50 == 0:
                mean = float(torch.stack(losses).mean())  # the only wait for the device
                losses.clear()
                print(
                    f"step {self.step} minute {self.clock.seconds / 60:.1f} progress {self.progress():.3f} "
                    f"loss {mean:.4f} step {statistics.fmean(self.clock.recent or [0.0]):.3f} s",
                    flush=True,
                )
            self.clock.add(time.monotonic() - start)
            if time.monotonic() - kept > 60 * args.every:
                self.keep()
                kept = time.monotonic()
            if time.monotonic() - shown > 60 * args.sheets:
                self.show(f"{self.name}-{self.step:06d}.png")
                shown = time.monotonic()
        self.keep()
        self.show(f"{self.name}-final.png")
        self.finish()
