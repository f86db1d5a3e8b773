"""Whole processes, from the command to the image on disk: import, load, run, write; only the disk's cache is warm.

    python -m bench.startup [--backend NAME] [--repeats 3]

`sparsegen edit` computes the original and the edit, of a saved session the edit alone; the PyTorch process computes one
image, densely.
"""

from __future__ import annotations

import shutil
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
from bench.processor import AS_AVX2, LIMITABLE, features, kind
from sparsegen.backends.caches import CACHE_VARIABLE
from sparsegen.weights import builtin

DEMO_SECONDS = 4.0
"""Target of a demo whose kernels are compiled already."""
FIRST_SECONDS = 30.0
"""Target of a demo that compiles them."""
BEYOND_SECONDS = 0.7
"""Target of an edit of a saved session, from the command to the image, less the edit itself."""
SAVED, OPENED = "saved.session", "opened.session"
EDITS = 5
ITSELF = f"""
import sparsegen, statistics, sys, time
from sparsegen.images import read_labels
session = sparsegen.Session.load("{SAVED}", backend=sys.argv[2] or None)
edited, seconds = read_labels(sys.argv[1]), []
for _ in range({EDITS} + 1):
    start = time.perf_counter()
    session.edit(edited)
    seconds.append(time.perf_counter() - start)
    session.undo()
print(statistics.median(seconds[1:]))
"""
"""Prints the seconds that an edit of the saved session takes where all is loaded."""


@dataclass(frozen=True)
class Command:
    """A process to time, and the seconds within which it must end, if it has a target."""

    name: str
    words: list[str]
    target: float | None = None
    settings: dict[str, str] = field(default_factory=dict)
    """Environment variables beside the inherited ones."""
    until: str = ""
    """A file: the time ends when it is there. "": with the process."""
    copied: tuple[str, str] | None = None
    """A file, and the name that it is copied to before."""
    less: float = 0.0
    """Seconds that do not count."""

    def seconds(self, folder: Path) -> float:
        """The seconds that the command takes in `folder`."""
        if self.copied:
            shutil.copy(folder / self.copied[0], folder / self.copied[1])
        if self.until:
            (folder / self.until).unlink(missing_ok=True)
        start = time.perf_counter()
        process = subprocess.Popen(
            self.words,
            cwd=folder,
            # installed packages have their bytecode; a checkout's is written in the first turn
            env={**environment(), "PYTHONDONTWRITEBYTECODE": "", **self.settings},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while self.until and process.poll() is None and not (folder / self.until).exists():
            time.sleep(0.001)
        seen = time.perf_counter() - start
        _, errors = process.communicate()
        taken = seen if self.until else time.perf_counter() - start
        if process.returncode:
            raise SystemExit(f"{self.name} failed:\n{errors}")
        return taken - self.less


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


def of_a_saved_session(folder: Path, backend: str | None) -> Command:
    """An edit of a saved session of the built-in model, which this saves in `folder`."""
    known = builtin.get("landscape")
    assert known is not None
    example, chosen = known.examples[0], ["--backend", backend] if backend else []
    original, *edits = (str(each) for each in (example.original, *(edit.path for edit in example.edits[:2])))
    words = [sys.executable, "-m", "sparsegen", "edit", *chosen, "--original", original]
    Command("save a session", [*words, "--session", SAVED, "--edited", edits[0], "-o", "first.png"]).seconds(
        folder
    )
    itself = subprocess.run(
        [sys.executable, "-c", ITSELF, edits[1], backend or ""],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Command(
        "sparsegen edit of a saved session, beyond the edit",
        [*words, "--session", OPENED, "--edited", edits[1], "-o", "second.png"],
        BEYOND_SECONDS,
        until="second.png",
        copied=(SAVED, OPENED),
        less=float(itself.stdout),
    )


def first_demos(demo: Command, folder: Path) -> Iterator[Command]:
    """The demo on a machine whose kernels are not compiled yet, and with AVX-512 also on one that has AVX2."""
    name, kernels = f"{demo.name}, kernels not compiled yet", {CACHE_VARIABLE: str(folder / "kernels")}
    yield Command(name, demo.words, FIRST_SECONDS, settings=kernels)
    if kind(features()) in LIMITABLE:
        yield Command(f"{name}, those for AVX2", demo.words, FIRST_SECONDS, settings={**kernels, **AS_AVX2})


def main() -> None:
    options = parse(__doc__, repeats=3)
    net = big(options.quick)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, net)
        ask("torch-nchw", "checkpoint", checkpoint=folder / "gaugan.pth", quick=options.quick)
        timed = [*commands(net, options.backend, options.quick), of_a_saved_session(folder, options.backend)]
        taken: dict[str, list[float]] = {command.name: [] for command in timed}
        # the first turn fills the disk's cache and the compiled kernels'; it does not count (quick: there is none)
        for turn in range(bool(options.quick), options.repeats + 1):
            for command in timed:
                say(f"timing {command.name}, {f'turn {turn} of {options.repeats}' if turn else 'warm-up'}")
                taken[command.name].append(command.seconds(folder) * 1e3)
        demo = next(command for command in timed if command.name == "sparsegen demo")
        firsts = list(first_demos(demo, folder))
        timings = {name: Timing(tuple(samples[-options.repeats :])) for name, samples in taken.items()}
        for command in firsts:
            say(f"timing {command.name}")
            timings[command.name] = Timing((command.seconds(folder) * 1e3,))

    print(machine())
    rows = []
    for command in [*timed, *firsts]:
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
