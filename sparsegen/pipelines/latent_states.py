"""The states of an image in latent diffusion: an image and a text come in, painted canvases and their memory come out.

An original's activations lie in the states of the encoder (and, for an inpainting UNet, in those of the encoder of the
masked image), of the UNet at every denoising step, and of the decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from sparsegen.backends.interface import Host

from ..diffusion.random import torch_noise
from ..diffusion.seeds import START
from ..diffusion.settings import LatentSettings, OnStep
from ..editing.state import State
from ..engine.device_store import DeviceStore
from ..engine.own_store import own_allocator
from ..engine.stats import LayerRecord
from ..engine.store import Store
from ..models.base import Inputs, Model
from .latents import ENDS_KEPT_AS, LatentDiffusion
from .steps import Denoising, StepBlocks, step_blocks


class LatentStates:
    """The states of one image, and what passes between them.

    Parameters
    ----------
    models, settings
        The session's.
    store, storage
        Where the UNet's canvases lie, and how they are kept. Those of encoder and decoder lie in RAM, in float32.
    """

    def __init__(
        self, models: LatentDiffusion, settings: LatentSettings, store: Store | DeviceStore, storage: str
    ) -> None:
        self.models, self.settings, self.store, self.storage = models, settings, store, storage
        self.steps: list[State] = []
        """The UNet's, one for each step, once an image was painted."""
        self.encoder, self.decoder = self._end(models.encoder), self._end(models.decoder)
        self.masked = self._end(models.encoder) if models.inpaints else None
        """The encoder's of the image without the painted pixels; None: the UNet does not read it."""
        self.text: Host | None = None
        """Features of the texts, `[1 or 2, T, C]`."""
        self.denoising = Denoising(
            models.unet,
            settings,
            self.steps,
            diffusion=models.diffusion,
            draw=self._draw,
            most=None,
        )

    @property
    def all(self) -> list[State]:
        """The states of encoder (and masked image), steps and decoder, in the order of an edit's journals."""
        masked = [] if self.masked is None else [self.masked]
        return [self.encoder, *masked, *self.steps, self.decoder]

    def take(self, states: Sequence[State], text: Host) -> None:
        """Take states that were saved, in the order of `all`, and the features of the texts."""
        self.encoder, *steps, self.decoder = states
        if self.masked is not None:
            self.masked = steps.pop(0)
        self.steps[:], self.text = steps, text

    def paint(
        self, image: Host, *, least_size: int, rows: Sequence[int], on_step: OnStep | None
    ) -> list[LayerRecord]:
        """Paint every state with an image `[N, H, W, 3]`; `rows` as `carried_rows` gives them for the policy."""
        models = self.models
        inputs = models.encoder.encode(image)
        run, moments = self.encoder.paint(inputs.canvases, inputs.conditions)
        records = of_role("encoder", run.records)
        latents = models.latents(moments, self.drawn(moments.shape))
        given = np.zeros((*latents.shape[:3], 0), np.float32)
        if self.masked is not None:  # nothing is painted
            run, moments = self.masked.paint(inputs.canvases, inputs.conditions)
            records += of_role("encoder", run.records)
            given = self.given(np.zeros(latents.shape[:3], bool), moments, self.drawn(moments.shape, 2))
        while len(self.steps) < len(self.denoising.times):
            self.steps.append(State(models.unet, models.backend, allocator=self.store, storage=self.storage))
        for i, _, x, step in self.denoising.noised(latents):
            inputs = self.inputs(np.concatenate([x, given], -1), self.denoising.times[i])
            run, _ = self.steps[i].paint(
                inputs.canvases,
                inputs.conditions,
                least_size=least_size,
                carried_rows=rows[i],
            )
            records += of_role("unet", run.records)
            self.store.drop_pages()
            if on_step is not None:
                on_step(step)
        inputs = models.decoder.encode(models.unscaled(latents))
        run, _ = self.decoder.paint(inputs.canvases, inputs.conditions)
        return records + of_role("decoder", run.records)

    def inputs(self, x: Host, now: float) -> Inputs:
        """The UNet's inputs for all it reads, `[N, h, w, C]`: with guidance for both texts, one after the other."""
        assert self.text is not None  # `run` computed it
        text = np.repeat(self.text, len(x), 0)
        x = np.concatenate([x, x]) if self.settings.guided else x
        return self.models.unet.encode(x, timestep=np.rint(now), text=text)

    def given(self, painted: Host, moments: Host, noise: Host) -> Host:
        """What an inpainting UNet reads beside noisy latents: bool `[…]`, and the encoder's output of the image."""
        return np.concatenate(
            [painted[..., None].astype(np.float32), self.models.latents(moments, noise)], axis=-1
        )

    def latents(self) -> Host:
        """The current latents, scaled, `[N, h, w, C]`."""
        latents = self.decoder.input("latents")
        return np.asarray(latents * np.float32(self.models.decoder.config.scale))

    def latent_size(self, image: Host) -> tuple[int, int]:
        """Rows and columns of the latents of an image `[N, H, W, 3]`."""
        reduction = self.models.decoder.config.reduction
        return image.shape[1] // reduction, image.shape[2] // reduction

    def drawn(self, shape: Sequence[int], number: int = 0) -> Host:
        """The noise that an encoder's latents are drawn with, `[N, h, w, C]` for any C, by the number of its draw."""
        channels = self.models.latent_channels
        return torch_noise(self.settings.seed, START + number, (*shape[:3], channels))

    def blocks(
        self, shape: tuple[int, ...], *, least_size: int, rows: Sequence[int]
    ) -> tuple[StepBlocks, int]:
        """The memory of the UNet's states, with all scratch arrays; and the bytes of encoder's and decoder's canvases.

        Of images of that shape, `[N, H, W, 3]`; `rows` as for `paint`.
        """
        models, (n, height, width, _) = self.models, shape
        h, w = (side // models.decoder.config.reduction for side in (height, width))
        latents = np.zeros((n, h, w, models.latent_channels), np.float32)
        double = np.zeros(
            ((2 if self.settings.guided else 1) * n, h, w, models.unet.config.in_channels), np.float32
        )
        context = np.zeros((len(double), models.text.config.tokens, models.unet.config.context), np.float32)
        inputs = models.unet.encode(double, timestep=self.denoising.times[0], text=context)
        steps = step_blocks(
            models.unet,
            inputs,
            self.storage,
            least_size=least_size,
            rows=rows,
        )
        images = [(models.encoder, np.zeros(shape, np.float32))] * (2 if models.inpaints else 1)
        ends = [
            step_blocks(model, model.encode(given), ENDS_KEPT_AS)
            for model, given in (*images, (models.decoder, latents))
        ]
        scratch = steps.scratch + sum(each.scratch for each in ends)
        return steps._replace(scratch=scratch), sum(sum(each.canvases) for each in ends)

    def _draw(self, i: int, shape: tuple[int, ...]) -> Host:
        """The noise of a trajectory: the second draw, and after those of the encoder's latents that of each step."""
        before = 2 if self.models.inpaints and i != START else 1
        return torch_noise(self.settings.seed, i + before, shape)

    def _end(self, model: Model) -> State:
        """A new state of encoder or decoder: their layers have paths that the UNet's have too."""
        backend = self.models.backend
        allocator = own_allocator(backend, self.store.turn)
        return State(model, backend, allocator=allocator, storage=ENDS_KEPT_AS)


def of_role(role: str, records: Iterable[LayerRecord]) -> list[LayerRecord]:
    """The records of a model's layers, under the paths of the whole: "unet.conv_in"."""
    return [dataclasses.replace(record, path=f"{role}.{record.path}") for record in records]
