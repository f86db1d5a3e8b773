"""The page of benchmarks: the JSON lines of `bench/results/` come in, `docs/benchmarks.md` comes out. Nothing is timed.

    python -m bench.report

Of each case the newest line counts (files grow at their end); lines of `--quick` and `--plain-memory` runs do not. The
machine, the commit and the date of the lines stand above each table.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import latents, study
from bench.cases import (
    CHECKED_AREA,
    MEAN,
    SDEDIT_CACHE,
    SDEDIT_LEVEL,
    SDEDIT_STEPS,
    SDEDITS,
    edit_name,
    layers,
    sdedit_name,
    step_name,
)
from bench.engines import OURS, TORCH
from bench.harness import RESULTS, THREADS
from bench.latent_cases import LATENT
from bench.quality_tables import Row, beside_paper, chain_head, chain_lines, head, lines, verdicts
from bench.stable_diffusion import FILE as STABLE_DIFFUSION
from bench.strokes import EXAMPLES, FIRST, group_of
from bench.study_tables import grouped
from bench.trajectory import KINDS, mean
from sparsegen.engine.store import parse_size
from sparsegen.models import DDPM, ProgressiveDistillation
from sparsegen.models.unet import UNet
from sparsegen.pipelines.latent_edit import MARGIN
from sparsegen.tiling.policies import Fast

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

PROCESSORS = {
    "Intel(R) Xeon(R) Processor": "a virtual machine; Sapphire Rapids or later, AVX-512",
}
"""The beginning of a machine's name -> details that the name omits."""
FIRST_DEMO_SECONDS = 40.0
"""Target of a demo that compiles its kernels, for which `bench.startup` records none."""

_INTRO = f"""# Benchmarks

`python -m bench.report` writes this page from the JSON lines in [`bench/results/`](../bench/results). Do not edit it.
It measures nothing. **A figure belongs to the commit and the machine that are named above its table; it is not measured
again when the code changes.** `make bench` measures, appends lines, and writes the page again.

- Times of steps, layers and processes are medians of repeats; an SDEdit session is timed once. *Spread* is the distance
  between the quartiles of the repeats as a share of the median; the machine shares its caches and its memory with
  others, which causes most of it.
- Every engine computes in float32 with {THREADS} threads, in a separate process. Engines take turns, and are compared
  with PyTorch before they are timed.
- "PyTorch" is the better of its two memory layouts. It is helped to keep the memory that it frees (the option
  `--plain-memory` omits the help).
- "× PyTorch" is how many times as fast as PyTorch's dense run. "Aimed at" is the project's target.
- MACs are the multiply-accumulates of a run as a share of the dense run's, counted by each layer's plain formula.
"""

_GAUGAN = """93 M random weights, a street painted by [`bench/street.py`](../bench/street.py). Every timed
edit is new to the session. SIGE keeps 1,098 MB of activations for the same model."""

_GAN_COMPRESSION = """20 M random weights of the published widths (32_32_32_48_32_24_24_32), the same streets. Under
`paper` the three lowest blocks are computed whole, 4.6 of the 5.5 G MACs of a 1.2 % edit. The two 3×3 convolutions at
16×32 alone take about half of its time, at 60 % of what this machine can do, by `sparsegen profile gan-compression
--area 1.2 --policy paper --run`."""

_STARTUP = """From the start of the process to the image on disk; the files are in the disk's cache.
`sparsegen edit` computes the original and the edit, the PyTorch process one image. `bench.startup` times the
first demo on a machine once."""

_LAYERS = """Most of the time of a 3×3 layer of stride 1 is the products of Winograd's algorithm; then come
the transforms of kernels and windows, which write four times as much as they read. ncnn keeps its kernels
transformed, four times as large; a layer that is called again and again, as here, finds them in the machine's
large cache, a whole model has to read them from memory. 1×1 layers and layers of stride 2 have no products to
save. GFLOP/s count a layer's plain formula."""

_LANDSCAPE = """The built-in model, 256×512, 18.6 G MACs. The edits are rectangles that turn land into water
and water into land, which is harder for `paper` than the demo's house (41 dB): their influence reaches far
through the lowest resolutions. PSNR is against the dense run of the edited labels."""

_DIFFUSION = f"""Random weights. The edits are rectangles, each new to the session. SDEdit takes
{SDEDIT_STEPS} steps of DDIM from noise level {SDEDIT_LEVEL} with {SDEDIT_CACHE} of RAM for its caches, and is
timed to the PNG.

Under the family's `paper` settings everything below 64×64 is computed whole: 24 of the 32.6 G MACs of a 1.2 %
edit of DDPM, 33 of the 35 G of PD. That is most of the time of an edit. Under `fast` those resolutions are
sparse, and computed at some of the steps alone. An edit then has steps of three kinds: the first one, which also
finds the active tiles; *refreshed* ones, which compute every layer; *carried* ones. Their mean is over all steps
of the family's edits (DDPM {SDEDIT_STEPS}, PD 5). The Python of a step is its time on a backend that computes
nothing. The run of an original is timed with the weights laid out, and compared with as many of the table's dense
steps, whose canvases are there already. Caches and journals count together, and files grow by 0.27 GB at a time; the
process has the weights, and the arrays that kernels compute in, beside them.

The targets are for machines with AVX2 and with AVX-512. **Under `fast` only AVX2 is measured**."""

_STABLE_DIFFUSION = f"""{LATENT.name}, by `python -m bench.stable_diffusion`. Random weights, whose file holds 16 bits:
sparsegen keeps them so, diffusers in 32. A *step* is a guided one, both halves in one call; edits are rectangles, with
{MARGIN} pixels around them. Means are over the {LATENT.usual_steps} steps that a session takes with its default
settings. The *session* takes {len(LATENT.settings().times())} steps, its caches are in float16, its journals are those
of two edits; beside it is diffusers' pipeline of image to image. Both go from the painted image to the PNG, with the
texts encoded before. MACs in G are those of one half; SIGE's rule gives 71.8 G for a square in the middle."""

_LAYERS_OF = {"DDPM 256": 177, "PD 128": 323, "PD 256": 361}
"""Layers and norms of a model: the steps that an edit replays."""

_CARD = """PyTorch with cuDNN, channels last; CUDA graphs on both sides, equal settings of TF32. "× PyTorch" is of the
time from the call to the result in main memory, "on the card" of the graphs alone ([CUDA](cuda.md#the-bench))."""

_OWED = """No speed is measured yet: the backend's kernels are checked on a card ([CUDA](cuda.md)), and
`python bench/gpu.py` measures them on one that does nothing else. Aimed at on an H100, against PyTorch's dense run:
dense runs in at most 1.3 times its time, edits of 1.2 % at least 6 times (DDPM 256) and 10 times (GauGAN 512×256) as
fast."""

_QUALITY = """`landscape-ddpm`, SDEdit of 25 steps: PSNR and SSIM against the session's dense edit of the same
strokes, each a median · the lowest, PSNR in dB. They are of the *region*, the pixels that the sparse or the dense
edit changed, by area of the strokes; only the last column is of the whole image. MACs are a share of the dense
edit's. Each of the lower lines differs from `fast` in the settings in brackets: sparsity alone, sparsity with one of
the other two ideas.

**The quality of PD and of DDPM 256 is not measured**: their weights here are random, and their images mean nothing.
That their MACs are reached at the quality of these tables is an assumption, and the settings of PD under `fast`
(`refresh` 4, `frontier` 3) are chosen by its MACs alone."""

_STUDY = """What each setting of `fast` costs and gains, on strokes of *unseen images*, taken in an order that spreads
their areas (`python -m bench.quality --study`). PSNR of the region, median · lowest, in dB; the number of strokes is
in brackets. MACs are the median share of the dense edit's."""

_STUDIED = {
    "Weight of fresh statistics, one step alone": """The model's output after one step, without any sampling: how far
the edit moves the dense output, over the error of the sparse one, in dB (root mean squares over the region). Late
steps are at small times.""",
    "Other noise levels": """The same strokes, denoised from other noise levels of 1000, and so with other steps.""",
    "Strokes that chose nothing": """Another set, from seed 3,000,000 on, which no setting was chosen by.""",
}
"""Title of a table of the study -> what it shows beside the others."""

_CHAINS = """Strokes of 2 % on the result of the last edit, compared with the same strokes in a row of dense edits:
over the regions of all edits so far, and, for the last edit alone, with the dense edit from the same place. Before a
figure is recorded, undo of all edits gives the original and redo the last image, bit for bit."""

_LATENTS = """`landscape-sd`, 128×128, latents of 32×32, guidance 4: strokes and masks of 1, 5 and 15 % on three
images that the training has not seen, against the session's dense edit of the same input
(`python -m bench.quality --model landscape-sd`). PSNR of the region by area, median · lowest, in dB; the number of
edits is in brackets; the last column is of the whole image. MACs, the autoencoder's among them, are a share of the
dense edit's; of a model so small they are more than of the published ones."""

_LATENT_LIMITS = """The targets that are missed:

- *A dense step*: 800 G MACs in 8.4 s, if nothing is kept, are 96 G a second on two cores, where PyTorch does 65; only
  3×3 convolutions, by Winograd, take fewer than they count. A run that keeps its canvases writes 0.5 GB a step.
- *An edit of 1.2 %* is bound by the low resolutions: of the MACs of a step that computes, 16×16 and 8×8 latents take
  three quarters, since an edit in the middle, dilated, reaches most of their tiles. No dilation at 8×8 would save 7 %,
  at both 17 %, and would cost single edits up to 8 dB.
- *MACs of a refreshed step*, for the same reason; the mean over the steps of an edit is below the target.
- *RAM*: of the caches some 3 GB are encoder's and decoder's, in float32; the weights take 2.1 GB, and two journals and
  the arrays that layers without canvases compute in 1.3 GB. Working arrays shared by shape, not by layer, would take
  less.

One round of one run each: there is no spread."""


_COMMITS = """What a rebuilding of the code cost, by `python -m bench.commits`: built-in models on the `numba` backend
under `paper`, processes of both commits call by call in turn, the bits compared before the times. The times are *CPU
time*, user and system of the process and all its threads: the machine was busy with other work, which lengthens the
time that passes much more. "New over old" is the median of the ratios of two calls in a row, beside it their quartiles.

`3a82327` and `7e94a65` are the first and the last commit of the rebuilding into floors, which was to cost at most 5 %.
Dense runs kept to that; in small edits of models of this size, where much of the time is Python's, it cost 8 to 11 %
(17,000 Python calls for an edit and its undo of 1.2 % of `landscape`, from 14,000). Edits replay programs since, and
`2e5a81d` is below the old times."""


def page(folder: Path = RESULTS) -> str:
    """The page as Markdown, off the `*.jsonl` files of a folder."""
    parts = [
        _INTRO,
        *_short(folder),
        *_generator(folder, "gaugan", _GAUGAN),
        *_generator(folder, "gan-compression", _GAN_COMPRESSION),
        *_startup(folder),
        *_layers(folder),
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
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


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


def _of_the_default(rows: Iterable[Row]) -> list[Row]:
    """The rows of sparsegen's default backend."""
    return [row for row in rows if row["backend"] is None]


# -- sections --------------------------------------------------------------------------------------------


def short_table(folder: Path = RESULTS) -> str:
    """The table that the README shows: dense runs and edits of three models beside PyTorch."""
    diffusion = _of_diffusion(folder)
    lines = [_one_step(_of_generator(folder, "gaugan"), (0.012, 0.15))]
    for model in ("DDPM 256", "PD 256"):
        name, *cells = _one_step([row for row in diffusion if row["model"] == model], (0.012, 0.155))
        lines.append([f"{name}, one step", *cells])
    by_case = {(_engine(row), _case(row)): row for row in diffusion}
    torch = min(by_case[engine, "SDEdit, second edit"]["ms"] for engine in TORCH)
    ours = _first(by_case, *(f"SDEdit, second edit, {policy}" for policy in ("fast", "paper")))
    lines.append([f"DDPM 256, SDEdit of {SDEDIT_STEPS} steps", _time(torch), "", _time_and_ratio(ours), ""])
    steps = [{**row, "what": _case(row).removeprefix("step, ")} for row in _of_latents(folder)]
    if steps:
        _, *cells = _one_step(steps, (0.012, 0.15))
        lines.append(["Stable Diffusion 1.x, one guided step", *cells])
    return _table(["", "PyTorch, dense", "sparsegen, dense", "edit of 1.2 %", "edit of about 15 %"], lines)


def _one_step(rows: Sequence[Row], areas: Sequence[float]) -> list[str]:
    """A model's line of the short table: its name, PyTorch's dense run, ours, edits of these areas.

    Edits are under `fast`, on average over the steps, where they are timed so, else under `paper`.
    """
    by_case = {(_engine(row), _case(row)): row for row in rows if _engine(row)}
    torch = min(by_case[engine, "dense"]["ms"] for engine in TORCH)
    edits = [_first(by_case, step_name(area, MEAN), edit_name(area, "paper")) for area in areas]
    return [rows[0]["model"], _time(torch), *map(_time_and_ratio, [by_case[OURS, "dense"], *edits])]


def _first(by_case: Mapping[tuple[str, str], Row], *cases: str) -> Row:
    """Our row of the first of these cases that there is."""
    return next(by_case[OURS, case] for case in cases if (OURS, case) in by_case)


def _short(folder: Path) -> Iterator[str]:
    diffusion = _of_diffusion(folder)
    fast = any(_case(row).endswith(MEAN) for row in diffusion)
    policies = (
        "Policy `paper`, diffusion `fast` (one step: the mean over the steps)" if fast else "Policy `paper`"
    )
    yield "## In short"
    yield _origin([*_of_generator(folder, "gaugan"), *diffusion])
    yield short_table(folder)
    yield (
        f"(… ×) is how many times as fast as PyTorch's dense run. {policies}; the tables below have all edits."
    )


def _of_generator(folder: Path, file: str) -> list[Row]:
    return _of_the_default(newest(folder, file, "model", "backend", "engine", "what"))


def _generator(folder: Path, file: str, about: str) -> Iterator[str]:
    """The section of a model of label maps; nothing where it is not measured."""
    rows = _of_generator(folder, file)
    if not rows:
        return
    timed = [row for row in rows if "ms" in row]
    yield f"## {rows[0]['model']}"
    yield _origin(rows)
    yield about
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
            for row in timed
        ],
    )
    yield _table(
        ["", "figure", "aimed at", "reached"],
        [
            [_shown_case(row), _amount(row["value"], row["unit"]), _aim(row), _verdict(row["reached"])]
            for row in rows
            if "target" in row
        ],
    )
    yield f"![Time over the edited area, 0 to 100 %](../bench/results/{file}-curve.png)"


def _startup(folder: Path) -> Iterator[str]:
    rows = _of_the_default(newest(folder, "startup", "what", "backend"))
    yield "## Whole processes"
    yield _origin(rows)
    yield _STARTUP
    lines = []
    for row in rows:
        target = row.get("target", FIRST_DEMO_SECONDS * 1e3 if "not compiled" in row["what"] else None)
        aim = "" if target is None else f"≤ {target / 1e3:g} s"
        reached = "" if target is None else _verdict(row["ms"] <= target)
        lines.append([_line(row), f"{row['ms'] / 1e3:.2f} s", _share(row["spread"] or None), aim, reached])
    yield _table(["", "time", "spread", "aimed at", "reached"], lines)


def _layers(folder: Path) -> Iterator[str]:
    rows = _of_the_default(newest(folder, "layers", "what", "engine", "over", "backend"))
    timed = {(row["what"], row["engine"]): row for row in rows if "engine" in row}
    ratios = {(row["what"], row["over"]): row for row in rows if "over" in row}
    engines = list(dict.fromkeys(engine for _, engine in timed))
    names = [case.name for case in layers(False) if (case.name, OURS) in timed]
    yield "## Layers"
    yield _origin(rows)
    yield f"Milliseconds. {_LAYERS}"
    lines = []
    for name in names:
        medians = [f"{timed[name, engine]['ms']:.1f}" for engine in engines]
        lines.append([name, *medians, f"{timed[name, OURS]['gflops']:.0f}"])
        for rival in ("torch", "ncnn"):
            times = [timed[name, engine]["ms"] for engine in engines if engine.startswith(rival)]
            judged = ratios.get((name, rival))
            aim = "" if judged is None else f" (≥ {judged['target']:g})"
            lines[-1].append(f"{_ratio(min(times) / timed[name, OURS]['ms'])}{aim}" if times else "")
    shown = [SHOWN.get(engine, engine) for engine in engines]
    yield _table(["layer", *shown, "GFLOP/s", "× PyTorch (aimed at)", "× ncnn (aimed at)"], lines)
    reached = sum(all(row["reached"] for (name, _), row in ratios.items() if name == one) for one in names)
    yield f"{reached} of {len(names)} layers reach their targets."


def _landscape(folder: Path) -> Iterator[str]:
    rows = newest(folder, "landscape", "model", "size", "backend", "what", "area", "policy")
    dense = {row["backend"]: row for row in rows if row["what"] == "dense"}
    of_numba = [row for row in rows if row["backend"] == "numba"]
    yield "## The built-in landscape"
    yield _origin(of_numba)
    yield _LANDSCAPE
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
    reference = dense["reference"]
    yield (
        f"The dense run takes {_time(dense['numba']['ms'])} with the `numba` backend. With `reference`, which is "
        f"written to be read, it takes {_time(reference['ms'])} ({_named(reference)})."
    )


def _of_diffusion(folder: Path) -> list[Row]:
    return _of_the_default(newest(folder, "diffusion", "model", "backend", "what"))


def _diffusion(folder: Path) -> Iterator[str]:
    rows = _of_diffusion(folder)
    yield "## Diffusion"
    yield _origin(rows)
    yield _DIFFUSION
    for model in dict.fromkeys(row["model"] for row in rows):
        yield f"### {model}"
        yield _figures([row for row in rows if row["model"] == model])
        yield "\n".join(_limits(model, {_case(row): row for row in rows if row["model"] == model}))


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
    rows = _of_latents(folder)
    if not rows:
        return
    yield "## Stable Diffusion"
    yield _origin(rows)
    yield _STABLE_DIFFUSION
    yield _figures(rows)
    yield _LATENT_LIMITS


def _of_latents(folder: Path) -> list[Row]:
    """The rows of `bench.stable_diffusion`."""
    return _of_the_default(newest(folder, STABLE_DIFFUSION, "model", "backend", "what"))


def _limits(model: str, of: Mapping[str, Row]) -> Iterator[str]:
    """The targets of `fast` that are missed, each with its limit. `of`: case -> row."""
    kinds = [of[f"Python of a step, {step_name(CHECKED_AREA, kind)}"]["ms"] for kind in KINDS]
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
    judged = [row for row in rows if "aim" in row]
    yield "## On an NVIDIA card"
    if not judged:
        yield _OWED
        return
    yield _origin([{**row, "machine": row["card"]} for row in judged])
    yield _CARD
    yield _table(
        ["", "precision", "× PyTorch", "on the card", "aimed at", "reached"],
        [
            [
                f"{row['case']}, {row['what']}",
                row["precision"],
                _ratio(row["ratio"]),
                _ratio(row["device_ratio"]),
                row["aim"],
                _verdict(row["reached"]),
            ]
            for row in judged
        ],
    )


def _quality(folder: Path) -> Iterator[str]:
    rows = [row for row in _of_quality(folder) if "study" not in row]
    groups = dict.fromkeys([group_of(FIRST), *sorted(row["group"] for row in rows)])
    yield "## How near sparse is to dense"
    yield _origin(rows)
    yield _QUALITY
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
    yield _STUDY
    for title, shown in study.tables(parts):
        yield f"**{title}.** {_STUDIED.get(title, '')}".rstrip()
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
        yield _CHAINS
        yield _table(chain_head(rows), chain_lines(rows))


def _latents(folder: Path) -> Iterator[str]:
    """The tables of `bench.latents`."""
    rows = [row for row in _of_quality(folder) if row.get("study") == latents.PART]
    if rows:
        yield "### Stable Diffusion"
        yield _origin(rows)
        yield _LATENTS
    for title, shown in latents.tables(rows) if rows else ():
        yield f"**{title}.**"
        yield _table(*shown)


def _commits(folder: Path) -> Iterator[str]:
    rows = newest(folder, "commits", "model", "threads", "old", "new", "what")
    if rows:
        yield "## Before and after a rebuilding"
        yield _COMMITS
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
                    " to ".join(f"{quartile:.2f}" for quartile in row["quartiles"]),
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


SHOWN = {"torch-nchw": "PyTorch (NCHW)", "torch-nhwc": "PyTorch (NHWC)", "onnxruntime": "ONNX Runtime"}
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
