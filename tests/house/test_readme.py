"""The README's code does what it says: every Python block and every `sparsegen` line runs, in order, in one folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import sparsegen
from sparsegen.cli import main
from tests.networks import random_gaugan, random_labels

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = [
    block
    for block in re.findall(r"```python\n(.*?)```", README, re.S)
    if "import sparsegen" in block or "sparsegen." in block
]
COMMANDS = re.findall(
    r"^sparsegen ((?:demo|edit|undo|redo|sample|inspect|convert|backends)\b.*)$", README, re.M
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README takes for granted: the examples, and a checkpoint of one's own."""
    examples = ROOT / "weights" / "builtin" / "landscape"
    for name in ("landscape", "landscape-ddpm"):
        shutil.copytree(examples.parent / name, tmp_path / "weights" / "builtin" / name)
    for name, picture in (("photo", "lake"), ("strokes", "lake-house")):
        shutil.copy(examples.parent / "landscape-ddpm" / f"{picture}.png", tmp_path / f"{name}.png")
    for name in ("lake", "lake-house", "lake-woods"):
        shutil.copy(examples / f"{name}.png", tmp_path)
    model = random_gaugan(semantic_nc=36, edge_channel=True, num_upsampling_layers="more")
    sparsegen.loading.save(model, tmp_path / "latest_net_G.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_python_blocks_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(BLOCKS) == 3
    labels = random_labels(np.random.default_rng(0), (64, 128), classes=35)
    names = {"sparsegen": sparsegen, "labels": labels, "instance_ids": labels // 3}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert "MACs" in capsys.readouterr().out
    assert (folder / "edited.png").exists() and (folder / "real.png").exists()
    assert sparsegen.Session.load(folder / "lake.safetensors").edits == 1


@pytest.mark.slow
def test_the_command_lines_run(folder: Path) -> None:
    assert {command.split()[0] for command in COMMANDS} == {
        "edit",
        "undo",
        "sample",
        "inspect",
        "convert",
        "backends",
    }
    for command in COMMANDS:
        assert main(command.split()) == 0, command
    assert (
        (folder / "out-2.png").exists()
        and (folder / "real-preview-25.png").exists()
        and (folder / "net.safetensors").exists()
    )


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_file_that_is_linked_exists(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert len(links) >= 3
    assert not [link for link in links if not (ROOT / link).exists()]
