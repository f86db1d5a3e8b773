"""CLIP's text encoders as transformers and OpenCLIP save them: how they are recognised, their sizes, their tables.

Sources: github.com/huggingface/transformers (models/clip), whose files have the prefix `text_model.`
before version 5.6; github.com/mlfoundations/open_clip (whose files hold query, key and value in one matrix);
github.com/Stability-AI/stablediffusion (ldm/modules/encoders/modules.py: 2.x leaves the last layer out).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, shown
from ..keymap import Family, Rule
from ..tensor import Tensor
from .diffusers import renamed
from .options import WHERE, agree, count, refused
from .shapes import consecutive, size

MODEL = "clip-text"
CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")

_NAME = "text encoder"
_MOST_LAYERS = 100
_HEAD_CHANNELS = 64
"""Of every text encoder of CLIP and OpenCLIP."""
_WIDTH_OF_2 = 1024
"""Of Stable Diffusion 2.x, whose encoder is OpenCLIP's ViT-H with the exact GELU."""

_POSITIONS = "the numbers from 0 on, by which positions are looked up"
_PROJECTION = "the projection into the space that CLIP shares with images"

_TRANSFORMERS = (
    Rule(r"(?P<name>embeddings\.(?:token|position)_embedding)\.weight", ("{name}",)),
    renamed("final_layer_norm", "final_layer_norm"),
    renamed(r"encoder\.layers\.(?P<layer>\d+)\.(?P<name>layer_norm[12])", "layer.{layer}.{name}"),
    renamed(
        r"encoder\.layers\.(?P<layer>\d+)\.(?P<name>self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12])",
        "layer.{layer}.{name}",
        "pointwise",
    ),
    Rule(r"embeddings\.position_ids", ignored=_POSITIONS),
    Rule(r"text_projection\.weight", ignored=_PROJECTION),
)


def _open_clip_rules(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The table for a model of as many layers; the file has one more, whose output Stable Diffusion does not use."""
    last = config["layers"]
    block = rf"transformer\.resblocks\.(?!{last}\.)(?P<layer>\d+)"
    parts = tuple(f"layer.{{layer}}.self_attn.{part}_proj.{{kind}}" for part in "qkv")
    return (
        Rule(r"token_embedding\.weight", ("embeddings.token_embedding",)),
        Rule(r"positional_embedding", ("embeddings.position_embedding",)),
        renamed("ln_final", "final_layer_norm"),
        renamed(rf"{block}\.ln_(?P<part>[12])", "layer.{layer}.layer_norm{part}"),
        Rule(rf"{block}\.attn\.in_proj_(?P<kind>weight|bias)", parts, "split_pointwise"),
        renamed(rf"{block}\.attn\.out_proj", "layer.{layer}.self_attn.out_proj", "pointwise"),
        renamed(rf"{block}\.mlp\.c_fc", "layer.{layer}.mlp.fc1", "pointwise"),
        renamed(rf"{block}\.mlp\.c_proj", "layer.{layer}.mlp.fc2", "pointwise"),
        Rule(
            rf"transformer\.resblocks\.{last}\..+", ignored="the last layer: the one before gives the output"
        ),
        Rule(r"text_projection(?:\.weight)?", ignored=_PROJECTION),
        Rule(r"logit_scale|logit_bias", ignored="the temperature of CLIP's training"),
        Rule(r"attn_mask", ignored="the causal mask, which the model makes"),
        Rule(r"visual\..+", ignored="CLIP's encoder of images"),
    )


# -- sizes -----------------------------------------------------------------------------------------------


def _recognise_transformers(checkpoint: Checkpoint) -> dict[str, Any] | None:
    tensors, config = checkpoint.tensors, checkpoint.config
    if config is None and "encoder.layers.0.self_attn.q_proj.weight" not in tensors:
        return None
    if config is not None and _class(config) is None:
        return None
    options = None if config is None else {**_DEFAULTS, **config}
    found = _sizes(
        tensors,
        token="embeddings.token_embedding.weight",
        position="embeddings.position_embedding.weight",
        hidden="encoder.layers.0.mlp.fc1.weight",
    )
    found["layers"] = consecutive(tensors, "encoder.layers.{}.layer_norm1.weight", _MOST_LAYERS)
    return found if options is None else _checked(options, found)


def _recognise_open_clip(checkpoint: Checkpoint) -> dict[str, Any] | None:
    tensors = checkpoint.tensors
    if (
        "transformer.resblocks.0.attn.in_proj_weight" not in tensors
        or "token_embedding.weight" not in tensors
    ):
        return None
    found = _sizes(
        tensors,
        token="token_embedding.weight",
        position="positional_embedding",
        hidden="transformer.resblocks.0.mlp.c_fc.weight",
    )
    layers = consecutive(tensors, "transformer.resblocks.{}.ln_1.weight", _MOST_LAYERS)
    if layers < 2:
        raise CheckpointError(
            f"is a {_NAME} of {layers} layers, expected two or more",
            advice="The file is not whole: download it again",
        )
    return {**found, "layers": layers - 1, "activation": "gelu"}


def _sizes(tensors: Mapping[str, Tensor], *, token: str, position: str, hidden: str) -> dict[str, Any]:
    width = size(tensors, token, 1, _NAME)
    return {
        "vocabulary": size(tensors, token, 0, _NAME),
        "tokens": size(tensors, position, 0, _NAME),
        "width": width,
        "heads": max(width // _HEAD_CHANNELS, 1),
        "hidden": size(tensors, hidden, 0, _NAME),
        "activation": "gelu" if width >= _WIDTH_OF_2 else "quick_gelu",
    }


# -- transformers' options -------------------------------------------------------------------------------

# Other settings are of transformers itself, of training or of the projection, which Stable Diffusion does not use.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def _class(config: Mapping[str, Any]) -> str | None:
    """The class of a text encoder that a transformers configuration names; None: another kind of configuration."""
    names = config.get("architectures")
    named = names[0] if isinstance(names, list) and names else None
    if named in CLASSES or (named is None and config.get("model_type") == "clip_text_model"):
        return str(named or CLASSES[0])
    return None


def is_text_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of transformers' CLIP text encoder."""
    return _class(config) is not None


def _checked(options: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The sizes `found` off the shapes, with the options that shapes do not show. Raises CheckpointError."""
    agree(
        options,
        {
            "vocab_size": found["vocabulary"],
            "max_position_embeddings": found["tokens"],
            "hidden_size": found["width"],
            "intermediate_size": found["hidden"],
            "num_hidden_layers": found["layers"],
        },
    )
    activation = options["hidden_act"]
    if activation not in ("quick_gelu", "gelu"):
        raise refused("hidden_act", activation, "quick_gelu or gelu")
    heads, eps = count(options, "num_attention_heads"), options["layer_norm_eps"]
    if found["width"] % heads:
        raise refused("num_attention_heads", heads, f"a number that divides {found['width']}")
    if type(eps) is not float or not 0 < eps < 1:
        raise CheckpointError(
            f"layer_norm_eps is {shown(eps)}, supported: a number between 0 and 1", where=WHERE
        )
    return {**found, "heads": heads, "activation": activation, "eps": eps}


CLIP_TEXT = Family("transformers-clip-text", MODEL, _TRANSFORMERS, _recognise_transformers)
OPEN_CLIP_TEXT = Family("openclip-text", MODEL, (), _recognise_open_clip, rules_for=_open_clip_rules)
