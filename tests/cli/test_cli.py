"""The command line as a user types it: images and tables come out; every mistake is one line and exit code 2."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import sparsegen
from sparsegen import Session, images, loading
from sparsegen.backends import default_backend
from sparsegen.cli import main
from sparsegen.weights import builtin, native_metadata, read_checkpoint, write_safetensors
from tests.networks import random_gaugan, random_labels, random_mobile, repaint


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a small model, label maps, a mask and files that are none of these."""
    rng = np.random.default_rng(2)
    loading.save(random_gaugan(), tmp_path / "net.safetensors")
    a = random_labels(rng, (32, 64))
    b = repaint(rng, a)
    maps = {"a": a, "b": b, "c": repaint(rng, b), "flip": 3 - a, "wide": np.zeros((32, 96)), "high": a + 9}
    for name, labels in maps.items():
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros((32, 64), np.uint8)
    mask[4:12, 8:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("RGB", (64, 32), (9, 0, 0)).save(tmp_path / "rgb.png")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.pth").write_bytes(b"")
    return tmp_path


def edit(
    files: Path, *extra: str, original: str = "a", edited: tuple[str, ...] = ("b",), model: str = ""
) -> int:
    words = [
        "edit",
        "--model",
        model or str(files / "net.safetensors"),
        "--original",
        str(files / f"{original}.png"),
    ]
    for name in edited:
        words += ["--edited", str(files / f"{name}.png")]
    return main([*words, "-o", str(files / "out.png"), *extra])


def complaints(stderr: str) -> str:
    """What a process says on stderr, without progress and the notice of the first that compiles kernels here."""
    return re.sub(r"^(sparsegen: compil(ing|ed) .*|.* \(\d+%, \d+ s\))\n", "", stderr, flags=re.M)


def test_edit_writes_what_the_library_computes(files, capsys):
    assert edit(files, "--policy", "exact") == 0
    model = loading.load(files / "net.safetensors")
    expected = Session(model).run(images.read_labels(files / "b.png")).image
    with Image.open(files / "out.png") as picture:
        assert np.array_equal(np.asarray(picture), expected)
        assert '"policy": "exact"' in picture.text["sparsegen"]
    assert "MACs" in capsys.readouterr().out


def test_a_policy_may_have_a_number(files):
    assert edit(files, "--policy", "adaptive(0)") == 0
    expected = Session(loading.load(files / "net.safetensors")).run(images.read_labels(files / "b.png")).image
    with Image.open(files / "out.png") as picture:
        assert np.array_equal(np.asarray(picture), expected)
        assert '"policy": "adaptive(0)"' in picture.text["sparsegen"]


def test_several_edits_continue_one_session(files):
    assert edit(files, "--policy", "exact", edited=("b", "c", "a")) == 0
    session = Session(loading.load(files / "net.safetensors"))
    for name, number in (("b", 1), ("c", 2), ("a", 3)):
        expected = session.run(images.read_labels(files / f"{name}.png")).image
        with Image.open(files / f"out-{number}.png") as picture:
            assert np.array_equal(np.asarray(picture), expected)


def test_edit_with_a_mask_says_what_it_left_out(files, capsys):
    assert edit(files, "--mask", str(files / "mask.png"), edited=("high",)) == 2
    assert edit(files, "--mask", str(files / "mask.png"), edited=("flip", "flip")) == 0
    captured = capsys.readouterr()
    assert captured.out.count("lie outside") == 2 and "Warning" not in captured.err


def test_edit_with_instances_and_a_latent(files, capsys):
    model = random_gaugan(edge_channel=True, semantic_nc=5, z_dim=3, start_cells=2)
    loading.save(model, files / "edges.safetensors")
    network = str(files / "edges.safetensors")
    words = ["--instances", str(files / "a.png"), "--seed", "3", "--policy", "exact"]
    for name in ("b", "c"):
        words += ["--edited-instances", str(files / f"{name}.png")]
    assert edit(files, *words, model=network, edited=("b", "c")) == 0
    z = np.random.default_rng(3).standard_normal(3).astype(np.float32)
    labels = images.read_labels(files / "c.png")
    expected = Session(model).run(labels, instances=labels, z=z).image
    with Image.open(files / "out-2.png") as picture:
        assert np.array_equal(np.asarray(picture), expected)


def test_a_compressed_gaugan_is_edited_inspected_and_converted_like_any(files, capsys):
    path, half = files / "mobile.safetensors", files / "half.safetensors"
    model = random_mobile()
    loading.save(model, path)
    assert edit(files, model=str(path)) == 0
    session = Session(model)
    session.run(images.read_labels(files / "a.png"))
    expected = session.edit(images.read_labels(files / "b.png")).image
    with Image.open(files / "out.png") as picture:
        assert np.array_equal(np.asarray(picture), expected)
    assert main(["inspect", str(path)]) == 0
    assert "mobile-gaugan" in capsys.readouterr().out
    assert main(["convert", str(path), "-o", str(half), "--dtype", "float16"]) == 0
    assert loading.load(half).config == model.config


def test_a_damaged_network_is_one_line(files, capsys):
    model = random_gaugan()
    values = {name: parameter.value for name, parameter in model.parameters().items()}
    values["up_3.conv_0.bias"] = np.full_like(values["up_3.conv_0.bias"], np.nan)
    model.load_parameters(values)
    with pytest.warns(
        UserWarning, match=r"1 of \d+ parameters hold values that are not finite.* up_3.conv_0.bias"
    ):
        loading.save(model, files / "damaged.safetensors")
    assert edit(files, model=str(files / "damaged.safetensors")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(
        "error: up_3.conv_0: the value of sample 0, row 0, column 0, channel 0 is not finite"
    )


def test_settings_say_what_a_checkpoint_cannot(files, capsys):
    words = ["convert", str(files / "net.safetensors"), "-o", str(files / "more.safetensors")]
    assert main([*words, "--set", "num_upsampling_layers=more"]) == 0
    assert loading.load(files / "more.safetensors").config.num_upsampling_layers == "more"


def test_no_words_show_the_help_and_version_the_version(capsys):
    assert main([]) == 0
    assert "Commands" in capsys.readouterr().out
    assert main(["--version"]) == 0
    python, name = re.escape(platform.python_version()), default_backend()
    said = rf"sparsegen {re.escape(sparsegen.__version__)} \(Python {python}, backend {name}(, \d+ threads?)?\)\n"
    assert re.fullmatch(said, capsys.readouterr().out)


def test_a_console_without_our_characters_loses_nothing(files):
    words = ["edit", "--model", "net.safetensors", "--original", "a.png", "--edited", "b.png", "-o", "o.png"]
    done = subprocess.run(
        [sys.executable, "-m", "sparsegen", *words],
        cwd=files,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, complaints(done.stderr)) == (0, "") and "MACs" in done.stdout


def test_inspect_and_convert(files, capsys):
    assert main(["inspect", str(files / "net.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "safetensors" in shown and "gaugan" in shown and "up_3.conv_0.weight" in shown
    half = files / "half.safetensors"
    assert main(["convert", str(files / "net.safetensors"), "-o", str(half), "--dtype", "float16"]) == 0
    assert half.stat().st_size < 0.6 * (files / "net.safetensors").stat().st_size
    a, b = loading.load(files / "net.safetensors"), loading.load(half)
    for path, parameter in a.parameters().items():
        assert np.array_equal(parameter.value.astype(np.float16), b.parameters()[path].value)


def test_inspect_takes_the_name_of_a_built_in_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, word in (("landscape", "gaugan"), ("landscape-sd", "sd-unet")):
        assert main(["inspect", name]) == 0
        assert word in capsys.readouterr().out


def test_inspect_shows_hostile_names_as_plain_text(tmp_path, capsys):
    names = ["[red]x[/nope]", "\x1b[2Jgone", "line\nbreak", ":smile:"]
    save_file({name: np.zeros(2, np.float32) for name in names}, tmp_path / "odd.safetensors")
    assert main(["inspect", str(tmp_path / "odd.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "[red]x[/nope]" in shown and r"line\nbreak" in shown and ":smile:" in shown


def test_backends_are_listed(capsys):
    assert main(["backends"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert listed["reference"].startswith("available")
    assert [name for name, state in listed.items() if "the default" in state] == [default_backend()]


def test_warmup_says_what_it_made_ready_and_where(tmp_path, capsys):
    assert main(["warmup", "--backend", "reference"]) == 0
    assert capsys.readouterr().out.startswith("reference: nothing to compile (")
    assert main(["warmup"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{default_backend()}: ")
    if default_backend() == "numba":
        (folder,) = re.findall(r" in (\S+) \(", said)
        assert list(Path(folder).rglob("*.nbc"))


def test_the_number_of_threads_and_the_backend_can_be_given(files):
    assert edit(files, "--threads", "1", "--backend", "reference") == 0
    with Image.open(files / "out.png") as picture:
        assert '"backend": "reference"' in picture.text["sparsegen"]


TINY = "edit --model net.safetensors --original a.png"
MISTAKES = {
    "no command": ("fly", "fly"),
    "an option that is missing": ("edit --original a.png", "--output"),
    "an edit that is missing": ("edit --original a.png -o o.png", "--edited: missing; give an edited copy"),
    "a policy that is none": ("demo --policy magic", "magic"),
    "adaptive without a number": ("demo --policy adaptive", "such as adaptive(0.02)"),
    "adaptive with a wrong number": (
        f"{TINY} --edited b.png -o o.png --policy adaptive(-1)",
        "adaptive(0.02)",
    ),
    "a missing label map": (f"{TINY} --edited nowhere.png -o o.png", "nowhere.png: no such file"),
    "an unknown model": ("edit --model seascape --original a.png --edited b.png -o o.png", "landscape"),
    "an unknown built-in": ("demo --model seascape", "landscape"),
    "an unknown backend": ("demo --backend abacus", "reference"),
    "no thread": (f"{TINY} --edited b.png -o o.png --threads 0", "threads is 0, expected a whole number"),
    "threads that are no number": ("demo --threads many", "--threads"),
    "another size": (f"{TINY} --edited wide.png -o o.png", "32×96"),
    "a bad map after a good one": (f"{TINY} --edited b.png --edited high.png -o o.png", "labels 0 to 3"),
    "an image that is no PNG": (f"{TINY} --edited b.png -o o.jpg", ".png"),
    "an output that is an input": (f"{TINY} --edited b.png -o b.png", "also an input"),
    "a setting without a value": (f"{TINY} --edited b.png -o o.png --set norm", "name=value"),
    "a setting that is none": (f"{TINY} --edited b.png -o o.png --set depth=3", "depth"),
    "a setting of a wrong value": (f"{TINY} --edited b.png -o o.png --set ngf=wide", "ngf is 'wide'"),
    "a setting that does not fit": (f"{TINY} --edited b.png -o o.png --set ngf=4", "fc.weight (expected"),
    "a label out of range": (f"{TINY} --edited high.png -o o.png", "labels 0 to 3"),
    "colours instead of labels": (f"{TINY} --edited rgb.png -o o.png", "none of the greys of a.png"),
    "no image": (f"{TINY} --edited text.png -o o.png", "text.png"),
    "an empty checkpoint": ("inspect empty.pth", "empty.pth"),
    "a checkpoint that is an image": ("convert a.png -o o.safetensors", "a.png"),
    "a missing checkpoint": ("inspect nowhere.pth", "nowhere.pth"),
    "a folder that is missing": ("demo -o no/where.png", "no/where.png"),
    "a folder as output": (f"{TINY} --edited b.png -o .", "folder"),
    "a mask of another size": (
        f"{TINY} --edited b.png --mask wide.png -o o.png",
        "wide.png: 32×96, expected 32×64 (height × width) like a.png",
    ),
    "a seed without a latent": (f"{TINY} --edited b.png --seed 3 -o o.png", "latent"),
    "instances without edges": (f"{TINY} --edited b.png --instances a.png -o o.png", "edge"),
    "too few instance maps": (
        f"{TINY} --edited b.png --edited c.png --edited-instances a.png -o o.png",
        "have 1",
    ),
    "instance maps of edits alone": (
        f"{TINY} --edited b.png --edited-instances b.png -o o.png",
        "--instances",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(files, monkeypatch, capsys, mistake):
    words, expected = MISTAKES[mistake]
    monkeypatch.chdir(files)
    before = sorted(p.name for p in files.iterdir())
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0]
    assert "Traceback" not in captured.err + captured.out
    assert sorted(p.name for p in files.iterdir()) == before


HOSTILE = [
    {"foo": 1},
    {"ngf": "x"},
    {"ngf": 2.5},
    {"ngf": True},
    {"ngf": -3},
    {"ngf": 10**30},
    {"semantic_nc": 0},
    {"kernel_size": 4},
    {"z_dim": 3, "start_cells": -1},
    {"edge_channel": "x"},
    {"norm": "none"},
    {"num_upsampling_layers": []},
]


@pytest.mark.parametrize("config", HOSTILE, ids=str)
def test_a_hostile_configuration_is_one_line(files, capsys, config):
    model = random_gaugan()
    values = {name: parameter.value for name, parameter in model.parameters().items()}
    metadata = native_metadata("gaugan", {**asdict(model.config), **config})
    write_safetensors(files / "odd.safetensors", values, metadata)
    assert main(["convert", str(files / "odd.safetensors"), "-o", str(files / "o.safetensors")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "odd.safetensors" in lines[0]


def test_a_read_only_folder_is_refused_before_the_work(files, monkeypatch, capsys):
    # as it is for everyone but root
    monkeypatch.setattr("os.access", lambda _path, mode, **_options: mode != os.W_OK)
    monkeypatch.setattr("sparsegen.cli.editing.load_bundle", lambda _: pytest.fail("worked before it looked"))
    assert edit(files) == 2
    assert "read-only" in capsys.readouterr().err


def test_a_failing_write_leaves_the_old_picture(files, monkeypatch, capsys):
    (files / "out.png").write_bytes(b"old")

    def fail(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.replace", fail)
    assert edit(files) == 2
    assert "Read-only file system" in capsys.readouterr().err
    assert (files / "out.png").read_bytes() == b"old"
    assert not list(files.glob(".*part"))


def test_the_demo_runs_as_a_process(tmp_path):
    """One process, as a user starts it: the image, the table, no noise on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "sparsegen", "demo", "-o", "demo.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and complaints(done.stderr) == ""
    assert done.stdout.count(" undo ") == 1
    for word in ("edited area", "MACs", "dense run", "sparse edit", "demo.png"):
        assert word in done.stdout
    found = re.search(r"PSNR, sparse against dense +([0-9.]+) dB", done.stdout)
    assert found is not None and float(found[1]) > 30
    with Image.open(tmp_path / "demo.png") as picture:
        pixels = np.asarray(picture)
    height, width, _ = pixels.shape
    dense, sparse = (
        pixels[height // 2 + 30 : -20, c : c + 500] for c in (width // 3 + 10, 2 * width // 3 + 10)
    )
    assert dense.std() > 30 and sparse.std() > 30
    assert not np.array_equal(dense, sparse)


def test_what_comes_with_the_package(tmp_path):
    """The model is small, knows the labels that are named, and every example map fits it; edits are small."""
    known, model = builtin.get("landscape"), loading.load("landscape")
    assert known is not None and len(known.examples) >= 4
    assert known.checkpoint.stat().st_size <= 16_000_000
    assert {tensor.dtype for tensor in read_checkpoint(known.checkpoint).tensors.values()} == {"float16"}
    assert model.config.semantic_nc == len(known.labels.names) == len(known.labels.palette)
    wanted = "sky cloud sun mountain hill meadow water sand tree road house"
    assert set(wanted.split()) <= set(known.labels.names)
    for example in known.examples:
        original = images.read_labels(example.original)
        assert model.encode(original).shape == (1, 256, 512)
        for change in example.edits:
            changed = (images.read_labels(change.path) != original).mean()
            assert 0 < changed < 0.2
