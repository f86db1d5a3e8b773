"""Whole checkpoints of Stable Diffusion become one file of ours, which gives the same models and the same images."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sparsegen
from sparsegen import Bundle, LatentDiffusion, generate, loading
from sparsegen.cli import main
from sparsegen.weights import CheckpointError, read_checkpoint, write_safetensors
from tests.weights.sd_files import AVERAGE, MADE, all_hold, half, holds, lora, pipeline, whole_file

MODELS, BESIDE = "sparsegen.models", "sparsegen.beside"


def single(folder: Path, **how: Any) -> Path:
    save_file(whole_file(**how), folder / "sd.safetensors")
    return folder / "sd.safetensors"


def with_tokenizer(folder: Path, **how: Any) -> Path:
    """A pipeline with the tokenizer of the built-in model, padded as 2.x."""
    top = pipeline(folder, **how)
    (top / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        source = sparsegen.weights.builtin.FOLDER / "landscape-sd" / "tokenizer" / name
        (top / "tokenizer" / name).write_bytes(source.read_bytes())
    (top / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "!"}')
    return top


SOURCES = {
    "a file of 1.x": single,
    "a file of 2.x": lambda folder: single(folder, version=2),
    "a file with averages": lambda folder: single(folder, ema=True),
    "a folder": pipeline,
    "a folder that predicts v": lambda folder: pipeline(
        folder, scheduler={"prediction_type": "v_prediction"}
    ),
    "a folder with a tokenizer": with_tokenizer,
}


def beside(bundle: Bundle) -> dict[str, Any]:
    """Everything in a bundle but its parameters, its name and the words for its weights."""
    assert bundle.tokenizer is not None
    return {
        "configs": {role: model.config for role, model in bundle.models.items()},
        "sizes": {role: model.size for role, model in bundle.models.items()},
        "sampling": {role: dict(model.sampling) for role, model in bundle.models.items()},
        "schedule": bundle.schedule,
        "prediction": bundle.prediction,
        "scheduler": dict(bundle.scheduler),
        "ids": bundle.tokenizer.encode("a house, by a lake!").ids.tolist(),
        "vocabulary": bundle.tokenizer.vocabulary,
    }


def same(first: Bundle, second: Bundle) -> bool:
    values = {
        role: {path: each.value for path, each in model.parameters().items()}
        for role, model in first.models.items()
    }
    assert beside(first) == beside(second)
    return all(holds(model, values[role]) for role, model in second.models.items())


# -- the same again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOURCES)
def test_a_converted_checkpoint_is_the_same(kind: str, tmp_path: Path) -> None:
    before = sparsegen.load_bundle(SOURCES[kind](tmp_path))
    loading.save(before, tmp_path / "ours.safetensors")
    after = sparsegen.load_bundle(tmp_path / "ours.safetensors")
    assert same(before, after)
    assert set(after.taken.values()) == {"the only weights"}
    # and once more
    loading.save(after, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "ours.safetensors").read_bytes()


def test_a_converted_checkpoint_gives_the_same_bits_of_an_image(tmp_path: Path) -> None:
    before = sparsegen.load_bundle(single(tmp_path))
    loading.save(before, tmp_path / "ours.safetensors")
    images = [
        generate(
            LatentDiffusion(bundle, backend="reference"), "a lake", steps=1, size=(32, 32), guidance=1
        ).image
        for bundle in (before, sparsegen.load_bundle(tmp_path / "ours.safetensors"))
    ]
    assert np.array_equal(*images)


def test_the_built_in_model_keeps_its_own_settings(tmp_path: Path) -> None:
    before = sparsegen.load_bundle("landscape-sd")
    loading.save(before, tmp_path / "ours.safetensors")
    after = sparsegen.load_bundle(tmp_path / "ours.safetensors")
    assert same(before, after)
    assert after.models["unet"].sampling["guidance"] == 4.0
    assert LatentDiffusion(after, backend="reference").usual_size == (128, 128)


def test_the_weights_are_chosen_before(tmp_path: Path) -> None:
    path = single(tmp_path, ema=True)
    for which, values in (("ema", AVERAGE), ("model", MADE["unet"])):
        out = tmp_path / f"{which}.safetensors"
        assert main(["convert", str(path), "-o", str(out), "--set", f"which={which}"]) == 0
        assert all_hold(sparsegen.load_bundle(out), unet=values)
        assert not [name for name in load_file(out) if "ema" in name]
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        sparsegen.load_bundle(tmp_path / "ema.safetensors", which="ema")
    assert all_hold(sparsegen.load_bundle(tmp_path / "model.safetensors", which="model"))


def test_parts_alone_stay_together(tmp_path: Path) -> None:
    """An autoencoder's two models; a text encoder with its tokenizer."""
    folder = with_tokenizer(tmp_path / "sd")
    for part, roles in (("vae", ["encoder", "decoder"]), ("text_encoder", ["text"])):
        out = tmp_path / f"{part}.safetensors"
        assert main(["convert", str(folder / part), "-o", str(out)]) == 0
        found = sparsegen.load_bundle(out)
        assert list(found.models) == roles
        assert all(holds(model, MADE[role]) for role, model in found.models.items())
    assert main(["convert", str(folder / "unet"), "-o", str(tmp_path / "unet.safetensors")]) == 0
    alone = sparsegen.load_bundle(tmp_path / "unet.safetensors")
    assert holds(alone.model, MADE["unet"]) and alone.prediction == "noise"


# -- types -----------------------------------------------------------------------------------------------


def kinds(path: Path) -> dict[str, int]:
    """Element type -> number of tensors, without the vocabulary."""
    with read_checkpoint(path) as file:
        found = [tensor.dtype for name, tensor in file.tensors.items() if name != "vocabulary"]
    return {each: found.count(each) for each in set(found)}


def test_weights_are_stored_as_they_were(tmp_path: Path) -> None:
    """Of 2.x, whose query, key and value lie in one tensor; half of it float16, the rest bfloat16 and float32."""
    state = whole_file(version=2)
    names = list(state)
    with_types = {name: ("float16", "bfloat16", "float32")[i % 3] for i, name in enumerate(names)}
    write_safetensors(tmp_path / "mixed.safetensors", state, dtype=with_types)
    before = sparsegen.load_bundle(tmp_path / "mixed.safetensors")
    loading.save(before, tmp_path / "ours.safetensors")
    assert same(before, sparsegen.load_bundle(tmp_path / "ours.safetensors"))
    assert set(kinds(tmp_path / "ours.safetensors")) == {"float16", "bfloat16", "float32"}


def test_float16_is_half_of_float32(tmp_path: Path) -> None:
    path = single(tmp_path)
    for dtype in ("stored", "float16", "float32"):
        assert main(["convert", str(path), "-o", str(tmp_path / dtype), "--dtype", dtype]) == 0
    assert list(kinds(tmp_path / "float16")) == ["float16"]
    assert list(kinds(tmp_path / "stored")) == list(kinds(tmp_path / "float32")) == ["float32"]
    rounded = {
        role: {name: value.astype(np.float16).astype(np.float32) for name, value in state.items()}
        for role, state in MADE.items()
    }
    assert all_hold(sparsegen.load_bundle(tmp_path / "float16"), **rounded)


def test_a_lora_is_merged(tmp_path: Path) -> None:
    save_file(half(whole_file()), tmp_path / "sd.safetensors")
    path, style = tmp_path / "sd.safetensors", lora(tmp_path / "style.safetensors")
    merged = sparsegen.load_bundle(path, lora={style: 0.5})
    words = ["convert", str(path), "--lora", f"{style}=0.5"]
    assert main([*words, "-o", str(tmp_path / "whole"), "--dtype", "float32"]) == 0
    assert same(merged, sparsegen.load_bundle(tmp_path / "whole"))
    # as it was stored: the sum is rounded
    assert main([*words, "-o", str(tmp_path / "stored")]) == 0
    assert list(kinds(tmp_path / "stored")) == ["float16"]
    name = "mid.attn_1.block.attn1.to_q.weight"
    sums = merged.models["unet"].parameters()[name].value
    stored = sparsegen.load_bundle(tmp_path / "stored").models["unet"].parameters()[name].value
    assert np.array_equal(stored, sums.astype(np.float16))
    assert not np.array_equal(stored, MADE["unet"][name].astype(np.float16))


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    save_file(half(whole_file()), tmp_path / "sd.safetensors")
    bundle = sparsegen.load_bundle(tmp_path / "sd.safetensors")
    largest = max(
        4 * int(np.prod(each.shape))
        for model in bundle.models.values()
        for each in model.parameters().values()
    )
    bundle = Bundle(bundle.name, bundle.models, bundle.taken)  # its vocabulary takes more than the tiny model
    tracemalloc.start()
    loading.save(bundle, tmp_path / "ours.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # the largest as float32 and as float16, and the header
    assert peak < 2 * largest + (2 << 20)


# -- whole or not at all ---------------------------------------------------------------------------------


def test_what_is_there_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = single(tmp_path)
    whole = path.read_bytes()
    assert main(["convert", str(path), "-o", str(path)]) == 2
    assert "sd.safetensors: exists already; give another name" in capsys.readouterr().err
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)]
)
def test_an_interrupted_conversion_leaves_nothing(
    error: BaseException,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = single(tmp_path)
    real, calls = sparsegen.Model.release, []

    def stop(model: sparsegen.Model) -> None:
        calls.append(model)
        if len(calls) > 2 * sum(map(len, MADE.values())):
            raise error
        real(model)

    monkeypatch.setattr(sparsegen.Model, "release", stop)
    assert main(["convert", str(path), "-o", str(tmp_path / "ours.safetensors")]) == code
    assert [each.name for each in tmp_path.iterdir()] == ["sd.safetensors"]
    if code == 2:
        assert "No space left on device. Nothing was left behind." in capsys.readouterr().err


def test_the_line_names_models_sizes_and_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(half(whole_file(ema=True)), tmp_path / "sd.safetensors")
    assert main(["convert", str(tmp_path / "sd.safetensors"), "-o", str(tmp_path / "ours")]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert "sd-unet " in first and "clip-text " in first and first.endswith(" MB float16")
    assert others[0] == "written: unet: averaged weights (model_ema); beside them: model.diffusion_model"
    assert main(["inspect", str(tmp_path / "ours")]) == 0
    shown = capsys.readouterr().out
    assert "sparsegen" in shown and "sd-unet" in shown and "stable_diffusion" in shown and "noise" in shown


@pytest.mark.parametrize("dtype", ["stored", "float16"])
def test_values_that_are_not_finite_are_said(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = whole_file()
    damaged = {
        "model.diffusion_model.out.2.bias": np.nan,
        "first_stage_model.decoder.conv_in.bias": np.inf,
    }
    for name, value in damaged.items():
        state[name] = state[name].copy()
        state[name][:2] = value
    save_file(state, tmp_path / "sd.safetensors")
    ours = tmp_path / "ours.safetensors"
    assert main(["convert", str(tmp_path / "sd.safetensors"), "-o", str(ours), "--dtype", dtype]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not finite" in line]
    assert line.startswith(f"note: {tmp_path / 'sd.safetensors'}: 2 of ")
    assert "unet.conv_out.bias (2)" in line and "decoder.conv_in.bias (2)" in line
    assert np.isnan(load_file(ours)["unet.conv_out.bias"][:2]).all()  # as it was


# -- files that are not ours -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ours, of a file of 1.x."""
    folder = tmp_path_factory.mktemp("ours")
    loading.save(sparsegen.load_bundle(single(folder)), folder / "ours.safetensors")
    return folder / "ours.safetensors"


def forged(ours: Path, folder: Path, tensors: dict[str, Any] | None = None, **metadata: Any) -> Path:
    """A file of ours with other tensors and metadata: None removes an entry."""
    arrays = {**load_file(ours), **(tensors or {})}
    with read_checkpoint(ours) as file:
        described = {**file.metadata, **metadata}
    write_safetensors(
        folder / "forged.safetensors",
        {name: value for name, value in arrays.items() if value is not None},
        {name: str(text) for name, text in described.items()},
    )
    return folder / "forged.safetensors"


TEXT = {"family": "clip-text", "config": {}}
FORGED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no JSON": ({}, {MODELS: "{"}, "metadata sparsegen.models: is not a JSON object"),
    "deep": ({}, {MODELS: "[" * 50_000}, "metadata sparsegen.models: is not a JSON object"),
    "no models": ({}, {MODELS: "{}"}, "describes models of the families none"),
    "no family": ({}, {MODELS: json.dumps({"unet": {"family": [1]}})}, "different ones of sd-unet"),
    "another family": (
        {},
        {MODELS: json.dumps({"unet": {"family": "gaugan", "config": {}}})},
        "gaugan, expected",
    ),
    "a family twice": (
        {},
        {MODELS: json.dumps({"text": TEXT, "more": TEXT})},
        "clip-text, clip-text, expected",
    ),
    "a strange role": ({}, {MODELS: json.dumps({"../x": TEXT})}, r"describes \.\./x without a configuration"),
    "no configuration": (
        {},
        {MODELS: json.dumps({"text": {"family": "clip-text"}})},
        "describes text without",
    ),
    "models missing": ({}, {MODELS: json.dumps({"text": TEXT})}, "tensors of none of its models"),
    "a tensor too many": ({"extra.weight": np.ones(2)}, {}, "holds 1 tensors of none of its models"),
    "a tensor missing": ({"unet.conv_in.weight": None}, {}, r"missing \(1\): conv_in.weight"),
    "a vocabulary of floats": (
        {"vocabulary": np.ones(9, np.float32)},
        {},
        "vocabulary: is 36 bytes of float32",
    ),
    "a cut vocabulary": ({"vocabulary": np.ones(9, np.uint8)}, {}, "is not a JSON object"),
    "a list beside": ({}, {BESIDE: "[]"}, "metadata sparsegen.beside: is not a JSON object"),
    "a prediction": ({}, {BESIDE: '{"prediction": "gold"}'}, "does not hold a prediction"),
    "a scheduler": ({}, {BESIDE: '{"scheduler": {"sampler": ["ddim"]}}'}, "does not hold a prediction"),
    "an option": ({}, {BESIDE: '{"sampling": {"magic": 1}}'}, "unknown settings of sampling: 'magic'"),
    "a schedule": ({}, {"sparsegen.schedule": "gold"}, "unknown noise schedule gold"),
}


@pytest.mark.parametrize("fault", FORGED)
def test_a_forged_file_is_refused(fault: str, ours: Path, tmp_path: Path) -> None:
    tensors, metadata, message = FORGED[fault]
    path = forged(ours, tmp_path, tensors, **metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        sparsegen.load_bundle(path)
    assert str(caught.value).startswith(str(path))


def test_an_unknown_sampler_is_refused_where_it_is_used(ours: Path, tmp_path: Path) -> None:
    path = forged(ours, tmp_path, **{BESIDE: '{"scheduler": {"sampler": "gold"}, "prediction": "noise"}'})
    models = LatentDiffusion(sparsegen.load_bundle(path), backend="reference")
    with pytest.raises(sparsegen.InputError, match="unknown sampler 'gold'"):
        generate(models, "a lake", size=(32, 32))


def test_names_of_settings_that_are_arguments_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", str(single(tmp_path)), "-o", str(tmp_path / "ours"), "--set", "progress=1"]
    assert main(words) == 2
    assert "--set progress=1: progress is no setting of a model" in capsys.readouterr().err
