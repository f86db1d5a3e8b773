"""Noise schedules: shares of image and noise, the timesteps that are laid, and what is refused in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparsegen.diffusion.registry import SAMPLERS
from sparsegen.diffusion.schedules import (
    CosineLogSNR,
    Layout,
    Schedule,
    Times,
    TooManySteps,
    cosine,
    linear,
    scaled_linear,
    schedule,
)
from sparsegen.errors import InputError, ShapeError

KNOWN = {length: linear(length) for length in (400, 1000)}


def timesteps(
    length: int, steps: int, spacing: str = "leading", *, noise_level: int | None = None, **layout: Any
) -> Times:
    """The timesteps of a schedule of `length`."""
    return KNOWN[length].times(steps, noise_level, Layout(spacing, **layout))


EVERY = {"linear": linear(), "scaled_linear": scaled_linear(), "cosine": cosine()}


def test_schedules_hold_what_their_papers_say() -> None:
    betas = {name: 1 - s.alphas_bar[1:] / s.alphas_bar[:-1] for name, s in EVERY.items()}
    assert np.allclose(np.diff(betas["linear"], 2), 0)
    assert np.isclose(betas["linear"][-1], 0.02)
    assert np.allclose(np.diff(betas["scaled_linear"] ** 0.5, 2), 0)
    # Stable Diffusion's largest σ/α, as everyone quotes it
    alpha, sigma = EVERY["scaled_linear"].alpha_sigma(999)
    assert round(sigma / alpha, 4) == 14.6146
    assert betas["cosine"].max() == pytest.approx(0.999)
    angle = np.arange(1, 1000) / 1000 / 1.008 * math.pi / 2  # arXiv 2102.09672, equation 17, before the cap
    shift = 0.008 / 1.008 * math.pi / 2
    assert np.allclose(EVERY["cosine"].alphas_bar[:999], np.cos(angle + shift) ** 2 / math.cos(shift) ** 2)


@pytest.mark.parametrize("name", EVERY)
def test_shares_are_of_unit_variance_and_logsnr_is_theirs(name: str) -> None:
    noisy = EVERY[name]
    last = -math.inf
    for time in (999, 998.5, 700, 31, 0.25, 0, None):
        alpha, sigma = noisy.alpha_sigma(time)
        assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-15)
        assert noisy.logsnr(time) > last
        last = noisy.logsnr(time)
    assert last == math.inf
    assert noisy.alpha_sigma(None) == (1, 0)


def test_between_timesteps_the_ratio_is_interpolated() -> None:
    noisy = linear()
    low, high, between = (math.exp(-noisy.logsnr(t) / 2) for t in (166, 167, 166.5))
    assert between == pytest.approx((low + high) / 2, rel=1e-12)


def test_a_schedule_may_end_at_its_cleanest_timestep() -> None:
    noisy = linear()
    kept = replace(noisy, end=noisy.alphas_bar[0])
    assert kept.alpha_sigma(None) == noisy.alpha_sigma(0)
    assert all(type(share) is float for share in kept.alpha_sigma(None))


def test_noised_is_float32_and_of_each_pixel_alone() -> None:
    generator = np.random.default_rng(1)
    x0, noise = generator.standard_normal((2, 2, 9, 7, 3))
    whole = linear().noised(x0, noise, 600)
    assert whole.dtype == np.float32
    part = (slice(1, 2), slice(3, 8), slice(2, 3))
    assert linear().noised(x0[part], noise[part], 600).tobytes() == whole[part].tobytes()
    assert linear().noised(x0, noise, None).tobytes() == x0.astype(np.float32).tobytes()
    with pytest.raises(ShapeError, match=r"image has shape \[2, 9, 7, 3\], its noise \[1, 9, 7, 3\]"):
        linear().noised(x0, noise[:1], 600)


def test_spacings() -> None:
    assert timesteps(1000, 4).tolist() == [750, 500, 250, 0]
    assert timesteps(1000, 4, offset=1).tolist() == [751, 501, 251, 1]
    assert timesteps(1000, 4, "trailing").tolist() == [999, 749, 499, 249]
    assert timesteps(1000, 4, "linspace").tolist() == [999, 666, 333, 0]
    assert timesteps(1000, 7, "linspace", whole=False).tolist() == [999, 832.5, 666, 499.5, 333, 166.5, 0]
    assert timesteps(1000, 4, drop_last=True).tolist() == [800, 600, 400, 200]
    assert timesteps(1000, 3, "linspace", drop_last=True).tolist() == [999, 666, 333]
    assert timesteps(1000, 4, "trailing", drop_last=True).tolist() == [999, 749, 499, 249]


def test_a_noise_level_lays_the_steps_over_the_first_timesteps() -> None:
    """SIGE's `range(0, noise_level, noise_level // steps)`, and for the other spacings a schedule of that length."""
    assert timesteps(1000, 50, noise_level=500).tolist() == [*range(0, 500, 10)][::-1]
    assert timesteps(1000, 30, noise_level=500).tolist() == [*range(0, 500, 16)][:30][::-1]
    for spacing in ("leading", "trailing", "linspace"):
        for steps in (1, 3, 250, 400):
            laid = timesteps(1000, steps, spacing, noise_level=400)
            assert laid.tolist() == timesteps(400, steps, spacing).tolist()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    "layout", {replace(each.layout, spacing="leading") for each in SAMPLERS.values()}, ids=str
)
def test_timesteps_are_as_many_as_asked_and_fall(spacing: str, layout: Layout) -> None:
    for steps in range(1, 1000):
        laid = KNOWN[1000].times(steps, layout=replace(layout, spacing=spacing))
        if layout.second_twice and steps > 1:
            assert laid[1] == laid[2]
            laid = np.delete(laid, 1)
        assert laid.shape == (steps,)
        assert (np.diff(laid) < 0).all()
        assert laid[0] <= 999
        assert laid[-1] >= 0
        assert laid.dtype == (np.float64 if spacing == "linspace" and not layout.whole else np.int64)


def test_karras_times_are_even_in_the_seventh_root_of_the_noise() -> None:
    of_4 = schedule("scaled_linear").times(4, layout=Layout("karras"))
    assert of_4 == pytest.approx([999, 687.152491, 145.937922, 0])
    for noisy in (schedule("scaled_linear"), schedule("linear"), schedule("cosine")):
        for level in (None, 400):
            for steps in (1, 2, 20, 400):
                laid = noisy.times(steps, level, Layout("karras"))
                assert laid.dtype == np.float64
                assert laid.shape == (steps,)
                ratios = np.array([sigma / alpha for alpha, sigma in map(noisy.alpha_sigma, laid)])
                assert laid[0] == pytest.approx((level or 1000) - 1)
                assert np.diff(ratios ** (1 / 7), n=2) == pytest.approx(0, abs=1e-6)
                assert (np.diff(laid) < 0).all()
        assert (laid[0], laid[-1]) == (399, 0)


def test_lcm_takes_its_times_from_the_fifty_that_it_was_distilled_for() -> None:
    noisy, layout = schedule("scaled_linear"), Layout("lcm")
    assert noisy.times(4, layout=layout).tolist() == [999, 759, 499, 259]
    assert noisy.times(50, layout=layout).tolist() == [*range(19, 1000, 20)][::-1]
    assert noisy.times(2, 500, layout).tolist() == [499, 259]
    assert noisy.times(1, 20, layout).tolist() == [19]
    for steps, level, message in (
        (51, None, "steps is 51, expected a whole number from 1 to 50"),
        (3, 59, "steps is 3, .* from 1 to 2"),
        (1, 19, "noise_level is 19, expected 20 or more: this sampler's timesteps lie 20 apart"),
    ):
        with pytest.raises(InputError, match=message):
            noisy.times(steps, level, layout)


def test_stable_diffusions_timesteps_are_one_later_and_end_at_the_cleanest() -> None:
    noisy = schedule("stable_diffusion")
    assert noisy.times(4).tolist() == [751, 501, 251, 1]
    assert noisy.times(999).tolist() == [*range(1, 1000)][::-1]
    assert noisy.alpha_sigma(None) == noisy.alpha_sigma(0)
    assert noisy.alpha_sigma(None)[0] ** 2 == pytest.approx(0.99915)
    with pytest.raises(TooManySteps, match="steps is 1000, expected a whole number from 1 to 999"):
        noisy.times(1000)


def test_a_first_step_that_is_made_twice_has_its_second_time_twice() -> None:
    layout = Layout(second_twice=True, offset=1)
    laid = schedule("scaled_linear").times(20, layout=layout).tolist()
    assert laid[:4] == [951, 901, 901, 851]
    assert (len(laid), laid[-1]) == (21, 1)
    assert linear().times(2, layout=layout).tolist() == [501, 1, 1]
    assert linear().times(1, layout=layout).tolist() == [1]


def test_the_cosine_of_progressive_distillation() -> None:
    distilled = CosineLogSNR()
    times = distilled.times(8)
    assert times[0] == -20  # u = 1: noise
    assert times[3] == pytest.approx(-2 * math.log(math.tan(5 / 8 * math.pi / 2)), abs=1e-3)
    assert (np.diff(times) > 0).all()
    assert distilled.at(0) == 20
    assert distilled.at(0.5) == pytest.approx(0, abs=1e-9)
    assert times[-1] == distilled.at(1 / 8)
    for time in times:
        assert distilled.logsnr(time) == pytest.approx(time)
        u = next(i / 8 for i in range(1, 9) if distilled.at(i / 8) == time)
        assert distilled.alpha_sigma(time)[0] == pytest.approx(math.cos(u * math.pi / 2), abs=1e-4)
    assert distilled.alpha_sigma(None) == (1, 0)
    # SIGE's edits: 5 of its 8 steps
    assert distilled.times(8, noise_level=5).tolist() == times[3:].tolist()


def test_pure_noise_is_the_highest_noise_level() -> None:
    for noisy, steps, most in ((linear(), 4, 1000), (linear(400), 4, 400), (CosineLogSNR(), 4, 4)):
        assert noisy.most_noise(steps) == most
        assert noisy.times(steps, most).tolist() == noisy.times(steps).tolist()
        with pytest.raises(InputError, match=f"noise_level is {most + 1}, expected .* from 1 to {most}"):
            noisy.times(steps, most + 1)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "no steps": (lambda: timesteps(1000, 0), "steps is 0, expected a whole number from 1 to 1000"),
    "half a step": (lambda: timesteps(1000, 2.5), "steps is 2.5, expected a whole number"),
    "more steps than noise": (lambda: timesteps(1000, 60, noise_level=50), "steps is 60, .* from 1 to 50"),
    "no noise": (lambda: timesteps(1000, 5, noise_level=0), "noise_level is 0, .* from 1 to 1000"),
    "too much noise": (
        lambda: timesteps(1000, 5, noise_level=1001),
        "noise_level is 1001, .* from 1 to 1000",
    ),
    "spacing": (
        lambda: timesteps(1000, 5, "even"),
        "unknown spacing 'even'; expected leading, trailing, linspace, karras or lcm",
    ),
    "offset past the end": (
        lambda: timesteps(1000, 1000, offset=1),
        "offset is 1, .* timestep 1000 under 1000",
    ),
    "offset below": (lambda: timesteps(1000, 5, offset=-1), "offset is -1"),
    "name": (
        lambda: schedule("sigmoid"),
        "unknown noise schedule 'sigmoid'; known: linear, scaled_linear",
    ),
    "β": (lambda: schedule("linear", start=0.1, end=0.01), "β goes from 0.1 to 0.01"),
    "length": (lambda: cosine(0), "steps is 0"),
    "timestep": (lambda: linear().alpha_sigma(1000), "timestep is 1000, expected a number from 0 to 999"),
    "logsnr": (
        lambda: CosineLogSNR().alpha_sigma(21.0),
        "logsnr is 21.0, expected a number from -20.0 to 20.0",
    ),
    "distilled steps": (lambda: CosineLogSNR().times(0), "steps is 0"),
    "distilled noise": (lambda: CosineLogSNR().times(8, noise_level=9), "noise_level is 9, .* from 1 to 8"),
    "rising": (
        lambda: Schedule(np.array([0.5, 0.6])),
        "alphas_bar rises or repeats, expected a fall",
    ),
    "zero": (lambda: Schedule(np.array([0.5, 0.0])), "expected a list of numbers between 0 and 1"),
    "empty": (lambda: Schedule(np.array([])), "expected a list"),
    "end": (lambda: Schedule(np.array([0.5, 0.4]), end=0.45), "end is 0.45"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_refused_in_one_line(what: str) -> None:
    call, message = WRONG[what]
    with pytest.raises(InputError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
