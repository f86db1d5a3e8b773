"""Commands that edit: options and files come in, a model of either kind paints, pictures and tables go out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsegen.weights import builtin

from .. import pictures
from ..denoising import DEFAULTS
from ..errors import InputError
from ..loading import load
from ..model import Model
from ..models.unet import UNet
from ..policies import get_policy
from ..samplers import SAMPLERS
from ..schedules import SCHEDULES
from . import labels, strokes
from .console import check_writable, numbered, out, print_table
from .job import Engine, Job
from .options import (
    BackendOption,
    DirectOption,
    ModelOption,
    PolicyOption,
    SetOption,
    ThreadsOption,
    WeightsOption,
    open_backend,
    parse_settings,
)
from .reading import Fit


def _own(name: str) -> str:
    """What an option of sampling is where it is not given."""
    return ", ".join(f"{family} {getattr(settings, name)}" for family, settings in DEFAULTS.items())


def _margins() -> str:
    return ", ".join(f"{family} {Model.registry[family].paper.dilation}" for family in DEFAULTS)


def demo(
    model: ModelOption = "landscape",
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    direct: DirectOption = False,
    weights: WeightsOption = None,
    policy: PolicyOption = "paper",
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write.")] = Path("demo.png"),
) -> None:
    """Edit a built-in example; write inputs, dense and sparse results and tiles side by side; print what it cost."""
    known = builtin.get(model)
    if known is None:
        raise InputError(f"no built-in model {model!r}; built in: {', '.join(builtin.names())}")
    check_writable(output, suffix=".png")
    engine = Engine(load(model), open_backend(backend, threads, direct, weights), policy)
    get_policy(policy, paper=engine.network.paper)
    if known.labels is None:
        sheet, caption, rows = strokes.demo(engine, known)
    else:
        sheet, caption, rows = labels.demo(engine, known, known.labels)
    pictures.write_png(output, sheet)
    print_table(f"{model}: {caption} (backend {engine.backend.name}, policy {policy})", rows)
    out.print(f"picture written to {output.resolve()}", soft_wrap=True)


def edit(
    original: Annotated[
        Path, typer.Option("--original", help="What is there at first: a picture, or a label map (PNG).")
    ],
    edited: Annotated[
        list[Path],
        typer.Option(
            "--edited",
            help="An edited copy of it; repeat to go on editing. Of pictures, transparent parts show what was before.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The PNG to write; several edits get -1, -2, …")
    ],
    model: ModelOption = "landscape",
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            help="Recompute where this picture is white: at least half as bright. Painted on a transparent layer, "
            "in whatever colour: where it is opaque.",
        ),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            "--crop",
            metavar="HEIGHTxWIDTH",
            help="Keep the middle of every file, such as 256x512 (height first), or auto: the most that the network "
            "can take.",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            "--resize",
            metavar="HEIGHTxWIDTH",
            help="Resize every file, after --crop, such as to 256x512 (height first), or auto: the nearest size that "
            "the network can take.",
        ),
    ] = None,
    policy: PolicyOption = "paper",
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    direct: DirectOption = False,
    weights: WeightsOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            help="Draw the noise of a diffusion model, or the latent z of a GauGAN that has one.",
            show_default="0; a fixed z",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Diffusion: denoising steps.", show_default=_own("steps"))
    ] = None,
    noise_level: Annotated[
        int | None,
        typer.Option(
            "--noise-level",
            help="Diffusion: how much noise goes over the strokes, in timesteps of 1000 (pd: in steps). "
            "More: freer; less: closer to what was painted.",
            show_default=_own("noise_level"),
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option("--sampler", help=f"Diffusion: {', '.join(SAMPLERS)}.", show_default=_own("sampler")),
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option("--eta", help="Diffusion: ddim's share of fresh noise, 0 to 1.", show_default="0.0"),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            help=f"Diffusion: the noise that the network was trained on: {', '.join(SCHEDULES)}.",
            show_default=DEFAULTS["ddpm"].schedule,
        ),
    ] = None,
    margin: Annotated[
        int | None,
        typer.Option(
            "--margin",
            help="Diffusion: pixels around the strokes that are made anew with them.",
            show_default=_margins(),
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            help="Diffusion: RAM for what every step keeps, such as 4GB; the rest goes into files.",
            show_default="no limit",
        ),
    ] = None,
    cache_folder: Annotated[
        Path | None,
        typer.Option(
            "--cache-folder",
            help="Diffusion: where these files go; they vanish in the end.",
            show_default="the system's folder for temporary files",
        ),
    ] = None,
    cache_storage: Annotated[
        str | None,
        typer.Option(
            "--cache-storage",
            help="Diffusion: float32, or float16: half the memory, values rounded to 11 bits.",
            show_default="float32",
        ),
    ] = None,
    preview_every: Annotated[
        int | None,
        typer.Option(
            "--preview-every",
            min=1,
            help="Diffusion: write the picture as predicted after every so many steps, as OUTPUT-preview-05.png.",
        ),
    ] = None,
    instances: Annotated[
        Path | None,
        typer.Option(
            "--instances", help="Label maps: instance map of the original, for networks with edges."
        ),
    ] = None,
    edited_instances: Annotated[
        list[Path] | None,
        typer.Option("--edited-instances", help="Label maps: instance map of each edited one."),
    ] = None,
    unknown_label: Annotated[
        int | None,
        typer.Option(
            "--unknown-label",
            help="Label maps: the label that 255 ('unknown') becomes.",
            show_default="an error",
        ),
    ] = None,
    settings: SetOption = None,
) -> None:
    """Paint the original, then recompute only what each edited copy changes.

    A GauGAN (such as the built-in landscape) takes label maps. A diffusion model takes a picture and copies of it with
    strokes painted over, and makes the strokes real (SDEdit). Options that begin with "Diffusion" or "Label maps" are
    for that kind alone; their defaults are the model family's, or those that a built-in model says.
    """
    # everything that can be wrong is looked at before the work begins
    outputs = [output] if len(edited) == 1 else [numbered(output, str(i + 1)) for i in range(len(edited))]
    fit = Fit.parse(crop, resize)
    given = [original, *edited, *(edited_instances or ()), *(path for path in (mask, instances) if path)]
    for path in outputs:
        check_writable(path, suffix=".png", inputs=given)
    engine = Engine(
        load(model, **parse_settings(settings)), open_backend(backend, threads, direct, weights), policy
    )
    get_policy(policy, paper=engine.network.paper)
    job = Job(engine, model, original, tuple(edited), tuple(outputs), mask, seed, fit)
    options = strokes.Options(
        steps,
        noise_level,
        sampler,
        eta,
        schedule,
        margin,
        cache,
        cache_folder,
        cache_storage,
        preview_every,
    )
    of_maps = {
        "instances": instances,
        "edited_instances": edited_instances,
        "unknown_label": unknown_label,
    }
    if isinstance(engine.network, UNet):
        _refuse(of_maps, f"{model} is a diffusion model ({engine.network.family}), which takes pictures")
        strokes.edit(job, options)
    else:
        _refuse(vars(options), f"{model} is no diffusion model ({engine.network.family})")
        labels.edit(job, instances, edited_instances or [], unknown_label)


def _refuse(options: dict[str, Any], why: str) -> None:
    """Raise InputError if any of another kind's options is given."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value not in (None, [])]
    if given:
        raise InputError(f"{', '.join(given)}: not for this model; {why}")
