"""The page of benchmarks: the JSON lines of `bench/results/` come in, `docs/benchmarks.md` comes out. Nothing is timed.

    python -m bench.report

Of each case the newest line counts (files grow at their end); lines of `--quick` and `--plain-memory` runs do not.
Figures that depend on the processor have a table for each kind of vectors, off the machine of that kind which was
measured last. The machine, the commit and the date of the lines stand above each table.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import latents, stored_weights, study, threads
from bench import report_texts as texts
from bench.cases import (
    CHECKED_AREA,
    MEAN,
    SDEDIT_CACHE,
    SDEDIT_STEPS,
    SDEDITS,
    edit_name,
    layers,
    sdedit_name,
    step_name,
)
from bench.engines import BFLOAT16, OURS, OURS_BFLOAT16, STORED, TORCH, TORCH_BFLOAT16
from bench.gaugan import AIMS, Aims, curve
from bench.harness import RESULTS
from bench.latent_cases import LATENT
from bench.processor import VECTORS, kind_of
from bench.quality_tables import Row, beside_paper, chain_head, chain_lines, head, lines, verdicts
from bench.stable_diffusion import FILE as STABLE_DIFFUSION
from bench.strokes import EXAMPLES, FIRST, group_of
from bench.study_tables import grouped
from bench.switch_table import KERNELS, SWITCHES, Switch
from bench.trajectory import KINDS, mean
from sparsegen.engine.store import parse_size
from sparsegen.models import DDPM, ProgressiveDistillation
from sparsegen.models.unet import UNet
from sparsegen.tiling.policies import Fast

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

PROCESSORS = {
    "Intel(R) Xeon(R) Processor": "a virtual machine; Sapphire Rapids or later",
}
"""The beginning of a machine's name -> details that the name omits."""
FIRST_DEMO_SECONDS = 40.0
"""Target of a demo that compiles its kernels, in rows that name none."""

_LAYERS_OF = {"DDPM 256": 177, "PD 128": 323, "PD 256": 361}
"""Layers and norms of a model: the steps that an edit replays."""


def page(folder: Path = RESULTS) -> str:
    """The page as Markdown, off the `*.jsonl` files of a folder."""
    parts = [
        texts.INTRO,
        *_short(folder),
        *_generator(folder, "gaugan", texts.GAUGAN),
        *_generator(folder, "gan-compression", texts.GAN_COMPRESSION),
        *_startup(folder),
        *_layers(folder),
        *_switches(folder),
        *_threads(folder),
        *_stored_weights(folder),
        *_landscape(folder),
        *_diffusion(folder),
        *_stable_diffusion(folder),
        *_on_a_card(folder),
        *_quality(folder),
        *_study(folder),
        *_chains(folder),
        *_latents(folder),
        *_commits(folder),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def newest(folder: Path, file: str, *fields: str) -> list[Row]:
    """The last line of each case of `<folder>/<file>.jsonl`; a case is the values of `fields` (absent: None).

    No file: no case.
    """
    path = folder / f"{file}.jsonl"
    if not path.exists():
        return []
    found: dict[tuple[Any, ...], Row] = {}
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if not row.get("quick") and not row.get("plain_memory"):
            case = tuple(row.get(field) for field in fields)
            found.pop(case, None)  # in the order of the newest lines
            found[case] = row
    return list(found.values())


def by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Kind of vectors -> the rows of the machine of that kind which the last of `rows` comes from."""
    last = {kind_of(row["machine"]): row["machine"] for row in rows}
    return {
        kind: [row for row in rows if row["machine"] == last[kind]] for kind in (*VECTORS, "") if kind in last
    }


def _of_the_default(rows: Iterable[Row]) -> list[Row]:
    """The rows of sparsegen's default backend."""
    return [row for row in rows if row["backend"] is None]


# -- sections --------------------------------------------------------------------------------------------


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
"""The lines of the short table, each for every kind of vectors with which all its cases are measured."""


def _short_rows(folder: Path) -> Iterator[tuple[_Shown, str, dict[tuple[str, str], Row]]]:
    """The lines of the short table: with the kind of vectors, and (engine, case) -> row."""
    for shown in SHORT:
        for kind, rows in by_kind(_of_file(folder, shown.file)).items():
            found = {
                (_engine(row), _case(row)): row
                for row in rows
                if row["model"] == shown.model and _case(row) in (shown.torch, *shown.ours)
            }
            compared = any((engine, shown.torch) in found for engine in TORCH)
            if compared and all((OURS, case) in found for case in shown.ours if case):
                yield shown, kind, found


def short_table(folder: Path = RESULTS) -> str:
    """The table that the README shows: dense runs and edits beside PyTorch, by kind of vectors."""
    lines, named = [], set()
    for shown, kind, found in _short_rows(folder):
        torch = min(found[engine, shown.torch]["ms"] for engine in TORCH if (engine, shown.torch) in found)
        rows = [found.get((TORCH_BFLOAT16, shown.torch)), *(found.get((OURS, case)) for case in shown.ours)]
        cells = ["" if row is None else _time_and_ratio(row) for row in rows]
        lines.append(["" if shown in named else shown.name, kind, _time(torch), *cells])
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
    return _table(head, lines)


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
    for kind in (*VECTORS, ""):
        for (of, machine), some in commits.items():
            if of == kind:
                name = machine.partition(", Python")[0].replace(f", {kind},", ",") if kind else machine
                named = ", ".join(f"`{commit}`" for commit in some.values())
                texts.append(f"{kind or 'others'}: {name}, commit{'s' * (len(some) > 1)} {named}")
    return f"{'; '.join(texts)}."


def _short(folder: Path) -> Iterator[str]:
    yield "## In short"
    yield short_origin(folder)
    yield short_table(folder)
    yield (
        "(… ×) is how many times as fast as PyTorch's dense run. Policy `paper`, diffusion `fast` (one step: the mean "
        "over the steps); the tables below have all edits."
    )


def _of_file(folder: Path, file: str) -> list[Row]:
    """The newest rows of a network's file, of all machines."""
    return _of_the_default(newest(folder, file, "machine", "model", "backend", "engine", "what"))


def _generator(folder: Path, file: str, about: str) -> Iterator[str]:
    """The section of a model of label maps; nothing where it is not measured."""
    kinds = by_kind(_of_file(folder, file))
    for rows in list(kinds.values())[:1]:
        yield f"## {rows[0]['model']}"
        yield about
    for kind, rows in kinds.items():
        yield _origin(rows)
        yield _table(
            ["", "time", "spread", "× PyTorch", "MACs", "journal"],
            [
                [
                    _line(row),
                    _time(row["ms"]),
                    _share(row["spread"]),
                    _ratio(row["ratio"]),
                    _share(row.get("macs")),
                    _megabytes(row.get("journal_bytes")),
                ]
                for row in rows
                if "ms" in row
            ],
        )
        yield _errors(rows)
        yield _table(
            ["", "figure", "aimed at", "reached"],
            [
                [_shown_case(row), _amount(row["value"], row["unit"]), _aim(row), _verdict(row["reached"])]
                for row in (_judged_now(row, AIMS[file]) for row in rows if "target" in row)
            ],
        )
        yield f"![Time over the edited area, 0 to 100 %](../bench/results/{curve(file, kind)})"


def _judged_now(row: Row, aims: Aims) -> Row:
    """A figure beside the target that it has now: it may be older than that."""
    case = str(row["what"]).removesuffix(", × PyTorch dense")
    target = aims.over_torch.get(case)
    return row if target is None else {**row, "target": target, "reached": row["value"] >= target}


def _startup(folder: Path) -> Iterator[str]:
    yield "## Whole processes"
    yield texts.STARTUP
    for rows in by_kind(_of_the_default(newest(folder, "startup", "machine", "what", "backend"))).values():
        yield _origin(rows)
        lines = []
        for row in rows:
            target = row.get("target", FIRST_DEMO_SECONDS * 1e3 if "not compiled" in row["what"] else None)
            aim = "" if target is None else f"≤ {target / 1e3:g} s"
            reached = "" if target is None else _verdict(row["ms"] <= target)
            time = f"{row['ms'] / 1e3:.2f} s"
            lines.append([_line(row), time, _share(row["spread"] or None), aim, reached])
        yield _table(["", "time", "spread", "aimed at", "reached"], lines)


def _layers(folder: Path) -> Iterator[str]:
    rows = _of_the_default(newest(folder, "layers", "machine", "what", "engine", "over", "backend"))
    yield "## Layers"
    yield f"Milliseconds. {texts.LAYERS}"
    for some in by_kind(rows).values():
        yield from _layers_of_a_machine(some)


def _layers_of_a_machine(rows: Sequence[Row]) -> Iterator[str]:
    timed = {(row["what"], row["engine"]): row for row in rows if "engine" in row}
    ratios = {(row["what"], row["over"]): row for row in rows if "over" in row}
    engines = list(dict.fromkeys(engine for _, engine in timed))
    names = [case.name for case in layers(False) if (case.name, OURS) in timed]
    yield _origin(rows)
    lines = []
    for name in names:
        medians = [f"{timed[name, engine]['ms']:.1f}" for engine in engines]
        lines.append([name, *medians, f"{timed[name, OURS]['gflops']:.0f}"])
        for rival, of in (("torch", TORCH), ("ncnn", ("ncnn",))):
            times = [timed[name, engine]["ms"] for engine in of if (name, engine) in timed]
            judged = ratios.get((name, rival))
            aim = "" if judged is None else f" (≥ {judged['target']:g})"
            lines[-1].append(f"{_ratio(min(times) / timed[name, OURS]['ms'])}{aim}" if times else "")
    shown = [SHOWN.get(engine, engine) for engine in engines]
    yield _table(["layer", *shown, "GFLOP/s", "× PyTorch (aimed at)", "× ncnn (aimed at)"], lines)
    reached = sum(all(row["reached"] for (name, _), row in ratios.items() if name == one) for one in names)
    yield f"{reached} of {len(names)} layers reach their targets."
    yield _errors(rows)


def _switches(folder: Path) -> Iterator[str]:
    """What each trick of the CPU kernels gains; nothing before it is measured."""
    known = [(switch.name, case.name) for switch in SWITCHES for case in switch.cases]
    rows = newest(folder, "switches", "machine", "switch", "what")
    rows = [row for row in rows if (row["switch"], row["what"]) in known]
    if not rows:
        return
    yield "## What each trick gains"
    yield texts.SWITCHES
    yield "\n".join(map(_trick, SWITCHES))
    kinds = by_kind(rows)
    for some in kinds.values():
        some.sort(key=lambda row: known.index((row["switch"], row["what"])))
    for some in kinds.values():
        yield _origin(some)
        yield _table(
            ["trick and case", "time", "without it", "gain", "quartiles"],
            [
                [
                    f"`{row['switch']}`: {row['what']}",
                    _fine_time(row["ms"]),
                    _fine_time(row["ms_without"]),
                    f"{row['gain']:.2f}",
                    _quartiles(row),
                ]
                for row in some
            ],
        )


def _trick(switch: Switch) -> str:
    """A switch in a sentence, with links to the files that it changes."""
    files = (KERNELS / file for file in switch.files)
    links = ", ".join(f"[`{file.as_posix()}`](../{file.as_posix()})" for file in files)
    return f"- `{switch.name}` ({links}): {switch.trick}; without it: {switch.without}."


def _threads(folder: Path) -> Iterator[str]:
    """What more threads bring; nothing before it is measured."""
    case = ("machine", "model", "what", "threads", "cores", "backend")
    kinds = by_kind(_of_the_default(newest(folder, threads.FILE, *case)))
    if not kinds:
        return
    yield "## Threads"
    yield texts.THREADS
    counts = [count for count in threads.COUNTS if count > 1]
    head = ["", "1 thread", *map(str, counts), "undivided", f"{threads.LIMITED}, × one thread"]
    for rows in kinds.values():
        runs: dict[tuple[str, str], dict[threads.Setting, Row]] = {}
        for row in rows:
            setting = threads.Setting(row["threads"], row["cores"])
            runs.setdefault((row["model"], row["what"]), {})[setting] = row
        yield _origin(rows)
        yield _table(head, [_threads_of_a_run(of, counts) for of in runs.values() if threads.ONE in of])
        yield _spread(rows)


def _spread(rows: Iterable[Row]) -> str:
    """The spreads of all rows, in a sentence."""
    spreads = [row["spread"] for row in rows]
    return f"Spread: {_share(statistics.median(spreads))} at the median, at most {_share(max(spreads))}."


def _threads_of_a_run(of: Mapping[threads.Setting, Row], counts: Sequence[int]) -> list[str]:
    """The line of a run: measured times, and estimates where there are no such cores. `of` has the one thread's."""
    ms = {setting: float(row["ms"]) for setting, row in of.items()}
    one, two, limited = ms[threads.ONE], ms.get(threads.TWO), ms.get(threads.LIMITED)
    share = None if two is None else threads.undivided(one, two)
    cells = [f"{of[threads.ONE]['model']}, {_shown_case(of[threads.ONE])}", _fine_time(one)]
    for count in counts:
        taken = ms.get(threads.Setting(count))
        note = ""
        if taken is None and share is not None:
            taken, note = threads.on_paper(one, share, count), ", on paper"
        cells.append("" if taken is None else f"{_fine_time(taken)} ({_ratio(one / taken)} ×){note}")
    return [*cells, _share(share), "" if limited is None else f"{limited / one:.2f}"]


def _stored_weights(folder: Path) -> Iterator[str]:
    """What weights of 16 bits cost; nothing before it is measured."""
    kinds = by_kind(newest(folder, stored_weights.FILE, "machine", "model", "what", "weights"))
    if not kinds:
        return
    yield "## Weights of 16 bits"
    yield texts.STORED_WEIGHTS
    for rows in kinds.values():
        runs: dict[tuple[str, str], dict[str, Row]] = {}
        for row in rows:
            runs.setdefault((row["model"], row["what"]), {})[row["weights"]] = row
        types = ["float32", *STORED.values()]
        yield _origin(rows)
        yield _table(
            ["", *(f"weights in {stored}" for stored in types), "largest errors"],
            [
                [f"{model}, {_shown_case(of['float32'])}", *_times_by_type(of, types)]
                for (model, _), of in runs.items()
            ],
        )
        yield _spread(rows)


def _times_by_type(of: Mapping[str, Row], types: Sequence[str]) -> list[str]:
    """The cells of a run: its time with weights of each type, and the errors against the first."""
    first = of[types[0]]["ms"]
    others = [of[stored] for stored in types[1:]]
    times = [f"{_fine_time(row['ms'])} ({row['ms'] / first:.2f})" for row in others]
    return [_fine_time(first), *times, ", ".join(f"{row['error']:.0e}" for row in others)]


def _landscape(folder: Path) -> Iterator[str]:
    rows = newest(folder, "landscape", "machine", "model", "size", "backend", "what", "area", "policy")
    yield "## The built-in landscape"
    yield texts.LANDSCAPE
    for of_numba in by_kind([row for row in rows if row["backend"] == "numba"]).values():
        yield _origin(of_numba)
        edits: dict[float, dict[str, Row]] = {}
        for row in of_numba:
            if row["what"] == "edit":
                edits.setdefault(row["area"], {})[row["policy"]] = row
        lines = []
        for area, of in sorted(edits.items()):
            cells = [_share(area)]
            for row in (of["paper"], of["exact"]):
                cells += [_time(row["ms"]), _ratio(row["ratio"]), _share(row["macs"])]
            lines.append([*cells, _psnr(of["paper"]["psnr"])])
        head = ["edited", "`paper`", "× dense", "MACs", "`exact`", "× dense", "MACs", "PSNR of `paper`"]
        yield _table(head, lines)
        of_machine = [row for row in rows if row["machine"] == of_numba[0]["machine"]]
        dense = {row["backend"]: row for row in of_machine if row["what"] == "dense"}
        sentence = f"The dense run takes {_time(dense['numba']['ms'])} with the `numba` backend."
        if "reference" in dense:
            reference = dense["reference"]
            sentence += (
                " With `reference`, which is written to be read, it takes "
                f"{_time(reference['ms'])} ({_named(reference)})."
            )
        yield sentence


def _diffusion(folder: Path) -> Iterator[str]:
    kinds = by_kind(_of_file(folder, "diffusion"))
    yield "## Diffusion"
    yield texts.DIFFUSION
    for model in dict.fromkeys(row["model"] for rows in kinds.values() for row in rows):
        yield f"### {model}"
        for rows in kinds.values():
            some = [row for row in rows if row["model"] == model]
            if some:
                yield _origin(some)
                yield _figures(some)
                yield _errors(some)
                yield "\n".join(_limits(model, {_case(row): row for row in some}))


def _figures(rows: Iterable[Row]) -> str:
    """The table of figures that a `harness.Report` recorded."""
    lines = []
    for row in rows:
        (unit,) = {"ms", "MB", "GB", "G", "×"} & row.keys()
        value = _time(row["ms"]) if unit == "ms" else _amount(row[unit], unit)
        aim, reached = (row["aim"], _verdict(row["reached"])) if "aim" in row else ("", "")
        spread, macs = _share(row.get("spread") or None), _share(row.get("macs"))
        lines.append([_line(row), value, spread, _ratio(row["ratio"]), macs, aim, reached])
    return _table(["", "figure", "spread", "× PyTorch", "MACs", "aimed at", "reached"], lines)


def _stable_diffusion(folder: Path) -> Iterator[str]:
    """The figures of `bench.stable_diffusion`; nothing before there are any."""
    kinds = by_kind(_of_file(folder, STABLE_DIFFUSION))
    if not kinds:
        return
    yield "## Stable Diffusion"
    yield texts.STABLE_DIFFUSION
    for rows in kinds.values():
        yield _origin(rows)
        yield _figures(rows)
        yield _errors(rows)
    yield texts.LATENT_LIMITS


def _limits(model: str, of: Mapping[str, Row]) -> Iterator[str]:
    """The targets of `fast` that are missed, each with its limit; none before it is measured. `of`: case -> row."""
    python = [f"Python of a step, {step_name(CHECKED_AREA, kind)}" for kind in KINDS]
    if not all(case in of for case in python):
        return
    kinds = [of[case]["ms"] for case in python]
    family: type[UNet] = DDPM if model.startswith("DDPM") else ProgressiveDistillation
    computed = Fast(**family.fast_settings).refreshed(len(family.diffusion.edit.times()))
    weights = (1, sum(computed) - 1, len(computed) - sum(computed))
    yield (
        f"- *Python of a step* is {mean(kinds, weights):.1f} ms on average over the {len(computed)} steps of an edit, "
        f"of which {sum(computed)} compute every layer. The limit is the replay of {_LAYERS_OF[model]} layers and "
        f"norms one by one, some {kinds[1] / _LAYERS_OF[model] * 1e3:.0f} µs each; only a recorded edit is free of "
        "it, which the `numba` backend has not ([CUDA](cuda.md))."
    )
    kind = sdedit_name("fast", "float16")
    if f"SDEdit, dense run of the original, {kind}" not in of:
        return
    runs = [
        of[f"SDEdit, run of the original over its dense steps alone, {sdedit_name(*each)}"]["×"]
        for each in SDEDITS
    ]
    yield (
        f"- *The run of the original* takes {', '.join(f'{run:.2f}' for run in runs[:-1])} and {runs[-1]:.2f} times "
        "its dense steps. It writes into memory that is new: pages of RAM, and of files beyond the RAM; with float16, "
        "it rounds what it keeps. The shares of these are not measured."
    )
    after, edit = (
        of[f"SDEdit, caches in RAM, {kind}"]["GB"],
        of[f"SDEdit, second edit, {kind}"]["journal_bytes"] / 1e9,
    )
    room = parse_size(SDEDIT_CACHE)
    fitting = 2 + int((room / 1e9 - after) // edit)
    own = of[f"SDEdit, the process's own memory, {kind}"]["GB"]
    yield (
        f"- *No file* holds for {fitting} edits of 1.2 %: each journal takes {edit:.2f} GB, and the next one goes to "
        f"disk (or, with `undo=`, the oldest is forgotten). {SDEDIT_CACHE} are the caches and journals; the process "
        f"takes {own:.2f} GB, of which the weights are 0.45."
    )


def _on_a_card(folder: Path) -> Iterator[str]:
    """The figures of `bench.gpu` that have an aim; without any, the command that measures them."""
    rows = newest(folder, "gpu", "card", "case", "precision", "what", "engine")
    found = {(row["case"], row["precision"], row.get("engine"), row["what"]): row for row in rows}
    ours = [row for row in rows if row.get("engine") == "sparsegen" and "ms" in row]
    yield "## On an NVIDIA card"
    if not ours:
        yield texts.OWED
        return
    yield _origin([{**row, "machine": row["card"]} for row in ours])
    yield texts.CARD
    head = ["", "PyTorch", "sparsegen", "× PyTorch", "on the card", "aimed at", "reached"]
    for (case, precision), some in grouped(ours, lambda row: (row["case"], row["precision"])).items():
        cells = []
        for row in some:
            dense = "SDEdit" if row["what"].startswith("SDEdit") else "dense"
            torch = found.get((case, precision, "torch", dense), {})
            judged = found.get((case, precision, None, row["what"]), {})
            cells.append(
                [
                    row["what"],
                    f"{torch['ms']:.1f} ms" if torch else "",
                    f"{row['ms']:.1f} ms",
                    *(
                        _ratio(torch[time] / row[time]) if torch.get(time) and row.get(time) else ""
                        for time in ("ms", "device_ms")
                    ),
                    judged.get("aim", ""),
                    _verdict(judged["reached"]) if judged else "",
                ]
            )
        yield f"### {texts.CARD_CASES[case]}, {precision}"
        yield _table(head, cells)
    yield texts.CARD_LIMITS


def _quality(folder: Path) -> Iterator[str]:
    rows = [row for row in _of_quality(folder) if "study" not in row]
    groups = dict.fromkeys([group_of(FIRST), *sorted(row["group"] for row in rows)])
    yield "## How near sparse is to dense"
    yield _origin(rows)
    yield texts.QUALITY
    for group in groups:
        some = [row for row in rows if row["group"] == group]
        yield f"### {_shown_group(group)}"
        yield _table(head(some), lines(some))
        judged = list(verdicts(some))
        if judged:
            cells = [(what, figure, aim, _verdict(reached)) for what, figure, aim, reached in judged]
            yield _table(["", "figure", "aimed at", "reached"], cells)
        yield from beside_paper(some)
    for name, caption in (
        ("quality-curve", "PSNR of the region over MACs, by policy"),
        ("quality", "Original, strokes, the dense edit and sparse ones of eight of the strokes"),
    ):
        if (folder / f"{name}.png").exists():
            yield f"![{caption}](../bench/results/{name}.png)"


def _of_quality(folder: Path) -> list[Row]:
    case = (
        "model",
        "study",
        "group",
        "name",
        "policy",
        "noise_level",
        "time",
        "steps",
        "strength",
        "dilation",
    )
    return newest(folder, "quality", *case)


def short_quality(folder: Path = RESULTS) -> str:
    """The sentence of the README about the quality of edits."""
    return next(
        beside_paper(
            [row for row in _of_quality(folder) if row["group"] == group_of(FIRST) and "study" not in row]
        )
    )


def _study(folder: Path) -> Iterator[str]:
    """The tables of `bench.study`."""
    rows = [row for row in _of_quality(folder) if row.get("study") not in (None, latents.PART)]
    parts = grouped(rows, lambda row: str(row["study"]))
    if not parts:
        return
    yield "### The settings of `fast`"
    yield _origin([row for some in parts.values() for row in some])
    yield texts.STUDY
    for title, shown in study.tables(parts):
        yield f"**{title}.** {texts.STUDIED.get(title, '')}".rstrip()
        yield _table(*shown)
    if (folder / study.CURVE).exists():
        yield f"![PSNR over the weight of fresh statistics, and over MACs](../bench/results/{study.CURVE})"


def _shown_group(group: str) -> str:
    if group == EXAMPLES:
        return "The examples of the model"
    seed = int(group.removeprefix(group_of(0).removesuffix("0")))
    return "Unseen images" if seed == FIRST else f"Other unseen images, from seed {seed:,} on"


def _chains(folder: Path) -> Iterator[str]:
    rows = newest(folder, "chains", "model", "policy", "chain", "edit")
    if rows:
        yield "### Edits in a row"
        yield _origin(rows)
        yield texts.CHAINS
        yield _table(chain_head(rows), chain_lines(rows))


def _latents(folder: Path) -> Iterator[str]:
    """The tables of `bench.latents`."""
    rows = [row for row in _of_quality(folder) if row.get("study") == latents.PART]
    if rows:
        yield "### Stable Diffusion"
        yield _origin(rows)
        yield texts.LATENTS
    for title, shown in latents.tables(rows) if rows else ():
        yield f"**{title}.**"
        yield _table(*shown)


def _commits(folder: Path) -> Iterator[str]:
    rows = newest(folder, "commits", "model", "threads", "old", "new", "what")
    if rows:
        yield "## Before and after a rebuilding"
        yield texts.COMMITS
    for old, new in dict.fromkeys((row["old"], row["new"]) for row in rows):
        some = [row for row in rows if (row["old"], row["new"]) == (old, new)]
        places = dict.fromkeys(f"on {row['machine']}, {row['date']}" for row in some)
        yield f"Commit `{old}` (old) and `{new}` (new), measured {'; '.join(places)}."
        yield _table(
            ["", "threads", "old", "new", "new over old", "quartiles", "same bits"],
            [
                [
                    f"{row['model']}, {_shown_case(row)}",
                    f"{row['threads']}",
                    _time(row["old_cpu_ms"]),
                    _time(row["new_cpu_ms"]),
                    f"{row['ratio']:.2f}",
                    _quartiles(row),
                    _verdict(row["same_bits"]),
                ]
                for row in some
            ],
        )


# -- cells -----------------------------------------------------------------------------------------------


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    shown = [head, ["---", *["--:"] * (len(head) - 1)], *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in shown)


def _named(row: Row) -> str:
    return f"commit `{row['commit']}`, {row['date']}"


def _origin(rows: Iterable[Row]) -> str:
    """The machines, commits and dates of the rows; how many rows each has, where there are several."""
    found: dict[tuple[str, str, str], int] = {}
    for row in rows:
        origin = (row["machine"], row["commit"], row["date"])
        found[origin] = found.get(origin, 0) + 1
    lines = []
    for (machine, commit, date), count in found.items():
        note = next((f" ({details})" for name, details in PROCESSORS.items() if machine.startswith(name)), "")
        of = f" ({count} figure{'s' * (count != 1)})" if len(found) > 1 else ""
        lines.append(f"Measured on {machine}{note}, commit `{commit}`, {date}{of}.")
    versions = sorted(
        {row["version"].split("+")[0] for row in rows if _engine(row) in TORCH and "version" in row}
    )
    return "\n".join([*lines, *(f"PyTorch {version}." for version in versions)])


def _engine(row: Row) -> str:
    """The engine of a timed row, "" of another row."""
    return str(row.get("engine", ""))


def _case(row: Row) -> str:
    """The case without the engine, which some files name with it: "sparsegen, dense" is "dense"."""
    return str(row["what"]).removeprefix(f"{_engine(row)}, ")


def _errors(rows: Sequence[Row]) -> str:
    """The errors of the engines in bfloat16, the largest of all rows; "" if there are none."""
    sentences = []
    for engine in BFLOAT16:
        some = [row for row in rows if _engine(row) == engine and "error" in row]
        if some:
            rms, most = (f"{max(row[name] for row in some):.1%}" for name in ("error_rms", "error"))
            sentences.append(
                f"{SHOWN[engine]} differs from PyTorch in float32 by {rms} (root mean square), at most by {most} of "
                "the largest value.".replace("%", " %")
            )
    return " ".join(sentences)


SHOWN = {
    "torch-nchw": "PyTorch (NCHW)",
    "torch-nhwc": "PyTorch (NHWC)",
    TORCH_BFLOAT16: "PyTorch (bfloat16)",
    OURS_BFLOAT16: "sparsegen (bfloat16)",
    "onnxruntime": "ONNX Runtime",
}
"""Engine -> its name in the tables; other engines keep theirs."""


def _line(row: Row) -> str:
    """The first cell of a row: its engine, if it has one, and its case."""
    engine, case = _engine(row), _shown_case(row)
    if not engine:
        engine, comma, rest = case.partition(", ")
        return SHOWN.get(engine, engine) + comma + rest
    return f"{SHOWN.get(engine, engine)}, {case}"


def _shown_case(row: Row) -> str:
    """`edit 1.2% paper` -> edit of 1.2 %, `paper`; likewise within a longer case."""
    return re.sub(
        r"\bedit ([\d.]+?)(?:\.0)?% (\w+)", lambda found: f"edit of {found[1]} %, `{found[2]}`", _case(row)
    )


def _time(ms: float) -> str:
    if ms >= 5000:
        return f"{ms / 1e3:.1f} s"
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"


def _fine_time(ms: float) -> str:
    return f"{ms:.2f} ms" if ms < 10 else _time(ms)


def _quartiles(row: Row) -> str:
    return " to ".join(f"{quartile:.2f}" for quartile in row["quartiles"])


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.2f}" if ratio < 0.995 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def _time_and_ratio(row: Row) -> str:
    return f"{_time(row['ms'])} ({_ratio(row['ratio'])} ×)"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}".replace("%", " %")


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.0f} MB"


def _amount(value: float, unit: str) -> str:
    return _time(value) if unit == "ms" else f"{value:.0f} {unit}" if value >= 100 else f"{value:.2f} {unit}"


def _aim(row: Row) -> str:
    # a factor over PyTorch is a lower bound, every other target an upper bound
    sign = "≥" if "× PyTorch" in row["what"] else "≤"
    return f"{sign} {row['target']:g} {row['unit']}"


def _psnr(value: float) -> str:
    return "the same bits" if value == float("inf") else f"{value:.1f} dB"


def _verdict(reached: bool) -> str:
    return "yes" if reached else "no"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    PAGE.write_text(page(), "utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
