"""Recorded edits: a program's steps under a plan come in once, and later edits with other masks queue them as a whole.

Under a *keyed* plan (`Plan.keyed`) the mask alone decides which tiles are active, and the layers share a few keys. So
an edit of a program that was recorded runs no step of it: it makes one set of tiles for each key, one copy of what they
are about to overwrite, and one `Recording.replay` (on an NVIDIA card, one CUDA graph).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sparsegen.backends.interface import Array, Recording

from ..tiling.canvas import Canvas
from ..tiling.tiles import TileSet
from .finite import FiniteChecks
from .run import LayerStep, NormStep, Run


class TilesKey(NamedTuple):
    """The key of a layer's tiles."""

    of: Hashable
    """The plan's key."""
    which: Literal["active", "everything"] = "active"
    """Those of the plan, or all tiles of the samples that have any of them (of a transient canvas)."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """What every edit does to one layer."""

    step: LayerStep
    computed: TilesKey | None
    """None: nothing."""
    changed: TilesKey | None
    kept: bool
    """Whether its canvas is kept, and journalled."""


class RecordedEdit:
    """One way of editing a program's canvases: which layers are computed, with tiles of which keys.

    It fits an edit if the layers that have active tiles are the same, and the lists of tiles have room.
    """

    def __init__(self, run: Run, steps: Sequence[Callable[[], None]], inputs: Sequence[Canvas]) -> None:
        """Record the edit of the present plan of a run; `inputs` have their changes. Nothing is computed.

        Raises
        ------
        NotRecordable
            A layer has a key, but no tile.
        """
        self._layers = _planned(run, [step for step in steps if isinstance(step, LayerStep)])
        sets = self._sets(run)
        if sets is None:
            raise NotRecordable
        self._keys = list(sets)
        self._thread = threading.get_ident()
        self._arrays = _arrays(self._layers, inputs)
        layers = {each.step: each for each in self._layers}

        def work() -> None:
            run.finite = FiniteChecks(run.backend)
            for step in steps:
                layer = layers.get(step) if isinstance(step, LayerStep) else None
                if layer is None:
                    step()  # a norm's
                elif layer.computed is not None:
                    run.queue(layer.step.canvas, sets[layer.computed], layer.step.kernel)

        self._recording: Recording = run.backend.record(work, [each.tiles for each in sets.values()])
        self._finite = run.finite

    def sets_for(self, run: Run) -> Mapping[TilesKey, TileSet] | None:
        """The tiles of an edit by key; None: this recording does not fit it."""
        if self._thread != threading.get_ident():  # a recording is its thread's
            return None
        if any(table.get(path) is not array for table, path, array in self._arrays):
            return None
        sets = self._sets(run)
        if sets is None or any(
            each.count > room for each, room in zip(sets.values(), self._recording.room, strict=True)
        ):
            return None
        return sets

    def _sets(self, run: Run) -> Mapping[TilesKey, TileSet] | None:
        """The tiles of the present plan by key, all keys of the layers; None: a key has no tile."""
        sets: dict[TilesKey, TileSet] = {}
        for layer in self._layers:
            for key in (layer.changed, layer.computed):
                if key is not None and key not in sets:
                    active = run.plan.tiles(key.of)
                    if not active.count:
                        return None
                    sets[key] = active if key.which == "active" else run.everything(active)
        return sets

    def replay(self, run: Run, sets: Mapping[TilesKey, TileSet]) -> None:
        """Do the edit whose tiles are `sets`, and leave what the steps would have left: changes, records, a journal."""
        journal, memory = run.journal, run.memory
        if journal is not None:
            journal.save_all_before(
                memory,
                {
                    layer.step.canvas.path: sets[layer.computed]
                    for layer in self._layers
                    if layer.kept and layer.computed is not None
                },
            )
        watch = self._recording.replay([each.tiles for each in sets.values()], self._finite.watch)
        assert watch is not None  # `work` made one
        run.finite = self._finite.replayed(watch)
        for layer in self._layers:
            step = layer.step
            nothing = TileSet.empty(*step.shape[:3])
            step.canvas.changed = nothing if layer.changed is None else sets[layer.changed]
            active = nothing if layer.computed is None else sets[layer.computed]
            if journal is not None and active.count:
                run.follow_moments(step.canvas, active, journal)
            run.record_layer(step, active)


class NotRecordable(Exception):
    """An edit must be computed step by step."""


def recordable(run: Run, steps: Sequence[Callable[[], None]]) -> bool:
    """Whether edits of the present plan can be recorded: nothing of them but tiles depends on the mask."""
    return (
        run.backend.records
        and run.plan.keyed
        and not run.plan.statistics
        and not run.measures
        and run.memory.storage == "float32"
        and all(isinstance(step, LayerStep | NormStep) for step in steps)
    )


def _planned(run: Run, steps: Sequence[LayerStep]) -> list[_Layer]:
    """What the present plan does to each layer, in their order; their canvases get their changes."""
    layers = []
    for step in steps:
        transient = run.memory.ready(step.canvas, step.shape)
        key = run.plan.key([read.now() for read in step.reads], step.shape[:3])
        changed = None if key is None else TilesKey(key)
        computed = TilesKey(key, "everything") if transient and key is not None else changed
        step.canvas.changed = TileSet.empty(*step.shape[:3]) if key is None else run.plan.tiles(key)
        layers.append(_Layer(step, computed, changed, kept=not transient))
    return layers


def _arrays(
    layers: Sequence[_Layer], inputs: Sequence[Canvas]
) -> list[tuple[Mapping[str, Array], str, Array]]:
    """The arrays that a recording refers to: the table, the path, the array."""
    canvases = [*inputs, *(layer.step.canvas for layer in layers)]
    return [(canvas.arrays, canvas.path, canvas.array) for canvas in canvases]
