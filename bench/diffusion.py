"""Diffusion against PyTorch: steps dense and edited, their memory, and SDEdit end to end; checked, then timed in turn.

    python -m bench.diffusion [--backend NAME] [--rounds 3] [--repeats 5] [--engines sparsegen torch-nchw torch-nhwc]

Random weights in one checkpoint that both load. Every timed edit is a rectangle elsewhere, new to the session. Under
`fast`, a step is one of three kinds (`bench.trajectory`); the mean is over all steps of the family's edits.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

from bench.cases import (
    CHECKED_AREA,
    DENSE,
    MEAN,
    SDEDIT_CACHE,
    SDEDIT_LEVEL,
    SDEDIT_STEPS,
    SDEDITS,
    Unet,
    edit_name,
    sdedit_name,
    step_name,
    unets,
)
from bench.contest import Errors, Reply, ask, check, in_turn, say_errors, together, worst
from bench.engines import BFLOAT16, OURS, TORCH
from bench.harness import Report, Timing, machine, parse, say
from bench.trajectory import KINDS

CANVAS_BYTES, RAM_BYTES = 700e6, 4e9
END_TO_END = {"paper": 10.0, "fast": 28.0}
"""How many times as fast as PyTorch the second edit of an SDEdit session must be, by policy."""
PYTHON_MS = 3.0
"""What the Python of a step of an edit may take."""
FITS = sdedit_name("fast", "float16")
"""The session whose caches must fit into the RAM, without a file."""
FIRST_RUN = 1.1
"""What the run of the original may take, in dense steps alone, for each of its steps."""


def steps(report: Report, net: Unet, replies: dict[str, list[Reply]], errors: Errors) -> float:
    """One step: every timing beside the better of PyTorch's layouts. Returns the milliseconds of our dense step."""
    timings = {engine: together(got) for engine, got in replies.items()}
    rivals = [engine for engine in TORCH if engine in timings]
    torch_ms = min((timings[engine]["dense"].median for engine in rivals), default=float("nan"))
    targets = {
        "dense" if area == DENSE else edit_name(area, "paper"): factor
        for area, factor in net.over_torch.items()
    } | {step_name(area, MEAN): factor for area, factor in net.over_torch_fast.items()}
    for engine, times in timings.items():
        for name, timing in times.items():
            row: dict[str, Any] = {
                "engine": engine,
                "version": replies[engine][0].version,
                **timing.row,
                **worst(errors, engine),
                **replies[engine][0].figures.get(name, {}),
            }
            ratio = torch_ms / timing.median
            if engine == OURS and name in targets:
                row |= {"aim": f"≥ {targets[name]:g} ×", "reached": ratio >= targets[name]}
            report.add(f"{engine}, {name}", timing.median, "ms", ratio=ratio, **row)
    figures = replies[OURS][0].figures
    name = step_name(CHECKED_AREA, MEAN)
    macs = figures[name]["macs_step"]
    asked = (
        {}
        if math.isinf(net.macs_fast)
        else {"aim": f"≤ {net.macs_fast / 1e9:g} G", "reached": macs <= net.macs_fast}
    )
    report.add(f"MACs of a step, {name}", macs / 1e9, "G", **asked)
    for kind, taken in figures["python"].items():
        finds_tiles = kind == KINDS[0]
        asked = {} if finds_tiles else {"aim": f"≤ {PYTHON_MS:g} ms", "reached": taken <= PYTHON_MS}
        report.add(f"Python of a step, {step_name(CHECKED_AREA, kind)}", taken, "ms", **asked)
    canvases = figures["dense"]["canvas_bytes"]
    asked = {"aim": f"≤ {CANVAS_BYTES / 1e6:.0f} MB", "reached": canvases <= CANVAS_BYTES}
    report.add("canvases of a step", canvases / 1e6, "MB", **(asked if net.name == "DDPM 256" else {}))
    report.add("first run, weights laid out", figures["first run"]["ms"], "ms")
    return timings[OURS]["dense"].median


def end_to_end(
    report: Report, rivals: dict[str, list[Reply]], ours: dict[tuple[str, str], Reply], dense_ms: float
) -> None:
    """SDEdit, the second edit of a session; `ours` by policy and storage; `dense_ms` is our dense step."""
    timings = {engine: together(got)["second edit"] for engine, got in rivals.items()}
    torch_ms = min((timing.median for timing in timings.values()), default=float("nan"))
    for engine, timing in timings.items():
        row = {"engine": engine, "version": rivals[engine][0].version, **timing.row}
        name = f"{engine}, SDEdit, second edit"
        report.add(name, timing.median, "ms", ratio=torch_ms / timing.median, **row)
    for (policy, storage), reply in ours.items():
        _session(report, policy, sdedit_name(policy, storage), torch_ms, dense_ms, reply)


def _session(report: Report, policy: str, kind: str, torch_ms: float, dense_ms: float, reply: Reply) -> None:
    """The figures of an SDEdit session under a policy, in one of its storages."""
    figures, times = reply.figures, {name: Timing(tuple(samples)) for name, samples in reply.timings.items()}
    for name in ("dense run of the original", "first edit", "second edit"):
        ratio, timing = torch_ms / times[name].median, times[name]
        row: dict[str, Any] = {"engine": OURS, "version": reply.version, **timing.row}
        if name == "second edit":
            aim = END_TO_END[policy]
            row |= {**figures[name], "aim": f"≥ {aim:g} ×", "reached": ratio >= aim}
        report.add(f"{OURS}, SDEdit, {name}, {kind}", timing.median, "ms", ratio=ratio, **row)
    run = times["dense run of the original"].median / (SDEDIT_STEPS * dense_ms)
    asked = {"aim": f"≤ {FIRST_RUN:g} ×", "reached": run <= FIRST_RUN}
    report.add(f"SDEdit, run of the original over its dense steps alone, {kind}", run, "×", **asked)
    for name, when in (("caches, planned", "planned"), ("caches, after the run", "after the run")):
        size = figures[when]["ram_bytes"] + figures[when]["file_bytes"]
        small = {"aim": f"≤ {RAM_BYTES / 1e9:g} GB", "reached": size <= RAM_BYTES} if kind == FITS else {}
        report.add(f"SDEdit, {name}, {kind}", size / 1e9, "GB", **small)
    ram, disk = figures["after the edits"]["ram_bytes"], figures["after the edits"]["file_bytes"]
    small = {"aim": f"≤ {RAM_BYTES / 1e9:g} GB", "reached": ram <= RAM_BYTES}
    report.add(f"SDEdit, caches in RAM, {kind}", ram / 1e9, "GB", **small)
    none = {"aim": "0 GB", "reached": disk == 0} if kind == FITS else {}
    report.add(f"SDEdit, caches on disk, {kind}", disk / 1e9, "GB", **none)
    own = figures["memory"]["anonymous_bytes"]
    report.add(f"SDEdit, the process's own memory, {kind}", own / 1e9, "GB")


def memory(report: Report, replies: dict[str, Reply]) -> None:
    """Peaks of whole processes that run one step and keep nothing."""
    peaks = {engine: reply.figures["peak_bytes"] for engine, reply in replies.items()}
    rival = min((peaks[engine] for engine in TORCH if engine in peaks), default=0)
    for engine, peak in peaks.items():
        asked = (
            {"aim": f"≤ {rival / 1e6:.0f} MB", "reached": peak <= rival} if engine == OURS and rival else {}
        )
        report.add(f"{engine}, peak memory of a dense step", peak / 1e6, "MB", **asked)


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        known = [net.name for net in unets(False).values()]
        parser.add_argument("--models", nargs="+", default=known, choices=known, help="models to time (all)")

    options = parse(__doc__, repeats=5, rounds=3, engines=(OURS, *TORCH, *BFLOAT16), more=more)
    engines = options.engines
    common = {"quick": options.quick, "backend": options.backend, "plain_memory": options.plain_memory}
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        nets = [net for net in unets(options.quick).values() if net.name in options.models]
        for number, net in enumerate(nets):
            report = Report("diffusion", net.name, common, options.results)
            files = {"checkpoint": Path(folder) / f"{number}.pth", "net": net.name, **common}
            made = ask("torch-nchw", "unet_checkpoint", **files)
            errors = check([engine for engine in engines if engine != "torch-nchw"], "unet", **files)
            dense_ms = steps(
                report,
                net,
                in_turn(engines, "unet", rounds=options.rounds, repeats=options.repeats, **files),
                errors,
            )
            if net.name == "DDPM 256":
                memory(report, {engine: ask(engine, "memory", **files) for engine in engines})
                rivals = in_turn(
                    [engine for engine in engines if engine in TORCH], "sdedit", rounds=1, **files
                )
                ours = {}
                for policy, storage in SDEDITS:
                    say(f"timing sdedit: {OURS}, {sdedit_name(policy, storage)}")
                    of = {"policy": policy, "storage": storage}
                    ours[policy, storage] = ask(OURS, "sdedit", **of, **files)
                end_to_end(report, rivals, ours, dense_ms)
            print(f"{net.name}: {made.figures['parameters'] / 1e6:.1f} M parameters")
            say_errors(errors)
            report.print()
            files["checkpoint"].unlink()
    print(
        f"SDEdit: {SDEDIT_STEPS} steps of DDIM from noise level {SDEDIT_LEVEL}, caches {SDEDIT_CACHE} in RAM"
    )


if __name__ == "__main__":
    main()
