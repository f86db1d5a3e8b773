"""Every sampler against diffusers' scheduler of that name, step by step: schedules, spacings, step counts, clipping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from sparsegen.diffusion.samplers import START, get_sampler, noise, seeded  # noqa: E402  (keeps the order below the skip)
from sparsegen.diffusion.schedules import SCHEDULES, Image, Schedule, linear, schedule  # noqa: E402  (as above)
from tests.tolerances import check  # noqa: E402  (keeps the order below the skip)

pytestmark = [
    pytest.mark.torch,
    # diffusers passes a tensor to np.array, and PyTorch's __array__ is of before NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

SHAPE = (2, 6, 5, 3)
SEED = 5
BETAS: dict[str, dict[str, float]] = {
    "linear": {},
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
    "euler": ("euler", {}, "EulerDiscreteScheduler", {}),
}


def predicted(x: Image, t: float) -> Image:
    """A made-up prediction of noise: nonlinear, of neighbouring pixels too, another at each time."""
    x = x.astype(np.float64)
    mixed = x + 0.3 * np.sin(2 * x[:, :, ::-1] + t / 300)
    return (0.8 * np.tanh(mixed) + 0.1 * np.cos(t / 100)).astype(np.float32)


def scheduler(variant: str, betas: str, spacing: str, *, clip: bool, **settings: Any) -> Any:
    """diffusers' scheduler, with its defaults for what is not given."""
    _, _, name, own = VARIANTS[variant]
    # the multistep solver clips by its "dynamic thresholding", whose threshold is 1 at most unless told otherwise
    clips = {"DDPMScheduler": "clip_sample", "DDIMScheduler": "clip_sample"}.get(name, "thresholding")
    if name != "EulerDiscreteScheduler":
        settings[clips] = clip
    return getattr(diffusers, name)(
        beta_schedule=betas, timestep_spacing=spacing, **BETAS[betas], **own, **settings
    )


def theirs(oracle: Any, variant: str, x: Image, monkeypatch: pytest.MonkeyPatch) -> Iterator[Image]:
    """x after each step of diffusers' scheduler, whose noise is ours; all are per pixel, so it may have our layout."""
    _, settings, name, _ = VARIANTS[variant]
    euler = name == "EulerDiscreteScheduler"
    y = torch.from_numpy(x)
    if euler:
        y = y * (oracle.sigmas[0] ** 2 + 1) ** 0.5
    last = len(oracle.timesteps) - 1
    for i, t in enumerate(oracle.timesteps):
        fresh = torch.from_numpy(noise(SEED, i, SHAPE))
        if name == "DDPMScheduler":
            # it also adds noise in a last step that does not start from timestep 0: to what is then the image
            drawn = fresh if i < last else torch.zeros(SHAPE)
            monkeypatch.setattr(
                "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, drawn=drawn, **__: drawn
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
) -> None:
    """Walk both ways from the same x, each with its own predictions, and compare x after every step."""
    name, settings, _, _ = VARIANTS[variant]
    oracle.set_timesteps(steps)
    times = noisy.times(steps, layout=replace(get_sampler(name).layout, spacing=spacing, offset=offset))
    assert np.abs(times - oracle.timesteps.numpy()).max() < 1e-4  # whole numbers, or float32 there
    # diffusers' DDIM goes on by this whatever the spacing
    settings = settings | ({"stride": 1000 // steps} if name == "ddim" else {})
    x = noise(SEED, START, SHAPE)
    ours = get_sampler(name)(
        lambda x, i, t: predicted(x, t),
        x,
        noisy,
        times,
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
@pytest.mark.parametrize("variant", ["ddpm", "ddim", "dpm++2m", "euler"])
def test_timesteps(variant: str, spacing: str) -> None:
    oracle = scheduler(variant, "linear", spacing, clip=False)
    noisy, layout = linear(), replace(get_sampler(VARIANTS[variant][0]).layout, spacing=spacing)
    for steps in [*range(1, 100), *range(100, 1000, 7), 999]:
        oracle.set_timesteps(steps)
        laid = oracle.timesteps.numpy()
        if len(laid) > steps:
            # np.arange(1000, 0, -1000 / steps) is sometimes rounded past its end
            assert spacing == "trailing"
            assert laid[-1] == -1
        ours = noisy.times(steps, layout=layout)
        assert np.abs(ours - laid[:steps]).max() < 1e-4


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_step_by_step(variant: str, betas: str, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # DDPM in many short steps: the next test
    for steps in (1, 2, 7, 10, 20) if "ddpm" in variant else (1, 2, 7, 14, 15, 50):
        for clip in (False,) if variant == "euler" else (False, True):  # diffusers' does not clip
            oracle = scheduler(variant, betas, spacing, clip=clip)
            compare("sampler", variant, oracle, schedule(betas), spacing, steps, monkeypatch, clip=clip)


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


@pytest.mark.parametrize(
    ("variant", "setting"),
    [
        ("ddim", {"set_alpha_to_one": False}),
        ("ddim, eta", {"set_alpha_to_one": False}),
        ("dpm++2m", {"final_sigmas_type": "sigma_min"}),
        ("euler", {"final_sigmas_type": "sigma_min"}),
    ],
)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_as_stable_diffusion_sets_them(
    variant: str, setting: dict[str, Any], spacing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timesteps one later, an end at the cleanest; from 15 steps on the multistep solver keeps its order there."""
    noisy = schedule("scaled_linear")
    noisy = replace(noisy, end=float(noisy.alphas_bar[0]))
    for steps in (3, 14, 15, 30):
        oracle = scheduler(variant, "scaled_linear", spacing, clip=False, steps_offset=1, **setting)
        compare("sampler", variant, oracle, noisy, spacing, steps, monkeypatch, clip=False, offset=1)
