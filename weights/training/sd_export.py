"""Trained networks in, the diffusers folder ``landscape-sd`` and sheets of samples out.

    python -m sparsegen.weights.training.sd_export .training/landscape-sd/landscape-sd weights/builtin/landscape-sd \
        --sheet weights/training/sd_sheet.png

copies a folder as float16 and paints the contact sheet with it; ``train_sd.py`` writes the folder by itself. With
``--errors`` it prints what the autoencoder and the UNet miss on crops that no training has seen.
"""

import argparse
import copy
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from .batches import to_tensor
from .captions import caption
from .sd_data import UNSEEN, captioned
from .sd_network import scheduler

PROMPTS = (
    "a lake in front of snowy mountains, autumn, a house, evening",
    "summer, a meadow with flowers, a house on the left, trees, day",
    "winter, firs and a frozen lake, mountains, day",
    "the sea, a sandy beach, summer, a clear sky, the sun",
    "a winding road, autumn, round trees, hills, day",
    "spring, a village, firs on the right, mountains, white clouds",
    "winter, a cottage, a path, evening, snowy mountains",
    "a pond in a meadow, trees, evening, the sun on the right",
)
STEPS, GUIDANCE = 25, 4.0


def pipeline(vae, text, tokenizer, unet):
    """diffusers' own pipeline around the networks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    made.set_progress_bar_config(disable=True)
    return made


def samples(pipe, prompts, *, seed=0, size=128, steps=STEPS, guidance=GUIDANCE):
    """Pictures uint8 [N, size, size, 3] of the prompts; the i-th starts from the noise of seed + i."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    made = pipe(
        list(prompts),
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        output_type="np",
    )
    return (made.images * 255 + 0.5).astype(np.uint8)


def sheet(pipe, path, *, seeds=(0, 100), **options):
    """Two rows of four for each of ``seeds``: a picture of every prompt."""
    rows = []
    for seed in seeds:
        made = samples(pipe, PROMPTS, seed=seed, **options)
        rows += [np.hstack(made[:4]), np.hstack(made[4:])]
    Image.fromarray(np.vstack(rows)).save(path, optimize=True)


def write(pipe, folder):
    """Write the pipeline's folder as float16."""
    half = pipeline(
        *(copy.deepcopy(network).half() for network in (pipe.vae, pipe.text_encoder)),
        pipe.tokenizer,
        copy.deepcopy(pipe.unet).half(),
    )
    half.save_pretrained(folder)
    for path in Path(folder).rglob("*.json"):
        described = json.loads(path.read_text("utf-8"))
        if described.pop("_name_or_path", None):  # a folder of this machine
            path.write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    for path in Path(folder).rglob("*.safetensors"):
        path.chmod(0o644)


def load(folder):
    """diffusers' pipeline of a folder, in float32, without the network."""
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, local_files_only=True, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def errors(pipe, *, landscapes=24, timesteps=(300, 500, 700, 900, 999)):
    """Print the autoencoder's error, and the velocity's mean square under a crop's caption, none and another's."""
    painted = [captioned(UNSEEN + i) for i in range(landscapes)]
    pictures = to_tensor(np.concatenate([crops for crops, _ in painted]))
    latents = pipe.vae.encode(pictures).latent_dist.mode()
    again = pipe.vae.decode(latents).sample.clamp(-1, 1)
    print(
        f"autoencoder {10 * torch.log10(4 / (again - pictures).square().mean()):.1f} dB on {len(pictures)} crops"
    )
    found = [each for _, two in painted for each in two]
    own = [caption(each, np.random.default_rng(i)) for i, each in enumerate(found)]
    drawn, z = torch.Generator().manual_seed(0), latents * pipe.vae.config.scaling_factor
    noise, alphas = torch.randn(z.shape, generator=drawn), scheduler().alphas_cumprod
    for name, texts in (("own", own), ("none", [""] * len(own)), ("another's", own[1:] + own[:1])):
        ids = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        context, row = pipe.text_encoder(ids).last_hidden_state, []
        for t in timesteps:
            a, b = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
            made = pipe.unet(a * z + b * noise, t, context).sample
            row.append(float((made - (a * noise - b * z)).square().mean()))
        print(f"{name:10}", *(f"{t}: {each:.3f}" for t, each in zip(timesteps, row, strict=True)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a folder written by train_sd.py")
    parser.add_argument("target", type=Path, nargs="?", help="the folder to write")
    parser.add_argument("--sheet", type=Path, help="a PNG of samples to write")
    parser.add_argument("--errors", action="store_true", help="print errors on unseen crops")
    args = parser.parse_args()
    if args.target:
        write(load(args.source), args.target)
    if args.sheet:
        sheet(load(args.target or args.source), args.sheet)
    if args.errors:
        errors(load(args.target or args.source))


if __name__ == "__main__":
    main()
