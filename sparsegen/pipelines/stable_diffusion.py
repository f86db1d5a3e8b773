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
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sparsegen.backends.interface import TILE, Backend, Host
from sparsegen.backends.registry import get_backend

from ..checks import whole_number
from ..diffusion import seeds
from ..diffusion.random import torch_noise
from ..diffusion.seeds import START
from ..diffusion.settings import OnStep, latent_settings
from ..editing.door import Result
from ..editing.history import Base, Edit, History, undo_limit
from ..editing.session_check import damaged
from ..editing.state import State
from ..engine.allocator import BackendAllocator
from ..engine.device_store import open_store
from ..engine.journal import Journal
from ..engine.memory_float16 import memory_kind
from ..engine.stats import LayerRecord
from ..engine.store import parse_size
from ..errors import InputError
from ..models.base import Inputs, Model
from ..tiling.policies import Fast, Paper, Policy
from ..tiling.tiles import TileSet, gather_tiles, scatter_tiles, union
from . import stable_diffusion_file
from .latents import ENDS_KEPT_AS, LatentDiffusion, guided, reduced
from .steps import CachePlan, Denoising, Repainting, StepBlocks, step_blocks
from .steps_door import StepsDoor, image_of

MARGIN = 5
"""Pixels around an edit that are recomputed with it, as in SIGE's Stable Diffusion."""


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
        self._states: list[State] = []
        self._denoising = Denoising(
            models.unet,
            self.settings,
            self._states,
            diffusion=models.diffusion,
            draw=self._draw,
            most=None,
        )
        self._encoder, self._decoder = self._state(models.encoder), self._state(models.decoder)
        self._masked = self._state(models.encoder) if models.inpaints else None
        """The encoder's state of the image without the painted pixels; None: the UNet does not read it."""
        self._text: Host | None = None
        """Features of the texts, `[1 or 2, T, C]`."""
        self.notes = {}

    def __repr__(self) -> str:
        s = self.settings
        how = f"{s.sampler}, {len(self.times)} of {s.steps} steps, guidance {s.guidance:g}, seed {s.seed}"
        lines = [f"<StableDiffusion of {self.models!r}", f"  {self.prompt!r}", f"  {how}"]
        return self._described(lines)

    # -- running -----------------------------------------------------------------------------------------

    def cache_plan(self, original: Any) -> CachePlan:
        """The memory that an image of this size will take; nothing is computed. Raises InputError, ShapeError."""
        planned, beside = self._blocks(self._encode(original).shape)
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
                planned, _ = self._blocks(image.shape)
                self.store.check_room(planned.canvases, released=self._kept_bytes())
            if self._text is None:
                texts = [self.negative, self.prompt] if self.settings.guided else [self.prompt]
                self._text = self.models.features(texts, skip=self.skip)
            image.flags.writeable = False  # callbacks get this array, and the history keeps it
            try:
                self._running, self._base = True, Base([], History(self._nothing(image), image))
                if new_size:
                    self._states.clear()
                records = self._paint(image, on_step)
            except BaseException:
                self._base = None
                raise
            finally:
                self._running = False
            base = self._base = Base(self._all_states, History(self._nothing(image), image))
            full = TileSet.full(*image.shape[:3])
            return self._result(base, base.history, start, full, records, edited_area=1.0)

    def _paint(self, image: Host, on_step: OnStep | None) -> list[LayerRecord]:
        """Paint every state."""
        models = self.models
        inputs = models.encoder.encode(image)
        run, moments = self._encoder.paint(inputs.canvases, inputs.conditions)
        records = _of("encoder", run.records)
        latents = models.latents(moments, self._drawn(moments.shape))
        given = np.zeros((*latents.shape[:3], 0), np.float32)
        if self._masked is not None:  # nothing is painted
            run, moments = self._masked.paint(inputs.canvases, inputs.conditions)
            records += _of("encoder", run.records)
            given = self._given(np.zeros(latents.shape[:3], bool), moments, self._drawn(moments.shape, 2))
        rows = self._carried_rows(*latents.shape[1:3])
        while len(self._states) < len(self.times):
            self._states.append(
                State(models.unet, models.backend, allocator=self.store, storage=self.storage)
            )
        for i, _, x, step in self._denoising.noised(latents):
            inputs = self._inputs(np.concatenate([x, given], -1), self.times[i])
            run, _ = self._states[i].paint(
                inputs.canvases,
                inputs.conditions,
                least_size=self.policy.least_size,
                carried_rows=rows[i],
            )
            records += _of("unet", run.records)
            self.store.drop_pages()
            if on_step is not None:
                on_step(step)
        inputs = models.decoder.encode(models.unscaled(latents))
        run, _ = self._decoder.paint(inputs.canvases, inputs.conditions)
        return records + _of("decoder", run.records)

    def _inputs(self, x: Host, now: float) -> Inputs:
        """The UNet's inputs for all it reads, `[N, h, w, C]`: with guidance for both texts, one after the other."""
        assert self._text is not None  # `run` computed it
        text = np.repeat(self._text, len(x), 0)
        x = np.concatenate([x, x]) if self.settings.guided else x
        return self.models.unet.encode(x, timestep=np.rint(now), text=text)

    def _given(self, painted: Host, moments: Host, noise: Host) -> Host:
        """What an inpainting UNet reads beside noisy latents: bool `[…]`, and the encoder's output of the image."""
        return np.concatenate(
            [painted[..., None].astype(np.float32), self.models.latents(moments, noise)], axis=-1
        )

    @property
    def _all_states(self) -> list[State]:
        """The states of encoder (and masked image), steps and decoder, in the order of an edit's journals."""
        masked = [] if self._masked is None else [self._masked]
        return [self._encoder, *masked, *self._states, self._decoder]

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
                    edit = _LatentEdit(self, image, region, cells, stale, chosen, rows, journals)
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
            start, models = time.perf_counter(), self.models
            base, before = self._ready()
            image, difference, ignored = self._difference(before, edited, mask)
            region = self._region(difference) if mask is None else TileSet.of_mask(difference)
            records: list[LayerRecord] = []
            scratch = State(models.unet, models.backend, allocator=models.allocator())
            latents = models.encode(image, self._drawn((*image.shape[:1], *self._latent_size(image), 0)))
            cells = TileSet.of_mask(reduced(region.mask(), models.decoder.config.reduction))
            given = np.zeros((*latents.shape[:3], 0), np.float32)
            if self._masked is not None:
                masked = models.encoder.encode(without(image, region))
                _, moments = State(models.encoder, models.backend, allocator=models.allocator()).paint(
                    masked.canvases, masked.conditions, keep_canvases=False
                )
                given = self._given(cells.mask(), moments, self._drawn(moments.shape, 2))
            beside = gather_tiles(given, cells.tiles)

            def compute(i: int, x: Host, now: float) -> Host:
                x = np.concatenate([x, beside], -1)
                whole = self._inputs(self._denoising.input(i, len(image), cells.tiles, x), now)
                run, output = scratch.paint(whole.canvases, whole.conditions, keep_canvases=False)
                records.extend(_of("unet", run.records))
                output = guided(output, self.settings.guidance) if self.settings.guided else output
                return gather_tiles(output, cells.tiles)

            held = self._latents()
            found = self._denoising.edited(latents, held, cells, compute, on_step)
            share = faded(region.mask())[..., None]
            painted = joined(before, models.decode(found), share)
            end = dataclasses.replace(base.history, image=painted)
            full = TileSet.full(*image.shape[:3])
            return self._result(base, end, start, full, records, float(difference.mean()), ignored)

    # -- files -------------------------------------------------------------------------------------------

    def _write(
        self, path: str | os.PathLike[str], history: History, progress: Callable[[int, int, str], None] | None
    ) -> None:
        assert self._text is not None  # `run` computed it
        contents = stable_diffusion_file.Contents(
            self.models,
            self.prompt,
            self.negative,
            self.skip,
            self._text,
            self.settings,
            self.policy,
            self.margin,
            self.storage,
            self._all_states,
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
        ends = {prefix: BackendAllocator(engine, turn=store.turn) for prefix in stable_diffusion_file.ENDS}
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
        session.store, session.notes, session._text = store, loaded.notes, loaded.text
        session._encoder, *steps, session._decoder = loaded.states
        if session._masked is not None:
            session._masked = steps.pop(0)
        session._states[:] = steps
        session._base = Base(loaded.states, loaded.history)
        return session

    def _latents(self) -> Host:
        """The current latents, scaled, `[N, h, w, C]`."""
        latents = self._decoder.input("latents")
        return np.asarray(latents * np.float32(self.models.decoder.config.scale))

    def __enter__(self) -> StableDiffusion:
        return self

    # -- inside ------------------------------------------------------------------------------------------

    @property
    def _shown_by(self) -> Model:
        return self.models.decoder

    @property
    def _compares_by(self) -> Model:
        return self.models.encoder

    def _state(self, model: Model) -> State:
        """A new state of encoder or decoder: their layers have paths that the UNet's have too."""
        backend = self.models.backend
        allocator = BackendAllocator(backend, turn=self.store.turn)
        return State(model, backend, allocator=allocator, storage=ENDS_KEPT_AS)

    def _policy(self, policy: str | Policy | None) -> Policy:
        if policy is None:
            return self.policy
        unet = self.models.unet
        return unet.policy(policy, fast=unet.fast_for(len(self.times)))

    def _drawn(self, shape: Sequence[int], number: int = 0) -> Host:
        """The noise that an encoder's latents are drawn with, `[N, h, w, C]` for any C, by the number of its draw."""
        channels = self.models.latent_channels
        return torch_noise(self.settings.seed, START + number, (*shape[:3], channels))

    def _draw(self, i: int, shape: tuple[int, ...]) -> Host:
        """The noise of a trajectory: the second draw, and after those of the encoder's latents that of each step."""
        before = 2 if self.models.inpaints and i != START else 1
        return torch_noise(self.settings.seed, i + before, shape)

    def _latent_size(self, image: Host) -> tuple[int, int]:
        reduction = self.models.decoder.config.reduction
        return image.shape[1] // reduction, image.shape[2] // reduction

    def _nothing(self, image: Host) -> TileSet:
        """No latents."""
        return TileSet.empty(len(image), *self._latent_size(image))

    def _encode(self, image: Any) -> Host:
        checked = self.models.checked(image)
        seeds.sample_seeds(self.settings.seed, len(checked))
        return checked

    def _difference(self, before: Host, edited: Any, mask: Any) -> tuple[Host, Host, int]:
        image, chosen, ignored = super()._difference(before, edited, mask)
        return np.where(chosen[..., None], image, before), chosen, ignored

    def _blocks(self, shape: tuple[int, ...]) -> tuple[StepBlocks, int]:
        """The memory of the UNet's states, with all scratch arrays; bytes of the canvases of encoder and decoder."""
        models, (n, height, width, _) = self.models, shape
        h, w = (side // models.decoder.config.reduction for side in (height, width))
        latents = np.zeros((n, h, w, models.latent_channels), np.float32)
        double = np.zeros(
            ((2 if self.settings.guided else 1) * n, h, w, models.unet.config.in_channels), np.float32
        )
        context = np.zeros((len(double), models.text.config.tokens, models.unet.config.context), np.float32)
        inputs = models.unet.encode(double, timestep=self.times[0], text=context)
        steps = step_blocks(
            models.unet,
            inputs,
            self.storage,
            least_size=self.policy.least_size,
            rows=self._carried_rows(h, w),
        )
        images = [(models.encoder, np.zeros(shape, np.float32))] * (2 if models.inpaints else 1)
        ends = [
            step_blocks(model, model.encode(given), ENDS_KEPT_AS)
            for model, given in (*images, (models.decoder, latents))
        ]
        scratch = steps.scratch + sum(each.scratch for each in ends)
        return steps._replace(scratch=scratch), sum(sum(each.canvases) for each in ends)


class _LatentEdit:
    """One edit, on its way through encoder, UNet and decoder.

    Parameters
    ----------
    image
        The edited image, `[N, H, W, 3]`.
    region, cells
        Its pixels, and the latents, to recompute.
    stale
        The latents that earlier edits left unspread.
    chosen, rows
        The edit's policy, and the rows that it carries at each step.
    journals
        Of encoder (and masked image), steps and decoder.
    """

    def __init__(
        self,
        session: StableDiffusion,
        image: Host,
        region: TileSet,
        cells: TileSet,
        stale: TileSet,
        chosen: Policy,
        rows: Sequence[int],
        journals: Sequence[Journal],
    ) -> None:
        self.session, self.journals = session, journals
        self.edited, self.region, self.cells, self.stale, self.chosen = image, region, cells, stale, chosen
        self.reduction = session.models.decoder.config.reduction
        twice = 2 if session.settings.guided else 1
        changed, old = (TileSet.of_mask(np.tile(each.mask(), (twice, 1, 1))) for each in (self.cells, stale))
        spread = union([changed, old]) if chosen.exact else changed
        policy = dataclasses.replace(chosen, dilation=0) if isinstance(chosen, Paper) else chosen
        # masks are made of the pixels, whose resolution is that of latents some halvings above
        pixels = np.tile(region.mask(), (twice, 1, 1))
        self.repainting = Repainting(
            session._states,
            journals[-1 - len(session._states) : -1],
            changed,
            spread,
            lambda: policy.plan(pixels, settled=not stale.count),
            rows,
        )
        self._beside: list[LayerRecord] = []

    def image(self, before: Host, on_step: OnStep | None) -> Host:
        """The image that results: `before` outside the region."""
        session, models, cells = self.session, self.session.models, self.cells
        held = session._latents()
        latents = held.copy()
        scatter_tiles(latents, cells.tiles, self._encoded())
        given = self._given()

        def compute(i: int, x: Host, now: float) -> Host:
            guides = session.settings.guided
            x = np.concatenate([x, given], -1)
            values = self.repainting(i, np.concatenate([x, x]) if guides else x)
            session.store.drop_pages()
            return guided(values, session.settings.guidance) if guides else values

        found = session._denoising.edited(latents, held, cells, compute, on_step)
        tiles = cells.tiles
        policy = in_pixels(policy_beside(models.decoder, self.chosen), self.reduction)
        spread = union([cells, self.stale]) if self.chosen.exact else cells
        run, _, values = session._decoder.repaint(
            {"latents": models.unscaled(gather_tiles(found, tiles))},
            cells,
            policy.plan(self.region.mask(), settled=not self.stale.count),
            journal=self.journals[-1],
            spread=spread,
            wanted=self.region.tiles,
        )
        self._beside += _of("decoder", run.records)
        image = np.array(before)
        around = gather_tiles(before, self.region.tiles)
        share = gather_tiles(faded(self.region.mask())[..., None], self.region.tiles)
        scatter_tiles(image, self.region.tiles, joined(around, values, share))
        image.flags.writeable = False
        return image

    def _encoded(self) -> Host:
        """The edited latents in the cells, `[K, TILE, TILE, C]`."""
        moments = self._moments(self.session._encoder, self.journals[0], self.edited)
        noise = self.session._drawn(self.cells.shape)
        return self.session.models.latents(moments, gather_tiles(noise, self.cells.tiles))

    def _given(self) -> Host:
        """What the UNet reads in the cells beside noisy latents, `[K, TILE, TILE, C]`; C is 0 for most."""
        session, tiles = self.session, self.cells.tiles
        if session._masked is None:
            return np.zeros((len(tiles), TILE, TILE, 0), np.float32)
        moments = self._moments(session._masked, self.journals[1], without(self.edited, self.region))
        painted, noise = self.cells.mask(), session._drawn(self.cells.shape, 2)
        return session._given(
            gather_tiles(painted[..., None], tiles)[..., 0], moments, gather_tiles(noise, tiles)
        )

    def _moments(self, state: State, journal: Journal, image: Host) -> Host:
        """The encoder's output in the cells, `[K, TILE, TILE, 2 C]`, of a state that takes an image, `[N, H, W, 3]`."""
        session = self.session
        # its canvas holds the strokes of earlier edits: their results take the place of these now
        seen = state.input("image")
        changed = TileSet.of_mask((image != seen).any(-1))
        if changed.count:
            policy = policy_beside(session.models.encoder, self.chosen)
            spread = changed
            if self.chosen.exact and self.stale.count:
                stale = self.stale.mask().repeat(self.reduction, 1).repeat(self.reduction, 2)
                spread = union([changed, TileSet.of_mask(stale)])
            run, _, _ = state.repaint(
                {"image": gather_tiles(image, changed.tiles)},
                changed,
                policy.plan(spread.mask(), settled=not self.stale.count),
                journal=journal,
                spread=spread,
            )
            self._beside += _of("encoder", run.records)
        return state.output_tiles(self.cells.tiles)

    def left(self) -> TileSet:
        """The latents whose change has not spread everywhere after this edit."""
        if self.chosen.exact:
            return TileSet.empty(*self.stale.shape)
        unspread = self.session._states[0].unspread(self.cells, self.repainting.plan)
        return union([self.stale, unspread])

    def records(self) -> list[LayerRecord]:
        """The records of all layers."""
        return [*self._beside, *_of("unet", self.repainting.records)]


def policy_beside(model: Model, chosen: Policy) -> Policy:
    """The policy of encoder or decoder beside one of the UNet: of the same kind, with the model's settings."""
    if isinstance(chosen, Fast):
        return model.fast
    return model.paper if isinstance(chosen, Paper) else chosen


def in_pixels(policy: Policy, reduction: int) -> Policy:
    """A policy of the decoder whose masks are made of the image's pixels, `reduction` times as many as latents."""
    if isinstance(policy, Paper):
        return dataclasses.replace(policy, dilation=policy.dilation * reduction)
    return policy


def without(image: Host, region: TileSet) -> Host:
    """A copy of an image `[N, H, W, 3]` with grey, 0, in a region, as an inpainting UNet was trained to read it."""
    return np.where(region.mask()[..., None], np.float32(0), image)


def faded(mask: Host, width: int = MARGIN + 1) -> Host:
    """The share of new values in an image, float32 as the bool `[N, H, W]` mask: 0 outside it, inside it up to 1.

    It rises over the first `width` pixels from the mask's border, counted along rows, columns and diagonals. The border
    of the image is none of the mask's.
    """
    share, inside = np.zeros(mask.shape, np.float32), mask
    for _ in range(width):
        share += inside
        around = np.pad(inside, ((0, 0), (1, 1), (1, 1)), mode="edge")
        rows = around[:, :-2] & around[:, 1:-1] & around[:, 2:]
        inside = rows[:, :, :-2] & rows[:, :, 1:-1] & rows[:, :, 2:]
    return np.asarray(share / np.float32(width))


def joined(before: Host, new: Host, share: Host) -> Host:
    """The image `before` with what the decoder makes of an edit, without a seam; `share` as `faded` gives it.

    At the border of an edit the decoder's image differs from the one before: latents there were denoised anew, those
    beyond it show through, and of unchanged latents too the decoder makes another image. It fades in over the margin.
    """
    painted = np.clip(share * new + (1 - share) * before, -1, 1)
    return np.where(share > 0, painted, before)


def _of(role: str, records: Iterable[LayerRecord]) -> list[LayerRecord]:
    """The records of a model's layers, under the paths of the whole: "unet.conv_in"."""
    return [dataclasses.replace(record, path=f"{role}.{record.path}") for record in records]
