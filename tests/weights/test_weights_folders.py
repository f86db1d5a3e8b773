"""Layouts of diffusers folders: all at the root, averages beside the last weights, variants, shards, wrapped names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsegen
from sparsegen.weights import CheckpointError, identify, read_checkpoint
from tests.weights.diffusers_folders import (
    CONFIG,
    MADE,
    OURS,
    State,
    as_diffusers,
    holds,
    parameters,
    pipeline,
    refused,
    write,
)

AVERAGE = parameters(seed=9)
EMA_CONFIG = {
    **CONFIG,
    "decay": 0.9999,
    "inv_gamma": 1.0,
    "min_decay": 0.0,
    "optimization_step": 7,
    "power": 0.75,
    "update_after_step": 0,
    "use_ema_warmup": True,
}
STEM = "diffusion_pytorch_model"


def write_average(folder: Path, made: Mapping[str, np.ndarray] = AVERAGE) -> Path:
    """As diffusers' `EMAModel.save_pretrained` does."""
    return write(folder, EMA_CONFIG, as_diffusers(made))


def at_the_root(folder: Path) -> Path:
    """As google/ddpm-…-256."""
    write(folder)
    parts = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(parts), "utf-8")
    scheduler = {
        "beta_schedule": "squaredcos_cap_v2",
        "num_train_timesteps": 1000,
        "variance_type": "fixed_small",
    }
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler), "utf-8")
    return folder


def in_shards(
    folder: Path, names: Mapping[int, str], index: str, state: State | None = None, **metadata: Any
) -> dict[str, Any]:
    """The weights of `folder` cut up, with their index."""
    (folder / f"{STEM}.safetensors").unlink()
    whole = as_diffusers(MADE) if state is None else state
    keys = sorted(whole)
    weight_map = {}
    for i, name in names.items():
        part = {key: whole[key] for j, key in enumerate(keys) if j % len(names) == i}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    written = {"metadata": {"total_size": 1, **metadata}, "weight_map": weight_map}
    (folder / index).write_text(json.dumps(written), "utf-8")
    return written


# Everything in one folder.


def test_everything_at_the_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparsegen.cli import main

    folder = at_the_root(tmp_path / "net")
    model = sparsegen.load(folder)
    assert holds(model)
    assert model.sampling == {"schedule": "cosine"}
    assert main(["inspect", str(folder)]) == 0
    assert "cosine" in capsys.readouterr().out
    (folder / "scheduler_config.json").write_text('{"beta_schedule": "sigmoid"}')
    refused(
        folder,
        r"net.scheduler_config\.json: its noise .* give a folder with its config\.json and weights only",
    )


def test_pickled_weights_at_the_root_beside_what_trainers_leave(tmp_path: Path) -> None:
    folder = at_the_root(tmp_path / "net")
    for name in ("optimizer.bin", "random_states_0.pkl", "scheduler.bin", "pytorch_lora_weights.safetensors"):
        (folder / name).write_bytes(b"never looked at")
    write(folder / "vae", {"_class_name": "AutoencoderKL"})
    write(folder / "discriminator", {"_class_name": "Other"})
    write(folder / "vae_ema", {"_class_name": "AutoencoderKL"})
    assert holds(sparsegen.load(folder))


def test_the_schedule_of_a_training_checkpoint_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-500"
    write(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    assert sparsegen.load(folder).sampling == {"schedule": "linear"}


# Averages beside the last weights.


@pytest.mark.parametrize("name", ["unet_ema", "ema_unet", "ema"])
@pytest.mark.parametrize("indexed", [True, False])
def test_an_averaged_network_beside_the_last_one(indexed: bool, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    if indexed:
        pipeline(folder)
    else:
        write(folder / "unet")
    write_average(folder / name)
    model = sparsegen.load(folder)
    assert holds(model, AVERAGE)
    assert model.config == OURS
    assert model.source == f"averaged weights ({name}); beside them: unet"
    assert holds(sparsegen.load(folder, which="ema"), AVERAGE)
    with (
        read_checkpoint(folder) as checkpoint,
        pytest.raises(CheckpointError, match=r'path, which="model"'),
    ):
        identify(checkpoint, which="model")
    last = sparsegen.load(folder, which="model")
    assert holds(last, MADE)
    assert last.source == f"last weights (unet); beside them: {name}"


def test_an_average_beside_a_network_at_the_root(tmp_path: Path) -> None:
    folder = at_the_root(tmp_path / "net")
    write_average(folder / "unet_ema")
    assert holds(sparsegen.load(folder), AVERAGE)
    assert holds(sparsegen.load(folder, which="model"), MADE)


def test_an_average_alone(tmp_path: Path) -> None:
    """The folder of a run that kept no other; and the average's own folder."""
    write_average(tmp_path / "net" / "unet_ema")
    for folder in (tmp_path / "net", tmp_path / "net" / "unet_ema"):
        for weights in (None, "ema"):
            assert holds(sparsegen.load(folder, which=weights), AVERAGE)
        assert sparsegen.load(folder).source.startswith("averaged weights (")
        with pytest.raises(
            CheckpointError, match=r"holds no weights beside the averaged ones\. Omit `which=`"
        ):
            sparsegen.load(folder, which="model")


def test_a_folder_without_an_average_says_so(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "net")
    assert holds(sparsegen.load(folder, which="model"))
    with pytest.raises(CheckpointError, match=r"holds no averaged weights \(ema\)\. Omit `which=`") as caught:
        sparsegen.load(folder, which="ema")
    assert str(caught.value).startswith(str(folder))


def test_an_average_without_its_weights_is_not_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pipeline(tmp_path / "net")
    (write_average(folder / "unet_ema") / f"{STEM}.safetensors").unlink()
    model = sparsegen.load(folder)
    assert holds(model)
    assert "averaged weights not taken: unet_ema (has no weights file)" in model.source
    assert [(record.levelname, record.name) for record in caplog.records] == [("WARNING", "sparsegen")]
    with pytest.raises(CheckpointError, match=r"cannot be taken: unet_ema \(has no weights file\)"):
        sparsegen.load(folder, which="ema")


def _without_config(average: Path) -> None:
    (average / "config.json").unlink()


def _config_that_leads_nowhere(average: Path) -> None:
    _without_config(average)
    (average / "config.json").symlink_to("gone")


def _no_json(average: Path) -> None:
    (average / "config.json").write_text("{")


def _emptied(average: Path) -> None:
    shutil.rmtree(average)
    average.mkdir()


def _link_to_nowhere(average: Path) -> None:
    shutil.rmtree(average)
    average.symlink_to("gone")


def _a_file(average: Path) -> None:
    shutil.rmtree(average)
    save_file(as_diffusers(AVERAGE), average.with_suffix(".safetensors"))


def _cut_short(average: Path) -> None:
    file = average / f"{STEM}.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def _other_names(average: Path) -> None:
    save_file({"x.weight": np.ones(3, np.float32)}, average / f"{STEM}.safetensors")


def _integers(average: Path) -> None:
    state = {name: value.astype(np.int8) for name, value in as_diffusers(AVERAGE).items()}
    save_file(state, average / f"{STEM}.safetensors")


def _shards_missing(average: Path) -> None:
    (average / f"{STEM}.safetensors").unlink()
    index = {"weight_map": {"conv_in.weight": f"{STEM}-00001-of-00001.safetensors"}}
    (average / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_without_config, r"unet_ema \(has no config\.json\)"),
        (_config_that_leads_nowhere, r"unet_ema \(config\.json: is a link to gone"),
        (_no_json, r"unet_ema \(config\.json: is not a JSON object"),
        (_emptied, r"unet_ema \(has no config\.json\)"),
        (_link_to_nowhere, r"unet_ema \(unet_ema: is a link to gone"),
        (_a_file, r"unet_ema\.safetensors \(is a file, expected a folder"),
        (_cut_short, r"unet_ema \(has \d+ bytes, the file only"),
        (_other_names, r"unet_ema \(holds no tensors with the names of a UNet\)"),
        (_integers, r"unet_ema \(\w+(\.\w+)* has the element type int8, expected floating point\)"),
        (_shards_missing, r"unet_ema \(unet_ema: lacks 1 of the 1 shards"),
    ],
)
def test_an_average_that_cannot_be_opened_is_named_and_the_last_weights_are_taken(
    damage: Callable[[Path], None], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pipeline(tmp_path / "net")
    damage(write_average(folder / "unet_ema"))
    model = sparsegen.load(folder)
    assert holds(model, MADE)
    assert re.search(rf"^last weights \(unet\); averaged weights not taken: {reason}", model.source)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    refused_ema = pytest.raises(CheckpointError, match=rf"averaged weights cannot be taken: {reason}")
    with refused_ema:
        sparsegen.load(folder, which="ema")
    assert holds(sparsegen.load(folder, which="model"), MADE)


@pytest.mark.torch
def test_an_average_of_a_list_of_parameters_in_a_folder(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = pipeline(tmp_path / "net")
    average = write_average(folder / "unet_ema")
    (average / f"{STEM}.safetensors").unlink()
    listed = [torch.tensor(value) for value in as_diffusers(AVERAGE).values()]
    torch.save({"decay": 0.9, "shadow_params": listed}, average / f"{STEM}.bin")
    model = sparsegen.load(folder)
    assert holds(model, MADE)
    assert "not taken: unet_ema (holds no tensors with the names of a UNet)" in model.source


def test_a_backup_beside_the_weights_is_no_sign_of_an_average(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "net") / "unet"
    save_file(as_diffusers(AVERAGE), folder / f"{STEM}.backup.safetensors")
    for weights in (None, "model"):
        model = sparsegen.load(folder, which=weights)
        assert holds(model, MADE)
        assert "average" not in model.source


def test_averages_inside_the_file_of_a_folder(tmp_path: Path) -> None:
    state = {f"model.{name}": value for name, value in as_diffusers(MADE).items()}
    state |= {f"ema.{name}": value for name, value in as_diffusers(AVERAGE).items()}
    folder = write(tmp_path / "net", state=state)
    assert holds(sparsegen.load(folder), AVERAGE)
    assert holds(sparsegen.load(folder, which="model"), MADE)


@pytest.mark.parametrize(
    ("variants", "average", "last"),
    [
        (("ema", ""), "ema", ""),
        (("", "non_ema"), "", "non_ema"),
        (("ema", "non_ema"), "ema", "non_ema"),
    ],
)
def test_averages_as_variants_of_one_folder(
    variants: tuple[str, str], average: str, last: str, tmp_path: Path
) -> None:
    """stable-diffusion-v1-5 has its last weights as the variant non_ema, and the average under the plain name."""
    folder = write(tmp_path / "net")
    (folder / f"{STEM}.safetensors").unlink()
    for variant in variants:
        made = AVERAGE if variant == average else MADE
        save_file(as_diffusers(made), folder / ".".join(filter(None, (STEM, variant, "safetensors"))))
    assert holds(sparsegen.load(folder), AVERAGE)
    assert holds(sparsegen.load(folder, which="ema"), AVERAGE)
    assert holds(sparsegen.load(folder, which="model"), MADE)


def test_the_command_line_says_which_weights_a_folder_gave(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparsegen.cli import main

    folder = pipeline(tmp_path / "net")
    write_average(folder / "unet_ema")
    assert main(["inspect", str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "weights taken averaged (unet_ema) beside them unet noise schedule linear" in said
    assert main(["inspect", str(folder), "--set", "which=model"]) == 0
    assert "weights taken last (unet) beside them unet_ema" in " ".join(capsys.readouterr().out.split())
    for which, made in (("ema", AVERAGE), ("model", MADE)):
        out = tmp_path / f"{which}.safetensors"
        assert main(["convert", str(folder), "-o", str(out), "--set", f"which={which}"]) == 0
        kind = "averaged" if which == "ema" else "last"
        assert f"written: {kind} weights (unet" in capsys.readouterr().out
        assert holds(sparsegen.load(out), made)
    assert main(["inspect", str(folder), "--set", "which=best"]) == 2
    assert main(["inspect", str(folder), "--set", "ngf=3"]) == 2
    assert "expected --set which=ema or --set which=model" in capsys.readouterr().err


# Variants and shards.


@pytest.mark.parametrize("variant", ["fp16", "bf16", "my-own_word"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_one_variant_of_any_word(variant: str, suffix: str, tmp_path: Path) -> None:
    """The content tells the format: a .bin may be anything that is read."""
    folder = write(tmp_path / "net")
    (folder / f"{STEM}.safetensors").rename(folder / f"{STEM}.{variant}.{suffix}")
    assert holds(sparsegen.load(folder))


def test_several_variants_are_not_guessed_between(tmp_path: Path) -> None:
    folder = write(tmp_path / "net")
    shutil.copy(folder / f"{STEM}.safetensors", folder / f"{STEM}.fp16.safetensors")
    assert holds(sparsegen.load(folder))  # the plain one
    (folder / f"{STEM}.safetensors").rename(folder / f"{STEM}.bf16.bin")
    refused(
        folder,
        r"several variants \(bf16, fp16\), none of them .*Give a folder with config\.json and one variant",
    )


SHARDS = {
    "plain": ("diffusion_pytorch_model-0000{}-of-00002.safetensors", f"{STEM}.safetensors.index.json"),
    "pickles": ("diffusion_pytorch_model-0000{}-of-00002.bin", f"{STEM}.bin.index.json"),
    "new fp16": (
        "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
        f"{STEM}.safetensors.index.fp16.json",
    ),
    "old fp16": (
        "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors",
        f"{STEM}.fp16.safetensors.index.json",
    ),
    "fp16 before index": (
        "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
        f"{STEM}.safetensors.fp16.index.json",
    ),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparsegen.cli import main

    name, index = SHARDS[case]
    folder = pipeline(tmp_path / "net")
    in_shards(folder / "unet", {0: name.format(1), 1: name.format(2)}, index)
    assert holds(sparsegen.load(folder))
    with read_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "diffusers folder, safetensors in 2 shards"
        array = checkpoint.tensors["conv_in.weight"].numpy().copy()
        checkpoint.release()
        assert np.array_equal(checkpoint.tensors["conv_in.weight"].numpy(), array)
        tensors = list(checkpoint.tensors.values())
    for tensor in tensors:
        with pytest.raises(CheckpointError, match="is closed"):
            tensor.numpy()
    assert main(["inspect", str(folder)]) == 0
    assert f"{len(tensors)}, " in capsys.readouterr().out


@pytest.mark.torch
@pytest.mark.parametrize("as_zip", [True, False])
def test_shards_that_pytorch_saved(as_zip: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    name, index = SHARDS["pickles"]
    folder = write(tmp_path / "net")
    written = in_shards(folder, {0: name.format(1), 1: name.format(2)}, index)
    for shard in set(written["weight_map"].values()):
        keys = [key for key, at in written["weight_map"].items() if at == shard]
        state = {key: torch.tensor(as_diffusers(MADE)[key]) for key in keys}
        torch.save(state, folder / shard, _use_new_zipfile_serialization=as_zip)
    assert holds(sparsegen.load(folder))


def test_a_whole_file_comes_before_shards(tmp_path: Path) -> None:
    name, index = SHARDS["plain"]
    folder = write(tmp_path / "net")
    in_shards(folder, {0: name.format(1), 1: name.format(2)}, index)
    save_file(as_diffusers(AVERAGE), folder / f"{STEM}.safetensors")
    assert holds(sparsegen.load(folder), AVERAGE)


def test_shards_whose_index_does_not_fit(tmp_path: Path) -> None:
    name, index = SHARDS["plain"]
    folder = write(tmp_path / "net")
    names = {0: name.format(1), 1: name.format(2)}
    written = in_shards(folder, names, index)
    lie = {**written, "weight_map": dict(written["weight_map"])}
    del lie["weight_map"]["conv_in.bias"]
    lie["weight_map"]["conv_out.extra"] = names[0]
    (folder / index).write_text(json.dumps(lie))
    refused(
        folder,
        r"missing \(1\): conv_out\.extra of .*00001-of-.*; not in the index \(1\): conv_in\.bias of .*download all",
    )
    (folder / index).write_text(json.dumps(written))
    save_file({"conv_in.bias": np.ones(32, np.float32)}, folder / "twice.safetensors")
    both = written["weight_map"] | {"x": "twice.safetensors"}
    (folder / index).write_text(json.dumps({"weight_map": both}))
    refused(folder, r"missing \(1\): x of twice\.safetensors; not in the index \(1\): conv_in\.bias of twice")
    (folder / index).write_text(json.dumps(written))
    (folder / names[1]).unlink()
    refused(folder, rf"lacks 1 of the 2 shards that its index names: {names[1]}")
    (folder / names[1]).symlink_to("gone")
    refused(folder, rf"{names[1]}: is a link to gone")
    (folder / names[1]).unlink()
    (folder / index).unlink()
    refused(folder, r"has shards of weights without their index \(.*Download the whole folder")


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        [],
        {},
        {"x": 1},
        {"x": ["a.safetensors"]},
        {"x": "../secret.safetensors"},
        {"x": "/etc/secret.safetensors"},
        {"x": "a\\b.safetensors"},
        {"x": "config.json"},
        {"x": ".hidden.safetensors"},
        {"x": "nul\0.safetensors"},
        {"x": "..safetensors"},
    ],
)
def test_an_index_names_files_of_its_folder_alone(weight_map: object, tmp_path: Path) -> None:
    folder = write(tmp_path / "net")
    (folder / f"{STEM}.safetensors").unlink()
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, r"index\.json: its weight_map is not a table .* in the same folder")


def test_an_index_of_thousands_of_shards_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "net")
    (folder / f"{STEM}.safetensors").unlink()
    many = {str(i): f"shard{i}.safetensors" for i in range(3000)}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": many}))
    refused(folder, "names 3000 shards, at most 200 are read")
    (folder / f"{STEM}.safetensors.index.json").write_text('{"x": "' + "y" * (4 << 20) + '"}')
    refused(folder, "at most 4194304 are read")


# Names that compiling and training in parallel change.


@pytest.mark.parametrize(
    ("pattern", "wrapped"),
    [
        ("", "_orig_mod."),
        ("", "module."),
        ("", "module._orig_mod."),
        ("down_blocks.0.", "down_blocks.0._orig_mod."),
        ("mid_block.attentions.0.", "mid_block.attentions.0._orig_mod."),
        ("up_blocks.1.resnets.", "up_blocks.1.module.resnets._orig_mod."),
    ],
)
@pytest.mark.parametrize("file", ["folder", "shards"])
def test_wrappers_in_names(file: str, pattern: str, wrapped: str, tmp_path: Path) -> None:
    state = {
        wrapped + name[len(pattern) :] if name.startswith(pattern) else name: value
        for name, value in as_diffusers(MADE).items()
    }
    folder = write(tmp_path / "net", state=state)
    if file == "shards":
        name, index = SHARDS["plain"]
        in_shards(folder, {0: name.format(1), 1: name.format(2)}, index, state)
    assert holds(sparsegen.load(folder))


def test_two_keys_of_one_name_are_refused(tmp_path: Path) -> None:
    state = as_diffusers(MADE)
    state["mid_block._orig_mod.resnets.0.conv1.bias"] = state["mid_block.resnets.0.conv1.bias"] + 1
    with pytest.raises(CheckpointError, match=r"two keys of one tensor\. Save the state dict") as caught:
        sparsegen.load(write(tmp_path / "net", state=state))
    assert "mid_block._orig_mod.resnets.0.conv1.bias" in str(caught.value)


# What diffusers itself writes.


@pytest.mark.torch
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False])
def test_shards_that_diffusers_saved(safe: bool, variant: str | None, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel.from_config(CONFIG)
    network.save_pretrained(tmp_path, max_shard_size="300KB", safe_serialization=safe, variant=variant)
    assert len([path for path in tmp_path.iterdir() if "-of-" in path.name]) > 1
    found = sparsegen.load(tmp_path).parameters()
    assert np.array_equal(found["conv_in.weight"].value, network.conv_in.weight.detach().numpy())
    assert np.array_equal(found["conv_out.weight"].value, network.conv_out.weight.detach().numpy())


@pytest.mark.torch
def test_an_average_that_diffusers_saved(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    training = pytest.importorskip("diffusers.training_utils")
    network = diffusers.UNet2DModel.from_config(CONFIG)
    average = training.EMAModel(
        network.parameters(), model_cls=diffusers.UNet2DModel, model_config=network.config
    )
    weight = network.conv_in.weight.detach().numpy().copy()
    average.shadow_params = [value * 0.5 for value in average.shadow_params]
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    average.save_pretrained(tmp_path / "unet_ema")
    for weights, factor in ((None, 0.5), ("ema", 0.5), ("model", 1)):
        model = sparsegen.load(tmp_path, which=weights)
        assert np.array_equal(model.parameters()["conv_in.weight"].value, factor * weight)
        assert model.sampling == {"schedule": "linear"}
