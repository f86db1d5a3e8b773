"""Three denoising steps of an edit: a UNet and a policy come in, the time and the MACs of each kind of step come out.

All steps of an edit have the same active tiles, and there are three kinds: the *first* one, which also finds the tiles,
a *refreshed* one, which computes every layer, and a *carried* one, which carries deltas on. So three states, each with
its canvases as in a session, stand for all steps.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench.cases import Unet
from sparsegen.backends.interface import Backend
from sparsegen.editing.state import State
from sparsegen.engine.allocator import BackendAllocator
from sparsegen.engine.carried import Deltas
from sparsegen.engine.journal import Journal
from sparsegen.tiling.policies import Policy
from sparsegen.tiling.tiles import TileSet, gather_tiles

KINDS = ("first step", "refreshed step", "carried step")


class Trajectory:
    """Three steps of an edit, at the same time of the model.

    Parameters
    ----------
    model
        The network of `net`.
    net
        Its noisy image and its strokes.
    policy
        One with carried steps.
    backend
        `ShapesBackend` computes nothing: what remains is Python.
    """

    def __init__(self, model: Any, net: Unet, policy: Policy, backend: Backend) -> None:
        self.net, self.policy, self.backend = net, policy, backend
        self.rows = net.size >> policy.frontier
        inputs = model.encode(net.noisy(), **{model.time: net.time})
        self.canvases = inputs.canvases
        self.states: list[State] = []
        for rows in (0, 0, self.rows):
            state = State(model, backend, allocator=BackendAllocator(backend))
            state.paint(inputs.canvases, inputs.conditions, least_size=policy.least_size, carried_rows=rows)
            self.states.append(state)

    def weights(self, steps: int) -> tuple[int, int, int]:
        """How many of so many steps are of each kind."""
        refreshed = sum(self.policy.refreshed(steps))
        return 1, refreshed - 1, steps - refreshed

    def edit(self, area: float, variant: int) -> Iterator[tuple[float, int, int]]:
        """Milliseconds, MACs and dense MACs of each step of an edit, which is then undone."""
        mask = self.net.strokes(area, variant)[None]
        changed, plan = TileSet.of_mask(mask), self.policy.plan(mask)
        values = {name: gather_tiles(array + 1, changed.tiles) for name, array in self.canvases.items()}
        deltas: list[Deltas] = []
        for step, state in enumerate(self.states):
            journal, carries = Journal(), step == 2
            start = time.perf_counter()
            carried = deltas[1].at(step, deltas[0]) if carries else None
            run, _, _ = state.repaint(
                values, changed, plan, journal=journal, carried=carried, wanted=changed.tiles
            )
            if not carries:
                deltas.append(state.deltas(step, journal, self.rows))
            state.output_tiles(changed.tiles)
            self.backend.synchronize()
            taken = (time.perf_counter() - start) * 1e3
            yield (
                taken,
                sum(layer.macs for layer in run.records),
                sum(layer.macs_dense for layer in run.records),
            )
            journal.undo(state.memory)

    def measure(self, area: float, repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
        """By kind of step, the milliseconds of so many edits after one warm-up, and MACs ("dense": a dense step's)."""
        timings: dict[str, list[float]] = {kind: [] for kind in KINDS}
        figures: dict[str, float] = {}
        gc.collect()
        gc.disable()
        try:
            for variant in range(repeats + 1):
                for kind, (taken, macs, dense) in zip(KINDS, self.edit(area, variant), strict=True):
                    if variant:
                        timings[kind].append(taken)
                    figures |= {kind: macs, "dense": dense}
        finally:
            gc.enable()
        return timings, figures


def mean(values: Sequence[Any], weights: Sequence[int]) -> Any:
    """The mean of values by kind of step, `[kinds, …]`, over the steps of a whole trajectory."""
    return np.tensordot(np.array(weights) / sum(weights), values, 1).tolist()
