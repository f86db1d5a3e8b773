"""Recorded edits: a program's steps under a plan come in once, and later edits with other masks queue them as a whole.

Under a *keyed* plan (`Plan.keyed`) the mask alone decides which tiles are active, and the layers share a few keys. So
an edit of a program that was recorded runs no step of it: it makes one set of tiles for each key, one copy of what they
are about to overwrite, and one `Recording.replay` (on an NVIDIA card, one CUDA graph).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from sparsegen.backends.interface import TILE, Array, Backend, Recording

from ..tiling.canvas import Canvas
from ..tiling.tiles import TileSet
from .finite import FiniteChecks
from .journal import Journal
from .memory import Memory
from .moments import MomentBank
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
            A layer has a key, but no tile; of a canvas whose moments are followed, some samples are repainted whole and
            others are not, or are not known.
        """
        self._layers = _planned(run, [step for step in steps if isinstance(step, LayerStep)])
        self._statistics = run.plan.statistics
        self._followed = _followed(run, self._layers)
        sets = self._sets(run)
        if sets is None:
            raise NotRecordable
        # a slot for each key: those that have the same tiles now need not have them in another edit
        sets = {key: replace(each) for key, each in sets.items()}
        self._full = _have_every_tile(sets.values())
        if not self._follows(run, sets):
            raise NotRecordable
        self._thread = threading.get_ident()
        self._arrays = _arrays(self._layers, inputs)
        layers = {each.step: each for each in self._layers}
        memory, backend = run.memory, run.backend
        self._bank = MomentBank(backend, memory.moments if self._statistics else {})
        # of a canvas that is repainted whole, moments are measured, not moved
        followed = self._followed if self._statistics else {}
        self._moved = [path for path, key in followed.items() if sets[key].count < sets[key].total]
        stand_in = _StandIn(backend, memory, {path: sets[self._followed[path]] for path in self._moved})

        def work() -> None:
            run.finite = FiniteChecks(backend)
            for step in steps:
                layer = layers.get(step) if isinstance(step, LayerStep) else None
                if layer is None:
                    step()  # a norm's
                elif layer.computed is not None:
                    active = sets[layer.computed]
                    run.compute_below(layer.step, active.tiles)
                    run.queue(layer.step.canvas, active, layer.step.kernel, layer.step.below)
                    if self._statistics:
                        run.follow_moments(layer.step.canvas, active, stand_in)
            self._bank.take(memory.moments)

        known = memory.moments
        try:
            if self._statistics:
                memory.moments = dict(self._bank.moments)
            lists = [each.tiles for each in sets.values()]
            self._recording: Recording = backend.record(work, lists, olds=list(stand_in.olds.values()))
        finally:
            memory.moments = known
        self._finite = run.finite

    def sets_for(self, run: Run) -> Mapping[TilesKey, TileSet] | None:
        """The tiles of an edit by key; None: this recording does not fit it."""
        # a recording is its thread's
        if self._thread != threading.get_ident() or self._statistics != run.plan.statistics:
            return None
        if any(table.get(path) is not array for table, path, array in self._arrays):
            return None
        sets = self._sets(run)
        if sets is None or _have_every_tile(sets.values()) != self._full or not self._follows(run, sets):
            return None
        if any(each.count > room for each, room in zip(sets.values(), self._recording.room, strict=True)):
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

    def _follows(self, run: Run, sets: Mapping[TilesKey, TileSet]) -> bool:
        """Whether the moments that an edit follows are known, and measured of all samples of a canvas or of none."""
        if not self._statistics:
            return True
        moments = run.memory.moments
        return not any(
            moments[path].unknown or len({share == 1 for share in sets[key].shares}) > 1
            for path, key in self._followed.items()
        )

    def replay(self, run: Run, sets: Mapping[TilesKey, TileSet]) -> None:
        """Do the edit whose tiles are `sets`, and leave what the steps would have left: changes, records, a journal."""
        journal, memory = run.journal, run.memory
        assert journal is not None  # an edit has one
        kept = {
            layer.step.canvas.path: sets[layer.computed]
            for layer in self._layers
            if layer.kept and layer.computed is not None
        }
        journal.save_all_before(memory, kept)
        olds: list[Array] = []
        if self._statistics:
            for path in self._followed:
                journal.save_moments(path, memory.moments[path])
            olds = [journal.tiles[path][1] for path in self._moved]
            self._bank.follow(memory.moments)
        watch = self._recording.replay([each.tiles for each in sets.values()], self._finite.watch, olds=olds)
        assert watch is not None  # `work` made one
        run.finite = self._finite.replayed(watch)
        if self._statistics:
            memory.moments.update(self._bank.after(self._followed))
        for layer in self._layers:
            step = layer.step
            nothing = TileSet.empty(*step.shape[:3])
            step.canvas.changed = nothing if layer.changed is None else sets[layer.changed]
            active = nothing if layer.computed is None else sets[layer.computed]
            if not self._statistics and active.count:
                run.follow_moments(step.canvas, active, journal)
            run.record_layer(step, active)


class _StandIn(Journal):
    """The journal of recorded work: arrays without values, that a replay replaces."""

    def __init__(self, backend: Backend, memory: Memory, active: Mapping[str, TileSet]) -> None:
        super().__init__()
        self.olds = {path: backend.alloc((0, TILE, TILE, memory.canvases[path].shape[3])) for path in active}
        for path, tiles in active.items():
            self.tiles[path] = (tiles.tiles, self.olds[path])


class NotRecordable(Exception):
    """An edit must be computed step by step."""


def recordable(run: Run, steps: Sequence[Callable[[], None]]) -> bool:
    """Whether edits of the present plan can be recorded: nothing of them but tiles depends on the mask."""
    return (
        run.backend.records
        and run.plan.keyed
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
        whole = run.plan.computes_whole(step.canvas.path)
        changed = None if key is None else TilesKey(key, "everything" if whole else "active")
        computed = TilesKey(key, "everything") if transient and key is not None else changed
        step.canvas.changed = TileSet.empty(*step.shape[:3]) if key is None else run.plan.tiles(key)
        if whole and key is not None:
            step.canvas.changed = run.everything(step.canvas.changed)
        layers.append(_Layer(step, computed, changed, kept=not transient))
    return layers


def _followed(run: Run, layers: Sequence[_Layer]) -> dict[str, TilesKey]:
    """The canvases whose moments an edit moves, and the keys of their tiles."""
    return {
        layer.step.canvas.path: layer.computed
        for layer in layers
        if layer.computed is not None and layer.step.canvas.path in run.memory.moments
    }


def _have_every_tile(sets: Iterable[TileSet]) -> list[bool]:
    """Which sets have every tile."""
    return [each.count == each.total for each in sets]


def _arrays(
    layers: Sequence[_Layer], inputs: Sequence[Canvas]
) -> list[tuple[Mapping[str, Array], str, Array]]:
    """The arrays that a recording refers to: the table, the path, the array."""
    canvases = [*inputs, *(layer.step.canvas for layer in layers)]
    return [(canvas.arrays, canvas.path, canvas.array) for canvas in canvases]
