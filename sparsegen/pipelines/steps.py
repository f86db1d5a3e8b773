"""Denoising: a model and settings come in, a sampler's steps come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..diffusion.samplers import Step
from ..diffusion.schedules import Picture
from ..diffusion.settings import DiffusionDefaults, Settings


def denoised(
    model: Any, settings: Settings, compute: Callable[[int, Picture, float], Picture], x: Picture
) -> Iterator[Step]:
    """The sampler's steps from `x` on; `compute(i, x, time)` gives the network's output at step i.

    Between two steps the caller may write into `step.x`.
    """

    def predict(x: Picture, i: int, now: float) -> Picture:
        predicted: Picture = model.prediction(compute(i, x, now), x, now)
        return predicted

    diffusion: DiffusionDefaults = model.diffusion
    return settings.trajectory(predict, x, predicts=diffusion.predicts)
