"""The bench on a card, tried without one: its turns, its checks, its bounds, and its answer where there is no card."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import gpu, gpu_cases, gpu_clock, gpu_roofline, gpu_worker
from bench.contest import WrongResult
from bench.gpu_cases import AS_AN_EDIT, DENSE, SDEDIT, TOLERANCES, Task
from bench.gpu_roofline import Cost
from sparsegen.backends import backend_status
from sparsegen.backends.interface import BackendError
from tests.cuda import emulator

ROOT = Path(__file__).parents[2]
TINY = ["--emulated", "--rounds", "1", "--repeats", "1"]
needs_a_compiler = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)


def test_without_a_card_the_bench_ends_with_one_sentence() -> None:
    if backend_status().get("cupy", "absent") is None:
        pytest.skip("there is a card here")
    done = subprocess.run(
        [sys.executable, "bench/gpu.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == gpu.NO_CARD
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("Nothing was measured: backend cupy cannot use a card here: ")


@needs_a_compiler
@pytest.mark.torch
def test_both_engines_are_checked_and_timed_in_turn_and_nothing_is_recorded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--cases", "ddpm", "--precisions", "float32", "--areas", "dense,1.2", "--policies", "paper"]
    assert gpu.main([*TINY, *words, "--layers", "3", "--results", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert "these figures measure nothing" in out
    assert "ddpm, float32, sparsegen: largest error" in err
    assert err.index("torch, dense") < err.index("sparsegen, dense") < err.index("edit 1.2% paper")
    assert "conv1" in out and "all 45 layers" in out
    assert "yes" not in out.split() and "NO" not in out.split()  # no aim of figures that measure nothing
    assert not list(tmp_path.iterdir())


@needs_a_compiler
@pytest.mark.torch
def test_a_worker_checks_the_outputs_first_and_is_asked_for_times(tmp_path: Path) -> None:
    seen = {}
    for engine in gpu_cases.ENGINES:
        task = Task(engine, "gaugan", tmp_path / "net.pth", ("float32",), emulated=True)
        [message] = gpu_worker.work(Task.read(task.written()), lambda: False)
        with np.load(message["outputs"]) as outputs:
            seen[engine] = dict(outputs)
    assert gpu.compare(seen["sparsegen"], seen["torch"], TOLERANCES["float32"]) < TOLERANCES["float32"]
    seen["sparsegen"][next(iter(seen["torch"]))].flat[3] += 1
    with pytest.raises(WrongResult, match=r"off by|differs"):
        gpu.compare(seen["sparsegen"], seen["torch"], TOLERANCES["float32"])


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    """PyTorch's gradients on again: the engine switches them off for its process."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_grad_enabled(True)


@pytest.mark.torch
@pytest.mark.parametrize("case", ["ddpm", "pd"])
def test_pytorchs_denoising_is_the_samplers(tmp_path: Path, case: str) -> None:
    import torch

    import sparsegen
    from bench.gpu_torch import GpuTorch
    from sparsegen.diffusion import seeds
    from sparsegen.pipelines.steps import denoised

    engine = GpuTorch(Task("torch", case, tmp_path / "net.pth", emulated=True))
    engine.open("float32")
    net, model = engine.net, sparsegen.load(tmp_path / "net.pth")
    settings = gpu_cases.denoising(net, emulated=True)
    scheme, times = settings.noise_schedule(), settings.times()
    image, mask = np.tanh(net.noisy(1))[None], net.strokes(0.012, 1)[None]
    noise = seeds.noise(0, seeds.START, image.shape)
    painted = np.where(mask[..., None], np.float32(0.5), image)

    def compute(i: int, x: Any, now: float) -> Any:
        given = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)
        return engine.run(given, torch.full((1,), now)).permute(0, 2, 3, 1).numpy()

    x = scheme.noised(painted, noise, times[0])
    for step in denoised(model, model.diffusion, settings, compute, x, lambda i: noise):
        end = step.next_timestep is None
        held = image if end else scheme.noised(image, noise, step.next_timestep)
        step.x[~mask] = held[~mask]
    expected = ((step.x.clip(-1, 1) + 1) * 127.5).round()
    found = engine.sdedit(1).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found[mask] != ((painted + 1) * 127.5).round()[mask]).any()


def test_a_precision_that_the_backend_does_not_have_is_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from bench import gpu_sparsegen

    def refuse(precision: str, emulated: bool) -> Any:
        raise BackendError("no tf32 here")

    monkeypatch.setattr(gpu_sparsegen, "_backend", refuse)
    task = Task("sparsegen", "ddpm", tmp_path / "none.pth", ("tf32",), emulated=True)
    [message] = gpu_worker.work(task, lambda: True)
    assert message["refused"] == "no tf32 here"
    contest = gpu.Contest(gpu.parsed([*TINY, "--precisions", "tf32"]), {})
    contest.take(task, message)
    assert not contest.wall and not list(contest.rows("ddpm", "tf32"))


# -- figures ---------------------------------------------------------------------------------------------


def test_rows_are_recorded_as_they_come_and_judged_at_the_end(tmp_path: Path) -> None:
    options = gpu.parsed(["--results", str(tmp_path), "--cases", "ddpm", "--precisions", "tf32"])
    contest = gpu.Contest(options, {"card": "NVIDIA H100 80GB HBM3"})
    common = {"precision": "tf32", "version": "1", "graphs": 1}
    for engine, what, ms in (
        ("torch", DENSE, 13.0),
        ("sparsegen", DENSE, 10.0),
        ("sparsegen", AS_AN_EDIT, 18.0),
        ("sparsegen", "edit 1.2% paper", 2.0),
    ):
        task = Task(engine, "ddpm", tmp_path / "net.pth")
        contest.take(task, {**common, "what": what, "wall": [ms], "device": [ms / 2]})
    lines = (tmp_path / "gpu.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 4
    row = json.loads(lines[-1])
    assert (row["card"], row["shape"], row["ms"], row["device_ms"]) == (
        "NVIDIA H100 80GB HBM3",
        [256, 256],
        2,
        1,
    )
    table = {row[0]: row[4:] for row in contest.rows("ddpm", "tf32")}
    assert table["sparsegen, dense"] == ("1.30", "1.30", "≤ 1.3 × its time", "yes")
    assert table["sparsegen, dense, as an edit"][-1] == "NO"
    assert table["sparsegen, edit 1.2% paper"] == ("6.50", "6.50", "≥ 6 ×", "yes")
    judged = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text("utf-8").splitlines()[4:]]
    assert [row["reached"] for row in judged] == [True, False, True]


def test_the_options_choose_what_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = gpu.parsed(["--areas", "1.2,sdedit", "--cases", "pd", "--rounds", "2"])
    assert (chosen.areas, chosen.dense, chosen.sdedit) == ((0.012,), False, True)
    turns = list(gpu.tasks(chosen, Path()))
    assert [(task.engine, task.check) for task in turns] == [
        ("torch", True),
        ("sparsegen", True),
        ("torch", False),
        ("sparsegen", False),
    ]
    for words in (["--areas", "big"], ["--cases", "sd"], ["--rounds", "0"]):
        with pytest.raises(SystemExit):
            gpu.parsed(words)
    assert "expected some of gaugan,ddpm,pd" in capsys.readouterr().err


def test_a_clock_counts_graphs_alone_if_a_call_launches_any() -> None:
    now = iter(range(100))
    clock = gpu_clock.Clock(lambda: next(now), lambda first, last: last - first)

    def call() -> None:
        for _ in range(2):
            next(now)  # the card waits
            with clock.graph():
                pass

    sample = clock.time(call)
    assert (sample.device, sample.graphs) == (2, 2)
    assert clock.time(lambda: next(now)).device == 2  # none: around the call
    assert gpu_clock.Clock().time(call).device is None


def test_a_layer_takes_no_less_than_its_arithmetic_and_its_bytes() -> None:
    h100 = gpu_roofline.card("NVIDIA H100 80GB HBM3")
    dense = Cost("conv", 10**9, 10**9 / 4, 4 * 10**6, 10**6, 10**6, 1.0)
    milliseconds, limit = dense.bound(h100, "float32")
    assert limit == "arithmetic" and milliseconds == pytest.approx(0.5e9 / 67e12 * 1e3)
    milliseconds, limit = dense.bound(h100, "float16")
    assert limit == "memory" and milliseconds == pytest.approx(6e6 / 3.35e12 * 1e3)
    *_, total = gpu.bound_lines([dense, dense], h100, "float32", 1)
    assert total[:4] == ("all 2 layers", "2.000", "12.0", "2000.0")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
    ],
)
def test_cards_are_known_by_name(device: str, name: str) -> None:
    assert gpu_roofline.card(device).name == name


def test_an_unknown_card_has_the_bandwidth_of_a_copy() -> None:
    some = gpu_roofline.card("NVIDIA L400", multiprocessors=10, gigahertz=2.0, bandwidth=0.5)
    assert some.bandwidth == 0.5
    assert some.peak("tf32") == pytest.approx(10 * 128 * 2 * 2e9)


def test_the_work_of_a_layer_is_that_of_its_profile() -> None:
    import sparsegen
    from tests.unets import noisy, random_ddpm

    model = random_ddpm()
    session = sparsegen.Session(model, "reference", policy="paper")
    x = noisy(np.random.default_rng(0))[0]
    stats = session.run(x, timestep=300, progress=lambda record: None).stats
    profile = sparsegen.profile(model, x, timestep=300)
    found = {cost.path: cost for cost in gpu_roofline.costs(profile, stats.layers)}
    first = found["conv_in"]
    assert first.weight_bytes == 4 * (8 * 3 * 9 + 8)
    assert (first.read_bytes, first.written_bytes) == (4 * 16 * 16 * 3, 4 * 16 * 16 * 8)
    assert first.macs == first.multiplied == 16 * 16 * 8 * 3 * 9  # the reference computes directly
    down = found["down.0.downsample.conv"]
    assert (down.read_bytes, down.written_bytes) == (4 * 16 * 16 * 8, 4 * 8 * 8 * 8)
    up = found["up.1.upsample.conv"]
    assert (up.read_bytes, up.written_bytes) == (4 * 8 * 8 * 16, 4 * 16 * 16 * 16)
    assert sum(cost.macs for cost in found.values()) == sum(layer.macs for layer in stats.layers)
    assert all(math.isfinite(cost.milliseconds) and cost.milliseconds > 0 for cost in found.values())
    assert SDEDIT not in found
