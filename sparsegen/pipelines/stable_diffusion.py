"""Stable Diffusion sessions: an image, a text and edited copies come in, realistic edits come out, recomputed in part.

As in `sdedit.py`, in the space of latents. The original is encoded, and noised for every denoising step; its
activations at each step do not depend on an edit: they are computed once. An edit repaints the canvases of the encoder,
then of the UNet at every step (of the negative text and of the text, side by side), then of the decoder. Latents
outside the edit are held, and pixels outside it are never written: they come back bit for bit, however many edits
follow each other. An inpainting UNet, of nine channels, also reads which latents are painted, and the latents of the
image without them: nothing is painted in the original, and an edit paints its latents. Those of earlier edits stay
painted. Sources: Rombach et al., arXiv 2112.10752; Meng et al., "SDEdit", arXiv 2108.01073; SIGE, arXiv
2211.02048.
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

from ..checks import whole_number
from ..diffusion import seeds
from ..diffusion.settings import OnStep, latent_settings
from ..editing.door import Result
from ..editing.history import Base, Edit, History, undo_limit
from ..editing.session_check import damaged
from ..engine.device_store import open_store
from ..engine.memory_float16 import memory_kind
from ..engine.own_store import own_allocator
from ..engine.stats import LayerRecord
from ..engine.store import parse_size
from ..errors import InputError
from ..models.base import Model
from ..tiling.policies import Policy
from ..tiling.tiles import TileSet
from . import stable_diffusion_file
from .latent_edit import MARGIN, LatentEdit, computed_whole
from .latent_states import LatentStates
from .latents import LatentDiffusion, reduced
from .steps import CachePlan, StepBlocks
from .steps_door import StepsDoor, image_of


class StableDiffusion(StepsDoor):
    """An editing session of an image with latent diffusion.

    Parameters
    ----------
    models
        The models of a checkpoint: `LatentDiffusion(sparsegen.load_bundle(path))`.
    prompt, negative
        The text that edits follow, and one that they stay away from.
    steps, strength, guidance, sampler, seed, skip, options
        As for `generate`; strength None: 0.8.
    policy
        The policy of edits that give none: "fast", "paper" (SIGE's settings), "exact", "adaptive(TAU)".
    margin
        Pixels around an edit that are recomputed with it.
    ram, folder
        As for `SDEdit`, of the UNet's canvases at all steps. Those of encoder and decoder lie in RAM.
    storage
        "float32", or "float16": the UNet's canvases take half the memory. Encoder and decoder compute once, in float32
        canvases: halves beside these would add to them.
    undo
        As for `Session`, over all canvases.

    Raises
    ------
    InputError, BackendError
        An option cannot be used; the message names it and the reason.
    """

    not_copied = "save(path) it, and StableDiffusion.load(path) as often as you like"

    def __init__(
        self,
        models: LatentDiffusion,
        prompt: str,
        *,
        negative: str = "",
        steps: int | None = None,
        strength: float | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        seed: seeds.Seed = 0,
        skip: int = 0,
        policy: str | Policy = "fast",
        margin: int = MARGIN,
        ram: int | str | None = None,
        folder: str | os.PathLike[str] | None = None,
        storage: str = "float32",
        undo: int | str | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(models, LatentDiffusion):
            raise InputError(
                f"a StableDiffusion session needs LatentDiffusion(load_bundle(path)), not {type(models).__name__}"
            )
        self.models, self.prompt, self.negative, self.skip = models, prompt, negative, skip
        self.settings = latent_settings(
            models.own,
            models.diffusion.predicts,
            steps=steps,
            strength=0.8 if strength is None else strength,
            guidance=guidance,
            sampler=sampler,
            seed=seed,
            **options,
        )
        self.margin = whole_number("margin", margin, 0, unit="of pixels")
        self.times = self.settings.times()
        self.policy = self._policy(policy)
        self.store = open_store(models.backend, ram, folder)
        memory_kind(storage)
        self.storage = storage
        self._undo = parse_size(undo)
        self._painted = LatentStates(models, self.settings, self.store, storage)
        self._states = self._painted.steps
        self.notes = {}

    def __repr__(self) -> str:
        s = self.settings
        how = f"{s.sampler}, {len(self.times)} of {s.steps} steps, guidance {s.guidance:g}, seed {s.seed}"
        lines = [f"<StableDiffusion of {self.models!r}", f"  {self.prompt!r}", f"  {how}"]
        return self._described(lines)

    # -- running -----------------------------------------------------------------------------------------

    def cache_plan(self, original: Any) -> CachePlan:
        """The memory that an image of this size will take; nothing is computed. Raises InputError, ShapeError."""
        planned, beside = self._blocks(self._encode(original))
        blocks = planned.canvases
        in_ram = self.store.ram_of(blocks)
        undo = undo_limit(self._undo, sum(blocks) + beside)
        return CachePlan(
            len(self.times),
            sum(map(sum, planned.steps)) // len(planned.steps),
            in_ram + beside,
            sum(blocks) - in_ram,
            self.store.disk_free(),
            sum(planned.shared) + beside,
            undo,
            self.store.journals_on_disk(undo, in_ram=in_ram),
            planned.scratch,
            planned.conditioned,
        )

    def run(self, original: Any, *, on_step: OnStep | None = None) -> Result:
        """Compute and keep the activations of an image at every step; the image itself comes out.

        Parameters
        ----------
        original
            uint8 `[H, W, 3]` or `[N, H, W, 3]`, or floats in [-1, 1] of that shape.
        on_step
            Called after every step; its `x` are the noised latents.

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
                planned, _ = self._blocks(image)
                self.store.check_room(planned.canvases, released=self._kept_bytes())
            if self._painted.text is None:
                texts = [self.negative, self.prompt] if self.settings.guided else [self.prompt]
                self._painted.text = self.models.features(texts, skip=self.skip)
            image.flags.writeable = False  # callbacks get this array, and the history keeps it
            try:
                self._running, self._base = True, Base([], History(self._nothing(image), image))
                if new_size:
                    self._states.clear()
                records = self._painted.paint(
                    image, least_size=self.policy.least_size, rows=self._rows(image), on_step=on_step
                )
            except BaseException:
                self._base = None
                raise
            finally:
                self._running = False
            base = self._base = Base(self._painted.all, History(self._nothing(image), image))
            full = TileSet.full(*image.shape[:3])
            return self._result(base, base.history, start, full, records, edited_area=1.0)

    # -- editing -----------------------------------------------------------------------------------------

    def edit(
        self,
        edited: Any,
        *,
        mask: Any = None,
        policy: str | Policy | None = None,
        on_step: OnStep | None = None,
    ) -> Result:
        """Denoise the pixels that differ from the current image; the result becomes the base of the next edit.

        Pixels further than `margin` from the edit stay as they are, bit for bit; with a mask, all outside it do.

        Parameters
        ----------
        edited
            The whole edited image, as for `run` and of the same size, such as the last result's `image` painted over.
        mask
            bool `[H, W]` or `[N, H, W]`: the pixels to recompute. None: the pixels that differ by more than the
            encoder's eps. Changes outside a mask are not applied; `stats.ignored_pixels` and a warning count them.
        policy
            As for the session.
        on_step
            Called after every step. Its `x` and `x0` are latents.

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
            region = self._region(difference) if mask is None else TileSet.of_mask(difference)
            cells = TileSet.of_mask(reduced(region.mask(), self.models.decoder.config.reduction))
            rows = self._rows_of_edit(chosen, cells)
            stale = base.history.stale
            painted, left, repainting, records = before, stale, None, list[LayerRecord]()
            with base.edit() as journals:
                if region.count:
                    edit = LatentEdit(self._painted, image, region, cells, stale, chosen, rows, journals)
                    painted = edit.image(before, on_step)
                    left, repainting, records = edit.left(), edit.repainting, edit.records()
                done = Edit(journals if region.count else (), stale, before)
                limit = undo_limit(self._undo, base.nbytes)
                after = base.history.after(done, stale=left, image=painted, limit=limit)
                result = self._result(
                    base,
                    after,
                    start,
                    region,
                    records,
                    float(difference.mean()),
                    ignored,
                    sum(journal.nbytes for journal in journals),
                    repainting.steps if repainting else (),
                )
                base.commit(after)
            return result

    def dense(self, edited: Any, *, mask: Any = None, on_step: OnStep | None = None) -> Result:
        """The result of `edit` with everything computed whole, as the reference of its quality; nothing is changed.

        It computes in float32, whatever the storage of the caches. Its norms measure the edited image.

        Raises
        ------
        InputError, ShapeError, SessionError, NonFiniteError
            The session is unchanged.
        """
        with self._turn.change("dense"):
            start = time.perf_counter()
            base, before = self._ready()
            image, difference, ignored = self._difference(before, edited, mask)
            region = self._region(difference) if mask is None else TileSet.of_mask(difference)
            painted, records = computed_whole(self._painted, image, before, region, on_step)
            end = dataclasses.replace(base.history, image=painted)
            full = TileSet.full(*image.shape[:3])
            return self._result(base, end, start, full, records, float(difference.mean()), ignored)

    # -- files -------------------------------------------------------------------------------------------

    def _write(
        self, path: str | os.PathLike[str], history: History, progress: Callable[[int, int, str], None] | None
    ) -> None:
        assert self._painted.text is not None  # `run` computed it
        contents = stable_diffusion_file.Contents(
            self.models,
            self.prompt,
            self.negative,
            self.skip,
            self._painted.text,
            self.settings,
            self.policy,
            self.margin,
            self.storage,
            self._painted.all,
            history,
            self.notes,
        )
        stable_diffusion_file.save(path, contents, progress=progress)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str | Backend | None = None,
        ram: int | str | None = None,
        folder: str | os.PathLike[str] | None = None,
        undo: int | str | None = None,
    ) -> StableDiffusion:
        """Continue a saved session: the same bits, the same undo and redo. `session.models` has the file's models.

        Raises
        ------
        SessionError, CheckpointError, InputError
            The file is cut, altered, of another kind or of another version; the caches do not fit.
        """
        engine = get_backend(backend)
        store = open_store(engine, ram, folder)
        ends = {prefix: own_allocator(engine, store.turn) for prefix in stable_diffusion_file.ENDS}
        loaded = stable_diffusion_file.load(path, engine, store, ends)
        given = loaded.settings.described()
        del given["noise_level"], given["clip"]
        try:
            session = cls(
                loaded.models,
                loaded.prompt,
                negative=loaded.negative,
                skip=loaded.skip,
                policy=loaded.policy,
                margin=loaded.margin,
                storage=loaded.storage,
                undo=undo,
                **given,
            )
        except (TypeError, ValueError) as error:
            raise damaged(path, f"it does not describe a session of Stable Diffusion ({error})") from None
        if session.settings != loaded.settings:
            raise damaged(path, "its settings are not those of a session of Stable Diffusion")
        session.store, session.notes = store, loaded.notes
        session._painted = LatentStates(loaded.models, loaded.settings, store, loaded.storage)
        session._painted.take(loaded.states, loaded.text)
        session._states = session._painted.steps
        session._base = Base(loaded.states, loaded.history)
        return session

    def __enter__(self) -> StableDiffusion:
        return self

    # -- inside ------------------------------------------------------------------------------------------

    @property
    def _shown_by(self) -> Model:
        return self.models.decoder

    @property
    def _compares_by(self) -> Model:
        return self.models.encoder

    def _policy(self, policy: str | Policy | None) -> Policy:
        if policy is None:
            return self.policy
        unet = self.models.unet
        return unet.policy(policy, fast=unet.fast_for(len(self.times)))

    def _nothing(self, image: Host) -> TileSet:
        """No latents."""
        return TileSet.empty(len(image), *self._painted.latent_size(image))

    def _encode(self, image: Any) -> Host:
        checked = self.models.checked(image)
        seeds.sample_seeds(self.settings.seed, len(checked))
        return checked

    def _difference(self, before: Host, edited: Any, mask: Any) -> tuple[Host, Host, int]:
        image, chosen, ignored = super()._difference(before, edited, mask)
        return np.where(chosen[..., None], image, before), chosen, ignored

    def _rows(self, image: Host) -> tuple[int, ...]:
        return self._carried_rows(*self._painted.latent_size(image))

    def _blocks(self, image: Host) -> tuple[StepBlocks, int]:
        """The memory of the UNet's states of an image; bytes of the canvases of encoder and decoder."""
        least_size, rows = self.policy.least_size, self._rows(image)
        return self._painted.blocks(image.shape, least_size=least_size, rows=rows)
