"""Captioned crops in, a trained ``landscape-sd`` out: checkpoints, sample sheets and a diffusers folder.

    python -m sparsegen.weights.training.train_sd vae --minutes 25 --out .training/landscape-sd
    python -m sparsegen.weights.training.train_sd unet --minutes 85 --out .training/landscape-sd
    python -m sparsegen.weights.training.train_sd decoder --minutes 10 --out .training/landscape-sd

First the autoencoder; then, on latents computed once, the UNet together with the text encoder. Run again with the
same folder, each continues from its last checkpoint.
"""

import argparse
import copy
import statistics
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn
from transformers import CLIPTextModel

from .batches import to_bytes, to_tensor
from .captions import caption
from .export import save
from .sd_data import CHUNK, captioned_crops
from .sd_export import pipeline, sheet, write
from .sd_network import LENGTH, WIDTH, autoencoder, normalise, scheduler, text_encoder, unet, write_tokenizer
from .train_ddpm import Clock, next_time

WINDOW = 64  # pixels: the autoencoder's windows before ``whole_from``
ALPHAS = scheduler().alphas_cumprod


class Training:
    """What both parts share: the clock, the schedule, checkpoints and averaged weights."""

    name = ""
    decay = 0.998

    def __init__(self, args):
        torch.manual_seed(args.seed)
        self.args, self.step, self.clock = args, 0, Clock()
        self.until = next_time(args.until) if args.until else None
        self.network = self.build()
        self.ema = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        self.checkpoint = args.out / f"{self.name}.pth"
        if self.checkpoint.exists():
            self.resume(torch.load(self.checkpoint, weights_only=True))

    def parts(self):
        return {"network": self.network, "ema": self.ema, "optimiser": self.optimiser}

    def resume(self, state):
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step, self.clock = state["step"], Clock(state["seconds"])
        print(f"resumed at step {self.step}, minute {self.clock.seconds / 60:.1f}", flush=True)

    def keep(self):
        state = {name: part.state_dict() for name, part in self.parts().items()}
        save(state | {"step": self.step, "seconds": self.clock.seconds}, self.checkpoint)

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
        rate = args.lr * min(1, (self.step + 1) / 200) * (0.5 + 0.5 * np.cos(np.pi * min(1, progress)))
        for group in self.optimiser.param_groups:
            group["lr"] = max(float(rate), 1e-6)
        loss = self.loss(np.random.default_rng([args.seed, self.step]), progress)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        keep = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.network.parameters()), 1 - keep)
        return loss.item()

    def run(self):
        args, losses = self.args, []
        kept = shown = time.monotonic()
        while self.progress() < 1:
            start = time.monotonic()
            losses.append(self.update())
            self.step += 1
            self.clock.add(time.monotonic() - start)
            if self.step % 50 == 0:
                print(
                    f"step {self.step} minute {self.clock.seconds / 60:.1f} progress {self.progress():.3f} "
                    f"loss {statistics.fmean(losses):.4f} step {statistics.median(self.clock.recent):.2f} s",
                    flush=True,
                )
                losses.clear()
            if time.monotonic() - kept > 60 * args.every:
                self.keep()
                kept = time.monotonic()
            if time.monotonic() - shown > 60 * args.sheets:
                self.show(f"{self.name}-{self.step:06d}.png")
                shown = time.monotonic()
        self.keep()
        self.show(f"{self.name}-final.png")
        self.finish()


class AutoencoderTraining(Training):
    """L1 of pixels and of their differences, and a little of the KL divergence, which keeps latents smooth."""

    name = "vae"

    def __init__(self, args):
        self.pictures = captioned_crops(args.data, args.vae_landscapes)[0]
        super().__init__(args)

    def build(self):
        return autoencoder().to(memory_format=torch.channels_last)

    def batch(self, rng, count, size):
        windows = []
        for i in rng.integers(0, len(self.pictures) * 2 * CHUNK, count):
            picture = self.pictures[i // (2 * CHUNK)][i % (2 * CHUNK)]
            top, left = rng.integers(0, 128 - size + 1, 2)
            window = picture[top : top + size, left : left + size]
            windows.append(window[:, ::-1] if rng.random() < 0.5 else window)
        return to_tensor(np.stack(windows))

    def loss(self, rng, progress):
        whole = progress >= self.args.whole_from
        x = self.batch(rng, 2 if whole else 4, 128 if whole else WINDOW)
        latents = self.network.encode(x).latent_dist
        spread = (latents.mean.square() + latents.var - 1 - latents.logvar).mean() / 2
        return difference(self.network.decode(latents.sample()).sample, x) + 5e-4 * spread

    @torch.no_grad()
    def show(self, name):
        """Some crops and their reconstructions, and the mean error on them."""
        x = torch.cat([to_tensor(chunk[:4]) for chunk in self.pictures[:2]])
        again = self.ema.decode(self.ema.encode(x).latent_dist.mode()).sample
        mse = (again.clamp(-1, 1) - x).square().mean()
        print(f"{name}: {10 * torch.log10(4 / mse):.2f} dB", flush=True)
        sheet = np.vstack([np.hstack(to_bytes(x)), np.hstack(to_bytes(again))])
        Image.fromarray(sheet).save(self.args.out / name)

    def finish(self):
        """Normalise the latents and write the autoencoder's folder."""
        moments = [encode(self.ema, chunk[:100])[0].float() for chunk in self.pictures]
        means = torch.cat(moments)
        print("latents", means.mean((0, 2, 3)).tolist(), means.std((0, 2, 3)).tolist(), flush=True)
        normalise(self.ema, means.mean((0, 2, 3)), means.std((0, 2, 3)))
        self.ema.to(memory_format=torch.contiguous_format).save_pretrained(self.args.out / "vae")


class DecoderTraining(AutoencoderTraining):
    """The decoder alone, further, for an encoder whose latents are in use: latents as before, sharper pictures."""

    name = "decoder"

    def build(self):
        vae = AutoencoderKL.from_pretrained(self.args.out / "vae").to(memory_format=torch.channels_last)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        return vae

    def loss(self, rng, progress):
        x = self.batch(rng, 2, 128)
        with torch.no_grad():
            z = self.network.encode(x).latent_dist.sample()
        return difference(self.network.decode(z).sample, x)

    def finish(self):
        self.ema.to(memory_format=torch.contiguous_format).save_pretrained(self.args.out / "vae-decoder")


def difference(made, x):
    """L1 of pixels, of the differences of neighbours (half as much) and of means over 4 x 4 pixels (twice).

    The means teach colours: the sign of a single pixel's error is mostly that of the grain.
    """
    error = made - x
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * edges + 2 * F.avg_pool2d(error, 4).abs().mean()


def tokens(tokenizer, texts):
    """Captions -> tokens int64 [N, 77]."""
    padded = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return padded.input_ids


@torch.no_grad()
def encode(vae, pictures):
    """uint8 [N, H, W, 3] -> the means [N, 4, H / 4, W / 4] and deviations of the latents, float16, unscaled."""
    means, deviations = [], []
    for i in range(0, len(pictures), 20):
        latents = vae.encode(to_tensor(pictures[i : i + 20])).latent_dist
        means.append(latents.mean.half())
        deviations.append(latents.std.half())
    return torch.cat(means), torch.cat(deviations)


def halved(pictures):
    """uint8 [N, H, W, 3] -> half the height and width, by means of four pixels."""
    x = torch.from_numpy(np.asarray(pictures)).permute(0, 3, 1, 2).float()
    return (F.avg_pool2d(x, 2) + 0.5).byte().permute(0, 2, 3, 1).numpy()


def latents(vae, folder, landscapes, *, half, out):
    """Scaled latents of all crops, float16 [2 landscapes, 4, s, s]: means, deviations; computed once."""
    path = Path(out) / f"latents-{landscapes}-{'half' if half else 'whole'}.pth"
    if not path.exists():
        found, start = [], time.monotonic()
        for chunk in captioned_crops(folder, landscapes)[0]:
            found.append(encode(vae, halved(chunk) if half else np.asarray(chunk)))
        scale = vae.config.scaling_factor
        save([torch.cat([pair[i] for pair in found]) * scale for i in (0, 1)], path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)
    return torch.load(path, weights_only=True)


class TextTraining(Training):
    """The text encoder learns what a caption says: a linear head reads the facts of its crop off every token past it.

    Trained with the UNet from scratch, it stayed unused: the mean over 77 tokens, most of them padding, hardly differed
    between captions. Now each token of the padding carries all facts, and the UNet finds them at once.
    """

    name = "text"

    def __init__(self, args):
        self.found = captioned_crops(args.data, args.landscapes)[1]
        self.tokenizer = write_tokenizer(args.out / "tokenizer")
        self.columns = {
            pair: i for i, pair in enumerate(sorted({p for f in self.found for p in f.items()}, key=str))
        }
        super().__init__(args)

    def build(self):
        width = len(self.columns)
        return nn.ModuleDict({"text": text_encoder(len(self.tokenizer)), "head": nn.Linear(WIDTH, width)})

    def loss(self, rng, progress):
        chosen = rng.integers(0, len(self.found), 32)
        ids = tokens(self.tokenizer, [caption(self.found[i], rng) for i in chosen])
        target = torch.zeros(len(ids), 1, len(self.columns))
        for row, i in zip(target, chosen, strict=True):
            row[0, [self.columns[pair] for pair in self.found[i].items()]] = 1
        read = self.network["head"](self.network["text"](ids).last_hidden_state)
        past = (ids == len(self.tokenizer) - 1).float()[..., None]
        error = F.binary_cross_entropy_with_logits(read, target.expand_as(read), reduction="none")
        return (error * past).sum() / (past.sum() * read.shape[2])

    def show(self, name):
        """Nothing to look at: the log has the loss."""

    def finish(self):
        self.ema["text"].save_pretrained(self.args.out / "text_encoder")


class UNetTraining(Training):
    """The error in the velocity, unweighted; small pictures first, then whole ones.

    Min-SNR weights (Hang et al. 2023) give the noisiest timesteps, where a caption matters most, almost no part.
    """

    name = "unet"

    def __init__(self, args):
        decoded = args.out / "vae-decoder"  # if its decoder was trained further
        self.vae = (
            AutoencoderKL.from_pretrained(decoded if decoded.exists() else args.out / "vae")
            .eval()
            .requires_grad_(False)
        )
        self.vae.to(memory_format=torch.channels_last)
        self.found = captioned_crops(args.data, args.landscapes)[1]
        self.tokenizer = write_tokenizer(args.out / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(args.out / "text_encoder").eval().requires_grad_(False)
        super().__init__(args)

    def build(self):
        return unet().to(memory_format=torch.channels_last)

    @cache  # noqa: B019 - one training in a process
    def latents(self, half):
        return latents(self.vae, self.args.data, self.args.landscapes, half=half, out=self.args.out)

    def loss(self, rng, progress):
        half = progress < self.args.half_until
        count = self.args.batch * (2 if half else 1)
        means, deviations = self.latents(half)
        chosen = rng.integers(0, len(means), count)
        texts = [caption(self.found[i], rng) if rng.random() < 0.9 else "" for i in chosen]
        with torch.no_grad():
            context = self.text(tokens(self.tokenizer, texts)).last_hidden_state
        z, noise = (torch.from_numpy(rng.standard_normal(means[chosen].shape, np.float32)) for _ in range(2))
        z = means[chosen].float() + deviations[chosen].float() * z
        # Stratified, two thirds in the noisier half: there the caption decides the picture.
        u = (np.arange(count) + rng.random(count)) / count
        t = (np.where(u < 1 / 3, 1.5 * u, 0.5 + 0.75 * (u - 1 / 3)) * len(ALPHAS)).astype(np.int64)
        alpha = ALPHAS[t].view(-1, 1, 1, 1)
        noisy, velocity = (
            alpha.sqrt() * z + (1 - alpha).sqrt() * noise,
            alpha.sqrt() * noise - (1 - alpha).sqrt() * z,
        )
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        error = self.network(noisy, torch.from_numpy(t), context).sample - velocity
        return error.square().mean()

    def pipeline(self):
        return pipeline(self.vae, self.text, self.tokenizer, self.ema)

    def show(self, name):
        half = self.progress() < self.args.half_until
        pipe = self.pipeline()
        sheet(pipe, self.args.out / name, size=64 if half else 128)
        if not half:
            write(pipe, self.args.out / "landscape-sd")

    def finish(self):
        write(self.pipeline(), self.args.out / "landscape-sd")


PARTS = {"vae": AutoencoderTraining, "text": TextTraining, "unet": UNetTraining, "decoder": DecoderTraining}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(".training/data"))
    parser.add_argument("--landscapes", type=int, default=2000, help="two crops each")
    parser.add_argument(
        "--vae-landscapes", type=int, default=750, help="for the autoencoder: the first so many"
    )
    parser.add_argument("--minutes", type=float, default=85, help="training time, without sheets and pauses")
    parser.add_argument("--until", metavar="HH:MM", help="instead of --minutes: when the clock shows this")
    parser.add_argument("--steps", type=int, help="instead of --minutes: the same steps on any machine")
    parser.add_argument("--every", type=float, default=4, help="minutes between checkpoints")
    parser.add_argument("--sheets", type=float, default=10, help="minutes between sheets of samples")
    parser.add_argument("--whole-from", type=float, default=0.75, help="from this part on: whole crops")
    parser.add_argument(
        "--half-until",
        type=float,
        default=0.35,
        help="up to this part: crops halved to 64 x 64, twice as many",
    )
    parser.add_argument("--batch", type=int, default=8, help="whole crops a step of the UNet's training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    PARTS[args.part](args).run()


if __name__ == "__main__":
    main()
