"""Folders as diffusers writes them, of a small model with random weights, and how to compare what was loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsegen
from sparsegen.models import DDPM, DDPMConfig
from sparsegen.weights import CheckpointError

State = dict[str, np.ndarray]

CONFIG: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.35.1",
    "sample_size": 32,
    "block_out_channels": [32, 64, 96],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "dropout": 0.1,
}
OURS = DDPMConfig(
    channels=32, levels=(32, 64, 96), attention=(False, True, False), blocks=1, time_channels=128
)


def parameters(config: DDPMConfig = OURS, seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(parameter.shape).astype(np.float32)
        for name, parameter in DDPM(config).parameters().items()
    }


def as_diffusers(made: Mapping[str, np.ndarray], levels: int = 3, *, old: bool = False) -> State:
    """Our parameters under diffusers' names; of old, those before 0.17 for attention and before 0.2 for `op`."""
    names = ("query", "key", "value", "proj_attn") if old else ("to_q", "to_k", "to_v", "to_out.0")
    attention = dict(zip(("q", "k", "v", "proj_out"), names, strict=True), norm="group_norm")
    layers = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
    state = {}
    for name, value in made.items():
        for ours, theirs in (
            (r"temb\.dense\.0", "time_embedding.linear_1"),
            (r"temb\.dense\.1", "time_embedding.linear_2"),
            (r"norm_out", "conv_norm_out"),
            (r"mid\.block_1", "mid_block.resnets.0"),
            (r"mid\.block_2", "mid_block.resnets.1"),
            (r"mid\.attn_1", "mid_block.attentions.0"),
            (r"down\.(\d+)\.downsample(\.conv(?=\.))?", r"down_blocks.\1.downsamplers.0\2"),
            (r"up\.(\d+)\.upsample", r"up_blocks.\1.upsamplers.0"),
            (r"(down|up)\.(\d+)\.block", r"\1_blocks.\2.resnets"),
            (r"(down|up)\.(\d+)\.attn", r"\1_blocks.\2.attentions"),
        ):
            name = re.sub(f"^{ours}", theirs, name)
        name = re.sub(r"^up_blocks\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", name)
        head, layer, kind = name.rsplit(".", 2) if name.count(".") > 1 else ("", *name.split("."))
        if "attentions" in head:
            layer = attention[layer]
            if kind == "weight" and layer != "group_norm":
                value = value[:, :, 0, 0]
        elif old and "downsamplers" in head and layer == "conv":
            layer = "op"
        layer = layers.get(layer, layer)
        state[f"{head}.{layer}.{kind}".lstrip(".")] = np.ascontiguousarray(value)
    return state


MADE = parameters()


def write(folder: Path, config: Mapping[str, Any] | str = CONFIG, state: State | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text, "utf-8")
    save_file(as_diffusers(MADE) if state is None else state, folder / "diffusion_pytorch_model.safetensors")
    return folder


def pipeline(folder: Path, index: Mapping[str, Any] | None = None) -> Path:
    write(folder / "unet")
    parts = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "safety_checker": [None, None],
        **(index or {}),
    }
    (folder / "model_index.json").write_text(json.dumps(parts), "utf-8")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}', "utf-8")
    return folder


def holds(model: sparsegen.Model, wanted: Mapping[str, np.ndarray] = MADE) -> bool:
    found = model.parameters()
    assert found.keys() == wanted.keys()
    return all(np.array_equal(found[name].value, value) for name, value in wanted.items())


def refused(folder: Path, message: str) -> None:
    """That loading fails with one sentence, which says where."""
    with pytest.raises(CheckpointError, match=message) as caught:
        sparsegen.load(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)
