"""The samplers by name: a decorated function comes in; its options, checked, and its steps come out.

A sampler is a generator of `Step`s, registered with `@sampler(…)`, which declares its options and the models that it
goes with. Settings, errors and the command line read this registry; the samplers are in `samplers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from ..checks import in_range, whole_number
from ..errors import InputError
from .schedules import LEADING, Image, Layout, NoiseSchedule, Times

Predictor: TypeAlias = Callable[[Image, int, float], Image]
"""`predict(x, i, t)`: x float32 (not to be written), the number of the step, its time (a timestep or the logsnr, as the
schedule has it) -> the prediction, of x's shape: the noise in x; for `predicts="image"` the clean image; for
`predicts="v"` the velocity v = α·noise - σ·x0 (Salimans and Ho, arXiv 2202.00512, appendix D)."""


@dataclass(frozen=True, eq=False)
class Step:
    """The state of a trajectory after one step."""

    index: int
    """0 for the first step."""
    of: int
    """The number of steps."""
    timestep: float
    """The time at which the model was evaluated."""
    next_timestep: float | None
    """The time of x; None after the last step, where the schedule ends: x is the image."""
    x: Image
    """float32, a new array each step, which the caller may write into."""
    x0: Image
    """The clean image as this step predicts it, for previews; read-only."""


@dataclass(frozen=True)
class Option:
    """An option of one sampler, a keyword of its function: its default decides its type, float, int or str."""

    default: float | int | str
    about: str
    """A few words for the help of the command line: "share of fresh noise"."""
    least: float = 0
    most: float = math.inf
    choices: tuple[str, ...] = ()
    """Of a text: its values."""

    def checked(self, name: str, value: Any) -> float | int | str:
        """`value` as Python's own number, or the text. Raises InputError, which calls it `name`."""
        if isinstance(self.default, str):
            if value not in self.choices:
                raise InputError(f"{name} is {value!r}, expected {' or '.join(self.choices)}")
            return str(value)
        if isinstance(self.default, int):
            return whole_number(
                name, value, int(self.least), None if self.most == math.inf else int(self.most)
            )
        return in_range(name, value, self.least, self.most)

    @property
    def bounds(self) -> str:
        """Its range in words, for the help: "0 to 1"."""
        if self.choices:
            return " or ".join(self.choices)
        return f"{self.least:g} to {self.most:g}" if self.most < math.inf else f"{self.least:g} or more"


Steps: TypeAlias = Callable[..., Iterator[Step]]


@dataclass(frozen=True)
class Sampler:
    """A registered sampler: its function, and the declarations of `@sampler`."""

    name: str
    steps: Steps
    layout: Layout
    """How its timesteps are laid, as diffusers' scheduler of the same sampler does."""
    options: Mapping[str, Option]
    """Its options beside `clip` and `noise`, by name."""
    schedule: NoiseSchedule | None
    """The one schedule that it goes with; None: any of `SCHEDULES`."""
    predictions: tuple[str, ...]
    """The predictions that it takes: "noise", "image", "v"; with several, its function has the keyword `predicts`."""
    ends_clean: bool
    """Whether its last step leads to the clean image, whichever end a named schedule has, as in diffusers."""

    @property
    def time(self) -> str:
        """The condition of the models that it goes with: "timestep", "logsnr"."""
        return "timestep" if self.schedule is None else self.schedule.time

    def goes_with(self, time: str, predicts: str) -> bool:
        """Whether a model conditioned on `time` that predicts `predicts` can be sampled with it."""
        return self.time == time and predicts in self.predictions

    def checked_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every option by name, with its default where it is absent or None.

        Another sampler's option at its default has no effect and is left out.

        Raises
        ------
        InputError
            An option is out of range, or no option of this sampler.
        """
        for name in [name for name in given if name not in self.options]:
            others = sampler_options().get(name, {})
            if not any(given[name] in (None, option.default) for option in others.values()):
                if others:
                    raise InputError(
                        f"{name} is an option of sampler {', '.join(others)}, not of {self.name}; omit it"
                    )
                taken = ", ".join(self.options) or "none"
                raise InputError(f"unknown option {name}; options of sampler {self.name}: {taken}")
        return {
            name: option.default if given.get(name) is None else option.checked(name, given[name])
            for name, option in self.options.items()
        }

    def __call__(
        self,
        predict: Predictor,
        x: Image,
        schedule: NoiseSchedule,
        timesteps: Times,
        *,
        predicts: str = "noise",
        **options: Any,
    ) -> Iterator[Step]:
        """The steps from `x` on. Raises InputError: it does not take predictions of `predicts`."""
        if predicts not in self.predictions:
            raise InputError(
                f"predicts is {predicts!r}, expected {' or '.join(self.predictions)} for sampler {self.name!r}"
            )
        if len(self.predictions) > 1:
            options["predicts"] = predicts
        return self.steps(predict, x, schedule, timesteps, **options)


SAMPLERS: dict[str, Sampler] = {}
"""Name -> sampler, in the order of their registration."""

_COMMON = {
    *(
        "steps",
        "noise_level",
        "strength",
        "guidance",
        "sampler",
        "schedule",
        "clip",
        "seed",
        "noise",
        "predicts",
    ),
}
"""Names that no option may have: the common settings, and the arguments of every sampler."""


def sampler(
    *names: str,
    layout: Layout = LEADING,
    options: Mapping[str, Option] = MappingProxyType({}),
    schedule: NoiseSchedule | None = None,
    predictions: tuple[str, ...] = ("noise",),
    ends_clean: bool = False,
) -> Callable[[Steps], Steps]:
    """A decorator that registers a sampler under its names; the arguments are those of `Sampler`.

    Raises
    ------
    TypeError
        A name is taken, or an option is called as a common setting, or as another sampler's option of another type.
    """

    def register(steps: Steps) -> Steps:
        for name, option in options.items():
            same = sampler_options().get(name, {}).values()
            if name in _COMMON or any(type(other.default) is not type(option.default) for other in same):
                raise TypeError(
                    f"sampler {names[0]}: option {name!r} has another meaning; give it another name"
                )
        for name in names:
            if name in SAMPLERS:
                raise TypeError(f"two samplers are called {name!r}: {SAMPLERS[name].steps}, {steps}")
        for name in names:
            SAMPLERS[name] = Sampler(
                name, steps, layout, MappingProxyType(dict(options)), schedule, predictions, ends_clean
            )
        return steps

    return register


def get_sampler(name: str) -> Sampler:
    """The sampler of that name. Raises InputError, which lists them."""
    if not isinstance(name, str) or name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def sampler_options() -> dict[str, dict[str, Option]]:
    """Name of an option -> the samplers that take it, by name, with the option as each declares it."""
    found: dict[str, dict[str, Option]] = {}
    for sampler in SAMPLERS.values():
        for name, option in sampler.options.items():
            found.setdefault(name, {})[sampler.name] = option
    return found
