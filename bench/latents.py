"""The distance of a Stable Diffusion session's edits from dense ones: a built-in model comes in, rows come out.

    python -m bench.quality --model landscape-sd

On the model's example images: strokes of 1, 5 and 15 %, and masks of these areas, denoised in several ways (`WAYS`),
under `paper`, and under `fast` with other settings of `refresh`, `statistics` and the decoder's `dilation`. A session
that keeps the canvases of every step can follow any setting, so each original is painted once. Each edit is compared
with the session's dense one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

import sparsegen
from bench.compared import compared
from bench.harness import machine, record, say, table
from bench.quality_tables import Row, decibels
from bench.strokes import painted
from bench.study_tables import Table, grouped
from sparsegen.images import read_image
from sparsegen.weights import builtin

PART = "latents"
"""The name of these rows among those of `quality.jsonl`."""
AREAS = (0.01, 0.05, 0.15)
WAYS = ((25, 0.5), (25, 0.8), (50, 0.8))
"""Steps and strengths; the last one is usual for Stable Diffusion."""
IMAGES = 3
"""Of the model's examples."""
DILATION, WEIGHT = 1, 0.4
"""The settings of `fast`: the decoder's `dilation`, and `statistics`."""


@dataclass(frozen=True)
class Setting:
    """A policy of the UNet, and the `dilation` of the decoder's `fast`."""

    policy: str
    dilation: int = DILATION


REFRESHES = (1, 2, 3, 4, 6)
WEIGHTS = (0.0, WEIGHT, 0.7)
DILATIONS = (0, DILATION, 2)
EVERY_STEP = "fast(refresh=1)"


def weighted(weight: float) -> str:
    """The policy that computes every step, with that weight of fresh statistics."""
    return EVERY_STEP if weight == WEIGHT else f"fast(statistics={weight:g}, refresh=1)"


SETTINGS = tuple(
    dict.fromkeys(
        [
            Setting("paper"),
            *(Setting(f"fast(refresh={refresh})") for refresh in REFRESHES),
            *(Setting(weighted(weight)) for weight in WEIGHTS),
            *(Setting(EVERY_STEP, dilation) for dilation in DILATIONS),
        ]
    )
)


def measured(name: str, *, backend: str | None, quick: bool = False) -> Iterator[Row]:
    """A row for each setting of each edit."""
    models = sparsegen.LatentDiffusion(sparsegen.load_bundle(name), backend=backend)
    known = builtin.get(name)
    if known is None:
        raise sparsegen.InputError(f"{name} has no examples; name a built-in model")
    for steps, strength in ((4, 0.5), (4, 1.0)) if quick else WAYS:
        for number, example in enumerate(known.examples[: 1 if quick else IMAGES]):
            original, text = read_image(example.original), example.edits[0].prompt or ""
            with sparsegen.StableDiffusion(
                models, text, steps=steps, strength=strength, policy=EVERY_STEP, undo="4GB"
            ) as session:
                session.run(original)
                for i, area in enumerate(AREAS):
                    say(f"{steps} steps, strength {strength:g}, image {number}, {area:.0%}")
                    strokes = painted(original, len(AREAS) * number + i, area)
                    masked = (number + i) % len(AREAS) == 0
                    given = (original, (strokes != original).any(-1)) if masked else (strokes, None)
                    named = f"{number}, {area:.0%}, {'mask' if masked else 'strokes'}"
                    for row in _of_edit(session, original, *given):
                        of = {"steps": steps, "strength": strength, "size": area}
                        yield {"study": PART, "group": "examples", "name": named, **of, **row}


def _of_edit(
    session: sparsegen.StableDiffusion, original: np.ndarray, edited: np.ndarray, mask: np.ndarray | None
) -> Iterator[Row]:
    """An edit under every setting; the session is as before."""
    unet, decoder = session.models.unet, session.models.decoder
    dense = session.dense(edited, mask=mask)
    for setting in SETTINGS:
        # of this model alone, for this edit: the family's stay as they are
        decoder.fast_settings = MappingProxyType(
            {**type(decoder).fast_settings, "dilation": setting.dilation}
        )
        session.policy = unet.policy(setting.policy, fast=unet.fast_for(len(session.times)))
        result = session.edit(edited, mask=mask)
        session.undo()
        yield {**vars(setting), **compared(result, dense, original)}


def report(name: str, *, backend: str | None, quick: bool, results: Path | None) -> None:
    """Measure, record (`results` None: nothing) and print the tables."""
    rows = []
    for row in measured(name, backend=backend, quick=quick):
        rows.append(row)
        record("quality", {"model": name, "quick": quick, **row}, folder=results)
    print(machine())
    for title, shown in tables(rows):
        print(f"\n{title}: PSNR of the region, median · lowest, in dB")
        table(*shown)


def tables(rows: Sequence[Row]) -> Iterator[tuple[str, Table]]:
    """A table of policies for each way, then the weights of fresh statistics, and the decoder's dilations."""
    usual = [row for row in rows if row["dilation"] == DILATION]
    refreshes = ["paper", *(f"fast(refresh={refresh})" for refresh in REFRESHES)]
    for (steps, strength), some in grouped(usual, lambda row: (row["steps"], row["strength"])).items():
        of = [row for row in some if row["policy"] in refreshes]
        yield f"{steps} steps, strength {strength:g}", _table(of, "policy", lambda row: row["policy"])
    weights = {weighted(weight): f"{weight:g}" for weight in WEIGHTS}
    of = [row for row in usual if row["policy"] in weights]
    of.sort(key=lambda row: weights[row["policy"]])
    yield "Weight of fresh statistics", _table(of, "weight", lambda row: weights[row["policy"]])
    of = sorted((row for row in rows if row["policy"] == EVERY_STEP), key=lambda row: row["dilation"])
    yield "The decoder's dilation", _table(of, "latents", lambda row: f"{row['dilation']}")


def _table(rows: Sequence[Row], first: str, name: Callable[[Row], str]) -> Table:
    """A line for each name: by area MACs (medians) and the PSNR of the region; that of all, and of the image."""
    sizes = sorted({row["size"] for row in rows})
    shown = [f"{size:.0%}".replace("%", " %") for size in sizes]
    edits = len({(row["name"], row["steps"], row["strength"]) for row in rows})
    head = [first, *(f"MACs, {size}" for size in shown), *shown, f"all ({edits})", "image"]
    lines = []
    for label, some in grouped(rows, name).items():
        by_size = [[row for row in some if row["size"] == size] for size in sizes]
        macs = [f"{statistics.median(row['macs'] for row in of) * 100:.0f} %" for of in by_size]
        cells = [_pair(of, "psnr_region") for of in [*by_size, some]]
        lines.append([label, *macs, *cells, _pair(some, "psnr")])
    return Table(head, lines)


def _pair(rows: Sequence[Row], field: str) -> str:
    values = [row[field] for row in rows]
    return f"{decibels(statistics.median(values))} · {decibels(min(values))}"
