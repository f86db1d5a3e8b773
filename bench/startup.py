"""Whole processes, from the command to the image on disk: import, load, run, write; only the disk's cache is warm.

    python -m bench.startup [--backend NAME] [--repeats 3]

`sparsegen edit` computes the original and the edit; the PyTorch process computes one image, densely.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from bench import street
from bench.cases import CHECKED_AREA, Big, big
from bench.contest import WORKER, ask, environment
from bench.engines import TORCH
from bench.harness import Timing, machine, parse, record, say, table, verdict
from sparsegen.weights import builtin

DEMO_SECONDS = 4.0
"""Target of a demo whose kernels are compiled already."""


@dataclass(frozen=True)
class Command:
    """A process to time, and the seconds within which it must end, if it has a target."""

    name: str
    words: list[str]
    target: float | None = None
    settings: dict[str, str] = field(default_factory=dict)
    """Environment variables beside the inherited ones."""

    def seconds(self, folder: Path) -> float:
        """The seconds that the command takes in `folder`."""
        start = time.perf_counter()
        done = subprocess.run(
            self.words,
            cwd=folder,
            env={**environment(), **self.settings},
            capture_output=True,
            text=True,
        )
        taken = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{self.name} failed:\n{done.stderr}")
        return taken


def draw(folder: Path, net: Big) -> None:
    """The street before and after an edit, labels and instances, as PNG."""
    before = street.street(size=net.size)
    after, _ = street.edited(before, CHECKED_AREA)
    for name, scene in (("before", before), ("after", after)):
        Image.fromarray(scene.labels.astype(np.uint8)).save(folder / f"{name}.png")
        Image.fromarray(scene.instances.astype(np.uint8)).save(folder / f"{name}-instances.png")


def commands(net: Big, backend: str | None, quick: bool) -> Iterator[Command]:
    """The commands to time, in turn; they name the files that `draw` and `main` put into the folder."""
    chosen = ["--backend", backend] if backend else []
    program = [sys.executable, "-m", "sparsegen"]
    known = builtin.get("landscape")
    assert known is not None
    example = known.examples[0]
    inputs = ["--original", str(example.original), "--edited", str(example.edits[0].path)]
    yield Command("import sparsegen", [sys.executable, "-c", "import sparsegen"])
    yield Command("sparsegen edit, landscape", [*program, "edit", *inputs, "-o", "edit.png", *chosen])
    demo = [*program, "demo", "-o", "demo.png", *chosen]
    yield Command("sparsegen demo", demo, DEMO_SECONDS)
    inputs = ["--original", "before.png", "--instances", "before-instances.png"]
    inputs += ["--edited", "after.png", "--edited-instances", "after-instances.png"]
    words = [*program, "edit", "--model", "gaugan.pth", *inputs, "-o", "gaugan.png", *chosen]
    yield Command(f"sparsegen edit, {net.name}", words)
    for engine in TORCH:
        worker = [*WORKER, "--engine", engine, "--task", "image"]
        worker += ["--checkpoint", "gaugan.pth", *(["--quick"] if quick else [])]
        yield Command(f"{engine}, one image, {net.name}", worker)


def main() -> None:
    options = parse(__doc__, repeats=3)
    net = big(options.quick)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, net)
        ask("torch-nchw", "checkpoint", checkpoint=folder / "gaugan.pth", quick=options.quick)
        timed = list(commands(net, options.backend, options.quick))
        taken: dict[str, list[float]] = {command.name: [] for command in timed}
        # the first turn fills the disk's cache and the compiled kernels'; it does not count (quick: there is none)
        for turn in range(bool(options.quick), options.repeats + 1):
            for command in timed:
                say(f"timing {command.name}, {f'turn {turn} of {options.repeats}' if turn else 'warm-up'}")
                taken[command.name].append(command.seconds(folder) * 1e3)
        kernels = {"SPARSEGEN_CACHE_DIR": str(folder / "kernels")}
        demo = next(command for command in timed if command.name == "sparsegen demo")
        first = Command("sparsegen demo, kernels not compiled yet", demo.words, settings=kernels)
        say(f"timing {first.name}")
        timings = {name: Timing(tuple(samples[-options.repeats :])) for name, samples in taken.items()}
        timings[first.name] = Timing((first.seconds(folder) * 1e3,))

    print(machine())
    rows = []
    for command in [*timed, first]:
        timing = timings[command.name]
        row = {"what": command.name, "ms": timing.median, "spread": timing.spread}
        judged = ["", ""]
        if command.target is not None:
            reached = timing.median <= command.target * 1e3
            row |= {"target": command.target * 1e3, "reached": reached}
            judged = [f"≤ {command.target:g} s", verdict(reached)]
        record("startup", {**row, "backend": options.backend, "quick": options.quick}, folder=options.results)
        rows.append([command.name, f"{timing.median / 1e3:.2f} s", f"{timing.spread:.0%}", *judged])
    table(["whole processes", "median", "spread", "target", "reached"], rows)


if __name__ == "__main__":
    main()
