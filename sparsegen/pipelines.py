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
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from sparsegen.backends.interface import TILE, Backend, Host
from sparsegen.backends.registry import get_backend

from . import samplers, schedules, session_file
from .checks import warn_of_unit_range
from .errors import InputError, SessionError, ShapeError
from .halves import memory_kind
from .masks import dilated
from .memory import input_path
from .models.unet import UNet
from .policies import Everything, Paper, Plan, Policy, get_policy
from .profiling import check_mask, dry_run
from .samplers import START, Step
from .session import Result, Session
from .stats import Stats
from .store import Store, block_bytes
from .tiles import TileSet

OnStep = Callable[[Step], None]
"""Called after every denoising step: `step.x` is a copy of what there is, `step.x0` a preview in [-1, 1]."""


@dataclass(frozen=True)
class Settings:
    """How an SDEdit denoises; what a family's `sampling` gives is the default."""

    steps: int
    """Denoising steps. (Progressive distillation: those of the whole way from noise; `noise_level` are taken.)"""
    noise_level: int
    """Where the edited picture enters: as noisy as after so many of the 1000 timesteps (of the `steps`)."""
    sampler: str
    eta: float = 0.0
    """DDIM's share of fresh noise in each step, 0 to 1."""
    schedule: str = "linear"
    """How noise grows over the timesteps: linear, scaled_linear, cosine."""
    clip: float | None = 1.0
    """Predicted pictures are cut to ±clip; None: they are not."""
    seed: int = 0

    def plain(self) -> Settings:
        """The same in Python's own numbers, whatever kind was given: a file of text keeps them."""
        clip = None if self.clip is None else float(self.clip)
        return dataclasses.replace(
            self,
            steps=int(self.steps),
            noise_level=int(self.noise_level),
            eta=float(self.eta),
            clip=clip,
            seed=int(self.seed),
        )

    def noise_schedule(self) -> schedules.NoiseSchedule:
        """The schedule by its name."""
        if self.sampler == "pd":
            return schedules.CosineLogSNR()
        return schedules.schedule(self.schedule)

    def times(self) -> list[float]:
        """The time at which the network is asked in each step. Raises InputError: steps or noise level out of range."""
        scheme = self.noise_schedule()
        if isinstance(scheme, schedules.CosineLogSNR):
            return [float(t) for t in scheme.times(self.steps, self.noise_level)]
        assert isinstance(scheme, schedules.Schedule)
        layout: Mapping[str, Any] = samplers.LAYOUT.get(self.sampler, {})
        times = schedules.timesteps(len(scheme), self.steps, noise_level=self.noise_level, **layout)
        return [float(t) for t in times]


DEFAULTS = {
    "ddpm": Settings(steps=25, noise_level=500, sampler="ddim"),
    "pd": Settings(steps=8, noise_level=5, sampler="pd"),
}
"""Family -> SIGE's settings: DDIM, every 20th of 500 timesteps; five of progressive distillation's eight steps."""


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

    @property
    def fits(self) -> bool:
        """Whether there is room on the disk."""
        return self.disk_bytes <= self.disk_free

    def __str__(self) -> str:
        shared = f" and {self.shared_bytes / 1e6:.1f} MB for all" if self.shared_bytes else ""
        return (
            f"{self.steps} steps of {self.bytes_per_step / 1e6:.1f} MB{shared}: {self.ram_bytes / 1e9:.2f} GB in RAM, "
            f"{self.disk_bytes / 1e9:.2f} GB on disk ({self.disk_free / 1e9:.1f} GB free)"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


_SETTINGS = "sparsegen.sdedit"
"""Name of the settings in a saved session's metadata."""


def _prefix(step: int) -> str:
    """What the names of a step's arrays begin with in a saved session."""
    return f"step.{step:05d}/"


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
class _Before:
    """What an edit replaced."""

    picture: Host
    ran: bool
    """Whether the steps' sessions have a step to undo."""


class SDEdit:
    """An editing session of a picture with a diffusion model.

    Parameters
    ----------
    model
        A network of `sparsegen.models`: DDPM or ProgressiveDistillation.
    steps, noise_level, sampler, eta, schedule, clip, seed
        As in `Settings`; None: the model's own (`Model.sampling`), else the family's default.
    margin
        Pixels around an edit that are made anew with it (by a cross, as SIGE dilates); None: the family's.
    backend
        As for `Session`; one whose arrays lie in main memory.
    cache
        RAM that the canvases of all steps may take, such as "4GB"; the rest goes into files. None: no limit.
    folder
        Where these files go; None: the system's folder for temporary files.
    storage
        "float32", or "float16": the caches take half, beside one step's in float32 that all steps compute in. Edits of
        `landscape-ddpm` keep within 92 dB of float32's, where they differ at all, and take about a twentieth longer.

    Raises
    ------
    InputError, BackendError
        An option cannot be used; says which and why.
    """

    def __init__(
        self,
        model: Any,
        *,
        steps: int | None = None,
        noise_level: int | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        schedule: str | None = None,
        clip: float | None = 1.0,
        seed: int = 0,
        margin: int | None = None,
        backend: str | Backend | None = None,
        cache: int | str | None = None,
        folder: str | os.PathLike[str] | None = None,
        storage: str = "float32",
    ) -> None:
        if not isinstance(model, UNet):
            raise InputError(
                f"SDEdit needs a diffusion model, {getattr(model, 'family', model)!r} is none; use Session"
            )
        given: dict[str, Any] = {
            "steps": steps, "noise_level": noise_level, "sampler": sampler, "eta": eta, "schedule": schedule,
        }  # fmt: skip
        self.model = model
        self.settings = dataclasses.replace(
            DEFAULTS[model.family],
            clip=clip,
            seed=seed,
            **{**model.sampling, **{name: value for name, value in given.items() if value is not None}},
        )
        samplers.get_sampler(self.settings.sampler)
        if not _is_number(self.settings.eta) or not 0 <= self.settings.eta <= 1:
            raise InputError(f"eta is {self.settings.eta!r}, expected a number from 0 to 1")
        if clip is not None and (not _is_number(clip) or not clip > 0):
            raise InputError(f"clip is {clip!r}, expected None or a number above 0, such as 1")
        if (self.settings.sampler == "pd") != (model.family == "pd"):
            raise InputError(
                f"sampler {self.settings.sampler!r} does not go with a {model.family} network; "
                f"choose {'pd' if model.family == 'pd' else 'one of ddim, ddpm, dpm++2m, euler'}"
            )
        chosen = model.paper.dilation if margin is None else margin
        if not _is_number(chosen) or not isinstance(chosen, int | np.integer) or chosen < 0:
            raise InputError(f"margin is {margin!r}, expected a number of pixels, 0 or more")
        self.margin = int(chosen)
        self.times = self.settings.times()
        self.noise_schedule = self.settings.noise_schedule()
        samplers.noise(seed, START, (1,))  # a seed that cannot be used is said now
        self.settings = self.settings.plain()
        self.backend = get_backend(backend)
        self.store = Store(cache, folder)
        memory_kind(storage)
        self.storage = storage
        self._sessions: list[Session] = []
        self._picture: Host | None = None
        self._history: list[_Before] = []

    # -- what it takes -----------------------------------------------------------------------------------

    def plan(self, picture: Any) -> CachePlan:
        """What the caches of a picture of this size will take, in RAM and on disk; nothing is computed.

        Raises
        ------
        InputError, ShapeError
        """
        each, shared = self._blocks(self._encode(picture))
        blocks = shared + each * len(self.times)
        in_ram = self.store.ram_of(blocks)
        return CachePlan(
            len(self.times), sum(each), in_ram, sum(blocks) - in_ram, self.store.disk_free(), sum(shared)
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
        start = time.perf_counter()
        x0 = self._encode(picture)
        if self._picture is None or self._picture.shape != x0.shape:
            each, shared = self._blocks(x0)
            self.store.check_room(shared + each * len(self.times), released=self._kept_bytes())
            self._sessions.clear()
        self._picture, self._history = None, []
        x0.flags.writeable = False  # it is shown, and stays
        noise = samplers.noise(self.settings.seed, START, x0.shape)
        results = []
        while len(self._sessions) < len(self.times):
            self._sessions.append(Session(self.model, self.backend, store=self.store, storage=self.storage))
        ends: list[float | None] = [*self.times[1:], None]
        for i, (session, now, after) in enumerate(zip(self._sessions, self.times, ends, strict=True)):
            x = self.noise_schedule.noised(x0, noise, now)
            results.append(session.run(x, **self._at(now)))
            self.store.settle()
            if on_step is not None:
                on_step(Step(i, len(self.times), now, after, x, x0))
        self._picture = x0
        return self._result(results, x0, start, TileSet.full(*x0.shape[:3]), edited_area=1.0)

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
            The session stays as it was, also when the edit is interrupted.
        """
        start = time.perf_counter()
        before, x0, difference, ignored = self._difference(picture, mask)
        chosen = get_policy(policy, paper=self.model.paper)
        if isinstance(chosen, Paper):
            chosen = _PlannedOnce(dataclasses.replace(chosen, dilation=0))
        region = self._region(difference)
        results: list[Result] = []

        def compute(i: int, x: Host, now: float) -> Host:
            results.append(self._sessions[i].edit(x, mask=region, policy=chosen))
            self.store.settle()
            return results[-1].output

        try:
            painted = self._denoise(x0, before, region, compute, on_step) if region.any() else before
            active = results[-1].active if results else TileSet.empty(*x0.shape[:3])
            result = self._result(
                results, painted, start, active, edited_area=difference.mean(), ignored=ignored
            )
        except BaseException:
            self._take_back(self._ran)
            raise
        self._history.append(_Before(before, ran=bool(results)))
        self._picture = painted
        return result

    def dense(self, picture: Any, *, mask: Any = None, on_step: OnStep | None = None) -> Result:
        """What `edit` would give if every step ran the whole network: the yardstick. The session stays as it is.

        It computes in float32, however the caches are kept.
        Its norms measure the edited picture; in an edit, they keep what they measured of the original.
        """
        start = time.perf_counter()
        before, x0, difference, ignored = self._difference(picture, mask)
        scratch = Session(self.model, self.backend, store=Store())
        results = []

        def compute(i: int, x: Host, now: float) -> Host:
            results.append(scratch.run(x, record=False, **self._at(now)))
            return results[-1].output

        painted = self._denoise(x0, before, self._region(difference), compute, on_step)
        full = TileSet.full(*x0.shape[:3])
        return self._result(results, painted, start, full, edited_area=difference.mean(), ignored=ignored)

    def undo(self) -> Result:
        """Put back the picture and all that the last edit overwrote, bit for bit. As often as there were edits.

        Interrupted, it first puts everything back.
        """
        start = time.perf_counter()
        current = self._base()
        if not self._history:
            raise SessionError("nothing to undo: no edit since the last run")
        last = self._history.pop()
        self._picture = last.picture
        self._take_back(self._ran)
        changed = TileSet.of_mask((current != last.picture).any(-1))
        return self._result([], last.picture, start, changed, edited_area=0.0)

    @property
    def edits(self) -> int:
        """How many edits can be undone."""
        return len(self._history)

    @property
    def image(self) -> Host:
        """The first picture as it stands, uint8 `[H, W, 3]`."""
        return np.asarray(self.model.picture(self._base())[0])

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
            Nothing has run yet; the file could not be written.
        """
        picture = self._base()
        kept = {"picture": picture} | {
            f"history.{i:05d}": before.picture for i, before in enumerate(self._history)
        }
        described = {
            **dataclasses.asdict(self.settings),
            "margin": self.margin,
            "storage": self.storage,
            "ran": [before.ran for before in self._history],
        }
        states = {_prefix(i): session.state for i, session in enumerate(self._sessions)}
        session_file.save(
            path, states, metadata={_SETTINGS: json.dumps(described)}, tensors=kept, progress=progress
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str | Backend | None = None,
        cache: int | str | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> SDEdit:
        """Continue a saved session: the same bits, the same undo.

        Raises
        ------
        SessionError, CheckpointError, InputError
            The file is cut, altered, of another kind or of a newer version; the caches do not fit.
        """
        store = Store(cache, folder)
        loaded = session_file.load(path, get_backend(backend), store)
        try:
            described = json.loads(loaded.metadata[_SETTINGS])
            ran, margin = described.pop("ran"), described.pop("margin")
            storage = described.pop("storage")
            settings = Settings(**described)  # these names and no others
            pipeline = cls(
                loaded.model, margin=margin, backend=backend, storage=storage, **dataclasses.asdict(settings)
            )
            pictures = [loaded.tensors[f"history.{i:05d}"] for i in range(len(ran))]
            pipeline._picture = loaded.tensors["picture"]
            pipeline._history = [
                _Before(picture, bool(each)) for picture, each in zip(pictures, ran, strict=True)
            ]
            states = [loaded.states.pop(_prefix(i)) for i in range(len(pipeline.times))]
            if loaded.states:
                raise ValueError(f"{len(loaded.states)} steps too many")
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise SessionError(f"{path}: the file does not describe an SDEdit session ({error})") from None
        pipeline.store = store
        pipeline._sessions = [Session.of_state(state, path) for state in states]
        shape = pipeline._picture.shape
        for session, before in zip(pipeline._sessions, pipeline.times, strict=True):
            fits = (
                session.memory.canvases[input_path("x")].shape == shape
                and session.memory.storage == pipeline.storage
                and session.edits == pipeline._ran
                and list(session.state.conditions) == [pipeline.model.time]
                and np.array_equal(
                    session.state.conditions[pipeline.model.time], np.array([before], np.float32)
                )
            )
            if not fits:
                raise SessionError(f"{path}: its steps do not belong together")
        if any(p.shape != shape or p.dtype != np.float32 for p in (pipeline._picture, *pictures)):
            raise SessionError(f"{path}: its pictures are not of one shape")
        return pipeline

    def close(self) -> None:
        """Forget everything; the caches' files are gone with it. (They also are when the process ends.)"""
        self._picture, self._history = None, []
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
        if self._picture is None:
            raise SessionError("no picture to edit: call run(picture) first")
        self._take_back(self._ran)  # what an undo left that was interrupted
        return self._picture

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
        warn_of_unit_range(array, stacklevel=3)
        return np.asarray(np.clip(array, -1, 1), np.float32, order="C")

    def _difference(self, picture: Any, mask: Any) -> tuple[Host, Host, Host, int]:
        """(the current picture, the edited one, bool `[N, H, W]`: what to make anew, pixels that are left out)."""
        before, x0 = self._base(), self._encode(picture)
        if x0.shape != before.shape:
            raise ShapeError(f"the edited picture is {x0.shape[:3]}, the base {before.shape[:3]} (N, H, W)")
        difference = (np.abs(x0 - before) > self.model.eps).any(-1)
        if mask is None:
            return before, x0, difference, 0
        given = check_mask(mask, before.shape[:3])
        ignored = int(np.count_nonzero(difference & ~given))
        if ignored:
            warnings.warn(f"{ignored} changed pixels lie outside the mask and are not applied", stacklevel=3)
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

        def predict(x: Host, i: int, now: float) -> Host:
            return self.model.prediction(compute(i, x, now), x, now)

        for step in self._steps(predict, x):
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

    def _steps(self, predict: samplers.Predictor, x: Host) -> Iterator[Step]:
        s = self.settings
        options: dict[str, Any] = {"clip": s.clip, "seed": s.seed}
        if s.sampler == "ddim":
            options["eta"] = s.eta
        if s.sampler == "pd":
            options["predicts"] = self.model.predicts
        sampler = samplers.get_sampler(s.sampler)
        return sampler(predict, x, self.noise_schedule, np.asarray(self.times), **options)

    def _kept_bytes(self) -> int:
        """What the store has back once the sessions are gone: no less than that."""
        kept = self.store.shared_bytes
        for session in self._sessions:
            canvases = session.memory.canvases.items()
            kept += sum(int(canvas.nbytes) for path, canvas in canvases if path != input_path("x"))
        return kept

    @property
    def _ran(self) -> int:
        """How many edits every step's session has to undo."""
        return sum(before.ran for before in self._history)

    def _take_back(self, edits: int) -> None:
        """Undo, at every step, what goes beyond `edits` edits, whatever comes."""
        interrupt = None
        for session in self._sessions:
            while session.edits > edits:
                try:
                    session.take_back()
                except KeyboardInterrupt as error:
                    interrupt = error
        if interrupt is not None:
            raise interrupt

    def _result(
        self,
        results: list[Result],
        picture: Host,
        start: float,
        active: TileSet,
        *,
        edited_area: float,
        ignored: int = 0,
    ) -> Result:
        stats = Stats(
            float(edited_area),
            tuple(record for result in results for record in result.stats.layers),
            (time.perf_counter() - start) * 1e3,
            sum(session.memory.nbytes for session in self._sessions) + self.store.shared_bytes,
            journal_bytes=sum(result.stats.journal_bytes for result in results),
            ignored_pixels=ignored,
        )
        return Result(self.model.picture(picture), picture.copy(), stats, active)
