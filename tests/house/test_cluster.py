"""Metrics on a Dask cluster of two processes on this machine: the rows of the local runner, each once."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sparsegen.errors import InputError
from tests.house.pages import ROOT
from tests.house.test_metrics import edited, rows_of, run, save, timeless, written
from tests.unets import random_ddpm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("distributed") is None,
        reason="distributed is not installed (the cluster extra has it)",
    ),
]

ORIGINALS, EDITS = 3, 2
POLICIES = ("fast", "exact")
OPTIONS = ("--steps", "4", "--policies", *POLICIES)
SECONDS = 120
"""For anything to happen; it takes a few."""
QUIET = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")
"""No pages, and what is served beside them on the loopback interface alone."""
ALONE = {"OMP_NUM_THREADS": "1"}


@contextmanager
def started(*words: str, log: Path, cwd: Path = ROOT) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=cwd,
            env={**os.environ, **ALONE},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def until(what: str, happens: object, *processes: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS
    while not happens():
        assert time.monotonic() < end, f"waited for {what}"
        assert all(process.poll() is None for process in processes), f"a process ended before {what}"
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(ORIGINALS):
        before = np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        save(tmp_path / f"set/original/{number}.png", before)
        for each in range(EDITS):
            after, mask = edited(before, 10 * number + each)
            save(tmp_path / f"set/edited/{number}/{each}.png", after)
            save(tmp_path / f"set/masks/{number}/{each}.npy", mask)
    return tmp_path / "set"


@pytest.fixture
def model(tmp_path: Path) -> str:
    return written(tmp_path / "ddpm.safetensors", random_ddpm())


@contextmanager
def scheduling(tmp_path: Path, *, cwd: Path = ROOT) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A scheduler on the loopback interface, and its address."""
    place = tmp_path / "scheduler.json"
    words = ("--host", "127.0.0.1", "--port", "0", *QUIET, "--scheduler-file", str(place))
    with started("dask", "scheduler", *words, log=tmp_path / "scheduler.log", cwd=cwd) as process:
        until("the scheduler", place.exists, process)
        yield process, json.loads(place.read_text())["address"]


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    with scheduling(tmp_path) as (_, address):
        yield address


@contextmanager
def worker(address: str, log: Path, *, cwd: Path = ROOT) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that nobody starts again."""
    words = ("--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", *QUIET)
    with started("dask", "worker", address, *words, log=log, cwd=cwd) as process:
        yield process


def test_a_worker_that_dies_half_way_loses_no_row(
    folder: Path, model: str, scheduler: str, tmp_path: Path
) -> None:
    local, spread, log = tmp_path / "local.csv", tmp_path / "spread.csv", tmp_path / "metrics.log"
    assert run(folder, local, model, *OPTIONS) == 0
    each = EDITS * len(POLICIES)

    def begun() -> bool:
        """Whether both workers are in the middle of an original: one computes its originals one after another."""
        if not spread.exists():
            return False
        counts = Counter(row["edit"].partition("/")[0] for row in rows_of(spread))
        return sum(0 < count < each for count in counts.values()) == 2

    common = ("bench.metrics", str(folder), "--model", model, "--backend", "reference", "-o", str(spread))
    # repeats: an edit takes long enough to be interrupted
    options = (*OPTIONS, "--repeats", "6", "--workers", scheduler)
    with (
        worker(scheduler, tmp_path / "0.log") as first,
        worker(scheduler, tmp_path / "1.log") as second,
        started(*common, *options, log=log) as command,
    ):
        until("rows of both workers", begun, first, second, command)
        first.kill()
        assert command.wait(SECONDS) == 0, log.read_text()
        assert second.poll() is None
    assert "a worker was lost on the way" in log.read_text()
    rows = timeless(spread)
    assert len(rows) == ORIGINALS * each and rows == timeless(local)
    # nothing is left to compute, so no cluster is needed
    assert run(folder, spread, model, *OPTIONS) == 0
    assert len(rows_of(spread)) == len(rows)


def test_the_edits_of_an_original_meet_one_worker(
    folder: Path, model: str, scheduler: str, tmp_path: Path
) -> None:
    output = tmp_path / "rows.csv"
    with worker(scheduler, tmp_path / "0.log"), worker(scheduler, tmp_path / "1.log"):
        assert run(folder, output, model, *OPTIONS, "--workers", scheduler) == 0
    # a worker writes an original's rows in order, whatever comes between
    for number in range(ORIGINALS):
        names = [(row["policy"], row["edit"]) for row in rows_of(output) if row["edit"][0] == str(number)]
        assert names == [(policy, f"{number}/{edit}") for policy in POLICIES for edit in range(EDITS)]


def test_files_that_fail_are_named_by_the_worker(
    folder: Path, model: str, scheduler: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "edited/2/1.png").write_bytes(b"not a PNG")
    output = tmp_path / "rows.csv"
    with worker(scheduler, tmp_path / "0.log"):
        assert run(folder, output, model, *OPTIONS, "--workers", scheduler) == 1
    assert capfd.readouterr().err.count("edited/2/1.png: not an image") == 1
    assert len(rows_of(output)) == (ORIGINALS * EDITS - 1) * len(POLICIES)


def test_a_scheduler_that_is_stopped_is_one_line_and_the_rows_stay(
    folder: Path, model: str, tmp_path: Path
) -> None:
    spread, log = tmp_path / "rows.csv", tmp_path / "metrics.log"
    common = ("bench.metrics", str(folder), "--model", model, "--backend", "reference", "-o", str(spread))
    with scheduling(tmp_path) as (process, address):
        options = (*OPTIONS, "--repeats", "20", "--workers", address)
        with worker(address, tmp_path / "0.log"), started(*common, *options, log=log) as command:
            until("a row", lambda: spread.exists() and rows_of(spread), command)
            process.kill()
            assert command.wait(SECONDS) == 1
    lines = log.read_text().splitlines()
    assert sum("error: --workers" in line for line in lines) == 1, lines
    assert not any("Traceback" in line for line in lines), lines
    assert run(folder, spread, model, *OPTIONS) == 0
    assert len(rows_of(spread)) == ORIGINALS * EDITS * len(POLICIES)


@pytest.mark.parametrize("lacks", ["scheduler", "worker"])
def test_processes_that_lack_this_package_are_one_line(
    lacks: str, folder: Path, model: str, tmp_path: Path
) -> None:
    places = {"scheduler": ROOT, "worker": ROOT, lacks: tmp_path}
    with (
        scheduling(tmp_path, cwd=places["scheduler"]) as (_, address),
        worker(address, tmp_path / "0.log", cwd=places["worker"]),
        pytest.raises(InputError, match=r"misses a package .*'bench'.*python -m dask worker tcp://"),
    ):
        run(folder, tmp_path / "rows.csv", model, *OPTIONS, "--workers", address)
