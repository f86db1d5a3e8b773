"""The short table: dense runs and edits of each network beside PyTorch, for the page of benchmarks and the README."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import report_cells as cells
from bench.cases import MEAN, SDEDIT_STEPS, edit_name, step_name
from bench.engines import OURS, TORCH, TORCH_BFLOAT16
from bench.harness import RESULTS
from bench.latent_cases import LATENT
from bench.processor import KINDS, LIMITED
from bench.quality_tables import Row
from bench.report_rows import by_kind, of_file
from bench.stable_diffusion import FILE as STABLE_DIFFUSION


class _Shown(NamedTuple):
    """A line of the short table; cases are those of its rows."""

    file: str
    model: str
    name: str
    torch: str
    """PyTorch's case."""
    ours: tuple[str, str, str]
    """Our cases: a dense run, small and larger edits; "": none."""


SHORT = (
    _Shown(
        "gaugan", "GauGAN 512×256, ngf 64", "GauGAN 512×256, ngf 64",
        "dense", ("dense", edit_name(0.012, "paper"), edit_name(0.15, "paper")),
    ),
    *(
        _Shown(
            "diffusion", model, f"{model}, one step",
            "dense", ("dense", step_name(0.012, MEAN), step_name(0.155, MEAN)),
        )
        for model in ("DDPM 256", "PD 256")
    ),
    _Shown(
        "diffusion", "DDPM 256", f"DDPM 256, SDEdit of {SDEDIT_STEPS} steps",
        "SDEdit, second edit", ("", "SDEdit, second edit, fast", ""),
    ),
    _Shown(
        STABLE_DIFFUSION, LATENT.name, "Stable Diffusion 1.x, one guided step",
        "step, dense", ("step, dense", f"step, {step_name(0.012, MEAN)}", f"step, {step_name(0.15, MEAN)}"),
    ),
)  # fmt: skip
"""The lines of the short table, each for two kinds of vectors at most."""


def _short_rows(folder: Path) -> Iterator[tuple[_Shown, str, dict[tuple[str, str], Row]]]:
    """The lines of the short table: with the kind of vectors, and (engine, case) -> row.

    Of the kinds with which all cases of a line are measured, the widest and the narrowest; no limited processors.
    """
    for shown in SHORT:
        kinds = []
        for kind, rows in by_kind(of_file(folder, shown.file)).items():
            found = {
                (cells.engine(row), cells.case(row)): row
                for row in rows
                if row["model"] == shown.model and cells.case(row) in (shown.torch, *shown.ours)
            }
            compared = any((engine, shown.torch) in found for engine in TORCH)
            if kind != LIMITED and compared and all((OURS, case) in found for case in shown.ours if case):
                kinds.append((shown, kind, found))
        yield from kinds[:1] + kinds[1:][-1:]


def short_table(folder: Path = RESULTS) -> str:
    """The table that the README shows: dense runs and edits beside PyTorch, by kind of vectors."""
    lines, named = [], set()
    for shown, kind, found in _short_rows(folder):
        torch = min(found[engine, shown.torch]["ms"] for engine in TORCH if (engine, shown.torch) in found)
        rows = [found.get((TORCH_BFLOAT16, shown.torch)), *(found.get((OURS, case)) for case in shown.ours)]
        times = ["" if row is None else cells.time_and_ratio(row) for row in rows]
        lines.append(["" if shown in named else shown.name, kind, cells.time(torch), *times])
        named.add(shown)
    head = [
        "",
        "",
        "PyTorch, dense",
        "PyTorch (bfloat16)",
        "sparsegen, dense",
        "edit of 1.2 %",
        "edit of about 15 %",
    ]
    if not any(line[3] for line in lines):
        for line in (head, *lines):
            del line[3]
    return cells.table(head, lines)


def short_origin(folder: Path = RESULTS) -> str:
    """The machines and commits of the short table in a sentence, which the README shows, too."""
    commits: dict[tuple[str, str], dict[str, str]] = {}
    for _, kind, found in _short_rows(folder):
        for row in found.values():
            some, name = commits.setdefault((kind, row["machine"]), {}), row["commit"]
            some[name.rstrip("+")] = max(
                name, some.get(name.rstrip("+"), "")
            )  # one with files that differ says so
    texts = []
    for kind in (*KINDS, ""):
        for (of, machine), some in commits.items():
            if of == kind:
                name = machine.partition(", Python")[0].replace(f", {kind},", ",") if kind else machine
                named = ", ".join(f"`{commit}`" for commit in some.values())
                texts.append(f"{kind or 'others'}: {name}, commit{'s' * (len(some) > 1)} {named}")
    sentence = "; ".join(texts)
    return f"{sentence[:1].upper()}{sentence[1:]}."


def short_section(folder: Path) -> Iterator[str]:
    """The page's first section."""
    yield "## In short"
    yield short_origin(folder)
    yield short_table(folder)
    yield (
        "(… ×) is how many times as fast as PyTorch's dense run. Policy `paper`, diffusion `fast` (one step: the mean "
        "over the steps); the tables below have all edits."
    )
