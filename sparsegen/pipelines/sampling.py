"""Unconditional sampling: a diffusion model and a size come in, images made from noise alone come out."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from sparsegen.backends.interface import Backend, Host
from sparsegen.backends.registry import get_backend

from ..checks import is_whole, whole_number
from ..diffusion import seeds
from ..diffusion.seeds import START
from ..diffusion.settings import OnStep, whole_way
from ..editing.door import Result
from ..editing.state import State
from ..engine.own_store import own_allocator
from ..engine.stats import LayerRecord, Stats
from ..errors import InputError
from ..models.base import checked_diffusion
from ..tiling.tiles import TileSet
from .steps import denoised


def sample(
    model: Any,
    *,
    size: tuple[int, int] | None = None,
    count: int = 1,
    steps: int | None = None,
    sampler: str | None = None,
    schedule: str | None = None,
    clip: float | None = 1.0,
    seed: seeds.Seed = 0,
    backend: str | Backend | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> Result:
    """Unconditional images of a diffusion model, from noise alone through every step.

    Parameters
    ----------
    model
        A model of `sparsegen.models`: DDPM or ProgressiveDistillation.
    size
        (height, width); None: the size that the model was trained on, if its file gives it.
    count
        Images, computed as one batch: memory grows with it.
    steps
        Denoising steps; None: the family's default, 50 for a DDPM, 8 for progressive distillation.
    sampler, schedule, clip, options
        As for `SDEdit`.
    seed
        A number for each image; one number s means s, s + 1, … An image's bits do not depend on its batch.
    backend
        As for `Session`.
    on_step
        Called after every step.

    Raises
    ------
    InputError, ShapeError, BackendError
        An option cannot be used; the message names it and the reason.
    NonFiniteError
        A layer computed NaN or infinity.
    """
    start = time.perf_counter()
    diffusion = checked_diffusion(model, "sample needs a diffusion model")
    height, width = _checked_size(model.size if size is None else size)
    model.check_size(height, width)
    count = whole_number("count", count, 1, unit="of images")
    settings = whole_way(
        diffusion,
        model.sampling,
        steps=steps,
        sampler=sampler,
        schedule=schedule,
        clip=clip,
        seed=seed,
        **options,
    )
    shape = (count, height, width, model.config.in_channels)
    engine = get_backend(backend)
    state = State(model, engine, allocator=own_allocator(engine))
    records: list[LayerRecord] = []

    def compute(i: int, x: Host, now: float) -> Host:
        conditions: dict[str, Any] = {diffusion.time: now}
        inputs = model.encode(x, **conditions)
        run, output = state.paint(inputs.canvases, inputs.conditions, keep_canvases=False)
        records.extend(run.records)
        return output

    x = seeds.noise(seed, START, shape)
    for step in denoised(model, diffusion, settings, compute, x, seeds.seeded(seed, shape)):
        x = np.clip(step.x, -1, 1) if step.next_timestep is None else step.x
        if on_step is not None:
            on_step(dataclasses.replace(step, x=x.copy()))
    stats = Stats(1.0, tuple(records), (time.perf_counter() - start) * 1e3, state.memory.nbytes)
    return Result(model.images(x), x, stats, TileSet.full(*x.shape[:3]))


def _checked_size(size: Any) -> tuple[int, int]:
    """(height, width). Raises InputError."""
    if size is None:
        raise InputError(
            "the file does not record the size that the model was trained on; give size=(height, width)"
        )
    sides = size.tolist() if isinstance(size, np.ndarray) else size
    if (
        not isinstance(sides, tuple | list)
        or len(sides) != 2
        or not all(is_whole(side) and side > 0 for side in sides)
    ):
        raise InputError(f"size is {size!r}, expected (height, width) in pixels")
    return int(sides[0]), int(sides[1])
