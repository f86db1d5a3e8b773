"""Samplers: a network that predicts noise comes in, the way from noise to a picture comes out, step by step.

Each sampler is a generator of `Step`s. All of them take and give x in the same form, x = α·x0 + σ·noise at a time of
the schedule (Euler, which works on x/α, converts inside), so that a pipeline may exchange one for another:

    scheme = schedules.linear()
    times = schedules.timesteps(len(scheme), 50)
    x = noise(seed, START, (1, 256, 256, 3))          # or scheme.noised(picture, that, times[0]) to edit a picture
    for step in ddim(network, x, scheme, times):
        show(step.x0, step.index, step.of)            # step.x is the picture after the last

Between two steps the caller may write into `step.x`: the next step starts from what is then there. That is how pixels
outside a mask are held: `step.x[outside] = scheme.noised(picture, noise, step.next_timestep)[outside]`.

As generators do, they look at what they were given when the first step is asked for.

What is random depends on the seed and the number of the step alone, and all arithmetic is float32, element by element,
with scalars computed in float64: a pixel's bits depend on that pixel's x and predicted noise, and on nothing beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..checks import in_range, is_whole
from ..errors import InputError, ShapeError
from .schedules import NoiseSchedule, Picture, Times

Predictor: TypeAlias = Callable[[Picture, int, float], Picture]
"""`predict(x, i, t)`: x float32 `[N, H, W, C]` (not to be written), the number of the step, its time (a timestep or the
logsnr, as the schedule has it) -> the noise that x holds, of the same shape."""

START = -1
"""The number of the step before the first: whose noise a trajectory starts from."""


@dataclass(frozen=True, eq=False)
class Step:
    """What is there after one step."""

    index: int
    """0 for the first step."""
    of: int
    """How many there are."""
    timestep: float
    """The time at which the network was asked."""
    next_timestep: float | None
    """The time that x is at now; None after the last step, where the schedule ends: x is the picture."""
    x: Picture
    """float32 `[N, H, W, C]`, a new array each step, which the caller may write into."""
    x0: Picture
    """The clean picture as this step predicts it, for previews; read-only."""


Seed: TypeAlias = int | Sequence[int]
"""What decides noise: a number for each sample of a batch; one number s stands for s, s + 1, …"""


def checked_seed(seed: Seed) -> int | tuple[int, ...]:
    """`seed` in Python's own numbers. Raises InputError."""
    given: Any = seed
    listed: Any = given.tolist() if isinstance(given, np.ndarray) else given
    if _is_seed(listed):
        return int(listed)
    if not isinstance(listed, list | tuple | range) or not len(listed) or not all(map(_is_seed, listed)):
        raise InputError(
            f"seed is {given!r}, expected a whole number, 0 or more, or a list of them, one for each sample"
        )
    return tuple(map(int, listed))


def _is_seed(seed: Any) -> bool:
    return is_whole(seed) and seed >= 0


def sample_seeds(seed: Seed, samples: int) -> tuple[int, ...]:
    """The seed of each sample of a batch of `samples`. Raises InputError: there is another number of seeds."""
    checked = checked_seed(seed)
    if isinstance(checked, int):
        return tuple(range(checked, checked + samples))
    if len(checked) != samples:
        raise InputError(
            f"there are {len(checked)} seeds for {samples} pictures; give one for each, or one number"
        )
    return checked


def noise(seed: Seed, index: int, shape: Sequence[int]) -> Picture:
    """The standard normal noise of a seed's step `index` (or of `START`): float32 of `shape`, the same every time.

    Each sample of a batch has that of its own seed: the bits that it has alone. Raises InputError.
    """
    # the seed last: however large, its words then never read as another seed's step
    generators = (np.random.default_rng([index + 1, each]) for each in sample_seeds(seed, shape[0]))
    return np.stack([generator.standard_normal(tuple(shape[1:]), np.float32) for generator in generators])


@dataclass(frozen=True)
class _Leg:
    """One step's share of the way: from a time to the next, with α and σ at both."""

    index: int
    of: int
    time: float
    next_time: float | None
    alpha: float
    sigma: float
    next_alpha: float
    next_sigma: float

    @property
    def last(self) -> bool:
        return self.index == self.of - 1

    def ask(self, predict: Predictor, x: Picture) -> Picture:
        """The network's answer."""
        answer = np.asarray(predict(x, self.index, self.time), np.float32)
        if answer.shape != x.shape:
            raise ShapeError(
                f"the predictor gave {list(answer.shape)} for x of {list(x.shape)}; expected the same"
            )
        return answer

    def clean(self, x: Picture, eps: Picture, clip: float | None) -> Picture:
        """The clean picture if the noise in x is eps (DDPM, equation 15), within ±clip."""
        return _clipped((x - self.sigma * eps) / self.alpha, clip)

    def done(self, x: Picture, x0: Picture) -> Step:
        x0.flags.writeable = False
        return Step(self.index, self.of, self.time, self.next_time, x, x0)


def ddpm(
    predict: Predictor,
    x: Picture,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    variance: str = "fixedsmall",
    clip: float | None = None,
    seed: Seed = 0,
) -> Iterator[Step]:
    """Ancestral sampling: a step to the expected picture, then fresh noise (Ho et al., arXiv 2006.11239, algorithm 2).

    `variance` of that noise: `fixedsmall`, the posterior's β̃ of equation 7, or `fixedlarge`, β itself (section 3.2).
    The last step adds none (algorithm 2, line 3), whichever timestep it starts from.
    """
    if variance not in ("fixedsmall", "fixedlarge"):
        raise InputError(f"variance {variance!r} is unknown; choose fixedsmall or fixedlarge")
    x, legs = _start(x, schedule, timesteps, clip)
    for leg in legs:
        x0 = leg.clean(x, leg.ask(predict, x), clip)
        # the paper's α and β of one timestep, here of all that the step passes
        kept = (leg.alpha / leg.next_alpha) ** 2
        beta = 1 - kept
        shrink = (leg.next_sigma / leg.sigma) ** 2
        # equation 7
        x = (leg.next_alpha * beta / leg.sigma**2) * x0 + (math.sqrt(kept) * shrink) * x
        if not leg.last:
            spread = math.sqrt(beta * shrink if variance == "fixedsmall" else beta)
            x += spread * noise(seed, leg.index, x.shape)
        yield leg.done(x, x0)


def ddim(
    predict: Predictor,
    x: Picture,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    eta: float = 0.0,
    clip: float | None = None,
    seed: Seed = 0,
    stride: int | None = None,
) -> Iterator[Step]:
    """The predicted picture with the predicted noise put back, less of it (Song et al., arXiv 2010.02502, equation 12).

    `eta`, 0 … 1, is how much of that noise is fresh (equation 16): none, or as much as DDPM's.

    A step goes to the next timestep, or `stride` timesteps on. (diffusers' scheduler always goes T // steps on, which
    is not the next timestep where these are laid by `linspace`, or by `trailing` with T no multiple of the steps;
    `stride=T // steps` gives its pictures.)
    """
    eta = in_range("eta", eta, 0, 1)
    x, legs = _start(x, schedule, timesteps, clip, stride)
    for leg in legs:
        eps = leg.ask(predict, x)
        x0 = leg.clean(x, eps, clip)
        beta = 1 - (leg.alpha / leg.next_alpha) ** 2
        fresh = eta * leg.next_sigma / leg.sigma * math.sqrt(beta)
        x = leg.next_alpha * x0 + math.sqrt(max(leg.next_sigma**2 - fresh**2, 0)) * eps
        if fresh:
            x += fresh * noise(seed, leg.index, x.shape)
        yield leg.done(x, x0)


def dpm_solver_pp_2m(
    predict: Predictor,
    x: Picture,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    clip: float | None = None,
    seed: Seed = 0,
) -> Iterator[Step]:
    """DPM-Solver++(2M): the predicted picture, led on from the one before (Lu et al., arXiv 2211.01095, algorithm 2).

    The first step has none before it; the last does without, as in diffusers, where it ends clean or there are fewer
    than 15 steps. Nothing is random: `seed` is not read.

    The history is of predicted pictures. What the caller writes into `step.x` leaves it as it was predicted: a pixel
    that is held at every step is overwritten whatever its history, and no pixel's history reaches another pixel.
    """
    x, legs = _start(x, schedule, timesteps, clip)
    before: Picture | None = None
    h_before = math.nan
    for leg in legs:
        x0 = leg.clean(x, leg.ask(predict, x), clip)
        # λ = log(α/σ) grows by h, endlessly where no noise is left
        h = math.log(leg.next_alpha / leg.next_sigma * leg.sigma / leg.alpha) if leg.next_sigma else math.inf
        if before is None or (leg.last and (leg.of < 15 or not leg.next_sigma)):
            ahead = x0
        else:
            lean = h / h_before / 2
            ahead = (1 + lean) * x0 - lean * before
        x = (leg.next_sigma / leg.sigma) * x - (leg.next_alpha * math.expm1(-h)) * ahead
        before, h_before = x0, h
        yield leg.done(x, x0)


def euler(
    predict: Predictor,
    x: Picture,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    clip: float | None = None,
    seed: Seed = 0,
) -> Iterator[Step]:
    """Euler's method along the probability flow (Karras et al., arXiv 2206.00364, algorithm 1 without its correction).

    With s = σ/α, y = x/α is x0 + s·noise, and dy/ds is the predicted noise: a straight line to the next s. Without
    clipping this is DDIM without fresh noise, rounded otherwise (Song et al., arXiv 2010.02502, equations 13 and 14).
    Nothing is random: `seed` is not read.
    """
    x, legs = _start(x, schedule, timesteps, clip)
    for leg in legs:
        eps = leg.ask(predict, x)
        x0 = leg.clean(x, eps, clip)
        s, next_s = leg.sigma / leg.alpha, leg.next_sigma / leg.next_alpha
        y = x / leg.alpha
        slope = eps if clip is None else (y - x0) / s
        x = leg.next_alpha * (y + (next_s - s) * slope)
        yield leg.done(x, x0)


def pd(
    predict: Predictor,
    x: Picture,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    clip: float | None = 1.0,
    seed: Seed = 0,
    predicts: str = "noise",
) -> Iterator[Step]:
    """Progressive distillation: DDIM by the noise that the clipped picture leaves (Salimans and Ho, arXiv 2202.00512).

    The update is the DDIM rule of their section 2, the times are `CosineLogSNR().times(steps)`, and the last step gives
    the predicted picture itself. Nothing is random: `seed` is not read.

    The network is asked at pure noise, where α is 5e-5 and a rounded noise tells of the picture only to 1e-3. It
    predicts the picture itself as well: with `predicts="picture"`, `predict` returns that, and nothing is lost.
    """
    if predicts not in ("noise", "picture"):
        raise InputError(f"predicts is {predicts!r}; choose noise or picture")
    x, legs = _start(x, schedule, timesteps, clip)
    for leg in legs:
        answer = leg.ask(predict, x)
        x0 = _clipped(answer.copy(), clip) if predicts == "picture" else leg.clean(x, answer, clip)
        eps = answer if predicts == "noise" and clip is None else (x - leg.alpha * x0) / leg.sigma
        x = leg.next_alpha * x0 + leg.next_sigma * eps
        yield leg.done(x, x0)


SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm++2m": dpm_solver_pp_2m,
    "euler": euler,
    "pd": pd,
}
"""Name -> sampler."""

LAYOUT: Mapping[str, Mapping[str, bool]] = {"dpm++2m": {"drop_last": True}, "euler": {"whole": False}}
"""Name -> how diffusers' scheduler of that sampler lays its timesteps otherwise: keywords of `schedules.timesteps`."""


def get_sampler(name: str) -> Callable[..., Iterator[Step]]:
    """The sampler of that name."""
    if not isinstance(name, str) or name not in SAMPLERS:
        raise InputError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def _clipped(x0: Picture, clip: float | None) -> Picture:
    return x0 if clip is None else np.clip(x0, -float(clip), float(clip))


def _start(
    x: Picture, schedule: NoiseSchedule, timesteps: Times, clip: float | None, stride: int | None = None
) -> tuple[Picture, list[_Leg]]:
    """x as float32, and the way through the timesteps to the schedule's end."""
    x = np.asarray(x, np.float32)
    if clip is not None:
        in_range("clip", clip, 0, ends="(]", otherwise="None")
    times: list[float] = np.asarray(timesteps).tolist()
    if not times:
        raise InputError("there are no timesteps, expected one or more")
    onward: list[float | None] = [*times[1:], None]
    if stride is not None:
        onward = [time - stride if time >= stride else None for time in times]
    legs = [
        _Leg(i, len(times), time, after, *schedule.alpha_sigma(time), *schedule.alpha_sigma(after))
        for i, (time, after) in enumerate(zip(times, onward, strict=True))
    ]
    for leg in legs:
        # a schedule's end may be its cleanest timestep: only the last step may stay where it is
        if leg.next_alpha < leg.alpha or (leg.next_alpha == leg.alpha and not leg.last):
            raise InputError(
                f"step {leg.index} goes from {leg.time} to {leg.next_time}, expected a time of less noise"
            )
    return x, legs
