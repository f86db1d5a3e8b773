"""An editing session: an input comes in, an image comes out; each edit recomputes only the tiles that it touches.

The session encodes inputs, finds the difference, and turns outputs into images; its `Base` holds the canvases and the
history. An edit that fails half-way leaves no trace; an undo or redo that is interrupted is completed first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import Backend, Host
from sparsegen.backends.registry import get_backend

from ..engine.allocator import Allocator
from ..engine.memory import Memory
from ..engine.own_store import own_allocator
from ..engine.run import OnLayer
from ..engine.stats import LayerRecord, Stats, counted, megabytes
from ..engine.store import Store, parse_size
from ..engine.turn import Turn
from ..errors import InputError, SessionError, ShapeError
from ..models.base import Inputs, Model, checked_model
from ..tiling.masks import difference_mask
from ..tiling.policies import Policy
from ..tiling.tiles import TileSet, gather_tiles, scatter_tiles, union
from . import session_file
from .door import Door, Result, warn_of_canvases, within_mask
from .history import Base, Edit, History, undo_limit
from .session_check import damaged
from .session_file import Notes
from .state import State

_NO_BASE = "no base to edit: call run(original) first"


@dataclass(frozen=True, eq=False, repr=False)
class _Shown:
    """Host copies of a base's inputs and images at one place of its history, never written into."""

    inputs: dict[str, Host] | None
    """By name, as `Model.encode` returns them; None: nobody has needed them since an undo or redo."""
    output: Host
    images: Host


class Session(Door):
    """A model, a backend, and the canvases of one input that is being edited.

    Threads may share a session: they take turns. A callback may read the session that calls it, not change it.

    Parameters
    ----------
    model
        A model with its parameters, as `sparsegen.load` returns it.
    backend
        Name of a backend (`sparsegen backends` lists them) or a `Backend`; None: the fastest that can run here.
    policy
        The policy of edits that give none: "paper", "fast" (both with the family's settings), "exact",
        "adaptive(0.02)", or a `Policy`. Resolutions below its `least_size` are not kept: every edit, under whatever
        policy, computes them whole.
    store
        A `Store` for canvases, with a budget of RAM and files beyond it; None: the backend's memory. Sessions of one
        store share the canvases that every run repaints whole: they run one after another.
    storage
        "float32", or "float16": layers' values are rounded to that, and take half the memory.
    undo
        Memory that the journals of all edits may take, such as "500MB". If a new one does not fit, the oldest edits can
        no longer be undone (a warning and `stats.forgotten_edits` give their number). The last edit always can. None:
        half of the canvases' memory, and at least 256 MiB.

    Raises
    ------
    InputError
        `model` is not a model, the policy or the storage is unknown, or `undo` is not an amount of memory.
    BackendError
        The backend is unknown or cannot run here.
    """

    not_copied = "save(path) it, and Session.load(path) as often as you like"

    def __init__(
        self,
        model: Model,
        backend: str | Backend | None = None,
        *,
        policy: str | Policy = "paper",
        store: Store | None = None,
        storage: str = "float32",
        undo: int | str | None = None,
    ) -> None:
        self.model = checked_model(model, "Session needs a model")
        self.policy = self.model.policy(policy)
        self._undo = parse_size(undo)
        engine = get_backend(backend)
        allocator: Allocator = own_allocator(engine) if store is None else store.checked(engine)
        self._state = State(self.model, engine, allocator=allocator, storage=storage)
        self.notes: Notes = {}
        """Text and arrays that `save` keeps for the user, by name."""

    @property
    def memory(self) -> Memory:
        """The canvases, statistics and codebooks."""
        return self._state.memory

    @property
    def _turn(self) -> Turn:
        return self.memory.allocator.turn

    def __repr__(self) -> str:
        lines = [f"<Session of {self.model!r}", f"  on {self.memory.backend!r}"]
        base = self._base
        if base is None:
            return "\n".join([*lines, "  nothing has run yet: call run(original)>"])
        n, height, width = base.history.stale.shape
        lines.append(f"  {n} of {height}×{width}, canvases {megabytes(base.nbytes)}")
        history = base.history
        undoing = f"{counted(len(history.edits), 'edit')} to undo, {len(history.undone)} to redo"
        return "\n".join([*lines, f"  {undoing}, journals {megabytes(history.nbytes)}>"])

    # -- running -----------------------------------------------------------------------------------------

    def run(
        self,
        original: Any,
        *,
        keep_canvases: bool = True,
        progress: OnLayer | None = None,
        **conditions: Any,
    ) -> Result:
        """The dense run: every canvas is painted, and becomes the base of edits. Earlier edits are forgotten.

        Parameters
        ----------
        original
            The model's input: for GauGAN integer labels `[H, W]` or `[N, H, W]`, for diffusion models a noisy image.
        keep_canvases
            False: no canvas is kept after its last reader, which takes far less memory; no edit can follow.
        progress
            Called after every layer; only then are layers timed.
        conditions
            The model's other inputs (GauGAN: `instances`, `z`; DDPM: `timestep`).

        Raises
        ------
        InputError, ShapeError
            The input does not fit; the session is unchanged. (A valid input overwrites the base in place. If the run is
            interrupted, call `run` again.)
        NonFiniteError
            A layer computed NaN or infinity; call `run` again.
        SessionError
            The caller is a callback of this session.
        """
        with self._turn.change("run"):
            start = time.perf_counter()
            inputs = self.model.encode(original, **conditions)
            had_base = self._base is not None
            self._base = None  # and its journals
            run, output = self._state.paint(
                inputs.canvases,
                inputs.conditions,
                keep_canvases=keep_canvases,
                least_size=self.policy.least_size,
                on_layer=progress,
            )
            # copies: the user may write into the arrays
            kept = {name: np.array(array) for name, array in inputs.canvases.items()}
            shown = _Shown(kept, np.array(output), self.model.images(output))
            base = Base([self._state], History(TileSet.empty(*inputs.shape), shown=shown))
            active = TileSet.full(*output.shape[:3])
            result = self._result(base, base.history, output, start, active, run.records, edited_area=1.0)
            self._base = base if keep_canvases else None
            if had_base and not keep_canvases:
                self.memory.allocator.trim()  # of the memory that edits took
            return result

    def edit(
        self,
        edited: Any,
        *,
        mask: Any = None,
        policy: str | Policy | None = None,
        progress: OnLayer | None = None,
        **conditions: Any,
    ) -> Result:
        """Repaint the pixels that differ from the current input; the result becomes the base of the next edit.

        Parameters
        ----------
        edited
            The whole edited input, of the same size as the current one.
        mask
            bool `[H, W]` or `[N, H, W]`: the pixels to apply and recompute. None: the pixels that differ. Changes
            outside a mask are not applied; `stats.ignored_pixels` and a warning give their number.
        policy
            As for the session; None: the session's. A warning names a policy that is sparse at resolutions that the
            session does not keep.
        progress
            Called after every layer; only then are layers timed.
        conditions
            As for `run`; a condition that is not given stays as it is.

        Raises
        ------
        InputError, ShapeError, SessionError, NonFiniteError
            The session is unchanged, also when the edit is interrupted before it is done.
        """
        with self._turn.change("edit"):
            start = time.perf_counter()
            base, shown = self._ready()
            chosen = self._policy(policy)
            warn_of_canvases(self.policy, chosen)
            before_inputs = self._inputs(shown)
            inputs = self._encode(before_inputs, edited, conditions)
            difference = difference_mask(before_inputs, inputs, eps=self.model.eps)
            difference, ignored = within_mask(difference, mask)
            # an exact edit also spreads the pixels that earlier approximate edits left unspread
            stale = base.history.stale
            changed = TileSet.of_mask(difference)
            spread = union([changed, stale]) if chosen.exact else changed
            active = TileSet.empty(*self._state.output_shape[:3])
            left = TileSet.empty(*changed.shape) if chosen.exact else stale
            copied: list[_Shown] = []

            def copy() -> None:
                inputs_after = self._inputs_after(before_inputs, inputs, changed)
                copied.append(_Shown(inputs_after, np.array(shown.output), np.array(shown.images)))

            with base.edit() as journals:
                if spread.count:
                    plan = chosen.plan(spread.mask(), settled=not stale.count)
                    values = {name: gather_tiles(array, changed.tiles) for name, array in inputs.items()}
                    run, active, painted = self._state.repaint(
                        values,
                        changed,
                        plan,
                        journal=journals[0],
                        spread=spread,
                        on_layer=progress,
                        meanwhile=copy,
                    )
                    records: Iterable[LayerRecord] = run.records
                    (after_edit,) = copied
                    scatter_tiles(after_edit.output, active.tiles, painted)
                    if not chosen.exact:
                        left = union([stale, self._state.unspread(changed, plan)])
                else:
                    records, after_edit = self._state.idle, shown
                self._show_images(after_edit, active)
                after = base.history.after(
                    Edit(journals, stale),
                    stale=left,
                    shown=after_edit,
                    limit=undo_limit(self._undo, base.nbytes),
                )
                area = np.count_nonzero(difference) / difference.size
                size = journals[0].nbytes
                result = self._result(
                    base, after, np.array(after_edit.output), start, active, records, area, ignored, size
                )
                base.commit(after)
            return result

    def _exchanged(self, base: Base, before: _Shown, start: float, edit: Edit) -> Result:
        output, journal, path = np.array(before.output), edit.journals[0], self._state.output_path
        active = TileSet.empty(*output.shape[:3])
        if path in journal.paths:
            active = TileSet.of_tiles(active.shape, journal.saved_tiles(path).host)
            scatter_tiles(output, active.tiles, self._state.output_tiles(active.tiles))
        exchanged = _Shown(None, output, np.array(before.images))
        self._show_images(exchanged, active)
        base.show(exchanged)
        return self._result(base, base.history, np.array(output), start, active)

    @property
    def image(self) -> Host:
        """The current first image, uint8 `[H, W, 3]`; during a change, the image before it, without waiting.

        Raises SessionError: nothing has run yet.
        """
        base = self._base
        if base is None:
            raise SessionError("no image yet: call run(original) first, and let it end")
        shown = base.history.shown
        if shown is None:
            with self._turn.change("image"):
                _, shown = self._ready()
        return np.array(shown.images[0])

    # -- files -------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole session (model, canvases, journals) to one safetensors file, or leave the old file whole.

        Raises
        ------
        SessionError, CheckpointError
            Nothing has run yet; the file could not be written; the caller is a callback of this session.
        """
        with self._turn.change("save"):
            if self._base is None:
                raise SessionError(_NO_BASE)
            session_file.save(
                path,
                {"model": self.model},
                {"": self._state},
                self._base.settle(),
                policy=self.policy,
                notes=self.notes,
            )

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
            The file is cut, altered, of another kind or of another version.
        """
        engine = get_backend(backend)
        loaded = session_file.load(path, engine, own_allocator(engine))
        if list(loaded.states) != [""] or len(loaded.models) != 1:
            raise damaged(path, "it has several states or models")
        session = cls(loaded.model, engine, policy=loaded.policy, undo=undo)
        session._state, session.notes = loaded.states[""], loaded.notes
        session._base = Base([session._state], loaded.history)
        return session

    # -- inside ------------------------------------------------------------------------------------------

    def _policy(self, policy: str | Policy | None) -> Policy:
        return self.policy if policy is None else self.model.policy(policy)

    def _ready(self) -> tuple[Base, _Shown]:
        """The base, once any interrupted change is completed, and host copies of it."""
        base = self._base
        if base is None:
            raise SessionError(_NO_BASE)
        shown = base.settle().shown
        if shown is None:
            output = self._state.output()
            shown = _Shown(None, output, self.model.images(output))
            base.show(shown)
        return base, shown

    def _encode(self, current: dict[str, Host], edited: Any, conditions: dict[str, Any]) -> dict[str, Host]:
        """The edited input by name, of the base's size and conditions."""
        base = Inputs(current, self._state.conditions)
        given = {name: value for name, value in conditions.items() if value is not None}
        inputs = self.model.encode(edited, base=base, **given)
        for name, array in inputs.canvases.items():
            if array.shape != current[name].shape:
                raise ShapeError(
                    f"the edited {name} are {array.shape[:3]}, expected the base's {current[name].shape[:3]} (N, H, W)"
                )
        for name, value in inputs.conditions.items():
            if not np.array_equal(value, self._state.conditions[name]):
                raise InputError(
                    f"{name} differs from the base's, and would change the whole image; call run(original, {name}=…)"
                )
        return inputs.canvases

    def _inputs(self, shown: _Shown) -> dict[str, Host]:
        """Host copies of the inputs as they are."""
        if shown.inputs is not None:
            return shown.inputs
        return {name: self._state.input(name) for name in self._state.inputs}

    def _inputs_after(
        self, inputs: dict[str, Host], edited: dict[str, Host], changed: TileSet
    ) -> dict[str, Host]:
        """Host copies of the inputs after an edit, which takes the `changed` pixels of the edited ones."""
        if not changed.count:
            return inputs
        after = {name: np.array(array) for name, array in inputs.items()}
        for name, array in after.items():
            old, new = (gather_tiles(each, changed.tiles) for each in (array, edited[name]))
            scatter_tiles(array, changed.tiles, np.where(changed.pixels[..., None], new, old))
        return after

    def _show_images(self, shown: _Shown, active: TileSet) -> None:
        """Update the images where some tiles of the output have changed."""
        if active.count:
            shown.images[active.place] = self.model.images(shown.output[active.place])

    def _result(
        self,
        base: Base,
        history: History,
        output: Host,
        start: float,
        active: TileSet,
        records: Iterable[LayerRecord] = (),
        edited_area: float = 0.0,
        ignored: int = 0,
        journal_bytes: int = 0,
    ) -> Result:
        """The result of a change that ends at `history`."""
        memory, images = self.memory, np.array(history.shown.images)
        stats = Stats(
            edited_area,
            tuple(records),
            (time.perf_counter() - start) * 1e3,
            base.nbytes,
            memory.codebook_nbytes,
            journal_bytes,
            ignored,
            len(history.edits),
            history.nbytes,
            history.forgotten,
        )
        return Result(images, output, stats, active)
