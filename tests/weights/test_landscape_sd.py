"""The folder of landscape-sd: diffusers' own pipeline opens it offline and makes a picture of a prompt."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparsegen.weights.builtin import FOLDER

SD = FOLDER / "landscape-sd"


def test_the_folder_is_small_and_whole():
    index = json.loads((SD / "model_index.json").read_text("utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    assert sorted(parts) == ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    assert all((SD / name).is_dir() for name in parts)
    assert sum(path.stat().st_size for path in SD.rglob("*") if path.is_file()) <= 16e6


@pytest.mark.torch
def test_diffusers_opens_it_offline(monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from sparsegen.weights.training.sd_export import load, samples
    from sparsegen.weights.training.sd_network import LENGTH

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = load(SD)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.tokenizer.model_max_length == LENGTH
    stored = {str(path.relative_to(SD)) for path in SD.rglob("*.safetensors")}
    assert len(stored) == 3
    (picture,) = samples(pipe, ["a lake, summer"], steps=1)
    assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
    assert torch.isfinite(pipe.unet.conv_out.weight).all()
