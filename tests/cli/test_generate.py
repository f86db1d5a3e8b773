"""Images of texts, and edits that follow one, at the command line; mistakes included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sparsegen import LatentDiffusion, StableDiffusion, generate, load_bundle
from sparsegen.cli import main
from tests.weights import sd_files

SIZE = 32


def moderate(name: str, value: np.ndarray) -> np.ndarray:
    """Weights with which activations neither vanish nor explode; norms scale by about 1."""
    if value.ndim == 1:
        return np.float32(0.2) * value + np.float32(name.endswith("weight"))
    return value * np.float32(0.7 * np.prod(value.shape[1:]) ** -0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder with random weights, and images; no test changes them."""
    folder = tmp_path_factory.mktemp("texts")
    sd_files.pipeline(folder / "sd")
    for name, state in sd_files.STATES.items():
        sd_files.part(folder / "sd", name, {key: moderate(key, value) for key, value in state.items()})
    sd_files.part(folder, "unet")
    sd_files.lora(folder / "style.safetensors")
    photo = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    strokes = photo.copy()
    strokes[10:14, 8:14] = (200, 30, 30)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[8:20, 8:20] = 255
    maps = {"photo": photo, "strokes": strokes, "mask": mask, "odd": photo[:30]}
    for name, pixels in maps.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def models(made: Path) -> LatentDiffusion:
    return LatentDiffusion(load_bundle(made / "sd"), backend="reference")


@pytest.fixture
def files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of links to them, which is where we are."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path) -> list[str]:
    """The names of the files that are no links."""
    return sorted(path.name for path in folder.iterdir() if not path.is_symlink())


def run(command: str, *words: str) -> int:
    if command.startswith("inspect"):
        return main([*command.split(), *words])
    words = (*command.split(), "--backend", "reference", "-o", "out.png", *words)
    return main([*words, *(() if "--model" in words else ("--model", "sd"))])


def read(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.asarray(image)


def chunks(name: str) -> dict[str, str]:
    with Image.open(name) as image:
        return dict(image.text)


# -- what is computed ------------------------------------------------------------------------------------


def test_generate_writes_the_images_of_the_library(files, models, capsys):
    words = (
        "generate --size 32x32 --steps 2 --seed 3 --count 2 --preview-every 2 --guidance 3 --sampler euler"
    )
    assert run(words, "--prompt", "a lake = \u6e56", "--negative", "fog") == 0
    settings = {"steps": 2, "guidance": 3.0, "sampler": "euler", "negative": "fog"}
    expected = generate(models, "a lake = \u6e56", size=(SIZE, SIZE), seed=4, **settings)
    assert np.array_equal(read("out-seed4.png"), expected.image)
    assert written(files) == [
        "out-seed3-preview-02.png",
        "out-seed3.png",
        "out-seed4-preview-02.png",
        "out-seed4.png",
    ]
    # the last preview is the image
    assert np.array_equal(read("out-seed4-preview-02.png"), expected.image)
    found = chunks("out-seed4.png")
    assert found["parameters"].splitlines()[:2] == ["a lake = \u6e56", "Negative prompt: fog"]
    assert "Steps: 2, Sampler: euler, CFG scale: 3.0, Seed: 4, Size: 32x32, Model: sd" in found["parameters"]
    said = json.loads(found["sparsegen"])
    assert said["prompt"] == "a lake = \u6e56" and said["seed"] == 4 and said["size"] == [SIZE, SIZE]
    assert {name: said[name] for name in settings} == settings
    assert "prompt" in capsys.readouterr().out


def test_an_image_and_a_mask_are_those_of_the_library(files, models):
    words = "generate --prompt lake --steps 2 --image photo.png --mask mask.png --strength 0.5"
    assert run(words, "--lora", "style.safetensors=20") == 0
    adapted = LatentDiffusion(load_bundle("sd", lora={"style.safetensors": 20}), backend="reference")
    given = {"image": read("photo.png"), "mask": read("mask.png") > 0, "steps": 2, "strength": 0.5}
    expected = generate(adapted, "lake", **given).image
    assert np.array_equal(read("out.png"), expected)
    assert not np.array_equal(generate(models, "lake", **given).image, expected), "the LoRA has an effect"
    said = json.loads(chunks("out.png")["sparsegen"])
    assert said["lora"] == {"style.safetensors": 20} and said["mask"] == "mask.png"


def test_an_edit_follows_the_prompt_and_leaves_the_rest(files, models, capsys):
    words = "edit --prompt lake --original photo.png --edited strokes.png --steps 2 --strength 1 --margin 2"
    assert run(words, "--policy", "exact", "--seed", "5") == 0
    photo = read("photo.png")
    with StableDiffusion(models, "lake", steps=2, strength=1.0, margin=2, policy="exact", seed=5) as session:
        session.run(photo)
        expected = session.edit(read("strokes.png")).image
    found = read("out.png")
    assert np.array_equal(found, expected)
    inside = np.zeros((SIZE, SIZE), bool)
    inside[8:16, 6:16] = True
    assert np.array_equal(found[~inside], photo[~inside])
    said = json.loads(chunks("out.png")["sparsegen"])
    assert (said["prompt"], said["strength"], said["margin"], said["policy"]) == ("lake", 1.0, 2, "exact")
    shown = capsys.readouterr().out
    # PNDM, which the folder proposes, makes its first step twice
    assert "caches: 3 steps of" in shown and "edited area" in shown and "MACs" in shown


def test_a_mask_alone_is_painted_and_the_rest_keeps_its_bits(files, models):
    words = "edit --prompt lake --original photo.png --mask mask.png --steps 2 --sampler ddim"
    assert run(words, "--session", "kept.session") == 0
    photo, mask = read("photo.png"), read("mask.png") > 0
    with StableDiffusion(models, "lake", steps=2, sampler="ddim", strength=1.0) as session:
        session.run(photo)
        expected = session.edit(photo, mask=mask).image
        again = session.edit(expected, mask=mask).image
    found = read("out.png")
    assert np.array_equal(found, expected) and np.array_equal(found[~mask], photo[~mask])
    assert not np.array_equal(found, photo)
    said = json.loads(chunks("out.png")["sparsegen"])
    assert said["strength"] == 1.0 and said["weights"] == "the only weights"
    # and again, with the session's strength
    assert main(["edit", "--session", "kept.session", "--mask", "mask.png", "-o", "again.png"]) == 0
    assert np.array_equal(read("again.png"), again)


# -- sessions in files, and what files say ---------------------------------------------------------------


def test_a_session_goes_on_in_the_next_invocation(files, models, capsys):
    begin = (
        "edit --prompt lake --negative fog --original photo.png --edited strokes.png --steps 2 --strength 1"
    )
    assert run(begin, "--session", "kept.session", "--margin", "2") == 0
    with StableDiffusion(models, "lake", negative="fog", steps=2, strength=1.0, margin=2) as session:
        session.run(read("photo.png"))
        first = session.edit(read("strokes.png")).image
        assert np.array_equal(read("out.png"), first)
        second = first.copy()
        second[20:24, 20:26] = (20, 200, 30)
        Image.fromarray(second).save("second.png")
        expected = session.edit(second).image
    capsys.readouterr()
    words = ["edit", "--session", "kept.session", "--edited", "second.png", "-o", "b.png"]
    again = [*words, "--backend", "reference", "--prompt", "lake", "--strength", "1", "--model", "sd"]
    assert main(again) == 0
    assert "original:" not in capsys.readouterr().out  # it does not run again
    assert np.array_equal(read("b.png"), expected)
    assert json.loads(chunks("b.png")["sparsegen"])["prompt"] == "lake"
    assert main(["undo", "--session", "kept.session", "-o", "back.png"]) == 0
    assert np.array_equal(read("back.png"), first)
    capsys.readouterr()
    for given, message in {
        "--prompt": "--prompt x: the session in kept.session has lake",
        "--negative": "--negative x: the session in kept.session has fog",
        "--lora": "--lora: kept.session has its model already",
    }.items():
        Path("x").touch()
        assert main([*words, given, "x"]) == 2
        assert message in capsys.readouterr().err
    assert main([*words, "--guidance", "2"]) == 2
    assert "--guidance 2.0: the session in kept.session has 7.5" in capsys.readouterr().err
    # what the file says
    assert main(["inspect", "kept.session"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert rows["session"] == "Stable Diffusion" and rows["unet"] == "sd-unet"
    assert (rows["prompt"], rows["negative"], rows["strength"]) == ("lake", "fog", "1.0")
    assert rows["image"] == f"1 of {SIZE}×{SIZE}" and rows["edits"] == "1 to undo, 1 to redo, 0 forgotten"
    assert not {"settings", "proposed", "padding", "noise"} & rows.keys()  # a person has no use for them


def test_the_settings_in_an_image_are_shown(files, capsys):
    words = "generate --size 32x32 --steps 1 --sampler ddim"
    assert run(words, "--prompt", "a lake = \u6e56\x1b[2J", "--negative", "[red]fog") == 0
    capsys.readouterr()
    assert main(["inspect", "out.png"]) == 0
    shown = capsys.readouterr().out
    assert "a lake = \u6e56\\x1b[2J" in shown and "[red]fog" in shown and "\x1b" not in shown
    assert "32×32" in shown and "ddim" in shown
    info = PngInfo()
    info.add_text("parameters", "a castle\nSteps: 20, Seed: 5")
    Image.fromarray(read("photo.png")).save("other.png", pnginfo=info)
    assert main(["inspect", "other.png"]) == 0
    assert "a castle" in capsys.readouterr().out
    Path("cut.png").write_bytes(Path("out.png").read_bytes()[:200])
    assert main(["inspect", "cut.png"]) == 2
    assert "cut.png" in capsys.readouterr().err


# -- mistakes --------------------------------------------------------------------------------------------

GENERATE = "generate --prompt lake"
EDIT = "edit --original photo.png --edited strokes.png"
MISTAKES = {
    "a mask alone": (f"{GENERATE} --mask mask.png", "--mask: of an image; give the --image too"),
    "a strength alone": (f"{GENERATE} --strength 0.5", "--strength: of an image"),
    "two sizes": (f"{GENERATE} --image photo.png --size 32x32", "give --resize or --crop"),
    "a size that is not supported": (f"{GENERATE} --size 30x32", "multiples of 16"),
    "an image that is not supported": (f"{GENERATE} --image odd.png", "--resize auto or --crop auto"),
    "no such image": (f"{GENERATE} --image none.png", "none.png: no such file"),
    "no such sampler": (f"{GENERATE} --sampler fastest", "fastest"),
    "a strength of 0": (f"{GENERATE} --image photo.png --strength 0", "strength"),
    "too few steps for previews": (
        f"{GENERATE} --steps 2 --sampler ddim --preview-every 3",
        "there are 2 steps",
    ),
    "no such LoRA": (f"{GENERATE} --lora none.safetensors=1", "none.safetensors: no such file"),
    "a scale that is no number": (f"{GENERATE} --lora style.safetensors=much", "expected FILE=SCALE"),
    "a LoRA twice": (f"{GENERATE} --lora style.safetensors --lora style.safetensors=1", "given twice"),
    "another model": (f"{GENERATE} --model landscape", "landscape holds generator"),
    "a part": (f"{GENERATE} --model unet", "give the whole checkpoint"),
    "no prompt": ("generate", "--prompt"),
    "neither copy nor mask": (f"{EDIT.partition(' --edited')[0]} --prompt lake", "takes a --mask alone"),
    "a mask alone for label maps": (
        "edit --original photo.png --mask mask.png --model landscape",
        "--edited: missing; landscape is not Stable Diffusion",
    ),
    "an edit without a prompt": (EDIT, "--prompt: missing"),
    "an edit with a part": (f"{EDIT} --model unet --prompt lake", "holds one part of Stable Diffusion"),
    "inspecting an image without settings": ("inspect photo.png", "an image without settings"),
    "a noise level": (f"{EDIT} --prompt lake --noise-level 500", "has a --strength"),
    "label maps": (f"{EDIT} --prompt lake --unknown-label 3", "takes images"),
    "a prompt for label maps": (f"{EDIT} --prompt lake --model landscape", "--prompt: not for this model"),
    "a prompt for a DDPM": (f"{EDIT} --strength 0.5 --model landscape-ddpm", "which reads no text"),
    "a sample": ("sample", "see 'sparsegen generate --help'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(files, capsys, mistake):
    words, expected = MISTAKES[mistake]
    assert run(words) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and expected in line
    assert written(files) == []
