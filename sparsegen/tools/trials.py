"""Trials: a model, its inputs and an edit come in, records, memory and work of each kind of its steps go out.

All steps of an edit have the same active tiles, and there are at most two kinds: those that compute every layer, and
those that carry deltas on. So a state of each kind stands for all steps. The engine itself runs, on a backend that
counts (`backends.counting`) or on one that computes: both give the same records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

from sparsegen.backends.counting import CountingBackend, Work
from sparsegen.backends.interface import Backend, Host

from ..editing.state import State
from ..engine.allocator import BackendAllocator
from ..engine.carried import Deltas
from ..engine.journal import Journal
from ..engine.stats import LayerRecord
from ..models.base import Inputs, Model
from ..pipelines.steps import carried_rows
from ..tiling.policies import Plan, Policy
from ..tiling.tiles import TileSet, gather_tiles

OnTrial = Callable[[int, int, str], None]
"""Called as `progress(done, total, name)` before each run of the engine."""


class Change(NamedTuple):
    """An edit of a model's inputs."""

    canvases: Mapping[str, Host]
    """The edited inputs, whole."""
    changed: TileSet
    """The pixels of the inputs that differ."""
    plan: Plan


@dataclass(frozen=True)
class Trial:
    """One kind of step."""

    steps: int
    """How many steps of the edit are of this kind."""
    computes: bool
    """Whether every layer is computed; otherwise deltas are carried on."""
    records: tuple[LayerRecord, ...]
    """Of the edit's step; of a dense run, the run's."""
    milliseconds: float | None
    """Of the whole step, on a backend that computes."""
    dense_milliseconds: float | None
    """Of the dense run of its state."""
    work: Mapping[str, Work] = field(default_factory=dict)
    """Path -> the work of that layer, on a backend that counts; a layer that does nothing may be missing."""
    rest: Work = field(default_factory=Work)
    """The work of no layer."""
    canvases: Mapping[str, int] = field(default_factory=dict)
    """Path -> bytes of the canvas that the step keeps."""
    journal: Mapping[str, int] = field(default_factory=dict)
    """Path -> bytes of its tiles that undoing the edit takes."""
    codebook_bytes: int = 0
    shared_bytes: int = 0
    """Bytes of canvases that all steps share."""
    scratch_bytes: int = 0
    """Bytes of the arrays that layers without canvases compute in."""


def trials(
    model: Model,
    inputs: Inputs,
    backend: Backend,
    change: Change | None,
    policy: Policy,
    *,
    steps: int = 1,
    repeats: int = 1,
    progress: OnTrial | None = None,
) -> list[Trial]:
    """The kinds of steps of an edit, or of a dense run (`change` None), of so many `steps` under a policy.

    On a backend that computes, each time is the median of `repeats` runs after a warm-up.
    """
    rows: Sequence[int] = (0,) * steps
    if change is not None and change.changed.count != change.changed.total:
        rows = carried_rows(policy, *inputs.shape[1:], steps)
    kinds = [(kind, sum(bool(row) == bool(kind) for row in rows)) for kind in dict.fromkeys((0, max(rows)))]
    found: list[Trial] = []
    deltas: Deltas | None = None
    runs = 0 if isinstance(backend, CountingBackend) else 1 + repeats
    total, done = len(kinds) * max(runs, 1) * (1 if change is None else 2), 0

    def tell(name: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, name)
        done += 1

    for carried, count in kinds:
        state = State(model, backend, allocator=BackendAllocator(backend))
        records: list[tuple[LayerRecord, ...]] = []
        times: list[float] = []
        for _ in range(max(runs, 1)):
            tell("dense run")
            account = _Account(backend)
            run, _ = state.paint(
                inputs.canvases,
                inputs.conditions,
                least_size=policy.least_size,
                carried_rows=carried,
                on_layer=account,
            )
            records.append(tuple(run.records))
            times.append(account.milliseconds())
        dense = None if runs == 0 else median(times[1:])
        journal = Journal()
        if change is not None:
            values = {
                name: gather_tiles(each, change.changed.tiles) for name, each in change.canvases.items()
            }
            records, times = [], []
            for number in range(max(runs, 1)):
                tell("step that carries deltas on" if carried else "edit")
                if number:
                    journal.undo(state.memory)
                journal, account = Journal(), _Account(backend)
                repainted = state.repaint(
                    values,
                    change.changed,
                    change.plan,
                    journal=journal,
                    carried=None if not carried or deltas is None else deltas.at(1),
                    on_layer=account,
                )
                records.append(tuple(repainted.run.records))
                times.append(account.milliseconds())
            if max(rows) and not carried:
                deltas = state.deltas(0, journal, max(rows))
        memory = state.memory
        found.append(
            Trial(
                count,
                not carried,
                _medians(records[1:] if runs else records),
                None if runs == 0 else median(times[1:]),
                dense,
                account.work,
                account.rest(),
                {path: int(each.nbytes) for path, each in memory.canvases.items()},
                _journalled(journal),
                memory.codebook_nbytes,
                memory.allocator.shared_bytes,
                memory.allocator.scratch_bytes,
            )
        )
    return found


class _Account:
    """The clock of a run, and on a backend that counts the work of each of its records."""

    def __init__(self, backend: Backend) -> None:
        self._counting = backend if isinstance(backend, CountingBackend) else None
        self._backend = backend
        self.work: dict[str, Work] = {}
        if self._counting is not None:
            self._counting.begin()
        self._start = time.perf_counter()

    def __call__(self, record: LayerRecord) -> None:
        if self._counting is not None:
            # a layer that computes tiles has waited once for each record; one that does not, once for all
            waits = self._counting.layers
            if record.active and waits:
                self.work[record.path] = waits.pop(0)
            else:
                waits.clear()

    def milliseconds(self) -> float:
        """Since the account was opened."""
        self._backend.synchronize()
        return (time.perf_counter() - self._start) * 1e3

    def rest(self) -> Work:
        """Of no layer."""
        return Work() if self._counting is None else self._counting.rest


def _medians(runs: Sequence[tuple[LayerRecord, ...]]) -> tuple[LayerRecord, ...]:
    """The records of equal runs, each with the median of its times."""
    if len(runs) == 1:
        return runs[0]
    found = []
    for same in zip(*runs, strict=True):
        known = [each.milliseconds for each in same if each.milliseconds is not None]
        found.append(replace(same[0], milliseconds=median(known) if known else None))
    return tuple(found)


def _journalled(journal: Journal) -> dict[str, int]:
    """Path -> bytes that a journal keeps of it."""
    found = {path: int(values.nbytes) for path, (_, values) in journal.tiles.items()}
    found |= {path: int(canvas.nbytes) for path, canvas in journal.whole.items()}
    for path, (_, windows) in journal.windows.items():
        found[path] = found.get(path, 0) + int(windows.nbytes)
    return found
