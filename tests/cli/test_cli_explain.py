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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "page.png"], "page.png: the page is written as HTML; give a name that ends in .html"),
        (["-o", "nowhere/page.html"], "nowhere/page.html: the folder nowhere does not exist"),
        (["-o", "page.html", "--original", "a.png"], "explain: give --original and --edited"),
        (["-o", "page.html", "--mask", "a.png"], "explain: give --original and --edited"),
        (["-o", "page.html", "--model", "landscape-sd"], "landscape-sd: holds unet, encoder, decoder, text;"),
        (["-o", "page.html", "--steps", "5"], "--steps: this model has no denoising steps; omit it"),
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
