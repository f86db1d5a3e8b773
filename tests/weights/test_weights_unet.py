"""Checkpoints of DDPM and progressive distillation, in every wrapping they come in, become the engine's parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsegen
from sparsegen.errors import InputError
from sparsegen.loading import save
from sparsegen.models import DDPM, DDPMConfig, PDConfig, ProgressiveDistillation
from sparsegen.weights import CheckpointError, identify, read_checkpoint
from sparsegen.weights.families.unet import PESSER_DDPM, SIGE_FUSED_DDPM, SIGE_PD

State = dict[str, np.ndarray]

SMALL = DDPMConfig(
    channels=32, levels=(32, 64, 96), attention=(False, True, False), blocks=2, time_channels=128
)
DISTILLED = PDConfig(
    channels=32, levels=(64, 64, 128), attention=(False, True, True), blocks=3, time_channels=96
)


def parameters(model: DDPM | ProgressiveDistillation, seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(parameter.shape).astype(np.float32)
        for name, parameter in model.parameters().items()
    }


def with_fused_attention(made: Mapping[str, np.ndarray]) -> State:
    state = dict(made)
    for name in [name for name in made if re.search(r"\.q\.(weight|bias)$", name)]:
        at, _, kind = name.rsplit(".", 2)
        state[f"{at}.qkv.{kind}"] = np.concatenate([state.pop(f"{at}.{part}.{kind}") for part in "qkv"])
    return state


def with_fused_time(made: Mapping[str, np.ndarray], levels: int, blocks: int) -> State:
    """The order in which blocks run, written out: down, the middle, up from the lowest level."""
    order = [f"down.{i}.block.{j}" for i in range(levels) for j in range(blocks)]
    order += ["mid.block_1", "mid.block_2"]
    order += [f"up.{i}.block.{j}" for i in reversed(range(levels)) for j in range(blocks + 1)]
    state = dict(made)
    for kind in ("weight", "bias"):
        rows = [state.pop(f"{block}.temb_proj.{kind}") for block in order]
        state[f"temb.dense.2.{kind}"] = np.concatenate(rows)
    return state


DDPM_STATE = parameters(DDPM(SMALL))
PD_STATE = parameters(ProgressiveDistillation(DISTILLED), 1)
FAMILIES = {
    "plain": (PESSER_DDPM, SMALL, DDPM_STATE, DDPM_STATE),
    "fused": (SIGE_FUSED_DDPM, SMALL, with_fused_attention(with_fused_time(DDPM_STATE, 3, 2)), DDPM_STATE),
    "distilled": (SIGE_PD, DISTILLED, with_fused_attention(PD_STATE), PD_STATE),
}


def write(path: Path, state: Mapping[str, np.ndarray]) -> Path:
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)
    return path


def holds(model: sparsegen.Model, wanted: Mapping[str, np.ndarray]) -> bool:
    found = model.parameters()
    assert found.keys() == wanted.keys()
    return all(np.array_equal(found[name].value, value) for name, value in wanted.items())


@pytest.mark.parametrize("case", FAMILIES)
def test_families(case: str, tmp_path: Path) -> None:
    family, config, state, wanted = FAMILIES[case]
    path = write(tmp_path / "net.safetensors", state)
    with read_checkpoint(path) as checkpoint:
        found, _ = identify(checkpoint)
        assert (found.name, found.model, found.prefix) == (family.name, family.model, "")
        assert found.rules == family.rules
    model = sparsegen.load(path)
    assert model.config == config
    assert holds(model, wanted)


@pytest.mark.parametrize("case", FAMILIES)
def test_tables_match_every_key_once(case: str) -> None:
    family, _, state, _ = FAMILIES[case]
    for key in state:
        assert sum(rule.match(key, state) is not None for rule in family.rules) == 1, key
    for rule in family.rules:
        assert bool(rule.targets) != bool(rule.ignored)


def test_the_published_networks_are_read_off_their_shapes(tmp_path: Path) -> None:
    """Of tensors without elements, whose first two sizes are those of the models."""
    sizes = re.compile(r"conv_(in|out)\.weight|.*(block\.\d+\.conv1|dense\.0|\.norm)\.weight")
    for config, model in ((DDPMConfig(), DDPM), (PDConfig(), ProgressiveDistillation)):
        told = {
            name: np.zeros((*parameter.shape[:2], 0), np.float16)
            for name, parameter in model(config).parameters().items()
            if sizes.fullmatch(name)
        }
        if model is ProgressiveDistillation:
            told["mid.attn_1.qkv.weight"] = np.zeros((1, 1, 1, 1), np.float16)
        with read_checkpoint(write(tmp_path / f"{model.family}.safetensors", told)) as checkpoint:
            _, found = identify(checkpoint)
        assert model.config_type(**found) == config


# Averages beside the last weights.

LAST = DDPM_STATE
AVERAGE = parameters(DDPM(SMALL), 9)


def prefixed(prefix: str, state: Mapping[str, np.ndarray]) -> State:
    return {prefix + name: value for name, value in state.items()}


WRAPPED = {
    "{model, ema}": ("model.", "ema."),
    "{state_dict, params_ema}": ("state_dict.", "params_ema."),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_the_average_is_taken_unless_the_last_weights_are_asked_for(case: str, tmp_path: Path) -> None:
    last, average = WRAPPED[case]
    path = write(tmp_path / "net.safetensors", prefixed(last, LAST) | prefixed(average, AVERAGE))
    assert holds(sparsegen.load(path), AVERAGE)
    assert holds(sparsegen.load(path, which="ema"), AVERAGE)
    assert holds(sparsegen.load(path, which="model"), LAST)


def test_a_list_of_networks_says_nothing_of_an_average(tmp_path: Path) -> None:
    """ermongroup's list has an optimizer's state, epoch and step between the two; other lists are of equals."""
    path = write(tmp_path / "net.safetensors", prefixed("0.module.", LAST) | prefixed("4.", AVERAGE))
    with pytest.raises(CheckpointError, match=r"holds several models \(0\.module, 4\), expected one"):
        sparsegen.load(path)


def test_files_of_one_kind_alone(tmp_path: Path) -> None:
    """pesser's `ema_…` files are plain state dicts."""
    for prefix, fits, lacks, message in (
        ("", "model", "ema", "holds no averaged weights"),
        ("model.", "model", "ema", "holds no averaged weights"),
        ("ema.", "ema", "model", "holds no weights beside the averaged ones"),
    ):
        path = write(tmp_path / f"{prefix}safetensors", prefixed(prefix, AVERAGE))
        assert holds(sparsegen.load(path), AVERAGE)
        assert holds(sparsegen.load(path, which=fits), AVERAGE)
        with pytest.raises(CheckpointError, match=message):
            sparsegen.load(path, which=lacks)
    with pytest.raises(InputError, match="which is 'best', expected ema or model"):
        sparsegen.load(path, which="best")


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.torch
def test_training_checkpoints_of_ermongroup(as_zip: bool, tmp_path: Path) -> None:
    """A list of the model (in DataParallel), the optimizer's state, epoch, step and, perhaps, the average."""
    torch = pytest.importorskip("torch")
    moments = {"step": torch.tensor(70001.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    groups = [{"lr": 2e-5, "betas": (0.9, 0.999), "amsgrad": False, "params": [0]}]
    optimizer = {"state": {0: moments}, "param_groups": groups}
    model = {f"module.{name}": torch.tensor(value) for name, value in LAST.items()}
    average = {name: torch.tensor(value) for name, value in AVERAGE.items()}
    states = [model, optimizer, 7, 70001]
    torch.save([*states, average], tmp_path / "ckpt.pth", _use_new_zipfile_serialization=as_zip)
    torch.save(states, tmp_path / "without.pth", _use_new_zipfile_serialization=as_zip)
    assert holds(sparsegen.load(tmp_path / "ckpt.pth"), AVERAGE)
    assert holds(sparsegen.load(tmp_path / "ckpt.pth", which="model"), LAST)
    assert holds(sparsegen.load(tmp_path / "without.pth"), LAST)


@pytest.mark.torch
def test_files_of_sige(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    _, _, fused, _ = FAMILIES["fused"]
    again = with_fused_attention(with_fused_time(AVERAGE, 3, 2))
    states = {
        "model": {name: torch.tensor(value) for name, value in fused.items()},
        "ema": {name: torch.tensor(value) for name, value in again.items()},
    }
    torch.save(states, tmp_path / "church.pth")
    assert holds(sparsegen.load(tmp_path / "church.pth"), AVERAGE)
    assert holds(sparsegen.load(tmp_path / "church.pth", which="model"), LAST)
    pd = {name: torch.tensor(value) for name, value in FAMILIES["distilled"][2].items()}
    torch.save({"model": pd}, tmp_path / "church128-pd-unet.pth")
    assert holds(sparsegen.load(tmp_path / "church128-pd-unet.pth"), PD_STATE)


def test_a_broken_average_does_not_pass_for_the_network(tmp_path: Path) -> None:
    broken = {name: value for name, value in AVERAGE.items() if not name.startswith("up.0.")}
    path = write(tmp_path / "net.safetensors", prefixed("model.", LAST) | prefixed("ema.", broken))
    model = sparsegen.load(path)
    assert holds(model, LAST)
    assert re.search(
        r"last weights \(model\).*not taken: ema \(\d+ of the \d+ tensors .* up\.0\.block", model.source
    )
    with pytest.raises(CheckpointError, match=r"averaged weights cannot be taken: ema \(.*Omit `which=`"):
        sparsegen.load(path, which="ema")
    assert holds(sparsegen.load(path, which="model"), LAST)


# What does not fit.


def test_what_a_file_cannot_tell_is_a_setting(tmp_path: Path) -> None:
    _, _, state, wanted = FAMILIES["distilled"]
    path = write(tmp_path / "net.safetensors", state)
    model = sparsegen.load(path, head_channels=32)
    assert model.config.head_channels == 32
    assert holds(model, wanted)
    odd = PDConfig(channels=32, levels=(32, 96), attention=(False, True), head_channels=32)
    state = with_fused_attention(parameters(ProgressiveDistillation(odd)))
    path = write(tmp_path / "odd.safetensors", state)
    with pytest.raises(
        CheckpointError, match="96 channels, expected a multiple of 64, the channels of a head"
    ):
        sparsegen.load(path)
    assert sparsegen.load(path, head_channels=32, blocks=3).config.levels == (32, 96)


def test_one_error_names_everything_that_does_not_fit(tmp_path: Path) -> None:
    state = dict(FAMILIES["fused"][2])
    del state["up.1.block.0.conv1.bias"]
    state["down.1.attn.0.qkv.weight"] = state["down.1.attn.0.qkv.weight"][:-1]
    state["down.2.attn.0.proj_out.bias"] = np.ones(3, np.float32)
    state["temb.dense.2.bias"] = np.ones(5, np.float32)
    path = write(tmp_path / "net.safetensors", state)
    with pytest.raises(CheckpointError) as caught:
        sparsegen.load(path)
    message = str(caught.value)
    assert "missing (1): up.1.block.0.conv1.bias [64]" in message
    assert "unexpected (1): down.2.attn.0.proj_out.bias" in message
    assert "mis-shaped (2)" in message
    assert "down.1.attn.0.qkv.weight (has [191, 64, 1, 1], its parts in the model take 192 rows)" in message
    assert re.search(r"temb\.dense\.2\.bias \(has \[5\], its parts in the model take \d+ rows\)", message)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("conv_in.weight", None, r"conv_in\.weight, which determines a size, is missing"),
        ("conv_out.weight", (0,), r"conv_out\.weight, which determines a size, is \[0\]"),
        ("down.1.block.0.conv1.weight", (0, 3), r"down\.1\.block\.0\.conv1\.weight, .* is \[0, 3\]"),
        ("conv_in.weight", (33, 3, 3, 3), "33 channels, expected a multiple of 32, the groups"),
        ("conv_in.weight", (1 << 20, 0, 3, 3), r"is \[1048576, 0, 3, 3\]"),
    ],
)
def test_files_that_are_not_whole_are_refused_by_name(
    name: str, shape: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    state = {key: value for key, value in DDPM_STATE.items() if key != name}
    if shape is not None:
        state[name] = np.zeros(shape, np.float32)
    with pytest.raises(CheckpointError, match=message):
        sparsegen.load(write(tmp_path / "net.safetensors", state))


def test_a_forged_file_cannot_ask_for_more_blocks_than_it_has(tmp_path: Path) -> None:
    few = {"temb.dense.0.weight": 1, "conv_in.weight": 1, "conv_out.weight": 1}
    state = {name: np.zeros((32, 3, 3, 3), np.float32) for name in few}
    state |= {f"down.0.block.{j}.conv1.weight": np.zeros((32, 0), np.float32) for j in range(3000)}
    state |= {f"down.{i}.block.0.conv1.weight": np.zeros((32, 0), np.float32) for i in range(3000)}
    with pytest.raises(CheckpointError, match="does not fit the model") as caught:
        sparsegen.load(write(tmp_path / "net.safetensors", state))
    assert len(str(caught.value)) < 6000


# Round trips.


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("case", FAMILIES)
def test_converted_files_hold_the_same_network(case: str, dtype: str, tmp_path: Path) -> None:
    _, config, state, wanted = FAMILIES[case]
    model = sparsegen.load(write(tmp_path / "net.safetensors", state))
    save(model, tmp_path / "own.safetensors", dtype=dtype)
    again = sparsegen.load(tmp_path / "own.safetensors")
    assert again.config == config
    assert type(again) is type(model)
    assert holds(again, {name: value.astype(dtype).astype(np.float32) for name, value in wanted.items()})


def test_the_command_line_inspects_and_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparsegen.cli import main

    path = write(tmp_path / "net.safetensors", prefixed("model.", LAST) | prefixed("ema.", AVERAGE))
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "pesser-ddpm" in said
    assert "32, 64, 96" in said
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(path), "-o", str(out), "--set", "which=model", "--dtype", "float16"]) == 0
    assert holds(
        sparsegen.load(out),
        {name: value.astype(np.float16).astype(np.float32) for name, value in LAST.items()},
    )
