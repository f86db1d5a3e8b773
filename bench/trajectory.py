"""Denoising steps of an edit: a UNet and edits come in, the time and the MACs of each kind of step come out.

All steps of an edit have the same active tiles, and there are three kinds: the *first* one, which also finds the tiles,
a *refreshed* one, which computes every layer, and a *carried* one, which carries deltas on. So three states, each with
its canvases as in a session, stand for all steps.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from bench.cases import MEAN
from sparsegen.backends.interface import Backend, Host
from sparsegen.editing.state import State
from sparsegen.engine.allocator import BackendAllocator
from sparsegen.engine.carried import Deltas
from sparsegen.engine.journal import Journal
from sparsegen.engine.stats import LayerRecord
from sparsegen.models.base import Inputs
from sparsegen.tiling.policies import Plan, Policy
from sparsegen.tiling.tiles import TileSet, gather_tiles

KINDS = ("first step", "refreshed step", "carried step")


class Edit(NamedTuple):
    """An edit of a model's inputs."""

    changed: TileSet
    plan: Plan

    @classmethod
    def of(cls, mask: Host, policy: Policy) -> Edit:
        """The edit of the True pixels of `[H, W]`."""
        return cls(TileSet.of_mask(mask[None]), policy.plan(mask[None]))

    def values(self, canvases: dict[str, Host], more: float = 1.0) -> dict[str, Host]:
        """The edited tiles of the inputs, whose values are larger by so much."""
        tiles = self.changed.tiles
        return {name: gather_tiles(array + np.float32(more), tiles) for name, array in canvases.items()}


class Step(NamedTuple):
    """The cost of a step."""

    milliseconds: float
    macs: int
    macs_dense: int

    @classmethod
    def since(cls, start: float, records: Sequence[LayerRecord]) -> Step:
        """The step that began at `start`, by the clock of `time.perf_counter`."""
        taken = (time.perf_counter() - start) * 1e3
        return cls(taken, sum(each.macs for each in records), sum(each.macs_dense for each in records))


def painted(model: Any, inputs: Inputs, backend: Backend, **options: Any) -> State:
    """A new state of a model, painted; `options` are those of `State.paint`."""
    state = State(model, backend, allocator=BackendAllocator(backend))
    state.paint(inputs.canvases, inputs.conditions, **options)
    return state


def computed(state: State, inputs: Inputs, edit: Edit) -> Step:
    """A step of an edit that computes every layer, on a state that is `painted` with `inputs`; it is undone."""
    values, journal = edit.values(inputs.canvases), Journal()
    start = time.perf_counter()
    run, _, _ = state.repaint(values, edit.changed, edit.plan, journal=journal, wanted=edit.changed.tiles)
    state.memory.backend.synchronize()
    step = Step.since(start, run.records)
    journal.undo(state.memory)
    return step


def measure_computed(state: State, inputs: Inputs, edits: Iterable[Edit]) -> tuple[list[float], Step]:
    """The milliseconds of `computed` for each of these edits but the first, a warm-up, and the last step."""
    with _uncollected():
        _, *steps = [computed(state, inputs, edit) for edit in edits]
    return [step.milliseconds for step in steps], steps[-1]


class Trajectory:
    """Three steps of an edit, at the same time of the model.

    Parameters
    ----------
    model
        A UNet.
    inputs
        Its inputs.
    policy
        One with carried steps.
    backend
        `ShapesBackend` computes nothing: what remains is Python.
    """

    def __init__(self, model: Any, inputs: Inputs, policy: Policy, backend: Backend) -> None:
        self.policy, self.backend, self.inputs = policy, backend, inputs
        self.rows = inputs.shape[1] >> policy.frontier
        least = policy.least_size
        self.states = [
            painted(model, inputs, backend, least_size=least, carried_rows=rows) for rows in (0, 0, self.rows)
        ]

    def weights(self, steps: int) -> tuple[int, int, int]:
        """How many of so many steps are of each kind."""
        refreshed = sum(self.policy.refreshed(steps))
        return 1, refreshed - 1, steps - refreshed

    def edit(self, edit: Edit) -> Iterator[Step]:
        """Each step of an edit, which is then undone."""
        values, changed = edit.values(self.inputs.canvases), edit.changed
        deltas: list[Deltas] = []
        for number, state in enumerate(self.states):
            journal, carries = Journal(), number == 2
            start = time.perf_counter()
            carried = deltas[1].at(number, deltas[0]) if carries else None
            run, _, _ = state.repaint(
                values, changed, edit.plan, journal=journal, carried=carried, wanted=changed.tiles
            )
            if not carries:
                deltas.append(state.deltas(number, journal, self.rows))
            self.backend.synchronize()
            yield Step.since(start, run.records)
            journal.undo(state.memory)

    def measure(self, edits: Iterable[Edit]) -> tuple[dict[str, list[float]], dict[str, float]]:
        """By kind of step, the milliseconds of edits after the first, a warm-up; and MACs ("dense": a dense step's)."""
        timings: dict[str, list[float]] = {kind: [] for kind in KINDS}
        figures: dict[str, float] = {}
        with _uncollected():
            for number, edit in enumerate(edits):
                for kind, step in zip(KINDS, self.edit(edit), strict=True):
                    if number:
                        timings[kind].append(step.milliseconds)
                    figures |= {kind: step.macs, "dense": step.macs_dense}
        return timings, figures


def mean(values: Sequence[Any], weights: Sequence[int]) -> Any:
    """The mean of values by kind of step, `[kinds, …]`, over the steps of a whole trajectory."""
    return np.tensordot(np.array(weights) / sum(weights), values, 1).tolist()


def add_mean(timings: dict[str, list[float]], macs: dict[str, float], weights: Sequence[int]) -> None:
    """To the figures of `Trajectory.measure`, add those of `MEAN`: over so many steps of each kind."""
    timings[MEAN] = mean([timings[kind] for kind in KINDS], weights)
    macs[MEAN] = mean([macs[kind] for kind in KINDS], weights)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Collect garbage now, and not before the end."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
