"""The command `profile` as a user types it: tables, JSON and CSV come out; a mistake is one line and exit code 2."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsegen import loading
from sparsegen.backends.interface import Host
from sparsegen.cli import main
from sparsegen.cli.profiling import square
from sparsegen.layers.base import Parameter
from sparsegen.tools import roofline
from sparsegen.tools.architectures import ARCHITECTURES
from tests.networks import random_gaugan, random_labels, repaint
from tests.unets import random_ddpm


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with checkpoints, label maps, images and masks; it is the current one."""
    rng = np.random.default_rng(2)
    loading.save(random_gaugan(ngf=8, nhidden=8), tmp_path / "net.safetensors")
    loading.save(random_ddpm(), tmp_path / "ddpm.safetensors")
    a = random_labels(rng, (32, 64))
    for name, labels in {"a": a, "b": repaint(rng, a)}.items():
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros((32, 64), np.uint8)
    mask[4:12, 8:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    photo = rng.integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    photo[5:11, 9:20] = 0
    Image.fromarray(photo).save(tmp_path / "strokes.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a weight of a file fails."""

    def value(parameter: Parameter) -> Host:
        found = parameter.read()
        assert not any(found.strides), "a weight was read"  # one without weights has zeros without storage
        return found

    monkeypatch.setattr(Parameter, "value", property(value))


def printed(capsys: Any, *words: str) -> list[str]:
    assert main(["profile", *words]) == 0
    captured = capsys.readouterr()
    assert all(len(line) <= 100 for line in captured.out.splitlines()), captured.out
    return [line.rstrip() for line in captured.out.splitlines()]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("more", [(), ("--layers",)])
def test_every_architecture_has_a_table_of_100_columns(capsys: Any, name: str, more: tuple[str, ...]) -> None:
    lines = printed(capsys, name, "--area", "1.2", "--backend", "reference", *more)
    assert sum(line.startswith("total ") for line in lines) == len(ARCHITECTURES[name].models())
    for total in (i for i, line in enumerate(lines) if line.startswith("total ")):
        assert lines[total + 1] == "in all"  # totals last
    assert any("as the paper counts" in line for line in lines)
    assert all("sum" not in line for line in lines)


def test_the_figures_of_the_paper_are_printed(capsys: Any) -> None:
    text = "\n".join(printed(capsys, "ddpm-church-256", "--area", "1.2", "--backend", "reference"))
    assert re.search(r"MACs, dense +248\.51 G a step\n", text)
    assert re.search(r"MACs, as the paper counts +32\.56 G a step \(13\.1% of dense\)\n", text)
    assert "10 compute every layer, 15 carry deltas on" in text
    text = "\n".join(printed(capsys, "pd-church-128", "--backend", "reference"))
    assert "dense run of 128×128" in text and "paper counts" not in text


def test_the_labels_decide_the_rows_of_codebooks(files: Path, capsys: Any, unread: None) -> None:
    words = ("net.safetensors", "--original", "a.png")
    known = printed(capsys, *words, "--edited", "b.png")
    assert any(line.strip().startswith("codebooks") for line in known)
    assert main(["profile", *words, "--mask", "mask.png"]) == 0
    assert "labels are not known" in capsys.readouterr().err
    for name in ("gaugan-cityscapes", "gan-compression"):
        assert main(["profile", name, "--area", "1", "--backend", "reference"]) == 0
        assert capsys.readouterr().err == ""  # it has no codebooks


def test_json_and_csv_have_every_layer(files: Path, capsys: Any, unread: None) -> None:
    edit = ("ddpm.safetensors", "--original", "photo.png", "--edited", "strokes.png", "--steps", "6")
    found = json.loads("\n".join(_out(capsys, *edit, "--json")))
    (unet,) = found["models"].values()
    assert (found["size"], unet["steps"], unet["milliseconds"]) == ([32, 32], 6, None)
    assert unet["edited_area"] == pytest.approx(6 * 11 / 32**2, abs=0.002)
    assert sum(layer["macs"] for layer in unet["layers"]) == unet["macs"] > 0
    rows = list(csv.DictReader(io.StringIO("\n".join(_out(capsys, *edit, "--csv")))))
    assert [row["path"] for row in rows] == [layer["path"] for layer in unet["layers"]]
    assert {row["model"] for row in rows} == {"unet"}
    assert sum(int(row["macs_dense"]) for row in rows) == unet["macs_dense"]


def _out(capsys: Any, *words: str) -> list[str]:
    assert main(["profile", *words]) == 0
    lines: list[str] = capsys.readouterr().out.splitlines()
    return lines


def test_a_run_adds_times_and_the_roofline(files: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_PRODUCTS", [(8, 8, 16)])
    monkeypatch.setattr(roofline, "_COPY", (16, 16, 16))
    edit = ("ddpm.safetensors", "--size", "32x32", "--area", "5", "--steps", "6")
    lines = printed(capsys, *edit, "--run")
    assert any(line.startswith("roofline of numba here: ") for line in lines)
    assert sum(line.startswith("total ") for line in lines) == 2
    assert any("times as fast as" in line for line in lines)
    found = json.loads("\n".join(_out(capsys, *edit, "--run", "--json")))
    unet = found["models"]["unet"]
    assert unet["milliseconds"] > 0 and found["machine"]["ridge"] > 0
    assert {layer["bound"] for layer in unet["layers"]} <= {"compute", "memory"}
    bounds = printed(capsys, *edit, "--roofline")
    assert not any("times as fast as" in line for line in bounds)


def test_a_built_in_model_has_a_size(capsys: Any) -> None:
    assert "edit of 0.99% of 256×512" in printed(capsys, "landscape", "--area", "1")[0]
    assert "of 128×128" in printed(capsys, "landscape-ddpm", "--area", "1", "--backend", "reference")[0]
    lines = printed(capsys, "landscape-sd", "--area", "1", "--backend", "reference")
    assert [line.split(":")[1].split(",")[0] for line in lines if "edit of" in line] == [
        " unet",
        " encoder",
        " decoder",
    ]
    assert any(line.startswith("landscape-sd: unet, encoder, decoder") for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("gan",),
            "error: no architecture, built-in model or file 'gan'; architectures: gaugan-cityscapes, ",
        ),
        (("ddpm-church-256", "--area", "0"), "--area 0: expected a percentage, more than 0 and at most 100"),
        (("ddpm-church-256", "--area", "1", "--mask", "mask.png"), "--mask, --area: each describes the edit"),
        (("ddpm-church-256", "--edited", "b.png"), "--edited: give the --original too"),
        (
            ("ddpm-church-256", "--mask", "mask.png"),
            "mask.png: is 32×64, expected 256×256, the size of the image",
        ),
        (("ddpm-church-256", "--area", "1", "--policy", "best"), "unknown policy 'best'; known: paper, fast"),
        (("ddpm-church-256", "--size", "100x100"), "this model needs sides in multiples of 32"),
        (("ddpm-church-256", "--set", "ch=3"), "is an architecture by name, whose settings are known"),
        (("gaugan-cityscapes", "--steps", "3"), "--steps: gaugan-cityscapes is no diffusion model; omit it"),
        (("sd-vae", "--steps", "3"), "--steps: sd-vae is no diffusion model; omit it"),
        (("ddpm.safetensors", "--area", "1"), "the size that it was trained on is unknown; give --size"),
        (("sd-1.5", "--json", "--csv"), "--json, --csv: give one of them"),
        (
            ("net.safetensors", "--mask", "mask.png", "--backend", "abc"),
            "backend 'abc' cannot be used (unknown)",
        ),
    ],
)
def test_a_mistake_is_one_line(files: Path, capsys: Any, words: tuple[str, ...], message: str) -> None:
    assert main(["profile", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


def test_a_square_has_the_area() -> None:
    for size, share in (((256, 256), 0.012), ((64, 512), 0.3), ((100, 10), 1.0), ((8, 8), 1e-9)):
        mask = square(size, share)
        assert mask.shape == size and mask.any()
        assert mask.mean() == pytest.approx(share, rel=0.05, abs=1.01 / mask.size)
