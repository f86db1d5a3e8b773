"""The tables of Stable Diffusion's names, held to diffusers' and transformers' models and to diffusers' converters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsegen
from sparsegen import Session
from sparsegen.models import CLIPText, CLIPTextConfig, SDUNet, SDUNetConfig, VAEConfig, VAEDecoder, VAEEncoder
from sparsegen.weights import read_parts
from sparsegen.weights.families import FAMILIES, sd_names
from tests.oracles.sd_models import stirred, unet_output
from tests.tolerances import check
from tests.weights.sd_files import MADE, UNET, State, compvis_vae, diffusers_vae, open_clip_text, under, unet

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


def targets(family: str, config: dict[str, Any], names: list[str]) -> list[str]:
    """The parameters that a family's table fills from names, each matched by one rule."""
    found = next(each for each in FAMILIES if each.name == family)
    rules = found.rules if found.rules_for is None else found.rules_for(config)
    keys = dict.fromkeys(names)
    filled = []
    for name in names:
        matches = [(rule, groups) for rule in rules if (groups := rule.match(name, keys)) is not None]
        assert len(matches) == 1, name
        rule, groups = matches[0]
        filled += [target.format(**groups) for target in rule.targets]
    return filled


@pytest.mark.parametrize("linear", [False, True])
def test_the_unets_of_both_versions_name_every_parameter_once(linear: bool) -> None:
    """The published sizes: 686 tensors."""
    context, heads = (1024, [5, 10, 20, 20]) if linear else (768, 8)
    with torch.device("meta"):
        net = diffusers.UNet2DConditionModel(
            cross_attention_dim=context, attention_head_dim=heads, use_linear_projection=linear
        )
    ours = SDUNet(SDUNetConfig(context=context)).parameters()
    config = {"levels": (320, 640, 1280, 1280), "blocks": 2, "attention": (True, True, True, False)}
    filled = targets("diffusers-unet2d-condition", config, list(net.state_dict()))
    assert (sorted(filled), len(filled)) == (sorted(ours), 686)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    for names in sd_names.layers(4, 2, config["attention"]):
        shape = shapes.get(f"{names.diffusers}.weight")
        if shape is not None:
            wanted = (*shape[:2], 1, 1) if names.pointwise else shape
            assert ours[f"{names.ours}.weight"].shape == wanted, names


def test_compvis_names_of_the_unet_are_those_of_diffusers_converter() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = {"levels": (320, 640, 1280, 1280), "blocks": 2, "attention": (True, True, True, False)}
    parameters = SDUNet(SDUNetConfig()).parameters()
    layers = [
        (names, kind)
        for names in sd_names.layers(4, 2, config["attention"])
        for kind in ("weight", "bias")
        if f"{names.ours}.{kind}" in parameters
    ]
    assert len(layers) == len(parameters) == 686
    state = {f"model.diffusion_model.{names.compvis}.{kind}": (names, kind) for names, kind in layers}
    assert len(state) == 686
    converted = convert_ldm_unet_checkpoint(dict(state), {"layers_per_block": 2})
    assert converted == {f"{names.diffusers}.{kind}": (names, kind) for names, kind in layers}
    filled = targets("compvis-unet", config, [name.removeprefix("model.diffusion_model.") for name in state])
    assert sorted(filled) == sorted(parameters)


def test_the_autoencoder_names_every_parameter_once() -> None:
    """The published sizes: 248 tensors."""
    levels = (128, 256, 512, 512)
    with torch.device("meta"):
        net = diffusers.AutoencoderKL(
            block_out_channels=levels,
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    names = list(net.state_dict())
    filled = [
        name
        for half, kind in (("encoder", VAEEncoder), ("decoder", VAEDecoder))
        for name in targets(f"diffusers-vae-{half}", {"levels": levels}, names)
        if name in kind(VAEConfig()).parameters()
    ]
    assert len(filled) == len(names) == 248


def test_compvis_names_of_the_autoencoder_are_those_of_diffusers_converter() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    state = tensors(compvis_vae(MADE["encoder"], MADE["decoder"]))
    config = {"down_block_types": ["D"] * 3, "up_block_types": ["U"] * 3}
    converted = convert_ldm_vae_checkpoint(state, config)
    expected = diffusers_vae(MADE["encoder"], MADE["decoder"])
    assert converted.keys() == expected.keys()
    assert all(np.array_equal(converted[name].numpy(), value) for name, value in expected.items())


def test_open_clips_names_are_those_of_diffusers_converter() -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    config = transformers.CLIPTextConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, projection_dim=64
    )
    net = transformers.CLIPTextModel(config)
    state = tensors(under("cond_stage_model.model.", open_clip_text(MADE["text"])))
    converted = convert_open_clip_checkpoint(net, state, prefix="cond_stage_model.model.")
    for name, value in converted.items():
        path = name.removeprefix("text_model.").replace("encoder.layers.", "layer.")
        if path in ("embeddings.position_ids", "text_projection.weight") or path.startswith("layer.2."):
            continue  # the last layer is left out by diffusers' configuration
        path = path.removesuffix(".weight") if path.startswith("embeddings.") else path
        assert np.array_equal(value.numpy().ravel(), MADE["text"][path].ravel()), name


def test_transformers_text_encoders_name_every_parameter_once() -> None:
    """The published sizes: 196 tensors."""
    with torch.device("meta"):
        net = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
    names = [name.removeprefix("text_model.") for name in net.state_dict() if "position_ids" not in name]
    filled = targets("transformers-clip-text", {}, names)
    assert (sorted(filled), len(filled)) == (sorted(CLIPText(CLIPTextConfig()).parameters()), 196)


@pytest.mark.parametrize("form", ["folder", "safetensors", "ckpt"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_loaded_bundle_computes_what_diffusers_computes(form: str, version: int, tmp_path: Path) -> None:
    """Models that diffusers and transformers saved; single files by the names of their converters, held above."""
    torch.manual_seed(0)
    linear = version == 2
    net = stirred(
        diffusers.UNet2DConditionModel(
            block_out_channels=UNET.levels,
            layers_per_block=UNET.blocks,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=UNET.context,
            attention_head_dim=[1, 1, 1] if linear else 8,
            use_linear_projection=linear,
        )
    )
    vae = stirred(
        diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )
    )
    text = stirred(
        transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=60,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=1,
                hidden_act="gelu" if linear else "quick_gelu",
            )
        )
    )
    path = tmp_path / "sd"
    if form == "folder":
        for name, model in (("unet", net), ("vae", vae), ("text_encoder", text)):
            model.save_pretrained(path / name)
    else:
        parts = {
            "unet": sparsegen.load(saved(net, tmp_path / "unet")),
            "text": sparsegen.load(saved(text, tmp_path / "text")),
            **sparsegen.load_bundle(saved(vae, tmp_path / "vae")).models,
        }
        made = {
            role: {name: p.value for name, p in model.parameters().items()} for role, model in parts.items()
        }
        state = under("model.diffusion_model.", unet(made["unet"], "compvis", linear=linear))
        state |= under("first_stage_model.", compvis_vae(made["encoder"], made["decoder"]))
        if linear:
            state |= under("cond_stage_model.model.", open_clip_text(made["text"]))
        else:
            plain = {name: value.numpy() for name, value in text.state_dict().items()}
            state |= under("cond_stage_model.transformer.", plain)
        path = tmp_path / f"sd.{form}"
        if form == "ckpt":
            torch.save({"state_dict": tensors(state)}, path)
        else:
            save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)
    bundle = sparsegen.load_bundle(path)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 60, (1, 77))
    x, features = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 8, 8, 4), (1, 77, 64)))
    run = {role: Session(model, "reference") for role, model in bundle.models.items()}
    check(
        "parity",
        run["unet"].run(x, timestep=421.0, text=features).output,
        unet_output(net, x, 421.0, features),
    )
    with torch.no_grad():
        hidden = text(torch.from_numpy(tokens)).last_hidden_state.numpy()
        image = vae.decode(torch.from_numpy(x).permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1).numpy()
    check("parity", run["text"].run(tokens).output.reshape(hidden.shape), hidden)
    check("parity, UNet", run["decoder"].run(x).output, image)


def tensors(state: State) -> dict[str, Any]:
    return {name: torch.tensor(value) for name, value in state.items()}


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_large_pipelines_folder_is_recognised_without_reading_it(tmp_path: Path) -> None:
    """The published UNet: its sizes come from names and shapes."""
    with torch.device("meta"):
        net = diffusers.UNet2DConditionModel(cross_attention_dim=768)
    header, at = {}, 0
    for name, value in net.state_dict().items():
        header[name] = {
            "dtype": "F16",
            "shape": list(value.shape),
            "data_offsets": [at, at + 2 * value.numel()],
        }
        at += 2 * value.numel()
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with open(tmp_path / "unet.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + at)  # a hole: no bytes on the disk
    with read_parts(tmp_path / "unet.safetensors") as found:
        (part,) = found.parts
        assert SDUNetConfig(**part.config) == SDUNetConfig()
