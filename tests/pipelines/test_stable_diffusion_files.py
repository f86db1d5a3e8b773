"""Stable Diffusion sessions on disk: the same bits, undo and redo, on every backend; or one clear error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsegen import SDEdit, Session, generate, load, open_session
from sparsegen.backends.interface import Host
from sparsegen.errors import SessionError
from sparsegen.pipelines.latents import LatentDiffusion
from sparsegen.pipelines.stable_diffusion import StableDiffusion
from sparsegen.weights import CheckpointError, read_checkpoint
from tests.oracles.sd_models import parts
from tests.pipelines.test_sdedit_files import always, forged, put
from tests.pipelines.test_stable_diffusion import canvases, picture, stroke

SETTINGS: dict[str, Any] = {"steps": 5, "strength": 0.8, "seed": 3, "negative": "fog"}
BACKEND = "numba"


@pytest.fixture(scope="module")
def models() -> LatentDiffusion:
    return LatentDiffusion(parts().bundle, backend=BACKEND)


def edited(models: LatentDiffusion, **options: Any) -> StableDiffusion:
    """A session of which one edit can be redone, and two can be undone: of some pixels, and of none."""
    session = StableDiffusion(models, "a house at a lake", **{**SETTINGS, **options})
    session.run(picture())
    session.edit(stroke(session.image, 20, 20))
    session.edit(session.image)
    session.edit(stroke(session.image, 40, 8))
    session.undo()
    session.notes["title"] = "the lake"
    return session


@pytest.fixture(scope="module")
def saved(models: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "x"
    edited(models).save(path)
    return path.read_bytes()


def assert_same(one: StableDiffusion, other: StableDiffusion) -> None:
    assert (one.edits, one.undone) == (other.edits, other.undone)
    np.testing.assert_array_equal(one.image, other.image)
    for a, b in zip(canvases(one), canvases(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# -- what comes back -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy": "fast(refresh=3)", "steps": 8},
        {"policy": "exact", "guidance": 1.0, "sampler": "euler-a"},
        {"policy": "paper", "storage": "float16", "ram": "1MB", "margin": 2, "skip": 1},
        {"policy": "adaptive(0.02)", "sampler": "ddim", "eta": 0.5},
    ],
    ids=lambda options: options.get("policy", "fast"),
)
def test_a_loaded_session_goes_on_with_the_same_bits(
    models: LatentDiffusion, tmp_path: Path, options: dict[str, Any]
) -> None:
    session, path = edited(models, folder=tmp_path, **options), tmp_path / "x.session"
    session.save(path)
    assert os.listdir(tmp_path) == ["x.session"]
    again = StableDiffusion.load(path, backend=BACKEND, ram=options.get("ram"), folder=tmp_path)
    assert again.settings == session.settings and again.policy == session.policy
    kept = ("prompt", "negative", "skip", "margin", "storage", "notes")
    assert [getattr(again, name) for name in kept] == [getattr(session, name) for name in kept]
    assert again.store.budget == session.store.budget
    assert_same(again, session)
    # another policy needs canvases that a session of carried steps does not keep
    other = None if any(session._carried_rows(16, 16)) else "exact"
    changes: list[Callable[[StableDiffusion], Any]] = [
        lambda each: each.redo(),
        lambda each: each.edit(stroke(each.image, 30, 33)),
        lambda each: each.edit(stroke(each.image, 8, 40), policy=other),
        *[lambda each: each.undo()] * 5,
        lambda each: each.redo(),
        lambda each: each.dense(stroke(each.image, 30, 33)),
    ]
    for change in changes:
        np.testing.assert_array_equal(change(again).output, change(session).output)
        assert_same(again, session)
    again.save(path)  # over the file that it came from
    assert_same(StableDiffusion.load(path, backend=BACKEND), session)
    # another image needs neither the checkpoint nor its text encoder
    np.testing.assert_array_equal(again.run(picture(7)).image, session.run(picture(7)).image)
    assert_same(again, session)


def test_a_batch_comes_back(models: LatentDiffusion, tmp_path: Path) -> None:
    originals = np.stack([picture(0), picture(1)])
    session = StableDiffusion(models, "a lake", **{**SETTINGS, "seed": [4, 9]})
    session.run(originals)
    session.edit(np.stack([originals[0], stroke(originals[1], 30, 30)]))
    session.save(tmp_path / "x")
    again = StableDiffusion.load(tmp_path / "x", backend=BACKEND)
    for each in (session, again):
        each.edit(stroke(originals[0], 8, 8)[None].repeat(2, 0))
    assert_same(again, session)
    assert again.settings.seed == (4, 9)


def test_the_models_of_a_file_are_whole(models: LatentDiffusion, saved: bytes, tmp_path: Path) -> None:
    """The text encoder and the vocabulary too: with them other texts can follow."""
    path = tmp_path / "x"
    path.write_bytes(saved)
    again = StableDiffusion.load(path, backend=BACKEND).models
    for role, model in models.models.items():
        for name, parameter in model.parameters().items():
            value = again.models[role].parameters()[name].value
            assert value.dtype == parameter.value.dtype
            np.testing.assert_array_equal(value, parameter.value)
    assert again.tokenizer.vocabulary == models.tokenizer.vocabulary
    given: dict[str, Any] = {"size": (32, 32), "steps": 2}
    one, other = (generate(each, "another text", **given).image for each in (models, again))
    np.testing.assert_array_equal(one, other)


def test_weights_keep_the_type_that_they_are_stored_as(tmp_path: Path) -> None:
    halves = LatentDiffusion(parts(seed=1).bundle, backend=BACKEND)  # of no other test: it is changed
    unet = halves.unet
    unet.load_parameters({name: each.value.astype(np.float16) for name, each in unet.parameters().items()})
    session = StableDiffusion(halves, "a lake", **SETTINGS)
    session.run(picture())
    session.save(tmp_path / "x")
    again = StableDiffusion.load(tmp_path / "x", backend=BACKEND)
    assert {each.value.dtype for each in again.models.unet.parameters().values()} == {np.dtype(np.float16)}
    for each in (session, again):
        each.edit(stroke(picture(), 20, 20))
    assert_same(again, session)


def test_a_session_opens_on_another_backend(saved: bytes, tmp_path: Path) -> None:
    """Its canvases keep their bits, so undo does; a new edit differs as backends do."""
    path = tmp_path / "x"
    path.write_bytes(saved)
    here, there = (open_session(path, backend) for backend in (BACKEND, "reference"))
    assert isinstance(here, StableDiffusion) and isinstance(there, StableDiffusion)
    assert there.models.backend.name == "reference"
    assert_same(here, there)
    np.testing.assert_array_equal(here.redo().output, there.redo().output)
    assert_same(here, there)
    one, other = (each.edit(stroke(each.image, 30, 33)).output for each in (here, there))
    # float32 sums in another order, through 4 steps and a decoder
    np.testing.assert_allclose(one, other, atol=2e-3)


def test_a_session_of_an_inpainting_model_comes_back(tmp_path: Path) -> None:
    session = edited(LatentDiffusion(parts(channels=9).bundle, backend=BACKEND))
    session.save(tmp_path / "x")
    again = StableDiffusion.load(tmp_path / "x", backend=BACKEND)
    assert_same(again, session)
    for change in (lambda each: each.redo(), lambda each: each.edit(stroke(each.image, 30, 33))):
        np.testing.assert_array_equal(change(again).output, change(session).output)
        assert_same(again, session)


# -- what is refused -------------------------------------------------------------------------------------


def refused(path: Path, match: str | None = None) -> None:
    with pytest.raises((SessionError, CheckpointError), match=match) as caught:
        StableDiffusion.load(path, backend=BACKEND)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_session_that_has_not_run_is_not_saved(models: LatentDiffusion, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no image yet"):
        StableDiffusion(models, "a lake", **SETTINGS).save(tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_files_of_other_kinds_are_refused(saved: bytes, tmp_path: Path) -> None:
    path, other = tmp_path / "x.session", tmp_path / "other.session"
    path.write_bytes(saved)
    for kind in (Session, SDEdit):
        with pytest.raises(SessionError, match=r"x\.session: a session of another kind .*open_session"):
            kind.load(path, backend=BACKEND)
    with pytest.raises(CheckpointError, match=r"x\.session.*is a saved session"):
        load(path)
    one = SDEdit(load("landscape-ddpm"), steps=1, backend=BACKEND)
    one.run(np.zeros((128, 128, 3), np.uint8))
    one.save(other)
    refused(other, match="a session of another kind")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.3, 0.7, 0.9999])
def test_a_file_that_is_cut_is_refused(saved: bytes, tmp_path: Path, part: float) -> None:
    path = tmp_path / "cut.session"
    path.write_bytes(saved[: int(len(saved) * part)])
    refused(path)


def test_a_file_that_is_altered_is_refused(saved: bytes, tmp_path: Path) -> None:
    rng, path = np.random.default_rng(5), tmp_path / "altered.session"
    header = int.from_bytes(saved[:8], "little")
    for place in [*rng.integers(0, 8 + header, 6), *rng.integers(8 + header, len(saved), 6)]:
        altered = bytearray(saved)
        altered[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        refused(path)


def inner(name: str, change: Callable[[Any], Any]) -> dict[str, Callable[[str], str]]:
    """A change of a JSON object in the metadata."""
    return {f"sparsegen.{name}": lambda text: json.dumps(change(json.loads(text)))}


def of_session(**changes: Any) -> dict[str, Callable[[str], str]]:
    return inner("settings", lambda found: {**found, **changes})


def settings(**changes: Any) -> dict[str, Callable[[str], str]]:
    return inner("settings", lambda found: {**found, "settings": {**found["settings"], **changes}})


def model(role: str, **config: Any) -> dict[str, Callable[[str], str]]:
    def change(models: dict[str, Any]) -> dict[str, Any]:
        models[role]["config"].update(config)
        return models

    return inner("models", change)


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda found: {key: value for key, value in found.items() if key != name}


def vocabulary(change: Callable[[dict[str, Any]], Any]) -> dict[str, Callable[[Host], Host]]:
    def changed(raw: Host) -> Host:
        return np.frombuffer(json.dumps(change(json.loads(raw.tobytes()))).encode(), np.uint8)

    return {"beside/vocabulary": changed}


S0, S1, LAST = "step.00000/", "step.00001/", "decoder/"
FORGED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "settings that are none": ({}, {"sparsegen.settings": always("5")}),
    "settings that nest": ({}, {"sparsegen.settings": always("[" * 100000)}),
    "no settings of steps": ({}, inner("settings", without("settings"))),
    "no prompt": ({}, inner("settings", without("prompt"))),
    "a prompt that is no text": ({}, of_session(prompt=["a lake"])),
    "a negative prompt of nothing": ({}, of_session(negative=None)),
    "a prediction of nothing": ({}, of_session(predicts=None)),
    "a prediction of images": ({}, of_session(predicts="image")),
    "padding outside the vocabulary": ({}, of_session(padding=10**6)),
    "padding as text": ({}, of_session(padding="0")),
    "all layers left out": ({}, of_session(skip=99)),
    "a negative margin": ({}, of_session(margin=-1)),
    "another storage": ({}, of_session(storage="float16")),
    "an unknown storage": ({}, of_session(storage="int8")),
    "more steps": ({}, settings(steps=10)),
    "steps by the milliard": ({}, settings(steps=10**9)),
    "no strength": ({}, settings(strength=0)),
    "another strength": ({}, settings(strength=0.6)),
    "no guidance": ({}, settings(guidance=1)),
    "a guidance of NaN": ({}, settings(guidance=float("nan"))),
    "a noise level": ({}, settings(noise_level=300)),
    "clipping": ({}, settings(clip=1.0)),
    "an unknown sampler": ({}, settings(sampler="fastest")),
    "an unknown schedule": ({}, settings(schedule="../../x")),
    "a negative seed": ({}, settings(seed=-1)),
    "seeds of a batch": ({}, settings(seed=[1, 2, 3], folder="/")),
    "no decoder's model": ({}, inner("models", without("decoder"))),
    "no text encoder": ({}, inner("models", without("text"))),
    "a UNet in the encoder's place": ({}, inner("models", lambda m: {**m, "encoder": m["unet"]})),
    "a family that is none": ({}, inner("models", lambda m: {**m, "text": {**m["text"], "family": "os"}})),
    "fewer levels": ({}, model("unet", levels=[32], attention=[True], heads=[2])),
    "another context": ({}, model("unet", context=64)),
    "nine channels": ({}, model("unet", in_channels=9)),
    "more latents": ({}, model("decoder", latents=8)),
    "no weight": ({"parameter/unet/conv_in.bias": None}, {}),
    "a weight of another size": ({"parameter/text/layer.0.mlp.fc1.bias": lambda b: b[:-1]}, {}),
    "no vocabulary": ({"beside/vocabulary": None}, {}),
    "a vocabulary that is no text": ({"beside/vocabulary": always(np.full(9, 255, np.uint8))}, {}),
    "a vocabulary of nothing": (vocabulary(lambda v: {}), {}),
    "symbols twice": (vocabulary(lambda v: {**v, "symbols": [*v["symbols"], v["symbols"][0]]}), {}),
    "symbols that are numbers": (vocabulary(lambda v: {**v, "symbols": [5]}), {}),
    "merges of three": (vocabulary(lambda v: {**v, "merges": [["a", "b", "c"]]}), {}),
    "a text of another width": ({f"{S0}condition/text": lambda t: t[..., :8]}, {}),
    "a text of one half": ({f"{S0}condition/text": lambda t: t[:1]}, {}),
    "another text at a step": ({f"{S1}condition/text": lambda t: t + 1}, {}),
    "a text in float64": ({f"{S1}condition/text": lambda t: t.astype(np.float64)}, {}),
    "no text": ({f"{S0}condition/text": None}, {}),
    "another time": ({f"{S1}condition/timestep": lambda t: t + 1}, {}),
    "an image of another size": ({"history/image": lambda a: a[:, :32]}, {}),
    "no image": ({"history/image": None}, {}),
    "an input of another size": ({f"{S0}canvas/input.x": lambda x: x[:, :4]}, {}),
    "latents of another size": ({f"{LAST}canvas/input.latents": lambda x: x[:, :4]}, {}),
    "latents of integers": ({f"{LAST}canvas/input.latents": lambda x: x.astype(np.int32)}, {}),
    "an encoder's input cut": ({"encoder/canvas/input.image": lambda x: x[:, :, :32]}, {}),
    "a layer of another size": ({"encoder/canvas/conv_in": lambda c: c[:, :8]}, {}),
    "tiles outside": ({"encoder/steps.tiles": put((0, 1), 99)}, {}),
    "stale latents outside": ({"history/tiles": put((0, 1), 4)}, {}),
    "values cut": ({f"{LAST}steps.values": lambda v: v[:-1]}, {}),
    "a masked image that the UNet does not read": (
        {},
        inner("states", lambda s: {"masked/": s["encoder/"], **s}),
    ),
    "no decoder": ({}, inner("states", without(LAST))),
    "the decoder first": ({}, inner("states", lambda s: dict(reversed(s.items())))),
    "a decoder of the encoder's model": (
        {},
        inner("states", lambda s: {**s, LAST: {**s[LAST], "model": "encoder"}}),
    ),
    "a state of no model": ({}, inner("states", lambda s: {**s, S1: {**s[S1], "model": "vae"}})),
    "an output that is none": ({}, inner("states", lambda s: {**s, S1: {**s[S1], "output": "conv_in"}})),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_file_is_refused(saved: bytes, tmp_path: Path, what: str) -> None:
    path = tmp_path / "forged.session"
    tensors, metadata = FORGED[what]
    forged(path, saved, tensors, metadata)
    refused(path)
    assert os.listdir(tmp_path) == ["forged.session"]


def test_the_forger_makes_files_that_are_taken(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "same.session"
    forged(path, saved, vocabulary(lambda v: v), of_session(margin=3))
    assert StableDiffusion.load(path, backend=BACKEND).margin == 3
    assert "sparsegen.session" in read_checkpoint(path).metadata
