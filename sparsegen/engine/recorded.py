"""Recorded edits: a program's steps under a plan come in once, and later edits with other masks queue them as a whole.

A dense run is recorded the same way: it is the edit in which every tile is active, without a journal.

Under a *keyed* plan (`Plan.keyed`) the mask alone decides which tiles are active, and the layers share a few keys. So
an edit of a program that was recorded runs no step of it: it makes one set of tiles for each key, one copy of what they
are about to overwrite, and one `Recording.replay` (on an NVIDIA card, one CUDA graph).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from sparsegen.backends.interface import TILE, Array, Recording

from ..tiling.canvas import Canvas
from ..tiling.tiles import TileSet
from .finite import FiniteChecks
from .journal import Journal
from .moments import MomentBank, Moments
from .run import LayerStep, NormStep, Run

MOST_ROOM = 3
"""Times the tiles of an edit: a recording with more room in all takes longer than another one."""
LEAST_ROOM = 8
"""Tiles of each list that count as nothing."""


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

    It fits an edit if the layers that have active tiles are the same, and the lists of tiles have room, not far too
    much: what is queued is chosen for as many tiles as there is room for.
    """

    def __init__(
        self,
        run: Run,
        steps: Sequence[Callable[[], None]],
        inputs: Sequence[Canvas],
        others: Iterable[RecordedEdit] = (),
    ) -> None:
        """Record the edit of the present plan of a run; `inputs` have their changes. Nothing is computed.

        Lists have room for a quarter more tiles, and for those of `others` that nearly fit: after a few edits of about
        a size, one recording fits all of them.

        Raises
        ------
        NotRecordable
            A layer has a key, but no tile; of a canvas whose moments are followed, some samples are repainted whole and
            others are not, or are not known.
        """
        self._layers = _planned(run, [step for step in steps if isinstance(step, LayerStep)])
        keys = (key for layer in self._layers for key in (layer.changed, layer.computed))
        self.keys = tuple(key for key in dict.fromkeys(keys) if key is not None)
        """The keys of its lists of tiles, in their order."""
        self._statistics = run.plan.statistics
        self._followed = _followed(run, self._layers)
        sets = sets_of(run, self.keys)
        if sets is None:
            raise NotRecordable
        # a slot for each key: those that have the same tiles now need not have them in another edit
        sets = {key: replace(each) for key, each in sets.items()}
        self._whole = self._repainted_whole(sets)
        if not self._follows(run, sets):
            raise NotRecordable
        self._thread = threading.get_ident()
        self._arrays = _arrays(self._layers, inputs)
        layers = {each.step: each for each in self._layers}
        memory, backend = run.memory, run.backend
        self._bank = MomentBank(backend, memory.moments if self._statistics else {})
        self._kept = {
            layer.step.canvas.path: layer.computed
            for layer in self._layers
            if run.journal is not None and layer.kept and layer.computed is not None
        }

        stand_in = Journal()
        for path, key in self._kept.items():
            canvas = memory.canvases[path]
            old = backend.alloc((0, TILE, TILE, canvas.shape[3]), dtype=str(canvas.dtype))
            stand_in.add(path, sets[key].tiles, old)

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

        known, measured_before = memory.moments, set(memory.statistics)
        try:
            memory.moments = dict(self._bank.moments)
            lists = [each.tiles for each in sets.values()]
            alike = [other.rooms for other in others if other.keys == self.keys]
            rooms = rooms_for(list(sets.values()), alike)
            saves = [(memory.canvases[path], *saved) for path, saved in stand_in.tiles.items()]
            self._recording: Recording = backend.record(work, lists, saves=saves, rooms=rooms)
            # what a dense run measures: arrays of the recording, which every replay fills anew
            self._measured = {
                path: each.used for path, each in memory.moments.items() if path not in self._bank.moments
            }
        finally:
            memory.moments = known
        self._norms = {
            path: memory.statistics.pop(path) for path in [*memory.statistics] if path not in measured_before
        }
        self._finite = run.finite

    @property
    def rooms(self) -> Sequence[int]:
        """The most tiles of each list."""
        return self._recording.room

    def replaces(self, other: RecordedEdit) -> bool:
        """Whether it fits every edit that another recording fits, as well."""
        if (self.keys, self._whole) != (other.keys, other._whole):
            return False
        if any(map(int.__lt__, self.rooms, other.rooms)):
            return False
        return is_near(self.rooms, other.rooms)

    def fits(self, run: Run, sets: Mapping[TilesKey, TileSet]) -> bool:
        """Whether it can do the edit of a run whose tiles by its keys are `sets`."""
        # a recording is its thread's
        if self._thread != threading.get_ident() or self._statistics != run.plan.statistics:
            return False
        counts = [each.count for each in sets.values()]
        if any(map(int.__gt__, counts, self.rooms)) or not is_near(self.rooms, counts):
            return False
        if any(table.get(path) is not array for table, path, array in self._arrays):
            return False
        return self._repainted_whole(sets) == self._whole and self._follows(run, sets)

    def _repainted_whole(self, sets: Mapping[TilesKey, TileSet]) -> list[bool]:
        """Of the lists of canvases whose moments an edit follows: which have every tile, so that they are measured."""
        keys = dict.fromkeys(self._followed.values() if self._statistics else ())
        return [sets[key].count == sets[key].total for key in keys]

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
        lists = [each.tiles for each in sets.values()]
        if self._statistics:
            self._bank.follow(memory.moments)
        if journal is not None:
            saved = self._recording.save(lists)
            # from here on the journal takes everything back, whether the graph was launched or not
            journal.add_all({path: sets[key].tiles for path, key in self._kept.items()}, saved)
            for path in memory.moments if self._statistics else self._followed:
                journal.save_moments(path, memory.moments[path])
        watch = self._recording.replay(lists, self._finite.watch)
        assert watch is not None  # `work` made one
        run.finite = self._finite.replayed(watch)
        if self._statistics:
            memory.moments.update(self._bank.after(memory.moments))
        else:
            edited = {
                key: frozenset(n for n, share in enumerate(each.shares) if share)
                for key, each in sets.items()
            }
            for path, key in self._followed.items():
                memory.moments[path] = memory.moments[path].not_followed(edited[key])
        memory.statistics.update(self._norms)
        for path, used in self._measured.items():
            memory.moments[path] = Moments.measured(run.backend, *used)
        for layer in self._layers:
            step = layer.step
            nothing = TileSet.empty(*step.shape[:3])
            step.canvas.changed = nothing if layer.changed is None else sets[layer.changed]
            run.record_layer(step, nothing if layer.computed is None else sets[layer.computed])


def sets_of(run: Run, keys: Iterable[TilesKey]) -> Mapping[TilesKey, TileSet] | None:
    """The tiles of the present plan of a run by key; None: a key has no tile."""
    sets: dict[TilesKey, TileSet] = {}
    for key in keys:
        active = run.plan.tiles(key.of)
        if not active.count:
            return None
        sets[key] = active if key.which == "active" else run.everything(active)
    return sets


def rooms_for(sets: Sequence[TileSet], alike: Iterable[Sequence[int]]) -> list[int]:
    """The room that lists of these tiles get in a recording, beside others with room for lists of the same keys."""
    counts = [each.count for each in sets]
    rooms = [min(each.total, each.count + each.count // 4) for each in sets]
    for other in alike:
        # a backend may round rooms up, by half
        if is_near([max(3 * most // 2, more) for most, more in zip(rooms, other, strict=True)], counts):
            rooms = [*map(max, rooms, other)]
    return rooms


def is_near(rooms: Sequence[int], counts: Sequence[int]) -> bool:
    """Whether lists with so much room are not far too long for so many tiles."""
    return sum(rooms) <= MOST_ROOM * sum(counts) + LEAST_ROOM * len(counts)


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
        key = step.key(run.plan)
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


def _arrays(
    layers: Sequence[_Layer], inputs: Sequence[Canvas]
) -> list[tuple[Mapping[str, Array], str, Array]]:
    """The arrays that a recording refers to: the table, the path, the array."""
    canvases = [*inputs, *(layer.step.canvas for layer in layers)]
    return [(canvas.arrays, canvas.path, canvas.array) for canvas in canvases]
