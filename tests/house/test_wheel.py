"""The built wheel, installed into an empty folder, is whole: every module, the built-in weights, the examples."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

EVERY_MODULE = """
import importlib, pkgutil, sys
import sparsegen
for module in pkgutil.walk_packages(sparsegen.__path__, "sparsegen."):
    if module.name != "sparsegen.__main__":
        importlib.import_module(module.name)
print(*(module.__file__ for name, module in sys.modules.items() if name.startswith("sparsegen")))
"""
"""Imports all that the wheel holds, so that nothing in it can need a module that it lacks; prints where each lies."""


def run(*words: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_the_demo_from_an_empty_folder(tmp_path: Path) -> None:
    shutil.rmtree(
        ROOT / "build" / "lib", ignore_errors=True
    )  # what an earlier build left would be packed again
    run(
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(ROOT),
        cwd=tmp_path,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"{name}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, name in (
            ("sparsegen",) * 2,
            ("backends", "sparsegen/backends"),
            ("weights", "sparsegen/weights"),
        )
        for path in (ROOT / folder).rglob("*.py")
        if ROOT / "weights" / "training" not in path.parents  # scripts that stay in the repository
    }
    assert {name for name in packed if name.endswith(".py")} == expected
    assert "sparsegen/py.typed" in packed
    assert packed >= {f"sparsegen/models/vocabulary/{name}" for name in ("merges.txt.gz", "LICENSE")}
    data = [path for path in (ROOT / "weights" / "builtin").rglob("*") if path.is_file()]
    assert packed >= {
        f"sparsegen/weights/builtin/{path.relative_to(ROOT / 'weights' / 'builtin').as_posix()}"
        for path in data
        if path.suffix in (".png", ".json", ".safetensors", ".txt")
    }

    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    # -S: without the site module nothing leads back to the checkout; what the package needs is named
    needs = os.pathsep.join(
        [str(site), *map(str, {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})]
    )
    where = run("-S", "-c", EVERY_MODULE, cwd=empty, PYTHONPATH=needs).split()
    assert len(where) == len(expected) - 1  # but for __main__, which would run
    assert all(Path(file).is_relative_to(site) for file in where)
    shown = run("-S", "-m", "sparsegen", "demo", "-o", "demo.png", cwd=empty, PYTHONPATH=needs)
    assert "PSNR" in shown and (empty / "demo.png").stat().st_size > 100_000
    run(
        *("-S", "-m", "sparsegen", "generate", "--prompt", "a lake", "--steps", "2", "-o", "lake.png"),
        cwd=empty,
        PYTHONPATH=needs,
    )
    assert (empty / "lake.png").stat().st_size > 1_000


def test_a_checkout_that_is_not_installed_says_how_it_is() -> None:
    # -S: without the site module nothing is installed
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import sparsegen"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "run pip install -e . there, or start Python in another folder" in done.stderr
