"""Samplers: a model that predicts noise comes in, the steps of a trajectory from noise to an image come out.

Each sampler is a generator of `Step`s. All of them take and give x in the same form, x = α·x0 + σ·noise at a time of
the schedule (Euler, which works on x/α, converts inside), so that a pipeline may exchange one for another:

    scheme = schedules.linear()
    times = scheme.times(50)
    x = noise(seed, START, (1, 256, 256, 3))      # or scheme.noised(image, noise(…), times[0]) to edit an image
    for step in ddim(predict, x, scheme, times, noise=seeded(seed, x.shape)):
        show(step.x0, step.index, step.of)        # step.x is the image after the last

Between two steps the caller may write into `step.x`: the next step starts from it. That is how pixels outside a mask
are held: `step.x[outside] = scheme.noised(image, noise, step.next_timestep)[outside]`.

As generators do, samplers check their arguments when the first step is requested.

Randomness is the caller's: `noise(i)` gives the fresh noise of step i, in x's shape. All arithmetic is float32, element
by element, with scalars computed in float64: the bits of an element depend on that element of x, of the predictions and
of the noise alone. So x may be images `[N, H, W, C]` or the tiles gathered from them, `[K, 4, 4, C]`.

`registry` has each by its name, with the options that `@sampler(…)` declares: a new sampler, with options of its own,
is one decorated function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..checks import in_range
from ..errors import InputError, ShapeError
from .registry import Option, Predictor, Step, sampler
from .schedules import CosineLogSNR, Image, Layout, NoiseSchedule, Times
from .seeds import Noise

_NOISE_OR_V = ("noise", "v")


@dataclass(frozen=True)
class _Leg:
    """One step's part of a trajectory: from a time to the next, with α and σ at both."""

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

    def predicted(self, predict: Predictor, x: Image) -> Image:
        """The model's prediction at this step's time."""
        prediction = np.asarray(predict(x, self.index, self.time), np.float32)
        if prediction.shape != x.shape:
            raise ShapeError(
                f"the prediction has shape {list(prediction.shape)}, expected {list(x.shape)}, the shape of x"
            )
        return prediction

    def fresh(self, noise: Noise | None, x: Image) -> Image:
        """The fresh noise of this step."""
        if noise is None:
            raise InputError("this sampler adds fresh noise; expected noise=, such as seeded(seed, x.shape)")
        drawn = np.asarray(noise(self.index), np.float32)
        if drawn.shape != x.shape:
            raise ShapeError(
                f"the noise has shape {list(drawn.shape)}, expected {list(x.shape)}, the shape of x"
            )
        return drawn

    def parts(self, x: Image, prediction: Image, predicts: str, clip: float | None) -> tuple[Image, Image]:
        """The clean image within ±clip, a new array, and the noise in x, if the prediction is right."""
        if predicts == "v":
            return _clipped(self.alpha * x - self.sigma * prediction, clip), (
                self.alpha * prediction + self.sigma * x
            )
        if predicts == "image":
            x0 = _clipped(prediction.copy(), clip)
            return x0, self.left(x, x0)
        # DDPM, equation 15
        return _clipped((x - self.sigma * prediction) / self.alpha, clip), prediction

    def left(self, x: Image, x0: Image) -> Image:
        """The noise in x if the clean image is x0."""
        return (x - self.alpha * x0) / self.sigma

    def done(self, x: Image, x0: Image) -> Step:
        x0.flags.writeable = False
        return Step(self.index, self.of, self.time, self.next_time, x, x0)


@sampler("ddpm", predictions=_NOISE_OR_V)
def ddpm(
    predict: Predictor,
    x: Image,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    variance: str = "fixedsmall",
    clip: float | None = None,
    noise: Noise | None = None,
    predicts: str = "noise",
) -> Iterator[Step]:
    """Ancestral sampling: a step to the expected image, then fresh noise (Ho et al., arXiv 2006.11239, algorithm 2).

    `variance` of that noise: `fixedsmall`, the posterior's β̃ of equation 7, or `fixedlarge`, β itself (section 3.2).
    The last step adds none (algorithm 2, line 3), whichever timestep it starts from.
    """
    if variance not in ("fixedsmall", "fixedlarge"):
        raise InputError(f"variance is {variance!r}, expected fixedsmall or fixedlarge")
    x, legs = _start(x, schedule, timesteps, clip, predicts)
    for leg in legs:
        x0, _ = leg.parts(x, leg.predicted(predict, x), predicts, clip)
        # the paper's α and β of one timestep, here of all that the step passes
        kept = (leg.alpha / leg.next_alpha) ** 2
        beta = 1 - kept
        shrink = (leg.next_sigma / leg.sigma) ** 2
        # equation 7
        x = (leg.next_alpha * beta / leg.sigma**2) * x0 + (math.sqrt(kept) * shrink) * x
        if not leg.last:
            spread = math.sqrt(beta * shrink if variance == "fixedsmall" else beta)
            x += spread * leg.fresh(noise, x)
        yield leg.done(x, x0)


@sampler(
    "ddim",
    options={"eta": Option(0.0, "share of fresh noise", least=0, most=1)},
    predictions=_NOISE_OR_V,
)
def ddim(
    predict: Predictor,
    x: Image,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    eta: float = 0.0,
    clip: float | None = None,
    noise: Noise | None = None,
    predicts: str = "noise",
    stride: int | None = None,
) -> Iterator[Step]:
    """The predicted image with a smaller share of the predicted noise (Song et al., arXiv 2010.02502, equation 12).

    `eta`, 0 … 1, is how much of that noise is fresh (equation 16): none, or as much as DDPM's.

    A step goes to the next timestep, or `stride` timesteps on. (diffusers' scheduler always goes T // steps on, which
    is not the next timestep where these are laid by `linspace`, or by `trailing` with T no multiple of the steps;
    `stride=T // steps` gives its images.)
    """
    eta = in_range("eta", eta, 0, 1)
    x, legs = _start(x, schedule, timesteps, clip, predicts, stride=stride)
    for leg in legs:
        x0, eps = leg.parts(x, leg.predicted(predict, x), predicts, clip)
        beta = 1 - (leg.alpha / leg.next_alpha) ** 2
        fresh = eta * leg.next_sigma / leg.sigma * math.sqrt(beta)
        x = leg.next_alpha * x0 + math.sqrt(max(leg.next_sigma**2 - fresh**2, 0)) * eps
        if fresh:
            x += fresh * leg.fresh(noise, x)
        yield leg.done(x, x0)


@sampler("dpm++2m-karras", layout=Layout("karras"), predictions=_NOISE_OR_V, ends_clean=True)
@sampler("dpm++2m", layout=Layout(drop_last=True), predictions=_NOISE_OR_V, ends_clean=True)
def dpm_solver_pp_2m(
    predict: Predictor,
    x: Image,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    clip: float | None = None,
    noise: Noise | None = None,
    predicts: str = "noise",
) -> Iterator[Step]:
    """DPM-Solver++(2M): the predicted image, extrapolated from the last (Lu et al., arXiv 2211.01095, algorithm 2).

    The first step has none before it; the last does without, as in diffusers, where it ends clean or there are fewer
    than 15 steps. Nothing is random: `noise` is not called.

    `dpm++2m-karras` is the same function over other times (`Schedule.times`, `karras`), which are no whole timesteps.
    The model is conditioned on them as they are; diffusers rounds them for it, and keeps σ.

    The history is of predicted images, and writing into `step.x` does not change it: a pixel that is held at every step
    is overwritten whatever its history, and no pixel's history reaches another pixel.
    """
    x, legs = _start(x, schedule, timesteps, clip, predicts)
    before: Image | None = None
    h_before = math.nan
    for leg in legs:
        x0, _ = leg.parts(x, leg.predicted(predict, x), predicts, clip)
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


@sampler("euler", layout=Layout(whole=False), predictions=_NOISE_OR_V, ends_clean=True)
def euler(
    predict: Predictor,
    x: Image,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    clip: float | None = None,
    noise: Noise | None = None,
    predicts: str = "noise",
) -> Iterator[Step]:
    """Euler's method along the probability flow (Karras et al., arXiv 2206.00364, algorithm 1 without its correction).

    With s = σ/α, y = x/α is x0 + s·noise, and dy/ds is the predicted noise: a straight line to the next s. Without
    clipping this is DDIM without fresh noise, rounded otherwise (Song et al., arXiv 2010.02502, equations 13 and 14).
    Nothing is random: `noise` is not called.
    """
    x, legs = _start(x, schedule, timesteps, clip, predicts)
    for leg in legs:
        x0, eps = leg.parts(x, leg.predicted(predict, x), predicts, clip)
        s, next_s = leg.sigma / leg.alpha, leg.next_sigma / leg.next_alpha
        y = x / leg.alpha
        slope = eps if clip is None else (y - x0) / s
        x = leg.next_alpha * (y + (next_s - s) * slope)
        yield leg.done(x, x0)


@sampler("euler-a", layout=Layout(whole=False), predictions=_NOISE_OR_V, ends_clean=True)
def euler_ancestral(
    predict: Predictor,
    x: Image,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    clip: float | None = None,
    noise: Noise | None = None,
    predicts: str = "noise",
) -> Iterator[Step]:
    """Euler's method to less noise than the next time has, then fresh noise up to it (k-diffusion's `euler_ancestral`).

    With s = σ/α, y = x/α as in `euler`: of the noise s' of the next time, the share s'·√(1 - s'²/s²) is fresh, as much
    as DDPM's posterior has. The last step adds none: it goes to the schedule's end in a straight line.
    """
    x, legs = _start(x, schedule, timesteps, clip, predicts)
    for leg in legs:
        x0, eps = leg.parts(x, leg.predicted(predict, x), predicts, clip)
        s, next_s = leg.sigma / leg.alpha, leg.next_sigma / leg.next_alpha
        # of less noise than the next time has, and the rest
        less, fresh = (
            (next_s, 0.0) if leg.last else (next_s**2 / s, next_s * math.sqrt(1 - (next_s / s) ** 2))
        )
        y = x / leg.alpha
        slope = eps if clip is None else (y - x0) / s
        x = leg.next_alpha * (y + (less - s) * slope)
        if fresh:
            x += (leg.next_alpha * fresh) * leg.fresh(noise, x)
        yield leg.done(x, x0)


_MULTISTEP: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""The weights of Adams and Bashforth, of the newest prediction and those before it."""


@sampler("pndm", layout=Layout(second_twice=True), predictions=_NOISE_OR_V)
def pndm(
    predict: Predictor,
    x: Image,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    clip: float | None = None,
    noise: Noise | None = None,
    predicts: str = "noise",
    stride: int | None = None,
) -> Iterator[Step]:
    """PLMS: DDIM's step by a prediction extrapolated from the last four (Liu et al., arXiv 2202.09778, equation 12).

    The first step has none before it: it is made twice, the second time from where it started, by the mean of the
    predictions at both of its ends. So the model is evaluated at the second timestep twice (`Layout.second_twice`), and
    N steps are N + 1 of `Step`s: diffusers' PNDM scheduler with `skip_prk_steps`, Stable Diffusion's first sampler.
    Nothing is random: `noise` is not called.

    `stride` as for `ddim`; timesteps that repeat none are then taken as diffusers takes them.

    The history is of predictions, and the second step starts from the first x: writing into `step.x` changes neither. A
    pixel that is held at every step is overwritten whatever its history, and no pixel's history reaches another pixel.
    """
    x, legs = _start(x, schedule, timesteps, clip, predicts, stride=stride, again=1)
    if stride is None and len(legs) > 1 and (legs[-1].index == 1 or legs[1].time != legs[2].time):
        raise InputError(
            f"the timesteps begin {[leg.time for leg in legs[:3]]}, expected the second twice; lay them with "
            'times(…, layout=get_sampler("pndm").layout)'
        )
    start, before = x, list[Image]()
    for leg in legs:
        given = leg.predicted(predict, x)
        if leg.index == 1:
            made, given = legs[0], 0.5 * given + 0.5 * before[0]
        else:
            made, start = leg, x
            # the newest first; a copy, since the model may predict into one buffer
            before = [given.copy(), *before[:3]]
            weights = _MULTISTEP[len(before) - 1]
            given = weights[0] * before[0]
            for weight, each in zip(weights[1:], before[1:], strict=True):
                given += weight * each
        x0, eps = made.parts(start, given, predicts, clip)
        x = made.next_alpha * x0 + made.next_sigma * eps
        yield leg.done(x, x0)


@sampler("lcm", layout=Layout("lcm"), predictions=_NOISE_OR_V)
def lcm(
    predict: Predictor,
    x: Image,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    clip: float | None = None,
    noise: Noise | None = None,
    predicts: str = "noise",
) -> Iterator[Step]:
    """Latent consistency: the image, noised anew to the next time (Luo et al., arXiv 2310.04378, algorithm 3).

    For models distilled for it, in about 4 steps. The image is c_out·x0 + c_skip·x, whose shares meet the boundary
    condition at timestep 0: c_skip = d²/(t² + d²), c_out = t/√(t² + d²), d = 0.5, t ten times the timestep. The last
    step gives that image, whatever the schedule's end.
    """
    x, legs = _start(x, schedule, timesteps, clip, predicts)
    for leg in legs:
        x0, _ = leg.parts(x, leg.predicted(predict, x), predicts, clip)
        t, d = 10 * leg.time, 0.5
        x0 = (t / math.hypot(t, d)) * x0 + (d / math.hypot(t, d)) ** 2 * x
        x = x0.copy() if leg.last else leg.next_alpha * x0 + leg.next_sigma * leg.fresh(noise, x)
        yield leg.done(x, x0)


@sampler("pd", schedule=CosineLogSNR(), predictions=("noise", "image", "v"))
def pd(
    predict: Predictor,
    x: Image,
    schedule: NoiseSchedule,
    timesteps: Times,
    *,
    clip: float | None = 1.0,
    noise: Noise | None = None,
    predicts: str = "noise",
) -> Iterator[Step]:
    """Progressive distillation: DDIM by the noise that the clipped image leaves (Salimans and Ho, arXiv 2202.00512).

    The update is the DDIM rule of their section 2, the times are `CosineLogSNR().times(steps)`, and the last step gives
    the predicted image itself. Nothing is random: `noise` is not called.

    At pure noise α is 5e-5, where a noise rounded to float32 determines the image only to 1e-3. The model predicts the
    image as well: with `predicts="image"`, `predict` returns the image, and nothing is lost.
    """
    x, legs = _start(x, schedule, timesteps, clip, predicts)
    for leg in legs:
        x0, eps = leg.parts(x, leg.predicted(predict, x), predicts, clip)
        if clip is not None and predicts != "image":
            eps = leg.left(x, x0)
        x = leg.next_alpha * x0 + leg.next_sigma * eps
        yield leg.done(x, x0)


def _clipped(x0: Image, clip: float | None) -> Image:
    return x0 if clip is None else np.clip(x0, -float(clip), float(clip))


def _start(
    x: Image,
    schedule: NoiseSchedule,
    timesteps: Times,
    clip: float | None,
    predicts: str,
    *,
    stride: int | None = None,
    again: int | None = None,
) -> tuple[Image, list[_Leg]]:
    """x as float32, and the way through the timesteps to the schedule's end; leg `again` stays where it is."""
    x = np.asarray(x, np.float32)
    if clip is not None:
        in_range("clip", clip, 0, ends="(]", otherwise="None")
    if predicts not in ("noise", "image", "v"):
        raise InputError(f"predicts is {predicts!r}, expected noise, image or v")
    times: list[float] = np.asarray(timesteps).tolist()
    if not times:
        raise InputError("there are no timesteps; expected one or more")
    onward: list[float | None] = [*times[1:], None]
    if stride is not None:
        onward = [time - stride if time >= stride else None for time in times]
    if again is not None and again < len(times) - 1:
        onward[again] = times[again]
    legs = [
        _Leg(i, len(times), time, after, *schedule.alpha_sigma(time), *schedule.alpha_sigma(after))
        for i, (time, after) in enumerate(zip(times, onward, strict=True))
    ]
    for leg in legs:
        stays = leg.next_alpha == leg.alpha
        # a schedule's end may be its cleanest timestep: the last step may stay where it is
        if leg.next_alpha < leg.alpha or (stays and not leg.last and leg.index != again):
            raise InputError(
                f"step {leg.index} goes from {leg.time} to {leg.next_time}, expected a time of less noise"
            )
    return x, legs
