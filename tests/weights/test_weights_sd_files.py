"""Single files of Stable Diffusion become its models; files of other models are refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsegen
from sparsegen import InputError
from sparsegen.models import SDUNet
from sparsegen.weights import CheckpointError
from tests.weights.sd_files import (
    AVERAGE,
    MADE,
    STATES,
    TEXT,
    UNET,
    VAE,
    State,
    all_hold,
    compvis_vae,
    half,
    holds,
    open_clip_text,
    random_values,
    transformers_text,
    under,
    unet,
    whole_file,
)


def write(path: Path, state: State) -> Path:
    save_file(state, path)
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        sparsegen.load_bundle(path)
    assert str(caught.value).startswith(str(path))


# -- whole files -----------------------------------------------------------------------------------------


def test_a_file_of_version_1(tmp_path: Path) -> None:
    bundle = sparsegen.load_bundle(write(tmp_path / "sd.safetensors", whole_file()))
    assert all_hold(bundle)
    configs = {role: model.config for role, model in bundle.models.items()}
    assert configs == {"unet": UNET, "encoder": VAE, "decoder": VAE, "text": TEXT}
    assert (bundle.schedule, bundle.prediction) == ("stable_diffusion", "noise")
    assert bundle.models["unet"].sampling == {"schedule": "stable_diffusion"}
    assert dict(bundle.scheduler) == {"sampler": None, "steps_offset": 1, "set_alpha_to_one": False}
    tokens = bundle.tokenizer.encode("a lake")
    assert tokens.ids[tokens.count] == 49407
    with pytest.raises(InputError, match=r"holds 4 models \(unet, encoder, decoder, text\), expected one"):
        sparsegen.load(tmp_path / "sd.safetensors")


def test_a_file_of_version_2(tmp_path: Path) -> None:
    """Heads have 64 channels, texts are padded by 0, the last layer of the text encoder is left out."""
    bundle = sparsegen.load_bundle(write(tmp_path / "sd.safetensors", whole_file(version=2)))
    assert all_hold(bundle)
    assert bundle.models["unet"].config == replace(UNET, heads=(1, 1, 1))
    assert bundle.models["text"].config == replace(TEXT, activation="gelu")
    assert bundle.prediction is None
    tokens = bundle.tokenizer.encode("a lake")
    assert set(tokens.ids[tokens.count :]) == {0}


@pytest.mark.torch
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickled_file(as_zip: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(value) for name, value in whole_file().items()}
    saved = {"state_dict": state, "global_step": 470000, "epoch": 6, "callbacks": {}}
    torch.save(saved, tmp_path / "sd.ckpt", _use_new_zipfile_serialization=as_zip)
    assert all_hold(sparsegen.load_bundle(tmp_path / "sd.ckpt"))


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    bundle = sparsegen.load_bundle(write(tmp_path / "sd.safetensors", half(whole_file())))
    rounded = {
        role: {path: value.astype(np.float16).astype(np.float32) for path, value in state.items()}
        for role, state in MADE.items()
    }
    assert all_hold(bundle, **rounded)


def test_averages_without_dots_are_the_unets_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "sd.safetensors", whole_file(ema=True))
    bundle = sparsegen.load_bundle(path)
    assert all_hold(bundle, unet=AVERAGE)
    assert bundle.taken["unet"] == "averaged weights (model_ema); beside them: model.diffusion_model"
    assert bundle.taken["decoder"] == "the only weights (first_stage_model)"
    assert all_hold(sparsegen.load_bundle(path, which="ema"), unet=AVERAGE)
    assert all_hold(sparsegen.load_bundle(path, which="model"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_an_average_that_lacks_a_tensor_is_named_once(tmp_path: Path) -> None:
    state = whole_file(ema=True)
    del state["model_ema.diffusion_modelout2bias"]
    bundle = sparsegen.load_bundle(write(tmp_path / "sd.safetensors", state))
    assert all_hold(bundle)
    assert "model_ema (1 of the" in bundle.taken["unet"]
    assert all("averaged" not in bundle.taken[role] for role in ("encoder", "decoder", "text"))
    with pytest.raises(CheckpointError, match="its averaged weights cannot be taken: model_ema"):
        sparsegen.load_bundle(tmp_path / "sd.safetensors", which="ema")
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        sparsegen.load_bundle(write(tmp_path / "last.safetensors", whole_file()), which="ema")


def test_inpainting_has_nine_input_channels(tmp_path: Path) -> None:
    config = replace(UNET, in_channels=9)
    values = random_values(SDUNet(config))
    state = whole_file() | under("model.diffusion_model.", unet(values, "compvis", config=config))
    bundle = sparsegen.load_bundle(write(tmp_path / "sd.safetensors", state))
    assert bundle.models["unet"].config == config
    assert all_hold(bundle, unet=values)


def test_settings_are_given_by_role(tmp_path: Path) -> None:
    path = write(tmp_path / "sd.safetensors", whole_file())
    bundle = sparsegen.load_bundle(path, unet={"heads": (4, 4, 4)}, decoder={"groups": 16})
    assert bundle.models["unet"].config.heads == (4, 4, 4)
    assert (bundle.models["decoder"].config.groups, bundle.models["encoder"].config.groups) == (16, 32)
    with pytest.raises(InputError, match=r"several models, whose settings are given by role.*unet, encoder"):
        sparsegen.load_bundle(path, heads=(4, 4, 4))
    with pytest.raises(InputError, match="vae-decoder has no setting heads"):
        sparsegen.load_bundle(path, decoder={"heads": 3})


def test_progress_counts_all_models(tmp_path: Path) -> None:
    seen = []
    path = write(tmp_path / "sd.safetensors", whole_file())
    sparsegen.load_bundle(path, progress=lambda done, total, _: seen.append((done, total)))
    total = sum(map(len, MADE.values()))
    assert seen == [(i, total) for i in range(1, total + 1)]


# -- parts alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model.", "state_dict.", "module."])
def test_an_autoencoder_alone(prefix: str, tmp_path: Path) -> None:
    state = compvis_vae(MADE["encoder"], MADE["decoder"])
    state["loss.perceptual_loss.lin0.model.1.weight"] = np.ones((1, 4, 1, 1), np.float32)
    bundle = sparsegen.load_bundle(write(tmp_path / "vae.safetensors", under(prefix, state)))
    assert list(bundle.models) == ["encoder", "decoder"]
    assert holds(bundle.models["encoder"], MADE["encoder"])
    assert holds(bundle.models["decoder"], MADE["decoder"])
    assert (bundle.schedule, bundle.prediction, bundle.tokenizer) == (None, None, None)


def test_an_average_of_an_autoencoder(tmp_path: Path) -> None:
    other = {role: {path: value + 1 for path, value in MADE[role].items()} for role in ("encoder", "decoder")}
    state = compvis_vae(MADE["encoder"], MADE["decoder"])
    averaged = compvis_vae(other["encoder"], other["decoder"])
    state |= {f"model_ema.{name.replace('.', '')}": value for name, value in averaged.items()}
    bundle = sparsegen.load_bundle(write(tmp_path / "vae.safetensors", state))
    assert all(holds(bundle.models[role], other[role]) for role in other)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_diffusers_weights_without_their_configuration(name: str, tmp_path: Path) -> None:
    """Shapes give the sizes; a UNet's heads are those of its version."""
    bundle = sparsegen.load_bundle(write(tmp_path / "model.safetensors", STATES[name]))
    assert all(holds(model, MADE[role]) for role, model in bundle.models.items())
    assert len(bundle.models) == (2 if name == "vae" else 1)
    if name == "unet":
        assert bundle.model.config == UNET


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_unet_alone(prefix: str, tmp_path: Path) -> None:
    state = under(prefix, unet(MADE["unet"], "compvis"))
    model = sparsegen.load(write(tmp_path / "unet.safetensors", state))
    assert holds(model, MADE["unet"])
    assert sparsegen.load(tmp_path / "unet.safetensors", heads=(4, 4, 4)).config.heads == (4, 4, 4)


@pytest.mark.parametrize(
    "state",
    [
        transformers_text(MADE["text"]) | {"text_projection.weight": np.ones((8, 64), np.float32)},
        under("cond_stage_model.transformer.text_model.", transformers_text(MADE["text"])),
        under("cond_stage_model.model.", open_clip_text(MADE["text"])),
        open_clip_text(MADE["text"]) | {"visual.proj": np.ones((8, 8), np.float32)},
    ],
    ids=["transformers", "prefixed", "openclip", "openclip alone"],
)
def test_a_text_encoder_alone(state: State, tmp_path: Path) -> None:
    assert holds(sparsegen.load(write(tmp_path / "text.safetensors", state)), MADE["text"])


def test_a_part_saved_as_a_file_of_ours(tmp_path: Path) -> None:
    bundle = sparsegen.load_bundle(write(tmp_path / "sd.safetensors", whole_file(version=2)))
    for role, model in bundle.models.items():
        sparsegen.loading.save(model, tmp_path / "own.safetensors")
        again = sparsegen.load_bundle(tmp_path / "own.safetensors")
        assert (list(again.models), again.model.config) == ([role], model.config)
        assert holds(again.model, MADE[role])
        assert again.prediction is None
        assert again.schedule == ("stable_diffusion" if role == "unet" else None)
        if role == "text":
            assert again.tokenizer.padding == 0


# -- files that do not fit -------------------------------------------------------------------------------


def test_every_fault_of_a_file_is_in_one_error(tmp_path: Path) -> None:
    state = whole_file()
    del state["model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"]
    state["model.diffusion_model.out.2.bias"] = np.ones(5, np.float32)
    state["model.diffusion_model.extra.weight"] = np.ones(5, np.float32)
    path = write(tmp_path / "sd.safetensors", state)
    refused(
        path,
        r"(?s)missing \(1\): mid\.attn_1\.block\.attn1\.to_q\.weight.*unexpected \(1\).*extra.*mis-shaped",
    )


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "first_stage_model.encoder.conv_out.weight",
            None,
            r"conv_out\.weight, which determines a size, is missing",
        ),
        ("model.diffusion_model.out.2.weight", None, r"out\.2\.weight, which determines a size, is missing"),
        ("model.diffusion_model.out.2.weight", (0,), r"out\.2\.weight, which determines a size, is \[0\]"),
        (
            "model.diffusion_model.input_blocks.3.0.in_layers.2.weight",
            None,
            "with 1, 0 blocks on its levels|blocks",
        ),
        ("first_stage_model.decoder.up.1.block.0.norm1.weight", None, r"missing \(1\)"),
        ("cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.bias", None, r"missing \(1\)"),
    ],
)
def test_files_that_lack_a_tensor(name: str, shape: Any, message: str, tmp_path: Path) -> None:
    state = whole_file()
    del state[name]
    if shape is not None:
        state[name] = np.ones(shape, np.float32)
    refused(write(tmp_path / "sd.safetensors", state), message)


def test_truncated_files(tmp_path: Path) -> None:
    raw = write(tmp_path / "sd.safetensors", whole_file()).read_bytes()
    for size in (0, 7, 100, len(raw) // 2, len(raw) - 1):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(raw[:size])
        refused(path, "header|cut short|empty|unknown|not")


def unet_of(channels: int) -> State:
    state = unet(MADE["unet"], "compvis")
    return under(
        "model.diffusion_model.",
        state | {"input_blocks.0.0.weight": np.ones((32, channels, 3, 3), np.float32)},
    )


def marked(name: str) -> State:
    return whole_file() | {name: np.ones((1, 1), np.float32)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (unet_of(5), r"conditioned on depth \(5 input channels\)"),
        (unet_of(7), r"an upscaler \(7 input channels\)"),
        (unet_of(8), r"an InstructPix2Pix model \(8 input channels\)"),
        (
            marked("conditioner.embedders.1.model.ln_final.weight"),
            "is an SDXL model, which is not supported here",
        ),
        (marked("model.diffusion_model.label_emb.0.0.weight"), "is an SDXL model"),
        (under("unet.", {"add_embedding.linear_1.weight": np.ones((2, 2), np.float32)}), "UNet of an SDXL"),
        (marked("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"), "is an SD3 model"),
        (marked("double_blocks.0.img_attn.qkv.weight"), "is a Flux model"),
        (marked("control_model.input_blocks.0.0.weight"), "is a ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": np.ones((2, 2), np.float32)}, "is a ControlNet"),
        (
            {"lora_unet_mid_block.lora_down.weight": np.ones((2, 2), np.float32)},
            r"is a LoRA.*lora=\{path: scale\}",
        ),
        ({"unet.a.to_q.lora_A.weight": np.ones((2, 2), np.float32)}, "is a LoRA"),
        ({"a.processor.to_q_lora.down.weight": np.ones((2, 2), np.float32)}, "is a LoRA"),
        ({"emb_params": np.ones((2, 2), np.float32)}, "textual inversion"),
        (
            compvis_vae(MADE["encoder"], MADE["decoder"])
            | {"quantize.embedding.weight": np.ones((2, 2), np.float32)},
            r"a codebook \(VQ\)",
        ),
    ],
)
def test_other_models_are_refused_by_name(state: State, message: str, tmp_path: Path) -> None:
    refused(write(tmp_path / "model.safetensors", state), message)


def test_deeper_transformers_are_refused(tmp_path: Path) -> None:
    state = unet(MADE["unet"], "compvis")
    at = re.compile(r"(.*transformer_blocks)\.0\.(.*)")
    state |= {f"{m[1]}.1.{m[2]}": value for name, value in state.items() if (m := at.fullmatch(name))}
    refused(write(tmp_path / "unet.safetensors", state), "2 blocks in a transformer, supported: 1")
