"""Samplers: where they lead, what they yield, what a pixel and a seed decide; bad input is refused in one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparsegen.diffusion.registry import SAMPLERS, Step, get_sampler
from sparsegen.diffusion.samplers import ddim, ddpm, euler, euler_ancestral, lcm, pd, pndm
from sparsegen.diffusion.schedules import (
    CosineLogSNR,
    Image,
    Layout,
    NoiseSchedule,
    Times,
    cosine,
    linear,
)
from sparsegen.diffusion.seeds import START, Noise, noise, seeded
from sparsegen.errors import InputError, ShapeError
from tests.tolerances import check

SHAPE = (2, 5, 6, 3)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("ddpm", {}),
    "ddpm, large": ("ddpm", {"variance": "fixedlarge"}),
    "ddim": ("ddim", {}),
    "ddim, eta": ("ddim", {"eta": 0.7}),
    "dpm++2m": ("dpm++2m", {}),
    "dpm++2m-karras": ("dpm++2m-karras", {}),
    "euler": ("euler", {}),
    "euler-a": ("euler-a", {}),
    "pndm": ("pndm", {}),
    "lcm": ("lcm", {}),
    "pd": ("pd", {"clip": None}),
}
"""Every sampler, and those of its settings that draw noise."""
RANDOM = {"ddpm", "ddpm, large", "ddim, eta", "euler-a", "lcm"}


def way(variant: str, steps: int = 6, noise_level: bool = False) -> tuple[NoiseSchedule, Times]:
    """A schedule of the sampler's kind and times of it; with `noise_level` from the middle on, else from noise."""
    name = VARIANTS[variant][0]
    if name == "pd":
        distilled = CosineLogSNR()
        return distilled, distilled.times(2 * steps, steps) if noise_level else distilled.times(steps)
    return linear(), linear().times(steps, 500 if noise_level else None, get_sampler(name).layout)


def drawn(seed: int) -> Noise:
    """The noise of each step, in `SHAPE`."""
    return seeded(seed, SHAPE)


def pixelwise(x: Image, i: int, t: float) -> Image:
    """A made-up prediction whose every pixel depends on that pixel alone."""
    return np.tanh(x * (1 + i) + x[..., ::-1]) * np.float32(0.8)


def walk(variant: str, x: Image, predict: Any = pixelwise, **settings: Any) -> Iterator[Step]:
    """The steps of a variant from x on."""
    name, options = VARIANTS[variant]
    noisy, times = way(variant)
    return get_sampler(name)(predict, x, noisy, times, **({"noise": drawn(0)} | options | settings))


# -- where they lead -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_who_knows_the_picture_is_led_to_it(variant: str) -> None:
    """With the noise of one image predicted, every step's x0, and the last x, are that image."""
    noisy, times = way(variant, 8, noise_level=True)
    picture, start = (noise(4, index, SHAPE) for index in (0, START))

    def knows(x: Image, i: int, t: float) -> Image:
        alpha, sigma = noisy.alpha_sigma(t)
        return (x - alpha * picture) / sigma

    name, options = VARIANTS[variant]
    x = noisy.noised(picture, start, times[0])
    steps = list(get_sampler(name)(knows, x, noisy, times, noise=drawn(0), **options))
    for step in steps:
        check("trajectory", step.x0, picture)
        if variant not in RANDOM:
            # x is then at the noise of the next time, the noise that it started from
            check("trajectory", step.x, noisy.noised(picture, start, step.next_timestep))
    check("trajectory", steps[-1].x, picture)


def test_euler_is_ddim_and_a_first_order_solver_too() -> None:
    """Three derivations of one step: arXiv 2010.02502, equation 14, and the first order of arXiv 2211.01095."""
    x = noise(1, START, SHAPE)
    times = linear().times(20, 500, Layout("linspace"))
    by_ddim = list(ddim(pixelwise, x, linear(), times))
    for step, other in zip(euler(pixelwise, x, linear(), times), by_ddim, strict=True):
        check("trajectory", step.x, other.x)
    # two steps of fewer than 15: the second-order solver has no history in the first, and none is used in the last
    times = linear().times(2, 500)
    by_ddim = list(ddim(pixelwise, x, linear(), times))
    for step, other in zip(SAMPLERS["dpm++2m"](pixelwise, x, linear(), times), by_ddim, strict=True):
        check("trajectory", step.x, other.x)


def test_euler_that_clips_is_the_distilled_sampler_on_other_times() -> None:
    """Both go on along the noise that the clipped image leaves in x."""
    x, times = noise(1, START, SHAPE), linear().times(10, 500)
    walked = list(euler(pixelwise, x, linear(), times, clip=0.5))
    for step, other in zip(walked, pd(pixelwise, x, linear(), times, clip=0.5), strict=True):
        check("trajectory", step.x, other.x)
    free = list(euler(pixelwise, x, linear(), times))
    assert np.abs(walked[0].x - free[0].x).max() > 0.1


@pytest.mark.parametrize("clip", [None, 0.5])
def test_ddim_with_all_of_its_noise_fresh_is_ddpm(clip: float | None) -> None:
    """arXiv 2010.02502, section 4.1; where the image is clipped the two differ, and only there."""
    x = noise(1, START, SHAPE)
    noisy, times = linear(), linear().times(10, 500)
    one = next(iter(ddpm(pixelwise, x, noisy, times, clip=clip, noise=drawn(3))))
    other = next(iter(ddim(pixelwise, x, noisy, times, eta=1.0, clip=clip, noise=drawn(3))))
    same = np.abs(one.x0) < (clip or np.inf)
    assert same.any()
    assert same.all() == (clip is None)
    check("trajectory", one.x[same], other.x[same])


def distilled_by_formula(x: Image, answers: list[Image], times: Times, *, of_noise: bool) -> Iterator[Any]:
    """arXiv 2202.00512 in float64, from its words: x̂ clipped, ε̂ = (z - αx̂)/σ, z_s = α_s·x̂ + σ_s·ε̂; at last x̂."""
    z = x.astype(np.float64)
    for i, answer in enumerate(answers):
        squared = 1 / (1 + np.exp(-times[i]))
        alpha, sigma = squared**0.5, (1 - squared) ** 0.5
        clean = np.minimum(1, np.maximum(-1, (z - sigma * answer) / alpha if of_noise else answer))
        if i + 1 == len(times):
            z = clean
        else:
            later = 1 / (1 + np.exp(-times[i + 1]))
            z = later**0.5 * clean + (1 - later) ** 0.5 * (z - alpha * clean) / sigma
        yield z, clean


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("predicts", ["noise", "image"])
def test_progressive_distillation_by_its_formula(steps: int, predicts: str) -> None:
    distilled = CosineLogSNR()
    # from pure noise a predicted noise cannot tell the image (next test): from 5/8 of the way then, as SIGE edits
    times = distilled.times(steps) if predicts == "image" else distilled.times(8, min(steps, 5))
    x = noise(2, START, SHAPE)
    answers: list[Image] = []

    def predict(z: Image, i: int, t: float) -> Image:
        assert t == times[i]
        answers.append(pixelwise(z, i, t) * np.float32(1.4))
        return answers[-1]

    walked = list(pd(predict, x, distilled, times, predicts=predicts))
    told = distilled_by_formula(x, answers, times, of_noise=predicts == "noise")
    for step, (z, clean) in zip(walked, told, strict=True):
        check("trajectory", step.x, z)
        check("trajectory", step.x0, clean)
    assert walked[-1].x.tobytes() == walked[-1].x0.tobytes()


def test_a_distilled_picture_is_lost_in_its_noise_and_not_in_itself() -> None:
    """Why `pd` takes a predicted image: at pure noise α is 5e-5, and noise is rounded by up to 1e-7."""
    distilled = CosineLogSNR()
    times = distilled.times(4)
    alpha, sigma = distilled.alpha_sigma(times[0])
    picture, x = (noise(4, index, SHAPE).clip(-0.9, 0.9) for index in (0, START))
    eps = ((x.astype(np.float64) - alpha * picture) / sigma).astype(np.float32)
    by_picture = next(iter(pd(lambda z, i, t: picture, x, distilled, times, predicts="image")))
    by_noise = next(iter(pd(lambda z, i, t: eps, x, distilled, times)))
    assert by_picture.x0.tobytes() == picture.tobytes()
    assert 1e-4 < np.abs(by_noise.x0 - picture).max() < 3e-3


def test_euler_with_fresh_noise_is_ddpm() -> None:
    """k-diffusion's ancestral step and the posterior of arXiv 2006.11239, equation 7, are one distribution."""
    x, times = noise(1, START, SHAPE), linear().times(10, 500)
    by_ddpm = ddpm(pixelwise, x, linear(), times, noise=drawn(3))
    for step, other in zip(
        euler_ancestral(pixelwise, x, linear(), times, noise=drawn(3)), by_ddpm, strict=True
    ):
        check("trajectory", step.x, other.x)
    free, cut = (
        next(iter(euler_ancestral(pixelwise, x, linear(), times, clip=clip, noise=drawn(3))))
        for clip in (None, 0.5)
    )
    assert np.abs(free.x - cut.x).max() > 0.1


def test_pndm_by_its_formula() -> None:
    """Two steps are three evaluations: the first step is made twice, the second extrapolates (arXiv 2202.09778)."""
    scheme, x = linear(), noise(1, START, SHAPE)
    times = scheme.times(2, 500, get_sampler("pndm").layout)
    assert times.tolist() == [250, 0, 0]
    answers: list[Image] = []

    def predict(z: Image, i: int, t: float) -> Image:
        answers.append(pixelwise(z, i, t))
        return answers[-1]

    def onward(z: Image, eps: Image, now: float, after: float | None) -> Image:
        (alpha, sigma), (next_alpha, next_sigma) = scheme.alpha_sigma(now), scheme.alpha_sigma(after)
        return next_alpha * (z.astype(np.float64) - sigma * eps) / alpha + next_sigma * eps

    steps = list(pndm(predict, x, scheme, times))
    assert [(step.timestep, step.next_timestep) for step in steps] == [(250, 0), (0, 0), (0, None)]
    check("trajectory", steps[0].x, onward(x, answers[0], 250, 0))
    second = onward(x, (answers[0] + answers[1]) / 2, 250, 0)
    check("trajectory", steps[1].x, second)
    check("trajectory", steps[2].x, onward(second, (3 * answers[2] - answers[0]) / 2, 0, None))
    (only,) = pndm(pixelwise, x, scheme, np.array([250]))
    check("trajectory", only.x, next(iter(ddim(pixelwise, x, scheme, np.array([250])))).x)


def test_lcm_meets_the_image_at_timestep_0() -> None:
    """The boundary condition of consistency models (arXiv 2303.01469, section 3): f(x, 0) = x."""
    x = noise(1, START, SHAPE)
    (there,) = lcm(pixelwise, x, linear(), np.array([0]))
    assert there.x.tobytes() == x.tobytes()
    (far,) = lcm(pixelwise, x, linear(), np.array([999]))
    check("trajectory", far.x, next(iter(ddim(pixelwise, x, linear(), np.array([999])))).x0)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_velocity_leads_where_its_noise_leads(variant: str, clip: float | None) -> None:
    """v = α·noise - σ·x0: x0 = αx - σv, noise = αv + σx (arXiv 2202.00512, appendix D)."""
    noisy, times = way(variant, 6, noise_level=True)
    x = noisy.noised(noise(4, 0, SHAPE), noise(4, START, SHAPE), times[0])
    given = VARIANTS[variant][1] | {"clip": clip, "noise": drawn(0)}

    def velocity(z: Image, i: int, t: float) -> Image:
        alpha, sigma = noisy.alpha_sigma(t)
        # of the noise `pixelwise`, in float64
        return ((pixelwise(z, i, t).astype(np.float64) - sigma * z) / alpha).astype(np.float32)

    run = get_sampler(VARIANTS[variant][0])
    by_noise = list(run(pixelwise, x, noisy, times, **given))
    by_v = list(run(velocity, x, noisy, times, predicts="v", **given))
    if variant == "pndm":  # extrapolates the prediction, which is then another
        by_noise, by_v = by_noise[:1], by_v[:1]
    for step, other in zip(by_v, by_noise, strict=True):
        check("trajectory, along a velocity", step.x, other.x)
        check("trajectory, along a velocity", step.x0, other.x0)


# -- what they yield -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_step_is_yielded_as_it_is_done(variant: str) -> None:
    x = noise(1, START, SHAPE)
    untouched = x.copy()
    asked: list[tuple[int, float]] = []

    def predict(x: Image, i: int, t: float) -> Image:
        assert x.dtype == np.float32
        asked.append((i, t))
        return pixelwise(x, i, t)

    _, times = way(variant)
    steps: list[Step] = []
    for step in walk(variant, x, predict):
        steps.append(step)
        assert asked == list(enumerate(times[: len(steps)].tolist()))
        assert (step.index, step.of, step.timestep) == (len(steps) - 1, len(times), times[len(steps) - 1])
        for array in (step.x, step.x0):
            assert array.dtype == np.float32
            assert array.shape == SHAPE
    assert [step.next_timestep for step in steps] == [*times[1:].tolist(), None]
    arrays = [x, *(step.x for step in steps), *(step.x0 for step in steps)]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
    assert x.tobytes() == untouched.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        steps[0].x0[0] = 0


def test_a_network_may_answer_in_one_buffer() -> None:
    buffer = np.empty(SHAPE, np.float32)

    def predict(x: Image, i: int, t: float) -> Image:
        buffer[:] = pixelwise(x, i, t)
        return buffer

    for variant in VARIANTS:
        settings = {"predicts": "image"} if variant == "pd" else {}
        walked = walk(variant, noise(1, START, SHAPE), predict, **settings)
        plain = walk(variant, noise(1, START, SHAPE), **settings)
        for step, other in zip(list(walked), plain, strict=True):
            assert step.x.tobytes() == other.x.tobytes()
            assert step.x0.tobytes() == other.x0.tobytes()


def test_numbers_of_numpy_keep_the_arithmetic_in_float32() -> None:
    wide = np.float64(0.7)
    x = noise(1, START, SHAPE).astype(np.float64)
    noisy = replace(linear(), end=linear().alphas_bar[0])
    for step in ddim(pixelwise, x, noisy, linear().times(3), eta=wide, clip=wide, noise=drawn(0)):
        assert step.x.dtype == step.x0.dtype == np.float32
    plain = ddim(pixelwise, x, noisy, linear().times(3), eta=0.7, clip=0.7, noise=drawn(0))
    given = ddim(pixelwise, x, noisy, linear().times(3), eta=wide, clip=wide, noise=drawn(0))
    for step, other in zip(plain, given, strict=True):
        assert step.x.tobytes() == other.x.tobytes()
    for step in euler(pixelwise, x, noisy, np.array([900.5, 20]), clip=wide):
        assert step.x.dtype == step.x0.dtype == np.float32


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_between_steps_is_what_the_next_step_starts_from(variant: str) -> None:
    """Pixels held at an image's noise at every step end as that image, and no other pixel knows."""
    noisy, _ = way(variant)
    picture, start = (noise(9, index, SHAPE) for index in (0, START))
    held = np.zeros(SHAPE, bool)
    held[:, 2:] = True
    plain = list(walk(variant, start))
    seen: list[Image] = []

    def predict(x: Image, i: int, t: float) -> Image:
        seen.append(x.copy())
        return pixelwise(x, i, t)

    written: list[Image] = []
    for step, other in zip(walk(variant, start, predict), plain, strict=True):
        step.x[held] = noisy.noised(picture, start, step.next_timestep)[held]
        written.append(step.x.copy())
        assert step.x[~held].tobytes() == other.x[~held].tobytes()
    assert [x.tobytes() for x in seen[1:]] == [x.tobytes() for x in written[:-1]]
    assert written[-1][held].tobytes() == picture[held].tobytes()


# -- what a pixel and a seed decide ----------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_pixel_is_decided_by_that_pixel_alone(variant: str, clip: float | None) -> None:
    x = noise(1, START, SHAPE)
    y = x.copy()
    y[1, 3, 2] += 0.5
    for step, other in zip(walk(variant, x, clip=clip), walk(variant, y, clip=clip), strict=True):
        differs = (step.x.view(np.uint32) != other.x.view(np.uint32)).any(-1)
        assert np.argwhere(differs).tolist() in ([[1, 3, 2]], [])
        assert differs.any() or clip
    if variant not in RANDOM:
        part = (slice(0, 1), slice(1, 4), slice(2, 5))
        alone = list(walk(variant, x[part], clip=clip))
        for step, other in zip(walk(variant, x, clip=clip), alone, strict=True):
            assert step.x[part].tobytes() == other.x.tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_tiles_that_are_gathered_have_the_bits_that_they_have_in_the_image(variant: str) -> None:
    """x may have any shape: the noise of a step comes from the caller, gathered as x is."""
    shape = (2, 8, 12, 3)

    def gathered(image: Image) -> Image:
        rows = image.reshape(2, 2, 4, 3, 4, 3).swapaxes(2, 3).reshape(12, 4, 4, 3)
        return np.ascontiguousarray(rows[[1, 4, 5, 11]])

    x, fresh = noise(1, START, shape), seeded(5, shape)
    whole = walk(variant, x, noise=fresh)
    for step, part in zip(whole, walk(variant, gathered(x), noise=lambda i: gathered(fresh(i))), strict=True):
        assert part.x.tobytes() == gathered(step.x).tobytes()
        assert part.x0.tobytes() == gathered(step.x0).tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_noise_is_drawn_where_it_is_needed(variant: str) -> None:
    steps: list[int] = []

    def fresh(step: int) -> Image:
        steps.append(step)
        return noise(0, step, SHAPE)

    list(walk(variant, noise(1, START, SHAPE), noise=fresh))
    # the last step ends in the image
    assert steps == ([*range(5)] if variant in RANDOM else [])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_seed_decides_what_is_random(variant: str) -> None:
    x = noise(1, START, SHAPE)
    first, again, other = (list(walk(variant, x, noise=drawn(seed))) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        assert a.x.tobytes() == b.x.tobytes()
    assert (first[-1].x.tobytes() != other[-1].x.tobytes()) == (variant in RANDOM)


def test_every_seed_and_step_has_noise_of_its_own() -> None:
    # among them numbers of which one's words begin with another's
    seeds = (0, 1, 5, 2**32, 2**32 + 5, 5 * 2**32, 2**64 + 1)
    drawn = {noise(seed, index, (1, 2, 2, 1)).tobytes() for seed in seeds for index in (START, 0, 1, 4, 5)}
    assert len(drawn) == 5 * len(seeds)
    sample = noise(3, 0, (1, 64, 64, 3))
    assert sample.dtype == np.float32
    assert abs(float(sample.mean())) < 0.03
    assert abs(float(sample.std()) - 1) < 0.03


# -- bad input -------------------------------------------------------------------------------------------


def first(sampler: str = "ddim", **given: Any) -> Step:
    """The first step of a sampler, of which some arguments are `given`."""
    arguments: dict[str, Any] = {"predict": pixelwise, "x": noise(0, START, SHAPE), "schedule": linear()}
    arguments["noise"] = drawn(given.pop("seed", 0))
    return next(get_sampler(sampler)(**(arguments | {"timesteps": linear().times(3)} | given)))


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "sampler": (
        lambda: get_sampler("plms"),
        r"unknown sampler 'plms'; known: ddpm, ddim, dpm\+\+2m, dpm\+\+2m-karras, euler, euler-a, pndm, lcm, pd",
    ),
    "no timesteps": (lambda: first(timesteps=np.array([], int)), "there are no timesteps"),
    "rising": (
        lambda: first(timesteps=np.array([3, 9, 5])),
        "step 0 goes from 3 to 9, expected a time of less noise",
    ),
    "twice": (lambda: first(timesteps=np.array([9, 3, 3, 1])), "step 1 goes from 3 to 3"),
    "past the end": (
        lambda: first(timesteps=np.array([1000, 3])),
        "timestep is 1000, expected a number from 0 to 999",
    ),
    "eta": (lambda: first(eta=1.5), "eta is 1.5, expected a number from 0"),
    "eta, not a number": (lambda: first(eta=math.nan), "eta is nan"),
    "second timestep once": (
        lambda: first("pndm"),
        r"timesteps begin \[666, 333, 0\], expected the second twice; lay them with times",
    ),
    "second timestep once, of two": (
        lambda: first("pndm", timesteps=np.array([9, 3])),
        r"timesteps begin \[9, 3\], expected the second twice",
    ),
    "third timestep twice": (
        lambda: first("pndm", timesteps=np.array([9, 6, 6, 3, 3])),
        "step 3 goes from 3 to 3",
    ),
    "clip": (lambda: first(clip=0), "clip is 0, expected None or a number above 0"),
    "variance": (
        lambda: first("ddpm", variance="learned"),
        "variance is 'learned', expected fixedsmall or fixedlarge",
    ),
    "seed": (lambda: first("ddpm", seed=-1), "seed is -1, expected a whole number, 0 or more"),
    "seed, broken": (lambda: first("ddpm", seed=0.5), "seed is 0.5"),
    "predicts": (lambda: first("pd", predicts="x"), "predicts is 'x', expected noise or image or v"),
    "predicts, of another sampler": (
        lambda: first("euler", predicts="image"),
        "predicts is 'image', expected noise or v for sampler 'euler'",
    ),
    "no noise": (lambda: first("ddpm", noise=None), "adds fresh noise; expected noise=, such as seeded"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_refused_in_one_line(what: str) -> None:
    call, message = WRONG[what]
    with pytest.raises(InputError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_a_prediction_of_another_shape_is_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"prediction has shape \[2, 5, 6, 1\], expected \[2, 5, 6, 3\], the shape of x"
    ):
        first(predict=lambda x, i, t: x[..., :1])


def test_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"noise has shape \[1, 5, 6, 3\], expected \[2, 5, 6, 3\]"):
        first("ddpm", noise=lambda i: noise(0, i, (1, *SHAPE[1:])))


def test_the_last_step_may_stay_where_it_is() -> None:
    """A schedule that ends at its cleanest timestep, and timesteps that lead there: nothing is left to do."""
    for noisy in (linear(), cosine()):
        noisy = replace(noisy, end=float(noisy.alphas_bar[0]))
        x = noise(1, START, SHAPE)
        for name in ("ddpm", "ddim", "dpm++2m", "euler", "euler-a", "pndm"):
            times = linear().times(16, layout=replace(get_sampler(name).layout, drop_last=False))
            *_, before, last = get_sampler(name)(pixelwise, x, noisy, times, noise=drawn(0))
            check("trajectory", last.x, before.x)
