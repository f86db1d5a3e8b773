"""Bundles: the models of a checkpoint by their roles, and what lies beside them; `load` takes the only one."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

import sparsegen
from sparsegen import Bundle, InputError, loading
from tests.networks import random_gaugan, random_mobile
from tests.unets import random_ddpm, random_pd


@pytest.mark.parametrize(
    ("model", "role", "schedule"),
    [
        (random_gaugan, "generator", None),
        (random_mobile, "generator", None),
        (random_pd, "unet", None),
        (random_ddpm, "unet", None),
        (random_ddpm, "unet", "cosine"),
    ],
)
def test_a_file_is_a_bundle_of_one_network(tmp_path, model, role, schedule):
    made = model()
    if schedule is not None:
        made.sampling = MappingProxyType({"schedule": schedule})
    loading.save(made, tmp_path / "net.safetensors")
    bundle = sparsegen.load_bundle(tmp_path / "net.safetensors")
    assert list(bundle.models) == [role]
    assert bundle.model is bundle.models[role]
    assert bundle.model.config == made.config
    assert bundle.taken == {role: bundle.model.source}
    assert (bundle.schedule, bundle.tokenizer) == (schedule, None)
    assert bundle.name == bundle.model.name == str(tmp_path / "net.safetensors")
    assert sparsegen.load(tmp_path / "net.safetensors").config == made.config


def test_a_built_in_model_is_a_bundle_too():
    bundle = sparsegen.load_bundle("landscape-ddpm")
    assert (bundle.name, list(bundle.models)) == ("landscape-ddpm", ["unet"])
    assert bundle.schedule == bundle.model.sampling.get("schedule")


def test_the_weights_taken_are_named(tmp_path):
    loading.save(random_ddpm(), tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="which is 'best', expected ema or model"):
        sparsegen.load_bundle(tmp_path / "net.safetensors", which="best")
    with pytest.raises(InputError, match=r"ddpm has no setting weights; it has .*, which$"):
        sparsegen.load_bundle(tmp_path / "net.safetensors", weights="ema")


def test_load_lists_the_roles_of_several_networks(monkeypatch):
    one = Bundle("some/folder", {"unet": random_ddpm()}, {"unet": ""})
    assert one.model is one.models["unet"]
    several = replace(one, models={"unet": random_ddpm(), "vae": random_ddpm()})
    monkeypatch.setattr(loading, "load_bundle", lambda *_, **__: several)
    message = (
        r"^some/folder holds 2 models \(unet, vae\), expected one; use load_bundle\(path\)\.models\[role\]$"
    )
    with pytest.raises(InputError, match=message):
        loading.load("some/folder")
