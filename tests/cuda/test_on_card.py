"""`make test-gpu`: its parts are commands that exist, and say what fails, without a card."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cuda import on_card
from tests.cuda.fake_cupy import H100, Install


def test_the_suites_on_a_card_are_commands_that_collect_tests(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], install: Install
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    commands = on_card.parts("/opt/compute-sanitizer")
    assert list(commands) == ["instructions", "suites", "memcheck", "racecheck", "initcheck"]
    for name, command in commands.items():
        tests = [word for word in command if word.startswith("tests/")]
        assert tests and all(Path(each).exists() for each in tests), name
    assert commands["memcheck"][:5] == [
        "/opt/compute-sanitizer",
        "--tool",
        "memcheck",
        "--error-exitcode",
        "1",
    ]
    assert list(on_card.parts(None)) == ["instructions", "suites"]
    run: list[str] = []

    def pretend(command: list[str]) -> Any:
        run.append(command[0])
        return SimpleNamespace(returncode=len(run) == 1)

    monkeypatch.setattr(subprocess, "run", pretend)
    monkeypatch.setattr(on_card, "sanitizer", lambda: None)
    install()
    assert on_card.main([]) == 2 and not run
    assert capsys.readouterr().out.startswith("nothing to test on: the NVIDIA driver finds no card")
    install(H100)
    assert on_card.main([]) == 1 and len(run) == 2
    said = capsys.readouterr().out
    assert on_card.PACKAGE in said and said.endswith("failed: instructions, memcheck, racecheck, initcheck\n")
    monkeypatch.setattr(on_card, "sanitizer", lambda: "/opt/compute-sanitizer")
    assert on_card.main([]) == 0 and run[-3:] == ["/opt/compute-sanitizer"] * 3
    assert on_card.main(["suites"]) == 0 and len(run) == 8


def test_the_sanitizer_is_found_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert on_card.sanitizer() is None
    folder = tmp_path / "nvidia" / "cu13" / "compute-sanitizer"
    folder.mkdir(parents=True)
    (folder / "compute-sanitizer").touch()
    assert on_card.sanitizer() == str(folder / "compute-sanitizer")


def test_a_failing_test_is_named_before_the_others_end(tmp_path: Path) -> None:
    file = tmp_path / "test_two.py"
    file.write_text("def test_fails(): assert 1 == 2\ndef test_passes(): assert True\n", "utf-8")
    command = on_card.pytest_command("--rootdir", str(tmp_path), "-c", "/dev/null", str(file))
    said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout
    first, rest = said.split("test_two.py::test_fails", 1)
    assert first.endswith("FAILED ") and "call" in rest.splitlines()[0]
    assert "1 failed, 1 passed" in rest
