"""diffusers' `UNet2DModel`: its config.json and its tensors' names in, the engine's configuration and key table out.

Source: github.com/huggingface/diffusers (models/unets/unet_2d.py and unet_2d_blocks.py), read for names, options and
their defaults. An option whose value the engine does not support is refused by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, shown
from ..keymap import Family, Rule
from .options import WHERE, count, listed_option, read_options, refused

CLASS = "UNet2DModel"
_CLASSES = (CLASS, "UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel")
"""Of all families; this is the last that is tried."""

# The class's defaults of options that the file omits.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}

# Options -> the values that the engine supports.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "freq_shift": (0, 1),
    "flip_sin_to_cos": (True, False),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet", None),
    "upsample_type": ("conv", "resnet", None),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True, False),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
}

# Options without effect on the output, and settings of averaging in training.
_WITHOUT_EFFECT = {
    "sample_size",
    "dropout",
    "num_train_timesteps",
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"),
}

# Kind of a block -> whether it has attention, and how the resolution changes after it ("": given by an option).
_DOWN = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, ""),
    "ResnetDownsampleBlock2D": (False, "resnet"),
}
_UP = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, ""),
    "ResnetUpsampleBlock2D": (False, "resnet"),
}

_BLOCKS = re.compile(r"(?:down|up)_blocks\.\d+\.(?:resnets|attentions)\.\d+\.", re.ASCII)

_KIND = r"(?P<kind>weight|bias)"


def _recognise(checkpoint: Checkpoint) -> dict[str, Any] | None:
    config = checkpoint.config
    if config is None:
        if any(map(_BLOCKS.match, checkpoint.tensors)):
            folder = os.path.dirname(checkpoint.path)
            there = os.path.isfile(os.path.join(folder, "config.json"))
            raise CheckpointError(
                "is the weights file of a diffusers UNet, without its configuration",
                advice=f"Give the folder {folder or '.'}, which has its config.json"
                if there
                else "Give the folder that holds it, with its config.json",
            )
        return None
    # transformers' configurations have a list instead
    name = config.get("_class_name", config.get("architectures", CLASS))
    if name != CLASS:
        raise CheckpointError(f"is a {shown(name)}, supported: {', '.join(_CLASSES)}", where=WHERE)
    options = read_options(config, CLASS, _DEFAULTS, _CHOICES, _WITHOUT_EFFECT)
    in_film = options["resnet_time_scale_shift"] == "scale_shift"
    groups = count(options, "norm_num_groups")
    if options["attn_norm_num_groups"] not in (None, groups):
        raise refused(
            "attn_norm_num_groups",
            options["attn_norm_num_groups"],
            f"null or {groups}, the value of norm_num_groups",
        )
    levels = listed_option(options, "block_out_channels", int)
    attention, resample = _levels(options, len(levels))
    head = options["attention_head_dim"]
    time = options["time_embedding_dim"]
    eps = options["norm_eps"]
    if type(eps) is not float:
        raise refused("norm_eps", eps, "a number between 0 and 1")
    return {
        "in_channels": count(options, "in_channels"),
        "out_channels": count(options, "out_channels"),
        "channels": levels[0],
        "levels": levels,
        "attention": attention,
        "blocks": count(options, "layers_per_block"),
        "time_channels": 4 * levels[0] if time is None else count(options, "time_embedding_dim"),
        "head_channels": 0 if head is None else count(options, "attention_head_dim"),
        "middle_attention": options["add_attention"],
        # with scale_shift, the middle's attention has a norm only if its groups are given (in old versions, always)
        "middle_norm": not in_film
        or options["attn_norm_num_groups"] is not None
        or "mid_block.attentions.0.group_norm.weight" in checkpoint.tensors,
        "groups": groups,
        "eps": eps,
        "film": in_film,
        "resample_blocks": resample == "resnet",
        "symmetric_downsampling": options["downsample_padding"] == 1,
        "frequency_shift": int(options["freq_shift"]),
        "cosine_first": options["flip_sin_to_cos"],
    }


def _levels(options: Mapping[str, Any], length: int) -> tuple[tuple[bool, ...], str]:
    """Whether each level has attention; and how resolutions change, by "conv" or "resnet"."""
    sides = []
    for key, kinds, option in (
        ("down_block_types", _DOWN, "downsample_type"),
        ("up_block_types", _UP, "upsample_type"),
    ):
        names = [name.removeprefix("UNetRes") for name in listed_option(options, key, str)]
        if len(names) != length:
            raise refused(key, options[key], f"{length} entries, as many as block_out_channels has")
        unknown = next((name for name in names if name not in kinds), None)
        if unknown is not None:
            raise refused(key, unknown, " or ".join(kinds))
        sides.append(
            [(attends, how or options[option] or "conv") for attends, how in map(kinds.__getitem__, names)]
        )
    down, up = sides[0], sides[1][::-1]
    if [attends for attends, _ in down] != [attends for attends, _ in up]:
        raise refused(
            "up_block_types", options["up_block_types"], "attention on the same levels as down_block_types"
        )
    ways = {how for _, how in down[:-1]} | {how for _, how in up[1:]}
    if len(ways) > 1:
        raise refused(
            "down_block_types and up_block_types",
            " and ".join(sorted(ways)),
            "one way of changing resolutions, on all levels, down and up",
        )
    return tuple(attends for attends, _ in down), "".join(ways)


def _rules(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The table for a model of as many levels; on the way up, diffusers counts them from the lowest."""
    height = len(config["levels"])
    blocks = [
        (r"down_blocks\.(?P<level>\d+)\.resnets\.(?P<block>\d+)", "down.{level}.block.{block}"),
        (r"down_blocks\.(?P<level>\d+)\.downsamplers\.0", "down.{level}.downsample"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
    ]
    attentions = [
        (r"down_blocks\.(?P<level>\d+)\.attentions\.(?P<block>\d+)", "down.{level}.attn.{block}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
    ]
    resamplers = [(r"down_blocks\.(?P<level>\d+)\.downsamplers\.0", "down.{level}.downsample")]
    for i in range(height):
        level = height - 1 - i
        blocks.append((rf"up_blocks\.{i}\.resnets\.(?P<block>\d+)", f"up.{level}.block.{{block}}"))
        blocks.append((rf"up_blocks\.{i}\.upsamplers\.0", f"up.{level}.upsample"))
        attentions.append((rf"up_blocks\.{i}\.attentions\.(?P<block>\d+)", f"up.{level}.attn.{{block}}"))
        resamplers.append((rf"up_blocks\.{i}\.upsamplers\.0", f"up.{level}.upsample"))
    return (
        renamed("conv_in", "conv_in"),
        renamed("conv_norm_out", "norm_out"),
        renamed("conv_out", "conv_out"),
        renamed(r"time_embedding\.linear_1", "temb.dense.0"),
        renamed(r"time_embedding\.linear_2", "temb.dense.1"),
        *(rule for block in blocks for rule in block_rules(*block)),
        *(rule for attention in attentions for rule in attention_rules(*attention)),
        *(rule for resampler in resamplers for rule in resampler_rules(*resampler)),
    )


def renamed(source: str, target: str, transform: str = "copy") -> Rule:
    """A rule for the weight and the bias of a layer."""
    return Rule(rf"{source}\.{_KIND}", (f"{target}.{{kind}}",), transform)


def block_rules(source: str, target: str) -> Sequence[Rule]:
    """The rules for residual blocks, of a UNet or an autoencoder."""
    return (
        Rule(rf"{source}\.(?P<part>norm[12]|conv[12])\.{_KIND}", (f"{target}.{{part}}.{{kind}}",)),
        renamed(rf"{source}\.time_emb_proj", f"{target}.temb_proj"),
        renamed(rf"{source}\.conv_shortcut", f"{target}.nin_shortcut"),
    )


def attention_rules(source: str, target: str) -> Sequence[Rule]:
    """Matrices over channels become 1×1 convolutions; the second names are those before diffusers 0.17."""
    rules = [renamed(rf"{source}\.group_norm", f"{target}.norm")]
    for names, part in (
        ("to_q|query", "q"),
        ("to_k|key", "k"),
        ("to_v|value", "v"),
        (r"to_out\.0|proj_attn", "proj_out"),
    ):
        rules.append(renamed(rf"{source}\.(?:{names})", f"{target}.{part}", "pointwise"))
    return rules


def resampler_rules(source: str, target: str) -> Sequence[Rule]:
    """A convolution that older files name `op`, or hold under two names."""
    named = rf"(?P<at>{source})\.Conv2d_0\.{_KIND}"
    return (
        Rule(rf"{source}\.(?:conv|op)\.{_KIND}", (f"{target}.conv.{{kind}}",)),
        Rule(named, (f"{target}.conv.{{kind}}",), unless="{at}.conv.{kind}"),
        Rule(named, ignored="the same numbers as conv beside it", when="{at}.conv.{kind}"),
    )


DIFFUSERS_UNET = Family("diffusers-unet2d", "ddpm", (), _recognise, rules_for=_rules)
