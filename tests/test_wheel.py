"""The built wheel, installed into an empty folder, is whole: every module, the built-in weights, the examples."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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
    }
    assert {name for name in packed if name.endswith(".py")} == expected
    assert "sparsegen/py.typed" in packed

    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    where = run("-c", "import sparsegen; print(sparsegen.__file__)", cwd=empty, PYTHONPATH=str(site))
    assert Path(where.strip()).is_relative_to(site)
    shown = run("-m", "sparsegen", "demo", "-o", "demo.png", cwd=empty, PYTHONPATH=str(site))
    assert "PSNR" in shown and (empty / "demo.png").stat().st_size > 100_000
