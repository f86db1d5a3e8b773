"""The built-in landscape-sd: its settings and examples, its images beside diffusers', its demo and its commands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsegen import LatentDiffusion, StableDiffusion, generate, images, load_bundle
from sparsegen.cli import main, text_demo
from sparsegen.weights import builtin

NAME = "landscape-sd"
SIZE = (128, 128)


@pytest.fixture(scope="module")
def known() -> builtin.BuiltIn:
    found = builtin.get(NAME)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def models() -> LatentDiffusion:
    return LatentDiffusion(load_bundle(NAME))


def read(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def said(path: Path | str) -> dict[str, object]:
    with Image.open(path) as image:
        return json.loads(image.text["sparsegen"])


# -- what comes with it ----------------------------------------------------------------------------------


def test_it_brings_its_settings_and_size(models):
    assert NAME in builtin.names()
    with StableDiffusion(models, "a lake") as session:
        settings = session.settings
    assert (settings.steps, settings.guidance, settings.sampler) == (25, 4.0, "ddim")
    assert models.usual_size == SIZE and models.diffusion.predicts == "v"


def test_its_examples_are_images_strokes_and_masks_of_its_size(known):
    assert len(known.prompts) == 10 and len(known.examples) >= 4
    strokes = masks = 0
    for example in known.examples:
        original = images.read_image(example.original)
        assert original.shape == (*SIZE, 3) and example.prompt
        for change in example.edits:
            assert change.prompt and change.caption
            if change.mask is None:
                edited = images.read_image(change.path, below=original)
                where = (edited != original).any(-1)
                strokes += 1
            else:
                assert change.path == example.original
                where = images.read_mask(change.mask)
                masks += 1
            assert where.shape == SIZE and 0.01 <= where.mean() <= 0.25
    assert strokes >= 4 and masks >= 2


@pytest.mark.torch
def test_its_images_are_those_of_diffusers(models):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from sparsegen.weights.training.sd_export import load, samples

    prompts = ["a lake in front of mountains, evening", "winter, firs"]
    expected = samples(load(builtin.FOLDER / NAME), prompts, seed=3, steps=4)
    found = generate(models, prompts, seed=3, steps=4).images
    # float32 sums in another order, and rounding to 8 bits
    assert np.abs(found.astype(int) - expected).max() <= 2


# -- what it makes ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_text_changes_the_image(models):
    winter, summer = (
        generate(models, f"{season}, trees, day", count=2).images[:, 80:].astype(float)
        for season in ("winter", "summer")
    )
    # of the ground: snow is brighter than grass, and grass is green
    assert winter.mean() > summer.mean() + 20
    greener = [(image[..., 1] - image[..., 2]).mean() for image in (summer, winter)]
    assert greener[0] > greener[1] + 20


@pytest.mark.slow
def test_a_sparse_edit_is_near_the_dense_one_and_leaves_the_rest(models, known):
    example = known.examples[0]
    original = images.read_image(example.original)
    for change in example.edits:
        painted = images.read_image(change.path, below=original)
        with StableDiffusion(models, change.prompt, strength=0.6) as session:
            session.run(original)
            dense, sparse = session.dense(painted).image, session.edit(painted)
        edited = (painted != original).any(-1)
        assert images.psnr(sparse.image[edited], dense[edited]) > 35
        assert sparse.stats.macs < 0.7 * sparse.stats.macs_dense
        outside = ~sparse.active.mask(whole_tiles=True)[0]
        assert np.array_equal(sparse.image[outside], original[outside])


# -- the demo and the commands ---------------------------------------------------------------------------


def test_the_demo_shows_texts_images_masks_and_strokes(known, tmp_path, monkeypatch, capsys):
    few = dataclasses.replace(known, prompts=known.prompts[:5], sampling={**known.sampling, "steps": 2})
    monkeypatch.setattr(builtin, "get", lambda name: few if name == NAME else None)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--model", NAME, "-o", "demo.png"]) == 0
    shown = capsys.readouterr().out
    for words in (
        f"{NAME}: texts, images, masks and strokes",
        "5 images of 128×128",
        "image to image",
        "inpainting",
        "strokes: dense edit, end to end",
        "strokes: PSNR, sparse against dense",
        "mask: sparse edit, end to end",
        "demo.png",
    ):
        assert words in shown
    height, width, _ = read("demo.png").shape
    # five rows of five images, each enlarged twice
    assert width > text_demo.COLUMNS * 256 and height > 5 * 256


def test_it_is_the_model_of_a_text_that_names_none(models, known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--prompt", "a lake", "--steps", "1", "-o", "lake.png"]) == 0
    assert np.array_equal(read("lake.png"), generate(models, "a lake", steps=1).image)
    assert (said("lake.png")["model"], said("lake.png")["guidance"]) == (NAME, 4.0)
    example = known.examples[0]
    files = ["--original", str(example.original), "--edited", str(example.edits[0].path)]
    assert main(["edit", "--prompt", "clouds", *files, "--steps", "2", "-o", "edit.png"]) == 0
    assert said("edit.png")["model"] == NAME


def test_an_unknown_model_is_told_of_it(capsys):
    assert main(["demo", "--model", "seascape"]) == 2
    assert f"built in: landscape, landscape-ddpm, {NAME}" in capsys.readouterr().err


def test_a_session_of_it_comes_back_with_its_settings(models, tmp_path):
    picture = np.zeros((*SIZE, 3), np.uint8)
    with StableDiffusion(models, "a lake", steps=2, strength=0.5) as session:
        session.run(picture)
        session.save(tmp_path / "lake.session")
    with StableDiffusion.load(tmp_path / "lake.session") as again:
        assert again.models.unet.sampling == models.unet.sampling
        assert again.settings == session.settings
