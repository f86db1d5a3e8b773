"""The page of benchmarks: the JSON lines of `bench/results/` come in, `docs/benchmarks.md` comes out. Nothing is timed.

    python -m bench.report

Figures that depend on the processor have a table for each kind of vectors. The machine, the commit and the date of the
lines stand above each table. (`report_rows.py` chooses the lines, `report_cells.py` writes the cells, `report_texts.py`
has the words.)
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bench import latents, stored_weights, study, threads
from bench import report_cells as cells
from bench import report_texts as texts
from bench.cases import (
    CHECKED_AREA,
    SDEDIT_CACHE,
    SDEDITS,
    layers,
    sdedit_name,
    step_name,
)
from bench.engines import OURS, STORED, TORCH
from bench.gaugan import AIMS, Aims, curve
from bench.harness import RESULTS
from bench.quality_tables import Row, beside_paper, chain_head, chain_lines, head, lines, verdicts
from bench.report_rows import by_kind, by_kind_and_cores, newest, of_file, of_the_default
from bench.report_short import short_section
from bench.stable_diffusion import FILE as STABLE_DIFFUSION
from bench.strokes import EXAMPLES, FIRST, group_of
from bench.study_tables import grouped
from bench.switch_table import SWITCHES, Switch
from bench.trajectory import KINDS, mean
from sparsegen.engine.store import parse_size
from sparsegen.models import DDPM, ProgressiveDistillation
from sparsegen.models.unet import UNet
from sparsegen.tiling.policies import Fast

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

FIRST_DEMO_SECONDS = 40.0
"""Target of a demo that compiles its kernels, in rows that name none."""

_LAYERS_OF = {"DDPM 256": 177, "PD 128": 323, "PD 256": 361}
"""Layers and norms of a model: the steps that an edit replays."""


def page(folder: Path = RESULTS) -> str:
    """The page as Markdown, off the `*.jsonl` files of a folder."""
    parts = [
        texts.INTRO,
        *short_section(folder),
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


# -- sections --------------------------------------------------------------------------------------------


def _generator(folder: Path, file: str, about: str) -> Iterator[str]:
    """The section of a model of label maps; nothing where it is not measured."""
    kinds = by_kind(of_file(folder, file))
    for rows in list(kinds.values())[:1]:
        yield f"## {rows[0]['model']}"
        yield _with_times(about, kinds)
    for kind, rows in kinds.items():
        yield cells.origin(rows)
        yield cells.table(
            ["", "time", "spread", "× PyTorch", "MACs", "journal"],
            [
                [
                    cells.line(row),
                    cells.time(row["ms"]),
                    cells.share(row["spread"]),
                    cells.ratio(row["ratio"]),
                    cells.share(row.get("macs")),
                    cells.megabytes(row.get("journal_bytes")),
                ]
                for row in rows
                if "ms" in row
            ],
        )
        yield cells.errors(rows)
        yield cells.table(
            ["", "figure", "aimed at", "reached"],
            [
                [
                    cells.shown_case(row),
                    cells.amount(row["value"], row["unit"]),
                    cells.aim(row),
                    cells.verdict(row["reached"]),
                ]
                for row in (_judged_now(row, AIMS[file]) for row in rows if "target" in row)
            ],
        )
        yield f"![Time over the edited area, 0 to 100 %](../bench/results/{curve(file, kind)})"


def _with_times(about: str, kinds: Mapping[str, Sequence[Row]]) -> str:
    """A text with the times of sparsegen's dense runs in it, each in the place of its `{model kind}`; "–": none."""
    times = {
        f"{row['model']} {kind}": cells.time(row["ms"])
        for kind, rows in kinds.items()
        for row in rows
        if cells.engine(row) == OURS and cells.case(row) in ("dense", "step, dense")
    }
    return re.sub(r"{([^}]+)}", lambda name: times.get(" ".join(name[1].split()), "–"), about)


def _judged_now(row: Row, aims: Aims) -> Row:
    """A figure beside the target that it has now: it may be older than that."""
    case = str(row["what"]).removesuffix(", × PyTorch dense")
    target = aims.over_torch.get(case)
    return row if target is None else {**row, "target": target, "reached": row["value"] >= target}


def _startup(folder: Path) -> Iterator[str]:
    yield "## Whole processes"
    yield texts.STARTUP
    for rows in by_kind(of_the_default(newest(folder, "startup", "machine", "what", "backend"))).values():
        yield cells.origin(rows)
        lines = []
        for row in rows:
            target = row.get("target", FIRST_DEMO_SECONDS * 1e3 if "not compiled" in row["what"] else None)
            aim = "" if target is None else f"≤ {target / 1e3:g} s"
            reached = "" if target is None else cells.verdict(row["ms"] <= target)
            time = f"{row['ms'] / 1e3:.2f} s"
            lines.append([cells.line(row), time, cells.share(row["spread"] or None), aim, reached])
        yield cells.table(["", "time", "spread", "aimed at", "reached"], lines)


def _layers(folder: Path) -> Iterator[str]:
    rows = of_the_default(newest(folder, "layers", "machine", "what", "engine", "over", "backend"))
    yield "## Layers"
    yield f"Milliseconds. {texts.LAYERS}"
    for some in by_kind(rows).values():
        yield from _layers_of_a_machine(some)


def _layers_of_a_machine(rows: Sequence[Row]) -> Iterator[str]:
    timed = {(row["what"], row["engine"]): row for row in rows if "engine" in row}
    ratios = {(row["what"], row["over"]): row for row in rows if "over" in row}
    engines = list(dict.fromkeys(engine for _, engine in timed))
    names = [case.name for case in layers(False) if (case.name, OURS) in timed]
    yield cells.origin(rows)
    lines = []
    for name in names:
        medians = [f"{timed[name, engine]['ms']:.1f}" for engine in engines]
        lines.append([name, *medians, f"{timed[name, OURS]['gflops']:.0f}"])
        for rival, of in (("torch", TORCH), ("ncnn", ("ncnn",))):
            times = [timed[name, engine]["ms"] for engine in of if (name, engine) in timed]
            judged = ratios.get((name, rival))
            aim = "" if judged is None else f" (≥ {judged['target']:g})"
            lines[-1].append(f"{cells.ratio(min(times) / timed[name, OURS]['ms'])}{aim}" if times else "")
    shown = [cells.SHOWN.get(engine, engine) for engine in engines]
    yield cells.table(["layer", *shown, "GFLOP/s", "× PyTorch (aimed at)", "× ncnn (aimed at)"], lines)
    reached = sum(all(row["reached"] for (name, _), row in ratios.items() if name == one) for one in names)
    yield f"{reached} of {len(names)} layers reach their targets."
    yield cells.errors(rows)


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
        yield cells.origin(some)
        yield cells.table(
            ["trick and case", "time", "without it", "gain", "quartiles"],
            [
                [
                    f"`{row['switch']}`: {row['what']}",
                    cells.fine_time(row["ms"]),
                    cells.fine_time(row["ms_without"]),
                    f"{row['gain']:.2f}",
                    cells.quartiles(row),
                ]
                for row in some
            ],
        )


def _trick(switch: Switch) -> str:
    """A switch in a sentence, with links to the files that it changes."""
    links = ", ".join(f"[`{file.as_posix()}`](../{file.as_posix()})" for file in switch.files)
    return f"- `{switch.name}` ({links}): {switch.trick}; without it: {switch.without}."


def _threads(folder: Path) -> Iterator[str]:
    """What more threads bring; nothing before it is measured."""
    case = ("machine", "model", "what", "threads", "cores", "backend")
    machines = by_kind_and_cores(of_the_default(newest(folder, threads.FILE, *case)))
    if not machines:
        return
    yield "## Threads"
    yield texts.THREADS
    counts = [count for count in threads.COUNTS if count > 1]
    head = ["", "1 thread", *map(str, counts), "undivided", f"{threads.LIMITED}, × one thread"]
    for rows in machines:
        runs: dict[tuple[str, str], dict[threads.Setting, Row]] = {}
        for row in rows:
            setting = threads.Setting(row["threads"], row["cores"])
            runs.setdefault((row["model"], row["what"]), {})[setting] = row
        yield cells.origin(rows)
        yield cells.table(head, [_threads_of_a_run(of, counts) for of in runs.values() if threads.ONE in of])
        yield _spread(rows)


def _spread(rows: Iterable[Row]) -> str:
    """The spreads of all rows, in a sentence."""
    spreads = [row["spread"] for row in rows]
    return f"Spread: {cells.share(statistics.median(spreads))} at the median, at most {cells.share(max(spreads))}."


def _threads_of_a_run(of: Mapping[threads.Setting, Row], counts: Sequence[int]) -> list[str]:
    """The line of a run: measured times, and estimates where there are no such cores. `of` has the one thread's."""
    ms = {setting: float(row["ms"]) for setting, row in of.items()}
    one, two, limited = ms[threads.ONE], ms.get(threads.TWO), ms.get(threads.LIMITED)
    share = None if two is None else threads.undivided(one, two)
    line = [f"{of[threads.ONE]['model']}, {cells.shown_case(of[threads.ONE])}", cells.fine_time(one)]
    for count in counts:
        taken = ms.get(threads.Setting(count))
        note = ""
        if taken is None and share is not None:
            taken, note = threads.on_paper(one, share, count), ", on paper"
        line.append("" if taken is None else f"{cells.fine_time(taken)} ({cells.ratio(one / taken)} ×){note}")
    return [*line, cells.share(share), "" if limited is None else f"{limited / one:.2f}"]


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
        yield cells.origin(rows)
        yield cells.table(
            ["", *(f"weights in {stored}" for stored in types), "largest errors"],
            [
                [f"{model}, {cells.shown_case(of['float32'])}", *_times_by_type(of, types)]
                for (model, _), of in runs.items()
            ],
        )
        yield _spread(rows)


def _times_by_type(of: Mapping[str, Row], types: Sequence[str]) -> list[str]:
    """The cells of a run: its time with weights of each type, and the errors against the first."""
    first = of[types[0]]["ms"]
    others = [of[stored] for stored in types[1:]]
    times = [f"{cells.fine_time(row['ms'])} ({row['ms'] / first:.2f})" for row in others]
    return [cells.fine_time(first), *times, ", ".join(f"{row['error']:.0e}" for row in others)]


def _landscape(folder: Path) -> Iterator[str]:
    rows = newest(folder, "landscape", "machine", "model", "size", "backend", "what", "area", "policy")
    yield "## The built-in landscape"
    yield texts.LANDSCAPE
    for of_numba in by_kind([row for row in rows if row["backend"] == "numba"]).values():
        yield cells.origin(of_numba)
        edits: dict[float, dict[str, Row]] = {}
        for row in of_numba:
            if row["what"] == "edit":
                edits.setdefault(row["area"], {})[row["policy"]] = row
        lines = []
        for area, of in sorted(edits.items()):
            line = [cells.share(area)]
            for row in (of["paper"], of["exact"]):
                line += [cells.time(row["ms"]), cells.ratio(row["ratio"]), cells.share(row["macs"])]
            lines.append([*line, cells.psnr(of["paper"]["psnr"])])
        head = ["edited", "`paper`", "× dense", "MACs", "`exact`", "× dense", "MACs", "PSNR of `paper`"]
        yield cells.table(head, lines)
        of_machine = [row for row in rows if row["machine"] == of_numba[0]["machine"]]
        dense = {row["backend"]: row for row in of_machine if row["what"] == "dense"}
        sentence = f"The dense run takes {cells.time(dense['numba']['ms'])} with the `numba` backend."
        if "reference" in dense:
            reference = dense["reference"]
            sentence += (
                " With `reference`, which is written to be read, it takes "
                f"{cells.time(reference['ms'])} ({cells.named(reference)})."
            )
        yield sentence


def _diffusion(folder: Path) -> Iterator[str]:
    kinds = by_kind(of_file(folder, "diffusion"))
    yield "## Diffusion"
    yield _with_times(texts.DIFFUSION, kinds)
    for model in dict.fromkeys(row["model"] for rows in kinds.values() for row in rows):
        yield f"### {model}"
        for rows in kinds.values():
            some = [row for row in rows if row["model"] == model]
            if some:
                yield cells.origin(some)
                yield _figures(some)
                yield cells.errors(some)
                yield "\n".join(_limits(model, {cells.case(row): row for row in some}))


def _figures(rows: Iterable[Row]) -> str:
    """The table of figures that a `harness.Report` recorded."""
    lines = []
    for row in rows:
        (unit,) = {"ms", "MB", "GB", "G", "×"} & row.keys()
        value = cells.time(row["ms"]) if unit == "ms" else cells.amount(row[unit], unit)
        aim, reached = (row["aim"], cells.verdict(row["reached"])) if "aim" in row else ("", "")
        spread, macs = cells.share(row.get("spread") or None), cells.share(row.get("macs"))
        lines.append([cells.line(row), value, spread, cells.ratio(row["ratio"]), macs, aim, reached])
    return cells.table(["", "figure", "spread", "× PyTorch", "MACs", "aimed at", "reached"], lines)


def _stable_diffusion(folder: Path) -> Iterator[str]:
    """The figures of `bench.stable_diffusion`; nothing before there are any."""
    kinds = by_kind(of_file(folder, STABLE_DIFFUSION))
    if not kinds:
        return
    yield "## Stable Diffusion"
    yield texts.STABLE_DIFFUSION
    for rows in kinds.values():
        yield cells.origin(rows)
        yield _figures(rows)
        yield cells.errors(rows)
    yield _with_times(texts.LATENT_LIMITS, kinds)


def _limits(model: str, of: Mapping[str, Row]) -> Iterator[str]:
    """The targets of `fast` that are missed, each with its limit; none before it is measured. `of`: case -> row."""
    python = [f"Python of a step, {step_name(CHECKED_AREA, kind)}" for kind in KINDS]
    if not all(case in of for case in python):
        return
    if not all(of[case].get("reached", True) for case in python):
        kinds = [of[case]["ms"] for case in python]
        family: type[UNet] = DDPM if model.startswith("DDPM") else ProgressiveDistillation
        computed = Fast(**family.fast_settings).refreshed(len(family.diffusion.edit.times()))
        weights = (1, sum(computed) - 1, len(computed) - sum(computed))
        yield (
            f"- *Python of a step* is {mean(kinds, weights):.1f} ms on average over the {len(computed)} steps of an "
            f"edit, of which {sum(computed)} compute every layer. The limit is the replay of {_LAYERS_OF[model]} "
            f"layers and norms one by one, some {kinds[1] / _LAYERS_OF[model] * 1e3:.0f} µs each; only a recorded "
            "edit is free of it, which the `numba` backend has not ([CUDA](cuda.md))."
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
    yield cells.origin([{**row, "machine": row["card"]} for row in ours])
    yield texts.CARD
    head = ["", "PyTorch", "sparsegen", "× PyTorch", "on the card", "aimed at", "reached"]
    for (case, precision), some in grouped(ours, lambda row: (row["case"], row["precision"])).items():
        lines = []
        for row in some:
            dense = "SDEdit" if row["what"].startswith("SDEdit") else "dense"
            torch = found.get((case, precision, "torch", dense), {})
            judged = found.get((case, precision, None, row["what"]), {})
            lines.append(
                [
                    row["what"],
                    f"{torch['ms']:.1f} ms" if torch else "",
                    f"{row['ms']:.1f} ms",
                    *(
                        cells.ratio(torch[time] / row[time]) if torch.get(time) and row.get(time) else ""
                        for time in ("ms", "device_ms")
                    ),
                    judged.get("aim", ""),
                    cells.verdict(judged["reached"]) if judged else "",
                ]
            )
        yield f"### {texts.CARD_CASES[case]}, {precision}"
        yield cells.table(head, lines)
    yield texts.CARD_LIMITS


def _quality(folder: Path) -> Iterator[str]:
    rows = [row for row in _of_quality(folder) if "study" not in row]
    groups = dict.fromkeys([group_of(FIRST), *sorted(row["group"] for row in rows)])
    yield "## How near sparse is to dense"
    yield cells.origin(rows)
    yield texts.QUALITY
    for group in groups:
        some = [row for row in rows if row["group"] == group]
        yield f"### {_shown_group(group)}"
        yield cells.table(head(some), lines(some))
        judged = list(verdicts(some))
        if judged:
            shown = [(what, figure, aim, cells.verdict(reached)) for what, figure, aim, reached in judged]
            yield cells.table(["", "figure", "aimed at", "reached"], shown)
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
    yield cells.origin([row for some in parts.values() for row in some])
    yield texts.STUDY
    for title, shown in study.tables(parts):
        yield f"**{title}.** {texts.STUDIED.get(title, '')}".rstrip()
        yield cells.table(*shown)
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
        yield cells.origin(rows)
        yield texts.CHAINS
        yield cells.table(chain_head(rows), chain_lines(rows))


def _latents(folder: Path) -> Iterator[str]:
    """The tables of `bench.latents`."""
    rows = [row for row in _of_quality(folder) if row.get("study") == latents.PART]
    if rows:
        yield "### Stable Diffusion"
        yield cells.origin(rows)
        yield texts.LATENTS
    for title, shown in latents.tables(rows) if rows else ():
        yield f"**{title}.**"
        yield cells.table(*shown)


def _commits(folder: Path) -> Iterator[str]:
    rows = newest(folder, "commits", "model", "threads", "old", "new", "what")
    if rows:
        yield "## Before and after a rebuilding"
        yield texts.COMMITS
    for old, new in dict.fromkeys((row["old"], row["new"]) for row in rows):
        some = [row for row in rows if (row["old"], row["new"]) == (old, new)]
        places = dict.fromkeys(f"on {row['machine']}, {row['date']}" for row in some)
        yield f"Commit `{old}` (old) and `{new}` (new), measured {'; '.join(places)}."
        yield cells.table(
            ["", "threads", "old", "new", "new over old", "quartiles", "same bits"],
            [
                [
                    f"{row['model']}, {cells.shown_case(row)}",
                    f"{row['threads']}",
                    cells.time(row["old_cpu_ms"]),
                    cells.time(row["new_cpu_ms"]),
                    f"{row['ratio']:.2f}",
                    cells.quartiles(row),
                    cells.verdict(row["same_bits"]),
                ]
                for row in some
            ],
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    PAGE.write_text(page(), "utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
