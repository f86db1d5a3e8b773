"""Engines against one another: tasks come in, replies come out, each from a fresh process, in turn.

Idle thread pools spin and warm caches distort timings, so no two engines share a process or run at the same time. They
take turns over several rounds, so that a slow minute of the machine affects all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from bench.engines import OURS, OURS_BFLOAT16, STORED, TORCH_BFLOAT16
from bench.harness import THREADS, Timing, say

WORKER = (sys.executable, "-m", "bench.worker")
"""The command that starts a worker; `environment` makes it importable from any folder."""
POOLS = ("SPARSEGEN", "NUMBA", "OMP", "OPENBLAS", "MKL")
"""Prefixes of the variables that limit threads: `<name>_NUM_THREADS`; sparsegen's is `SPARSEGEN_THREADS`."""

KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Settings with which glibc keeps freed memory. Without them PyTorch takes fresh pages for every large output, and in a
wide 1×1 convolution they cost more than the arithmetic. sparsegen writes into canvases that stay, and needs none."""

TOLERANCE = 1e-4
"""Largest error against PyTorch, relative to its largest value, at which an engine is still timed."""
TOLERANCES_16_BITS = {TORCH_BFLOAT16: 1e-1, OURS_BFLOAT16: 1e-2, **dict.fromkeys(STORED, 1e-1)}
"""Largest root mean square of the errors of an engine in 16 bits, relative to that of the oracle's values.

A value of bfloat16 has 8 bits, and networks with random weights enlarge its rounding: to 1 % of the result (DDPM),
to 5 % (GAN Compression), single pixels to 15 % of the largest value. sparsegen rounds some products alone, and was off
by at most 0.5 %. Each row of these engines has its errors."""


class Error(NamedTuple):
    """An output's errors against PyTorch."""

    largest: float
    """Relative to the largest value."""
    rms: float
    """The root mean square, relative to that of the values."""


Worker = TypeVar("Worker", bound=Hashable)

Errors = Mapping[str, Mapping[str, Error]]
"""Engine -> output -> errors."""


class WrongResult(Exception):
    """The error of an engine whose output differs from PyTorch's: it is not timed."""


@dataclass(frozen=True)
class Reply:
    """A worker's answer."""

    version: str
    timings: dict[str, list[float]]
    figures: dict[str, Any]


def environment(engine: str = OURS, *, plain_memory: bool = False, threads: int = THREADS) -> dict[str, str]:
    """A worker's environment: its number of threads; freed memory kept for every rival, unless `plain_memory`."""
    pools = {f"{pool}_NUM_THREADS": str(threads) for pool in POOLS}
    memory = {} if engine.partition("-")[0] == OURS or plain_memory else KEPT_MEMORY
    own = {"SPARSEGEN_THREADS": str(threads), "PYTHONPATH": str(Path(__file__).parents[1])}
    return {**os.environ, **pools, **memory, **own}


def ask(
    engine: str,
    task: str,
    *,
    outputs: Path | None = None,
    plain_memory: bool = False,
    threads: int = THREADS,
    **options: Any,
) -> Reply:
    """The reply of a new worker; `options` are the worker's, without those that are None or False."""
    words = [*WORKER, "--engine", engine, "--task", task]
    for name, value in {**options, "outputs": outputs}.items():
        if value is True:
            words.append(f"--{name}")
        elif value not in (None, False):
            words += [f"--{name}", str(value)]
    settings = environment(engine, plain_memory=plain_memory, threads=threads)
    done = subprocess.run(words, env=settings, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{engine} failed at {task} (its message is above)")
    return Reply(**json.loads(done.stdout.splitlines()[-1]))


def check(engines: Sequence[str], task: str, *, oracle: str = "torch-nchw", **options: Any) -> Errors:
    """Every engine's errors against the oracle.

    An output "…, as an edit" must equal the engine's own output of that name bit for bit.

    Raises
    ------
    WrongResult
        An error is above `TOLERANCE` or that of `TOLERANCES_16_BITS`, or bits differ.
    """
    errors: dict[str, dict[str, Error]] = {}
    with tempfile.TemporaryDirectory() as folder:
        expected, found = Path(folder) / "expected.npz", Path(folder) / "found.npz"
        say(f"checking {task}: {oracle}")
        ask(oracle, task, check=True, outputs=expected, **options)
        for engine in engines:
            if engine == oracle:
                continue
            say(f"checking {task}: {engine}")
            ask(engine, task, check=True, outputs=found, **options)
            with np.load(expected) as right, np.load(found) as ours:
                errors[engine] = {name: _error(ours[name], right[name]) for name in right.files}
                for name in ours.files:
                    base, edit, _ = name.partition(", as an edit")
                    if edit and not np.array_equal(ours[name], ours[base]):
                        raise WrongResult(f"{engine}: {name} differs from the dense run")
            for name, error in errors[engine].items():
                judge(engine, name, error)
    return errors


def judge(engine: str, name: str, error: Error) -> None:
    """Raise WrongResult if an engine with such errors is not to be timed."""
    if engine in TOLERANCES_16_BITS:
        found, allowed, of = error.rms, TOLERANCES_16_BITS[engine], "the values, in root mean squares"
    else:
        found, allowed, of = error.largest, TOLERANCE, "the largest value"
    if not found <= allowed:
        raise WrongResult(f"{engine}: {name} is off by {found:.1e} of {of}, expected at most {allowed:.0e}")


def worst(errors: Errors, engine: str) -> dict[str, float]:
    """The largest errors of an engine's outputs, for its row; of one that was not compared, none."""
    if engine not in errors:
        return {}
    found = errors[engine].values()
    return {"error": max(each.largest for each in found), "error_rms": max(each.rms for each in found)}


def say_errors(errors: Errors) -> None:
    """Print the largest errors of each engine."""
    for engine in errors:
        error = worst(errors, engine)
        print(
            f"{engine}: largest error against PyTorch {error['error']:.1e} of the largest value, root mean square "
            f"{error['error_rms']:.1e}"
        )


def _error(found: np.ndarray, expected: np.ndarray) -> Error:
    if found.shape != expected.shape:
        raise WrongResult(f"the shape is {found.shape}, expected {expected.shape}")
    off, right = np.abs(found - expected), np.abs(expected)
    rms = np.sqrt(np.mean(off**2, dtype=np.float64) / np.mean(right**2, dtype=np.float64))
    return Error(float(off.max() / right.max()), float(rms))


def in_turn(engines: Iterable[str], task: str, *, rounds: int, **options: Any) -> dict[str, list[Reply]]:
    """Every engine's replies of all rounds."""
    return take_turns(task, {engine: partial(ask, engine, task, **options) for engine in engines}, rounds)


def take_turns(
    task: str, workers: Mapping[Worker, Callable[[], Reply]], rounds: int
) -> dict[Worker, list[Reply]]:
    """Every worker's replies of all rounds; a worker is called once a round, and starts a process each time."""
    replies: dict[Worker, list[Reply]] = {worker: [] for worker in workers}
    for turn in range(rounds):
        for worker, call in workers.items():
            say(f"timing {task}: {worker}, round {turn + 1} of {rounds}")
            replies[worker].append(call())
    return replies


def together(replies: Sequence[Reply]) -> dict[str, Timing]:
    """The timings of all rounds, by name."""
    return {
        name: Timing(tuple(sample for reply in replies for sample in reply.timings[name]))
        for name in replies[0].timings
    }
