"""Captioned crops in, a trained ``landscape-sd`` out: checkpoints, sample sheets and a diffusers folder.

    python -m sparsegen.weights.training.train_sd vae --minutes 3 --out .training/landscape-sd
    python -m sparsegen.weights.training.train_sd text --minutes 2 --out .training/landscape-sd
    python -m sparsegen.weights.training.train_sd decoder --minutes 4 --out .training/landscape-sd
    python -m sparsegen.weights.training.train_sd unet --minutes 6 --out .training/landscape-sd

First the autoencoder and the text encoder; then, for latents that stay as they are, its decoder further, and the UNet.
Run again with the same folder, each continues from its last checkpoint.
"""

import argparse
import copy
import re
import time
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn
from transformers import CLIPTextModel

from .batches import to_bytes
from .captions import caption
from .export import save
from .loop import Training, laid_out, options
from .network import Discriminator
from .sd_data import captioned_crops
from .sd_export import pipeline, sheet, write
from .sd_network import LENGTH, WIDTH, autoencoder, normalise, scheduler, text_encoder, unet, write_tokenizer

ALPHAS = scheduler().alphas_cumprod
WORDINGS = 8  # captions of a crop


def bytes_on(pictures, device):
    """A list of uint8 [N, H, W, 3] -> one uint8 [sum N, 3, H, W] on ``device``."""
    return torch.cat([torch.from_numpy(np.array(each)).permute(0, 3, 1, 2).to(device) for each in pictures])


def scaled(pictures):
    """uint8 [N, 3, H, W] -> float32 in -1..1."""
    return pictures.float() / 127.5 - 1


class AutoencoderTraining(Training):
    """L1 of pixels and of their differences, and a little of the KL divergence, which keeps latents smooth."""

    name = "vae"
    decay = 0.998

    def __init__(self, args):
        self.pictures = bytes_on(captioned_crops(args.data, args.vae_landscapes)[0], args.device)
        super().__init__(args)

    def build(self):
        return autoencoder()

    def batch(self):
        """Crops of this step, half of them mirrored, float32 [batch, 3, 128, 128], and what drew them."""
        drawn, device = self.generator(), self.pictures.device
        chosen = torch.randint(len(self.pictures), (self.args.batch,), device=device, generator=drawn)
        x = scaled(self.pictures[chosen])
        turn = torch.rand(len(x), 1, 1, 1, device=device, generator=drawn) < 0.5
        return torch.where(turn, x.flip(3), x), drawn

    def loss(self, progress):
        x, drawn = self.batch()
        latents = self.network.encode(x).latent_dist
        spread = (latents.mean.square() + latents.var - 1 - latents.logvar).mean() / 2
        z = sampled(latents.mean, latents.std, drawn)
        return difference(self.network.decode(z).sample, x) + 5e-4 * spread

    @torch.no_grad()
    def show(self, name):
        """Some crops and their reconstructions, and the mean error on them."""
        x = scaled(self.pictures[:: len(self.pictures) // 8][:8])
        again = self.ema.decode(self.ema.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        print(f"{name}: {10 * torch.log10(4 / (again - x).square().mean()):.2f} dB", flush=True)
        rows = [np.hstack(to_bytes(each.cpu())) for each in (x, again)]
        Image.fromarray(np.vstack(rows)).save(self.args.out / name)

    def finish(self):
        """Normalise the latents and write the autoencoder's folder."""
        means = encode(self.ema, self.pictures[:2000])[0].float().cpu()
        mean, deviation = means.mean((0, 2, 3)), means.std((0, 2, 3))
        print("latents", mean.tolist(), deviation.tolist(), flush=True)
        vae = copy.deepcopy(self.ema).to(device="cpu", memory_format=torch.contiguous_format)
        normalise(vae, mean, deviation)
        vae.save_pretrained(self.args.out / "vae")


class DecoderTraining(AutoencoderTraining):
    """The decoder alone, further, for an encoder whose latents are in use: sharper pictures by an adversary.

    The generator's losses in this folder: hinge, and L1 of the discriminators' features, beside the pixels' errors.
    """

    name = "decoder"

    def build(self):
        vae = AutoencoderKL.from_pretrained(self.args.out / "vae")
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        self.adversary = laid_out(Discriminator(ndf=self.args.ndf, label_nc=0), self.args.device)
        self.adversary_optimiser = self.optimise(self.adversary.parameters())
        return vae

    def parts(self):
        more = {"adversary": self.adversary, "adversary_optimiser": self.adversary_optimiser}
        return super().parts() | more

    def judged(self, pictures):
        """Pictures -> two lists of the discriminators' features, the last of which are the scores."""
        return self.adversary(pictures[:, :0], pictures)

    def loss(self, progress):
        x, drawn = self.batch()
        with torch.no_grad():
            latents = self.network.encode(x).latent_dist
        made = self.network.decode(sampled(latents.mean, latents.std, drawn)).sample
        true, false = self.judged(x), self.judged(made.detach())
        hinge = sum(
            F.relu(1 - t[-1]).mean() + F.relu(1 + f[-1]).mean() for t, f in zip(true, false, strict=True)
        )
        self.descend(self.adversary_optimiser, self.adversary.parameters(), hinge)
        error = 4 * difference(made, x)
        if self.step >= 200:  # an untrained adversary teaches nothing
            false, true = self.judged(made), [[each.detach() for each in scale] for scale in true]
            error = error - sum(f[-1].mean() for f in false) * self.args.adversarial
            for t, f in zip(true, false, strict=True):
                error = error + 4 * sum(F.l1_loss(a, b) for a, b in zip(f[:-1], t[:-1], strict=True)) / len(t)
        return error

    def finish(self):
        vae = copy.deepcopy(self.ema).to(device="cpu", memory_format=torch.contiguous_format)
        vae.save_pretrained(self.args.out / "vae-decoder")


def sampled(mean, deviation, drawn):
    """A sample of the normal distribution of ``mean`` and ``deviation``."""
    return mean + deviation * torch.randn(mean.shape, device=mean.device, generator=drawn)


def difference(made, x):
    """L1 of pixels, of the differences of neighbours (half as much) and of means over 4 x 4 pixels (twice).

    The means teach colours: the sign of a single pixel's error is mostly that of the grain.
    """
    error = made - x
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * edges + 2 * F.avg_pool2d(error, 4).abs().mean()


@torch.no_grad()
def encode(vae, pictures):
    """uint8 [N, 3, H, W] -> the means [N, 4, H / 4, W / 4] and deviations of the latents, float16, unscaled."""
    found = [vae.encode(scaled(each)).latent_dist for each in pictures.split(50)]
    return torch.cat([each.mean.half() for each in found]), torch.cat([each.std.half() for each in found])


def wordings(found, tokenizer, *, seed=0):
    """``WORDINGS`` captions of each crop's facts: tokens int16 [N, WORDINGS, 77]; every word is one token."""
    end = len(tokenizer) - 1
    ids = np.full((len(found), WORDINGS, LENGTH), end, np.int16)
    known = {}
    for crop, each in enumerate(found):
        rng = np.random.default_rng([seed, crop])
        for i in range(WORDINGS):
            words = re.findall(r"[a-z]+|,", caption(each, rng))
            for word in words:
                if word not in known:
                    (known[word],) = tokenizer(word).input_ids[1:-1]
            row = [end - 1, *(known[word] for word in words)][: LENGTH - 1]
            ids[crop, i, : len(row)] = row
    return torch.from_numpy(ids)


class TextTraining(Training):
    """The text encoder learns what a caption says: a linear head reads the facts of its crop off every token past it.

    Trained with the UNet from scratch, it stayed unused: the mean over 77 tokens, most of them padding, hardly differed
    between captions. Now each token of the padding carries all facts, and the UNet finds them at once.
    """

    name = "text"
    decay = 0.998

    def __init__(self, args):
        found = captioned_crops(args.data, args.landscapes)[1]
        self.tokenizer = write_tokenizer(args.out / "tokenizer")
        self.ids = wordings(found, self.tokenizer).to(args.device)
        names = {pair: i for i, pair in enumerate(sorted({p for f in found for p in f.items()}, key=str))}
        self.facts = torch.zeros(len(found), len(names))
        for row, each in zip(self.facts, found, strict=True):
            row[[names[pair] for pair in each.items()]] = 1
        self.facts = self.facts.to(args.device)
        super().__init__(args)

    def build(self):
        width = self.facts.shape[1]
        return nn.ModuleDict({"text": text_encoder(len(self.tokenizer)), "head": nn.Linear(WIDTH, width)})

    def loss(self, progress):
        drawn, count = self.generator(), 4 * self.args.batch
        chosen = torch.randint(len(self.ids), (count,), device=self.ids.device, generator=drawn)
        which = torch.randint(WORDINGS, (count,), device=self.ids.device, generator=drawn)
        ids = self.ids[chosen, which].long()
        read = self.network["head"](self.network["text"](ids).last_hidden_state)
        past = (ids == len(self.tokenizer) - 1).float()[..., None]
        target = self.facts[chosen][:, None].expand_as(read)
        error = F.binary_cross_entropy_with_logits(read, target, reduction="none")
        return (error * past).sum() / (past.sum() * read.shape[2])

    def show(self, name):
        """Nothing to look at: the log has the loss."""

    def finish(self):
        copy.deepcopy(self.ema["text"]).cpu().save_pretrained(self.args.out / "text_encoder")


class UNetTraining(Training):
    """The error in the velocity, unweighted.

    Min-SNR weights (Hang et al. 2023) give the noisiest timesteps, where a caption matters most, almost no part.
    """

    name = "unet"

    def __init__(self, args):
        self.tokenizer = write_tokenizer(args.out / "tokenizer")
        text = CLIPTextModel.from_pretrained(args.out / "text_encoder").eval().requires_grad_(False)
        self.text, self.alphas = text.to(args.device), ALPHAS.to(args.device)
        self.empty = torch.from_numpy(np.array(self.tokenizer("", padding="max_length").input_ids)).to(
            args.device
        )
        super().__init__(args)

    def build(self):
        return unet()

    def vae(self):
        """The autoencoder, with the decoder that was trained further, if there is one."""
        decoded = self.args.out / "vae-decoder"
        return AutoencoderKL.from_pretrained(decoded if decoded.exists() else self.args.out / "vae").eval()

    @cached_property
    def data(self):
        """Scaled latents of all crops, float16 [N, 4, 32, 32]: means, deviations; tokens [N, WORDINGS, 77]."""
        args, start = self.args, time.monotonic()
        pictures, found = captioned_crops(args.data, args.landscapes)
        path = args.out / f"latents-{args.landscapes}.pth"
        if not path.exists():
            vae = laid_out(self.vae(), args.device)
            pairs = [encode(vae, bytes_on([each], args.device)) for each in pictures]
            scale = vae.config.scaling_factor
            save([torch.cat([pair[i] for pair in pairs]).cpu() * scale for i in (0, 1)], path)
        means, deviations = torch.load(path, weights_only=True, map_location=args.device)
        ids = wordings(found, self.tokenizer).to(args.device)
        print(f"{len(means)} crops in {time.monotonic() - start:.0f} s", flush=True)
        return means, deviations, ids

    def loss(self, progress):
        means, deviations, ids = self.data
        drawn, count, device = self.generator(), self.args.batch, means.device
        chosen = torch.randint(len(means), (count,), device=device, generator=drawn)
        which = torch.randint(WORDINGS, (count,), device=device, generator=drawn)
        named = torch.rand(count, 1, device=device, generator=drawn) < 0.9  # the others: for guidance
        with torch.no_grad():
            context = self.text(torch.where(named, ids[chosen, which].long(), self.empty)).last_hidden_state
        z = sampled(means[chosen].float(), deviations[chosen].float(), drawn)
        noise = torch.randn(z.shape, device=device, generator=drawn)
        # Stratified, two thirds in the noisier half: there the caption decides the picture.
        u = (torch.arange(count, device=device) + torch.rand(count, device=device, generator=drawn)) / count
        t = (
            (torch.where(u < 1 / 3, 1.5 * u, 0.5 + 0.75 * (u - 1 / 3)) * len(ALPHAS))
            .long()
            .clamp(max=len(ALPHAS) - 1)
        )
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * z
        return (self.network(noisy, t, context).sample - velocity).square().mean()

    def pipeline(self):
        """diffusers' pipeline around the averaged weights, on the CPU."""
        return pipeline(
            self.vae(), copy.deepcopy(self.text).cpu(), self.tokenizer, copy.deepcopy(self.ema).cpu()
        )

    def show(self, name):
        sheet(self.pipeline().to(self.args.device), self.args.out / name)
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
        "--vae-landscapes", type=int, default=1000, help="for the autoencoder: the first so many"
    )
    options(parser, minutes=60)
    parser.add_argument(
        "--batch", type=int, default=32, help="crops a step; of captions alone, four times as many"
    )
    parser.add_argument("--ndf", type=int, default=48, help="channels of the discriminators' first layer")
    parser.add_argument("--adversarial", type=float, default=0.5, help="weight of the discriminators' scores")
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    PARTS[args.part](args).run()


if __name__ == "__main__":
    main()
