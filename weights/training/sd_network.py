"""Words in, ``landscape-sd``'s networks and tokenizer out: Stable Diffusion's classes of diffusers, small.

Rombach et al. 2022 (arXiv:2112.10752) in diffusers' and transformers' own classes, so that every program that reads
Stable Diffusion's folders reads this one.
"""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import vocabulary

LENGTH = 77  # tokens of a prompt, as in CLIP
START, END = "<|startoftext|>", "<|endoftext|>"
WIDTH = 128  # channels of a token's embedding


def autoencoder():
    """128 x 128 pixels <-> 32 x 32 latents of four channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 80),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,  # four channels or more in a group: a norm of single channels would lose colours
        sample_size=128,
    )


def text_encoder(tokens):
    """CLIP's text model of two layers, for a vocabulary of so many tokens, the last two of which are start and end."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokens - 2,
            eos_token_id=tokens - 1,
            pad_token_id=tokens - 1,
        )
    )


def unet():
    """Latents [N, 4, 32, 32], timesteps [N] and context [N, 77, 128] -> the velocity [N, 4, 32, 32]."""
    network = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        block_out_channels=(48, 64, 96, 128),
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads: diffusers' name is wrong, for Stable Diffusion's sake
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    )
    last = [network.conv_out]
    last += [m.conv2 for m in network.modules() if type(m).__name__ == "ResnetBlock2D"]
    last += [m.proj_out for m in network.modules() if type(m).__name__ == "Transformer2DModel"]
    for layer in last:  # every block starts as the identity
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return network


def scheduler():
    """Stable Diffusion's noise levels; the network predicts velocity (Salimans & Ho 2022)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def byte_names():
    """Byte -> the printable character that stands for it in CLIP's (GPT-2's) vocabularies, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}


def merges(words):
    """Byte pair encoding (Sennrich et al. 2016) of ``words``, until each is one token: the merges, in order."""
    parts, found = [[*word[:-1], word[-1] + "</w>"] for word in words], []
    while pairs := Counter(pair for part in parts for pair in pairwise(part)):
        first, second = max(pairs, key=lambda pair: (pairs[pair], pair))
        found.append((first, second))
        for part in parts:
            for i in range(len(part) - 2, -1, -1):
                if i + 1 < len(part) and part[i] == first and part[i + 1] == second:
                    part[i : i + 2] = [first + second]
    return found


def write_tokenizer(folder):
    """Write ``vocab.json`` and ``merges.txt`` for the captions' words: any other text becomes byte tokens."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pairs, names = merges(vocabulary()), list(byte_names().values())
    tokens = [*names, *(f"{name}</w>" for name in names), *("".join(pair) for pair in pairs), START, END]
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(tokens)}) + "\n", "utf-8"
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)


def normalise(vae, mean, deviation):
    """Fold an affine map into ``vae`` after which latent channels have mean 0 and one common deviation.

    ``mean`` and ``deviation`` [4] are the channels' now. Stable Diffusion scales latents by one number only; the 1 x 1
    convolutions on both sides of the latents can do the rest.
    """
    spread = deviation / deviation.square().mean().sqrt()
    with torch.no_grad():
        into, back = vae.quant_conv, vae.post_quant_conv
        into.weight[:4] /= spread.view(4, 1, 1, 1)
        into.bias[:4] = (into.bias[:4] - mean) / spread
        into.bias[4:] -= 2 * spread.log()  # variances: their logarithms
        back.bias += back.weight[:, :, 0, 0] @ mean
        back.weight *= spread.view(1, 4, 1, 1)
    vae.register_to_config(scaling_factor=round(float(1 / deviation.square().mean().sqrt()), 5))
