"""Sessions kept between invocations, variations and samples, as a user types them, mistakes included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sparsegen
from sparsegen import SDEdit, Session, loading
from sparsegen.cli import main
from sparsegen.weights import read_checkpoint, write_safetensors
from tests.networks import random_gaugan, random_labels, repaint
from tests.unets import picture, random_ddpm, random_pd, stroke


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and images, written once; no test changes them."""
    folder = tmp_path_factory.mktemp("sessions")
    loading.save(random_ddpm(), folder / "ddpm.safetensors")
    loading.save(random_pd(), folder / "pd.safetensors")
    loading.save(random_gaugan(), folder / "gaugan.safetensors")
    loading.save(
        random_gaugan(z_dim=4, start_cells=2, num_upsampling_layers="normal"), folder / "z.safetensors"
    )
    rng = np.random.default_rng(3)
    photo = picture(rng)
    first = stroke(photo, (9, 14))
    labels = random_labels(rng, (32, 64))
    maps = {
        "photo": photo,
        "first": first,
        "second": stroke(first, (22, 3), colour=90),
        "other": picture(rng),
        "labels": labels,
        "house": repaint(rng, labels),
        "tree": repaint(rng, labels),
    }
    for name, pixels in maps.items():
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of links to them, which is where we are."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.asarray(image)


STROKES = ["--model", "ddpm.safetensors", "--steps", "3"]
MAPS = ["--model", "gaugan.safetensors"]
KINDS = {
    "strokes": (STROKES, "photo.png", ["first.png", "second.png"]),
    "maps": (MAPS, "labels.png", ["house.png", "tree.png"]),
}


def edit(*words: str) -> int:
    return main(["edit", *words])


# -- a session in a file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_edits_go_on_where_the_last_invocation_ended(files, capsys, kind):
    options, original, (one, two) = KINDS[kind]
    chain = ["--original", original, "--edited", one, "--edited", two]
    assert edit(*options, *chain, "-o", "once.png") == 0
    begin = [*options, "--original", original, "--edited", one, "-o", "a.png", "--session", "kept.session"]
    assert edit(*begin) == 0
    assert "1 edit to undo" in capsys.readouterr().out
    assert edit("--edited", two, "-o", "b.png", "--session", "kept.session") == 0
    said = capsys.readouterr().out
    assert "2 edits to undo" in said and "original:" not in said  # nothing ran but the edit
    assert np.array_equal(read("a.png"), read("once-1.png"))
    assert np.array_equal(read("b.png"), read("once-2.png"))
    # the same words again are another edit of the session
    assert edit(*begin[:-4], "-o", "c.png", "--session", "kept.session") == 0
    for command, expected, left in (
        ("undo", "b.png", "2 edits to undo, 1 to redo"),
        ("undo", "a.png", "1 edit to undo, 2 to redo"),
        ("redo", "b.png", "2 edits to undo, 1 to redo"),
        ("undo", "a.png", "1 edit to undo, 2 to redo"),
    ):
        capsys.readouterr()
        assert main([command, "--session", "kept.session", "-o", "now.png"]) == 0
        assert np.array_equal(read("now.png"), read(expected))
        assert left in capsys.readouterr().out
    assert edit("--edited", two, "-o", "d.png", "--session", "kept.session") == 0
    assert "2 edits to undo, 0 to redo" in capsys.readouterr().out
    assert main(["redo", "--session", "kept.session"]) == 2
    assert "nothing to redo" in capsys.readouterr().err
    assert isinstance(sparsegen.open_session("kept.session"), {"strokes": SDEdit, "maps": Session}[kind])


def test_strokes_over_the_result_or_over_the_strokes_are_the_same_edit(files):
    """What was painted before is no news: it stays as it was made real."""
    assert (
        edit(*STROKES, "--original", "photo.png", "--edited", "first.png", "-o", "a.png", "--session", "s")
        == 0
    )
    result = read("a.png").copy()
    result[22:25, 3:7] = read("second.png")[22:25, 3:7]
    Image.fromarray(result).save("over.png")
    Path("t").write_bytes(Path("s").read_bytes())
    assert edit("--edited", "second.png", "-o", "b.png", "--session", "s") == 0
    assert main(["undo", "--session", "t"]) == 0
    assert main(["redo", "--session", "t"]) == 0  # there and back is nothing
    Path("u").write_bytes(Path("t").read_bytes())
    assert edit("--edited", "second.png", "-o", "d.png", "--session", "u") == 0
    assert np.array_equal(read("b.png"), read("d.png"))
    assert edit("--edited", "over.png", "-o", "c.png", "--session", "t") == 0
    assert np.array_equal(read("b.png"), read("c.png"))


def test_a_transparent_layer_lies_over_what_was_painted_before(files):
    """In one invocation or in several, after a stroke or after an undo."""
    layer = np.zeros((32, 32, 4), np.uint8)
    layer[20:26, 20:26] = (20, 250, 20, 255)
    Image.fromarray(layer).save("layer.png")
    begin = [*STROKES, "--original", "photo.png", "--edited", "first.png"]
    assert edit(*begin, "--edited", "layer.png", "--edited", "second.png", "-o", "once.png") == 0
    assert edit(*begin, "-o", "a.png", "--session", "s") == 0
    Path("t").write_bytes(Path("s").read_bytes())
    assert edit("--edited", "layer.png", "-o", "b.png", "--session", "s") == 0
    assert edit("--edited", "second.png", "-o", "c.png", "--session", "s") == 0
    for name, expected in (("a", "once-1"), ("b", "once-2"), ("c", "once-3")):
        assert np.array_equal(read(f"{name}.png"), read(f"{expected}.png")), name
    # taken back, the image itself is what lies below
    assert main(["undo", "--session", "t"]) == 0
    assert edit("--edited", "layer.png", "-o", "d.png", "--session", "t") == 0
    assert edit(*STROKES, "--original", "photo.png", "--edited", "layer.png", "-o", "e.png") == 0
    assert np.array_equal(read("d.png"), read("e.png"))


def test_a_session_keeps_the_label_of_unknown_pixels(files, capsys):
    unknown = read("labels.png").copy()
    unknown[3, 7:9] = 255
    Image.fromarray(unknown).save("unknown.png")
    words = ["-o", "a.png", "--session", "s"]
    assert (
        edit(*MAPS, "--original", "unknown.png", "--edited", "house.png", *words, "--unknown-label", "1") == 0
    )
    assert edit("--edited", "tree.png", *words) == 0
    assert edit("--edited", "tree.png", *words, "--unknown-label", "1") == 0
    capsys.readouterr()
    assert edit("--edited", "tree.png", *words, "--unknown-label", "2") == 2
    assert "--unknown-label 2: the session in s has 1; omit it" in capsys.readouterr().err
    # where the original has none, an edit may have some
    assert (
        edit(*MAPS, "--original", "labels.png", "--edited", "house.png", "-o", "b.png", "--session", "t") == 0
    )
    assert edit("--edited", "unknown.png", "-o", "b.png", "--session", "t", "--unknown-label", "2") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--original", "other.png"],
            "other.png: is not the original that the session kept.session was made of",
        ),
        (["--steps", "5"], "--steps 5: the session in kept.session has 3; omit it"),
        (["--seed", "7"], "--seed 7: the session in kept.session has 0"),
        (
            ["--model", "pd.safetensors"],
            "--model pd.safetensors: the session in kept.session has ddpm.safetensors",
        ),
        (["--cache-storage", "float16"], "--cache-storage float16: the session in kept.session has float32"),
        (["--set", "eps=0.1"], "--set: kept.session has its model already; omit it"),
        (["--count", "2"], "--count: each variation is a session; omit --session"),
        (["--instances", "labels.png"], "--instances: not for this model"),
        (["--undo", "much"], "'much' is not an amount of memory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_session_has_already_is_not_said_otherwise(files, capsys, words, message):
    assert (
        edit(
            *STROKES,
            "--original",
            "photo.png",
            "--edited",
            "first.png",
            "-o",
            "a.png",
            "--session",
            "kept.session",
        )
        == 0
    )
    before = Path("kept.session").read_bytes()
    capsys.readouterr()
    assert edit("--edited", "second.png", "-o", "b.png", "--session", "kept.session", *words) == 2
    assert message in capsys.readouterr().err
    assert Path("kept.session").read_bytes() == before and not Path("b.png").exists()
    same = ["--model", "ddpm.safetensors", "--steps", "3", "--seed", "0", "--original", "photo.png"]
    assert edit("--edited", "second.png", "-o", "b.png", "--session", "kept.session", *same) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--session", "photo.png"], "photo.png: is also an input"),
        (["--session", "first.session"], "a new session needs an original; give --original"),
        (["--session", "text"], "text: is in an unknown format"),
        (["--session", "nowhere/kept"], "the folder nowhere does not exist"),
        ([], "--original: missing"),
    ],
    ids=str,
)
def test_a_session_that_cannot_begin_is_said(files, capsys, words, message):
    Path("text").write_text("no session at all")
    original = ["--original", "photo.png"] if "photo.png" in words else []
    assert edit(*STROKES, *original, "--edited", "first.png", "-o", "a.png", *words) == 2
    assert message in capsys.readouterr().err
    assert not Path("a.png").exists() and Path("text").read_text() == "no session at all"


def test_no_output_takes_the_place_of_what_a_session_needs(files, capsys):
    Image.fromarray(read("photo.png")).save("mine.png")
    begin = [*STROKES, "--original", "mine.png", "--edited", "first.png"]
    assert edit(*begin, "-o", "same.png", "--session", "same.png") == 2
    assert "is also an output" in capsys.readouterr().err and not Path("same.png").exists()
    assert edit(*begin, "-o", "a.png", "--session", "s") == 0
    before = Path("mine.png").read_bytes()
    for words in (
        ["edit", "--edited", "second.png", "-o", "mine.png", "--session", "s"],
        ["undo", "-o", "mine.png", "--session", "s"],
        ["undo", "-o", "s", "--session", "s"],
    ):
        assert main(words) == 2
    assert Path("mine.png").read_bytes() == before and sparsegen.open_session("s").edits == 1
    assert capsys.readouterr().err.count("is also an input") == 2


def test_a_session_that_python_saved_goes_on(files, capsys):
    """Without our notes: its original must be given, and must be of its size."""
    session = SDEdit(sparsegen.load("ddpm.safetensors"), steps=2)
    session.run(picture(np.random.default_rng(0), (16, 16)))
    session.notes = {"painted": "mine"}
    session.save("python.session")
    words = ["--edited", "first.png", "-o", "a.png", "--session", "python.session"]
    assert edit(*words) == 2
    assert "does not record its original; give --original" in capsys.readouterr().err
    assert edit(*words, "--original", "photo.png") == 2
    assert "photo.png: is 32×32, expected 16×16, the size of the session's image" in capsys.readouterr().err
    maps = Session(sparsegen.load("gaugan.safetensors"))
    maps.run(random_labels(np.random.default_rng(0), (64, 64)))
    maps.save("maps.session")
    words = ["--edited", "house.png", "-o", "a.png", "--session", "maps.session", "--original", "labels.png"]
    assert edit(*words) == 2
    assert "labels.png: is 32×64, expected 64×64, the size of the session's maps" in capsys.readouterr().err
    assert not Path("a.png").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_of_a_session_is_described(files, capsys, kind):
    options, original, (one, _) = KINDS[kind]
    assert edit(*options, "--original", original, "--edited", one, "-o", "a.png", "--session", "s") == 0
    capsys.readouterr()
    assert main(["inspect", "s"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert (rows["session"], rows["model"]) == {"strokes": ("SDEdit", "ddpm"), "maps": ("Session", "gaugan")}[
        kind
    ]
    assert rows["edits"] == "1 to undo, 0 to redo, 0 forgotten"
    assert rows["image"] == {"strokes": "1 of 32×32", "maps": "1 of 32×64"}[kind]
    file = read_checkpoint("s")
    tensors = {name: np.array(tensor.numpy()) for name, tensor in file.tensors.items()}
    for name, value, message in (
        ("session", "6", "session format 6; this version of sparsegen reads 7"),
        ("history", "[]", "does not describe a session"),
        ("settings", "[" * 100000, "does not describe a session"),
    ):
        write_safetensors("t", tensors, {**file.metadata, f"sparsegen.{name}": value})
        assert main(["inspect", "t"]) == 2
        assert message in capsys.readouterr().err


def test_a_session_undone_in_python_is_painted_as_it_stands(files):
    assert (
        edit(*STROKES, "--original", "photo.png", "--edited", "first.png", "-o", "a.png", "--session", "s")
        == 0
    )
    session = sparsegen.open_session("s")
    session.undo()
    session.save("s")
    assert edit("--edited", "first.png", "-o", "b.png", "--session", "s") == 0
    assert np.array_equal(read("a.png"), read("b.png"))


def test_a_session_keeps_what_its_original_was_read_with(files, capsys):
    begin = [*STROKES, "--original", "photo.png", "--edited", "first.png", "-o", "a.png", "--session", "s"]
    assert edit(*begin, "--crop", "16x24", "--resize", "32x48") == 0
    go_on = ["--edited", "second.png", "-o", "b.png", "--session", "s"]
    assert edit(*go_on) == 0
    assert read("b.png").shape == (32, 48, 3)
    capsys.readouterr()
    assert edit(*go_on, "--resize", "16x24") == 2
    assert "--resize 16x24: the session in s has 32x48; omit it" in capsys.readouterr().err
    assert edit(*go_on, "--crop", "16x24") == 0


def test_instances_of_a_session_without_are_said(files, capsys):
    assert (
        edit(*MAPS, "--original", "labels.png", "--edited", "house.png", "-o", "a.png", "--session", "s") == 0
    )
    words = ["--edited", "tree.png", "-o", "b.png", "--session", "s", "--instances", "house.png"]
    assert edit(*words) == 2
    assert not Path("b.png").exists()


def test_an_interrupted_edit_saves_what_was_done_before(files, monkeypatch):
    real, calls = SDEdit.edit, []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(SDEdit, "edit", interrupted)
    chain = ["--original", "photo.png", "--edited", "first.png", "--edited", "second.png"]
    assert edit(*STROKES, *chain, "-o", "a.png", "--session", "kept.session") == 130
    assert sparsegen.open_session("kept.session").edits == 1


def test_an_original_that_is_gone_is_said(files, capsys):
    Image.fromarray(read("photo.png")).save("here.png")
    assert (
        edit(*STROKES, "--original", "here.png", "--edited", "first.png", "-o", "a.png", "--session", "s")
        == 0
    )
    Path("here.png").unlink()
    assert edit("--edited", "second.png", "-o", "b.png", "--session", "s") == 2
    assert (said := capsys.readouterr().err).startswith("error: s: its original /")
    assert said.endswith("here.png does not exist; give --original\n")
    # another file with the same pixels is the same original
    assert edit("--original", "photo.png", "--edited", "second.png", "-o", "b.png", "--session", "s") == 0


def test_what_was_done_before_a_failure_is_saved(files, capsys, monkeypatch):
    real, calls = SDEdit.edit, []

    def failing(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return real(self, *arguments, **options)

    monkeypatch.setattr(SDEdit, "edit", failing)
    chain = ["--original", "photo.png", "--edited", "first.png", "--edited", "second.png"]
    assert edit(*STROKES, *chain, "-o", "a.png", "--session", "kept.session") == 2
    assert "memory" in capsys.readouterr().err and Path("a-1.png").exists() and not Path("a-2.png").exists()
    assert sparsegen.open_session("kept.session").edits == 1


@pytest.mark.parametrize("command", ["undo", "redo"])
def test_walking_without_a_session_is_said(files, capsys, command):
    assert main([command, "--session", "none.session"]) == 2
    assert (
        "none.session: no such file; sparsegen edit --session none.session makes it"
        in capsys.readouterr().err
    )
    assert main([command, "--session", "ddpm.safetensors"]) == 2
    assert "ddpm.safetensors" in capsys.readouterr().err
    assert main([command]) == 2


# -- variations ------------------------------------------------------------------------------------------


def test_variations_are_the_pictures_of_their_seeds(files, capsys):
    words = [*STROKES, "--original", "photo.png", "--edited", "first.png"]
    assert edit(*words, "-o", "v.png", "--count", "3", "--seed", "4", "--preview-every", "2") == 0
    for seed in (4, 5, 6):
        assert edit(*words, "-o", "alone.png", "--seed", str(seed)) == 0
        assert np.array_equal(read("alone.png"), read(f"v-seed{seed}.png"))
        assert Path(f"v-seed{seed}-preview-02.png").exists()
        with Image.open(f"v-seed{seed}.png") as image:
            assert f'"seed": {seed},' in image.text["sparsegen"]
    assert not np.array_equal(read("v-seed4.png"), read("v-seed5.png"))
    assert edit(*words, "--edited", "second.png", "-o", "w.png", "--count", "2") == 0
    assert [Path(f"w-seed{seed}-{i}.png").exists() for seed in (0, 1) for i in (1, 2)] == [True] * 4


def test_variations_of_a_label_map_are_of_its_latent_vector(files, capsys):
    words = ["--model", "z.safetensors", "--original", "labels.png", "--edited", "house.png"]
    assert edit(*words, "-o", "v.png", "--count", "2", "--seed", "3") == 0
    assert edit(*words, "-o", "alone.png", "--seed", "4") == 0
    assert np.array_equal(read("alone.png"), read("v-seed4.png"))
    assert not np.array_equal(read("v-seed3.png"), read("v-seed4.png"))
    assert edit(*MAPS, *words[2:], "-o", "x.png", "--count", "2") == 2
    assert "--count: this model starts from the label map" in capsys.readouterr().err
    assert edit(*words, "-o", "y.png", "--session", "z.session", "--seed", "3") == 0
    assert edit("--edited", "tree.png", "-o", "y.png", "--session", "z.session", "--seed", "4") == 2
    assert "--seed 4: the session in z.session has 3" in capsys.readouterr().err


# -- samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ddpm.safetensors", "pd.safetensors"])
def test_samples_are_those_of_the_library(files, capsys, model):
    words = ["sample", "--model", model, "--size", "16x24", "--steps", "3", "--seed", "5"]
    assert main([*words, "-o", "s.png", "--count", "2"]) == 0
    assert main([*words, "-o", "one.png"]) == 0
    drawn = sparsegen.sample(sparsegen.load(model), size=(16, 24), steps=3, seed=5, count=2)
    for seed, image in zip((5, 6), drawn.images, strict=True):
        assert np.array_equal(read(f"s-seed{seed}.png"), image)
    assert np.array_equal(read("one.png"), drawn.image)
    said = capsys.readouterr().out
    assert "settings" in said and "s-seed6.png: seed 6" in said and "16×24" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "gaugan.safetensors"], "no diffusion model (gaugan); sample needs one"),
        (["--model", "ddpm.safetensors"], "the size that it was trained on is unknown; give --size"),
        (["--model", "ddpm.safetensors", "--size", "15x16"], "multiples of 2"),
        (["--model", "ddpm.safetensors", "--size", "16"], "--size 16: expected HEIGHTxWIDTH"),
        (["--model", "ddpm.safetensors", "--size", "16x16", "--sampler", "pd"], "does not go with"),
        (["--model", "ddpm.safetensors", "--size", "16x16", "--count", "0"], "count"),
        (["--model", "ddpm.safetensors", "--size", "16x16", "-o", "x.jpg"], "written as PNG"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_sampled_is_said(files, capsys, words, message):
    assert main(["sample", "-o", "s.png", *words]) == 2
    assert message in capsys.readouterr().err and not Path("s.png").exists()


def test_the_settings_really_used_are_printed(files, capsys):
    words = ["--original", "photo.png", "--edited", "first.png", "-o", "a.png"]
    assert edit(*STROKES, *words, "--sampler", "dpm++2m", "--margin", "3") == 0
    said = " ".join(capsys.readouterr().out.split())
    for row in (
        "model ddpm.safetensors: ddpm, 0.04 M parameters",
        "policy fast",
        "size 32×32",
        "steps 3",
        "noise level 500",
        "sampler dpm++2m",
        "schedule linear",
        "seed 0",
        "margin 3",
        "cache storage float32",
    ):
        assert row in said
    assert (
        edit(*MAPS, "--original", "labels.png", "--edited", "house.png", "-o", "a.png", "--policy", "exact")
        == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "model gaugan.safetensors: gaugan, 0.10 M parameters" in said and "policy exact" in said
