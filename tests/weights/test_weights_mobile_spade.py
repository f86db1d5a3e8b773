"""GAN Compression's GauGAN: both spellings of its files, statistics that are too long, and files that do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import sparsegen
from sparsegen.models import MobileGauGAN, MobileGauGANConfig
from sparsegen.weights import CheckpointError, convert, identify, read_checkpoint, write_safetensors
from tests.networks import random_mobile

State = dict[str, np.ndarray]
CONFIG = {
    "channels": (1, 2, 1, 2, 2, 1, 3, 4),
    "semantic_nc": 4,
    "num_upsampling_layers": "normal",
    "edge_channel": False,
}
PUBLISHED = ("32_32_32_48_32_24_24_32", "16_40_16_8_16_16_8_16")


def values_of(model: MobileGauGAN) -> State:
    return {path: parameter.value for path, parameter in model.parameters().items()}


def as_upstream(made: Mapping[str, np.ndarray], *, longer: int = 0) -> State:
    """Our parameters under GAN Compression's names, the statistics `longer` than the layers."""
    state: State = {}
    for path, value in made.items():
        if ".mlp_gamma_beta." in path:
            block, kind = path.split(".mlp_gamma_beta.")
            place = kind.replace("depthwise", "0").replace("pointwise", "2")
            for half, rows in zip(("gamma", "beta"), np.split(value, 2), strict=True):
                state[f"{block}.mlp_{half}.conv.{place}"] = rows
        elif path.endswith((".norm.mean", ".norm.var")):
            norm, kind = path.split(".norm.")
            longer_value = np.concatenate([value, np.full(longer, np.inf, np.float32)])
            state[f"{norm}.param_free_norm.running_{kind}"] = longer_value
            state[f"{norm}.param_free_norm.num_batches_tracked"] = np.array(9)
        else:
            state[path.replace(".mlp_shared.", ".mlp_shared.0.")] = value
    return state


def as_fused(made: Mapping[str, np.ndarray], *, longer: int = 0) -> State:
    """The same, fused by SIGE: each block's hidden layers in one, norm_0, norm_1, norm_s."""
    state = {name: v for name, v in as_upstream(made, longer=longer).items() if ".mlp_shared." not in name}
    for path in made:
        if ".norm_0.mlp_shared." in path:
            parts = [path.replace("norm_0", norm) for norm in ("norm_0", "norm_1", "norm_s")]
            rows = [made[part] for part in parts if part in made]
            state[path.replace(".norm_0.mlp_shared.", ".mlp_shared.0.")] = np.concatenate(rows)
    return state


FORMS = {"gan-compression": as_upstream, "sige-fused-gan-compression": as_fused}


def file_of(state: Mapping[str, np.ndarray], folder: Path) -> Path:
    path = folder / "net.safetensors"
    write_safetensors(path, dict(state), {})
    return path


@pytest.mark.parametrize("longer", [0, 7])
@pytest.mark.parametrize("form", FORMS)
def test_both_spellings_fill_every_parameter_once(form: str, longer: int, tmp_path: Path) -> None:
    made = values_of(random_mobile(3))
    path = file_of(FORMS[form](made, longer=longer), tmp_path)
    with read_checkpoint(path) as checkpoint:
        family, config = identify(checkpoint)
        assert (family.name, family.model, config) == (form, "mobile-gaugan", CONFIG)
        model = MobileGauGAN(MobileGauGANConfig(**config))
        found = convert(family, checkpoint, {name: p.shape for name, p in model.parameters().items()})
        assert list(found) == list(made)
        for name, value in made.items():
            assert np.array_equal(found[name], value), name
    loaded = sparsegen.load(path)
    assert isinstance(loaded, MobileGauGAN)
    assert all(np.array_equal(value, made[name]) for name, value in values_of(loaded).items())


@pytest.mark.parametrize("channels", PUBLISHED)
def test_the_published_networks_are_read_off_their_shapes(channels: str, tmp_path: Path) -> None:
    wanted = MobileGauGANConfig(channels=channels)
    shapes = {name: p.shape for name, p in MobileGauGAN(wanted).parameters().items()}
    state = as_upstream({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, longer=3)
    with read_checkpoint(file_of(state, tmp_path)) as checkpoint:
        _, config = identify(checkpoint)
        assert MobileGauGANConfig(**config) == wanted


def test_a_state_dict_inside_a_wrapping_is_found(tmp_path: Path) -> None:
    made = values_of(random_mobile())
    state = {f"netG.module.{name}": value for name, value in as_upstream(made).items()}
    assert all(
        np.array_equal(value, made[name])
        for name, value in values_of(sparsegen.load(file_of(state, tmp_path))).items()
    )


def test_our_own_files_are_read_back(tmp_path: Path) -> None:
    model = random_mobile(1)
    sparsegen.loading.save(model, tmp_path / "net.safetensors")
    again = sparsegen.load(tmp_path / "net.safetensors")
    assert again.family == "mobile-gaugan" and again.config == model.config
    assert all(np.array_equal(value, values_of(model)[name]) for name, value in values_of(again).items())


DAMAGES = {
    "no width": (lambda s: s.pop("fc.bias"), r"mobile SPADE generator whose fc\.bias, .* is missing"),
    "no labels": (lambda s: s.pop("fc.weight"), r"whose fc\.weight, which determines a size, is missing"),
    "a width that does not divide": (
        lambda s: s.update({"up_1.conv_0.bias": np.zeros(7, np.float32)}),
        r"whose up_1\.conv_0\.bias has 7 values, expected a multiple of 4",
    ),
    "no width at all": (
        lambda s: s.update({"up_1.conv_0.bias": np.zeros(0, np.float32)}),
        r"whose up_1\.conv_0\.bias, which determines a size, is \[0\]",
    ),
    "statistics too short": (
        lambda s: s.update({"up_0.norm_1.param_free_norm.running_var": np.zeros(9, np.float32)}),
        r"mis-shaped \(1\): .*up_0\.norm_1\.param_free_norm\.running_var \(has \[9\], .* take 16 rows\)",
    ),
    "statistics of two axes": (
        lambda s: s.update({"up_0.norm_1.param_free_norm.running_var": np.zeros((16, 2), np.float32)}),
        r"mis-shaped \(1\): up_0\.norm_1\.norm\.var \(expected \[16\], the checkpoint has \[16, 2\]\)",
    ),
    "no beta": (
        lambda s: s.pop("up_2.norm_s.mlp_beta.conv.2.weight"),
        r"missing \(1\): up_2\.norm_s\.mlp_gamma_beta\.pointwise\.weight .*but no second",
    ),
    "a norm with parameters between them": (
        lambda s: s.update({"up_2.norm_s.mlp_beta.conv.1.weight": np.ones(6, np.float32)}),
        r"unexpected \(1\): up_2\.norm_s\.mlp_beta\.conv\.1\.weight",
    ),
    "an eighth block": (
        lambda s: s.update({"up_4.conv_0.bias": np.ones(6, np.float32)}),
        r"unexpected \(1\): up_4\.conv_0\.bias",
    ),
    "hidden layers of another width": (
        lambda s: s.update({"head_0.norm_0.mlp_shared.0.bias": np.ones(5, np.float32)}),
        r"head_0\.norm_0\.mlp_shared\.bias \(expected \[4\], the checkpoint has \[5\]\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_do_not_fit_are_refused_by_name(damage: str, tmp_path: Path) -> None:
    change, match = DAMAGES[damage]
    state = as_upstream(values_of(random_mobile()))
    change(state)
    with pytest.raises(CheckpointError, match=match):
        sparsegen.load(file_of(state, tmp_path))


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = file_of(as_fused(values_of(random_mobile())), tmp_path)
    whole = path.read_bytes()
    for share in (0.01, 0.3, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError):
            sparsegen.load(path)
