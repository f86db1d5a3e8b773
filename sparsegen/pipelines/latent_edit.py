"""One edit of an image in latent diffusion: an edited image and its mask come in, the image that results comes out.

`LatentEdit` repaints the tiles of an edit in the states of encoder, UNet and decoder; `computed_whole` computes the
same without them, as the reference of its quality.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sparsegen.backends.interface import TILE, Host

from ..diffusion.settings import OnStep
from ..editing.state import State
from ..engine.journal import Journal
from ..engine.stats import LayerRecord
from ..models.base import Model
from ..tiling.policies import Fast, Paper, Policy
from ..tiling.tiles import TileSet, gather_tiles, scatter_tiles, union
from .latent_states import LatentStates, of_role
from .latents import guided, reduced
from .steps import Repainting

MARGIN = 5
"""Pixels around an edit that are recomputed with it, as in SIGE's Stable Diffusion."""


class LatentEdit:
    """One edit, on its way through encoder, UNet and decoder.

    Parameters
    ----------
    states
        Of the original, and of the edits before.
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
        states: LatentStates,
        image: Host,
        region: TileSet,
        cells: TileSet,
        stale: TileSet,
        chosen: Policy,
        rows: Sequence[int],
        journals: Sequence[Journal],
    ) -> None:
        self.states, self.journals = states, journals
        self.edited, self.region, self.cells, self.stale, self.chosen = image, region, cells, stale, chosen
        self.reduction = states.models.decoder.config.reduction
        twice = 2 if states.settings.guided else 1
        changed, old = (TileSet.of_mask(np.tile(each.mask(), (twice, 1, 1))) for each in (self.cells, stale))
        spread = union([changed, old]) if chosen.exact else changed
        policy = dataclasses.replace(chosen, dilation=0) if isinstance(chosen, Paper) else chosen
        # masks are made of the pixels, whose resolution is that of latents some halvings above
        pixels = np.tile(region.mask(), (twice, 1, 1))
        self.repainting = Repainting(
            states.steps,
            journals[-1 - len(states.steps) : -1],
            changed,
            spread,
            lambda: policy.plan(pixels, settled=not stale.count),
            rows,
        )
        self._beside: list[LayerRecord] = []

    def image(self, before: Host, on_step: OnStep | None) -> Host:
        """The image that results: `before` outside the region."""
        states, models, cells = self.states, self.states.models, self.cells
        held = states.latents()
        latents = held.copy()
        scatter_tiles(latents, cells.tiles, self._encoded())
        given = self._given()

        def compute(i: int, x: Host, now: float) -> Host:
            guides = states.settings.guided
            x = np.concatenate([x, given], -1)
            values = self.repainting(i, np.concatenate([x, x]) if guides else x)
            states.store.drop_pages()
            return guided(values, states.settings.guidance) if guides else values

        found = states.denoising.edited(latents, held, cells, compute, on_step)
        tiles = cells.tiles
        policy = in_pixels(policy_beside(models.decoder, self.chosen), self.reduction)
        spread = union([cells, self.stale]) if self.chosen.exact else cells
        run, _, values = states.decoder.repaint(
            {"latents": models.unscaled(gather_tiles(found, tiles))},
            cells,
            policy.plan(self.region.mask(), settled=not self.stale.count),
            journal=self.journals[-1],
            spread=spread,
            wanted=self.region.tiles,
        )
        self._beside += of_role("decoder", run.records)
        image = np.array(before)
        around = gather_tiles(before, self.region.tiles)
        share = gather_tiles(faded(self.region.mask())[..., None], self.region.tiles)
        scatter_tiles(image, self.region.tiles, joined(around, values, share))
        image.flags.writeable = False
        return image

    def _encoded(self) -> Host:
        """The edited latents in the cells, `[K, TILE, TILE, C]`."""
        moments = self._moments(self.states.encoder, self.journals[0], self.edited)
        noise = self.states.drawn(self.cells.shape)
        return self.states.models.latents(moments, gather_tiles(noise, self.cells.tiles))

    def _given(self) -> Host:
        """What the UNet reads in the cells beside noisy latents, `[K, TILE, TILE, C]`; C is 0 for most."""
        states, tiles = self.states, self.cells.tiles
        if states.masked is None:
            return np.zeros((len(tiles), TILE, TILE, 0), np.float32)
        moments = self._moments(states.masked, self.journals[1], without(self.edited, self.region))
        painted, noise = self.cells.mask(), states.drawn(self.cells.shape, 2)
        return states.given(
            gather_tiles(painted[..., None], tiles)[..., 0], moments, gather_tiles(noise, tiles)
        )

    def _moments(self, state: State, journal: Journal, image: Host) -> Host:
        """The encoder's output in the cells, `[K, TILE, TILE, 2 C]`, of a state that takes an image, `[N, H, W, 3]`."""
        # its canvas holds the strokes of earlier edits: their results take the place of these now
        seen = state.input("image")
        changed = TileSet.of_mask((image != seen).any(-1))
        if changed.count:
            policy = policy_beside(self.states.models.encoder, self.chosen)
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
            self._beside += of_role("encoder", run.records)
        return state.output_tiles(self.cells.tiles)

    def left(self) -> TileSet:
        """The latents whose change has not spread everywhere after this edit."""
        if self.chosen.exact:
            return TileSet.empty(*self.stale.shape)
        unspread = self.states.steps[0].unspread(self.cells, self.repainting.plan)
        return union([self.stale, unspread])

    def records(self) -> list[LayerRecord]:
        """The records of all layers."""
        return [*self._beside, *of_role("unet", self.repainting.records)]


def computed_whole(
    states: LatentStates, image: Host, before: Host, region: TileSet, on_step: OnStep | None
) -> tuple[Host, list[LayerRecord]]:
    """The image that results from an edited one in a region, everything computed whole; the states do not change.

    It computes in float32, whatever the storage of the caches. Its norms measure the edited image.
    """
    models = states.models
    records: list[LayerRecord] = []
    scratch = State(models.unet, models.backend, allocator=models.allocator())
    latents = models.encode(image, states.drawn((*image.shape[:1], *states.latent_size(image), 0)))
    cells = TileSet.of_mask(reduced(region.mask(), models.decoder.config.reduction))
    given = np.zeros((*latents.shape[:3], 0), np.float32)
    if states.masked is not None:
        masked = models.encoder.encode(without(image, region))
        _, moments = State(models.encoder, models.backend, allocator=models.allocator()).paint(
            masked.canvases, masked.conditions, keep_canvases=False
        )
        given = states.given(cells.mask(), moments, states.drawn(moments.shape, 2))
    beside = gather_tiles(given, cells.tiles)

    def compute(i: int, x: Host, now: float) -> Host:
        x = np.concatenate([x, beside], -1)
        whole = states.inputs(states.denoising.input(i, len(image), cells.tiles, x), now)
        run, output = scratch.paint(whole.canvases, whole.conditions, keep_canvases=False)
        records.extend(of_role("unet", run.records))
        output = guided(output, states.settings.guidance) if states.settings.guided else output
        return gather_tiles(output, cells.tiles)

    held = states.latents()
    found = states.denoising.edited(latents, held, cells, compute, on_step)
    share = faded(region.mask())[..., None]
    return joined(before, models.decode(found), share), records


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
