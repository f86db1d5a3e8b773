"""Options that several commands share: words of the command line come in, checked values go out."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sparsegen.backends import get_backend
from sparsegen.backends.interface import Backend

from ..diffusion.registry import SAMPLERS, sampler_options
from ..diffusion.schedules import SCHEDULES
from ..diffusion.settings import LATENT_DEFAULTS
from ..engine.store import parse_size
from ..errors import InputError
from ..loading import Loras, load_bundle
from ..models.base import Model
from ..tiling.policies import POLICIES
from .starting import starting

TEXT_MODEL = "landscape-sd"
"""The model of a text that is used where none is named."""
MODEL_HELP = "A built-in model's name, a checkpoint file or a diffusers folder."
ModelOption = Annotated[str, typer.Option("--model", help=MODEL_HELP)]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend", help="What computes; see 'sparsegen backends'.", show_default="the fastest here"
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="How many threads compute.",
        show_default="SPARSEGEN_THREADS, else one for each core that may be used",
    ),
]
DirectOption = Annotated[
    bool,
    typer.Option(
        "--direct",
        help="Compute convolutions directly, not by Winograd's transforms: slower, closest to others.",
    ),
]
WeightsOption = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option(
        "--weights", help="How the backend holds weights: in 16 bits, they take half.", show_default="float32"
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="What convolutions round inputs and weights to, to be faster: bfloat16 (numba, where the processor "
        "multiplies it), tf32 or float16 (cupy).",
        show_default="float32",
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help=f"Which tiles an edit recomputes: {', '.join(POLICIES)}, such as adaptive(0.02); paper and fast with "
        'settings, such as "fast(refresh=3)". '
        "Default: that of the session; of a new one, fast for diffusion models, else paper.",
    ),
]
CropOption = Annotated[
    str | None,
    typer.Option(
        "--crop",
        metavar="HEIGHTxWIDTH",
        help="Keep the middle of every file, such as 256x512 (height first), or auto: the most that the model can "
        "take.",
    ),
]
ResizeOption = Annotated[
    str | None,
    typer.Option(
        "--resize",
        metavar="HEIGHTxWIDTH",
        help="Resize every file, after --crop, such as to 256x512 (height first), or auto: the nearest size that the "
        "model can take.",
    ),
]
NegativeOption = Annotated[
    str | None, typer.Option("--negative", help="Stable Diffusion: a text to stay away from.")
]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        "--strength",
        help="Stable Diffusion: the share of the steps that an image goes through, more than 0, at most 1. More: "
        "freer; less: closer to the image.",
        show_default="0.8; of generate with a mask 1",
    ),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        help="Stable Diffusion: how far to move from the negative text towards the text; 1: the negative text does "
        "not count, a step takes half the time.",
        show_default=f"7.5; of {TEXT_MODEL} 4",
    ),
]
SkipOption = Annotated[
    int | None,
    typer.Option(
        "--skip",
        min=0,
        help="Stable Diffusion: leave out so many layers at the end of the text encoder (one less than other "
        "programs' clip skip).",
        show_default="0",
    ),
]
PredictsOption = Annotated[
    Literal["noise", "v"] | None,
    typer.Option(
        "--predicts",
        help="Stable Diffusion: the UNet's output, noise or the velocity v.",
        show_default="as the checkpoint says, else probed",
    ),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE=SCALE",
        help="Stable Diffusion: add a LoRA file to the weights, times SCALE (1 if omitted); repeat for more.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A value that a checkpoint does not contain: name=value, such as num_upsampling_layers=more; which=ema or "
        "which=model: the weights to take of two.",
    ),
]


DIFFUSION = {
    family: (kind, kind.diffusion) for family, kind in Model.registry.items() if kind.diffusion is not None
}
"""Family -> its class and its diffusion side, of every family that has one."""


def sample_steps() -> str:
    """The default number of steps from pure noise, of each family."""
    return ", ".join(f"{family} {own.sample_steps}" for family, (_, own) in DIFFUSION.items())


def own_settings(name: str) -> str:
    """The default of a setting of denoising, of each family, and of Stable Diffusion if it has that setting."""
    found = [f"{family} {getattr(own.edit, name)}" for family, (_, own) in DIFFUSION.items()]
    found += [f"Stable Diffusion {LATENT_DEFAULTS[name]}"] if name in LATENT_DEFAULTS else []
    return ", ".join(found)


SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        help="Draw the noise of a diffusion model, or the latent z of a GauGAN that has one.",
        show_default="0; a fixed z",
    ),
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        "--sampler", help=f"Diffusion: {', '.join(SAMPLERS)}.", show_default=own_settings("sampler")
    ),
]
_SCHEDULES = [
    *sorted({own.edit.schedule for _, own in DIFFUSION.values()}),
    f"Stable Diffusion {LATENT_DEFAULTS['schedule']}",
]
ScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help=f"Diffusion: the noise that the model was trained on: {', '.join(SCHEDULES)}.",
        show_default=f"the checkpoint's, else {', '.join(_SCHEDULES)}",
    ),
]
RamOption = Annotated[
    str | None,
    typer.Option(
        "--ram",
        help="Diffusion: RAM for the canvases of all steps, such as 4GB; the rest goes into files.",
        show_default="no limit",
    ),
]
CacheFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-folder",
        help="Diffusion: where these files go; they vanish in the end.",
        show_default="the system's folder for temporary files",
    ),
]


def with_sampler_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, whose parameter `sampler_options` becomes an option of the command line for each of a sampler's.

    The command is called with a dict of them by name, None where one is not given.
    """
    found = sampler_options()

    @wraps(command)
    def called(**given: Any) -> None:
        command(
            **{name: each for name, each in given.items() if name not in found},
            sampler_options={name: given[name] for name in found},
        )

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name != "sampler_options":
            parameters.append(parameter)
            continue
        for name, owners in found.items():
            first = next(iter(owners.values()))
            option = typer.Option(
                f"--{name.replace('_', '-')}",
                help=f"Diffusion: {', '.join(owners)}'s {first.about}, {first.bounds}.",
                show_default=str(first.default),
            )
            hint: Any = Annotated[type(first.default) | None, option]
            parameters.append(parameter.replace(name=name, default=None, annotation=hint))
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # of any function
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


@dataclass(frozen=True)
class TextOptions:
    """The options of a model that is conditioned on a text; None: not given."""

    prompt: str | None
    negative: str | None
    strength: float | None
    guidance: float | None
    skip: int | None
    predicts: str | None
    lora: Loras | None
    """File -> scale."""

    @property
    def given(self) -> dict[str, Any]:
        """All of them by the name that the command line has for them."""
        return dict(vars(self))


def parse_loras(loras: list[str] | None) -> Loras | None:
    """The values of `--lora`: file -> scale. Raises InputError."""
    parsed: dict[str | os.PathLike[str], float] = {}
    for given in loras or ():
        path, equals, scale = given.rpartition("=")
        path = path if equals else given
        try:
            factor = float(scale) if equals else 1.0
        except ValueError:
            factor = math.nan
        if not path or not math.isfinite(factor):
            raise InputError(f"--lora {given}: expected FILE=SCALE, such as style.safetensors=0.8")
        if not Path(path).exists():
            raise InputError(f"--lora {path}: no such file")
        if path in parsed:
            raise InputError(f"--lora {path}: given twice; add the scales up")
        parsed[path] = factor
    return parsed or None


def check_memory(**given: str | None) -> None:
    """Raise InputError, which names the option, for an amount of memory that cannot be parsed."""
    for name, amount in given.items():
        try:
            parse_size(amount)
        except InputError as error:
            raise InputError(f"--{name}: {error}") from None


def open_backend(
    name: str | None, threads: int | None, direct: bool, weights: str | None, precision: str | None
) -> Backend:
    """The backend that these options describe."""
    options: dict[str, Any] = {}
    if direct:
        options["direct"] = True
    if weights is not None:
        options["weights"] = weights
    if precision is not None:
        options["precision"] = precision
    with starting():  # it imports Numba
        return get_backend(name, threads=threads, **options)


_ARGUMENTS = set(inspect.signature(load_bundle).parameters) - {"which"}
"""Arguments that are not settings, by name."""


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """`name=value` pairs as a dict; a value is parsed as JSON if it is valid, else it is text. Raises InputError."""
    parsed: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not name or not equals:
            raise InputError(f"--set {setting}: expected name=value, such as num_upsampling_layers=more")
        if name in _ARGUMENTS:
            raise InputError(f"--set {setting}: {name} is no setting of a model")
        try:
            parsed[name] = json.loads(text)
        except ValueError:
            parsed[name] = text
    return parsed
