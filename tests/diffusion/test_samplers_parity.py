"""Every sampler against diffusers' scheduler of that name, step by step: schedules, spacings, step counts, clipping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from sparsegen.diffusion.registry import get_sampler  # noqa: E402  (keeps the order below the skip)
from sparsegen.diffusion.schedules import SCHEDULES, Image, Schedule, linear, schedule  # noqa: E402  (as above)
from sparsegen.diffusion.seeds import START, noise, seeded  # noqa: E402  (keeps the order below the skip)
from sparsegen.diffusion.settings import Settings  # noqa: E402  (as above)
from tests.tolerances import check  # noqa: E402  (keeps the order below the skip)

pytestmark = [
    pytest.mark.torch,
    # diffusers passes a tensor to np.array, and PyTorch's __array__ is of before NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

SHAPE = (2, 6, 5, 3)
SEED = 5
BETAS: dict[str, dict[str, float]] = {
    "linear": {"beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {},
}
SPACINGS = ("leading", "trailing", "linspace")
# variant -> sampler, its settings, diffusers' scheduler, the settings of its own
VARIANTS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "ddpm": ("ddpm", {}, "DDPMScheduler", {}),
    "ddpm, large": ("ddpm", {"variance": "fixedlarge"}, "DDPMScheduler", {"variance_type": "fixed_large"}),
    "ddim": ("ddim", {}, "DDIMScheduler", {}),
    "ddim, eta": ("ddim", {"eta": 0.7}, "DDIMScheduler", {}),
    "dpm++2m": ("dpm++2m", {}, "DPMSolverMultistepScheduler", {}),
    "dpm++2m-karras": ("dpm++2m-karras", {}, "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "euler": ("euler", {}, "EulerDiscreteScheduler", {}),
    "euler-a": ("euler-a", {}, "EulerAncestralDiscreteScheduler", {}),
    "pndm": ("pndm", {}, "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "lcm": ("lcm", {}, "LCMScheduler", {}),
}


DRAWING = {
    "DDPMScheduler": "scheduling_ddpm",
    "EulerAncestralDiscreteScheduler": "scheduling_euler_ancestral_discrete",
    "LCMScheduler": "scheduling_lcm",
}
"""Scheduler -> the module of diffusers in which it draws noise of its own."""
UNCLIPPED = {"EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler"}


def spacings(variant: str) -> tuple[str, ...]:
    """Those of a sampler: `karras` and `lcm` are the only ones of theirs.

    diffusers' PNDM makes its first step twice from another timestep, where the second is not T // steps before it.
    """
    return {"dpm++2m-karras": ("karras",), "lcm": ("lcm",), "pndm": ("leading",)}.get(variant, SPACINGS)


LAID = [(variant, spacing) for variant in VARIANTS for spacing in spacings(variant)]
STEP_BY_STEP = [
    (variant, betas, spacing)
    for variant, spacing in LAID
    for betas in BETAS
    # of the others, Karras' σ/α are up to 2e4, which diffusers rounds to float32: below, in float64
    if spacing != "karras" or betas == "scaled_linear"
]


def predicted(x: Image, t: float) -> Image:
    """A made-up prediction of noise: nonlinear, of neighbouring pixels too, another at each time."""
    x = x.astype(np.float64)
    mixed = x + 0.3 * np.sin(2 * x[:, :, ::-1] + t / 300)
    return (0.8 * np.tanh(mixed) + 0.1 * np.cos(t / 100)).astype(np.float32)


def scheduler(variant: str, betas: str, spacing: str, *, clip: bool, **settings: Any) -> Any:
    """diffusers' scheduler, with its defaults for what is not given."""
    _, _, name, own = VARIANTS[variant]
    # the multistep solver clips by its "dynamic thresholding", whose threshold is 1 at most unless told otherwise
    if name not in UNCLIPPED:
        settings["thresholding" if name == "DPMSolverMultistepScheduler" else "clip_sample"] = clip
    if spacing in SPACINGS:
        settings["timestep_spacing"] = spacing
    return getattr(diffusers, name)(beta_schedule=betas, **BETAS[betas], **(own | settings))


def theirs(oracle: Any, variant: str, x: Image, monkeypatch: pytest.MonkeyPatch) -> Iterator[Image]:
    """x after each step of diffusers' scheduler, whose noise is ours; all are per pixel, so it may have our layout."""
    _, settings, name, _ = VARIANTS[variant]
    euler = name.startswith("Euler")
    y = torch.from_numpy(x)
    if euler:
        y = y * (oracle.sigmas[0] ** 2 + 1) ** 0.5
    last = len(oracle.timesteps) - 1
    for i, t in enumerate(oracle.timesteps):
        fresh = torch.from_numpy(noise(SEED, i, SHAPE))
        if name in DRAWING:
            # DDPM also adds noise in a last step that does not start from timestep 0: to what is then the image
            drawn = fresh if i < last else torch.zeros(SHAPE)
            monkeypatch.setattr(
                f"diffusers.schedulers.{DRAWING[name]}.randn_tensor", lambda *_, drawn=drawn, **__: drawn
            )
        extra = {"eta": 0.7, "variance_noise": fresh} if settings.get("eta") else {}
        asked = oracle.scale_model_input(y, t).numpy()
        y = oracle.step(torch.from_numpy(predicted(asked, float(t))), t, y, **extra).prev_sample
        yield (y / (oracle.sigmas[i + 1] ** 2 + 1) ** 0.5 if euler else y).numpy()


def compare(
    row: str,
    variant: str,
    oracle: Any,
    noisy: Schedule,
    spacing: str,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    clip: bool,
    offset: int = 0,
    predicts: str = "noise",
) -> None:
    """Walk both ways from the same x, each with its own predictions, and compare x after every step."""
    name, settings, _, _ = VARIANTS[variant]
    oracle.set_timesteps(steps)
    times = noisy.times(steps, layout=replace(get_sampler(name).layout, spacing=spacing, offset=offset))
    asked = oracle.timesteps.numpy()
    # whole numbers, or float32 there; Karras' are rounded there, from an interpolation of log σ
    assert np.abs(times - asked).max() < (0.6 if spacing == "karras" else 1e-4)
    # diffusers' DDIM goes on by this whatever the spacing
    settings = settings | ({"stride": 1000 // steps} if name == "ddim" else {})
    x = noise(SEED, START, SHAPE)
    ours = get_sampler(name)(
        lambda x, i, t: predicted(x, float(asked[i])),
        x,
        noisy,
        times,
        predicts=predicts,
        clip=1.0 if clip else None,
        noise=seeded(SEED, SHAPE),
        **settings,
    )
    for step, expected in zip(ours, theirs(oracle, variant, x, monkeypatch), strict=True):
        check(row, step.x, expected)


@pytest.mark.parametrize("betas", BETAS)
def test_schedules(betas: str) -> None:
    for other in ("DDPMScheduler", "EulerDiscreteScheduler"):
        alphas_bar = getattr(diffusers, other)(beta_schedule=betas, **BETAS[betas]).alphas_cumprod
        check("alphas_bar", schedule(betas).alphas_bar, alphas_bar.numpy().astype(np.float64))
    assert SCHEDULES[betas]  # by diffusers' name


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("variant", ["ddpm", "ddim", "dpm++2m", "euler", "euler-a", "pndm"])
def test_timesteps(variant: str, spacing: str) -> None:
    oracle = scheduler(variant, "linear", spacing, clip=False)
    noisy, layout = linear(), replace(get_sampler(VARIANTS[variant][0]).layout, spacing=spacing)
    for steps in [*range(1, 100), *range(100, 1000, 7), 999]:
        oracle.set_timesteps(steps)
        laid = oracle.timesteps.numpy()
        ours = noisy.times(steps, layout=layout)
        if len(laid) > len(ours):
            # np.arange(1000, 0, -1000 / steps) is sometimes rounded past its end
            assert spacing == "trailing"
            assert laid[-1] == -1
        assert np.abs(ours - laid[: len(ours)]).max() < 1e-4


def test_timesteps_of_consistency_models() -> None:
    oracle = diffusers.LCMScheduler()
    for steps in range(1, 51):
        for strength in (1.0, 0.75, 0.5):
            if steps <= 50 * strength:
                oracle.set_timesteps(steps, strength=strength)
                ours = linear().times(steps, int(1000 * strength), get_sampler("lcm").layout)
                assert ours.tolist() == oracle.timesteps.tolist()


@pytest.mark.parametrize(("variant", "betas", "spacing"), STEP_BY_STEP)
def test_step_by_step(variant: str, betas: str, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # DDPM in many short steps: the next test
    for steps in (1, 2, 7, 10, 20) if "ddpm" in variant else (1, 2, 7, 14, 15, 50):
        for clip in (False,) if VARIANTS[variant][2] in UNCLIPPED else (False, True):
            oracle = scheduler(variant, betas, spacing, clip=clip)
            compare("sampler", variant, oracle, schedule(betas), spacing, steps, monkeypatch, clip=clip)


@pytest.mark.parametrize(("variant", "spacing"), LAID)
def test_step_by_step_along_a_velocity(variant: str, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in (1, 2, 7, 20):
        for clip in (False,) if VARIANTS[variant][2] in UNCLIPPED else (False, True):
            oracle = scheduler(variant, "scaled_linear", spacing, clip=clip, prediction_type="v_prediction")
            noisy = schedule("scaled_linear")
            compare("sampler", variant, oracle, noisy, spacing, steps, monkeypatch, clip=clip, predicts="v")


@pytest.mark.parametrize("clip", [False, True], ids=["free", "clipped"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("variant", ["ddpm", "ddpm, large", "ddim", "ddim, eta"])
def test_step_by_step_with_scalars_in_float64(
    variant: str, betas: str, spacing: str, clip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' arithmetic without the rounding of its α and σ, up to every one of the 1000 steps."""
    for steps in (50, 1000) if spacing == "leading" else (2, 50):
        oracle = scheduler(variant, betas, spacing, clip=clip)
        noisy = schedule(betas)
        oracle.alphas_cumprod = torch.tensor(noisy.alphas_bar)
        row = "sampler, α in float64"
        compare(row, variant, oracle, noisy, spacing, steps, monkeypatch, clip=clip)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("variant", ["pndm", "lcm"])
def test_latent_samplers_with_scalars_in_float64(
    variant: str, betas: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spacing in spacings(variant):
        for steps in (4, 50):
            oracle = scheduler(variant, betas, spacing, clip=False)
            noisy = schedule(betas)
            oracle.alphas_cumprod = torch.tensor(noisy.alphas_bar)
            row = "sampler, α in float64, other operations"
            compare(row, variant, oracle, noisy, spacing, steps, monkeypatch, clip=False)


@pytest.mark.parametrize("predicts", ["noise", "v"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_karras_with_scalars_in_float64(betas: str, predicts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not along the cosine: diffusers cuts its first timesteps to one, and begins at the second."""
    noisy = schedule(betas)
    ratios = np.sqrt(1 / noisy.alphas_bar - 1)[::-1]
    kind = {"noise": "epsilon", "v": "v_prediction"}[predicts]
    for steps in (1, 2, 7, 15, 50):
        oracle = scheduler("dpm++2m-karras", betas, "karras", clip=False, prediction_type=kind)
        laid = oracle.set_timesteps

        def in_float64(steps: int, oracle: Any = oracle, laid: Any = laid) -> None:
            laid(steps)
            sigmas = oracle._convert_to_karras(in_sigmas=ratios, num_inference_steps=steps)
            oracle.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float64)

        monkeypatch.setattr(oracle, "set_timesteps", in_float64)
        row = "sampler, α in float64, other operations"
        compare(
            row,
            "dpm++2m-karras",
            oracle,
            noisy,
            "karras",
            steps,
            monkeypatch,
            clip=False,
            predicts=predicts,
        )


@pytest.mark.parametrize(
    ("variant", "setting"),
    [
        ("ddim", {"set_alpha_to_one": False}),
        ("ddim, eta", {"set_alpha_to_one": False}),
        ("dpm++2m", {"final_sigmas_type": "sigma_min"}),
        ("dpm++2m-karras", {"final_sigmas_type": "sigma_min"}),
        ("euler", {"final_sigmas_type": "sigma_min"}),
        ("euler-a", {}),
        ("pndm", {"set_alpha_to_one": False}),
        ("lcm", {}),
    ],
)
@pytest.mark.parametrize("predicts", ["noise", "v"])
def test_as_stable_diffusion_sets_them(
    variant: str, setting: dict[str, Any], predicts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timesteps one later, an end at the cleanest; from 15 steps on the multistep solver keeps its order there."""
    kind = {"noise": "epsilon", "v": "v_prediction"}[predicts]
    noisy = schedule("scaled_linear")
    if variant != "euler-a":  # diffusers' ends clean
        noisy = replace(noisy, end=float(noisy.alphas_bar[0]))
    for spacing in spacings(variant):
        for steps in (3, 14, 15, 30):
            oracle = scheduler(
                variant, "scaled_linear", spacing, clip=False, steps_offset=1, prediction_type=kind, **setting
            )
            compare(
                "sampler",
                variant,
                oracle,
                noisy,
                spacing,
                steps,
                monkeypatch,
                clip=False,
                offset=1,
                predicts=predicts,
            )


@pytest.mark.parametrize("predicts", ["noise", "v"])
@pytest.mark.parametrize("variant", ["ddim", "dpm++2m", "dpm++2m-karras", "euler", "euler-a", "pndm", "lcm"])
def test_the_schedule_of_stable_diffusion(
    variant: str, predicts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings by name, without clipping: diffusers' schedulers made from the model's configuration."""
    name, options, theirs_name, own = VARIANTS[variant]
    # schedulers without `set_alpha_to_one` end clean
    given = {
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
        "timestep_spacing": "leading",
        "prediction_type": {"noise": "epsilon", "v": "v_prediction"}[predicts],
        "beta_schedule": "scaled_linear",
        **BETAS["scaled_linear"],
    }
    for steps in (4, 20):
        oracle = getattr(diffusers, theirs_name).from_config(own | given)
        oracle.set_timesteps(steps)
        settings = Settings(steps, 1000, name, "stable_diffusion", None, SEED, options).checked()
        asked = oracle.timesteps.numpy().astype(np.float64)
        assert np.abs(np.array(settings.times()) - asked).max() < (
            0.6 if variant == "dpm++2m-karras" else 1e-4
        )
        x = noise(SEED, START, SHAPE)
        ours = settings.trajectory(
            lambda x, i, t, asked=asked: predicted(x, float(asked[i])), x, predicts=predicts
        )
        for step, expected in zip(ours, theirs(oracle, variant, x, monkeypatch), strict=True):
            check("sampler", step.x, expected)


@pytest.mark.parametrize("predicts", ["noise", "v"])
def test_pndm_from_the_middle_on_as_diffusers_goes(predicts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last timesteps repeat none; the second step is still made twice, and the third starts a stride early."""
    kind = {"noise": "epsilon", "v": "v_prediction"}[predicts]
    noisy = schedule("scaled_linear")
    noisy = replace(noisy, end=float(noisy.alphas_bar[0]))
    for strength in (20, 10, 2, 1):
        oracle = scheduler(
            "pndm",
            "scaled_linear",
            "leading",
            clip=False,
            steps_offset=1,
            set_alpha_to_one=False,
            prediction_type=kind,
        )
        oracle.set_timesteps(20)
        # as the image-to-image pipeline cuts them
        oracle.timesteps = oracle.timesteps[20 - strength :]
        x, times = noise(SEED, START, SHAPE), oracle.timesteps.numpy()
        ours = get_sampler("pndm")(
            lambda x, i, t: predicted(x, t), x, noisy, times, predicts=predicts, stride=50
        )
        for step, expected in zip(ours, theirs(oracle, "pndm", x, monkeypatch), strict=True):
            check("sampler", step.x, expected)
