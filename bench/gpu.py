"""The `cupy` backend against PyTorch with cuDNN on an NVIDIA card: checked, then timed in turn; each layer's roofline.

    python bench/gpu.py [--cases gaugan,ddpm,pd] [--precisions float32,tf32,float16] [--areas dense,1.2,15,sdedit]
                        [--policies paper,fast] [--rounds 2] [--repeats 7] [--minutes 6] [--layers 10]

Both engines load one checkpoint of random weights, and compute with CUDA graphs and equal settings of TF32. Each turn
is a process of its own; an engine is timed only after its outputs agree with PyTorch's in float32. Rows are printed and
written to `gpu.jsonl` among the results as they are measured. No turn begins after `--minutes`. Without a card the
command says so and ends with exit code 2; `--emulated` tries the bench itself on the tests' emulated device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# On a rented card this is the one command, `python bench/gpu.py`, from any folder. Python then puts bench/ first on its
# path, where `bench.cases` is not found and `gpu_torch` would be a second module: put the checkout there instead.
if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

import numpy as np

from bench.cases import MEAN, edit_name, step_name
from bench.contest import WrongResult
from bench.gpu_cases import (
    AIMED_AREA,
    AS_AN_EDIT,
    CASES,
    DENSE,
    ENGINES,
    MOST_OF_TORCH,
    OVER_TORCH,
    POLICIES,
    PRECISIONS,
    SDEDIT,
    TOLERANCES,
    Task,
)
from bench.gpu_roofline import Card, Cost, card
from bench.harness import RESULTS, Timing, machine, record, say, table, verdict

NO_CARD = 2
"""The exit code where nothing can be measured."""
WRONG = 1
"""The exit code where an engine's outputs are not PyTorch's, or a turn failed."""


@dataclass
class Contest:
    """The turns of a whole run, and what they have measured."""

    options: argparse.Namespace
    card: dict[str, Any]
    """The card's name, and what `gpu_roofline.card` takes; empty without a card."""
    wall: dict[tuple[str, str, str, str], list[float]] = field(default_factory=dict)
    """Case, precision, engine, what is timed -> milliseconds."""
    device: dict[tuple[str, str, str, str], list[float]] = field(default_factory=dict)
    bounds: list[tuple[str, str, str, list[Cost]]] = field(default_factory=list)
    """Case, precision, what is timed, its layers."""
    failures: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def turn(self, task: Task) -> None:
        """One engine's process; its rows are printed and recorded as they come."""
        words = [sys.executable, "-m", "bench.gpu_worker", task.written()]
        with subprocess.Popen(
            words, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            for line in process.stdout:
                if not line.startswith("{"):
                    say(line.rstrip())
                    continue
                message = json.loads(line)
                if "outputs" in message:
                    process.stdin.write("go\n" if self._approved(task, message) else "no\n")
                    process.stdin.flush()
                else:
                    self.take(task, message)
        if process.returncode:
            self.failures.append(f"{task.engine} failed at {task.case} (its message is above)")

    def _approved(self, task: Task, message: dict[str, Any]) -> bool:
        """Whether an engine is timed in a precision: its outputs are those of PyTorch in float32."""
        precision, path = message["precision"], Path(message["outputs"])
        oracle = path.with_name(f"torch-{task.case}-float32.npz")
        if not oracle.exists():
            self.failures.append(f"{task.case}: PyTorch has no outputs in float32 to compare with")
            return False
        with np.load(oracle) as expected, np.load(path) as found:
            try:
                error = compare(dict(found), dict(expected), TOLERANCES[precision])
            except WrongResult as wrong:
                self.failures.append(f"{task.case}, {precision}, {task.engine}: {wrong}")
                say(self.failures[-1])
                return False
        if path != oracle:
            say(f"{task.case}, {precision}, {task.engine}: largest error {error:.1e} of the largest value")
        return precision in self.options.precisions

    def take(self, task: Task, message: dict[str, Any]) -> None:
        """Print and record one message."""
        precision = message["precision"]
        about = {
            **self.card,
            "case": task.case,
            "shape": _shape(task),
            "precision": precision,
            "engine": task.engine,
            "version": message["version"],
        }
        if "layers" in message:
            found = [Cost(**cost) for cost in message["costs"]]
            self.bounds.append((task.case, precision, message["layers"], found))
            self._record({**about, "layers": message["layers"], "costs": message["costs"]})
            return
        if "refused" in message:
            say(f"{task.case}, {precision}, {task.engine}: no {message['what']}: {message['refused']}")
            self._record({**about, "what": message["what"], "refused": message["refused"]})
            return
        key = (task.case, precision, task.engine, message["what"])
        self.wall.setdefault(key, []).extend(message["wall"])
        timing, ran = Timing(tuple(message["wall"])), Timing(tuple(message["device"] or ()))
        row: dict[str, Any] = {"what": message["what"], "ms": timing.median, "spread": timing.spread}
        shown = f"{timing.median:.3f} ms"
        if ran.samples:
            self.device.setdefault(key, []).extend(ran.samples)
            row |= {"device_ms": ran.median, "device_spread": ran.spread}
            shown += f", on the card {ran.median:.3f} ms"
        rest = {name: message[name] for name in ("graphs", "area", "macs") if name in message}
        self._record({**about, **row, **rest})
        say(
            f"{task.case}, {precision}, {task.engine}, {message['what']}: {shown}, graphs {message['graphs']}"
        )

    def _record(self, row: dict[str, Any]) -> None:
        if self.options.results is not None:
            record("gpu", row, folder=self.options.results)

    # -- the end -----------------------------------------------------------------------------------------

    def rows(self, case: str, precision: str) -> Iterator[tuple[str, ...]]:
        """The lines of a case's table: times, ratios, aims."""
        torch = {
            what: Timing(tuple(samples)).median
            for (c, p, engine, what), samples in self.wall.items()
            if (c, p, engine) == (case, precision, "torch")
        }
        torch_device = {
            what: Timing(tuple(samples)).median
            for (c, p, engine, what), samples in self.device.items()
            if (c, p, engine) == (case, precision, "torch")
        }
        for (c, p, engine, what), samples in self.wall.items():
            if (c, p) != (case, precision):
                continue
            timing = Timing(tuple(samples))
            rival = SDEDIT if what.startswith(SDEDIT) else DENSE
            ratio = torch[rival] / timing.median if rival in torch else None
            on_card = self.device.get((c, p, engine, what))
            device = Timing(tuple(on_card)).median if on_card else None
            faster = torch_device[rival] / device if device and rival in torch_device else None
            aim, reached = ("", None)
            if engine != "torch" and not self.options.emulated:
                aim, reached = aimed(case, what, ratio)
            if reached is not None:
                self._record(
                    {**self.card, "case": case, "precision": precision, "what": what}
                    | {"ratio": ratio, "device_ratio": faster, "aim": aim, "reached": reached}
                )
            yield (
                f"{engine}, {what}",
                f"{timing.median:.3f}",
                f"{timing.spread:.0%}",
                "" if device is None else f"{device:.3f}",
                "" if ratio is None else f"{ratio:.2f}",
                "" if faster is None else f"{faster:.2f}",
                aim,
                "" if reached is None else verdict(reached),
            )

    def print(self) -> None:
        """All tables: times beside PyTorch's, then the layers that lie furthest from their bounds."""
        if self.options.emulated:
            print("An emulated device: these figures measure nothing.")
        head = ["", "wall ms", "spread", "card ms", "× PyTorch dense", "on the card", "aimed at", "reached"]
        for case in self.options.cases:
            for precision in self.options.precisions:
                lines = list(self.rows(case, precision))
                if lines:
                    print(f"\n{case}, {precision}")
                    table(head, lines)
        on = card(**self._described()) if self.card else None
        for case, precision, what, found in self.bounds:
            print(f"\n{case}, {precision}, {what}: layers one by one, furthest from their bounds first")
            head_of_layers = ["layer", "GMAC", "MB", "µs", "bound µs", "of", "share"]
            table(head_of_layers, list(bound_lines(found, on, precision, self.options.layers)))
        for text in [*self.failures, *self.left_out]:
            print(text)

    def _described(self) -> dict[str, Any]:
        known = {name: self.card[name] for name in ("multiprocessors", "gigahertz", "bandwidth")}
        return {"device": self.card["card"], **known}


def compare(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> float:
    """The largest error relative to the largest value of the output expected.

    Raises
    ------
    WrongResult
        It is above the tolerance, or an output "…, as an edit" is not the output of that name, bit for bit.
    """
    worst = 0.0
    for name, right in expected.items():
        ours = found.get(name)
        if ours is None or ours.shape != right.shape:
            shape = None if ours is None else ours.shape
            raise WrongResult(f"the shape of {name} is {shape}, expected {right.shape}")
        error = float(np.abs(ours - right).max() / np.abs(right).max())
        if not error <= tolerance:
            raise WrongResult(f"{name} is off by {error:.1e} of the largest value, expected {tolerance:.0e}")
        worst = max(worst, error)
    for name, ours in found.items():
        base, edit, _ = name.partition(", as an edit")
        if edit and not np.array_equal(ours, found[base]):
            raise WrongResult(f"{name} differs from the dense run")
    return worst


def aimed(case: str, what: str, ratio: float | None) -> tuple[str, bool | None]:
    """The aim of a timing, as text, and whether its ratio to PyTorch's dense run reaches it; None: it has no aim."""
    if ratio is None:
        return "", None
    if what in (DENSE, AS_AN_EDIT):
        return f"≤ {MOST_OF_TORCH:g} × its time", 1 / ratio <= MOST_OF_TORCH
    names = {edit_name(AIMED_AREA, policy) for policy in POLICIES} | {step_name(AIMED_AREA, MEAN)}
    if case in OVER_TORCH and what in names:
        return f"≥ {OVER_TORCH[case]:g} ×", ratio >= OVER_TORCH[case]
    return "", None


def bound_lines(
    found: Sequence[Cost], on: Card | None, precision: str, most: int
) -> Iterator[tuple[str, ...]]:
    """A line for each of the layers that lose most time against their bounds, and one for all; `on` None: no bound."""
    bounds = [(0.0, "") if on is None else cost.bound(on, precision) for cost in found]
    order = sorted(range(len(found)), key=lambda i: bounds[i][0] - found[i].milliseconds)
    for i in order[:most]:
        cost, (bound, limit) = found[i], bounds[i]
        yield _line(cost.path, cost.macs, cost.total_bytes, cost.milliseconds, bound, limit)
    total, least = sum(cost.milliseconds for cost in found), sum(bound for bound, _ in bounds)
    every = (sum(cost.macs for cost in found), sum(cost.total_bytes for cost in found))
    yield _line(f"all {len(found)} layers", *every, total, least, "")


def _line(name: str, macs: int, count: int, ms: float, bound: float, limit: str) -> tuple[str, ...]:
    share = f"{bound / ms:.0%}" if bound and ms else ""
    least = f"{bound * 1e3:.1f}" if bound else ""
    return name, f"{macs / 1e9:.3f}", f"{count / 1e6:.1f}", f"{ms * 1e3:.1f}", least, limit, share


def _environment() -> dict[str, str]:
    """A worker's environment: the checkout's modules, and all of the machine's threads."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def _shape(task: Task) -> list[int]:
    size = task.net.size
    return [*size] if isinstance(size, tuple) else [size, size]


def probe() -> tuple[dict[str, Any], str | None]:
    """The card's figures; and why nothing can be measured here, in a sentence, or None."""
    figures: dict[str, Any] = {}
    for engine in reversed(ENGINES):  # ours first: without a card its answer takes no time
        words = [sys.executable, "-m", "bench.gpu_worker", "probe", engine]
        done = subprocess.run(words, env=_environment(), stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return {}, f"{engine} failed to look for a card (its message is above)"
        found = json.loads(done.stdout.splitlines()[-1])
        if "missing" in found:
            name = "PyTorch" if engine == "torch" else "backend cupy"
            return {}, f"{name} cannot use a card here: {found['missing']}"
        figures |= found
    return figures, None


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; `areas` becomes the shares of pixels, `dense` and `sdedit`."""

    def listed(known: Sequence[str]) -> Any:
        def read(text: str) -> tuple[str, ...]:
            given = tuple(filter(None, text.split(",")))
            unknown = [each for each in given if each not in known]
            if unknown or not given:
                raise argparse.ArgumentTypeError(f"{text!r}, expected some of {','.join(known)}")
            return given

        return read

    def areas(text: str) -> tuple[tuple[float, ...], bool, bool]:
        given = list(filter(None, text.split(",")))
        try:
            shares = tuple(float(each) / 100 for each in given if each not in ("dense", "sdedit"))
        except ValueError:
            shares = (-1.0,)
        if not given or not all(0 < share <= 1 for share in shares):
            raise argparse.ArgumentTypeError(f"{text!r}, expected dense, sdedit and percentages, such as 1.2")
        return shares, "dense" in given, "sdedit" in given

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=listed(CASES), default=CASES)
    parser.add_argument("--precisions", type=listed(PRECISIONS), default=PRECISIONS)
    parser.add_argument("--policies", type=listed(POLICIES), default=POLICIES)
    parser.add_argument(
        "--areas", type=areas, default="dense,1.2,15,sdedit", help="what is timed of sparsegen"
    )
    parser.add_argument("--rounds", type=int, default=2, help="turns of each engine and case (2)")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls in a turn (7)")
    parser.add_argument("--minutes", type=float, default=6.0, help="no turn begins later (6)")
    parser.add_argument(
        "--layers", type=int, default=10, help="layers shown with their bounds (10; 0: not timed)"
    )
    parser.add_argument("--results", type=Path, help="folder of JSON lines (bench/results; emulated: none)")
    parser.add_argument("--emulated", action="store_true", help="tiny, on the tests' emulated device")
    options = parser.parse_args(words)
    if min(options.rounds, options.repeats) < 1 or options.layers < 0:
        parser.error("--rounds and --repeats are 1 or more, --layers 0 or more")
    options.areas, options.dense, options.sdedit = options.areas
    if options.emulated:
        options.results = None
    elif options.results is None:
        options.results = RESULTS
    return options


def tasks(options: argparse.Namespace, folder: Path) -> Iterator[Task]:
    """The turns: every case once, before any has its second round."""
    # PyTorch in float32 is the oracle of all
    checked = ("float32", *(each for each in options.precisions if each != "float32"))
    for turn in range(options.rounds):
        first = turn == 0
        for case in options.cases:
            for engine in ENGINES:
                yield Task(
                    engine,
                    case,
                    folder / f"{case}.pth",
                    checked if first and engine == "torch" else options.precisions,
                    options.areas,
                    options.policies,
                    dense=options.dense,
                    sdedit=options.sdedit,
                    layers=first and options.layers > 0,
                    check=first,
                    repeats=options.repeats,
                    emulated=options.emulated,
                )


def main(words: Sequence[str] | None = None) -> int:
    options = parsed(words)
    begin = time.monotonic()
    figures: dict[str, Any] = {}
    if not options.emulated:
        figures, why = probe()
        if why is not None:
            print(f"Nothing was measured: {why}.", file=sys.stderr)
            return NO_CARD
    print(machine(), *([figures["card"]] if figures else []), sep=", ")
    contest = Contest(options, figures)
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks(options, Path(folder)):
            if time.monotonic() - begin > options.minutes * 60:
                contest.left_out.append(f"no time was left for {task.engine} at {task.case}")
                continue
            contest.turn(task)
    contest.print()
    return WRONG if contest.failures else 0


if __name__ == "__main__":
    sys.exit(main())
