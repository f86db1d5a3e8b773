"""Switches fit the sources of the kernels: every replaced text is there once, and every case can be computed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import report, switches
from bench.commits import ROOT
from bench.switch_cases import CASES, Prepared, Timed
from bench.switch_table import KERNELS, SWITCHES, Change, Switch, SwitchError, named
from sparsegen.backends import get_backend


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
def test_every_replaced_text_is_in_the_sources_once(switch: Switch) -> None:
    assert switch.changes
    changed = switch.sources(ROOT)
    for path, source in changed.items():
        ast.parse(source)
        assert source != path.read_text("utf-8")


def test_switches_and_cases_have_names_of_their_own() -> None:
    names = [switch.name for switch in SWITCHES]
    assert len(set(names)) == len(names)
    timed = {case for switch in SWITCHES for case in switch.cases}
    assert timed == set(CASES.values())
    assert all(len(set(switch.cases)) == len(switch.cases) > 0 for switch in SWITCHES)


def test_a_text_that_is_not_there_once_is_an_error_that_names_the_switch(tmp_path: Path) -> None:
    (tmp_path / KERNELS).mkdir(parents=True)
    (tmp_path / KERNELS / "gemm.py").write_text("DEPTH = 128\nROWS = 6\nROWS = 6\n", "utf-8")
    case = next(iter(CASES.values()))
    for text, count in (("DEPTH = 64", 0), ("ROWS = 6", 2)):
        switch = Switch("some", "a trick", "none", (Change("gemm.py", text, "pass"),), (case,))
        with pytest.raises(SwitchError, match=rf"switch some: '{text}' occurs {count} times in .*gemm\.py"):
            switch.sources(tmp_path)
    changes = (Change("gemm.py", "DEPTH = 128", "DEPTH = 1"), Change("gemm.py", "DEPTH = 1\n", ""))
    (both,) = Switch("some", "a trick", "none", changes, (case,)).sources(tmp_path).values()
    assert both == "ROWS = 6\nROWS = 6\n"


def test_switches_are_chosen_by_name() -> None:
    first, second = SWITCHES[:2]
    assert named([]) == SWITCHES and named([second.name, first.name]) == (first, second)
    with pytest.raises(SwitchError, match=f"unknown switch turbo; known: {first.name}, "):
        named(["turbo"])


def test_a_copy_of_the_package_is_imported_from_its_folder(tmp_path: Path) -> None:
    folder = switches.copy_package(tmp_path / "copy", SWITCHES[0])
    ((path, source),) = SWITCHES[0].sources(ROOT).items()
    assert (folder / "sparsegen" / KERNELS / path.name).read_text("utf-8") == source
    code = "import sparsegen.backends.numba_cpu as kernels; print(kernels.__file__)"
    settings = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=folder, env=settings, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(folder)


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_every_case_is_computed_at_a_small_size(case: Timed) -> None:
    first, second = (case.small().prepare(get_backend("reference")) for _ in range(2))
    for call, out, between in (first, second):
        call()
        found = np.array(out)
        assert np.isfinite(found).all() and found.any()
        between()
        out[...] = 0
        call()
        assert out.any()
        if between is Prepared._field_defaults["between"]:
            assert np.array_equal(out, found)
    assert np.array_equal(first.out, second.out)


def test_a_gain_is_the_median_ratio_of_two_bursts_in_a_row() -> None:
    found = switches.row(SWITCHES[0], "a layer", [(1.0, 1.1), (2.0, 2.6), (4.0, 6.0)])
    assert found["ms"] == 2.0 and found["ms_without"] == 2.6 and found["pairs"] == 3
    assert found["gain"] == pytest.approx(1.3) and found["quartiles"] == pytest.approx([1.1, 1.5])


def test_gains_are_shown_for_each_kind_of_vectors_once_they_are_measured(tmp_path: Path) -> None:
    assert not list(report._switches(tmp_path))
    switch = next(each for each in SWITCHES if len(each.cases) > 1)
    one, two = (case.name for case in switch.cases[:2])
    common = {"commit": "one", "date": "2026-01-01", "ms": 2.0, "ms_without": 150.0, "quartiles": [1.1, 1.3]}
    lines = [
        {"machine": "A, AVX-512", "switch": switch.name, "what": two, "gain": 1.2},
        {"machine": "A, AVX-512", "switch": switch.name, "what": one, "gain": 1.25},
        {"machine": "B, AVX2", "switch": switch.name, "what": one, "gain": 0.9},
        {"machine": "A, AVX-512", "switch": "one of old", "what": one, "gain": 7.0},
    ]
    text = "".join(json.dumps(common | line) + "\n" for line in lines)
    (tmp_path / "switches.jsonl").write_text(text, "utf-8")
    shown = "\n".join(report._switches(tmp_path))
    line = f"| `{switch.name}`: {one} | 2.00 ms | 150 ms | 1.25 | 1.10 to 1.30 |"
    assert f"{line}\n| `{switch.name}`: {two} |" in shown
    assert shown.index("Measured on A") < shown.index("Measured on B") and "0.90" in shown
    assert "one of old" not in shown and all(f"- `{each.name}` (" in shown for each in SWITCHES)


@pytest.mark.slow
def test_a_trick_is_timed_from_the_command_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench.switches", "--quick", "--switches", "last-window"]
    words += ["--results", str(tmp_path), "--folder", str(tmp_path / "copies")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (switch,) = named(["last-window"])
    (found,) = map(json.loads, (tmp_path / "switches.jsonl").read_text("utf-8").splitlines())
    assert (found["switch"], found["what"], found["quick"]) == (switch.name, switch.cases[0].name, True)
    assert found["ms"] > 0 and found["gain"] > 0
    assert not list(report._switches(tmp_path))  # as every line of a quick run
