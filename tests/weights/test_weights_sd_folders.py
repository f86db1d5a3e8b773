"""Folders of Stable Diffusion pipelines and of their parts become its models; what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsegen
from sparsegen.models.vocabulary import ALPHABET, END, LAST, START
from sparsegen.weights import CheckpointError, builtin, read_parts
from tests.weights.sd_files import (
    AVERAGE,
    CONFIGS,
    FILES,
    INDEX,
    MADE,
    SCHEDULER,
    STATES,
    TEXT,
    UNET,
    VAE,
    all_hold,
    diffusers_vae,
    half,
    holds,
    part,
    pipeline,
    transformers_text,
    unet,
    write_json,
)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        sparsegen.load_bundle(folder)
    assert str(caught.value).startswith(str(folder))


def tokenizer(folder: Path, pad: Any = None) -> Path:
    """The smallest vocabulary that CLIP's tokenizer can have."""
    symbols = [*ALPHABET, *(letter + LAST for letter in ALPHABET), "la", "la" + LAST, START, END]
    write_json(folder / "vocab.json", {symbol: i for i, symbol in enumerate(symbols)})
    (folder / "merges.txt").write_text("#version: 0.2\nl a\nl a</w>\n", "utf-8")
    if pad is not None:
        write_json(folder / "special_tokens_map.json", {"pad_token": pad})
    return folder


# -- whole folders ---------------------------------------------------------------------------------------


def test_a_pipelines_folder(tmp_path: Path) -> None:
    bundle = sparsegen.load_bundle(pipeline(tmp_path / "sd"))
    assert all_hold(bundle)
    vae = replace(VAE, scale=0.2)
    configs = {role: model.config for role, model in bundle.models.items()}
    assert configs == {"unet": UNET, "encoder": vae, "decoder": vae, "text": TEXT}
    assert (bundle.schedule, bundle.prediction) == ("stable_diffusion", "noise")
    assert dict(bundle.scheduler) == {"sampler": "pndm", "steps_offset": 1, "set_alpha_to_one": False}
    assert bundle.models["unet"].size == (64, 64)
    assert bundle.models["decoder"].size is None
    assert len(bundle.tokenizer.vocabulary.ids) == 49408


@pytest.mark.parametrize(
    "name",
    ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "LatentConsistencyModelPipeline"],
)
def test_other_pipelines_of_the_same_parts(name: str, tmp_path: Path) -> None:
    beside = {"_class_name": name, "image_encoder": [None, None], "safety_checker": ["x", "Checker"]}
    assert all_hold(sparsegen.load_bundle(pipeline(tmp_path / "sd", beside)))


def test_parts_that_a_pipeline_leaves_out(tmp_path: Path) -> None:
    none = [None, None]
    bundle = sparsegen.load_bundle(pipeline(tmp_path, {"vae": none, "text_encoder": none, "tokenizer": none}))
    assert list(bundle.models) == ["unet"]
    assert bundle.tokenizer is None


def test_half_precision_variants_and_pickles(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    for name, file in FILES.items():
        (folder / name / file).unlink()
        stem = file.partition(".")[0]
        save_file(half(STATES[name]), folder / name / f"{stem}.fp16.safetensors")
    rounded = {
        role: {path: value.astype(np.float16).astype(np.float32) for path, value in state.items()}
        for role, state in MADE.items()
    }
    assert all_hold(sparsegen.load_bundle(folder), **rounded)
    for name, file in FILES.items():
        save_file(STATES[name], folder / name / file)
    assert all_hold(sparsegen.load_bundle(folder))


@pytest.mark.torch
def test_pickled_weights(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = pipeline(tmp_path / "sd")
    for name, file in FILES.items():
        (folder / name / file).unlink()
        stem = "pytorch_model" if name == "text_encoder" else "diffusion_pytorch_model"
        state = {key: torch.from_numpy(value) for key, value in STATES[name].items()}
        torch.save(state, folder / name / f"{stem}.bin")
    assert all_hold(sparsegen.load_bundle(folder))


def test_shards(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    for name, file in FILES.items():
        (folder / name / file).unlink()
        stem, names = file.partition(".")[0], sorted(STATES[name])
        table = {}
        for i, chosen in enumerate((names[::2], names[1::2]), 1):
            shard = f"{stem}-0000{i}-of-00002.safetensors"
            save_file({key: STATES[name][key] for key in chosen}, folder / name / shard)
            table |= dict.fromkeys(chosen, shard)
        write_json(folder / name / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": table})
    assert all_hold(sparsegen.load_bundle(folder))
    (folder / "text_encoder" / "model-00002-of-00002.safetensors").unlink()
    refused(folder, r"text_encoder: lacks 1 of the 2 shards that its index names")


def test_both_spellings_of_text_encoders_and_old_names_of_attention(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    part(folder, "text_encoder", transformers_text(MADE["text"]))
    part(folder, "vae", diffusers_vae(MADE["encoder"], MADE["decoder"], old=True))
    part(folder, "unet", unet(MADE["unet"], "diffusers", linear=True), {"use_linear_projection": True})
    assert all_hold(sparsegen.load_bundle(folder))


def test_an_averaged_unet_beside_the_last_one(tmp_path: Path) -> None:
    part(tmp_path, "unet")
    part(tmp_path / "other", "unet", unet(AVERAGE, "diffusers"), {"decay": 0.9999, "optimization_step": 7})
    shutil.move(tmp_path / "other" / "unet", tmp_path / "unet_ema")
    for which, wanted in ((None, AVERAGE), ("ema", AVERAGE), ("model", MADE["unet"])):
        bundle = sparsegen.load_bundle(tmp_path, which=which)
        assert holds(bundle.model, wanted)
    assert bundle.taken["unet"] == "last weights (unet); beside them: unet_ema"


def test_averages_as_variants(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    part(folder, "unet", unet(AVERAGE, "diffusers"), file="diffusion_pytorch_model.non_ema.safetensors")
    assert all_hold(sparsegen.load_bundle(folder))
    assert all_hold(sparsegen.load_bundle(folder, which="model"), unet=AVERAGE)


def test_single_files_beside_the_parts_do_no_harm(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    for name in ("v1-5-pruned-emaonly.safetensors", "sd-v1-4-full-ema.ckpt"):
        (folder / name).write_bytes(b"never looked at")
    bundle = sparsegen.load_bundle(folder)
    assert all_hold(bundle)
    assert bundle.taken["unet"] == "the only weights"


@pytest.mark.parametrize("name", list(CONFIGS))
def test_parts_of_their_own(name: str, tmp_path: Path) -> None:
    bundle = sparsegen.load_bundle(part(tmp_path, name))
    assert (
        list(bundle.models)
        == {"unet": ["unet"], "vae": ["encoder", "decoder"], "text_encoder": ["text"]}[name]
    )
    assert all(holds(model, MADE[role]) for role, model in bundle.models.items())


# -- what lies beside the weights ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "schedule", "prediction", "settings"),
    [
        ({"prediction_type": "v_prediction"}, "stable_diffusion", "velocity", ("pndm", 1, False)),
        (
            {"prediction_type": "epsilon", "_class_name": "DDIMScheduler"},
            "stable_diffusion",
            "noise",
            ("ddim", 1, False),
        ),
        ({"_class_name": "EulerDiscreteScheduler"}, "stable_diffusion", "noise", ("euler", 1, False)),
        (
            {"_class_name": "EulerAncestralDiscreteScheduler"},
            "stable_diffusion",
            "noise",
            ("euler-a", 1, False),
        ),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "stable_diffusion", "noise", ("dpm++2m", 1, False)),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            "stable_diffusion",
            "noise",
            ("dpm++2m-karras", 1, False),
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "stable_diffusion",
            "noise",
            (None, 1, False),
        ),
        ({"_class_name": "LCMScheduler"}, "stable_diffusion", "noise", ("lcm", 1, False)),
        ({"_class_name": "UniPCMultistepScheduler"}, "stable_diffusion", "noise", (None, 1, False)),
        ({"steps_offset": 0}, "scaled_linear", "noise", ("pndm", 0, False)),
        ({"set_alpha_to_one": True}, "scaled_linear", "noise", ("pndm", 1, True)),
        (
            {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
            "linear",
            "noise",
            ("pndm", 1, False),
        ),
    ],
)
def test_the_scheduler(
    options: dict[str, Any], schedule: str, prediction: str, settings: tuple[Any, ...], tmp_path: Path
) -> None:
    bundle = sparsegen.load_bundle(pipeline(tmp_path / "sd", scheduler=options))
    assert (bundle.schedule, bundle.prediction) == (schedule, prediction)
    assert tuple(bundle.scheduler.values()) == settings
    assert bundle.models["unet"].sampling == {"schedule": schedule}


def test_a_folder_without_a_scheduler_gives_no_prediction(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd", {"scheduler": [None, None]})
    shutil.rmtree(folder / "scheduler")
    bundle = sparsegen.load_bundle(folder)
    assert (bundle.schedule, bundle.prediction, dict(bundle.scheduler)) == (None, None, {})


@pytest.mark.parametrize(
    ("pad", "expected"),
    [(None, END), ("!", "!"), ({"content": "!", "lstrip": False}, "!"), (END, END), ("<not there>", END)],
)
def test_the_folders_tokenizer(pad: Any, expected: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    tokenizer(folder / "tokenizer", pad)
    one = sparsegen.load_bundle(folder).tokenizer
    assert len(one.vocabulary.ids) == 516
    assert one.padding == one.vocabulary.ids[expected]
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\nl a\n", "utf-8")
    with pytest.raises(CheckpointError, match="merges do not make"):
        sparsegen.load_bundle(folder)


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ([], "tokenizer/vocab.json, tokenizer/merges.txt"),
        (["vocab.json"], "tokenizer/merges.txt"),
        (["merges.txt", "special_tokens_map.json"], "tokenizer/vocab.json"),
    ],
)
def test_a_tokenizer_that_is_named_must_be_there(there: list[str], missing: str, tmp_path: Path) -> None:
    named = {"tokenizer": ["transformers", "CLIPTokenizer"]}
    folder = pipeline(tmp_path / "sd", named)
    whole = tokenizer(tmp_path / "whole", "!")
    for name in there:
        (folder / "tokenizer").mkdir(exist_ok=True)
        shutil.copy(whole / name, folder / "tokenizer")
    refused(folder, rf"lacks {missing}, which its model_index\.json names")
    shutil.copytree(whole, folder / "tokenizer", dirs_exist_ok=True)
    assert len(sparsegen.load_bundle(folder).tokenizer.vocabulary.ids) == 516


def test_no_tokenizer_is_needed_without_a_text_encoder(tmp_path: Path) -> None:
    named = {"tokenizer": ["transformers", "CLIPTokenizer"], "text_encoder": [None, None]}
    assert list(sparsegen.load_bundle(pipeline(tmp_path / "sd", named)).models) == [
        "unet",
        "encoder",
        "decoder",
    ]


def test_a_tokenizers_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    write_json(folder / "tokenizer" / "tokenizer_config.json", {})
    refused(
        folder, "has no vocab.json and no merges.txt, expected tokenizer.json, or vocab.json and merges.txt"
    )


# -- folders that do not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, r"StableDiffusionXLPipeline \(SDXL\), supported"),
        ({"_class_name": "StableDiffusion3Pipeline"}, r"\(SD3\)"),
        ({"_class_name": "FluxPipeline"}, r"\(Flux\)"),
        ({"_class_name": "StableDiffusionDepth2ImgPipeline"}, "conditioned on depth"),
        ({"_class_name": "StableDiffusionLatentUpscalePipeline"}, "an upscaler"),
        ({"_class_name": "StableDiffusionInstructPix2PixPipeline"}, "InstructPix2Pix"),
        ({"_class_name": "StableDiffusionControlNetPipeline"}, "a ControlNet"),
        (
            {"text_encoder_2": ["transformers", "CLIPTextModel"]},
            "with text_encoder_2, supported",
        ),
        (
            {"vae": ["diffusers", "AsymmetricAutoencoderKL"]},
            "its vae is of the class AsymmetricAutoencoderKL",
        ),
        (
            {"text_encoder": ["transformers", "RobertaSeriesModel"]},
            "its text_encoder is of the class RobertaSer",
        ),
        ({"unet": [None, None]}, "its unet is missing, supported"),
        ({"unet": ["diffusers", "UNetFlatConditionModel"]}, "its unet is UNetFlatConditionModel, supported"),
    ],
)
def test_other_pipelines_are_refused_by_name(index: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(pipeline(tmp_path / "sd", index), message)


@pytest.mark.parametrize("value", [None, 3, [], ["x"], {}, {"a": {}}, [["a"], ["b"]], "x" * 70000])
@pytest.mark.parametrize("key", ["_class_name", "unet", "vae", "text_encoder", "scheduler"])
def test_indexes_of_any_values_give_one_sentence(key: str, value: object, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd", {key: value})
    try:
        sparsegen.load_bundle(folder)
    except CheckpointError as error:
        assert "no check covers" not in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize("value", [None, 3, -1, 1e999, "x", [], [[]], {}, {"a": 1}, [None] * 3])
@pytest.mark.parametrize("name", [*CONFIGS, "scheduler"])
def test_options_of_any_values_give_one_sentence(name: str, value: object, tmp_path: Path) -> None:
    if name == "scheduler":
        part(tmp_path, "unet")
        options, file = SCHEDULER, tmp_path / "scheduler" / "scheduler_config.json"
    else:
        options, file = CONFIGS[name], part(tmp_path, name) / "config.json"
    for key in (*options, "num_attention_heads", "norm_num_groups", "layer_norm_eps"):
        write_json(file, {**options, key: value})
        try:
            read_parts(tmp_path if name == "scheduler" else file.parent)
        except CheckpointError as error:
            assert "no check covers" not in str(error)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_parts_that_are_missing(name: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    (folder / name / FILES[name]).unlink()
    refused(folder, rf"{name}: has none of the files")
    shutil.rmtree(folder / name)
    refused(folder, rf"lacks {name}/config\.json, which its model_index\.json names")


@pytest.mark.parametrize("name", list(CONFIGS))
def test_weights_that_are_damaged(name: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    file = folder / name / FILES[name]
    raw = file.read_bytes()
    file.write_bytes(raw[: len(raw) // 2])
    refused(folder, rf"{name}.*header")
    file.write_bytes(raw)
    for damaged in ("{", "[]", "\x00" * 5, "{}" + " " * (1 << 17)):
        (folder / name / "config.json").write_text(damaged)
        refused(folder, rf"{name}.config\.json.*")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"cross_attention_dim": 768}, "cross_attention_dim is 768, the tensors' shapes give 64"),
        (
            "unet",
            {"block_out_channels": [320, 640, 1280]},
            "block_out_channels is 320, 640, 1280, the tensors'",
        ),
        ("unet", {"layers_per_block": 2}, "layers_per_block is 2, the tensors' shapes give 1"),
        ("unet", {"layers_per_block": [1, 1, 2]}, "layers_per_block is 1, 1, 2, the tensors' shapes give 1"),
        ("unet", {"in_channels": 9}, "in_channels is 9, the tensors' shapes give 4"),
        ("unet", {"down_block_types": ["DownBlock2D"] * 3}, "with, with, without attention"),
        ("unet", {"up_block_types": ["UpBlock2D"] * 3}, "with, with, without attention"),
        (
            "unet",
            {"down_block_types": ["AttnDownBlock2D"] * 3},
            "AttnDownBlock2D, supported: DownBlock2D or Cross",
        ),
        (
            "unet",
            {"transformer_layers_per_block": [1, 2, 10]},
            "transformer_layers_per_block is 1, 2, 10, the",
        ),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type is text_time, supported: null"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type is timestep, supported: null"),
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256, supported: null"),
        ("unet", {"time_embedding_dim": 64}, "time_embedding_dim is 64, the tensors' shapes give 128"),
        ("unet", {"only_cross_attention": True}, "only_cross_attention is true, supported: false"),
        (
            "unet",
            {"attention_head_dim": 7},
            "attention_head_dim is 7, supported: numbers of heads that divide",
        ),
        ("unet", {"attention_head_dim": "8"}, "a number from 1, or a list of 3"),
        (
            "unet",
            {"num_attention_heads": [8, 8]},
            "num_attention_heads is 8, 8, supported: a number from 1, or",
        ),
        ("unet", {"norm_num_groups": 24}, "32 channels, expected a multiple of 24, the groups"),
        ("unet", {"norm_eps": 0}, "norm_eps is 0, supported: a number between 0 and 1"),
        ("unet", {"of_the_future": 3}, r"unknown options of UNet2DConditionModel: of_the_future \(3\)"),
        ("unet", {"_class_name": "UNet3DConditionModel"}, "is a UNet3DConditionModel"),
        ("vae", {"latent_channels": 16}, "latent_channels is 16, the tensors' shapes give 4"),
        (
            "vae",
            {"block_out_channels": [32, 64, 64]},
            "block_out_channels is 32, 64, 64, the tensors' shapes give 32",
        ),
        ("vae", {"shift_factor": 0.1}, "shift_factor is 0.1, supported: null"),
        ("vae", {"use_quant_conv": False}, "use_quant_conv is false, supported: true"),
        ("vae", {"mid_block_add_attention": False}, "mid_block_add_attention is false"),
        ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "supported: DownEncoderBlock2D"),
        ("vae", {"scaling_factor": "big"}, "scaling_factor is big, supported: a number"),
        ("text_encoder", {"hidden_act": "relu"}, "hidden_act is relu, supported: quick_gelu or gelu"),
        (
            "text_encoder",
            {"num_attention_heads": 7},
            "num_attention_heads is 7, supported: a number that divides 64",
        ),
        ("text_encoder", {"num_hidden_layers": 23}, "num_hidden_layers is 23, the tensors' shapes give 2"),
        ("text_encoder", {"vocab_size": 50000}, "vocab_size is 50000, the tensors' shapes give 49408"),
        ("text_encoder", {"layer_norm_eps": None}, "layer_norm_eps is NoneType, supported: a number"),
        ("text_encoder", {"architectures": ["BertModel"]}, "is a BertModel, supported: .*CLIPTextModel"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    part(folder, name, config=options)
    with pytest.raises(CheckpointError, match=message) as caught:
        sparsegen.load_bundle(folder)
    assert str(caught.value).startswith(str(folder / name))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            {"prediction_type": "sample"},
            r"prediction_type is sample, supported: epsilon \(the noise\) or v_pred",
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "expected a scheduler with betas"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True, supported: false"),
        ({"beta_end": 0.5}, "its noise schedule is not supported"),
        ({"steps_offset": -1}, "steps_offset is -1"),
        ({"set_alpha_to_one": "no"}, "set_alpha_to_one no, expected"),
    ],
)
def test_schedulers_that_are_not_supported(scheduler: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(pipeline(tmp_path / "sd", scheduler=scheduler), message)


def test_a_built_in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pipeline(tmp_path / "tiny-sd")
    write_json(folder / "examples.json", {"kind": "prompts", "examples": []})
    sampling = {"steps": 12, "schedule": "stable_diffusion"}
    write_json(folder / "settings.json", {"sampling": sampling, "paper": {"least_size": 8}, "size": [32, 32]})
    monkeypatch.setattr(builtin, "FOLDER", tmp_path)
    assert builtin.names() == ["tiny-sd"]
    known = builtin.get("tiny-sd")
    assert (known.checkpoint, known.labels) == (folder, None)
    bundle = sparsegen.load_bundle("tiny-sd")
    assert all_hold(bundle)
    model = bundle.models["unet"]
    assert (model.name, model.sampling, model.size, model.paper.least_size) == (
        "tiny-sd",
        sampling,
        (32, 32),
        8,
    )


@pytest.mark.parametrize("change", [-4, 8])
def test_a_part_of_another_length_says_how_long_it_should_be(change: int, tmp_path: Path) -> None:
    file = pipeline(tmp_path) / "vae" / FILES["vae"]
    whole = file.read_bytes()
    file.write_bytes((whole + bytes(8))[: len(whole) + change])
    message = f"{FILES['vae']}: has {len(whole) + change} bytes, its header describes {len(whole)}"
    with pytest.raises(CheckpointError, match=message):
        sparsegen.load_bundle(tmp_path)


def test_inspect_prints_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparsegen.cli import main

    assert main(["inspect", str(pipeline(tmp_path / "sd"))]) == 0
    said = capsys.readouterr().out
    for word in (
        "diffusers-unet2d-condition",
        "diffusers-vae-decoder",
        "transformers-clip-text",
        "pndm",
        "noise",
    ):
        assert word in said
    assert "  unet/conv_in.weight " in said and "  vae/decoder.conv_in.weight " in said
    assert (
        main(["inspect", str(pipeline(tmp_path / "xl", {"_class_name": "StableDiffusionXLPipeline"}))]) != 0
    )
    assert json.loads((tmp_path / "xl" / "model_index.json").read_text())["vae"] == INDEX["vae"]
