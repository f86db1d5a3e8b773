"""CPU time of two commits in turn, call by call: built-in models, dense and edited; the bits first, then the ratios.

    python -m bench.commits OLD NEW [--rounds 5] [--repeats 9] [--threads 1 2]

Each commit is unpacked into a folder. In each round a worker for each of them, in a separate process, makes the same
calls, one worker waiting while the other computes. The time is the process's, user and system: on a machine that others
use too it is disturbed less than the time that passes, and what disturbs two calls in a row disturbs both alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import sparsegen
from bench.harness import RESULTS, machine, record, say

ROOT = Path(__file__).parents[1]
FOLDERS = {"sparsegen": "sparsegen", "backends": "sparsegen/backends", "weights": "sparsegen/weights"}
"""Folder of the checkout -> where the package has it."""
AREAS, POLICY = (0.012, 0.15), "paper"
STEPS = 3
RUNS = ("landscape", "landscape-ddpm", f"landscape-ddpm, SDEdit of {STEPS} steps")

# -- a worker: the package is that of one commit, so this part uses only what the commits have in common -----


def calls(run: str, inputs: Path) -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    """The calls of a worker: the case that each belongs to, the timed call, and one after it that is not timed."""
    name, _, pipeline = run.partition(", ")
    model: Any = sparsegen.load(name)
    conditions = {} if pipeline or name == "landscape" else {model.time: 100}
    with np.load(inputs) as arrays:
        original, edited = arrays["original"], {area: arrays[str(area)] for area in AREAS}
    session: Any = sparsegen.SDEdit(model, steps=STEPS) if pipeline else sparsegen.Session(model)

    for _ in edited[AREAS[0]]:
        yield "dense", partial(session.run, original, **conditions), lambda: None
    for area, variants in edited.items():
        for variant in variants:
            yield f"edit {area:.1%} {POLICY}", partial(session.edit, variant, policy=POLICY), session.undo


def work(run: str, inputs: Path) -> None:
    """Make one call for each line of stdin; each answer is a line: the case, CPU milliseconds, the output's digest."""
    for case, call, after in calls(run, inputs):
        sys.stdin.readline()
        start = time.process_time()
        result = call()
        spent = (time.process_time() - start) * 1e3
        digest = hashlib.sha256(result.output.tobytes()).hexdigest()
        after()
        print(json.dumps([case, spent, digest]), flush=True)
    sys.stdin.readline()


# -- the driver ----------------------------------------------------------------------------------------------


def unpack(commit: str, folder: Path) -> None:
    """Put a commit's package into a folder."""
    for source, target in FOLDERS.items():
        archive = subprocess.run(
            ["git", "archive", f"{commit}:{source}"], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
        (folder / target).mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-x", "-C", folder / target], input=archive.stdout, check=True)


def write_inputs(path: Path, run: str, repeats: int) -> None:
    """An original and `repeats + 1` edited copies for each area, each with another rectangle changed."""
    from sparsegen.images import read_image, read_labels
    from sparsegen.weights import builtin

    name, _, pipeline = run.partition(", ")
    known, rng = builtin.get(name), np.random.default_rng(0)
    assert known is not None
    first = known.examples[0].original
    if name == "landscape":
        original, change = read_labels(first), lambda region: (region + 3) % len(known.labels.names)
    elif pipeline:
        original, change = read_image(first), lambda region: region // 2
    else:
        original, change = rng.standard_normal((128, 128, 3)).astype(np.float32), lambda region: region + 1
    arrays = {"original": original}
    for area in AREAS:
        variants = arrays[str(area)] = np.stack([original] * (repeats + 1))
        h, w = (round(side * area**0.5) for side in original.shape[:2])
        for edited in variants:
            top, left = rng.integers(original.shape[0] - h + 1), rng.integers(original.shape[1] - w + 1)
            region = edited[top : top + h, left : left + w]
            region[:] = change(region)
    np.savez(path, **arrays)


class Worker:
    """A process that computes with one commit's package."""

    def __init__(self, folder: Path, threads: int, words: Sequence[str]) -> None:
        settings = {
            **os.environ,
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "SPARSEGEN_THREADS": str(threads),
            "SPARSEGEN_CACHE_DIR": str(folder / "kernels"),
        }
        command = [sys.executable, "-m", "bench.commits", "--worker", *words]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=folder, env=settings, **pipes)

    def call(self) -> list[Any] | None:
        """The answer to the next call; None: there was no further call."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None


def in_turn(
    folders: Sequence[Path], threads: int, words: Sequence[str]
) -> Iterator[tuple[list[Any], list[Any]]]:
    """The answers of a worker of each commit, call by call; who is first changes."""
    workers = [Worker(folder, threads, words) for folder in folders]
    for turn in range(10**9):
        order = workers if turn % 2 == 0 else workers[::-1]
        answers = {worker: worker.call() for worker in order}
        old, new = (answers[worker] for worker in workers)
        if old is None or new is None:
            break
        yield old, new
    for worker in workers:
        if worker.process.wait():
            raise SystemExit("a worker failed (its message is above)")


def row(case: str, pairs: Sequence[tuple[list[Any], list[Any]]], rounds: int) -> dict[str, Any]:
    """The figures of a case; each round's first call is a warm-up."""
    each = len(pairs) // rounds
    timed = [pair for i, pair in enumerate(pairs) if i % each]
    low, ratio, high = statistics.quantiles([new[1] / old[1] for old, new in timed], n=4)
    return {
        "what": case,
        "same_bits": all(old[2] == new[2] for old, new in pairs),
        "old_cpu_ms": statistics.median(old[1] for old, _ in timed),
        "new_cpu_ms": statistics.median(new[1] for _, new in timed),
        "ratio": ratio,
        "quartiles": [low, high],
        "pairs": len(timed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="the old and the new one")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each commit (5)")
    parser.add_argument("--repeats", type=int, default=9, help="timed calls of a process and a case (9)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (1 2)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON lines (bench/results)")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="models and pipelines (all)")
    parser.add_argument(
        "--folder", type=Path, help="where packages and kernels are kept (a temporary folder)"
    )
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        run, inputs = options.worker
        return work(run, Path(inputs))
    if len(options.commits) != 2:
        parser.error("give two commits, the old one first")
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.folder is None else options.folder.absolute()
        folders = [folder / commit for commit in options.commits]
        for commit, place in zip(options.commits, folders, strict=True):
            unpack(commit, place)
        for run in options.runs:
            inputs = folder / "inputs.npz"
            write_inputs(inputs, run, 0)
            for _ in in_turn(folders, 1, [run, str(inputs)]):
                pass  # the kernels are compiled and cached
            write_inputs(inputs, run, options.repeats)
            for threads in options.threads:
                pairs: dict[str, list[tuple[list[Any], list[Any]]]] = {}
                for turn in range(options.rounds):
                    say(f"timing {run} with {threads} threads, round {turn + 1} of {options.rounds}")
                    for pair in in_turn(folders, threads, [run, str(inputs)]):
                        pairs.setdefault(pair[0][0], []).append(pair)
                common = {
                    "model": run,
                    "threads": threads,
                    "old": options.commits[0],
                    "new": options.commits[1],
                }
                for case, of in pairs.items():
                    figures = {**common, **row(case, of, options.rounds)}
                    record("commits", figures, folder=options.results)
                    print(figures, flush=True)


if __name__ == "__main__":
    main()
