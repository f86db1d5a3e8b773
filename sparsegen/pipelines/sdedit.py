"""SDEdit: an image and its edited copy come in, a realistic edit comes out, each denoising step recomputed in part.

The edited image is noised and denoised again; outside the edit, every step keeps the original, noised alike (Meng et
al., "SDEdit", arXiv 2108.01073, algorithm 2, as SIGE runs it). The activations of the original at each step do not
depend on the edit: they are computed once and kept, in one `State` for each step. An edit repaints every state: only
the tiles around the changed pixels are computed again, by this edit and by every later one.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsegen.backends.interface import Backend, Host
from sparsegen.backends.registry import get_backend

from ..checks import warn_of_unit_range, whole_number
from ..diffusion import seeds
from ..diffusion.settings import OnStep, settings_for
from ..editing.door import Result
from ..editing.history import Base, Edit, History, undo_limit
from ..editing.session_check import damaged
from ..editing.state import State
from ..engine.device_store import open_store
from ..engine.memory_float16 import memory_kind
from ..engine.own_store import own_allocator
from ..engine.stats import LayerRecord
from ..engine.store import parse_size
from ..errors import InputError, ShapeError
from ..models.base import Model, checked_diffusion
from ..tiling.policies import Paper, Policy
from ..tiling.tiles import TileSet, gather_tiles, union
from . import sdedit_file
from .steps import CachePlan, Denoising, Repainting, StepBlocks, step_blocks
from .steps_door import StepsDoor, image_of


class SDEdit(StepsDoor):
    """An editing session of an image with a diffusion model.

    Threads may share a session: they take turns. A callback may read the session that calls it, not change it.

    Parameters
    ----------
    model
        A model of `sparsegen.models`: DDPM or ProgressiveDistillation.
    steps, noise_level, sampler, schedule, clip, seed
        As in `Settings`; None: the model's value (`Model.sampling`), else the family's default.
    policy
        The policy of edits that give none, as for `Session`. The session keeps the canvases that it needs: under "fast"
        those of the steps that compute, and of the others nearly nothing.
    margin
        Pixels around an edit that are recomputed with it (by a cross, as SIGE dilates); None: the family's.
    backend
        As for `Session`. On a device, canvases lie in its memory, and beyond that in RAM which it reaches.
    ram
        RAM that the canvases of all steps may take, such as "4GB"; the rest goes into files (on a device there are
        none). None: no limit.
    folder
        The folder of these files; None: the system's folder for temporary files.
    storage
        "float32", or "float16": the caches take half the memory, plus one step's canvases in float32 that all steps
        compute in. Edits of `landscape-ddpm` then have at least 92 dB against float32's, if they differ at all; edits
        of DDPM 256 took 8 and 12 % longer (one run each).
    undo
        As for `Session`, over all steps. With `ram`, journals too lie in RAM up to that budget, then in files.
    options
        Options of the sampler, such as `eta` of ddim; None: their defaults.

    Raises
    ------
    InputError, BackendError
        An option cannot be used; the message names it and the reason.
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
        seed: seeds.Seed = 0,
        policy: str | Policy = "fast",
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
        self._states: list[State] = []
        self._denoising = Denoising(model, self.settings, self._states)
        self.times = self._denoising.times
        self.policy = self._policy(policy)
        self.backend = get_backend(backend)
        self.store = open_store(self.backend, ram, folder)
        memory_kind(storage)
        self.storage = storage
        self._undo = parse_size(undo)
        self.notes = {}

    def __repr__(self) -> str:
        s = self.settings
        how = f"{s.sampler}, {len(self.times)} steps from noise level {s.noise_level}, seed {s.seed}"
        lines = [f"<SDEdit of {self.model!r}", f"  on {self.backend!r}", f"  {how}"]
        return self._described(lines)

    # -- running -----------------------------------------------------------------------------------------

    def cache_plan(self, original: Any) -> CachePlan:
        """The memory that an image of this size and its edits will take, in RAM and on disk; nothing is computed.

        Raises
        ------
        InputError, ShapeError
        """
        planned = self._blocks(self._encode(original))
        blocks = planned.canvases
        in_ram = self.store.ram_of(blocks)
        undo = undo_limit(self._undo, sum(blocks))
        return CachePlan(
            len(self.times),
            sum(map(sum, planned.steps)) // len(planned.steps),
            in_ram,
            sum(blocks) - in_ram,
            self.store.disk_free(),
            sum(planned.shared),
            undo,
            self.store.journals_on_disk(undo, in_ram=in_ram),
            planned.scratch,
        )

    def run(self, original: Any, *, on_step: OnStep | None = None) -> Result:
        """Compute and keep the activations of an image at every step; the image itself comes out.

        Parameters
        ----------
        original
            uint8 `[H, W, 3]` or `[N, H, W, 3]`, or floats in [-1, 1] of that shape.
        on_step
            Called after every step.

        Raises
        ------
        InputError, ShapeError, SessionError
            The image does not fit, or the caches do not fit the RAM and the disk; the session is unchanged.
        NonFiniteError
            A layer computed NaN or infinity; call `run` again.
        """
        with self._turn.change("run"):
            start = time.perf_counter()
            image = self._encode(original)
            new_size = self._base is None or image_of(self._base.history).shape != image.shape
            if new_size:
                self.store.check_room(self._blocks(image).canvases, released=self._kept_bytes())
            image.flags.writeable = False  # callbacks get this array, and the history keeps it
            stale = TileSet.empty(*image.shape[:3])
            try:
                self._running, self._base = True, Base([], History(stale, image))
                if new_size:
                    self._states.clear()
                records = self._paint(image, on_step)
            except BaseException:
                self._base = None
                raise
            finally:
                self._running = False
            base = self._base = Base(self._states, History(stale, image))
            full = TileSet.full(*image.shape[:3])
            return self._result(base, base.history, start, full, records, edited_area=1.0)

    def _paint(self, image: Host, on_step: OnStep | None) -> list[LayerRecord]:
        """Paint the state of every step."""
        records: list[LayerRecord] = []
        rows = self._carried_rows(*image.shape[1:3])
        while len(self._states) < len(self.times):
            self._states.append(State(self.model, self.backend, allocator=self.store, storage=self.storage))
        for i, condition, x, step in self._denoising.noised(image):
            inputs = self.model.encode(x, **condition)
            run, _ = self._states[i].paint(
                inputs.canvases,
                inputs.conditions,
                least_size=self.policy.least_size,
                carried_rows=rows[i],
            )
            records += run.records
            self.store.drop_pages()
            if on_step is not None:
                on_step(step)
        return records

    def edit(
        self,
        edited: Any,
        *,
        mask: Any = None,
        policy: str | Policy | None = None,
        on_step: OnStep | None = None,
    ) -> Result:
        """Denoise the pixels that differ from the current image; the result becomes the base of the next edit.

        Pixels further than `margin` from the edit stay as they are, bit for bit.

        Parameters
        ----------
        edited
            The whole edited image, as for `run` and of the same size, such as the last result's `image` painted over.
        mask
            bool `[H, W]` or `[N, H, W]`: the pixels to recompute. None: the pixels that differ by more than the
            family's eps. Changes outside a mask are not applied; `stats.ignored_pixels` and a warning count them.
        policy
            As for `Session.edit`; under "paper", the recomputed region is not dilated once more.
        on_step
            Called after every step. Its `x0` is a preview of the recomputed region.

        Raises
        ------
        InputError, ShapeError, SessionError, NonFiniteError
            The session is unchanged, also when the edit is interrupted before it is done.
        """
        with self._turn.change("edit"):
            start = time.perf_counter()
            base, before = self._ready()
            image, difference, ignored = self._difference(before, edited, mask)
            chosen = self._policy(policy)
            if isinstance(chosen, Paper):
                chosen = dataclasses.replace(chosen, dilation=0)
            region, stale = self._region(difference), base.history.stale
            rows = self._rows_of_edit(chosen, region)
            spread = union([region, stale]) if chosen.exact else region
            painted, left, repainting = before, stale, None
            with base.edit() as journals:
                if region.count:
                    repainting = Repainting(
                        self._states,
                        journals,
                        region,
                        spread,
                        lambda: chosen.plan(spread.mask(), settled=not stale.count),
                        rows,
                    )

                    def compute(i: int, x: Host, now: float) -> Host:
                        values = repainting(i, x)
                        self.store.drop_pages()
                        return values

                    painted = self._denoising.edited(image, before, region, compute, on_step)
                    unspread = self._states[0].unspread(region, repainting.plan)
                    left = TileSet.empty(*region.shape) if chosen.exact else union([stale, unspread])
                done = Edit(journals if region.count else (), stale, before)
                limit = undo_limit(self._undo, base.nbytes)
                after = base.history.after(done, stale=left, image=painted, limit=limit)
                journal_bytes = sum(journal.nbytes for journal in journals)
                area = float(difference.mean())
                result = self._result(
                    base,
                    after,
                    start,
                    repainting.active if repainting else TileSet.empty(*image.shape[:3]),
                    repainting.records if repainting else [],
                    area,
                    ignored,
                    journal_bytes,
                    repainting.steps if repainting else (),
                )
                base.commit(after)
            return result

    def dense(self, edited: Any, *, mask: Any = None, on_step: OnStep | None = None) -> Result:
        """The result of `edit` with every step run whole, as the reference of its quality. The session is unchanged.

        It computes in float32, whatever the storage of the caches. Its norms measure the edited image. (In an edit they
        keep the statistics of the original, or under "fast" follow the edit.)

        Raises
        ------
        InputError, ShapeError, SessionError, NonFiniteError
            The session is unchanged.
        """
        with self._turn.change("dense"):
            start = time.perf_counter()
            base, before = self._ready()
            image, difference, ignored = self._difference(before, edited, mask)
            region = self._region(difference)
            scratch = State(self.model, self.backend, allocator=own_allocator(self.backend))
            records: list[LayerRecord] = []

            def compute(i: int, x: Host, now: float) -> Host:
                whole = self._denoising.input(i, len(image), region.tiles, x)
                inputs = self.model.encode(whole, **{self.model.diffusion.time: now})
                run, output = scratch.paint(inputs.canvases, inputs.conditions, keep_canvases=False)
                records.extend(run.records)
                return gather_tiles(output, region.tiles)

            painted = self._denoising.edited(image, before, region, compute, on_step)
            full, area = TileSet.full(*image.shape[:3]), float(difference.mean())
            end = dataclasses.replace(base.history, image=painted)
            return self._result(base, end, start, full, records, area, ignored)

    # -- files and the end -------------------------------------------------------------------------------

    def _write(
        self, path: str | os.PathLike[str], history: History, progress: Callable[[int, int, str], None] | None
    ) -> None:
        sdedit_file.save(
            path,
            self._states,
            history,
            self.settings,
            policy=self.policy,
            margin=self.margin,
            storage=self.storage,
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
            The file is cut, altered, of another kind or of another version; the caches do not fit.
        """
        engine = get_backend(backend)
        store = open_store(engine, ram, folder)
        loaded = sdedit_file.load(path, engine, store)
        try:
            pipeline = cls(
                loaded.model,
                policy=loaded.policy,
                margin=loaded.margin,
                backend=backend,
                storage=loaded.storage,
                undo=undo,
                **loaded.settings.described(),
            )
        except (TypeError, ValueError) as error:
            raise damaged(path, f"it does not describe an SDEdit session ({error})") from None
        pipeline.store, pipeline.notes = store, loaded.notes
        pipeline._states[:] = loaded.states
        pipeline._base = Base(loaded.states, loaded.history)
        return pipeline

    def __enter__(self) -> SDEdit:
        return self

    # -- inside ------------------------------------------------------------------------------------------

    @property
    def _shown_by(self) -> Model:
        model: Model = self.model
        return model

    _compares_by = _shown_by

    def _policy(self, policy: str | Policy | None) -> Policy:
        if policy is None:
            return self.policy
        usual, model = self.model.diffusion.edit, self.model
        fast = model.fast.for_steps(
            len(self.times),
            len(usual.times()),
            level=self.settings.noise_level,
            usual_level=usual.noise_level,
        )
        chosen: Policy = model.policy(policy, fast=fast)
        return chosen

    def _blocks(self, image: Host) -> StepBlocks:
        """The memory of the states of all steps."""
        return step_blocks(
            self.model,
            self.model.encode(image, **{self._denoising.diffusion.time: self.times[0]}),
            self.storage,
            least_size=self.policy.least_size,
            rows=self._carried_rows(*image.shape[1:3]),
        )

    def _encode(self, image: Any) -> Host:
        """A user's image as float32 `[N, H, W, C]` in [-1, 1]."""
        try:
            array = np.asarray(image)
        except ValueError:
            raise InputError("the image is not an array: its rows differ in length") from None
        channels = self.model.config.in_channels
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4 or not len(array) or array.shape[3] != channels:
            raise ShapeError(
                f"the image is {np.shape(image)}, expected [H, W, {channels}] or [N, H, W, {channels}]"
            )
        self.model.check_size(*array.shape[1:3])
        if array.dtype == np.uint8:
            return np.asarray(array.astype(np.float32) / np.float32(127.5) - 1)
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"the image is {array.dtype}, expected uint8, or floats in [-1, 1]")
        if not np.isfinite(array).all() or np.abs(array).max() > 1 + 1e-3:
            raise InputError("the image holds values outside [-1, 1]; scale it, or give uint8")
        warn_of_unit_range(array)
        return np.asarray(np.clip(array, -1, 1), np.float32, order="C")
