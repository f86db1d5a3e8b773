"""Diffusion against PyTorch: one step dense and edited, its memory, and SDEdit end to end; checked, then timed in turn.

    python -m bench.diffusion [--backend NAME] [--rounds 3] [--repeats 3] [--engines sparsegen torch-nchw torch-nhwc]

Random weights in one checkpoint that both load. Every timed edit is a rectangle elsewhere, new to the session.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench.cases import DENSE, SDEDIT_CACHE, SDEDIT_LEVEL, SDEDIT_STEPS, Unet, edit_name, unets
from bench.contest import Reply, ask, check, in_turn, together
from bench.engines import OURS, TORCH
from bench.harness import machine, parse, record, table, verdict

CANVAS_BYTES, RAM_BYTES = 700e6, 4e9
END_TO_END = 10.0
"""How many times as fast as PyTorch the second edit of an SDEdit session must be."""


class Report:
    """The measured rows: printed as a table, and recorded."""

    def __init__(self, net: Unet, common: dict[str, Any], folder: Path | None) -> None:
        self.net, self.common, self.folder = net, common, folder
        self.rows: list[tuple[str, ...]] = []

    def add(self, what: str, value: float, unit: str, *, ratio: float | None = None, **row: Any) -> None:
        """A figure, how many times as fast as PyTorch it is, and (`target`, `reached`) if it has a target."""
        record(
            "diffusion",
            {"model": self.net.name, **self.common, "what": what, unit: value, "ratio": ratio, **row},
            folder=self.folder,
        )
        asked = (row["aim"], verdict(row["reached"])) if "aim" in row else ("", "")
        shown = (f"{value:.1f} {unit}", "" if ratio is None else f"{ratio:.1f}")
        self.rows.append((what, *shown, f"{row['macs']:.1%}" if "macs" in row else "", *asked))

    def print(self) -> None:
        table([self.net.name, "", "× PyTorch dense", "MACs", "aimed at", "reached"], self.rows)
        print()


def steps(report: Report, replies: dict[str, list[Reply]]) -> None:
    """One step: every timing beside the better of PyTorch's layouts."""
    timings = {engine: together(got) for engine, got in replies.items()}
    rivals = [engine for engine in TORCH if engine in timings]
    torch_ms = min((timings[engine]["dense"].median for engine in rivals), default=float("nan"))
    targets = {
        "dense" if area == DENSE else edit_name(area, "paper"): factor
        for area, factor in report.net.over_torch.items()
    }
    for engine, times in timings.items():
        for name, timing in times.items():
            row: dict[str, Any] = {
                "engine": engine,
                "version": replies[engine][0].version,
                "spread": timing.spread,
            }
            ratio = torch_ms / timing.median
            if engine == OURS:
                row |= replies[engine][0].figures.get(name, {})
                if name in targets:
                    row |= {"aim": f"≥ {targets[name]:g} ×", "reached": ratio >= targets[name]}
            report.add(f"{engine}, {name}", timing.median, "ms", ratio=ratio, **row)
    figures = replies[OURS][0].figures
    canvases = figures["dense"]["canvas_bytes"]
    asked = {"aim": f"≤ {CANVAS_BYTES / 1e6:.0f} MB", "reached": canvases <= CANVAS_BYTES}
    report.add("canvases of a step", canvases / 1e6, "MB", **(asked if report.net.name == "DDPM 256" else {}))
    report.add("first run, weights laid out", figures["first run"]["ms"], "ms")


def end_to_end(report: Report, replies: dict[str, list[Reply]]) -> None:
    """SDEdit, the second edit of a session."""
    timings = {engine: together(got) for engine, got in replies.items()}
    rivals = [engine for engine in TORCH if engine in timings]
    torch_ms = min((timings[engine]["second edit"].median for engine in rivals), default=float("nan"))
    for engine, times in timings.items():
        for name, timing in times.items():
            ratio = torch_ms / timing.median
            row: dict[str, Any] = {
                "engine": engine,
                "version": replies[engine][0].version,
                "spread": timing.spread,
            }
            if engine == OURS and name == "second edit":
                row |= replies[engine][0].figures[name]
                row |= {"aim": f"≥ {END_TO_END:g} ×", "reached": ratio >= END_TO_END}
            report.add(f"{engine}, SDEdit, {name}", timing.median, "ms", ratio=ratio, **row)
    figures = replies[OURS][0].figures
    ram = max(reply.figures["caches"]["ram_bytes"] for reply in replies[OURS])
    report.add(
        "SDEdit, caches in RAM", ram / 1e9, "GB", aim=f"≤ {RAM_BYTES / 1e9:g} GB", reached=ram <= RAM_BYTES
    )
    report.add("SDEdit, caches on disk", figures["caches"]["file_bytes"] / 1e9, "GB")
    report.add("SDEdit, the process's own memory", figures["memory"]["anonymous_bytes"] / 1e9, "GB")


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
    options = parse(__doc__, repeats=3, rounds=2, engines=(OURS, *TORCH))
    engines = options.engines
    common = {"quick": options.quick, "backend": options.backend, "plain_memory": options.plain_memory}
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        for number, net in enumerate(unets(options.quick).values()):
            report = Report(net, common, options.results)
            files = {"checkpoint": Path(folder) / f"{number}.pth", "net": net.name, **common}
            made = ask("torch-nchw", "unet_checkpoint", **files)
            errors = check([engine for engine in engines if engine != "torch-nchw"], "unet", **files)
            steps(report, in_turn(engines, "unet", rounds=options.rounds, repeats=options.repeats, **files))
            if net.name == "DDPM 256":
                memory(report, {engine: ask(engine, "memory", **files) for engine in engines})
                end_to_end(report, in_turn(engines, "sdedit", rounds=1, **files))
            print(f"{net.name}: {made.figures['parameters'] / 1e6:.1f} M parameters")
            for engine, found in errors.items():
                print(
                    f"{engine}: largest error against PyTorch {max(found.values()):.1e} of the largest value"
                )
            report.print()
            files["checkpoint"].unlink()
    print(
        f"SDEdit: {SDEDIT_STEPS} steps of DDIM from noise level {SDEDIT_LEVEL}, caches {SDEDIT_CACHE} in RAM"
    )


if __name__ == "__main__":
    main()
