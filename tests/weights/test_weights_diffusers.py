"""Folders of diffusers' `UNet2DModel` become the engine's parameters; options that it does not compute are refused."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsegen
from sparsegen import loading
from sparsegen.errors import InputError
from sparsegen.models import DDPM, DDPMConfig
from sparsegen.weights import CheckpointError, identify, read_checkpoint
from sparsegen.weights.formats.scheduler_config import SCHEDULERS
from tests.weights import hostile
from tests.weights.diffusers_folders import CONFIG, MADE, OURS, as_diffusers, holds, pipeline, refused, write

# Where the model lies.


@pytest.mark.parametrize("old", [False, True])
def test_the_networks_own_folder(old: bool, tmp_path: Path) -> None:
    folder = write(tmp_path, state=as_diffusers(MADE, old=old))
    model = sparsegen.load(folder)
    assert isinstance(model, DDPM)
    assert model.config == OURS
    assert holds(model)
    assert sparsegen.load(str(folder), groups=16).config.groups == 16
    with pytest.raises(InputError, match="no setting ngf"):
        sparsegen.load(folder, ngf=3)
    with read_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "diffusers folder, safetensors"
        assert identify(checkpoint)[0].name == "diffusers-unet2d"


def test_a_pipelines_folder(tmp_path: Path) -> None:
    assert holds(sparsegen.load(pipeline(tmp_path / "whole")))
    write(tmp_path / "without an index" / "unet")
    assert holds(sparsegen.load(tmp_path / "without an index"))


@pytest.mark.torch
@pytest.mark.parametrize("as_zip", [True, False])
def test_weights_that_pytorch_saved(as_zip: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = write(tmp_path)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    state = {name: torch.tensor(value) for name, value in as_diffusers(MADE, old=True).items()}
    torch.save(state, folder / "diffusion_pytorch_model.bin", _use_new_zipfile_serialization=as_zip)
    assert holds(sparsegen.load(folder))


def test_safetensors_come_before_pickles_and_whole_precision_before_half(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"never looked at")
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"never looked at")
    assert holds(sparsegen.load(folder))
    half = {name: value.astype(np.float16) for name, value in as_diffusers(MADE).items()}
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "diffusion_pytorch_model.bin").unlink()
    rounded = {name: value.astype(np.float16).astype(np.float32) for name, value in MADE.items()}
    assert holds(sparsegen.load(folder), rounded)


def test_a_convolution_under_two_names(tmp_path: Path) -> None:
    state = as_diffusers(MADE)
    at = "down_blocks.0.downsamplers.0"
    for kind in ("weight", "bias"):
        state[f"{at}.Conv2d_0.{kind}"] = state[f"{at}.conv.{kind}"].copy()
        state[f"up_blocks.0.upsamplers.0.Conv2d_0.{kind}"] = state.pop(
            f"up_blocks.0.upsamplers.0.conv.{kind}"
        )
    assert holds(sparsegen.load(write(tmp_path, state=state)))


def test_what_the_command_line_says_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparsegen.cli import main

    folder = pipeline(tmp_path / "net")
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "diffusers folder, safetensors" in said
    assert "diffusers-unet2d" in said
    assert "32, 64, 96" in said
    assert main(["convert", str(folder), "-o", str(tmp_path / "own.safetensors")]) == 0
    again = sparsegen.load(tmp_path / "own.safetensors")
    assert again.config == OURS
    assert holds(again)


# Configurations.


def read(tmp_path: Path, **options: Any) -> DDPMConfig:
    """The configuration that these options make, of a file with only the tensor that can decide one."""
    folder = write(tmp_path, {**CONFIG, **options}, {"conv_in.bias": np.ones(1, np.float32)})
    with read_checkpoint(folder) as checkpoint:
        return DDPMConfig(**identify(checkpoint)[1])


def test_options_that_the_file_does_not_mention_are_those_of_the_class(tmp_path: Path) -> None:
    folder = write(tmp_path, {}, {"conv_in.bias": np.ones(1, np.float32)})
    with read_checkpoint(folder) as checkpoint:
        config = DDPMConfig(**identify(checkpoint)[1])
    assert config == DDPMConfig(
        channels=224,
        levels=(224, 448, 672, 896),
        attention=(False, True, True, True),
        blocks=2,
        time_channels=896,
        head_channels=8,
        eps=1e-5,
        symmetric_downsampling=True,
        frequency_shift=0,
        cosine_first=True,
    )


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"attention_head_dim": 16}, {"head_channels": 16}),
        ({"time_embedding_dim": 40}, {"time_channels": 40}),
        ({"in_channels": 1, "out_channels": 2}, {"in_channels": 1, "out_channels": 2}),
        ({"norm_num_groups": 16, "attn_norm_num_groups": 16}, {"groups": 16}),
        ({"add_attention": False}, {"middle_attention": False}),
        ({"resnet_time_scale_shift": "scale_shift"}, {"film": True, "middle_norm": False}),
        ({"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32}, {"film": True}),
        ({"act_fn": "swish", "mid_block_scale_factor": 1.0, "num_train_timesteps": 1000}, {}),
        ({"decay": 0.99, "power": 0.75, "optimization_step": 7, "_name_or_path": "x"}, {}),
        ({"an_option_of_the_future": None, "another": False}, {}),
        ({"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D", "DownBlock2D"]}, {}),
        (
            {
                "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"],
                "downsample_type": "resnet",
                "upsample_type": "resnet",
            },
            {"resample_blocks": True},
        ),
    ],
)
def test_options(options: dict[str, Any], ours: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, **options) == replace(OURS, **ours)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_class_name": "UNet3DConditionModel"}, r"is a UNet3DConditionModel, supported: UNet2DModel, "),
        ({"_class_name": ["UNet2DModel"]}, r"is a UNet2DModel, supported: UNet2DModel"),
        ({"center_input_sample": True}, "center_input_sample is true, supported: false"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is fourier, supported: positional"),
        ({"freq_shift": 2}, "freq_shift is 2, supported: 0 or 1"),
        ({"mid_block_type": None}, "mid_block_type is null, supported: UNetMidBlock2D"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor is 2, supported: 1"),
        ({"downsample_padding": 2}, "downsample_padding is 2, supported: 0 or 1"),
        ({"downsample_type": "fir"}, "downsample_type is fir, supported: conv or resnet or null"),
        ({"act_fn": "mish"}, "act_fn is mish, supported: silu or swish"),
        (
            {"resnet_time_scale_shift": "spatial"},
            "resnet_time_scale_shift is spatial, supported: default or sc",
        ),
        ({"class_embed_type": "timestep"}, "class_embed_type is timestep, supported: null"),
        ({"num_class_embeds": 10}, "num_class_embeds is 10, supported: null"),
        (
            {"attn_norm_num_groups": 8},
            "attn_norm_num_groups is 8, supported: null or 32, the value of norm_num_groups",
        ),
        ({"attention_head_dim": [8, 8]}, "attention_head_dim is 8, 8, supported: a number from 1"),
        ({"attention_head_dim": 0}, "attention_head_dim is 0, supported: a number from 1"),
        ({"layers_per_block": [2, 2, 2]}, "layers_per_block is 2, 2, 2, supported: a number from 1"),
        ({"layers_per_block": True}, "layers_per_block is true, supported: a number from 1"),
        ({"norm_num_groups": None}, "norm_num_groups is null, supported: a number from 1"),
        ({"norm_eps": "tiny"}, "norm_eps is tiny, supported: a number between 0 and 1"),
        ({"block_out_channels": []}, "block_out_channels is , supported: a list of numbers"),
        (
            {"block_out_channels": [32, 64, "96"]},
            "block_out_channels is 32, 64, 96, supported: a list of numbers",
        ),
        ({"block_out_channels": [32, [64], 96]}, "block_out_channels is list, supported: a list of numbers"),
        (
            {"block_out_channels": [32, 64]},
            "down_block_types is .*, supported: 2 entries, as many as block_out_channels",
        ),
        ({"down_block_types": "DownBlock2D"}, "down_block_types is DownBlock2D, supported: a list of names"),
        (
            {"down_block_types": ["SkipDownBlock2D"] * 3},
            "down_block_types is SkipDownBlock2D, supported: DownBlock2D or AttnDownBlock2D or ResnetDownsample",
        ),
        (
            {"up_block_types": ["AttnUpBlock2D"] * 3},
            "up_block_types is .*, supported: attention on the same levels as",
        ),
        (
            {"downsample_type": "resnet"},
            "down_block_types and up_block_types is conv and resnet, supported: one way",
        ),
        (
            {"encoder_hid_dim": 7, "b": "x"},
            r"unknown options of UNet2DModel: encoder_hid_dim \(7\), b \(x\)",
        ),
        ({"\x1b[2J": {"a": 1}}, r"has unknown options .*: \\x1b\[2J \(dict\)"),
    ],
)
def test_options_that_are_not_computed_are_refused_by_name(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused(write(tmp_path, {**CONFIG, **options}), f"config.json: .*{message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_out_channels": [32, 64, 100]}, "100 channels, expected a multiple of 32, the groups"),
        ({"block_out_channels": [32, 64, 10**9]}, "expected 1 to 16 of 1 to 65536"),
        ({"layers_per_block": 10**6}, "blocks is 1000000, expected a whole number from 1 to 64"),
        ({"attention_head_dim": 24}, "channels, expected a multiple of 24, the channels of a head"),
        ({"norm_eps": 2.0}, "eps is 2.0, expected a number between 0 and 1"),
        ({"norm_eps": float("nan")}, "eps is nan, expected a number between 0 and 1"),
    ],
)
def test_sizes_that_no_network_has_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(write(tmp_path, {**CONFIG, **options}), f"its configuration is wrong: .*{message}")


def test_tensors_that_do_not_fit_the_configuration_are_listed(tmp_path: Path) -> None:
    state = as_diffusers(MADE)
    state["class_embedding.weight"] = np.ones((2, 2), np.float32)
    state["mid_block.attentions.0.to_q.weight"] = np.ones((96, 96, 3), np.float32)
    del state["up_blocks.0.resnets.0.conv1.bias"]
    with pytest.raises(CheckpointError) as caught:
        sparsegen.load(write(tmp_path, state=state))
    message = str(caught.value)
    assert "unexpected (1): class_embedding.weight" in message
    assert "missing (1): up.2.block.0.conv1.bias [96]" in message
    assert "mid.attn_1.q.weight ([96, 96, 3] is no matrix over channels)" in message


def test_both_names_of_one_matrix(tmp_path: Path) -> None:
    state = as_diffusers(MADE) | as_diffusers(MADE, old=True)
    with pytest.raises(CheckpointError, match=r"given twice \(\d+\): .*down\.1\.attn\.0\.q\.weight"):
        sparsegen.load(write(tmp_path, state=state))


# Folders that are none, or lie.


def test_folders_without_a_network(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is a folder without model_index.json, unet/config.json or config.json")
    folder = write(tmp_path / "without weights")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "diffusion_flax_model.msgpack")
    refused(folder, r"has none of the files diffusion_pytorch_model\.safetensors, ")
    pipeline(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "unet")
    refused(tmp_path / "whole", r"unet.config\.json: cannot be opened: No such file")


def test_a_weights_file_alone_does_not_say_how_it_is_used(tmp_path: Path) -> None:
    path = write(tmp_path) / "diffusion_pytorch_model.safetensors"
    with pytest.raises(
        CheckpointError, match=rf"weights file of a diffusers UNet.*Give the folder {tmp_path}, which"
    ):
        sparsegen.load(path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"weights file of a diffusers UNet.*Give the folder that holds it"
    ):
        sparsegen.load(path)
    state = {name: value for name, value in as_diffusers(MADE).items() if name.startswith("up_blocks.1")}
    save_file(state, tmp_path / "shard.safetensors")
    with pytest.raises(CheckpointError, match=r"weights file of a diffusers UNet"):
        sparsegen.load(tmp_path / "shard.safetensors")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"unet": ["diffusers", "UNet2DConditionModel"]},
            "is a DDPMPipeline, supported: StableDiffusionPipeline",
        ),
        ({"unet": [None, None]}, "its unet is missing"),
        ({"unet": ["diffusers", ["x"]]}, "its unet is x, supported"),
        ({"vqvae": ["diffusers", "VQModel"]}, "its pipeline has vqvae beside unet .*give the unet folder"),
    ],
)
def test_pipelines_of_more_than_one_network(index: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "net", index)
    refused(folder, f"model_index.json: {message}")
    assert holds(sparsegen.load(folder / "unet"))


def test_networks_that_predict_something_else_than_the_noise(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "net")
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    refused(folder, r"scheduler_config\.json: prediction_type is v_prediction, supported: epsilon")


@pytest.mark.parametrize(
    ("said", "schedule"),
    [
        ({}, "linear"),
        (
            {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "trained_betas": None},
            "linear",
        ),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, "scaled_linear"),
        ({"beta_schedule": "squaredcos_cap_v2", "beta_end": 0.5}, "cosine"),
    ],
)
def test_the_noise_that_a_pipeline_was_trained_on_is_kept(
    said: dict[str, Any], schedule: str, tmp_path: Path
) -> None:
    folder = pipeline(tmp_path / "net")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(said))
    model = sparsegen.load(folder)
    assert sparsegen.SDEdit(model, backend="reference").settings.schedule == schedule
    assert sparsegen.SDEdit(model, backend="reference", schedule="linear").settings.schedule == "linear"
    loading.save(model, tmp_path / "net.safetensors")
    again = sparsegen.load(tmp_path / "net.safetensors")
    assert again.sampling == model.sampling == {"schedule": schedule}
    assert sparsegen.load(folder / "unet").sampling == {}


@pytest.mark.parametrize(
    "said",
    [
        {"beta_schedule": "sigmoid"},
        {"beta_schedule": ["linear"]},
        {"beta_schedule": "scaled_linear"},
        {"beta_end": 0.03},
        {"beta_start": None},
        {"num_train_timesteps": 4000},
        {"trained_betas": [0.1, 0.2]},
    ],
)
def test_noise_that_no_schedule_here_gives(said: dict[str, Any], tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "net")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(said))
    refused(folder, r"scheduler_config\.json: its noise schedule is not supported: .*give the unet folder")
    assert holds(sparsegen.load(folder / "unet"))


@pytest.mark.parametrize(
    ("said", "schedule"),
    [
        ({"_class_name": "DDIMScheduler"}, "linear"),
        ({"_class_name": "LCMScheduler"}, "scaled_linear"),
        ({"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": False}, "linear"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": False}, "linear"),
        ({"_class_name": "HeunDiscreteScheduler", "beta_start": 0.0001, "beta_end": 0.02}, "linear"),
    ],
)
def test_schedulers_of_betas(said: dict[str, Any], schedule: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "net")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(said))
    assert sparsegen.load(folder).sampling == {"schedule": schedule}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        *(
            (
                {"_class_name": name, "num_train_timesteps": 1000},
                rf"is the configuration of a {name}, expected",
            )
            for name in (
                *("FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "KarrasVeScheduler"),
                *("ScoreSdeVeScheduler", "CMStochasticIterativeScheduler", "UnheardOfScheduler"),
            )
        ),
        ({"_class_name": ["DDPMScheduler"]}, r"is the configuration of a DDPMScheduler, expected"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, r"rescale_betas_zero_snr is True"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, r"use_flow_sigmas is True"),
        ({"_class_name": "HeunDiscreteScheduler"}, r"beta_schedule linear from 0\.00085 to 0\.012"),
    ],
)
def test_schedulers_of_another_noise(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "net")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(said))
    refused(folder, rf"scheduler_config\.json: .*{message}.*To load the model alone, give the unet folder")
    assert holds(sparsegen.load(folder / "unet"))


@pytest.mark.torch
def test_defaults_of_schedulers_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    for name, defaults in SCHEDULERS.items():
        try:
            options = inspect.signature(getattr(diffusers, name)).parameters
        except (ImportError, ValueError):
            continue  # it needs a package of its own
        if "beta_schedule" in options:
            assert (
                tuple(options[key].default for key in ("beta_schedule", "beta_start", "beta_end")) == defaults
            )


def test_a_file_with_a_schedule_that_is_none(tmp_path: Path) -> None:
    model = sparsegen.load(pipeline(tmp_path / "net"))
    model.sampling = {"schedule": "os.system"}
    loading.save(model, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"unknown noise schedule os\.system; known: linear, "):
        sparsegen.load(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    "text", ["", "[1]", '"x"', "nothing", "{", "[" * 60_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_damaged_json(text: str, tmp_path: Path) -> None:
    refused(write(tmp_path, text), r"config\.json: is (not a JSON object|empty)")


def test_json_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "config.json").write_bytes(b'{"a": "\xff"}')
    refused(folder, "is not a JSON object")


def test_a_configuration_of_megabytes_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path, json.dumps({**CONFIG, "x": "y" * 100_000}))
    refused(folder, r"config\.json: has \d+ bytes, at most 65536 are read")


def test_links_are_followed_wherever_they_lead(tmp_path: Path) -> None:
    """As `local_dir` of the hub's downloader lays folders out."""
    elsewhere = write(tmp_path / "elsewhere")
    folder = write(tmp_path / "net")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / name).unlink()
        (folder / name).symlink_to(elsewhere / name)
        assert holds(sparsegen.load(folder))
    folder = pipeline(tmp_path / "whole")
    shutil.rmtree(folder / "unet")
    (folder / "unet").symlink_to(elsewhere)
    assert holds(sparsegen.load(folder))
    (tmp_path / "name of it").symlink_to(folder)
    assert holds(sparsegen.load(tmp_path / "name of it"))


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        folder = write(tmp_path / f"net {name}")
        (folder / name).unlink()
        (folder / name).symlink_to("../blobs/1f")
        refused(folder, rf"{name}: is a link to \.\./blobs/1f, which does not exist")
    folder = pipeline(tmp_path / "whole")
    shutil.rmtree(folder / "unet")
    (folder / "unet").symlink_to("gone")
    refused(folder, "unet: is a link to gone, which does not exist")
    (folder / "unet").unlink()
    (folder / "unet").symlink_to("unet")
    refused(folder, "unet: is a link to unet, which does not exist")


def test_the_hubs_cache_is_all_links(tmp_path: Path) -> None:
    """models--…/snapshots/<revision>/unet/config.json → ../../../blobs/<digest>."""
    cache = tmp_path / "models--google--ddpm"
    real = write(tmp_path / "real")
    unet = cache / "snapshots" / "1f" / "unet"
    unet.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for i, name in enumerate(("config.json", "diffusion_pytorch_model.safetensors")):
        (real / name).rename(cache / "blobs" / str(i))
        (unet / name).symlink_to(Path("../../../blobs") / str(i))
    for folder in (unet, unet.parent):
        assert holds(sparsegen.load(folder))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    refused(folder, "config.json: is not a regular file")
    weights = write(tmp_path / "other") / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    refused(weights.parent, "diffusion_pytorch_model.safetensors: is not a regular file")
    weights.unlink()
    weights.symlink_to(folder / "config.json")
    refused(weights.parent, "diffusion_pytorch_model.safetensors: is not a regular file")
    weights.unlink()
    weights.mkdir()
    refused(weights.parent, "diffusion_pytorch_model.safetensors: is a folder")


def test_pickles_in_a_folder_are_read_as_anywhere(tmp_path: Path) -> None:
    """By the interpreter that runs nothing."""
    folder = write(tmp_path)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    body = hostile.named("os", "system") + hostile.group(hostile.text("true")) + b"R"
    (folder / "diffusion_pytorch_model.bin").write_bytes(
        hostile.archive([("data.pkl", hostile.pickled(body)), ("version", b"3\n")])
    )
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin.*os\.system"):
        sparsegen.load(folder)
