"""The files of an edit at the command line: fitted to the model, and named in errors and notes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsegen import SDEdit, Session, images, loading
from sparsegen.cli import main
from sparsegen.images import Frame
from sparsegen.weights import builtin
from tests.images.image_files import empty_png, indexed, turned
from tests.networks import random_gaugan, random_labels, repaint
from tests.unets import picture, random_ddpm, stroke


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and files, written once; no test changes them."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(11)
    loading.save(random_gaugan(), folder / "maps.safetensors")
    loading.save(random_gaugan(z_dim=3, start_cells=2), folder / "fixed.safetensors")
    loading.save(random_gaugan(edge_channel=True, semantic_nc=5), folder / "edges.safetensors")
    loading.save(random_ddpm(), folder / "net.safetensors")
    first = random_labels(rng, (50, 90))
    maps = {"lake": first, "house": repaint(rng, first), "small": random_labels(rng, (32, 64))}
    maps["thin"] = first[:20]
    maps["fit"], maps["unknown"] = maps["small"], maps["small"].copy()
    maps["unknown"][3, 7:9] = 255
    maps["strange"] = maps["small"].copy()
    maps["strange"][3, 7] = 40
    for name, labels in maps.items():
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(first.astype(np.uint8)).save(folder / "lossy.png", "JPEG", quality=100)
    photo = picture(rng, (33, 45))
    fit = picture(rng, (32, 32))
    for name, pixels in {
        "photo": photo,
        "painted": stroke(photo, (9, 14), (5, 6)),
        "square": fit,
        "stroke": stroke(fit, (9, 14), (3, 4)),
    }.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    masks = {
        "mask": np.pad(np.full((20, 30), 255, np.uint8), ((10, 20), (20, 40))),
        "photomask": np.pad(np.full((12, 12), 255, np.uint8), ((6, 15), (12, 21))),
        "full": np.full((32, 32), 255, np.uint8),
        "corner": np.pad(np.full((3, 4), 255, np.uint8), ((0, 30), (0, 41))),
        "faint": np.eye(32, dtype=np.uint8),
    }
    for name, mask in masks.items():
        Image.fromarray(mask).save(folder / f"{name}.png")
    layer = np.zeros((32, 32, 4), np.uint8)
    Image.fromarray(layer).save(folder / "clear.png")
    (folder / "large.png").write_bytes(empty_png(14000, 14000))
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of links to them, which is where we are."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(words: str) -> int:
    return main(["edit", *words.split(), "-o", "out.png"])


def read(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.asarray(image)


# -- sizes -----------------------------------------------------------------------------------------------

SIZES = {
    "--resize 64x32": Frame((50, 90), (50, 90), (64, 32)),
    "--resize auto": Frame((50, 90), (50, 90), (64, 96)),
    "--crop auto": Frame((50, 90), (32, 64), (32, 64)),
    "--crop 32x64": Frame((50, 90), (32, 64), (32, 64)),
    "--crop 50x50 --resize 32×32": Frame((50, 90), (50, 50), (32, 32)),
    "--crop 40x70 --resize auto": Frame((50, 90), (40, 70), (32, 64)),
    "--crop 40x70 --resize 64x96": Frame((50, 90), (40, 70), (64, 96)),
}


@pytest.mark.parametrize("words", SIZES)
def test_maps_instances_and_masks_are_fitted_alike(files, words):
    frame = SIZES[words]
    given = "--original lake.png --edited house.png --instances house.png --edited-instances lake.png"
    given += f" --mask mask.png --policy exact {words}"
    assert edit(f"--model edges.safetensors {given}") == 0
    lake, house = (frame.nearest(images.read_labels(f"{name}.png"), name) for name in ("lake", "house"))
    session = Session(loading.load("edges.safetensors"))
    session.run(lake, instances=house)
    mask = frame.nearest(read("mask.png") > 0, "mask.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what lies outside the mask
        expected = session.edit(house, instances=lake, mask=mask, policy="exact")
    assert expected.image.shape[:2] == frame.size and np.array_equal(read("out.png"), expected.image)


@pytest.mark.parametrize(
    ("words", "frame"),
    [
        ("--resize 32x48", Frame((33, 45), (33, 45), (32, 48))),
        ("--resize auto", Frame((33, 45), (33, 45), (34, 46))),
        ("--crop auto", Frame((33, 45), (32, 44), (32, 44))),
        ("--crop 33x33 --resize 16x16", Frame((33, 45), (33, 33), (16, 16))),
        ("--crop 20x30 --resize 34x46", Frame((33, 45), (20, 30), (34, 46))),
    ],
)
def test_pictures_are_fitted_smoothly(files, words, frame):
    given = "--model net.safetensors --original photo.png --edited painted.png --mask photomask.png --steps 2"
    assert edit(f"{given} {words}") == 0
    photo, painted = (images.read_image(f"{name}.png", frame=frame) for name in ("photo", "painted"))
    with SDEdit(loading.load("net.safetensors"), steps=2) as session:
        session.run(photo)
        mask = images.read_mask("photomask.png", frame=frame)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            expected = session.edit(painted, mask=mask)
    assert np.array_equal(read("out.png"), expected.image)


def test_the_middle_may_be_enlarged_to_the_size_of_the_file(files):
    words = "--model maps.safetensors --policy exact --crop 16x32 --resize 32x64 --original small.png"
    assert edit(f"{words} --edited fit.png") == 0
    middle = images.read_labels("small.png")[8:24, 16:48].repeat(2, 0).repeat(2, 1)
    assert np.array_equal(read("out.png"), Session(loading.load("maps.safetensors")).run(middle).image)


def test_what_was_painted_over_a_result_needs_no_fitting(files):
    given = "--model net.safetensors --original photo.png --steps 2 --crop 33x33 --resize 32x32"
    assert edit(f"{given} --edited painted.png") == 0
    Image.fromarray(stroke(read("out.png"), (2, 3), (3, 3))).save("again.png")
    assert edit(f"{given} --edited again.png") == 0
    assert read("out.png").shape == (32, 32, 3)


def test_turned_files_are_fitted_as_they_stand_upright(files):
    """A phone's label map, mask and image lie on their side in the file."""
    for name in ("lake", "house", "mask"):
        turned(Image.fromarray(np.rot90(read(f"{name}.png"))), 6, files / f"{name}-turned.png")
    words = "--model maps.safetensors --policy exact --crop auto"
    assert edit(f"{words} --original lake.png --edited house.png --mask mask.png") == 0
    upright = read("out.png")
    assert edit(f"{words} --original lake-turned.png --edited house-turned.png --mask mask-turned.png") == 0
    assert np.array_equal(read("out.png"), upright)


# -- labels ----------------------------------------------------------------------------------------------


def test_unknown_pixels_become_the_label_that_is_given(files):
    words = "--model maps.safetensors --original small.png --edited unknown.png --policy exact"
    assert edit(f"{words} --unknown-label 2") == 0
    labels = images.read_labels("unknown.png", unknown_label=2)
    assert labels.max() < 4
    assert np.array_equal(read("out.png"), Session(loading.load("maps.safetensors")).run(labels).image)


def test_unknown_pixels_of_an_indexed_map_become_the_label_that_is_given(files, capsys):
    """Their colour is none of the original's."""
    colours = builtin.get("landscape").labels.palette
    small, unknown = (images.read_labels(f"{name}.png") for name in ("small", "unknown"))
    indexed(small, colours[:4]).save("first.png")
    indexed(unknown, [*colours[:4], *[(0, 0, 0)] * 251, (224, 224, 192)]).save("void.png")
    words = "--model maps.safetensors --original first.png --edited void.png --policy exact"
    assert edit(words) == 2
    assert "(index 255, 'unknown': map it with unknown_label, --unknown-label)" in capsys.readouterr().err
    assert edit(f"{words} --unknown-label 2") == 0
    labels = np.where(unknown == 255, 2, unknown)
    assert np.array_equal(read("out.png"), Session(loading.load("maps.safetensors")).run(labels).image)


def test_a_reordered_palette_changes_nothing(files, capsys):
    """Original, edited or both, of a model with a palette and of one without."""
    known = builtin.get("landscape")
    folder, colours = builtin.FOLDER / "landscape", known.labels.palette
    order = np.random.default_rng(5).permutation(len(colours))
    for name in ("lake", "lake-house"):
        labels = images.read_labels(folder / f"{name}.png")
        image = indexed(np.argsort(order)[labels], [colours[label] for label in order])
        image.save(files / f"{name}-moved.png")
        image.convert("RGB").save(files / f"{name}-rgb.png")
    words = "--model landscape --policy exact"
    assert edit(f"{words} --original {folder}/lake.png --edited {folder}/lake-house.png") == 0
    expected = read("out.png")
    for first, second in (("lake-moved", "lake-house-moved"), ("lake-rgb", "lake-house-moved")):
        assert edit(f"{words} --original {first}.png --edited {second}.png") == 0
        assert np.array_equal(read("out.png"), expected)
    # without a palette of the model, the original's numbering is meant
    small = images.read_labels("small.png")
    indexed(small, colours[:4]).save(files / "indexed.png")
    indexed(3 - repaint(np.random.default_rng(3), small), colours[3::-1]).save(files / "edited.png")
    assert edit("--model maps.safetensors --policy exact --original indexed.png --edited edited.png") == 0
    labels = images.read_labels("edited.png", like="indexed.png")
    assert 0 < (labels != small).mean() < 0.5
    assert np.array_equal(read("out.png"), Session(loading.load("maps.safetensors")).run(labels).image)


# -- notes -----------------------------------------------------------------------------------------------

DIFFUSION = "--model net.safetensors --steps 2"


def test_a_mask_of_everything_is_noted(files, capsys):
    assert edit(f"{DIFFUSION} --original square.png --edited stroke.png --mask full.png") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: full.png: 100.0% of the pixels are masked")


def test_the_note_on_loss_names_the_lossy_file(files, capsys):
    rng = np.random.default_rng(1)
    noisy = np.clip(read("square.png") + rng.integers(-9, 9, (32, 32, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save("original.png", "JPEG")  # what a file is, its content says
    Image.fromarray(read("stroke.png")).save("edited.png", "JPEG", quality=50)
    words = f"{DIFFUSION} --original original.png --edited stroke.png"
    assert edit(words) == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: stroke.png: ") and "original.png is saved as JPEG" in note
    assert "Save it as PNG, paint on that" in note and note.endswith("or give a --mask")
    assert edit(f"{DIFFUSION} --original square.png --edited edited.png") == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: edited.png: ") and "it is saved as JPEG" in note
    # the file before is what an edited one is compared with
    assert edit(f"{DIFFUSION} --original square.png --edited edited.png --edited stroke.png") == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("note: edited.png: ") and "edited.png is saved as JPEG" in second
    # much was repainted, nothing is lossy; or a mask says what counts
    Image.fromarray(noisy).save("noisy.png")
    assert edit(f"{DIFFUSION} --original square.png --edited noisy.png") == 0
    assert edit(f"{words} --mask full.png") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "masked" in line


def test_a_difference_that_is_not_computed_is_no_loss(files, capsys):
    """Decoders differ by 1 in 255, which the model's family ignores; by 3, nearly everything is recomputed."""
    Image.fromarray(read("square.png")).save("original.jpg", quality=95)
    decoded, rng = read("original.jpg").astype(int), np.random.default_rng(6)
    some = rng.random((32, 32, 1)) < 0.1
    for change, share in ((1, ""), (some * 3, "of it is recomputed"), (3, "100% of it is recomputed")):
        Image.fromarray(np.clip(decoded + change, 0, 255).astype(np.uint8)).save("edited.png")
        assert edit(f"{DIFFUSION} --original original.jpg --edited edited.png") == 0
        said = capsys.readouterr().err
        assert share in said and bool(share) == ("original.jpg is saved as JPEG" in said)


BROKEN = b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12"
"""EXIF data that Pillow warns of."""


def test_a_file_has_its_note_once_however_often_it_is_compared(files, capsys):
    for name in ("small", "fit"):
        Image.fromarray(read(f"{name}.png")).save(f"{name}-broken.png", exif=BROKEN)
    words = "--model maps.safetensors --original small-broken.png --edited fit-broken.png --edited fit.png"
    assert edit(f"{words} --edited fit-broken.png") == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("note: small-broken.png: Corrupt EXIF")
    assert second.startswith("note: fit-broken.png: Corrupt EXIF")


def test_notes_are_no_errors_whatever_the_environment_says(files):
    Image.fromarray(read("square.png")).save("original.jpg", exif=BROKEN)
    words = f"edit {DIFFUSION} --original original.jpg --edited stroke.png --mask full.png -o out.png"
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::UserWarning",
            "-m",
            "sparsegen",
            *words.split(),
            "--backend",
            "reference",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0 and "note: full.png" in done.stderr, done.stderr


@pytest.mark.parametrize("more", ["--mask full.png", ""])
def test_no_warning_shows_a_line_of_source(files, more):
    Image.fromarray(255 - read("square.png")).save("original.jpg", exif=BROKEN)
    words = f"edit {DIFFUSION} --original original.jpg --edited stroke.png {more} -o out.png"
    done = subprocess.run(
        [sys.executable, "-m", "sparsegen", *words.split(), "--backend", "reference"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = done.stderr.splitlines()
    assert len(lines) >= 2 and all(line.startswith("note: ") for line in lines), lines
    assert lines[0].startswith("note: original.jpg: Corrupt EXIF data")


# -- mistakes --------------------------------------------------------------------------------------------

MAPS = "--model maps.safetensors --original small.png --edited fit.png"
WIDE = "--model maps.safetensors --original lake.png --edited house.png"
SQUARE = f"{DIFFUSION} --original square.png --edited stroke.png"
MISTAKES = {
    "a size that no map may have": (
        WIDE,
        "lake.png: the label map is 50×90; this model (normal) needs multiples of 32, the nearest are 64×96, ",
    ),
    "what helps": (WIDE, "--resize auto or --crop auto makes the files one of these"),
    "a size that no image may have": (
        f"{DIFFUSION} --original photo.png --edited painted.png",
        "photo.png: the image is 33×45; this model needs sides in multiples of 2, the nearest are 34×46, ",
    ),
    "a fixed size": (WIDE.replace("maps.", "fixed."), "the nearest are 32×64, 64×32 (height × width)"),
    "a resize to no size of the model": (
        f"{WIDE} --resize 40x64",
        "--resize 40x64: the label map is 40×64",
    ),
    "a crop to no size of the model": (f"{WIDE} --crop 40x64", "--crop 40x64: the label map is 40×64"),
    "a crop beyond the file": (
        f"{WIDE} --crop 64x64",
        "--crop: a crop of 64×64 is larger than lake.png, 50×90",
    ),
    "a crop of too small a map": (
        "--model maps.safetensors --original thin.png --edited thin.png --crop auto",
        "--crop auto: thin.png is 20x90, too small; give --resize auto",
    ),
    "nothing to crop": (
        f"{DIFFUSION} --original lake.png --edited house.png --crop 0x0",
        "--crop 0x0: expected HEIGHTxWIDTH",
    ),
    "half a size": (
        f"{WIDE} --resize 64",
        "--resize 64: expected HEIGHTxWIDTH in pixels, such as 256x512, or auto",
    ),
    "a crop that waits for a resize": (
        f"{WIDE} --crop auto --resize 32x32",
        "--crop auto: not beside --resize",
    ),
    "a crop of a map that is too small": (
        f"{WIDE.replace('maps.', 'fixed.')} --crop 20x20",
        "--crop 20x20: the label map is 20×20",
    ),
    "an edited map of another size": (
        f"{WIDE} --edited small.png --resize auto",
        "small.png: 32×64, expected 50×90 (height × width) like lake.png",
    ),
    "a label that is none": (
        f"{MAPS} --edited strange.png",
        "strange.png: label 40 at row 3, column 7: this model has labels 0 to 3",
    ),
    "a label that is none in a file to be cropped": (
        "--model maps.safetensors --original strange.png --edited small.png --crop 32x32",
        "strange.png: label 40 at row 3, column 7",
    ),
    "unknown pixels": (f"{MAPS} --edited unknown.png", "unknown.png: label 255 at row 3, column 7"),
    "the way out for them": (f"{MAPS} --edited unknown.png", "--unknown-label N"),
    "an unknown label that is none": (
        f"{MAPS} --unknown-label 4",
        "--unknown-label 4: expected a label of this model, 0 to 3",
    ),
    "an unknown label of an image": (f"{SQUARE} --unknown-label 4", "--unknown-label: not for this model"),
    "a lossy label map": (f"{WIDE} --edited lossy.png", "lossy.png: a label or instance map saved as JPEG"),
    "a photo for a model of label maps": (
        "--original lossy.png --edited house.png",
        "landscape paints label maps (for images, give --model a diffusion model)",
    ),
    "a mask outside the crop": (
        f"{DIFFUSION} --original photo.png --edited painted.png --mask corner.png --crop 16x16",
        "corner.png: no masked pixel is left of the middle 16×16 of 33×45",
    ),
    "a lossy instance map": (
        "--model edges.safetensors --original lake.png --edited house.png --instances lossy.png --resize auto",
        "lossy.png: a label or instance map saved as JPEG",
    ),
    "an instance map of another size": (
        "--model edges.safetensors --original small.png --edited fit.png --instances house.png",
        "house.png: 50×90, expected 32×64 (height × width) like small.png",
    ),
    "an empty mask": (f"{SQUARE} --mask faint.png", "faint.png: the mask is empty"),
    "a transparent mask": (f"{SQUARE} --mask clear.png", "clear.png: the mask is transparent everywhere"),
    "an image that is too large": (
        f"{DIFFUSION} --original large.png --edited stroke.png",
        "large.png: has more than 178,956,970 pixels",
    ),
    "a label map that is too large": (
        f"{MAPS} --edited large.png",
        "large.png: has more than 178,956,970 pixels",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(files, monkeypatch, capsys, mistake):
    words, expected = MISTAKES[mistake]
    monkeypatch.setattr(Session, "run", lambda *_, **__: pytest.fail("worked before it looked"))
    assert edit(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and expected in line, line
    assert not (files / "out.png").exists()
