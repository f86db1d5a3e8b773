"""Stable Diffusion's autoencoder as CompVis and diffusers save it: both halves, their sizes and their key tables.

The two halves are two models of the engine in one place of a file: the table of each passes over the other's keys.
Sources: github.com/CompVis/stable-diffusion (ldm/models/autoencoder.py, ldm/modules/diffusionmodules/model.py) and
github.com/huggingface/diffusers (models/autoencoders/autoencoder_kl.py), read for names, options and their defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..keymap import Family, Rule
from ..tensor import Tensor
from .diffusers import attention_rules, block_rules, renamed, resampler_rules
from .options import agree, count, listed_option, read_options, refused
from .shapes import consecutive, size

ENCODER, DECODER = "vae-encoder", "vae-decoder"
CLASS = "AutoencoderKL"

_NAME = "autoencoder of Stable Diffusion"
_MOST_LEVELS, _MOST_BLOCKS = 16, 64

_TRAINING = Rule(r"loss\..+", ignored="the discriminator and the perceptual loss of the training")
_OTHER_HALF = {
    "encoder": Rule(r"(?:decoder|post_quant_conv)\..+", ignored="the decoder's, a model of its own"),
    "decoder": Rule(r"(?:encoder|quant_conv)\..+", ignored="the encoder's, a model of its own"),
}
_BETWEEN = {"encoder": "quant_conv", "decoder": "post_quant_conv"}
"""Half -> its 1×1 convolution of the latents."""


def _common(half: str) -> tuple[Rule, ...]:
    return (
        renamed(_BETWEEN[half], _BETWEEN[half]),
        renamed(rf"{half}\.conv_in", "conv_in"),
        renamed(rf"{half}\.conv_out", "conv_out"),
        _OTHER_HALF[half],
        _TRAINING,
    )


def _compvis_rules(half: str) -> tuple[Rule, ...]:
    """CompVis's names are the engine's, below `encoder.` and `decoder.`."""
    blocks = r"(?:down|up)\.\d+\.block\.\d+|mid\.block_[12]"
    attention = rf"{half}\.(?P<layer>mid\.attn_1\.(?:q|k|v|proj_out))"
    return (
        *_common(half),
        renamed(rf"{half}\.(?P<layer>(?:{blocks})\.(?:norm[12]|conv[12]|nin_shortcut))", "{layer}"),
        renamed(rf"{half}\.(?P<layer>(?:down\.\d+\.downsample|up\.\d+\.upsample)\.conv)", "{layer}"),
        renamed(rf"{half}\.(?P<layer>norm_out|mid\.attn_1\.norm)", "{layer}"),
        renamed(attention, "{layer}", "pointwise"),
    )


def _diffusers_rules(half: str) -> Callable[[Mapping[str, Any]], tuple[Rule, ...]]:
    def rules(config: Mapping[str, Any]) -> tuple[Rule, ...]:
        """The table for a model of as many levels; on the way up, diffusers counts them from the lowest."""
        levels = len(config["levels"])
        blocks, resamplers = [], []
        if half == "encoder":
            level = r"encoder\.down_blocks\.(?P<level>\d+)"
            blocks.append((rf"{level}\.resnets\.(?P<block>\d+)", "down.{level}.block.{block}"))
            resamplers.append((rf"{level}\.downsamplers\.0", "down.{level}.downsample"))
        else:
            for i in range(levels):
                at, target = rf"decoder\.up_blocks\.{i}", f"up.{levels - 1 - i}"
                blocks.append((rf"{at}\.resnets\.(?P<block>\d+)", f"{target}.block.{{block}}"))
                resamplers.append((rf"{at}\.upsamplers\.0", f"{target}.upsample"))
        blocks += [(rf"{half}\.mid_block\.resnets\.{j}", f"mid.block_{j + 1}") for j in (0, 1)]
        return (
            *_common(half),
            renamed(rf"{half}\.conv_norm_out", "norm_out"),
            *(rule for block in blocks for rule in block_rules(*block)),
            *attention_rules(rf"{half}\.mid_block\.attentions\.0", "mid.attn_1"),
            *(rule for resampler in resamplers for rule in resampler_rules(*resampler)),
        )

    return rules


# -- sizes -----------------------------------------------------------------------------------------------


def _recognise_compvis(half: str) -> Callable[[Checkpoint], dict[str, Any] | None]:
    side, more = ("down", 0) if half == "encoder" else ("up", 1)

    def recognise(checkpoint: Checkpoint) -> dict[str, Any] | None:
        tensors = checkpoint.tensors
        signs = (f"{half}.conv_in.weight", f"{half}.mid.block_1.conv1.weight")
        if not all(sign in tensors for sign in signs) or f"{half}.temb.dense.0.weight" in tensors:
            return None
        if "quantize.embedding.weight" in tensors:
            raise CheckpointError(
                "is an autoencoder with a codebook (VQ), supported: one with a mean and a variance (KL)",
                advice="Give the weights of Stable Diffusion 1.x or 2.x",
            )
        first = f"{half}.{side}.{{}}.block.0.conv1.weight"
        levels = consecutive(tensors, first, _MOST_LEVELS)
        return {
            "channels": _pixels(tensors, half),
            "latents": _latents(tensors, half),
            "levels": tuple(size(tensors, first.format(i), 0, _NAME) for i in range(levels)),
            "blocks": consecutive(tensors, f"{half}.{side}.0.block.{{}}.conv1.weight", _MOST_BLOCKS) - more,
        }

    return recognise


def _recognise_diffusers(half: str) -> Callable[[Checkpoint], dict[str, Any] | None]:
    side, more = ("down_blocks", 0) if half == "encoder" else ("up_blocks", 1)

    def recognise(checkpoint: Checkpoint) -> dict[str, Any] | None:
        tensors, config = checkpoint.tensors, checkpoint.config
        if config is not None and config.get("_class_name") != CLASS:
            return None
        first = f"{half}.{side}.{{}}.resnets.0.conv1.weight"
        if config is None and (f"{half}.conv_in.weight" not in tensors or first.format(0) not in tensors):
            return None
        options = (
            None if config is None else read_options(config, CLASS, _DEFAULTS, _CHOICES, _WITHOUT_EFFECT)
        )
        levels = [
            size(tensors, first.format(i), 0, _NAME) for i in range(consecutive(tensors, first, _MOST_LEVELS))
        ]
        found = {
            "channels": _pixels(tensors, half),
            "latents": _latents(tensors, half),
            "levels": tuple(levels if half == "encoder" else levels[::-1]),
            "blocks": consecutive(tensors, f"{half}.{side}.0.resnets.{{}}.conv1.weight", _MOST_BLOCKS) - more,
        }
        return found if options is None else _checked(options, found, half)

    return recognise


def _pixels(tensors: Mapping[str, Tensor], half: str) -> int:
    """Channels of an image."""
    name, axis = (f"{half}.conv_in.weight", 1) if half == "encoder" else (f"{half}.conv_out.weight", 0)
    return size(tensors, name, axis, _NAME)


def _latents(tensors: Mapping[str, Tensor], half: str) -> int:
    """Channels of the latents."""
    if half == "decoder":
        return size(tensors, f"{half}.conv_in.weight", 1, _NAME)
    return max(size(tensors, f"{half}.conv_out.weight", 0, _NAME) // 2, 1)


# -- diffusers' options ----------------------------------------------------------------------------------

_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
}
_WITHOUT_EFFECT = {"sample_size", "force_upcast"}


def _checked(options: Mapping[str, Any], found: dict[str, Any], half: str) -> dict[str, Any]:
    """The sizes `found` off the shapes, with the options that shapes do not show. Raises CheckpointError."""
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        names = listed_option(options, key, str)
        if set(names) != {kind}:
            raise refused(key, options[key], kind)
    agree(
        options,
        {
            "in_channels" if half == "encoder" else "out_channels": found["channels"],
            "latent_channels": found["latents"],
            "block_out_channels": list(found["levels"]),
            "layers_per_block": found["blocks"],
        },
    )
    scale = options["scaling_factor"]
    if type(scale) not in (int, float) or not 0 < scale < 1000:
        raise refused("scaling_factor", scale, "a number from 0 to 1000")
    return {**found, "groups": count(options, "norm_num_groups"), "scale": float(scale)}


COMPVIS_ENCODER, COMPVIS_DECODER = (
    Family(f"compvis-{model}", model, _compvis_rules(half), _recognise_compvis(half))
    for model, half in ((ENCODER, "encoder"), (DECODER, "decoder"))
)
DIFFUSERS_ENCODER, DIFFUSERS_DECODER = (
    Family(f"diffusers-{model}", model, (), _recognise_diffusers(half), rules_for=_diffusers_rules(half))
    for model, half in ((ENCODER, "encoder"), (DECODER, "decoder"))
)
