"""An editing session: an input comes in, a picture comes out; each edit recomputes only what it touches.

The session owns the canvases. `run` paints them all, `edit` repaints tiles in place and keeps what was there in a
journal, `undo` plays the journal back. Nothing that fails half-way leaves a trace.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import Backend, Host
from sparsegen.backends.registry import get_backend

from . import session_file
from .errors import InputError, SessionError, ShapeError
from .layers import Inputs, Model
from .policies import Everything, Plan, Policy, get_policy
from .run import Feature, Journal, LayerRecord, Memory, Run
from .session_file import Step
from .stats import Stats
from .tiles import TileSet

Progress = Callable[[LayerRecord], None]
"""Called after every layer of a run, with its record."""


@dataclass(frozen=True, eq=False)
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


class Session:
    """A model, a backend, and the canvases of one input that is being edited.

    Parameters
    ----------
    model
        A network with its parameters, as `sparsegen.load` gives it.
    backend
        Name of a backend (`sparsegen backends` lists them) or a `Backend`.

    Raises
    ------
    BackendError
        The backend is unknown or cannot run here.
    """

    def __init__(self, model: Model, backend: str | Backend = "reference") -> None:
        self.model = model
        self.memory = Memory(get_backend(backend))
        self._conditions: dict[str, Host] = {}
        self._steps: list[Step] = []
        # input pixels whose change has not spread everywhere (edits under an approximate policy), bool [N, H, W]
        self._stale: Host | None = None
        self._output_path = ""

    # -- running -----------------------------------------------------------------------------------------

    def run(self, picture: Any, *, progress: Progress | None = None, **conditions: Any) -> Result:
        """The dense run: every canvas is painted, and becomes the base of edits. Earlier edits are forgotten.

        Parameters
        ----------
        picture
            What the model takes: for GauGAN integer labels `[H, W]` or `[N, H, W]`.
        progress
            Called after every layer.
        conditions
            What else the model takes (GauGAN: `instances`, `z`).

        Raises
        ------
        InputError, ShapeError
            The input does not fit; the session stays as it was.
        """
        start = time.perf_counter()
        inputs = self.model.encode(picture, **conditions)
        backend = self.memory.backend
        memory = Memory(backend, prepared=self.memory.prepared)
        self.memory.canvases, self.memory.measured = {}, {}  # the old base goes before the new one is painted
        self._steps, self._stale = [], None
        for name, array in inputs.canvases.items():
            memory.canvases[_input_path(name)] = backend.upload(array)
        shape = _mask_shape(inputs)
        run = Run(memory, Everything())
        output = self._forward(run, inputs.conditions, TileSet.full(*shape), progress)
        self.memory, self._conditions, self._stale = memory, inputs.conditions, np.zeros(shape, bool)
        return self._result(run, output, start, edited_area=1.0)

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
            "paper" (the family's own settings, the default), "exact", or a `Policy`.

        Raises
        ------
        InputError, ShapeError, SessionError
            The session stays as it was, also when the edit is interrupted.
        """
        start = time.perf_counter()
        self._need_base()
        chosen = get_policy(policy, paper=self.model.paper)
        inputs = self._encode_edit(picture, conditions)
        difference = self._difference(inputs)
        ignored = 0
        if mask is not None:
            given = _check_mask(mask, difference.shape)
            ignored = int((difference & ~given).sum())
            difference = given
        step, run, output = self._repaint(inputs, difference, chosen, progress)
        self._steps.append(step)
        if ignored:
            warnings.warn(f"{ignored} changed pixels lie outside the mask and were not applied", stacklevel=2)
        return self._result(run, output, start, edited_area=float(difference.mean()), ignored=ignored)

    def undo(self) -> Result:
        """Put back what the last edit overwrote, bit for bit. As often as there were edits."""
        start = time.perf_counter()
        self._need_base()
        if not self._steps:
            raise SessionError("nothing to undo: no edit since the last run")
        step = self._steps.pop()
        step.journal.undo(self.memory.backend, self.memory.canvases)
        self._stale = step.stale_before
        run = Run(self.memory, Everything())
        kept = step.journal.entries.get(self._output_path)
        canvas = self.memory.canvases[self._output_path]
        n, h, w, _ = canvas.shape
        active = TileSet.empty(n, h, w) if kept is None else TileSet.of_tiles((n, h, w), kept[0])
        return self._result(run, Feature(run, (canvas,), (active,)), start, edited_area=0.0)

    @property
    def edits(self) -> int:
        """How many edits can be undone."""
        return len(self._steps)

    # -- files -------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole session (network, canvases, journal) to one safetensors file, or leave the old file whole.

        Raises
        ------
        SessionError, CheckpointError
            Nothing has run yet; the file could not be written.
        """
        self._need_base()
        assert self._stale is not None
        session_file.save(
            path,
            session_file.State(
                self.model, self.memory, self._conditions, self._steps, self._stale, self._output_path
            ),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: str | Backend = "reference") -> Session:
        """Continue a saved session: the same bits, the same undo.

        Raises
        ------
        SessionError, CheckpointError
            The file is cut, altered, of another kind or of a newer version.
        """
        state = session_file.load(path, get_backend(backend))
        session = cls(state.model, state.memory.backend)
        session.memory, session._conditions = state.memory, state.conditions
        session._steps, session._stale, session._output_path = state.steps, state.stale, state.output_path
        return session

    # -- inside ------------------------------------------------------------------------------------------

    def _need_base(self) -> None:
        if self._stale is None:
            raise SessionError("no base to edit: call run(input) first")

    def _encode_edit(self, picture: Any, conditions: dict[str, Any]) -> Inputs:
        inputs = self.model.encode(picture, **conditions)
        for name, value in inputs.conditions.items():
            if name in conditions and not np.array_equal(value, self._conditions[name]):
                raise InputError(
                    f"{name} is not the base's; it changes the whole picture: call run(input, {name}=…)"
                )
        for name, array in inputs.canvases.items():
            base = self.memory.canvases[_input_path(name)].shape
            if array.shape != tuple(base):
                raise ShapeError(
                    f"the edited {name} are {array.shape[:3]}, the base's {tuple(base)[:3]} (N, H, W)"
                )
        return inputs

    def _difference(self, inputs: Inputs) -> Host:
        """bool `[N, H, W]`: pixels of the input that differ from the current one in any canvas."""
        backend, masks = self.memory.backend, []
        for name, array in inputs.canvases.items():
            current = self.memory.canvases[_input_path(name)]
            masks.append(backend.difference_mask(current, backend.upload(array)))
        return np.asarray(np.logical_or.reduce(masks))

    def _repaint(
        self, inputs: Inputs, difference: Host, policy: Policy, progress: Progress | None
    ) -> tuple[Step, Run, Feature]:
        """Take over the input's pixels and rerun what depends on them; on any failure put everything back."""
        assert self._stale is not None
        backend, canvases = self.memory.backend, self.memory.canvases
        # an exact edit also spreads what approximate edits before it left unspread
        spread = difference | self._stale if policy.exact else difference
        stale = np.zeros_like(self._stale) if policy.exact else self._stale | difference
        step = Step(Journal(), self._stale)
        if not spread.any():
            run = Run(self.memory, Everything())
            output = canvases[self._output_path]
            n, h, w, _ = output.shape
            return step, run, Feature(run, (output,), (TileSet.empty(n, h, w),))
        run = Run(self.memory, policy.plan(spread), journal=step.journal)
        try:
            changed = TileSet.of_mask(difference)
            for name, array in inputs.canvases.items():
                path = _input_path(name)
                step.journal.keep(backend, path, canvases[path], changed.tiles)
                new = backend.read_tiles(backend.upload(array), changed.tiles)
                old = step.journal.entries[path][1]
                taken = backend.upload(changed.pixels)[..., None]
                backend.write_tiles(canvases[path], changed.tiles, new * taken + old * ~taken)
            output = self._forward(run, self._conditions, TileSet.of_mask(spread), progress)
        except BaseException:
            step.journal.undo(backend, canvases)
            raise
        self._stale = stale
        return step, run, output

    def _forward(
        self, run: Run, conditions: dict[str, Host], changed: TileSet, progress: Progress | None
    ) -> Feature:
        run.on_layer = progress
        prefix = _input_path("")
        features = {
            path.removeprefix(prefix): Feature(run, (canvas,), (changed,))
            for path, canvas in run.memory.canvases.items()
            if path.startswith(prefix)
        }
        output = self.model.forward(features, conditions)
        self._output_path = run.records[-1].path
        return output

    def _result(
        self, run: Run, output: Feature, start: float, *, edited_area: float, ignored: int = 0
    ) -> Result:
        backend = self.memory.backend
        backend.synchronize()
        elapsed = (time.perf_counter() - start) * 1e3
        values = backend.download(output.parts[0])
        journal = self._steps[-1].journal.nbytes if self._steps else 0
        stats = Stats(
            edited_area, tuple(run.records), elapsed, self.memory.nbytes, journal, ignored_pixels=ignored
        )
        return Result(self.model.picture(values), values, stats, output.changed[0])


def profile(
    model: Model,
    picture: Any,
    *,
    mask: Any = None,
    policy: str | Policy | None = None,
    **conditions: Any,
) -> Stats:
    """What a dense run (`mask` None) or an edit of `mask` would cost: tiles and MACs of every layer, nothing computed.

    `picture` only gives the size; the model needs no weights. Times in the result are meaningless.
    """
    from sparsegen.backends.shapes import ShapesBackend

    inputs = model.encode(picture, **conditions)
    shape = _mask_shape(inputs)
    difference = np.ones(shape, bool) if mask is None else _check_mask(mask, shape)
    plan: Plan = Everything() if mask is None else get_policy(policy, paper=model.paper).plan(difference)
    run = Run(Memory(ShapesBackend()), plan)
    changed = TileSet.of_mask(difference)
    features = {name: Feature(run, (array,), (changed,)) for name, array in inputs.canvases.items()}
    model.forward(features, inputs.conditions)
    return Stats(float(difference.mean()), tuple(run.records), 0.0, run.memory.nbytes)


def _input_path(name: str) -> str:
    """Where an input's canvas lies among the layers' (no layer is called `input`)."""
    return f"input.{name}"


def _mask_shape(inputs: Inputs) -> tuple[int, int, int]:
    n, h, w = next(iter(inputs.canvases.values())).shape[:3]
    return n, h, w


def _check_mask(mask: Any, shape: tuple[int, ...]) -> Host:
    """A user's mask as bool `[N, H, W]`; one `[H, W]` serves all samples."""
    array = np.asarray(mask)
    if array.dtype != bool:
        if not np.isin(array, (0, 1)).all():
            raise InputError(f"the mask is {array.dtype} with other values than 0 and 1; give booleans")
        array = array.astype(bool)
    if array.shape not in (shape, shape[1:]):
        raise ShapeError(f"the mask is {array.shape}, expected {shape[1:]} or {shape}")
    return np.broadcast_to(array, shape)
