"""SDEdit: a picture and its edited copy come in, the edit made real comes out, each denoising step recomputed in part.

The edited picture is noised and denoised again; outside the edit, every step keeps the original, noised alike (Meng et
al., "SDEdit", arXiv 2108.01073, algorithm 2, as SIGE runs it). What a network computes of the original at each step
does not depend on the edit: it is computed once and kept. Each step is a `Session` of its own, and an edit is an edit
of every step: only the tiles around the changed pixels are computed again, whatever is edited next.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from types import TracebackType
from typing import Any

import numpy as np

from sparsegen.backends.interface import TILE, Backend, Host
from sparsegen.backends.registry import get_backend
from sparsegen.weights import read_checkpoint

from ..checks import warn, warn_of_unit_range, whole_number
from ..diffusion import samplers
from ..diffusion.samplers import START, Step
from ..diffusion.settings import OnStep, Settings, settings_for
from ..editing import session_file
from ..editing.dry_run import dry_run
from ..editing.session import NOTHING_TO_REDO, Result, Session, nothing_to_undo, undo_limit, warn_forgotten
from ..engine.memory import input_path
from ..engine.memory_float16 import memory_kind
from ..engine.stats import Stats, counted, megabytes
from ..engine.store import Store, block_bytes, parse_size
from ..engine.turn import NotCopied, Turn
from ..errors import InputError, SessionError, ShapeError
from ..models.base import checked_diffusion
from ..tiling.masks import check_mask, dilated
from ..tiling.policies import Everything, Paper, Plan, Policy, get_policy
from ..tiling.tiles import TileSet
from .steps import denoised


@dataclass(frozen=True)
class CachePlan:
    """What the caches of a picture will take."""

    steps: int
    bytes_per_step: int
    """Canvases of one step."""
    ram_bytes: int
    disk_bytes: int
    disk_free: int
    """Bytes free on the disk of the cache's folder."""
    shared_bytes: int = 0
    """Canvases that all steps compute in, beside their own: of resolutions that every edit computes whole, and (float16
    storage) of all others.
    """
    undo_bytes: int = 0
    """What journals may take beside them, at most."""

    @property
    def fits(self) -> bool:
        """Whether there is room on the disk."""
        return self.disk_bytes <= self.disk_free

    def __str__(self) -> str:
        shared = f" and {self.shared_bytes / 1e6:.1f} MB for all" if self.shared_bytes else ""
        return (
            f"{self.steps} steps of {self.bytes_per_step / 1e6:.1f} MB{shared}: {self.ram_bytes / 1e9:.2f} GB in RAM, "
            f"{self.disk_bytes / 1e9:.2f} GB on disk ({self.disk_free / 1e9:.1f} GB free); to undo, up to "
            f"{self.undo_bytes / 1e9:.2f} GB"
        )


_NO_PICTURE = "no picture yet: call run(picture) first, and let it end"
_SETTINGS = "sparsegen.sdedit"
"""Name of the settings in a saved session's metadata."""


def _prefix(step: int) -> str:
    """What the names of a step's arrays begin with in a saved session."""
    return f"step.{step:05d}/"


def _ran(sides: Sequence[_Side]) -> int:
    """On how many of these ways every step's session has a step."""
    return sum(side.ran for side in sides)


_MOST_TRIES = 1000
"""Steps that a session takes at most to come to where the past stands, those included that were interrupted."""


class _PlannedOnce(Policy):
    """The `paper` policy of an edit, whose tiles are the same at every step: they are found at the first."""

    def __init__(self, policy: Paper) -> None:
        self._policy = policy
        self._plan: Plan | None = None

    def plan(self, difference: Host, *, settled: bool = True) -> Plan:
        if self._plan is None:
            self._plan = self._policy.plan(difference, settled=settled)
        return self._plan


@dataclass(frozen=True, eq=False)
class _Side:
    """The other side of an edit: before it, or after it where it was undone."""

    picture: Host
    ran: bool
    """Whether the steps' sessions have a step to undo or redo."""


@dataclass(frozen=True, eq=False)
class _Past:
    """Where a session stands among its edits; one value, so that it is never between two."""

    picture: Host
    edits: tuple[_Side, ...] = ()
    """Those that can be undone, the last one last."""
    undone: tuple[_Side, ...] = ()
    """Those that can be made again, the next one last."""
    forgotten: int = 0
    """Edits since the last run that can no longer be undone."""
    complete: bool = True
    """Whether every step has run on the picture."""
    editing: bool = False
    """Whether an edit is under way, which is to be taken back where it does not end."""


class SDEdit(NotCopied):
    """An editing session of a picture with a diffusion model.

    Parameters
    ----------
    model
        A network of `sparsegen.models`: DDPM or ProgressiveDistillation.
    steps, noise_level, sampler, schedule, clip, seed
        As in `Settings`; None: the model's own (`Model.sampling`), else the family's default.
    margin
        Pixels around an edit that are made anew with it (by a cross, as SIGE dilates); None: the family's.
    backend
        As for `Session`; one whose arrays lie in main memory.
    ram
        RAM that the canvases of all steps may take, such as "4GB"; the rest goes into files. None: no limit.
    folder
        Where these files go; None: the system's folder for temporary files.
    storage
        "float32", or "float16": the caches take half, beside one step's in float32 that all steps compute in. Edits of
        `landscape-ddpm` keep within 92 dB of float32's, where they differ at all, and take about a twentieth longer.
    undo
        As for `Session`, over all steps. With `ram`, journals too lie in RAM up to that budget, then in files.

    options
        Options of the sampler, such as `eta` of ddim; None: their defaults.

    Threads may share a session: they take turns. A callback may read the session that calls it, not change it.

    Raises
    ------
    InputError, BackendError
        An option cannot be used; says which and why.
    """

    not_copied = "save(path) it, and SDEdit.load(path) as often as you like"

    def __init__(
        self,
        model: Any,
        *,
        steps: int | None = None,
        noise_level: int | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        clip: float | None = 1.0,
        seed: samplers.Seed = 0,
        margin: int | None = None,
        backend: str | Backend | None = None,
        ram: int | str | None = None,
        folder: str | os.PathLike[str] | None = None,
        storage: str = "float32",
        undo: int | str | None = None,
        **options: Any,
    ) -> None:
        diffusion = checked_diffusion(model, "SDEdit needs a diffusion model", "use Session")
        self.model = model
        self.settings = settings_for(
            diffusion,
            model.sampling,
            steps=steps,
            noise_level=noise_level,
            sampler=sampler,
            schedule=schedule,
            clip=clip,
            seed=seed,
            **options,
        )
        chosen = model.paper.dilation if margin is None else margin
        self.margin = whole_number("margin", chosen, 0, unit="of pixels")
        self.times = self.settings.times()
        self.noise_schedule = self.settings.noise_schedule()
        self.backend = get_backend(backend)
        self.store = Store(ram, folder)
        memory_kind(storage)
        self.storage = storage
        self._undo = parse_size(undo)
        self._sessions: list[Session] = []
        self._past: _Past | None = None
        self.notes: session_file.Notes = {}
        """What else `save` is to keep for the user, by name: text and arrays."""

    @property
    def _turn(self) -> Turn:
        return self.store.turn

    def __repr__(self) -> str:
        s = self.settings
        how = f"{s.sampler}, {len(self.times)} steps from noise level {s.noise_level}, seed {s.seed}"
        lines = [f"<SDEdit of {self.model!r}", f"  on {self.backend!r}", f"  {how}"]
        if self._past is None:
            return "\n".join([*lines, "  no picture yet: call run(picture)>"])
        n, height, width, _ = self._past.picture.shape
        lines.append(f"  {n} of {height}×{width}, caches {megabytes(self._cache_nbytes())}")
        journals = sum(session.journal_nbytes for session in list(self._sessions))
        undoing = f"{counted(self.edits, 'edit')} to undo, {self.undone} to redo"
        return "\n".join([*lines, f"  {undoing}, journals {megabytes(journals)}>"])

    # -- what it takes -----------------------------------------------------------------------------------

    def cache_plan(self, picture: Any) -> CachePlan:
        """What the caches of a picture of this size will take, in RAM and on disk; nothing is computed.

        Raises
        ------
        InputError, ShapeError
        """
        each, shared = self._blocks(self._encode(picture))
        blocks = shared + each * len(self.times)
        in_ram = self.store.ram_of(blocks)
        return CachePlan(
            len(self.times),
            sum(each),
            in_ram,
            sum(blocks) - in_ram,
            self.store.disk_free(),
            sum(shared),
            undo_limit(self._undo, sum(blocks)),
        )

    def _blocks(self, x: Host) -> tuple[list[int], list[int]]:
        """Bytes of the canvases that each step keeps, and of those that all steps share."""
        inputs = self.model.encode(x, **self._at(self.times[0]))
        full = TileSet.full(*inputs.shape)
        memory = memory_kind(self.storage)(self.backend)
        dry = dry_run(self.model, inputs, Everything(), full).memory
        each, shared = [], [block_bytes(canvas.nbytes) for canvas in dry.transients.values()]
        for path, canvas in dry.canvases.items():
            kept = np.dtype(memory.kept_as(path, canvas.shape, str(canvas.dtype)))
            each.append(block_bytes(canvas.size * kept.itemsize))
            if kept != canvas.dtype:
                shared.append(block_bytes(canvas.nbytes))
        return each, shared

    # -- running -----------------------------------------------------------------------------------------

    def run(self, picture: Any, *, on_step: OnStep | None = None) -> Result:
        """Compute and keep what the network makes of a picture at every step; the picture comes out as it is.

        Parameters
        ----------
        picture
            uint8 `[H, W, 3]` or `[N, H, W, 3]`, or floats in [-1, 1] of that shape.
        on_step
            Called after every step.

        Raises
        ------
        InputError, ShapeError, SessionError
            The picture does not fit, or the caches do not fit the RAM and the disk; the session stays as it was.
        NonFiniteError
            A layer computed NaN or infinity; the session must `run` again.
        """
        with self._turn.change("run"):
            try:
                return self._run(picture, on_step)
            finally:
                if self._past is not None and not self._past.complete:
                    self._past = None

    def _run(self, picture: Any, on_step: OnStep | None) -> Result:
        start = time.perf_counter()
        x0 = self._encode(picture)
        noise = samplers.noise(self.settings.seed, START, x0.shape)
        if self._past is None or self._past.picture.shape != x0.shape:
            each, shared = self._blocks(x0)
            self.store.check_room(shared + each * len(self.times), released=self._kept_bytes())
            self._sessions.clear()
        x0.flags.writeable = False  # it is shown, and stays
        self._past = _Past(x0, complete=False)
        results = []
        while len(self._sessions) < len(self.times):
            self._sessions.append(Session(self.model, self.backend, store=self.store, storage=self.storage))
        ends: list[float | None] = [*self.times[1:], None]
        for i, (session, now, after) in enumerate(zip(self._sessions, self.times, ends, strict=True)):
            x = self.noise_schedule.noised(x0, noise, now)
            results.append(session._paint(x, **self._at(now)))
            self.store.settle()
            if on_step is not None:
                on_step(Step(i, len(self.times), now, after, x, x0))
        self._past = _Past(x0)
        return self._result(results, x0, start, TileSet.full(*x0.shape[:3]), self._past, edited_area=1.0)

    def edit(
        self,
        picture: Any,
        *,
        mask: Any = None,
        policy: str | Policy | None = None,
        on_step: OnStep | None = None,
    ) -> Result:
        """Make real what differs from the current picture; the result becomes the base of the next edit.

        Pixels further than `margin` from the edit stay as they are, bit for bit.

        Parameters
        ----------
        picture
            The whole edited picture, as for `run` and of the same size; painted, say, over the last result's `image`.
        mask
            bool `[H, W]` or `[N, H, W]`: the pixels to make anew. None: those that differ by more than the family's
            eps. Changes outside a mask are not applied; `stats.ignored_pixels` counts them, and a warning says so.
        policy
            As for `Session.edit`; under "paper", the region that is made anew is not dilated once more.
        on_step
            Called after every step.

        Raises
        ------
        InputError, ShapeError, SessionError, NonFiniteError
            The session stays as it was, also when the edit is interrupted before it is done.
        """
        with self._turn.change("edit"):
            return self._edit(picture, mask, policy, on_step)

    def _edit(self, picture: Any, mask: Any, policy: str | Policy | None, on_step: OnStep | None) -> Result:
        start = time.perf_counter()
        before, x0, difference, ignored = self._difference(picture, mask)
        chosen = get_policy(policy, paper=self.model.paper)
        if isinstance(chosen, Paper):
            chosen = _PlannedOnce(dataclasses.replace(chosen, dilation=0))
        region = self._region(difference)
        results: list[Result] = []

        def compute(i: int, x: Host, now: float) -> Host:
            results.append(self._sessions[i]._repaint(x, mask=region, policy=chosen, keep_history=True))
            self.store.settle()
            return results[-1].output

        past = self._ready()
        self._past = dataclasses.replace(past, editing=True)
        try:
            painted = self._denoise(x0, before, region, compute, on_step) if region.any() else before
            active = results[-1].active if results else TileSet.empty(*x0.shape[:3])
            edits = (*past.edits, _Side(before, ran=bool(results)))
            after = self._within_budget(_Past(painted, edits, forgotten=past.forgotten))
            result = self._result(
                results, painted, start, active, after, edited_area=difference.mean(), ignored=ignored
            )
            self._past = after
        except BaseException:
            self._align()
            raise
        self._align()
        return result

    def _within_budget(self, past: _Past) -> _Past:
        """The past without its oldest edits, as many as do not fit; whoever edits is told."""
        limit, forgotten = undo_limit(self._undo, self._cache_nbytes()), 0
        while self._journal_nbytes(past) > limit and len(past.edits) > 1:
            past = dataclasses.replace(past, edits=past.edits[1:], forgotten=past.forgotten + 1)
            forgotten += 1
        if forgotten:
            warn_forgotten(forgotten, limit)
        return past

    def dense(self, picture: Any, *, mask: Any = None, on_step: OnStep | None = None) -> Result:
        """What `edit` would give if every step ran the whole network: the yardstick. The session stays as it is.

        It computes in float32, however the caches are kept.
        Its norms measure the edited picture; in an edit, they keep what they measured of the original.

        Raises
        ------
        InputError, ShapeError, SessionError, NonFiniteError
            The session is untouched.
        """
        with self._turn.change("dense"):
            return self._dense(picture, mask, on_step)

    def _dense(self, picture: Any, mask: Any, on_step: OnStep | None) -> Result:
        start = time.perf_counter()
        before, x0, difference, ignored = self._difference(picture, mask)
        scratch = Session(self.model, self.backend, store=Store())
        results = []

        def compute(i: int, x: Host, now: float) -> Host:
            results.append(scratch._paint(x, record=False, **self._at(now)))
            return results[-1].output

        painted = self._denoise(x0, before, self._region(difference), compute, on_step)
        full = TileSet.full(*x0.shape[:3])
        return self._result(
            results, painted, start, full, self._known(), edited_area=difference.mean(), ignored=ignored
        )

    def undo(self) -> Result:
        """Put back the picture and all that the last edit overwrote, bit for bit. As often as `edits` says.

        An interrupt waits until it is done.

        Raises
        ------
        SessionError
            There is nothing to undo, or a callback of this session asked.
        """
        with self._turn.change("undo"):
            start, past = time.perf_counter(), self._ready()
            if not past.edits:
                raise nothing_to_undo(past.forgotten)
            *edits, side = past.edits
            undone = (*past.undone, _Side(past.picture, side.ran))
            self._past = _Past(side.picture, tuple(edits), undone, past.forgotten)
            self._align()
            return self._exchanged(start, past.picture)

    def redo(self) -> Result:
        """Put back what the last undo overwrote, bit for bit. As often as there were undos since the last edit or run.

        An interrupt waits until it is done.

        Raises
        ------
        SessionError
            There is nothing to redo, or a callback of this session asked.
        """
        with self._turn.change("redo"):
            start, past = time.perf_counter(), self._ready()
            if not past.undone:
                raise SessionError(NOTHING_TO_REDO)
            *undone, side = past.undone
            inverses: list[session_file.Step] = []
            if side.ran:  # all of them before anything is touched: there may be no memory for them
                inverses = [session._inverse(session.state.undone[-1]) for session in self._sessions]
            edits = (*past.edits, _Side(past.picture, side.ran))
            self._past = _Past(side.picture, edits, tuple(undone), past.forgotten)
            self._align(inverses)
            return self._exchanged(start, past.picture)

    def _exchanged(self, start: float, before: Host) -> Result:
        """The result of an undo or redo."""
        past = self._known()
        changed = TileSet.of_mask((before != past.picture).any(-1))
        return self._result([], past.picture, start, changed, past, edited_area=0.0)

    @property
    def edits(self) -> int:
        """How many edits can be undone."""
        return 0 if self._past is None else len(self._past.edits)

    @property
    def undone(self) -> int:
        """How many edits can be made again with `redo`."""
        return 0 if self._past is None else len(self._past.undone)

    @property
    def image(self) -> Host:
        """The first picture as it stands, uint8 `[H, W, 3]`; while something changes, as it was before. Nobody waits.

        Raises SessionError: nothing has run yet.
        """
        past = self._past
        if past is None:
            raise SessionError(_NO_PICTURE)
        return np.asarray(self.model.picture(past.picture)[0])

    # -- files and the end -------------------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        """Write the whole session (network, caches of all steps, undo) to one file, or leave the old file whole.

        It takes as much as the caches and the weights do. `progress(done, total, name)` is called after each array.

        Raises
        ------
        SessionError, CheckpointError
            Nothing has run yet; the file could not be written; a callback of this session asked.
        """
        with self._turn.change("save"):
            self._save(path, progress)

    def _save(self, path: str | os.PathLike[str], progress: Callable[[int, int, str], None] | None) -> None:
        past = self._ready()
        sides = [*past.edits, *past.undone]
        kept = {"picture": past.picture} | {f"history.{i:05d}": side.picture for i, side in enumerate(sides)}
        described = {
            **self.settings.described(),
            "margin": self.margin,
            "storage": self.storage,
            "ran": [side.ran for side in sides],
            "edits": len(past.edits),
            "forgotten": past.forgotten,
        }
        states = {_prefix(i): session.state for i, session in enumerate(self._sessions)}
        session_file.save(
            path,
            states,
            metadata={_SETTINGS: json.dumps(described)},
            tensors=kept,
            notes=self.notes,
            progress=progress,
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str | Backend | None = None,
        ram: int | str | None = None,
        folder: str | os.PathLike[str] | None = None,
        undo: int | str | None = None,
    ) -> SDEdit:
        """Continue a saved session: the same bits, the same undo and redo.

        Raises
        ------
        SessionError, CheckpointError, InputError
            The file is cut, altered, of another kind or of a newer version; the caches do not fit.
        """
        store = Store(ram, folder)
        loaded = session_file.load(path, get_backend(backend), store)
        try:
            described = json.loads(loaded.metadata[_SETTINGS])
            ran, margin = described.pop("ran"), described.pop("margin")
            storage, edits = described.pop("storage"), described.pop("edits")
            forgotten = int(described.pop("forgotten"))
            settings = Settings.read(described).checked()  # these names and no others
            pipeline = cls(
                loaded.model,
                margin=margin,
                backend=backend,
                storage=storage,
                undo=undo,
                **settings.described(),
            )
            pictures = [loaded.tensors[f"history.{i:05d}"] for i in range(len(ran))]
            picture = loaded.tensors["picture"]
            sides = tuple(_Side(each, bool(moved)) for each, moved in zip(pictures, ran, strict=True))
            if not isinstance(edits, int) or not 0 <= edits <= len(sides):
                raise ValueError(f"{edits} of {len(sides)} edits can be undone")
            past = pipeline._past = _Past(picture, sides[:edits], sides[edits:], max(forgotten, 0))
            states = [loaded.states.pop(_prefix(i)) for i in range(len(pipeline.times))]
            if loaded.states:
                raise ValueError(f"{len(loaded.states)} steps too many")
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise SessionError(f"{path}: the file does not describe an SDEdit session ({error})") from None
        pipeline.store, pipeline.notes = store, loaded.notes
        pipeline._sessions = [Session.of_state(state, path) for state in states]
        shape = picture.shape
        for session, before in zip(pipeline._sessions, pipeline.times, strict=True):
            fits = (
                session.memory.canvases[input_path("x")].shape == shape
                and session.memory.storage == pipeline.storage
                and session.edits == _ran(past.edits)
                and session.undone == _ran(past.undone)
                and list(session.state.conditions) == [pipeline.model.time]
                and np.array_equal(
                    session.state.conditions[pipeline.model.time], np.array([before], np.float32)
                )
            )
            if not fits:
                raise SessionError(f"{path}: its steps do not belong together")
        if any(p.shape != shape or p.dtype != np.float32 for p in (picture, *pictures)):
            raise SessionError(f"{path}: its pictures are not of one shape")
        return pipeline

    def close(self) -> None:
        """Forget everything; the caches' files are gone with it. (They also are when the process ends.)"""
        with self._turn.change("close"):
            self._past = None
            self._sessions.clear()
            self.store.close()

    def __enter__(self) -> SDEdit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------------------

    def _at(self, time: float) -> dict[str, Any]:
        """The condition that tells the network its time."""
        return {self.model.time: time}

    def _base(self) -> Host:
        return self._known().picture

    def _known(self) -> _Past:
        if self._past is None or not self._past.complete:
            raise SessionError(_NO_PICTURE)
        return self._past

    def _ready(self) -> _Past:
        """Where we stand, once every step's session stands there too (an interrupt may have come between)."""
        past = self._known()
        self._align()
        return past

    def _encode(self, picture: Any) -> Host:
        """A user's picture as float32 `[N, H, W, C]` in [-1, 1]."""
        try:
            array = np.asarray(picture)
        except ValueError:
            raise InputError("the picture is no array: its rows are not of one length") from None
        channels = self.model.config.in_channels
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4 or not len(array) or array.shape[3] != channels:
            raise ShapeError(
                f"the picture is {np.shape(picture)}, expected [H, W, {channels}] or [N, H, W, {channels}]"
            )
        self.model.check_size(*array.shape[1:3])
        if array.dtype == np.uint8:
            return np.asarray(array.astype(np.float32) / np.float32(127.5) - 1)
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"the picture is {array.dtype}, expected uint8, or floats in [-1, 1]")
        if not np.isfinite(array).all() or np.abs(array).max() > 1 + 1e-3:
            raise InputError("the picture holds values outside [-1, 1]")
        warn_of_unit_range(array)
        return np.asarray(np.clip(array, -1, 1), np.float32, order="C")

    def _difference(self, picture: Any, mask: Any) -> tuple[Host, Host, Host, int]:
        """(the current picture, the edited one, bool `[N, H, W]`: what to make anew, pixels that are left out)."""
        before, x0 = self._ready().picture, self._encode(picture)
        if x0.shape != before.shape:
            raise ShapeError(f"the edited picture is {x0.shape[:3]}, the base {before.shape[:3]} (N, H, W)")
        difference = (np.abs(x0 - before) > self.model.eps).any(-1)
        if mask is None:
            return before, x0, difference, 0
        given = check_mask(mask, before.shape[:3])
        ignored = int(np.count_nonzero(difference & ~given))
        if ignored:
            warn(f"{ignored} changed pixels lie outside the mask and are not applied")
        return before, np.where(given[..., None], x0, before), given, ignored

    def _region(self, difference: Host) -> Host:
        """bool `[N, H, W]`: the pixels that are made anew."""
        changed = TileSet.of_mask(difference)
        if not changed.count:
            return difference
        n, row, column = changed.first
        margin = min(self.margin, max(changed.height, changed.width))  # further is outside, whatever the edit
        return dilated(changed.shape, changed.box, (n, row * TILE, column * TILE), margin).mask()

    def _denoise(
        self,
        x0: Host,
        before: Host,
        region: Host,
        compute: Callable[[int, Host, float], Host],
        on_step: OnStep | None,
    ) -> Host:
        """The picture that x0 becomes in `region`; `compute(i, x, time)` gives the network's output at step i."""
        held = ~region
        x = self._held(0)
        noise = samplers.noise(self.settings.seed, START, x0.shape)
        x[region] = self.noise_schedule.noised(x0, noise, self.times[0])[region]

        for step in denoised(self.model, self.settings, compute, x):
            if step.next_timestep is None:
                np.clip(step.x, -1, 1, out=step.x)
                step.x[held] = before[held]
            else:
                step.x[held] = self._held(step.index + 1)[held]
            x = step.x
            if on_step is not None:
                on_step(dataclasses.replace(step, x=x.copy()))
        return x

    def _held(self, i: int) -> Host:
        """A copy of what the network reads at step i."""
        session = self._sessions[i]
        return session.memory.backend.download(session.memory.canvases[input_path("x")])

    def _kept_bytes(self) -> int:
        """What the store has back once the sessions are gone: no less than that."""
        kept = self.store.shared_bytes
        for session in self._sessions:
            canvases = session.memory.canvases.items()
            kept += sum(int(canvas.nbytes) for path, canvas in canvases if path != input_path("x"))
        return kept

    def _align(self, inverses: Sequence[session_file.Step] = ()) -> None:
        """Bring every step's session to where the past stands; what interrupts waits for the end.

        `inverses` are those of every session's next step forward, where they are known.

        Raises
        ------
        MemoryError, SessionError
            There is no memory to keep what a redo overwrites.
        """
        past = self._known()
        edits, undone = _ran(past.edits), _ran(past.undone)
        interrupt: BaseException | None = None
        for session, inverse in zip_longest(self._sessions, inverses):
            for _ in range(_MOST_TRIES):
                try:
                    session._settled()
                    excess = session.edits + session.undone - edits - undone
                    if past.editing and session.edits > edits:
                        session._take_back()
                    elif excess > 0 and session.undone > undone:
                        session._keep_undone(undone)
                    elif excess > 0:
                        session._forget_oldest(excess)
                    elif session.edits > edits:
                        session._step_back()
                    elif session.edits < edits:
                        session._step_forward(inverse)
                    else:
                        break
                except (MemoryError, SessionError):
                    raise
                except BaseException as error:
                    interrupt = error
            else:
                raise interrupt or AssertionError("a step's session does not come to where the past stands")
        kept = all(session.undone == undone for session in self._sessions)  # there was memory to keep it
        if past.editing or not kept:
            self._past = dataclasses.replace(past, editing=False, undone=past.undone if kept else ())
        if not kept:
            for session in self._sessions:
                session._keep_undone(0)
        if interrupt is not None:
            raise interrupt

    def _cache_nbytes(self) -> int:
        """Memory of the canvases of all steps, in RAM and in files."""
        return sum(session.memory.nbytes for session in self._sessions) + self.store.shared_bytes

    def _journal_nbytes(self, past: _Past) -> int:
        """Memory that undoing and redoing what is in the `past` takes, at all steps (which may still have more)."""
        pictures = sum(int(side.picture.nbytes) for side in (*past.edits, *past.undone))
        edits, undone = _ran(past.edits), _ran(past.undone)
        journals = 0
        for session in self._sessions:
            history = session.state.history
            first, next_one = max(len(history.steps) - edits, 0), max(len(history.undone) - undone, 0)
            steps = (*history.steps[first:], *history.undone[next_one:])
            journals += sum(step.journal.nbytes for step in steps)
        return pictures + journals

    def _result(
        self,
        results: list[Result],
        picture: Host,
        start: float,
        active: TileSet,
        past: _Past,
        *,
        edited_area: float,
        ignored: int = 0,
    ) -> Result:
        """What a change gives that ends at `past`."""
        stats = Stats(
            float(edited_area),
            tuple(record for result in results for record in result.stats.layers),
            (time.perf_counter() - start) * 1e3,
            self._cache_nbytes(),
            journal_bytes=sum(result.stats.journal_bytes for result in results),
            ignored_pixels=ignored,
            undo_edits=len(past.edits),
            undo_bytes=self._journal_nbytes(past),
            forgotten_edits=past.forgotten,
        )
        return Result(self.model.picture(picture), picture.copy(), stats, active)


def open_session(
    path: str | os.PathLike[str],
    backend: str | Backend | None = None,
    *,
    ram: int | str | None = None,
    folder: str | os.PathLike[str] | None = None,
    undo: int | str | None = None,
) -> Session | SDEdit:
    """Continue a saved session of either kind; `ram` and `folder` are for one of several steps.

    Raises
    ------
    SessionError, CheckpointError, InputError
        As `Session.load` and `SDEdit.load`; the file is no session at all.
    """
    with read_checkpoint(path) as file:
        several = _SETTINGS in file.metadata
    if several:
        return SDEdit.load(path, backend=backend, ram=ram, folder=folder, undo=undo)
    return Session.load(path, backend, undo=undo)
