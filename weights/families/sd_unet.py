"""Stable Diffusion's UNet as CompVis, Stability and diffusers save it: how it is recognised, its sizes, its tables.

Sources: github.com/CompVis/stable-diffusion and github.com/Stability-AI/stablediffusion (openaimodel.py, attention.py,
configs) and github.com/huggingface/diffusers (models/unets/unet_2d_condition.py), read for names, options and their
defaults. Shapes determine everything but the number of heads: 1.x has 8 in each
transformer, 2.x (whose projections are linear) heads of 64 channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..keymap import Family, Rule
from ..tensor import Tensor
from . import sd_names
from .not_supported import refuse_by_inputs
from .options import agree, as_json, count, listed_option, of_each, read_options, refused
from .shapes import consecutive, size

MODEL = "sd-unet"
CLASS = "UNet2DConditionModel"

_NAME = "UNet of Stable Diffusion"
_MOST_LEVELS, _MOST_BLOCKS, _MOST_DEPTH = 8, 8, 32
"""More than any model has: a forged file cannot make tables long."""
_HEADS, _HEAD_CHANNELS = 8, 64
"""Of 1.x: heads in each transformer. Of 2.x: channels of each head."""


def _rules(config: Mapping[str, Any], spelling: Literal["compvis", "diffusers"]) -> tuple[Rule, ...]:
    """The table for a model of these sizes."""
    return tuple(
        Rule(
            rf"{re.escape(getattr(names, spelling))}\.(?P<kind>weight|bias)",
            (f"{names.ours}.{{kind}}",),
            "pointwise" if names.pointwise else "copy",
        )
        for names in sd_names.layers(len(config["levels"]), config["blocks"], config["attention"])
    )


# -- sizes -----------------------------------------------------------------------------------------------


def _recognise_compvis(checkpoint: Checkpoint) -> dict[str, Any] | None:
    tensors = checkpoint.tensors
    if "time_embed.0.weight" not in tensors or "input_blocks.1.0.in_layers.2.weight" not in tensors:
        return None
    levels: list[list[str]] = [[]]
    for k in range(1, _MOST_LEVELS * (_MOST_BLOCKS + 1)):
        at = f"input_blocks.{k}"
        if f"{at}.0.op.weight" in tensors:
            levels.append([])
        elif f"{at}.0.in_layers.2.weight" in tensors:
            levels[-1].append(at)
        else:
            break
    lengths = {len(level) for level in levels}
    if len(lengths) != 1 or not levels[0] or len(levels) > _MOST_LEVELS:
        raise CheckpointError(
            f"is a {_NAME} with {', '.join(str(len(level)) for level in levels)} blocks on its levels, expected the "
            "same number on each",
            advice="The file is not whole: download it again",
        )
    return _config(
        tensors,
        time="time_embed.0",
        conv_in="input_blocks.0.0",
        conv_out="out.2",
        blocks=[[f"{at}.0.in_layers.2.weight" for at in level] for level in levels],
        transformers=[[f"{at}.1" for at in level] for level in levels],
        middle="middle_block.1",
    )


def _recognise_diffusers(checkpoint: Checkpoint) -> dict[str, Any] | None:
    tensors, config = checkpoint.tensors, checkpoint.config
    if config is not None and config.get("_class_name") != CLASS:
        return None
    if config is None and (
        "down_blocks.0.resnets.0.conv1.weight" not in tensors
        or "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight" not in tensors
    ):
        return None
    # Before any size is read: the options of another kind of model say more than its shapes.
    options = None if config is None else read_options(config, CLASS, _DEFAULTS, _CHOICES, _WITHOUT_EFFECT)
    levels = consecutive(tensors, "down_blocks.{}.resnets.0.conv1.weight", _MOST_LEVELS)
    blocks = consecutive(tensors, "down_blocks.0.resnets.{}.conv1.weight", _MOST_BLOCKS)
    found = _config(
        tensors,
        time="time_embedding.linear_1",
        conv_in="conv_in",
        conv_out="conv_out",
        blocks=[[f"down_blocks.{i}.resnets.{j}.conv1.weight" for j in range(blocks)] for i in range(levels)],
        transformers=[[f"down_blocks.{i}.attentions.{j}" for j in range(blocks)] for i in range(levels)],
        middle="mid_block.attentions.0",
    )
    return found if options is None else _checked(options, found)


def _config(
    tensors: Mapping[str, Tensor],
    *,
    time: str,
    conv_in: str,
    conv_out: str,
    blocks: list[list[str]],
    transformers: list[list[str]],
    middle: str,
) -> dict[str, Any]:
    """The model's configuration by its shapes. `blocks`: a weight of each residual block of each level, down."""
    if not blocks or not blocks[0]:
        raise CheckpointError(
            f"is a {_NAME} without its first residual block",
            advice="The file is not whole: download it again",
        )
    levels = tuple(size(tensors, level[0], 0, _NAME) for level in blocks)
    attention = tuple(f"{level[0]}.norm.weight" in tensors for level in transformers)
    context = size(tensors, f"{middle}.transformer_blocks.0.attn2.to_k.weight", 1, _NAME)
    depth = max(
        consecutive(tensors, at + ".transformer_blocks.{}.norm1.weight", _MOST_DEPTH)
        for at in (middle, *(level[0] for level, has in zip(transformers, attention, strict=True) if has))
    )
    if depth > 1:
        raise CheckpointError(
            f"is a UNet with {depth} blocks in a transformer, supported: 1",
            advice="SDXL is not supported: give the weights of Stable Diffusion 1.x or 2.x",
        )
    projection = tensors.get(f"{middle}.proj_in.weight")
    linear = projection is not None and len(projection.shape) == 2
    inputs = size(tensors, f"{conv_in}.weight", 1, _NAME)
    refuse_by_inputs(inputs)
    return {
        "in_channels": inputs,
        "out_channels": size(tensors, f"{conv_out}.weight", 0, _NAME),
        "channels": size(tensors, f"{conv_in}.weight", 0, _NAME),
        "levels": levels,
        "blocks": len(blocks[0]),
        "attention": attention,
        "time_channels": size(tensors, f"{time}.weight", 0, _NAME),
        "heads": tuple(max(each // _HEAD_CHANNELS, 1) if linear else _HEADS for each in levels),
        "context": context,
    }


# -- diffusers' options ----------------------------------------------------------------------------------

# The class's defaults of options that the file omits.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}

# Options -> the values that the engine supports. The first ones tell other models by name.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "time_cond_proj_dim": (None,),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": (False,),
    "cross_attention_norm": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1,),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "class_embeddings_concat": (False,),
}

# Options without effect on the output, or that the tensors show; and settings of averaging in training.
_WITHOUT_EFFECT = {
    *("sample_size", "dropout", "upcast_attention", "use_linear_projection", "addition_embed_type_num_heads"),
    *(
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "reverse_transformer_layers_per_block",
    ),
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"),
}

_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}


def _checked(options: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The sizes `found` off the shapes, with the options that shapes do not show. Raises CheckpointError."""
    levels: tuple[int, ...] = found["levels"]
    for key, kinds in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        names = listed_option(options, key, str)
        unknown = next((name for name in names if name not in kinds), None)
        if unknown is not None:
            raise refused(key, unknown, " or ".join(kinds))
        attends = [kinds[name] for name in names]
        if (attends if kinds is _DOWN else attends[::-1]) != list(found["attention"]):
            expected = ["with" if there else "without" for there in found["attention"]]
            raise refused(
                key, options[key], f"blocks {', '.join(expected)} attention, as the tensors are, down"
            )
    agree(
        {
            key: _one(options[key])
            for key in ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block")
        },
        {
            "layers_per_block": found["blocks"],
            "cross_attention_dim": found["context"],
            "transformer_layers_per_block": 1,
        },
    )
    agree(
        options,
        {
            "in_channels": found["in_channels"],
            "out_channels": found["out_channels"],
            "block_out_channels": list(levels),
        },
    )
    time = options["time_embedding_dim"]
    agree(
        {"time_embedding_dim": 4 * levels[0] if time is None else time},
        {"time_embedding_dim": found["time_channels"]},
    )
    # An old slip in diffusers: attention_head_dim is the number of heads, unless that is given as well.
    key = "attention_head_dim" if options["num_attention_heads"] is None else "num_attention_heads"
    heads = of_each(options, key, len(levels))
    for width, number in zip(levels, heads, strict=True):
        if width % number:
            raise refused(key, options[key], f"numbers of heads that divide {as_json(levels)}")
    eps = options["norm_eps"]
    if type(eps) is not float or not 0 < eps < 1:
        raise refused("norm_eps", eps, "a number between 0 and 1")
    return {**found, "heads": heads, "groups": count(options, "norm_num_groups"), "eps": eps}


def _one(value: object) -> object:
    """The number that a list repeats, for each level."""
    return (
        value[0] if isinstance(value, list) and value and all(each == value[0] for each in value) else value
    )


COMPVIS_UNET = Family(
    "compvis-unet", MODEL, (), _recognise_compvis, rules_for=partial(_rules, spelling="compvis")
)
DIFFUSERS_CONDITIONED_UNET = Family(
    "diffusers-unet2d-condition",
    MODEL,
    (),
    _recognise_diffusers,
    rules_for=partial(_rules, spelling="diffusers"),
)
