"""The command line as a user types it: pictures and tables come out; every mistake is one line and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import random_gaugan, random_labels, repaint
from PIL import Image
from safetensors.numpy import save_file

from sparsegen import Session, loading, pictures
from sparsegen.cli import main
from sparsegen.weights import builtin


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a small network, label maps, a mask and files that are none of these."""
    rng = np.random.default_rng(2)
    loading.save(random_gaugan(), tmp_path / "net.safetensors")
    a = random_labels(rng, (32, 64))
    b = repaint(rng, a)
    for name, labels in {
        "a": a,
        "b": b,
        "c": repaint(rng, b),
        "wide": np.zeros((32, 96)),
        "high": a + 9,
    }.items():
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros((32, 64), np.uint8)
    mask[4:12, 8:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "rgb.png")
    (tmp_path / "text.png").write_text("not a picture")
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


def test_edit_writes_what_the_library_computes(files, capsys):
    assert edit(files, "--policy", "exact") == 0
    model = loading.load(files / "net.safetensors")
    expected = Session(model).run(pictures.read_labels(files / "b.png")).image
    with Image.open(files / "out.png") as picture:
        assert np.array_equal(np.asarray(picture), expected)
        assert "policy=exact" in picture.text["sparsegen"]
    assert "MACs" in capsys.readouterr().out


def test_several_edits_continue_one_session(files):
    assert edit(files, "--policy", "exact", edited=("b", "c", "a")) == 0
    session = Session(loading.load(files / "net.safetensors"))
    for name, number in (("b", 1), ("c", 2), ("a", 3)):
        expected = session.run(pictures.read_labels(files / f"{name}.png")).image
        with Image.open(files / f"out-{number}.png") as picture:
            assert np.array_equal(np.asarray(picture), expected)


def test_edit_with_a_mask(files):
    with pytest.warns(UserWarning, match="outside the mask"):
        assert edit(files, "--mask", str(files / "mask.png"), edited=("c",)) == 0


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


def test_inspect_shows_hostile_names_as_plain_text(tmp_path, capsys):
    names = ["[red]x[/nope]", "\x1b[2Jgone", "line\nbreak", ":smile:"]
    save_file({name: np.zeros(2, np.float32) for name in names}, tmp_path / "odd.safetensors")
    assert main(["inspect", str(tmp_path / "odd.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "[red]x[/nope]" in shown and r"line\nbreak" in shown and ":smile:" in shown


def test_backends_are_listed(capsys):
    assert main(["backends"]) == 0
    assert "reference" in capsys.readouterr().out


TINY = "edit --model net.safetensors --original a.png"
MISTAKES = {
    "no command": ("fly", "fly"),
    "an option that is missing": ("edit --original a.png", "--edited"),
    "a policy that is none": ("demo --policy magic", "magic"),
    "a missing label map": (f"{TINY} --edited nowhere.png -o o.png", "nowhere.png: no such file"),
    "an unknown model": ("edit --model seascape --original a.png --edited b.png -o o.png", "landscape"),
    "an unknown built-in": ("demo --model seascape", "landscape"),
    "an unknown backend": ("demo --backend abacus", "reference"),
    "another size": (f"{TINY} --edited wide.png -o o.png", "(1, 32, 96)"),
    "a label out of range": (f"{TINY} --edited high.png -o o.png", "labels 0 to 3"),
    "colours instead of labels": (f"{TINY} --edited rgb.png -o o.png", "palette"),
    "no picture": (f"{TINY} --edited text.png -o o.png", "text.png"),
    "an empty checkpoint": ("inspect empty.pth", "empty.pth"),
    "a checkpoint that is a picture": ("convert a.png -o o.safetensors", "a.png"),
    "a missing checkpoint": ("inspect nowhere.pth", "nowhere.pth"),
    "a folder that is missing": ("demo -o no/where.png", "no/where.png"),
    "a folder as output": (f"{TINY} --edited b.png -o .", "folder"),
    "a mask of another size": (f"{TINY} --edited b.png --mask wide.png -o o.png", "the mask is (32, 96)"),
    "a seed without a latent": (f"{TINY} --edited b.png --seed 3 -o o.png", "latent"),
    "instances without edges": (f"{TINY} --edited b.png --instances a.png -o o.png", "edge"),
    "too few instance maps": (
        f"{TINY} --edited b.png --edited c.png --edited-instances a.png -o o.png",
        "1 instance",
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


def test_a_read_only_folder_is_refused_before_the_work(files, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda *_: False)  # as it is for everyone but root
    monkeypatch.setattr("sparsegen.cli.load", lambda _: pytest.fail("worked before it looked"))
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
    """One process, as a user starts it: the picture, the table, no noise on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "sparsegen", "demo", "-o", "demo.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stderr == ""
    for word in ("edited area", "MACs", "PSNR", "dense run", "sparse edit", "demo.png"):
        assert word in done.stdout
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size[0] > 2 * 512 and np.asarray(picture).std() > 20


def test_every_example_edits(tmp_path):
    """All label maps that come with the package fit its model, and its edits are small."""
    known = builtin.get("landscape")
    assert known is not None and len(known.examples) >= 4
    for example in known.examples:
        original = pictures.read_labels(example.original)
        assert original.shape == (256, 512) and original.max() < len(known.labels.names)
        for change in example.edits:
            changed = (pictures.read_labels(change.path) != original).mean()
            assert 0 < changed < 0.2
