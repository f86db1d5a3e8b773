"""`sparsegen explain`: a page of the built-in example, and one line for what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsegen.cli import main
from sparsegen.images import write_png
from sparsegen.weights import builtin

EXAMPLE = builtin.FOLDER / "landscape"


@pytest.mark.slow
def test_the_example_of_a_built_in_model_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["explain", "--quick", "-o", str(page)]) == 0
    text = page.read_text("utf-8")
    assert "G_middle_0.conv_0" in text and "models/spade.py" in text
    assert "Explanation of an edit of 2.25%" in capsys.readouterr().out


@pytest.mark.slow
def test_a_text_in_a_mask_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    files = ["--original", str(builtin.FOLDER / "landscape-ddpm" / "meadow.png")]
    files += ["--mask", str(builtin.FOLDER / "landscape-sd" / "meadow-mask.png")]
    words = ["--prompt", "a pond", "--steps", "6", "--seed", "3", "--quick", "-o", str(page)]
    assert main(["explain", *files, *words]) == 0
    text = page.read_text("utf-8")
    assert "a pond" in text and "unet.mid.attn_1" in text and "decoder.conv_out" in text
    # as `edit` does, it begins from noise alone
    assert '["strength", "1.0"]' in text and '["seed", "3"]' in text
    assert "Explanation of an edit of 8.39%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "page.png"], "page.png: the page is written as HTML; give a name that ends in .html"),
        (["-o", "nowhere/page.html"], "nowhere/page.html: the folder nowhere does not exist"),
        (["-o", "page.html", "--original", "a.png"], "explain: give --original and --edited"),
        (["-o", "page.html", "--mask", "a.png"], "explain: give --original and --edited"),
        (["-o", "page.html", "--steps", "5"], "--steps: not for this model, landscape is no diffusion model"),
        (
            ["-o", "page.html", "--model", "landscape-sd", "--noise-level", "5"],
            "--noise-level: not for this model, landscape-sd is Stable Diffusion, which has a --strength",
        ),
        (
            ["-o", "page.html", "--model", "landscape-sd", "--original", "a.png", "--mask", "b.png"],
            "--prompt: missing; landscape-sd is Stable Diffusion, whose edits follow a text",
        ),
        (
            ["-o", "page.html", "--model", "landscape-ddpm", "--prompt", "a lake"],
            "--prompt: not for this model, landscape-ddpm is a diffusion model (ddpm), which reads no text",
        ),
        (["-o", "page.html", "--cache-folder", "."], "--cache-folder: has no effect without --ram"),
        (["-o", "page.html", "--step", "5"], "step is 5; only an edit of a diffusion model has steps"),
        (["-o", "page.html", "--policy", "quick"], "unknown policy 'quick'"),
    ],
)
def test_what_does_not_fit_is_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explain", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_size_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.png"
    write_png(small, np.zeros((64, 128, 3), np.uint8))
    words = ["--original", str(EXAMPLE / "lake.png"), "--edited", str(small)]
    assert main(["explain", "-o", str(tmp_path / "page.html"), *words]) == 2
    assert "small.png" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
