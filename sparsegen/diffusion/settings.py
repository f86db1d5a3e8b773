"""How a diffusion model denoises: defaults and a user's choices come in, settings and a sampler's steps come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from ..checks import in_range, is_whole
from ..errors import InputError
from . import registry, schedules, seeds
from .registry import Predictor, Step
from .schedules import Image
from .seeds import Noise

OnStep = Callable[[Step], None]
"""Called after every denoising step: `step.x` is a copy of the trajectory's state, `step.x0` a preview in [-1, 1]."""


@dataclass(frozen=True)
class Settings:
    """How an image is denoised."""

    steps: int
    """Denoising steps. (Progressive distillation: of a trajectory from pure noise; `noise_level` of them.)"""
    noise_level: int
    """Where the image enters: as noisy as after so many of the 1000 timesteps (of the `steps`)."""
    sampler: str
    schedule: str = "linear"
    """The noise schedule of a model conditioned on timesteps: linear, scaled_linear, cosine, stable_diffusion."""
    clip: float | None = 1.0
    """Predicted images are cut to ±clip; None: they are not."""
    seed: seeds.Seed = 0
    """Of the noise: a number for each image of a batch; one number s stands for s, s + 1, …"""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The sampler's own, by name, such as `eta` of ddim; an absent one has its default."""

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> Settings:
        """The settings that `described` gave.

        Raises
        ------
        TypeError
            One that has no default is missing.
        """
        names = {each.name for each in dataclasses.fields(cls)} - {"options"}
        common = {name: value for name, value in described.items() if name in names}
        return cls(**common, options={name: value for name, value in described.items() if name not in names})

    def described(self) -> dict[str, Any]:
        """All of them by name, the sampler's options among the others."""
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        del plain["options"]
        before = {name: plain.pop(name) for name in ("steps", "noise_level", "sampler")}
        return {**before, **self.options, **plain}

    def used(self) -> dict[str, Any]:
        """Those of `described` that the sampler uses."""
        used = self.described()
        if registry.get_sampler(self.sampler).schedule is not None:
            del used["schedule"]
        return used

    def checked(self) -> Settings:
        """The same in Python's own numbers, whichever kind was given, every option of the sampler among them.

        Raises
        ------
        InputError
            There is no such sampler or schedule, or a value is out of range; names it and its range.
        """
        options = registry.get_sampler(self.sampler).checked_options(self.options)
        clip = self.clip
        if clip is not None:
            clip = in_range("clip", clip, 0, ends="(]", otherwise="None")
        self.times()
        return dataclasses.replace(
            self,
            steps=int(self.steps),
            noise_level=int(self.noise_level),
            clip=clip,
            seed=seeds.checked_seed(self.seed),
            options=options,
        )

    def noise_schedule(self) -> schedules.NoiseSchedule:
        """The schedule: the sampler's only one, else by its name; with a clean end, where the sampler ends so."""
        sampler = registry.get_sampler(self.sampler)
        if sampler.schedule is not None:
            return sampler.schedule
        named = schedules.schedule(self.schedule)
        return dataclasses.replace(named, end=1.0) if sampler.ends_clean else named

    def times(self) -> list[float]:
        """The time of each step's evaluation of the model. Raises InputError: steps or noise level out of range."""
        layout = registry.get_sampler(self.sampler).layout
        return [float(t) for t in self.noise_schedule().times(self.steps, self.noise_level, layout)]

    def trajectory(
        self, predict: Predictor, x: Image, *, predicts: str = "noise", noise: Noise | None = None
    ) -> Iterator[Step]:
        """The sampler's steps from `x` at the first of `times()` on, with all of these settings.

        `noise` None: the seed's, for a batch of images of x's shape.
        """
        return registry.get_sampler(self.sampler)(
            predict,
            x,
            self.noise_schedule(),
            np.asarray(self.times()),
            predicts=predicts,
            clip=self.clip,
            noise=seeds.seeded(self.seed, x.shape) if noise is None else noise,
            **self.options,
        )


@dataclass(frozen=True)
class DiffusionDefaults:
    """The diffusion side of a model family: its condition, its prediction, and the settings that are not given."""

    time: str
    """The condition that is the time, as noise schedules call it: "timestep", "logsnr"."""
    predicts: Literal["noise", "image", "v"]
    edit: Settings
    """To edit an image."""
    sample_steps: int
    """Steps of a trajectory from pure noise."""

    def samplers(self) -> list[str]:
        """The samplers that such a model can be sampled with."""
        return [name for name, one in registry.SAMPLERS.items() if one.goes_with(self.time, self.predicts)]


def settings_for(defaults: DiffusionDefaults, own: Mapping[str, Any], **given: Any) -> Settings:
    """The settings of a model: those `given` and not None, else its `own`, else its family's `defaults`.

    `given`: `Settings` by name, the options of the sampler among them.

    Raises
    ------
    InputError
        One of them cannot be used; names it and its range.
    """
    settings = _chosen(defaults, own, given)
    if not registry.get_sampler(settings.sampler).goes_with(defaults.time, defaults.predicts):
        raise InputError(
            f"sampler {settings.sampler!r} does not go with a model that is conditioned on {defaults.time} and "
            f"predicts the {defaults.predicts}; choose one of {', '.join(defaults.samplers())}"
        )
    if given.get("noise_level") is None and is_whole(settings.steps) and settings.steps > 0:
        most = settings.noise_schedule().most_noise(settings.steps)
        if settings.noise_level > most:
            raise InputError(
                f"the default noise level of {settings.noise_level} steps is too high for {settings.steps}; give a "
                f"noise level of {most} or lower, or more steps"
            )
    try:
        return settings.checked()
    except schedules.TooManySteps as error:
        if given.get("steps") is not None:
            raise
        raise InputError(
            f"the default of {settings.steps} steps is too many for noise level {settings.noise_level} with "
            f"{settings.sampler}; give {error.most} steps or fewer, or a higher noise level"
        ) from None


def whole_way(
    defaults: DiffusionDefaults, own: Mapping[str, Any], *, steps: int | None = None, **given: Any
) -> Settings:
    """The settings of a trajectory from pure noise; the arguments and errors are those of `settings_for`."""
    steps = defaults.sample_steps if steps is None else steps
    most = _chosen(defaults, own, given).noise_schedule().most_noise(steps)
    return settings_for(defaults, own, **{**given, "steps": steps, "noise_level": most})


def _chosen(defaults: DiffusionDefaults, own: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """As `settings_for`, unchecked. Raises InputError: there is no such sampler."""
    # None is a choice for clip, and an error for seed
    chosen = {name: value for name, value in given.items() if value is not None or name in ("clip", "seed")}
    inherited = {**defaults.edit.described(), **own}
    # the defaults of one sampler's options do not apply to another sampler
    settings = Settings.read(inherited | chosen)
    taken = registry.get_sampler(settings.sampler).options
    options = {name: each for name, each in settings.options.items() if name in chosen or name in taken}
    return dataclasses.replace(settings, options=options)


_OWN = {"steps", "noise_level", "guidance", "sampler", "schedule"}


def checked_own(own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of sampling in which a model differs from its family, out of a file. Raises ValueError."""
    strange = sorted(set(own) - _OWN - registry.sampler_options().keys())
    if strange:
        raise ValueError(f"unknown settings of sampling: {', '.join(map(ascii, strange))}")
    return MappingProxyType(dict(own))


@dataclass(frozen=True)
class LatentSettings(Settings):
    """How latents are denoised, conditioned on a text."""

    strength: float = 1.0
    """The share of the steps that are taken, the last ones: 1 from noise alone, less from a noised image."""
    guidance: float = 7.5
    """How far predictions are moved away from those of the negative text (Ho and Salimans, arXiv 2207.12598)."""

    def used(self) -> dict[str, Any]:
        """As in the base; latents have a strength, and are not cut."""
        used = super().used()
        del used["noise_level"], used["clip"]
        return used

    def checked(self) -> LatentSettings:
        """As in the base. Raises InputError."""
        strength = in_range("strength", self.strength, 0, 1, ends="(]")
        settings = dataclasses.replace(
            self, strength=strength, guidance=in_range("guidance", self.guidance, 0)
        )
        checked = super(LatentSettings, settings).checked()
        assert isinstance(checked, LatentSettings)
        return checked

    def times(self) -> list[float]:
        """As in the base, of the last `strength` of the steps, rounded down as in diffusers."""
        layout = registry.get_sampler(self.sampler).layout
        laid = self.noise_schedule().times(self.steps, None, dataclasses.replace(layout, second_twice=False))
        left = min(int(self.steps * self.strength), len(laid))
        if not left:
            raise InputError(
                f"strength is {self.strength}, which leaves none of {self.steps} steps; give at least "
                f"{1 / self.steps:.3g}, or more steps"
            )
        times = [float(t) for t in laid[len(laid) - left :]]
        return [*times[:2], *times[1:]] if layout.second_twice and left > 1 else times

    @property
    def guided(self) -> bool:
        """Whether the negative text counts."""
        return self.guidance != 1


LATENT_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"steps": 50, "sampler": "ddim", "schedule": "stable_diffusion"}
)
"""The settings of latent diffusion that neither a user nor a checkpoint gives."""


def latent_settings(own: Mapping[str, Any], predicts: str, **given: Any) -> LatentSettings:
    """The settings of latent diffusion: those `given` and not None, else the checkpoint's `own`, else the usual ones.

    Raises
    ------
    InputError
        One of them cannot be used; names it and its range.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    named = {each.name for each in dataclasses.fields(LatentSettings)} - {"options"}
    merged = {**LATENT_DEFAULTS, **own, **chosen, "noise_level": 1000, "clip": None}
    sampler = registry.get_sampler(merged["sampler"])
    if not sampler.goes_with("timestep", predicts):
        fit = [name for name, one in registry.SAMPLERS.items() if one.goes_with("timestep", predicts)]
        raise InputError(
            f"sampler {merged['sampler']!r} does not go with this model; choose one of {', '.join(fit)}"
        )
    common = {name: value for name, value in merged.items() if name in named}
    options = {
        name: value
        for name, value in merged.items()
        if name not in named and (name in chosen or name in sampler.options)
    }
    return LatentSettings(**common, options=options).checked()
