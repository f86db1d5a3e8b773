"""Images, strokes and diffusion models at the command line: as a user types it, mistakes included."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsegen import InputError, Paper, SDEdit, Session, images, loading
from sparsegen.backends import default_backend
from sparsegen.cli import console, main, strokes
from sparsegen.weights import builtin
from tests.networks import random_gaugan, random_labels
from tests.unets import SPARSE, picture, random_ddpm, random_pd, stroke

FIRST, SECOND = ((9, 14), (3, 4)), ((22, 3), (4, 5))
"""Top left and size of two strokes."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and images, written once; no test changes them."""
    folder = tmp_path_factory.mktemp("diffusion")
    loading.save(random_ddpm(), folder / "net.safetensors")
    loading.save(random_pd(), folder / "pd.safetensors")
    loading.save(random_ddpm(in_channels=4, out_channels=4), folder / "latents.safetensors")
    loading.save(random_ddpm(in_channels=1, out_channels=1), folder / "grey.safetensors")
    loading.save(random_gaugan(), folder / "gaugan.safetensors")
    rng = np.random.default_rng(3)
    photo = picture(rng)
    first = stroke(photo, *FIRST)
    layer = np.zeros((32, 32, 4), np.uint8)
    layer[22:26, 3:8] = (250, 5, 20, 255)
    maps = {
        "photo": photo,
        "first": first,
        "both": stroke(first, *SECOND),
        "layer": layer,
        "wide": picture(rng, (32, 64)),
        "odd": picture(rng, (31, 32)),
        "mask": np.pad(np.full((8, 8), 255, np.uint8), ((6, 18), (12, 12))),
        "labels": random_labels(rng, (32, 64)).astype(np.uint8),
    }
    for name, pixels in maps.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.fromarray(photo).save(folder / "photo.jpg")
    (folder / "text.png").write_text("not an image")
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of links to them, which is where we are."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path) -> list[str]:
    """What is there that is no link."""
    return sorted(path.name for path in folder.iterdir() if not path.is_symlink())


def edit(*words: str, model: str = "net.safetensors", edited: tuple[str, ...] = ("first",)) -> int:
    given = [word for name in edited for word in ("--edited", f"{name}.png")]
    return main(["edit", "--model", model, "--original", "photo.png", *given, "-o", "out.png", *words])


def read(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.asarray(image)


def said(name: str) -> dict[str, str]:
    """What a PNG says of how it was made."""
    with Image.open(name) as image:
        found = json.loads(image.text["sparsegen"])
    return {name: str(value) for name, value in found.items() if name != "version"}


# -- what is computed ------------------------------------------------------------------------------------


def test_edit_writes_what_the_library_computes(files, capsys):
    words = "--steps 4 --noise-level 300 --sampler ddim --eta 0.5 --seed 7 --margin 3 --policy exact"
    assert edit(*words.split()) == 0
    model = loading.load("net.safetensors")
    with SDEdit(model, steps=4, noise_level=300, eta=0.5, seed=7, margin=3) as session:
        session.run(read("photo.png"))
        expected = session.edit(read("first.png"), policy="exact")
    assert np.array_equal(read("out.png"), expected.image)
    assert not np.array_equal(expected.image, read("photo.png"))
    assert said("out.png") == {
        "model": "net.safetensors",
        "policy": "exact",
        "backend": default_backend(),
        "size": "[32, 32]",
        "seed": "7",
        "steps": "4",
        "noise_level": "300",
        "sampler": "ddim",
        "eta": "0.5",
        "schedule": "linear",
        "clip": "1.0",
        "margin": "3",
        "cache_storage": "float32",
    }
    shown = capsys.readouterr()
    assert "caches: 4 steps of" in shown.out and "edited area" in shown.out and "MACs" in shown.out
    assert shown.err == "" and written(files) == ["out.png"]


def test_what_is_not_said_is_the_familys(files):
    assert edit() == 0
    assert {key: said("out.png")[key] for key in ("steps", "noise_level", "sampler", "margin", "seed")} == {
        "steps": "25",
        "noise_level": "500",
        "sampler": "ddim",
        "margin": "5",
        "seed": "0",
    }
    assert edit(model="pd.safetensors") == 0
    assert (said("out.png")["sampler"], said("out.png")["steps"]) == ("pd", "8")


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++2m", "dpm++2m-karras", "euler", "euler-a", "pndm", "lcm"])
def test_every_sampler_and_schedule_can_be_named(files, sampler):
    assert edit("--steps", "3", "--sampler", sampler, "--schedule", "cosine") == 0
    with SDEdit(loading.load("net.safetensors"), steps=3, sampler=sampler, schedule="cosine") as session:
        session.run(read("photo.png"))
        assert np.array_equal(read("out.png"), session.edit(read("first.png")).image)


def test_several_edits_go_on_from_the_result(files):
    """What was painted since the file before is laid over the result: over strokes or over the result, it is one."""
    assert edit("--steps", "3", edited=("first", "both")) == 0
    with SDEdit(loading.load("net.safetensors"), steps=3) as session:
        session.run(read("photo.png"))
        one = session.edit(read("first.png")).image
        two = session.edit(stroke(one, *SECOND))
    assert np.array_equal(read("out-1.png"), one) and np.array_equal(read("out-2.png"), two.image)
    # the first stroke, real by now, is not recomputed: only what the second stroke's margin holds has changed
    changed = (read("out-2.png") != one).any(-1)
    assert changed[20:, :14].any() and not changed[:16].any()
    assert two.stats.edited_area == pytest.approx(20 / 1024)


def test_a_transparent_layer_lies_over_what_was_there(files):
    assert edit("--steps", "3", edited=("first", "layer")) == 0
    layered = read("out-2.png")
    assert edit("--steps", "3", edited=("first", "both")) == 0
    assert np.array_equal(layered, read("out-2.png"))


def test_a_mask_says_what_is_made_anew(files, capsys):
    assert edit("--steps", "3", "--mask", "mask.png", "--margin", "0", edited=("both",)) == 0
    changed = (read("out.png") != read("photo.png")).any(-1)
    assert changed[6:14, 12:20].any() and not changed[~(read("mask.png") > 0)].any()
    shown = capsys.readouterr()
    assert "20 changed pixels lie outside mask.png and were not applied" in shown.out
    assert shown.err == ""


def test_previews_are_the_predictions_of_their_steps(files):
    assert edit("--steps", "5", "--preview-every", "2", edited=("first", "both")) == 0
    found = [f"out-{edit}-preview-{step}.png" for edit in (1, 2) for step in ("02", "04")]
    assert written(files) == sorted(["out-1.png", "out-2.png", *found])
    seen = []
    model = loading.load("net.safetensors")
    with SDEdit(model, steps=5) as session:
        session.run(read("photo.png"))
        session.edit(read("first.png"), on_step=lambda step: seen.append(model.images(step.x0)[0]))
    assert np.array_equal(read("out-1-preview-02.png"), seen[1])
    assert np.array_equal(read("out-1-preview-04.png"), seen[3])
    assert said("out-1-preview-02.png")["steps"] == "5"


def test_caches_in_files_give_the_same_picture_and_leave_nothing(files, capsys, monkeypatch):
    assert edit("--steps", "3") == 0
    in_ram = read("out.png")
    (files / "caches").mkdir()
    seen, run = [], SDEdit.run

    def spy(self, *given, **named):
        result = run(self, *given, **named)
        seen.append((self.store.ram_bytes, self.store.file_bytes, self.store.folder.name))
        return result

    monkeypatch.setattr(SDEdit, "run", spy)
    assert edit("--steps", "3", "--ram", "0", "--cache-folder", "caches") == 0
    ((ram, on_disk, folder),) = seen
    assert ram == 0 and on_disk > 0 and folder == "caches"
    assert np.array_equal(read("out.png"), in_ram)
    assert list((files / "caches").iterdir()) == []
    assert "0.00 GB in RAM" in capsys.readouterr().out.split("caches: ")[2]


def test_caches_of_float16_take_half(files, capsys):
    sizes = []
    for storage in ("float32", "float16"):
        assert edit("--steps", "3", "--cache-storage", storage) == 0
        sizes.append(float(capsys.readouterr().out.partition("caches: 3 steps of ")[2].split()[0]))
    assert sizes[1] < 0.75 * sizes[0]


def test_grey_networks_take_pictures_as_grey(files):
    assert edit("--steps", "2", model="grey.safetensors") == 0
    grey = read("out.png")
    assert grey.shape == (32, 32, 3) and (grey == grey[..., :1]).all()
    outside = images.read_image("photo.png", channels=1)
    assert np.array_equal(grey[:3, :3, 0], outside[:3, :3, 0])


def test_direct_convolutions_and_weights_in_16_bits_can_be_asked_for(files, capsys):
    assert edit("--steps", "2") == 0
    plain = read("out.png").astype(int)
    for words in (["--direct"], ["--weights", "bfloat16"], ["--direct", "--weights", "bfloat16"]):
        code = edit("--steps", "2", *words)
        if default_backend() == "numba":
            assert code == 0 and np.abs(read("out.png") - plain).max() < 40
    assert edit("--direct", "--backend", "reference") == 2
    assert "'reference' takes no direct" in capsys.readouterr().err
    assert edit("--precision", "tf32", "--backend", "numba") == 2
    assert "precision is 'tf32'; choose one of float32, bfloat16" in capsys.readouterr().err


def test_jpegs_are_read_and_their_noise_is_pointed_out(files, capsys):
    words = ["edit", "--model", "net.safetensors", "--original", "photo.jpg", "-o", "out.png", "--steps", "2"]
    assert main([*words, "--edited", "photo.jpg"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*words, "--edited", "first.png"]) == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: first.png: ") and "PNG" in note


# -- progress --------------------------------------------------------------------------------------------


def test_a_bar_for_the_original_and_each_edit_goes_step_by_step(files, monkeypatch):
    bars: dict[str, list[tuple[int, str]]] = {}
    real = console.Progress

    class Watched(real):
        def update(self, task, **fields):
            bars.setdefault(self.tasks[task].description, []).append((fields["completed"], fields["doing"]))
            assert self.tasks[task].total == 3
            super().update(task, **fields)

    monkeypatch.setattr(console, "Progress", Watched)
    assert edit("--steps", "3", edited=("first", "both")) == 0
    steps = [(i, f"step {i} of 3") for i in (1, 2, 3)]
    assert bars == {"original": steps, "first.png": steps, "both.png": steps}


# -- mistakes --------------------------------------------------------------------------------------------

TINY = "edit --model net.safetensors --original photo.png --edited first.png -o o.png"
PD = TINY.replace("net.", "pd.")
LABELS = "edit --model gaugan.safetensors --original labels.png --edited labels.png -o o.png"
MISTAKES = {
    "no step": (f"{TINY} --steps 0", "steps is 0"),
    "more steps than timesteps": (
        f"{TINY} --steps 501",
        "steps is 501, expected a whole number from 1 to 500",
    ),
    "too much noise": (f"{TINY} --noise-level 1001", "noise_level is 1001"),
    "no noise": (f"{TINY} --noise-level 0", "noise_level is 0"),
    "an unknown sampler": (f"{TINY} --sampler heun", "heun"),
    "the sampler of another family": (
        f"{TINY} --sampler pd",
        "does not go with a model that is conditioned on timestep",
    ),
    "an unknown schedule": (f"{TINY} --schedule flat", "flat"),
    "a schedule for distillation": (f"{PD} --schedule cosine", "--schedule"),
    "too much eta": (f"{TINY} --eta 2", "eta is 2.0"),
    "eta of another sampler": (
        f"{TINY} --eta 1 --sampler euler",
        "eta is an option of sampler ddim, not of euler; omit it",
    ),
    "a negative margin": (f"{TINY} --margin -1", "margin is -1"),
    "a negative seed": (f"{TINY} --seed -1", "--seed"),
    "an amount that is none": (f"{TINY} --ram much", "'much' is not an amount of memory"),
    "a folder without files": (f"{TINY} --cache-folder .", "--cache-folder"),
    "a folder that is missing": (f"{TINY} --ram 0 --cache-folder nowhere", "nowhere"),
    "caches of bytes": (f"{TINY} --cache-storage int8", "unknown storage 'int8'; known: float32, float16"),
    "previews too seldom": (f"{TINY} --steps 4 --preview-every 5", "there are 4 steps"),
    "previews at no step": (f"{TINY} --preview-every 0", "--preview-every"),
    "a preview that is an input": (
        "edit --model net.safetensors --original photo.png --edited out-preview-02.png -o out.png "
        "--steps 4 --preview-every 2",
        "out-preview-02.png: is also an input",
    ),
    "a size that does not halve": (TINY.replace("photo", "odd").replace("first", "odd"), "odd.png: "),
    "another size": (
        TINY.replace("first", "wide"),
        "wide.png: 32×64, expected 32×32 (height × width) like photo.png",
    ),
    "another size after a good one": (f"{TINY} --edited wide.png", "wide.png: 32×64"),
    "an image that is none": (TINY.replace("first", "text"), "text.png"),
    "an image that is missing": (TINY.replace("photo", "nowhere"), "nowhere.png: no such file"),
    "an original that is transparent": (TINY.replace("photo", "layer"), "layer.png: has transparent pixels"),
    "a mask of another size": (
        f"{TINY} --mask wide.png",
        "wide.png: 32×64, expected 32×32 (height × width) like photo.png",
    ),
    "a model of latents": (TINY.replace("net.", "latents."), "takes 4 channels"),
    "an output that is an input": (TINY.replace("o.png", "first.png"), "also an input"),
    "an output in no folder": (TINY.replace("o.png", "no/o.png"), "no/o.png"),
    "a policy that is none": (f"{TINY} --policy magic", "magic"),
    "instances": (f"{TINY} --instances labels.png", "--instances: not for this model"),
    "instances of edits": (f"{TINY} --edited-instances labels.png", "--edited-instances: not for this model"),
    "steps of a GauGAN": (f"{LABELS} --steps 5 --ram 4GB", "--steps, --ram: not for this model"),
    "previews of a GauGAN": (f"{LABELS} --preview-every 5", "no diffusion model (gaugan)"),
    "an image for a GauGAN": (
        TINY.replace("net.", "gaugan."),
        "paints label maps (for images, give --model a diffusion model)",
    ),
    "weights that are none": (f"{TINY} --weights int8", "--weights"),
    "a folder that is no model": ("inspect .", "config.json"),
    "a model in an empty folder": (TINY.replace("net.safetensors", "."), "config.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(files, monkeypatch, capsys, mistake):
    words, expected = MISTAKES[mistake]
    if "out-preview-02" in words:
        shutil.copy("first.png", "out-preview-02.png")
    before = written(files)
    monkeypatch.setattr(Session, "run", lambda *_, **__: pytest.fail("worked before it looked"))
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("error: ") and expected in line, line
    assert written(files) == before


def test_what_cannot_fit_is_refused_with_its_plan(files, monkeypatch, capsys):
    monkeypatch.setattr(Session, "run", lambda *_, **__: pytest.fail("worked before it looked"))
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(strokes, "_ram", lambda: 1000)
    assert edit() == 2
    assert "25 steps of" in (line := capsys.readouterr().err) and "--ram 4GB" in line
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    assert edit("--ram", "0") == 2
    assert "25 steps of" in (line := capsys.readouterr().err) and "too little disk" in line
    assert written(files) == []


def test_the_ram_of_this_machine_is_known_where_the_system_says_it():
    ram = strokes._ram()
    assert ram is None or ram > 1 << 28


def test_a_preview_that_cannot_be_written_is_one_line_and_no_picture(files, monkeypatch, capsys):
    replace = os.replace

    def full(source, target):
        if "preview" in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", full)
    assert edit("--steps", "4", "--preview-every", "2") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "out-preview-02.png: cannot be written (No space left on device)" in line
    assert written(files) == []


def test_an_interrupt_leaves_nothing(files, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(SDEdit, "edit", interrupt)
    (files / "caches").mkdir()
    assert edit("--steps", "2", "--ram", "0", "--cache-folder", "caches") == 130
    assert written(files) == ["caches"] and not list((files / "caches").iterdir())
    assert capsys.readouterr().err == ""


# -- models in files and folders -----------------------------------------------------------------------


def test_inspect_and_convert_take_what_load_takes(files, capsys):
    assert main(["inspect", "net.safetensors"]) == 0
    assert "ddpm" in (shown := capsys.readouterr().out) and "mid.attn_1.q.weight" in shown
    assert main(["convert", "net.safetensors", "-o", "half.safetensors", "--dtype", "float16"]) == 0
    assert "ddpm" in capsys.readouterr().out
    assert edit("--steps", "2", model="half.safetensors") == 0


def test_nothing_is_written_over_a_file_of_the_folder_that_is_read(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "net.safetensors").write_bytes(b"weights")
    with pytest.raises(InputError, match="also an input"):
        console.check_writable(tmp_path / "unet" / "net.safetensors", inputs=[tmp_path])
    console.check_writable(tmp_path / "unet" / "other.safetensors", inputs=[tmp_path])


# -- the demo --------------------------------------------------------------------------------------------


@pytest.fixture
def built_in(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of built-in models in which `tiny-ddpm` is a random model with settings of its own."""
    folder = tmp_path / "builtin"
    (folder / "tiny-ddpm").mkdir(parents=True)
    shutil.copy(made / "net.safetensors", folder / "tiny-ddpm.safetensors")
    for name in ("photo", "first", "both"):
        shutil.copy(made / f"{name}.png", folder / "tiny-ddpm")
    edits = [{"file": f"{name}.png", "caption": f"{name} of it", "area": 0.01} for name in ("first", "both")]
    examples = [
        {"original": "both.png", "caption": "another", "demo": False, "edits": edits},
        {"original": "photo.png", "caption": "colours", "demo": True, "edits": edits},
    ]
    described = {"kind": "strokes", "examples": examples}
    (folder / "tiny-ddpm" / "examples.json").write_text(json.dumps(described))
    settings = {
        "sampling": {"steps": 4, "noise_level": 200, "sampler": "ddpm"},
        "paper": {"least_size": SPARSE.least_size, "dilation": 2},
    }
    (folder / "tiny-ddpm" / "settings.json").write_text(json.dumps(settings))
    monkeypatch.setattr(builtin, "FOLDER", folder)
    return folder


def test_a_built_in_model_brings_its_own_settings(files, built_in):
    model = loading.load("tiny-ddpm")
    assert (model.paper.least_size, model.paper.dilation, model.paper.sparse_levels) == (8, 2, 16)
    with SDEdit(model) as session:
        assert (session.settings.steps, session.settings.noise_level) == (4, 200)
        assert (session.settings.sampler, session.margin) == ("ddpm", 2)
    with SDEdit(model, steps=2, sampler="ddim") as session:
        assert (session.settings.steps, session.settings.sampler) == (2, "ddim")
    assert edit(model="tiny-ddpm") == 0
    assert (said("out.png")["steps"], said("out.png")["sampler"]) == ("4", "ddpm")
    assert random_ddpm().paper.least_size == 64


def test_a_saved_session_keeps_the_models_own_policy(files, built_in):
    photo = read("photo.png")
    with SDEdit(loading.load("tiny-ddpm"), steps=2) as session:
        session.run(photo)
        session.save("tiny.session")
        expected = session.edit(stroke(photo, *FIRST))
    with SDEdit.load("tiny.session") as session:
        found = session.edit(stroke(photo, *FIRST))
    assert np.array_equal(found.output, expected.output)
    assert found.stats.tiles == expected.stats.tiles
    assert found.stats.macs < found.stats.macs_dense


def test_the_demo_shows_the_edit_dense_and_sparse(files, built_in, capsys):
    assert main(["demo", "--model", "tiny-ddpm", "-o", "demo.png"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "tiny-ddpm: first of it",
        "edited area",
        "active tiles at 32×32",
        "active tiles at 16×16",
        "MACs",
        "dense edit, end to end",
        "for 4 steps",
        "sparse edit, end to end",
        "times as fast",
        "PSNR, sparse against dense",
        "where the strokes are",
        "canvases",
        "4 steps of",
    ):
        assert words in shown
    sheet = read("demo.png")
    panels = [sheet[38 : 38 + 256, 12 + i * 268 :][:, :256] for i in range(5)]
    assert sheet.shape == (38 + 256 + 12, 12 + 5 * 268, 3)
    assert np.array_equal(panels[0][::8, ::8], read("photo.png"))
    assert np.array_equal(panels[1][::8, ::8], read("first.png"))
    with SDEdit(loading.load("tiny-ddpm")) as session:
        session.run(read("photo.png"))
        assert np.array_equal(panels[2][::8, ::8], session.dense(read("first.png")).image)
        assert np.array_equal(panels[3][::8, ::8], session.edit(read("first.png")).image)
    # the tiles: everything but them is grey and dark
    assert panels[4][:16, :16].max() < 150 and panels[4][80:96, 112:144].max() > 150


def test_the_demo_says_what_is_wrong_before_it_works(files, built_in, monkeypatch, capsys):
    monkeypatch.setattr(Session, "run", lambda *_, **__: pytest.fail("worked before it looked"))
    for words in ("--policy magic", "-o no/demo.png", "-o demo.jpg", "--backend abacus"):
        assert main(["demo", "--model", "tiny-ddpm", *words.split()]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_pictures_of_the_built_in_model_are_small_edits_of_its_size():
    folder = builtin.FOLDER / "landscape-ddpm"
    described = json.loads((folder / "examples.json").read_text("utf-8"))
    settings = json.loads((folder / "settings.json").read_text("utf-8"))
    assert described["kind"] == "strokes" and len(described["examples"]) >= 4
    assert sum(example["demo"] for example in described["examples"]) == 1
    named = {"examples.json", "settings.json"}
    for example in described["examples"]:
        original = images.read_image(folder / example["original"])
        assert original.shape == (128, 128, 3)
        for change in example["edits"]:
            edited = images.read_image(folder / change["file"])
            area = (edited != original).any(-1).mean()
            assert 0.01 <= area <= 0.2 and area == pytest.approx(change["area"], abs=1e-4)
        named |= {example["original"], *(change["file"] for change in example["edits"])}
    assert named == {path.name for path in folder.iterdir()}
    with SDEdit(random_ddpm(), **settings["sampling"]) as session:
        assert len(session.times) == settings["sampling"]["steps"]
    assert Paper(**settings["paper"]).least_size < 64
