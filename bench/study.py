"""The study of `fast`'s settings: strokes come in, the distance from dense under many settings comes out, row by row.

    python -m bench.quality --study [edits] [levels] [steps] [--edits 12]
    python -m bench.quality --study confirm --first 3000000 [--edits 12]

A session that keeps the canvases of every step can follow any setting, so each original is painted once from a noise
level. Each part appends rows to bench/results/quality.jsonl:

- *edits*: the weight of fresh statistics with all steps computed and with the family's `refresh`; `refresh`;
  `frontier` (`SWEPT`), at the model's noise level.
- *levels*: the same edits denoised from other noise levels (`LEVELS`).
- *steps*: one denoising step alone, at the times of a trajectory: how near the model's output is to the dense one.
- *confirm*: the settings in question, for strokes that chose none, from the noise levels that edits begin at.

Strokes come in an order that spreads areas: the first 2, 4, 8, … cover all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sparsegen
from bench.cases import SDEDIT_LEVEL
from bench.compared import compared
from bench.harness import record, say, table
from bench.quality_tables import Row
from bench.strokes import EDITS, Strokes, group_of, unseen
from bench.study_tables import Table, levels, of_level, plot, refreshes, steps, weights

WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
WEIGHT, REFRESH = 0.4, 6
"""The family's settings."""
LEVELS = (150, SDEDIT_LEVEL, 600)
"""Noise levels beside the model's."""
TIMES = (600, 450, 300, 200, 100, 25)
"""Times of the schedule (0 to 999) at which single steps are measured."""


@dataclass(frozen=True)
class Setting:
    """One setting of `fast`."""

    statistics: float = WEIGHT
    refresh: int = REFRESH
    frontier: int = 0

    @property
    def policy(self) -> str:
        """The policy's name."""
        return f"fast(statistics={self.statistics:g}, refresh={self.refresh}, frontier={self.frontier})"


_WEIGHTS = [Setting(statistics=weight) for weight in WEIGHTS]
SWEPT = (
    *(Setting(weight, refresh=1) for weight in WEIGHTS),
    *_WEIGHTS,
    *(Setting(refresh=refresh) for refresh in (2, 3, 4, 8, 12)),
    *(Setting(refresh=refresh, frontier=frontier) for frontier in (1, 2, 3) for refresh in (6, 12)),
)
AT_LEVELS = (*_WEIGHTS, *(Setting(refresh=refresh) for refresh in (1, 4, 8)))
CONFIRMED = (Setting(), *(Setting(refresh=refresh) for refresh in (1, 4, 8)))
PARTS = ("edits", "levels", "steps", "confirm")
OF: dict[str, tuple[Sequence[int | None], Sequence[Setting]]] = {
    "edits": ((None,), SWEPT),
    "levels": (LEVELS, AT_LEVELS),
    "confirm": ((None, *LEVELS[1:]), CONFIRMED),
}
"""Part -> its noise levels (None: the model's) and settings."""
CURVE = "quality-study.png"


def spread(count: int) -> list[int]:
    """The first numbers of a set's strokes, their bits reversed, so that areas spread."""
    bits = (EDITS - 1).bit_length()
    return [int(f"{i:0{bits}b}"[::-1], 2) for i in range(count)]


def measured(model: Any, part: str, *, backend: str | None, first: int, edits: int) -> Iterator[Row]:
    """The rows of a part of the study."""
    order = spread(edits)
    strokes = list(unseen(first, max(order) + 1))
    with ExitStack() as opened:
        sessions = [
            opened.enter_context(
                sparsegen.SDEdit(
                    model, policy="fast(refresh=1)", backend=backend, noise_level=level, undo="16GB"
                )
            )
            for level in (() if part == "steps" else OF[part][0])
        ]
        for done, number in enumerate(order):
            say(f"{part}: stroke {number}, {done + 1} of {edits}")
            if part == "steps":
                rows = _of_steps(model, strokes[number], backend)
            else:
                rows = _of_edits(model, strokes[number], sessions, OF[part][1])
            for row in [
                *rows
            ]:  # a stroke's rows are recorded together: an interrupted study has whole strokes
                yield {"study": part, "group": group_of(first), "name": strokes[number].name, **row}


def _of_edits(
    model: Any, strokes: Strokes, sessions: Sequence[sparsegen.SDEdit], settings: Sequence[Setting]
) -> Iterator[Row]:
    for session in sessions:
        session.policy = model.policy("fast(refresh=1)")
        session.run(strokes.original)
        dense = session.dense(strokes.edited)
        for setting in (None, *settings):
            policy = "paper" if setting is None else setting.policy
            session.policy = model.policy(policy)  # the session keeps every canvas: it can follow any
            result = session.edit(strokes.edited)
            session.undo()
            yield {
                "noise_level": session.settings.noise_level,
                "policy": policy,
                **({} if setting is None else vars(setting)),
                **compared(result, dense, strokes.original),
            }


def _of_steps(model: Any, strokes: Strokes, backend: str | None) -> Iterator[Row]:
    """For single steps: the error of an edit's output as a share of how far the edit moves the dense output, in dB."""
    schedule = model.diffusion.edit.noise_schedule()
    images = [
        image[None].astype(np.float32) / np.float32(127.5) - 1 for image in (strokes.original, strokes.edited)
    ]
    mask = (strokes.original != strokes.edited).any(-1)
    noise = np.random.default_rng(0).standard_normal(images[0].shape, np.float32)
    session = sparsegen.Session(model, backend, policy="fast", undo="4GB")
    for time in TIMES:
        original, edited = (schedule.noised(image, noise, time) for image in images)
        condition = {model.diffusion.time: float(time)}
        dense = session.run(edited, **condition).output
        before = session.run(original, **condition).output
        for weight in WEIGHTS:
            result = session.edit(edited, mask=mask, policy=f"fast(statistics={weight:g})", **condition)
            session.undo()
            region = (result.output != before).any(-1)
            error = np.square(result.output - dense, dtype=np.float64)[region].mean()
            moved = np.square(dense - before, dtype=np.float64)[region].mean()
            yield {
                "time": time,
                "statistics": weight,
                "policy": f"fast(statistics={weight:g})",
                "area": float(mask.mean()),
                "gain": float(10 * np.log10(moved / error)),
            }


def study(
    name: str, parts: Sequence[str], *, backend: str | None, first: int, edits: int, results: Path | None
) -> None:
    """Measure, record and print some parts; `results` None: record nothing. With the edits comes their curve."""
    model = sparsegen.load(name)
    found: dict[str, list[Row]] = {}
    for part in parts:
        rows = found[part] = []
        for row in measured(model, part, backend=backend, first=first, edits=edits):
            rows.append(row)
            record("quality", {"model": name, "quick": False, **row}, folder=results)
    edits_rows = found.get("edits", [])
    for title, shown in tables(found):
        print(f"\n{title}")
        table(*shown)
    if results is not None and edits_rows:
        plot(results / CURVE, edits_rows, WEIGHT, REFRESH)


def tables(rows: Mapping[str, Sequence[Row]]) -> Iterator[tuple[str, Table]]:
    """The tables of the parts whose rows are given, each with a title."""
    edits, levels_, steps_, confirmed = (rows.get(part, ()) for part in PARTS)
    if edits:
        yield "Weight of fresh statistics, every step computed", weights(edits, 1)
        yield f"Weight of fresh statistics, `refresh` {REFRESH}", weights(edits, REFRESH)
        yield f"`frontier` and `refresh`, weight {WEIGHT:g}", refreshes(edits, WEIGHT)
    if levels_:
        yield "Other noise levels", levels([*edits, *levels_])
    if steps_:
        yield "Weight of fresh statistics, one step alone", steps(steps_)
    if confirmed:
        yield "Strokes that chose nothing", levels(confirmed)
        for level in sorted({row["noise_level"] for row in confirmed}):
            yield f"Strokes that chose nothing, from noise level {level}", of_level(confirmed, level)
