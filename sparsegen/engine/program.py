"""A program: the steps that a model's code gave to a run come in, and later runs replay them, without that code.

The steps are in the order of the model. Each looks up its canvases, its plan and its journal in the run, so the same
program serves every edit of one base, whatever its policy: a replayed edit computes the same bits as a walked one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..tiling.canvas import Canvas
from ..tiling.tiles import TileSet
from .carried import Deltas
from .recorded import NotRecordable, RecordedEdit, TilesKey, recordable, sets_of
from .run import LayerStep, NormStep, Run
from .stats import LayerRecord

MOST_RECORDED = 8
"""Recorded edits that a program keeps: of a few sizes of tile lists, and of a few policies."""


@dataclass(eq=False)
class Program:
    """The steps of a model on one memory."""

    run: Run
    """The run that its steps belong to; `Run.begin` sets its plan and its journal."""
    inputs: Sequence[Canvas]
    """The model's inputs."""
    steps: Sequence[Callable[[], None]]
    output: Canvas
    records: Sequence[LayerRecord]
    """Those of the run that noted the steps."""
    ran: bool
    """Whether its steps have computed tiles: weights and scratch arrays are made then, which no recording may make."""
    _recorded: list[RecordedEdit] = field(default_factory=list)
    """The latest first."""
    _paints: list[RecordedEdit] = field(default_factory=list)
    """The dense run, once it was recorded."""
    _above: dict[int, tuple[list[Callable[[], None]], list[LayerRecord]]] = field(default_factory=dict)

    def frontier(self, rows: int) -> list[Canvas]:
        """The canvases of at most `rows` rows that larger layers read, and the output if it has at most so many."""
        layers = [step for step in self.steps if isinstance(step, LayerStep) and step.rows > rows]
        read = [each.canvas for layer in layers for each in layer.reads] + [self.output]
        return [*dict.fromkeys(canvas for canvas in read if canvas is not None and canvas.shape[1] <= rows)]

    def replay(self, changed: TileSet, carried: Deltas | None = None) -> None:
        """Run every step, with `changed` pixels of the inputs; with `carried`, the frontier and all above alone."""
        for canvas in self.inputs:
            canvas.changed = changed
        if (
            carried is None
            and changed.count
            and self.ran
            and self._replay_recorded(self._recorded, MOST_RECORDED)
        ):
            return
        steps, records = (self.steps, []) if carried is None else self._beyond(carried.rows)
        self.run.records += records
        self._step_by_step(steps)
        self.ran |= carried is None and changed.count > 0

    def _step_by_step(self, steps: Sequence[Callable[[], None]]) -> None:
        # damaged weights: the run finds and names values that are not finite
        with np.errstate(all="ignore"), self.run.backend.queue():
            for step in steps:
                step()

    def paint(self) -> None:
        """The dense run of other inputs: the edit in which every tile is active, without a journal.

        What layers measured of the inputs before is forgotten. A recording measures into arrays of its own.
        """
        memory = self.run.memory
        for canvas in self.inputs:
            canvas.changed = TileSet.full(*canvas.shape[:3])
        for step in self.steps:
            if isinstance(step, NormStep):
                memory.statistics.pop(step.path, None)
        memory.moments.clear()
        for codebook in memory.codebooks.values():
            codebook.clear()
        before = [*self._paints]
        if not (self.ran and self._replay_recorded(self._paints, most=1)):
            self._step_by_step(self.steps)
        self.ran = True
        if self._paints != before:
            self._recorded.clear()  # those edits read what norms measured elsewhere

    def _replay_recorded(self, recorded: list[RecordedEdit], most: int) -> bool:
        """Do the edit by one of the recordings that fits it, made now if there is none; False: it cannot be recorded.

        At most `most` are kept.
        """
        run = self.run
        if not recordable(run, self.steps):
            return False
        found: dict[tuple[TilesKey, ...], Mapping[TilesKey, TileSet] | None] = {}
        fitting: list[RecordedEdit] = []
        for edit in recorded:
            if edit.keys not in found:  # recordings for other numbers of tiles have the same keys
                found[edit.keys] = sets_of(run, edit.keys)
            sets = found[edit.keys]
            if sets is not None and edit.fits(run, sets):
                fitting.append(edit)
        if fitting:
            edit = min(fitting, key=lambda each: sum(each.rooms))
            sets = found[edit.keys]
            assert sets is not None
            edit.replay(run, sets)
            return True
        try:
            edit = RecordedEdit(run, self.steps, self.inputs, recorded)
        except NotRecordable:
            return False
        recorded[:] = [edit, *(each for each in recorded if not edit.replaces(each))][:most]
        sets = sets_of(run, edit.keys)
        assert sets is not None  # it was made for this edit
        edit.replay(run, sets)
        return True

    def _beyond(self, rows: int) -> tuple[list[Callable[[], None]], list[LayerRecord]]:
        """The steps of the frontier and of everything larger than `rows` rows; the records of all other layers."""
        if rows not in self._above:
            frontier = self.frontier(rows)
            steps, done = [], set[str]()
            for step in self.steps:
                if isinstance(step, LayerStep | NormStep) and step.rows <= rows:
                    canvases = step.parts if isinstance(step, NormStep) else (step.canvas,)
                    if not any(canvas in frontier for canvas in canvases):
                        continue
                steps.append(step)
                if isinstance(step, LayerStep):
                    done |= {step.canvas.path, *(inner.path for inner in step.inners)}
            self._above[rows] = steps, [record.idle for record in self.records if record.path not in done]
        return self._above[rows]
