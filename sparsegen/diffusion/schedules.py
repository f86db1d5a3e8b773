"""Noise schedules: a time comes in, the shares of image and noise at it come out; and the times of a trajectory.

Everywhere x = α·x0 + σ·noise with α² + σ² = 1 ("variance preserving", Ho et al., arXiv 2006.11239, equation 4). A
schedule gives α and σ at a time, and the times at which so many steps evaluate the model: for a model conditioned on
1000 timesteps (`Schedule`), or on the log signal-to-noise ratio itself (`CosineLogSNR`). After the last step the time
is None.

Scalars here are Python floats, computed in float64; NumPy rounds each to float32 once, as it meets a float32 array. All
arithmetic on arrays is element by element, so that a pixel's bits depend on that pixel alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np

from ..checks import is_whole, whole_number
from ..errors import InputError, ShapeError

Image: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
"""float32 `[N, H, W, C]`, clean or noisy; a model of images expects values within -1 … 1."""
Times: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
"""`[steps]`, from the noisiest time to the cleanest: int64 timesteps, or float64."""


@dataclass(frozen=True)
class Layout:
    """How a trajectory's times are laid over a schedule's timesteps."""

    spacing: str = "leading"
    """`leading`, `trailing`, `linspace`, `karras` or `lcm` (`Schedule.times`)."""
    offset: int = 0
    """Added to every timestep of `leading`, as diffusers' `steps_offset`; the other spacings ignore it, as there."""
    drop_last: bool = False
    """Lay one timestep more and drop the cleanest (`trailing` has no timestep 0 to drop)."""
    whole: bool = True
    """Round the timesteps of `linspace` to whole ones."""
    second_twice: bool = False
    """Lay the second timestep twice, if there are several: a sampler that makes its first step twice."""


LEADING = Layout()
_MOST_STEPS = 1_000_000
_KARRAS_RHO = 7
_LCM_TIMESTEPS = 50
"""Timesteps that a consistency model is distilled for (diffusers' `original_inference_steps`)."""


class TooManySteps(InputError):
    """There are more steps than times to take."""

    def __init__(self, steps: int, most: int) -> None:
        super().__init__(f"steps is {steps}, expected a whole number from 1 to {most}")
        self.most = most
        """The largest number of steps."""


class NoiseSchedule(ABC):
    """How much image and noise there is at each time, and which times a trajectory takes."""

    time: ClassVar[str]
    """The condition that its times are: "timestep", "logsnr"."""

    @abstractmethod
    def alpha_sigma(self, time: float | None) -> tuple[float, float]:
        """α and σ, the shares of image and noise in x at `time`; None is after the last step."""

    @abstractmethod
    def times(self, steps: int, noise_level: int | None = None, layout: Layout = LEADING) -> Times:
        """The times at which the model is evaluated, `[steps or fewer]`, from the noisiest to the cleanest.

        `noise_level` None: from pure noise; else from less noise, to edit an image (SDEdit, Meng et al., arXiv
        2108.01073), which enters at the first time returned: `noised(x0, noise, times[0])`.

        Raises
        ------
        InputError
            `steps` is not from 1 to the number of times (TooManySteps if it is more), or `noise_level` not from 1 to
            `most_noise(steps)`.
        """

    @abstractmethod
    def most_noise(self, steps: int) -> int:
        """The highest noise level of a trajectory of `steps`: that of pure noise."""

    def logsnr(self, time: float | None) -> float:
        """The log signal-to-noise ratio log(α²/σ²); infinity where there is no noise."""
        alpha, sigma = self.alpha_sigma(time)
        return 2 * math.log(alpha / sigma) if sigma else math.inf

    def noised(self, x0: Image, noise: Image, time: float | None) -> Image:
        """The image `x0` at the noise of `time`: the start of a trajectory that edits x0, and its held pixels.

        At None of a schedule that ends clean this is x0, bit for bit. (A trajectory from pure noise starts from the
        noise alone.)
        """
        x0, noise = np.asarray(x0, np.float32), np.asarray(noise, np.float32)
        if x0.shape != noise.shape:
            raise ShapeError(
                f"the image has shape {list(x0.shape)}, its noise {list(noise.shape)}; expected the same shape"
            )
        alpha, sigma = self.alpha_sigma(time)
        return alpha * x0 + sigma * noise


# -- a thousand timesteps --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Schedule(NoiseSchedule):
    """The noise at each of the T timesteps that a model was trained on, 0 the cleanest."""

    time = "timestep"

    alphas_bar: np.ndarray[Any, np.dtype[Any]]
    """float64 `[T]`: α² at each timestep, ᾱ of the DDPM paper: the running products of 1 - β."""
    end: float = 1.0
    """ᾱ after the last step: 1, a clean image. Stable Diffusion's samplers end at `alphas_bar[0]` instead (diffusers'
    `set_alpha_to_one=False`, or `final_sigmas_type="sigma_min"`): `dataclasses.replace` it."""
    offset: int = 0
    """Added to the layout's offset: the one that the schedule's models are sampled with."""

    def __post_init__(self) -> None:
        alphas_bar = np.array(self.alphas_bar, np.float64)
        if alphas_bar.ndim != 1 or not alphas_bar.size or not (alphas_bar[-1] > 0 and alphas_bar[0] < 1):
            raise InputError(f"alphas_bar is {alphas_bar!r}, expected a list of numbers between 0 and 1")
        if not (np.diff(alphas_bar) < 0).all():
            raise InputError("alphas_bar rises or repeats, expected a fall from each timestep to the next")
        if not alphas_bar[0] <= self.end <= 1:
            raise InputError(
                f"end is {self.end!r}, expected a number from alphas_bar[0] = {alphas_bar[0]} to 1"
            )
        alphas_bar.flags.writeable = False
        object.__setattr__(self, "alphas_bar", alphas_bar)

    def __len__(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas_bar)

    def alpha_sigma(self, time: float | None) -> tuple[float, float]:
        """As in the base; between two timesteps σ/α is interpolated, as diffusers' Euler scheduler does."""
        if time is None:
            return math.sqrt(self.end), math.sqrt(1 - self.end)
        if not 0 <= time <= len(self) - 1:
            raise InputError(f"timestep is {time}, expected a number from 0 to {len(self) - 1}")
        below = int(time)
        alpha_bar = float(self.alphas_bar[below])
        if below != time:
            low, high = np.sqrt(1 / self.alphas_bar[below : below + 2] - 1).tolist()
            alpha_bar = 1 / (1 + (low + (time - below) * (high - low)) ** 2)
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def most_noise(self, steps: int) -> int:
        """T, however many the steps."""
        return len(self)

    def times(self, steps: int, noise_level: int | None = None, layout: Layout = LEADING) -> Times:
        """`steps` of the timesteps 0 … T - 1, falling: int64 `[steps]` (float64 of those that are not whole).

        With `Layout.second_twice` there is one more, `[steps + 1]`.

        The spacings are diffusers' (Lin et al., arXiv 2305.08891, table 2), here 4 of 1000:

        - `leading`: 750, 500, 250, 0: every (T // steps)th from 0 on, plus the offset;
        - `trailing`: 999, 749, 499, 249: from the last one down;
        - `linspace`: 999, 666, 333, 0: both ends;
        - `karras`: 999.0, 687.2, 145.9, 0.0 of `scaled_linear`: (σ/α)^(1/7) falls evenly between both ends, which lays
          more of them where there is less noise (Karras et al., arXiv 2206.00364, equation 5);
        - `lcm`: 999, 759, 499, 259: of the 50 timesteps 999, 979, …, 19 that consistency models are distilled for.

        `noise_level` L lays the steps over the first L timesteps instead of all T: 50 steps of 500 lead from 490 down
        by 10. For `leading` this is SIGE's and the DDIM authors' range(0, L, L // steps), cut to `steps` where L is no
        multiple of them.
        """
        length, spacing, offset = len(self), layout.spacing, layout.offset + self.offset
        extra = 1 if layout.drop_last and spacing != "trailing" else 0
        if noise_level is not None:
            length = whole_number("noise_level", noise_level, 1, length)
            if length == extra:
                raise InputError(
                    "noise_level is 1, expected 2 or more: this sampler drops the cleanest timestep"
                )
        if is_whole(steps) and steps > length - extra:
            raise TooManySteps(steps, length - extra)
        whole_number("steps", steps, 1, length - extra)
        whole_number("offset", offset, 0, len(self))
        laid: Times
        whole = layout.whole or spacing != "linspace"
        if spacing == "leading":
            laid = np.arange(steps + extra)[::-1] * (length // (steps + extra)) + offset
            if laid[0] >= len(self) > laid[0] - self.offset:
                raise TooManySteps(steps, steps - self.offset)
            if laid[0] >= len(self):
                raise InputError(
                    f"offset is {offset}, expected one that keeps timestep {laid[0]} under {len(self)}"
                )
        elif spacing == "trailing":
            laid = np.arange(length, 0, -length / steps)[:steps].round() - 1
        elif spacing == "linspace":
            laid = np.linspace(0, length - 1, steps + extra)[::-1]
            laid = laid.round() if layout.whole else laid
        elif spacing == "karras":
            laid, whole = self._karras(length, steps + extra), False
        elif spacing == "lcm":
            laid = self._distilled(length, steps + extra)
        else:
            raise InputError(
                f"unknown spacing {spacing!r}; expected leading, trailing, linspace, karras or lcm"
            )
        laid = laid[: len(laid) - extra]
        if layout.second_twice:
            laid = np.insert(laid, 1, laid[1:2])
        return laid.astype(np.int64) if whole else laid

    def _karras(self, length: int, steps: int) -> Times:
        ratios = np.sqrt(1 / self.alphas_bar[:length] - 1)
        most, least = ratios[[-1, 0]] ** (1 / _KARRAS_RHO)
        wanted = (most + np.linspace(0, 1, steps) * (least - most)) ** _KARRAS_RHO
        # the ends themselves are not rounded
        wanted[-1], wanted[0] = ratios[0], ratios[-1]
        # as `alpha_sigma` interpolates: at these times σ/α is what is wanted
        times: Times = np.interp(wanted, ratios, np.arange(length))
        return times

    def _distilled(self, length: int, steps: int) -> Times:
        apart = max(len(self) // _LCM_TIMESTEPS, 1)
        if length < apart:
            raise InputError(
                f"noise_level is {length}, expected {apart} or more: this sampler's timesteps lie {apart} apart"
            )
        of = np.arange(apart, length + 1, apart)[::-1] - 1
        if steps > len(of):
            raise TooManySteps(steps, len(of))
        return of[np.linspace(0, len(of), steps, endpoint=False).astype(np.int64)]


def linear(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """β rises linearly from `start` to `end` (Ho et al., arXiv 2006.11239, section 4)."""
    _check_betas(steps, start, end)
    return _from_betas(np.linspace(start, end, steps))


def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Schedule:
    """√β rises linearly (latent diffusion's code; the default numbers are Stable Diffusion's)."""
    _check_betas(steps, start, end)
    return _from_betas(np.linspace(start**0.5, end**0.5, steps) ** 2)


def stable_diffusion() -> Schedule:
    """`scaled_linear` as Stable Diffusion's schedulers set it: timesteps one later, an end at the cleanest timestep."""
    noisy = scaled_linear()
    return replace(noisy, end=float(noisy.alphas_bar[0]), offset=1)


def cosine(steps: int = 1000, most: float = 0.999) -> Schedule:
    """ᾱ falls as a squared cosine, no β over `most` (Nichol and Dhariwal, arXiv 2102.09672, equation 17)."""
    _check_betas(steps, most, most)
    curve = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return _from_betas(np.minimum(1 - curve[1:] / curve[:-1], most))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "squaredcos_cap_v2": cosine,
    "stable_diffusion": stable_diffusion,
}
"""Name, as in diffusers' configurations, or a family's -> schedule."""


def schedule(name: str, **settings: Any) -> Schedule:
    """The schedule of that name; `settings` are the arguments of its function. Raises InputError."""
    if not isinstance(name, str) or name not in SCHEDULES:
        raise InputError(f"unknown noise schedule {name!r}; known: {', '.join(SCHEDULES)}")
    return SCHEDULES[name](**settings)


def _check_betas(steps: int, start: float, end: float) -> None:
    whole_number("steps", steps, 1, _MOST_STEPS)
    if not 0 < start <= end < 1:
        raise InputError(f"β goes from {start} to {end}, expected a rise, between 0 and 1")


def _from_betas(betas: np.ndarray[Any, np.dtype[Any]]) -> Schedule:
    return Schedule(np.cumprod(1 - betas))


# -- continuous time -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CosineLogSNR(NoiseSchedule):
    """Continuous time, measured by the log signal-to-noise ratio itself; a cosine lays the times.

    Source: Salimans and Ho, arXiv 2202.00512, section 2 and appendix; the bounds are those of their code.
    """

    time = "logsnr"

    most: float = 20.0
    """The logsnr is from -most (noise) to most (clean)."""

    def alpha_sigma(self, time: float | None) -> tuple[float, float]:
        """α² = sigmoid(logsnr), σ² = sigmoid(-logsnr)."""
        if time is None:
            return 1.0, 0.0
        if not -self.most <= time <= self.most:
            raise InputError(f"logsnr is {time}, expected a number from -{self.most} to {self.most}")
        return math.sqrt(1 / (1 + math.exp(-time))), math.sqrt(1 / (1 + math.exp(time)))

    def at(self, u: float) -> float:
        """The logsnr -2 log tan(a·u + b) of the time u, 0 (clean) … 1 (noise): α = cos(a·u + b)."""
        b = math.atan(math.exp(-self.most / 2))
        a = math.atan(math.exp(self.most / 2)) - b
        # the ends themselves are rounded to within the bounds
        return min(max(-2 * math.log(math.tan(a * u + b)), -self.most), self.most)

    def most_noise(self, steps: int) -> int:
        """All of the steps."""
        return steps

    def times(self, steps: int, noise_level: int | None = None, layout: Layout = LEADING) -> Times:
        """The logsnr of u = 1, … 2/steps, 1/steps: float64 `[steps]`, rising; the last `noise_level` of them.

        `layout` lays timesteps, of which there are none here: it has no effect.
        """
        whole_number("steps", steps, 1, _MOST_STEPS)
        level = steps if noise_level is None else whole_number("noise_level", noise_level, 1, steps)
        return np.array([self.at(i / steps) for i in range(level, 0, -1)])
