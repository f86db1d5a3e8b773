"""The big GauGAN against PyTorch: dense, and edits of 0 to 100 % of the labels; checked, then timed in turn.

    python -m bench.gaugan [--backend NAME] [--rounds 3] [--repeats 5]

93 M random weights in one checkpoint that both load; the street is `street.py`'s. Every timed edit is new to the
session. The curve goes to `bench/results/`, one for each kind of vectors.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import Big, big, edit_name
from bench.contest import ask, check, in_turn, say_errors, together, worst
from bench.engines import BFLOAT16, OURS, TORCH, TORCH_BFLOAT16, usual
from bench.harness import Timing, machine, parse, record, table, verdict
from bench.processor import kind_of


@dataclass(frozen=True)
class Aims:
    """What a network is to reach."""

    over_torch: Mapping[str, float]
    """What is timed -> how many times as fast as PyTorch's dense run it must be."""
    canvas_bytes: float | None = None
    peak_bytes: float | None = None
    everything_over_dense: float = 1.1
    empty_ms: float = 1.0


AIMS = {
    "gaugan": Aims(
        {"dense": 6.0, edit_name(0.012, "paper"): 45.0, edit_name(0.15, "paper"): 15.0},
        canvas_bytes=250e6,
        peak_bytes=1.8e9,
    ),
    "gan-compression": Aims({"dense": 3.0, edit_name(0.012, "paper"): 15.0}),
}
"""By the case's name in `cases.BIG`, which is that of the file of its figures, too."""


@dataclass(frozen=True)
class Verdict:
    """A figure beside its target."""

    what: str
    value: float
    unit: str
    target: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target

    @property
    def cells(self) -> tuple[str, ...]:
        sign = "≥" if self.at_least else "≤"
        return (
            self.what,
            f"{self.value:.2f} {self.unit}",
            f"{sign} {self.target:g} {self.unit}",
            verdict(self.reached),
        )


def verdicts(
    aims: Aims, timings: dict[str, Timing], torch_ms: float, figures: dict[str, dict[str, Any]]
) -> Iterator[Verdict]:
    """The timed figures that have a target."""
    for name, target in aims.over_torch.items():
        yield Verdict(f"{name}, × PyTorch dense", torch_ms / timings[name].median, "×", target, at_least=True)
    everything = timings[edit_name(1.0, "paper")].median / timings["dense"].median
    yield Verdict("edit of 100 %, share of our dense run", everything, "×", aims.everything_over_dense)
    yield Verdict("edit with an empty mask", timings[edit_name(0.0, "paper")].median, "ms", aims.empty_ms)
    if aims.canvas_bytes is not None:
        yield Verdict("canvases", figures["dense"]["canvas_bytes"] / 1e6, "MB", aims.canvas_bytes / 1e6)
    if aims.peak_bytes is not None:
        peak = max(figure["peak_bytes"] for figure in figures.values())
        yield Verdict("peak memory of the process, all edits", peak / 1e9, "GB", aims.peak_bytes / 1e9)


def curve(case: str, kind: str) -> str:
    """The name of the picture of a case's times with a kind of vectors."""
    return (
        "-".join([case, "curve", *([kind.lower().replace("-", "").replace(" ", "-")] if kind else [])])
        + ".png"
    )


def plot(path: Path, title: str, net: Big, timings: dict[str, Timing], rivals: Mapping[str, float]) -> None:
    """Milliseconds over the edited area, with all dense runs; `rivals`: name -> milliseconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for (name, taken), colour in zip(rivals.items(), ("tab:red", "tab:purple"), strict=False):
        axes.axhline(taken, color=colour, linestyle="--", label=f"{name}, dense ({taken:.0f} ms)")
    dense = timings["dense"].median
    axes.axhline(dense, color="black", linestyle="--", label=f"sparsegen, dense ({dense:.0f} ms)")
    percents = [area * 100 for area in net.areas]
    for policy, marker in zip(net.policies, "os", strict=True):
        medians = [timings[edit_name(area, policy)].median for area in net.areas]
        axes.plot(percents, medians, marker=marker, label=f"sparsegen, edit ({policy})")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("log")
    shown = [0, 1, 2, 5, 10, 20, 50, 100]
    axes.set_xticks(shown, [f"{percent} %" for percent in shown])
    axes.minorticks_off()
    axes.set(title=title, xlabel="edited labels", ylabel="milliseconds")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def compete(case: str, options: argparse.Namespace) -> None:
    """Check, time and judge a network of `cases.BIG`; `options` are those that `harness.parse` gives."""
    net = big(options.quick, case)
    common = {
        "quick": options.quick,
        "backend": options.backend,
        "plain_memory": options.plain_memory,
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {"checkpoint": Path(folder) / "net.pth", "net": case, **common}
        parameters = ask("torch-nchw", "checkpoint", **files).figures["parameters"]
        engines = usual([*TORCH, OURS, *BFLOAT16])
        errors = check(engines, "gaugan", **files)
        replies = in_turn(engines, "gaugan", rounds=options.rounds, repeats=options.repeats, **files)
    timings = {engine: together(got) for engine, got in replies.items()}
    ours, figures = timings[OURS], replies[OURS][0].figures
    layout = min(TORCH, key=lambda engine: timings[engine]["dense"].median)
    torch_ms = timings[layout]["dense"].median

    def keep(**row: Any) -> None:
        record(case, {"model": net.name, **common, **row}, folder=options.results)

    print(machine())
    print(f"{net.name}, {parameters / 1e6:.1f} M parameters")
    rows = []
    for engine, times in timings.items():
        for name, timing in times.items():
            figure = replies[engine][0].figures.get(name, {})
            row = {"engine": engine, "version": replies[engine][0].version, "what": name}
            row |= {"ms": timing.median, **timing.row, "ratio": torch_ms / timing.median}
            keep(**row, **worst(errors, engine), **figure)
            macs = f"{figure['macs']:.1%}" if "macs" in figure else ""
            rows.append(
                (
                    f"{engine}, {name}",
                    f"{timing.median:.1f}",
                    f"{timing.spread:.0%}",
                    f"{torch_ms / timing.median:.1f}",
                    macs,
                )
            )
    table(["", "ms", "spread", "× PyTorch dense", "MACs"], rows)
    print()
    judged = list(verdicts(AIMS[case], ours, torch_ms, figures))
    for one in judged:
        keep(what=one.what, value=one.value, unit=one.unit, target=one.target, reached=one.reached)
    table(["", "figure", "target", "reached"], [one.cells for one in judged])
    say_errors(errors)
    if options.results is not None:
        kind = kind_of(machine())
        title = f"{net.name}, {kind}".removesuffix(", ")
        rivals = {"PyTorch": torch_ms}
        if TORCH_BFLOAT16 in timings:
            rivals["PyTorch in bfloat16"] = timings[TORCH_BFLOAT16]["dense"].median
        plot(options.results / curve(case, kind), title, net, ours, rivals)


def main() -> None:
    compete("gaugan", parse(__doc__, repeats=5, rounds=3))


if __name__ == "__main__":
    main()
