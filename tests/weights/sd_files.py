"""Files and folders as programs of Stable Diffusion write them, of small models with random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import sparsegen
from sparsegen.models import CLIPText, CLIPTextConfig, SDUNet, SDUNetConfig, VAEConfig, VAEDecoder, VAEEncoder
from sparsegen.models.base import Model
from sparsegen.weights.families import sd_names

State = dict[str, np.ndarray]

UNET = SDUNetConfig(
    channels=32,
    levels=(32, 64, 64),
    attention=(True, True, False),
    blocks=1,
    time_channels=128,
    heads=(8, 8, 8),
    context=64,
)
VAE = VAEConfig(levels=(32, 32, 64), blocks=1)
TEXT = CLIPTextConfig(vocabulary=49408, tokens=77, width=64, layers=2, heads=1, hidden=96)
TEXT_2 = replace(TEXT, activation="gelu")
"""Of 2.x: the file has one layer more."""


def random_values(model: Model, seed: int = 0) -> State:
    """Values of all parameters; a large table repeats few."""
    rng = np.random.default_rng(seed)
    values = {}
    for path, parameter in model.parameters().items():
        size = min(int(np.prod(parameter.shape)), 1 << 16)
        values[path] = np.resize(rng.standard_normal(size).astype(np.float32), parameter.shape)
    return values


MADE: dict[str, State] = {
    "unet": random_values(SDUNet(UNET)),
    "encoder": random_values(VAEEncoder(VAE)),
    "decoder": random_values(VAEDecoder(VAE)),
    "text": random_values(CLIPText(TEXT)),
}
"""Role -> parameters by path."""
AVERAGE = random_values(SDUNet(UNET), seed=1)
"""Other weights of the UNet."""


def under(prefix: str, state: Mapping[str, np.ndarray]) -> State:
    return {prefix + name: value for name, value in state.items()}


def matrices(value: np.ndarray) -> np.ndarray:
    return value[:, :, 0, 0] if value.shape[2:] == (1, 1) else value


# -- one model, by the names of a file ------------------------------------------------------------------


def unet(values: State, spelling: str, *, config: SDUNetConfig = UNET, linear: bool = False) -> State:
    """The UNet in the `spelling` "compvis" or "diffusers"; `linear`: projections as 2.x stores them."""
    state = {}
    for names in sd_names.layers(len(config.levels), config.blocks, config.attention):
        for kind in ("weight", "bias"):
            if f"{names.ours}.{kind}" in values:
                value = values[f"{names.ours}.{kind}"]
                flat = names.pointwise and (linear or "proj_" not in names.ours.rpartition(".")[2])
                state[f"{getattr(names, spelling)}.{kind}"] = np.ascontiguousarray(
                    matrices(value) if flat else value
                )
    assert len(state) == len(values)
    return state


def compvis_vae(encoder: State, decoder: State) -> State:
    state = {}
    for half, values in (("encoder", encoder), ("decoder", decoder)):
        for path, value in values.items():
            state[path if path.startswith(("quant_conv", "post_quant_conv")) else f"{half}.{path}"] = value
    return state


def diffusers_vae(encoder: State, decoder: State, *, old: bool = False) -> State:
    """`old`: the names of the attention before diffusers 0.17."""
    projections = ("query", "key", "value", "proj_attn") if old else ("to_q", "to_k", "to_v", "to_out.0")
    renamed = dict(zip(("q", "k", "v", "proj_out"), projections, strict=True))
    state = {}
    for name, value in compvis_vae(encoder, decoder).items():
        for ours, theirs in (
            (r"down\.(\d)\.block\.", r"down_blocks.\1.resnets."),
            (r"down\.(\d)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
            (r"mid\.block_1", "mid_block.resnets.0"),
            (r"mid\.block_2", "mid_block.resnets.1"),
            (r"mid\.attn_1", "mid_block.attentions.0"),
            (r"nin_shortcut", "conv_shortcut"),
            (r"norm_out", "conv_norm_out"),
            (r"attentions\.0\.norm", "attentions.0.group_norm"),
        ):
            name = re.sub(ours, theirs, name)
        for i in range(len(VAE.levels)):
            name = name.replace(f"up.{i}.block.", f"up_blocks.{len(VAE.levels) - 1 - i}.resnets.")
            name = name.replace(f"up.{i}.upsample.", f"up_blocks.{len(VAE.levels) - 1 - i}.upsamplers.0.")
        layer, _, kind = name.rpartition(".")
        head, _, last = layer.rpartition(".")
        if "attentions" in head and last != "group_norm":
            layer, value = f"{head}.{renamed[last]}", matrices(value)
        state[f"{layer}.{kind}"] = np.ascontiguousarray(value)
    return state


def transformers_text(values: State) -> State:
    """Without the prefix that transformers has before version 5.6."""
    state = {}
    for path, value in values.items():
        name = (
            f"{path}.weight"
            if path.startswith("embeddings.")
            else re.sub(r"^layer\.", "encoder.layers.", path)
        )
        state[name] = np.ascontiguousarray(matrices(value))
    return state


def open_clip_text(values: State) -> State:
    """As OpenCLIP saves it: query, key and value in one matrix, and a last layer that is not used."""
    state: State = {
        "positional_embedding": values["embeddings.position_embedding"],
        "token_embedding.weight": values["embeddings.token_embedding"],
        "text_projection": np.ones((64, 64), np.float32),
        "logit_scale": np.array(4.6, np.float32),
    }
    for kind in ("weight", "bias"):
        state[f"ln_final.{kind}"] = values[f"final_layer_norm.{kind}"]
        for i in range(TEXT_2.layers):
            at, block = f"layer.{i}", f"transformer.resblocks.{i}"
            fused = [matrices(values[f"{at}.self_attn.{part}_proj.{kind}"]) for part in "qkv"]
            state[f"{block}.attn.in_proj_{kind}"] = np.concatenate(fused)
            for ours, theirs in (
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("self_attn.out_proj", "attn.out_proj"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                state[f"{block}.{theirs}.{kind}"] = np.ascontiguousarray(
                    matrices(values[f"{at}.{ours}.{kind}"])
                )
    first = "transformer.resblocks.0."
    last = {
        name.replace(first, f"transformer.resblocks.{TEXT_2.layers}."): np.zeros_like(value)
        for name, value in state.items()
        if name.startswith(first)
    }
    return state | last


# -- single files ----------------------------------------------------------------------------------------


def whole_file(*, version: int = 1, ema: bool = False) -> State:
    """Everything that a single file of 1.x or 2.x holds."""
    state = under("model.diffusion_model.", unet(MADE["unet"], "compvis", linear=version == 2))
    state |= under("first_stage_model.", compvis_vae(MADE["encoder"], MADE["decoder"]))
    if version == 1:
        text = under("cond_stage_model.transformer.text_model.", transformers_text(MADE["text"]))
        text["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(77)[None]
    else:
        text = under("cond_stage_model.model.", open_clip_text(MADE["text"]))
    state |= text | {"betas": np.ones(1000, np.float32), "alphas_cumprod": np.ones(1000, np.float32)}
    if ema:
        averaged = unet(AVERAGE, "compvis", linear=version == 2)
        state |= {
            f"model_ema.diffusion_model{name.replace('.', '')}": value for name, value in averaged.items()
        }
        state |= {
            "model_ema.decay": np.array(0.9999, np.float32),
            "model_ema.num_updates": np.array(7, np.int32),
        }
    return state


def half(state: State) -> State:
    return {
        name: value.astype(np.float16) if value.dtype == np.float32 else value
        for name, value in state.items()
    }


# -- folders ---------------------------------------------------------------------------------------------

INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.35.1",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": [None, None],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": 8,
        "block_out_channels": [32, 64, 64],
        "cross_attention_dim": 64,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "sample_size": 64,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [32, 32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "sample_size": 512,
        "scaling_factor": 0.2,
    },
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "model_type": "clip_text_model",
        "num_attention_heads": 1,
        "num_hidden_layers": 2,
        "transformers_version": "4.57.6",
    },
}
STATES: dict[str, State] = {
    "unet": unet(MADE["unet"], "diffusers"),
    "vae": diffusers_vae(MADE["encoder"], MADE["decoder"]),
    "text_encoder": under("text_model.", transformers_text(MADE["text"])),
}
FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")
    return path


def part(
    folder: Path,
    name: str,
    state: State | None = None,
    config: Mapping[str, Any] | None = None,
    file: str = "",
) -> Path:
    """One model's folder: a configuration with some other options, and the weights."""
    write_json(folder / name / "config.json", {**CONFIGS[name], **(config or {})})
    save_file(STATES[name] if state is None else state, folder / name / (file or FILES[name]))
    return folder / name


def pipeline(
    folder: Path, index: Mapping[str, Any] | None = None, scheduler: Mapping[str, Any] | None = None
) -> Path:
    """A whole pipeline's folder, without a tokenizer: CLIP's is in the package."""
    write_json(folder / "model_index.json", {**INDEX, **(index or {})})
    write_json(folder / "scheduler" / "scheduler_config.json", {**SCHEDULER, **(scheduler or {})})
    for name in CONFIGS:
        part(folder, name)
    return folder


def lora(path: Path) -> Path:
    """A LoRA of kohya's scripts, of one layer."""
    at = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {
            f"{at}.alpha": np.array(1, np.float32),
            f"{at}.lora_down.weight": np.ones((2, 64), np.float32),
            f"{at}.lora_up.weight": np.ones((64, 2), np.float32),
        },
        path,
    )
    return path


def holds(model: Model, wanted: State) -> bool:
    found = model.parameters()
    assert found.keys() == wanted.keys()
    return all(np.array_equal(found[name].value, value) for name, value in wanted.items())


def all_hold(bundle: sparsegen.Bundle, **others: State) -> bool:
    """That a bundle has all models, with the parameters of `MADE` or `others`."""
    assert list(bundle.models) == ["unet", "encoder", "decoder", "text"]
    return all(holds(model, others.get(role, MADE[role])) for role, model in bundle.models.items())
