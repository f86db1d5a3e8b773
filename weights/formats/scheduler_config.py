"""A diffusers scheduler's configuration in; the noise schedule, the prediction and the sampler's settings out.

Source: github.com/huggingface/diffusers (schedulers), read for names, options and their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError, shown
from .json_file import read_json, there

_SCHEDULES = {
    ("linear", 0.0001, 0.02): "linear",
    ("scaled_linear", 0.00085, 0.012): "scaled_linear",
    ("squaredcos_cap_v2", None, None): "cosine",
}
"""A scheduler's `beta_schedule`, `beta_start`, `beta_end` (None: not used) -> the noise schedule."""
_TIMESTEPS = 1000

_PIXELS, _LATENTS, _LATENTS_SCALED = (
    ("linear", 0.0001, 0.02),
    ("linear", 0.00085, 0.012),
    ("scaled_linear", 0.00085, 0.012),
)
SCHEDULERS = {
    **dict.fromkeys(("DDPMScheduler", "DDPMParallelScheduler", "RePaintScheduler"), _PIXELS),
    **dict.fromkeys(("DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler"), _PIXELS),
    **dict.fromkeys(("PNDMScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler"), _PIXELS),
    **dict.fromkeys(("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"), _PIXELS),
    **dict.fromkeys(("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"), _PIXELS),
    **dict.fromkeys(
        ("DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"), _PIXELS
    ),
    **dict.fromkeys(("HeunDiscreteScheduler", "DPMSolverSDEScheduler"), _LATENTS),
    **dict.fromkeys(("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"), _LATENTS),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), _LATENTS_SCALED),
}
"""diffusers' schedulers with betas -> their defaults of the three options."""

NOISE = {"epsilon": "noise"}
PREDICTIONS = {**NOISE, "v_prediction": "velocity"}
"""A scheduler's `prediction_type` -> the model's output."""

_SAMPLERS = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-a",
    "LCMScheduler": "lcm",
}
"""diffusers' schedulers -> the engine's samplers, where they are the same whatever the other options."""
_ENDS_NOISY = {"PNDMScheduler"}
"""Schedulers whose default of `set_alpha_to_one` is false."""


@dataclass(frozen=True)
class Scheduler:
    """The settings of a diffusion model's training, and of the sampler that its folder proposes."""

    schedule: str
    """The noise schedule: linear, scaled_linear or cosine."""
    prediction: str
    """The model's output: "noise" or "velocity"."""
    settings: Mapping[str, Any]
    """`sampler` (the engine's name, None: it has no such one), `steps_offset`, `set_alpha_to_one`."""


def find_scheduler(top: Path, advice: str, predictions: Mapping[str, str] = PREDICTIONS) -> Scheduler | None:
    """The scheduler of a folder, in `scheduler/` or at its root; None: there is none.

    `predictions` are those that the model may have; `advice` is the fix, for messages, if something is not supported.
    """
    for path in (top / "scheduler" / "scheduler_config.json", top / "scheduler_config.json"):
        if there(path):
            return _scheduler(read_json(path), path, advice, predictions)
    return None


def _scheduler(config: dict[str, Any], path: Path, advice: str, predictions: Mapping[str, str]) -> Scheduler:
    """The settings in a configuration; options that it omits have diffusers' defaults. Raises CheckpointError."""
    name = config.get("_class_name", "DDPMScheduler")
    defaults = SCHEDULERS.get(name) if isinstance(name, str) else None
    if defaults is None:
        raise CheckpointError(
            f"is the configuration of a {shown(name)}, expected a scheduler with betas, such as DDPMScheduler",
            path=str(path),
            advice=advice,
        )
    predicts = config.get("prediction_type", "epsilon")
    if not isinstance(predicts, str) or predicts not in predictions:
        raise CheckpointError(
            f"prediction_type is {shown(predicts)}, supported: "
            + " or ".join(f"{theirs} (the {ours})" for theirs, ours in predictions.items()),
            path=str(path),
            advice=advice,
        )
    for option in ("rescale_betas_zero_snr", "use_flow_sigmas"):
        if config.get(option, False) not in (False, None):
            raise CheckpointError(
                f"{option} is {shown(config[option])}, supported: false", path=str(path), advice=advice
            )
    kind, *betas = (
        config.get(option, default)
        for option, default in zip(("beta_schedule", "beta_start", "beta_end"), defaults, strict=True)
    )
    given = (kind, None, None) if kind == "squaredcos_cap_v2" else (kind, *betas)
    steps = config.get("num_train_timesteps", _TIMESTEPS)
    found = next((name for known, name in _SCHEDULES.items() if known == given), None)
    if found is None or steps != _TIMESTEPS or config.get("trained_betas") is not None:
        raise CheckpointError(
            f"its noise schedule is not supported: beta_schedule {shown(kind)} from {shown(betas[0])} to "
            f"{shown(betas[1])} in {shown(steps)} timesteps",
            path=str(path),
            advice=advice,
        )
    offset, one = config.get("steps_offset", 0), config.get("set_alpha_to_one", name not in _ENDS_NOISY)
    if type(offset) is not int or not 0 <= offset < _TIMESTEPS or type(one) is not bool:
        raise CheckpointError(
            f"steps_offset is {shown(offset)} and set_alpha_to_one {shown(one)}, expected a number from 0 to "
            f"{_TIMESTEPS - 1}, and true or false",
            path=str(path),
            advice=advice,
        )
    settings = {"sampler": _sampler(name, config), "steps_offset": offset, "set_alpha_to_one": one}
    return Scheduler(found, predictions[predicts], MappingProxyType(settings))


def _sampler(name: str, config: Mapping[str, Any]) -> str | None:
    """The engine's sampler that does what a scheduler does."""
    if name != "DPMSolverMultistepScheduler":
        return _SAMPLERS.get(name)
    if config.get("algorithm_type", "dpmsolver++") != "dpmsolver++" or config.get("solver_order", 2) != 2:
        return None
    return "dpm++2m-karras" if config.get("use_karras_sigmas") else "dpm++2m"
