"""LoRA files are added to the weights where these are read; what does not fit is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsegen
from sparsegen import InputError
from sparsegen.weights import CheckpointError
from tests.weights.sd_files import MADE, STATES, State, holds, part, pipeline, whole_file

RANK = 3
# The engine's name, diffusers' name, transformers' names of the same.
UNET = {
    "down.0.attn.0.block.attn1.to_q": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid.attn_1.block.attn2.to_out": "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "up.1.attn.1.block.ff.proj": "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj",
    "up.1.attn.1.proj_in": "up_blocks.1.attentions.1.proj_in",
    "down.1.block.0.conv1": "down_blocks.1.resnets.0.conv1",
    "down.1.block.0.nin_shortcut": "down_blocks.1.resnets.0.conv_shortcut",
    "up.2.block.0.temb_proj": "up_blocks.0.resnets.0.time_emb_proj",
    "up.1.upsample.conv": "up_blocks.1.upsamplers.0.conv",
    "down.0.downsample.conv": "down_blocks.0.downsamplers.0.conv",
}
TEXT = {
    "layer.0.self_attn.q_proj": "text_model.encoder.layers.0.self_attn.q_proj",
    "layer.1.mlp.fc2": "text_model.encoder.layers.1.mlp.fc2",
}
KOHYA, PEFT, OLDER = "kohya", "peft", "diffusers"


def updates(names: dict[str, str], role: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each module, by the file's name: down `[r, I, …]` and up `[O, r, …]`."""
    rng = np.random.default_rng(len(names))
    found = {}
    for ours, theirs in names.items():
        shape = MADE[role][f"{ours}.weight"].shape
        convolution = "resnets" in theirs or "samplers" in theirs
        down, up = (RANK, *shape[1:]), (shape[0], RANK, 1, 1)
        if not convolution or len(shape) == 2:
            down, up = down[:2], up[:2]
        found[theirs] = tuple(rng.standard_normal(each).astype(np.float32) for each in (down, up))
    return found


ALL = {"unet": updates(UNET, "unet"), "text": updates(TEXT, "text")}


def kohya(alpha: float | None = None) -> State:
    state = {}
    for role, prefix in (("unet", "lora_unet"), ("text", "lora_te")):
        for name, (down, up) in ALL[role].items():
            at = f"{prefix}_{name.replace('.', '_')}"
            state |= {f"{at}.lora_down.weight": down, f"{at}.lora_up.weight": up}
            if alpha is not None:
                state[f"{at}.alpha"] = np.array(alpha, np.float32)
    return state


def dotted(down: str, up: str, unet: str = "unet.", text: str = "text_encoder.") -> State:
    state = {}
    for role, prefix in (("unet", unet), ("text", text)):
        for name, halves in ALL[role].items():
            state |= {
                f"{prefix}{name}.{half}.weight": value for half, value in zip((down, up), halves, strict=True)
            }
    return state


def old_diffusers() -> State:
    """The first LoRAs: of attention alone."""
    state = {}
    for role, prefix in (("unet", "unet."), ("text", "text_encoder.")):
        for name, halves in ALL[role].items():
            attention = re.fullmatch(r"(.*attn[12]?)\.(?:(to_[qkv])|(to_out)\.0|([qkv])_proj)", name)
            if attention is None:
                continue
            at, *parts = attention.groups()
            last = parts[0] or parts[1] or f"to_{parts[2]}"
            processor = ".processor" if role == "unet" else ""
            for half, value in zip(("down", "up"), halves, strict=True):
                state[f"{prefix}{at}{processor}.{last}_lora.{half}.weight"] = value
    return state


def expected(factor: float, only: Callable[[str], bool] = lambda name: True) -> dict[str, State]:
    """The weights of all models with the updates of the names that `only` chooses."""
    found = {role: dict(state) for role, state in MADE.items()}
    for role, names in (("unet", UNET), ("text", TEXT)):
        for ours, theirs in names.items():
            if only(theirs):
                down, up = ALL[role][theirs]
                weight = MADE[role][f"{ours}.weight"]
                product = up.reshape(-1, RANK).astype(np.float64) @ down.reshape(RANK, -1)
                found[role][f"{ours}.weight"] = weight + factor * product.reshape(weight.shape)
    return found


def is_close(bundle: sparsegen.Bundle, wanted: dict[str, State]) -> bool:
    """Float32 products of few terms, added once: the last bits of float32 differ."""
    for role, model in bundle.models.items():
        for path, parameter in model.parameters().items():
            np.testing.assert_allclose(
                parameter.value, wanted[role][path], rtol=1e-5, atol=1e-5, err_msg=path
            )
    return True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd") / "sd.safetensors"
    save_file(whole_file(), path)
    return path


# -- spellings -------------------------------------------------------------------------------------------


def compvis_kohya() -> State:
    """As scripts for CompVis's code name a block."""
    names = {"down_blocks_0_attentions_0": "input_blocks_1_1", "mid_block_attentions_0": "middle_block_1"}
    state = {}
    for key, value in kohya().items():
        for theirs, compvis in names.items():
            key = key.replace(theirs, compvis)
        state[key] = value
    return state


@pytest.mark.parametrize(
    "state",
    [
        kohya(),
        compvis_kohya(),
        {name.replace("lora_te_", "lora_te1_"): value for name, value in kohya().items()},
        dotted("lora_A", "lora_B"),
        dotted("lora_A.default", "lora_B.default"),
        dotted("lora_A", "lora_B", "unet.base_model.model.", "text_encoder.base_model.model."),
        dotted("lora.down", "lora.up"),
        dotted("lora_linear_layer.down", "lora_linear_layer.up"),
    ],
    ids=[
        "kohya",
        "kohya, CompVis's names",
        "kohya, as diffusers writes it",
        "peft",
        "peft, default",
        "peft, wrapped",
        "diffusers",
        "linear layer",
    ],
)
def test_spellings(state: State, model: Path, tmp_path: Path) -> None:
    save_file(state, tmp_path / "style.safetensors")
    bundle = sparsegen.load_bundle(model, lora={tmp_path / "style.safetensors": 0.5})
    assert is_close(bundle, expected(0.5))
    assert bundle.taken["unet"].endswith("; with LoRA: style.safetensors × 0.5")
    assert "LoRA" not in bundle.taken["decoder"]


@pytest.mark.torch
def test_the_first_loras_of_diffusers(model: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = old_diffusers()
    torch.save(
        {name: torch.from_numpy(value) for name, value in state.items()},
        tmp_path / "pytorch_lora_weights.bin",
    )
    bundle = sparsegen.load_bundle(model, lora={tmp_path / "pytorch_lora_weights.bin": 1})
    assert is_close(bundle, expected(1, lambda name: "attn" in name))
    plain = {name.removeprefix("unet."): value for name, value in state.items() if name.startswith("unet.")}
    save_file(plain, tmp_path / "unet.safetensors")
    bundle = sparsegen.load_bundle(model, lora={tmp_path / "unet.safetensors": 1})
    assert is_close(bundle, expected(1, lambda name: "attn" in name and "text" not in name))


def test_a_loras_of_a_folder_of_diffusers_goes_with_every_form_of_the_model(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    (tmp_path / "style").mkdir()
    save_file(dotted("lora_A", "lora_B"), tmp_path / "style" / "pytorch_lora_weights.safetensors")
    assert is_close(sparsegen.load_bundle(folder, lora={tmp_path / "style": 2}), expected(2))
    half = {name: value.astype(np.float16) for name, value in kohya().items()}
    save_file(half, tmp_path / "half.safetensors")
    assert sparsegen.load_bundle(folder, lora={tmp_path / "half.safetensors": 2}).models


# -- strength --------------------------------------------------------------------------------------------


def test_alpha_divides_by_the_rank(model: Path, tmp_path: Path) -> None:
    save_file(kohya(alpha=1.5), tmp_path / "style.safetensors")
    bundle = sparsegen.load_bundle(model, lora={tmp_path / "style.safetensors": 2})
    assert is_close(bundle, expected(2 * 1.5 / RANK))


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"r": RANK, "lora_alpha": 6}, 2),
        ({"r": RANK, "lora_alpha": 6, "use_rslora": True}, 6 / RANK**0.5),
        ({"r": RANK, "lora_alpha": None}, 1),
    ],
)
def test_alpha_of_an_adapters_settings(
    settings: dict[str, Any], factor: float, model: Path, tmp_path: Path
) -> None:
    noted = {f"{part}.{key}": value for part in ("unet", "text_encoder") for key, value in settings.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(noted)}
    save_file(dotted("lora_A", "lora_B"), tmp_path / "style.safetensors", metadata)
    bundle = sparsegen.load_bundle(model, lora={tmp_path / "style.safetensors": 1})
    assert is_close(bundle, expected(factor))
    # PEFT's own folder is of one model
    only = {
        name: value
        for name, value in dotted("lora_A", "lora_B", "base_model.model.").items()
        if "text" not in name
    }
    save_file(only, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    bundle = sparsegen.load_bundle(model, lora={tmp_path: 1})
    assert is_close(bundle, expected(factor, lambda name: "text" not in name))


def test_several_loras_add_up(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(kohya(), tmp_path / f"{name}.safetensors")
    loras = {tmp_path / "a.safetensors": 0.75, tmp_path / "b.safetensors": -0.25}
    bundle = sparsegen.load_bundle(model, lora=loras)
    assert is_close(bundle, expected(0.5))
    assert bundle.taken["unet"].endswith("; with LoRA: a.safetensors × 0.75, b.safetensors × -0.25")


def test_a_lora_of_nothing_changes_no_bit(model: Path, tmp_path: Path) -> None:
    save_file(
        {name: value * ("up" not in name) for name, value in kohya().items()}, tmp_path / "zero.safetensors"
    )
    bundle = sparsegen.load_bundle(model, lora={tmp_path / "zero.safetensors": 1})
    assert all(holds(each, MADE[role]) for role, each in bundle.models.items())


def test_one_model_takes_a_lora_too(tmp_path: Path) -> None:
    part(tmp_path, "unet")
    state = {name: value for name, value in kohya().items() if name.startswith("lora_unet")}
    save_file(state, tmp_path / "style.safetensors")
    found = sparsegen.load(tmp_path / "unet", lora={tmp_path / "style.safetensors": 1})
    wanted = expected(1)["unet"]
    for path, parameter in found.parameters().items():
        np.testing.assert_allclose(parameter.value, wanted[path], rtol=1e-5, atol=1e-5)


# -- files that do not fit -------------------------------------------------------------------------------


def refused(model: Path, lora: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        sparsegen.load_bundle(model, lora={lora: 1})
    assert str(caught.value).startswith(str(lora))


def test_every_fault_is_in_one_error(model: Path, tmp_path: Path) -> None:
    state = kohya(alpha=1)
    names = sorted({name.partition(".")[0] for name in state})
    del state[f"{names[0]}.lora_up.weight"]
    state[f"{names[1]}.lora_up.weight"] = np.ones((5, RANK), np.float32)
    state[f"{names[2]}.lora_down.weight"] = np.ones((RANK, 4), np.int32)
    state["lora_unet_of_another_model.lora_down.weight"] = np.ones((RANK, 4), np.float32)
    state["something"] = np.ones(3, np.float32)
    save_file(state, tmp_path / "style.safetensors")
    refused(
        model,
        tmp_path / "style.safetensors",
        r"(?s)does not fit the model:.*unexpected \(2\): something, lora_unet_of_another.*without the other half \(1\)"
        r".*mis-shaped \(1\).*unreadable \(1\).*int32.*Check that the LoRA belongs",
    )


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_x.dora_scale", "is a DoRA, supported: LoRA"),
        ("unet.x.to_q.lora_magnitude_vector", "is a DoRA"),
        ("lora_unet_x.hada_w1_a", r"is a LoHa \(LyCORIS\)"),
        ("lora_unet_x.lokr_w1", r"is a LoKr \(LyCORIS\)"),
        ("lora_unet_x.oft_blocks", "is an OFT adapter"),
        ("lora_unet_x.lora_mid.weight", "a LoRA with cores between its halves"),
        ("lora_unet_x.diff", "an adapter of LyCORIS"),
        ("lora_te2_x.lora_down.weight", "is a LoRA of SDXL"),
        ("transformer.x.lora_A.weight", r"is a LoRA of a transformer \(SD3, Flux\)"),
    ],
)
def test_other_adapters_are_refused_by_name(key: str, message: str, model: Path, tmp_path: Path) -> None:
    save_file(kohya() | {key: np.ones((2, 2), np.float32)}, tmp_path / "style.safetensors")
    refused(model, tmp_path / "style.safetensors", message)


@pytest.mark.parametrize("state", [{}, {"a.weight": np.ones(2, np.float32)}, STATES["vae"]])
def test_files_that_are_no_lora(state: State, model: Path, tmp_path: Path) -> None:
    save_file(state, tmp_path / "style.safetensors")
    refused(model, tmp_path / "style.safetensors", "is no LoRA: its tensors are")


def test_updates_of_a_model_that_is_not_there(tmp_path: Path) -> None:
    part(tmp_path, "unet")
    save_file(kohya(), tmp_path / "style.safetensors")
    refused(
        tmp_path / "unet",
        tmp_path / "style.safetensors",
        r"(?s)unexpected \(2\): lora_te_text_model.*that the model has a text encoder",
    )
    part(tmp_path, "vae")
    refused(tmp_path / "vae", tmp_path / "style.safetensors", r"unexpected \(11\)")


def test_one_place_under_two_names(model: Path, tmp_path: Path) -> None:
    save_file(kohya() | dotted("lora_A", "lora_B"), tmp_path / "style.safetensors")
    refused(model, tmp_path / "style.safetensors", r"given twice \(11\)")
    both = kohya() | {
        name.replace("lora_down", "lora_A.default"): value
        for name, value in kohya().items()
        if "lora_down" in name
    }
    save_file(both, tmp_path / "half.safetensors")
    refused(model, tmp_path / "half.safetensors", r"unexpected \(11\): .* \(beside ")


@pytest.mark.parametrize("alpha", [np.nan, np.inf])
def test_an_alpha_that_is_no_number(alpha: float, model: Path, tmp_path: Path) -> None:
    save_file(kohya(alpha), tmp_path / "style.safetensors")
    refused(model, tmp_path / "style.safetensors", "alpha: is (nan|inf), expected a number")


@pytest.mark.parametrize(
    "noted", ["{", "[]", '{"unet.lora_alpha": "x"}', '{"unet.alpha_pattern": 3, "unet.r": 4}']
)
def test_settings_that_are_damaged(noted: str, model: Path, tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": noted}
    save_file(dotted("lora_A", "lora_B"), tmp_path / "style.safetensors", metadata)
    refused(model, tmp_path / "style.safetensors", "is not a JSON object|is no finite number")


def test_truncated_files_and_scales(model: Path, tmp_path: Path) -> None:
    save_file(kohya(), tmp_path / "style.safetensors")
    raw = (tmp_path / "style.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(raw[:-5])
    refused(model, tmp_path / "cut.safetensors", "header")
    (tmp_path / "empty").mkdir()
    refused(model, tmp_path / "empty", "is a folder without pytorch_lora_weights")
    refused(model, tmp_path / "missing.safetensors", "cannot be opened|No such file")
    with pytest.raises(InputError, match="lora is a PosixPath, expected paths and scales"):
        sparsegen.load_bundle(model, lora=tmp_path / "style.safetensors")
    for scale in ("1", np.nan, 1e9):
        with pytest.raises(InputError, match=r"the scale of .*style\.safetensors is"):
            sparsegen.load_bundle(model, lora={tmp_path / "style.safetensors": scale})
