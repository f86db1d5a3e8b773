"""How a diffusion model denoises: a model and what the user says come in, settings and a sampler's steps come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..checks import in_range
from ..errors import InputError
from . import samplers, schedules
from .samplers import Step

OnStep = Callable[[Step], None]
"""Called after every denoising step: `step.x` is a copy of what there is, `step.x0` a preview in [-1, 1]."""


@dataclass(frozen=True)
class Settings:
    """How a picture is denoised; what a family's `sampling` gives is the default."""

    steps: int
    """Denoising steps. (Progressive distillation: those of the whole way from noise; `noise_level` are taken.)"""
    noise_level: int
    """Where the picture enters: as noisy as after so many of the 1000 timesteps (of the `steps`)."""
    sampler: str
    eta: float = 0.0
    """DDIM's share of fresh noise in each step, 0 to 1."""
    schedule: str = "linear"
    """How noise grows over the timesteps: linear, scaled_linear, cosine."""
    clip: float | None = 1.0
    """Predicted pictures are cut to ±clip; None: they are not."""
    seed: samplers.Seed = 0
    """Of the noise: a number for each picture of a batch; one number s stands for s, s + 1, …"""

    def plain(self) -> Settings:
        """The same in Python's own numbers, whatever kind was given: a file of text keeps them."""
        clip = None if self.clip is None else float(self.clip)
        return dataclasses.replace(
            self,
            steps=int(self.steps),
            noise_level=int(self.noise_level),
            eta=float(self.eta),
            clip=clip,
            seed=samplers.checked_seed(self.seed),
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


def settings_for(model: Any, **given: Any) -> Settings:
    """The settings of `model`: the family's, what its own `sampling` says otherwise, and what is `given` and not None.

    Raises
    ------
    InputError
        One of them cannot be used; says which and why.
    """
    said = {name: value for name, value in given.items() if value is not None or name in ("clip", "seed")}
    settings = dataclasses.replace(DEFAULTS[model.family], **{**model.sampling, **said})
    samplers.get_sampler(settings.sampler)
    in_range("eta", settings.eta, 0, 1)
    if settings.clip is not None:
        in_range("clip", settings.clip, 0, ends="(]", otherwise="None")
    if (settings.sampler == "pd") != (model.family == "pd"):
        raise InputError(
            f"sampler {settings.sampler!r} does not go with a {model.family} network; "
            f"choose {'pd' if model.family == 'pd' else 'one of ddim, ddpm, dpm++2m, euler'}"
        )
    if (
        given.get("noise_level") is None
        and model.family == "pd"
        and settings.noise_level > settings.steps > 0
    ):
        raise InputError(
            f"the default noise level of {settings.noise_level} steps is too high for {settings.steps}; give a noise "
            f"level of {settings.steps} or lower, or more steps"
        )
    try:
        settings.times()
    except schedules.TooManySteps as error:
        if given.get("steps") is not None:
            raise
        raise InputError(
            f"the default of {settings.steps} steps is too many for noise level {settings.noise_level} with "
            f"{settings.sampler}; give {error.most} steps or fewer, or a higher noise level"
        ) from None
    return settings.plain()
