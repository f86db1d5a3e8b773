"""Pictures out of noise alone: a diffusion model and a size come in, pictures that nobody painted come out."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from sparsegen.backends.interface import Backend, Host
from sparsegen.backends.registry import get_backend

from ..diffusion import samplers
from ..diffusion.samplers import START
from ..diffusion.settings import DEFAULTS, OnStep, Settings, settings_for
from ..editing.session import Result
from ..editing.state import State
from ..engine.run import LayerRecord
from ..engine.stats import Stats
from ..engine.store import Store
from ..errors import InputError
from ..models.base import Model, checked_model
from ..models.unet import UNet
from ..tiling.tiles import TileSet
from .steps import denoised

STEPS, TIMESTEPS = 50, 1000
"""Denoising steps where nothing is said, and timesteps, of a network that counts timesteps."""


def whole_way(model: Model, *, steps: int | None = None, **given: Any) -> Settings:
    """The settings of a way from pure noise. Raises InputError."""
    if model.family == "pd":
        steps = DEFAULTS["pd"].steps if steps is None else steps
        return settings_for(model, steps=steps, noise_level=steps, **given)
    return settings_for(model, steps=STEPS if steps is None else steps, noise_level=TIMESTEPS, **given)


def sample(
    model: Any,
    *,
    size: tuple[int, int] | None = None,
    count: int = 1,
    steps: int | None = None,
    sampler: str | None = None,
    eta: float | None = None,
    schedule: str | None = None,
    clip: float | None = 1.0,
    seed: samplers.Seed = 0,
    backend: str | Backend | None = None,
    on_step: OnStep | None = None,
) -> Result:
    """Unconditional pictures of a diffusion model: noise is denoised all the way.

    Parameters
    ----------
    model
        A network of `sparsegen.models`: DDPM or ProgressiveDistillation.
    size
        (height, width); None: those that the network was trained on, where that is known.
    count
        Pictures, computed as one batch: memory grows with it.
    steps
        Denoising steps; None: 50, of progressive distillation the family's own.
    sampler, eta, schedule, clip
        As for `SDEdit`.
    seed
        A number for each picture; one number s means s, s + 1, … Each picture has the bits that it has alone.
    backend
        As for `Session`.
    on_step
        Called after every step.

    Raises
    ------
    InputError, ShapeError, BackendError
        An option cannot be used; says which and why.
    NonFiniteError
        A layer computed NaN or infinity.
    """
    start = time.perf_counter()
    needed = "sample needs a diffusion model"
    if not isinstance(checked_model(model, needed), UNet):
        raise InputError(f"{needed}, {model.family!r} is none")
    height, width = _checked_size(model.size if size is None else size)
    model.check_size(height, width)
    if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 1:
        raise InputError(f"count is {count!r}, expected a number of pictures, 1 or more")
    settings = whole_way(
        model, steps=steps, sampler=sampler, eta=eta, schedule=schedule, clip=clip, seed=seed
    )
    shape = (int(count), height, width, model.config.in_channels)
    x = samplers.noise(seed, START, shape)
    engine = get_backend(backend)
    state = State(model, engine, allocator=Store())
    records: list[LayerRecord] = []

    def compute(i: int, x: Host, now: float) -> Host:
        inputs = model.encode(x, **{model.time: now})
        run, output = state.paint(inputs.canvases, inputs.conditions, keep_canvases=False)
        records.extend(run.records)
        return output

    def noise(i: int) -> Host:
        return samplers.noise(seed, i, shape)

    for step in denoised(model, settings, compute, x, noise):
        x = np.clip(step.x, -1, 1) if step.next_timestep is None else step.x
        if on_step is not None:
            on_step(dataclasses.replace(step, x=x.copy()))
    stats = Stats(1.0, tuple(records), (time.perf_counter() - start) * 1e3, state.memory.nbytes)
    return Result(model.picture(x), x, stats, TileSet.full(*x.shape[:3]))


def _checked_size(size: Any) -> tuple[int, int]:
    """(height, width). Raises InputError."""
    if size is None:
        raise InputError(
            "the file does not say which size the network was trained on; give size=(height, width)"
        )
    sides = size.tolist() if isinstance(size, np.ndarray) else size
    if (
        not isinstance(sides, tuple | list)
        or len(sides) != 2
        or not all(
            isinstance(side, int | np.integer) and not isinstance(side, bool) and side > 0 for side in sides
        )
    ):
        raise InputError(f"size is {size!r}, expected (height, width) in pixels")
    return int(sides[0]), int(sides[1])
