"""An editing session: an input comes in, a picture comes out; each edit recomputes only what it touches.

The session owns the canvases. `run` paints them all, `edit` repaints tiles in place and keeps what was there in a
journal, `undo` plays the journal back, and `redo` plays back what `undo` overwrote. An edit that fails half-way leaves
no trace; an undo or redo that is interrupted is completed first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsegen.backends.interface import Array, Backend, Host
from sparsegen.backends.registry import get_backend

from ..checks import warn
from ..engine.journal import Journal
from ..engine.memory import Memory, input_path
from ..engine.memory_float16 import memory_kind
from ..engine.run import Feature, LayerRecord, Run
from ..engine.stats import Stats, counted, megabytes
from ..engine.store import Store, parse_size
from ..engine.turn import NotCopied, Turn, completed
from ..errors import InputError, SessionError, ShapeError
from ..models.base import Inputs, Model, checked_model
from ..tiling.masks import check_mask
from ..tiling.policies import Everything, Policy, get_policy
from ..tiling.tiles import TileSet, union
from . import session_file
from .dry_run import dry_run
from .session_file import History, Notes, State, Step

Progress = Callable[[LayerRecord], None]
"""Called after every layer of a run, with its record."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a run or an edit gives."""

    images: Host
    """The pictures, uint8 `[N, H, W, 3]`."""
    output: Host
    """The network's output, float32 `[N, H, W, C]`."""
    stats: Stats
    active: TileSet
    """Tiles of the output that this run repainted."""

    @property
    def image(self) -> Host:
        """The first (usually the only) picture, uint8 `[H, W, 3]`."""
        return np.asarray(self.images[0])

    def __repr__(self) -> str:
        n, height, width = self.images.shape[:3]
        return f"<Result: {n} of {height}×{width}; {self.stats.summary()}>"


LEAST_UNDO = 256 << 20
"""Bytes that the journals of a session may take, if nothing was said and its canvases take less than twice that."""


def undo_limit(limit: int | None, canvas_bytes: int) -> int:
    """Bytes that all journals of a session may take: as many as was said (None: half of what its canvases take)."""
    return max(canvas_bytes // 2, LEAST_UNDO) if limit is None else limit


def warn_forgotten(edits: int, limit: int) -> None:
    """Tell whoever edits that the oldest edits went."""
    warn(
        f"the last edit's journal does not fit beside those before it: the oldest {edits} can no longer be undone "
        f'(journals may take {megabytes(limit)}; give undo="4GB", say, for more)'
    )


NOTHING_TO_REDO = "nothing to redo: no undo since the last edit or run"


def nothing_to_undo(forgotten: int) -> SessionError:
    """What to say where no edit can be undone, of which so many were `forgotten`."""
    return SessionError(
        "nothing to undo: " + ("older edits were forgotten" if forgotten else "no edit since the last run")
    )


class Session(NotCopied):
    """A model, a backend, and the canvases of one input that is being edited.

    Parameters
    ----------
    model
        A network with its parameters, as `sparsegen.load` gives it.
    backend
        Name of a backend (`sparsegen backends` lists them) or a `Backend`; None: the fastest that can run here.
    store
        Where canvases lie (a `Store` with a budget of RAM and files beyond it); None: wherever the backend puts them.
        Sessions of one store share the canvases that every run paints anew: they run one after another.
    storage
        "float32", or "float16": layers' values are rounded to that, and take half the memory. (A backend in main
        memory.)
    undo
        Memory that the journals of all edits may take, such as "500MB"; where a new one does not fit, the oldest edits
        can no longer be undone (a warning and `stats.forgotten_edits` say so). The last edit always can. None: half of
        what the canvases take, and no less than 256 MiB.

    Threads may share a session: they take turns. A callback may read the session that calls it, not change it.

    Raises
    ------
    InputError
        The model is none, the storage is unknown, or `undo` is no amount of memory.
    BackendError
        The backend is unknown or cannot run here.
    """

    not_copied = "save(path) it, and Session.load(path) as often as you like"

    def __init__(
        self,
        model: Model,
        backend: str | Backend | None = None,
        *,
        store: Store | None = None,
        storage: str = "float32",
        undo: int | str | None = None,
    ) -> None:
        self.model = checked_model(model, "Session needs a model")
        self._undo = parse_size(undo)
        engine = get_backend(backend)
        self.memory = memory_kind(storage)(engine, model.prepared_for(engine), store=store)
        self._state: State | None = None
        self._idle: tuple[LayerRecord, ...] = ()  # the record of an edit without change
        self._own_turn = Turn()
        self.notes: Notes = {}
        """What else `save` is to keep for the user, by name: text and arrays."""

    @property
    def _turn(self) -> Turn:
        """That of the store, where there is one: its sessions share canvases."""
        return self._own_turn if self.memory.store is None else self.memory.store.turn

    def __repr__(self) -> str:
        lines = [f"<Session of {self.model!r}", f"  on {self.memory.backend!r}"]
        state = self._state
        if state is None:
            return "\n".join([*lines, "  nothing has run yet: call run(input)>"])
        n, height, width, _ = state.memory.canvases[state.output_path].shape
        lines.append(f"  {n} of {height}×{width}, canvases {megabytes(state.memory.nbytes)}")
        undoing = f"{counted(len(state.steps), 'edit')} to undo, {len(state.undone)} to redo"
        return "\n".join([*lines, f"  {undoing}, journals {megabytes(state.history.nbytes)}>"])

    # -- running -----------------------------------------------------------------------------------------

    def run(
        self, picture: Any, *, record: bool = True, progress: Progress | None = None, **conditions: Any
    ) -> Result:
        """The dense run: every canvas is painted, and becomes the base of edits. Earlier edits are forgotten.

        Parameters
        ----------
        picture
            What the model takes: for GauGAN integer labels `[H, W]` or `[N, H, W]`, for UNets a noisy picture.
        record
            False: no canvas is kept longer than it is read, which takes far less memory; no edit can follow.
        progress
            Called after every layer.
        conditions
            What else the model takes (GauGAN: `instances`, `z`; DDPM: `timestep`).

        Raises
        ------
        InputError, ShapeError
            The input does not fit; the session stays as it was. (One that fits is painted over the old base, so
            that two never share the memory: interrupted, the session must `run` again.)
        NonFiniteError
            A layer computed NaN or infinity; the session must `run` again.
        SessionError
            A callback of this session asked.
        """
        with self._turn.change("run"):
            return self._paint(picture, record=record, progress=progress, **conditions)

    def _paint(
        self, picture: Any, *, record: bool = True, progress: Progress | None = None, **conditions: Any
    ) -> Result:
        """`run`, for a pipeline that has the turn."""
        start = time.perf_counter()
        inputs = self.model.encode(picture, **conditions)
        backend = self.memory.backend
        same_size = all(c.shape[:3] == inputs.shape for c in _input_canvases(self.memory).values())
        self._state = None  # and its journals
        canvases = self.memory.canvases if same_size else {}
        memory = type(self.memory)(
            backend,
            self.model.prepared_for(backend),
            canvases if record else {},
            coded=backend.codebooks,
            store=self.memory.store,
            recording=record,
            least_size=self.model.least_size(*inputs.shape[1:]),
        )
        if same_size:
            memory.transients = self.memory.transients if record else {}
            memory.codebooks = self.memory.codebooks
            for codebook in memory.codebooks.values():
                codebook.clear()
        self.memory = memory
        for name, array in inputs.canvases.items():
            memory.canvases[input_path(name)] = backend.upload(array)
        run = Run(memory, Everything())
        output = self._forward(run, inputs.conditions, TileSet.full(*inputs.shape), progress)
        state = State(
            self.model,
            memory,
            inputs.conditions,
            run.records[-1].path,
            History(TileSet.empty(*inputs.shape)),
        )
        result = self._result(
            run.records, state, output, output.changed[0], start, state.history, edited_area=1.0
        )
        state.images = np.array(result.images)
        self._idle = tuple(map(_idle, run.records))
        self._state = state if record else None
        return result

    def edit(
        self,
        picture: Any,
        *,
        mask: Any = None,
        policy: str | Policy | None = None,
        progress: Progress | None = None,
        **conditions: Any,
    ) -> Result:
        """Repaint what differs from the current input; the result becomes the base of the next edit.

        Parameters
        ----------
        picture
            The whole edited input, of the same size as the current one.
        mask
            bool `[H, W]` or `[N, H, W]`: the pixels to take over and recompute. None: those that differ. Changes
            outside a mask are not applied; their number is in `stats.ignored_pixels`, and a warning says so.
        policy
            "paper" (the family's own settings, the default), "exact", "adaptive(0.02)", or a `Policy`. Resolutions
            below the family's `least_size` are computed whole under any: their canvases are not kept.
        progress
            Called after every layer.
        conditions
            As for `run`; what is not given stays as it is.

        Raises
        ------
        InputError, ShapeError, SessionError, NonFiniteError
            The session stays as it was, also when the edit is interrupted before it is done.
        """
        with self._turn.change("edit"):
            return self._repaint(picture, mask=mask, policy=policy, progress=progress, **conditions)

    def _repaint(
        self,
        picture: Any,
        *,
        mask: Any = None,
        policy: str | Policy | None = None,
        progress: Progress | None = None,
        keep_history: bool = False,
        **conditions: Any,
    ) -> Result:
        """`edit`, for a pipeline that has the turn; with `keep_history`, no edit is forgotten, old or undone."""
        start = time.perf_counter()
        state = self._settled()
        before = state.history
        chosen = get_policy(policy, paper=self.model.paper)
        inputs = self._encode_edit(state, picture, conditions)
        edited = {name: self.memory.backend.upload(array) for name, array in inputs.canvases.items()}
        difference = self._difference(edited)
        ignored = 0
        if mask is not None:
            given = check_mask(mask, inputs.shape)
            ignored = int(np.count_nonzero(difference & ~given))
            difference = given
            if ignored:
                warn(f"{ignored} changed pixels lie outside the mask and are not applied")
        # an exact edit also spreads what approximate edits before it left unspread
        changed = TileSet.of_mask(difference)
        spread = union([changed, before.stale]) if chosen.exact else changed
        stale = TileSet.empty(*inputs.shape) if chosen.exact else union([before.stale, changed])
        step = Step(Journal(), before.stale)
        area = np.count_nonzero(difference) / difference.size
        if state.images is None:  # a callback may ask for them
            state.images = self._pictures(state)
        state.history = replace(before, going=(step.journal, before))
        try:
            if spread.count:
                plan = chosen.plan(spread.mask(), settled=not before.stale.count)
                run = Run(self.memory, plan, journal=step.journal, edited=spread.edited)
                self._take_over(edited, changed, step.journal)
                output = self._forward(run, state.conditions, spread, progress)
                records, active = tuple(run.records), output.changed[0]
            else:
                records, output = self._idle, self._output(state)
                active = output.changed[0]
            after = replace(before, stale=stale, steps=(*before.steps, step))
            if not keep_history:
                after = self._within_budget(replace(after, undone=()))
            result = self._result(
                records, state, output, active, start, after, edited_area=area, ignored=ignored, step=step
            )
            state.images, state.history = np.array(result.images), after
            return result
        except BaseException:
            completed(self._arrive)
            raise

    def _within_budget(self, history: History) -> History:
        """The history without its oldest edits, as many as do not fit; whoever edits is told."""
        limit, forgotten = undo_limit(self._undo, self.memory.nbytes), 0
        while history.nbytes > limit and len(history.steps) > 1:
            history = replace(history, steps=history.steps[1:], forgotten=history.forgotten + 1)
            forgotten += 1
        if forgotten:
            warn_forgotten(forgotten, limit)
        return history

    def undo(self) -> Result:
        """Put back what the last edit overwrote, bit for bit. As often as `edits` says.

        Raises
        ------
        SessionError
            There is nothing to undo, or a callback of this session asked.
        """
        with self._turn.change("undo"):
            start, state = time.perf_counter(), self._settled()
            if not state.steps:
                raise nothing_to_undo(state.history.forgotten)
            journal = state.steps[-1].journal
            self._step_back()
            return self._exchanged(start, journal)

    def redo(self) -> Result:
        """Put back what the last undo overwrote, bit for bit. As often as there were undos since the last edit or run.

        Raises
        ------
        SessionError
            There is nothing to redo, or a callback of this session asked.
        """
        with self._turn.change("redo"):
            start, state = time.perf_counter(), self._settled()
            if not state.undone:
                raise SessionError(NOTHING_TO_REDO)
            journal = state.undone[-1].journal
            self._step_forward()
            return self._exchanged(start, journal)

    def _exchanged(self, start: float, journal: Journal) -> Result:
        """The result of an undo or redo, which played that journal back."""
        state = self._base()
        output = self._output(state)
        active = output.changed[0]
        if state.output_path in journal.paths:
            active = TileSet.of_tiles(active.shape, journal.kept_tiles(state.output_path).host)
        result = self._result([], state, output, active, start, state.history, edited_area=0.0)
        state.images = np.array(result.images)
        return result

    def _step_back(self) -> None:
        """`undo` without a result, for a pipeline that has the turn.

        Where there is no memory to keep what is overwritten, it cannot be redone.
        """
        history = self._settled().history
        *steps, step = history.steps
        try:
            undone = (*history.undone, self._inverse(step))
        except (MemoryError, SessionError):
            undone = ()
        self._go(step.journal, replace(history, stale=step.stale, steps=tuple(steps), undone=undone))

    def _step_forward(self, inverse: Step | None = None) -> None:
        """`redo` without a result, for a pipeline that has the turn; `inverse` is that of the step, where it is known.

        Raises
        ------
        MemoryError, SessionError
            There is no memory to keep what is overwritten; the session stays as it was.
        """
        history = self._settled().history
        *undone, step = history.undone
        steps = (*history.steps, inverse or self._inverse(step))
        self._go(step.journal, replace(history, stale=step.stale, steps=steps, undone=tuple(undone)))

    def _take_back(self) -> None:
        """Undo an edit that is not to be kept, for a pipeline that has the turn: it cannot be redone."""
        history = self._settled().history
        *steps, step = history.steps
        self._go(step.journal, replace(history, stale=step.stale, steps=tuple(steps)))

    def _forget_oldest(self, count: int) -> None:
        """So many of the oldest edits can no longer be undone."""
        state = self._base()
        state.history = replace(state.history, steps=state.history.steps[count:])

    def _keep_undone(self, count: int) -> None:
        """Only so many edits can be made again."""
        state = self._base()
        undone = state.history.undone
        state.history = replace(state.history, undone=undone[len(undone) - count :])

    def _inverse(self, step: Step) -> Step:
        """The way back from the other side of a step that is about to be taken."""
        return Step(step.journal.inverse(self.memory), self._base().history.stale)

    def _go(self, journal: Journal, history: History) -> None:
        """Play a journal back and stand at `history`. What interrupts is raised in the end."""
        state = self._base()
        state.history = replace(state.history, going=(journal, history))
        interrupt = completed(self._arrive)
        if interrupt is not None:
            raise interrupt

    def _arrive(self) -> None:
        """Play back the journal that is `going`, if there is one; an edit's where it failed."""
        state = self._base()
        if state.history.going is not None:
            journal, history = state.history.going
            journal.undo(self.memory)
            if (
                history.steps != state.history.steps
            ):  # (after an edit that failed the pictures are those of before)
                state.images = None
            state.history = history

    def _settled(self) -> State:
        """The state, once it is where its history says: an interrupt may have come between two of our lines."""
        interrupt = completed(self._arrive)
        if interrupt is not None:
            raise interrupt
        return self._base()

    @property
    def state(self) -> State:
        """All that makes the session: what a file keeps of it. Raises SessionError: nothing has run yet."""
        return self._base()

    @property
    def edits(self) -> int:
        """How many edits can be undone."""
        return 0 if self._state is None else len(self._state.steps)

    @property
    def undone(self) -> int:
        """How many edits can be made again with `redo`."""
        return 0 if self._state is None else len(self._state.undone)

    @property
    def journal_nbytes(self) -> int:
        """Memory that undoing and redoing takes."""
        return 0 if self._state is None else self._state.history.nbytes

    @property
    def image(self) -> Host:
        """The first picture as it stands, uint8 `[H, W, 3]`; while something changes, as it was before. Nobody waits.

        Raises SessionError: nothing has run yet.
        """
        state = self._state
        if state is None:
            raise SessionError("no picture yet: a run must end first")
        images = state.images
        if images is None:
            with self._turn.change("image"):
                images = state.images = self._pictures(state)
        return np.array(images[0])

    def _pictures(self, state: State) -> Host:
        """The output's pictures as they stand."""
        return self.model.picture(self.memory.whole(self._output(state).parts[0]))

    # -- files -------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole session (network, canvases, journal) to one safetensors file, or leave the old file whole.

        Raises
        ------
        SessionError, CheckpointError
            Nothing has run yet; the file could not be written; a callback of this session asked.
        """
        with self._turn.change("save"):
            session_file.save(path, {"": self._settled()}, notes=self.notes)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backend: str | Backend | None = None,
        *,
        undo: int | str | None = None,
    ) -> Session:
        """Continue a saved session: the same bits, the same undo and redo.

        Raises
        ------
        SessionError, CheckpointError
            The file is cut, altered, of another kind or of a newer version.
        """
        loaded = session_file.load(path, get_backend(backend))
        if list(loaded.states) != [""]:
            raise SessionError(f"{path}: a session of several steps; open it with sparsegen.SDEdit.load")
        session = cls.of_state(loaded.states[""], path)
        session._undo, session.notes = parse_size(undo), loaded.notes
        return session

    @classmethod
    def of_state(cls, state: State, path: str | os.PathLike[str]) -> Session:
        """The session of a state out of the file `path`, once it is seen to fit its network. Raises SessionError."""
        session = cls(state.model, state.memory.backend)
        session.memory, session._state = state.memory, state
        try:
            inputs = Inputs(_input_canvases(state.memory), state.conditions)
            if set(inputs.canvases) != set(state.model.inputs):
                raise ValueError(f"canvases of {', '.join(sorted(inputs.canvases))}")
            full = TileSet.full(*inputs.shape)
            dry = dry_run(
                state.model,
                inputs,
                Everything(),
                full,
                coded=state.memory.coded,
                least_size=state.memory.least_size,
            )
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise SessionError(
                f"{path}: what it says of its input does not fit its network ({error})"
            ) from None
        session._idle = tuple(map(_idle, dry.records))
        session_file.check(path, state, dry.memory)
        return session

    # -- inside ------------------------------------------------------------------------------------------

    def _base(self) -> State:
        if self._state is None:
            raise SessionError("no base to edit: call run(input) first")
        return self._state

    def _encode_edit(self, state: State, picture: Any, conditions: dict[str, Any]) -> Inputs:
        download = self.memory.backend.download
        canvases = {name: download(canvas) for name, canvas in _input_canvases(self.memory).items()}
        base = Inputs(canvases, state.conditions)
        given = {name: value for name, value in conditions.items() if value is not None}
        inputs = self.model.encode(picture, base=base, **given)
        for name, array in inputs.canvases.items():
            if array.shape != base.canvases[name].shape:
                raise ShapeError(
                    f"the edited {name} are {array.shape[:3]}, the base's {base.canvases[name].shape[:3]} (N, H, W)"
                )
        for name, value in inputs.conditions.items():
            if not np.array_equal(value, state.conditions[name]):
                raise InputError(
                    f"{name} is not the base's; it changes the whole picture: call run(input, {name}=…)"
                )
        return inputs

    def _difference(self, edited: dict[str, Array]) -> Host:
        """bool `[N, H, W]`: pixels of the input that differ from the current one in any canvas."""
        first, *others = (
            self.memory.backend.difference_mask(
                self.memory.canvases[input_path(name)], canvas, eps=self.model.eps
            )
            for name, canvas in edited.items()
        )
        for mask in others:
            first |= mask
        return first

    def _take_over(self, edited: dict[str, Array], changed: TileSet, journal: Journal) -> None:
        """Write the changed pixels into the input's canvases."""
        backend = self.memory.backend
        for name, canvas in edited.items():
            path = input_path(name)
            journal.keep(self.memory, path, changed)
            kept, (_, old) = self.memory.canvases[path], journal.kept(backend, path)
            backend.write_tiles(kept, changed.tiles, old)  # `kept` may be new, its values in the journal
            new = backend.read_tiles(canvas, changed.tiles)
            backend.merge_tiles(kept, changed.tiles, new, changed.pixels)

    def _forward(
        self, run: Run, conditions: dict[str, Host], changed: TileSet, progress: Progress | None
    ) -> Feature:
        run.on_layer = progress
        features = {
            name: Feature(run, (canvas,), (changed,)) for name, canvas in _input_canvases(run.memory).items()
        }
        with np.errstate(
            all="ignore"
        ):  # of damaged weights; what comes of them is found in each layer, and named
            return self.model.forward(features, conditions)

    def _output(self, state: State) -> Feature:
        """The output as it stands, no tile of it repainted."""
        run, (n, h, w, c) = Run(self.memory, Everything()), self.memory.canvases[state.output_path].shape
        canvas = self.memory.canvas(state.output_path, (n, h, w, c), "float32")
        return Feature(run, (canvas,), (TileSet.empty(n, h, w),))

    def _result(
        self,
        records: Iterable[LayerRecord],
        state: State,
        output: Feature,
        active: TileSet,
        start: float,
        history: History,
        *,
        edited_area: float,
        ignored: int = 0,
        step: Step | None = None,
    ) -> Result:
        """Of the state's images, all but the box around the `active` tiles still holds. It will stand at `history`."""
        memory = state.memory
        memory.backend.synchronize()
        values = memory.whole(output.parts[0])
        if state.images is None:
            images = self.model.picture(values)
        else:
            images = np.array(state.images)
            images[active.place] = self.model.picture(values[active.place])
        journal = 0 if step is None else step.journal.nbytes
        elapsed = (time.perf_counter() - start) * 1e3
        stats = Stats(
            edited_area,
            tuple(records),
            elapsed,
            memory.nbytes,
            memory.codebook_nbytes,
            journal,
            ignored,
            len(history.steps),
            history.nbytes,
            history.forgotten,
        )
        return Result(images, values, stats, active)


def _idle(record: LayerRecord) -> LayerRecord:
    """What the layer's record is when nothing of it is recomputed."""
    return replace(record, active=0, macs=0, milliseconds=0.0)


def _input_canvases(memory: Memory) -> dict[str, Any]:
    """The input's canvases by their names in `Inputs`."""
    prefix = input_path("")
    return {path.removeprefix(prefix): c for path, c in memory.canvases.items() if path.startswith(prefix)}
