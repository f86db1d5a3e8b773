"""`sparsegen parity`: a checkpoint against a golden file, or against the user's own code; its exit codes and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import sparsegen
from sparsegen.cli import main

torch = pytest.importorskip("torch")
from tests.oracles.torch_ddpm import UNet, randomised  # noqa: E402  (keeps the order below the skip)

pytestmark = pytest.mark.torch

OWN = """
import numpy as np, torch
from tests.oracles.torch_ddpm import UNet, randomised

def {name}(model):
    assert model.family == "ddpm"
    net = randomised(UNet(), 2)
    {plant}
    x = np.random.default_rng(0).standard_normal((8, 8, 3)).astype(np.float32)
    return {{"module": net, "image": x, "timestep": 40.0}}

def nothing(model):
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, golden files of the same network and of another, and the user's code beside them."""
    net = randomised(UNet(), 2)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = sparsegen.load(tmp_path / "net.pth")
    x = np.random.default_rng(0).standard_normal((8, 8, 3)).astype(np.float32)
    given = {"timestep": 40.0, "backend": "reference"}
    edited = x.copy()
    edited[2:4, 3:6] += 1
    sparsegen.parity(model, net, x, edited=edited, golden=tmp_path / "same.safetensors", **given)
    net.mid.attn_1.norm.num_groups = 8
    sparsegen.parity(model, net, x, golden=tmp_path / "other.safetensors", **given)
    (tmp_path / "same_networks.py").write_text(OWN.format(name="same", plant=""))
    (tmp_path / "other_networks.py").write_text(
        OWN.format(name="other", plant="net.up[1].upsample.conv.bias.data.zero_()")
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_golden_file_of_the_same_network_agrees(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["parity", "net.pth", "--golden", "same.safetensors", "--backend", "reference"]
    assert main([*command, "--json", "parity.json", "--html", "parity.html"]) == 0
    printed = capsys.readouterr().out
    assert "54 layers agree" in printed and "edit of" in printed and "inside of the mask" in printed
    assert json.loads((folder / "parity.json").read_text("utf-8"))["agrees"]
    assert (folder / "parity.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_a_difference_is_exit_code_3_and_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "net.pth", "--golden", "other.safetensors", "--backend", "reference"]) == 3
    printed = capsys.readouterr().out
    assert "mid.attn_1.q is the first layer that differs on its own" in printed
    assert "Cause: the norm before it has 8 groups instead of 32" in printed


def test_the_users_own_code_runs_and_makes_a_golden_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["parity", "net.pth", "--backend", "reference", "--module"]
    assert main([*own, "same_networks:same", "--golden-out", "made.safetensors"]) == 0
    assert main(["parity", "net.pth", "--golden", "made.safetensors", "--backend", "reference"]) == 0
    assert main([*own, "other_networks:other"]) == 3
    assert "Cause: there is no bias" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --golden FILE, or --module PACKAGE.MODULE:FUNCTION"),
        (["--golden", "net.pth"], "is not a golden file"),
        (["--golden", "none.safetensors"], "none.safetensors"),
        (["--golden", "same.safetensors", "--golden-out", "b"], "is written with --module alone"),
        (["--golden", "same.safetensors", "--role", "text"], "holds no text; give --role, one of unet"),
        (["--golden", "same.safetensors", "--html", "net.pth"], "is also an input"),
        (
            ["--golden", "same.safetensors", "--tolerance", "2"],
            "tolerance is 2.0, expected a number between 0 and 1",
        ),
        (["--module", "nonsense"], "expected PACKAGE.MODULE:FUNCTION"),
        (["--module", "not_there_at_all:made"], "No module named 'not_there_at_all'"),
        (["--module", "same_networks:missing"], "same_networks has no missing"),
        (["--module", "same_networks:nothing"], "returned int, expected a dict"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["parity", "net.pth", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_role_is_chosen_by_the_golden_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    from sparsegen.models import VAEConfig
    from tests.oracles.diffusers_networks import autoencoder

    net = randomised(autoencoder(VAEConfig(levels=(32, 64), blocks=1, groups=16)), 3)
    net.save_pretrained(tmp_path / "vae")
    decoder = sparsegen.load_bundle(tmp_path / "vae").models["decoder"]
    latents = np.random.default_rng(0).standard_normal((4, 4, 4)).astype(np.float32)
    golden = tmp_path / "golden.safetensors"
    sparsegen.parity(decoder, net, latents, backend="reference", golden=golden)
    command = ["parity", str(tmp_path / "vae"), "--backend", "reference"]
    assert main([*command, "--golden", str(golden)]) == 0
    assert "(vae-decoder)" in capsys.readouterr().out
    assert main([*command, "--golden", str(golden), "--role", "encoder"]) == 2
    assert "golden file is of family 'vae-decoder'" in capsys.readouterr().err
