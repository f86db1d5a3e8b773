"""The command that generates: a text comes in, and perhaps an image and a mask; that many images of it go out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import images
from ..diffusion.registry import SAMPLERS, Step
from ..diffusion.settings import OnStep, latent_settings
from ..errors import InputError
from ..loading import load_bundle
from ..pipelines.generation import generate as drawn
from ..pipelines.generation import usual_strength
from ..pipelines.latents import LatentDiffusion
from .console import check_writable, numbered, out, print_table
from .job import Engine, settings_rows, written_by
from .options import (
    TEXT_MODEL,
    BackendOption,
    CropOption,
    DirectOption,
    GuidanceOption,
    LoraOption,
    NegativeOption,
    PrecisionOption,
    PredictsOption,
    ResizeOption,
    ScheduleOption,
    SetOption,
    SkipOption,
    StrengthOption,
    ThreadsOption,
    WeightsOption,
    open_backend,
    parse_loras,
    parse_settings,
    with_sampler_options,
)
from .reading import Fit, decoded, parse_size
from .strokes import preview_files, step_bars


@with_sampler_options
def generate(
    prompt: Annotated[str, typer.Option("--prompt", help="The text.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="The PNG to write; several images get -seed0, -seed1, …"),
    ],
    model: Annotated[
        str, typer.Option("--model", help="Stable Diffusion: built in, a file or a diffusers folder.")
    ] = TEXT_MODEL,
    negative: NegativeOption = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="Begin with this image instead of noise alone.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            help="Paint only where this image is white, or opaque on a transparent layer, into the --image, whose "
            "other pixels go through the autoencoder ('sparsegen edit --mask' leaves their bits).",
        ),
    ] = None,
    strength: StrengthOption = None,
    crop: CropOption = None,
    resize: ResizeOption = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="HEIGHTxWIDTH",
            help="In pixels, such as 512x768, without an --image.",
            show_default="what the model was trained on",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="How many images, each of its own seed.")] = 1,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, help="Draw the noise; further images are of the seeds that follow."),
    ] = 0,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Denoising steps.", show_default="those of the checkpoint, else 50"),
    ] = None,
    guidance: GuidanceOption = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            help=f"One of {', '.join(SAMPLERS)}.",
            show_default="that of the checkpoint, else ddim",
        ),
    ] = None,
    sampler_options: Any = None,
    schedule: ScheduleOption = None,
    skip: SkipOption = None,
    predicts: PredictsOption = None,
    lora: LoraOption = None,
    preview_every: Annotated[
        int | None,
        typer.Option(
            "--preview-every",
            min=1,
            help="Write the image as predicted after every so many steps, as OUTPUT-preview-05.png.",
        ),
    ] = None,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    direct: DirectOption = False,
    weights: WeightsOption = None,
    precision: PrecisionOption = None,
    settings: SetOption = None,
) -> None:
    """Make images of a text with Stable Diffusion.

    With --image, that image is changed towards the text; with --mask too, it is painted there alone. The PNG keeps the
    prompt and all settings in its text chunks.
    """
    # all options and paths are checked before the work begins
    given = [path for path in (image, mask) if path is not None]
    inputs = [*given, *([Path(model)] if Path(model).exists() else [])]
    targets = {
        one: output if count == 1 else numbered(output, f"seed{one}") for one in range(seed, seed + count)
    }
    for path in targets.values():
        check_writable(path, suffix=".png", inputs=inputs)
    wanted = None if size is None else parse_size("--size", size)
    fit = Fit.parse(crop, resize)
    _check_together(image, mask=mask, strength=None if strength == 1 else strength, crop=crop, resize=resize)
    if image is not None and size is not None:
        raise InputError("--size: an --image has a size; give --resize or --crop to change it")
    loras = parse_loras(lora)
    engine_backend = open_backend(backend, threads, direct, weights, precision)
    bundle = load_bundle(model, lora=loras, **parse_settings(settings))
    models = LatentDiffusion(bundle, backend=engine_backend, predicts=predicts)
    if models.inpaints and mask is None:
        raise InputError(
            f"--mask: missing; {model} is an inpainting model, which needs an --image and a --mask"
        )
    chosen: dict[str, Any] = {
        "steps": steps,
        "strength": strength,
        "guidance": guidance,
        "sampler": sampler,
        "schedule": schedule,
        **sampler_options,
    }
    usual = usual_strength(image=image is not None, mask=mask is not None)
    sampled = latent_settings(
        models.own,
        models.diffusion.predicts,
        **{**chosen, "strength": usual if strength is None else strength, "seed": seed},
    )
    pixels: dict[str, Any] = {}
    if image is not None:
        files = decoded(given)
        frame = fit.frame(models, files[image])
        pixels["image"] = images.read_image(files[image], frame=frame)
        if mask is not None:
            pixels["mask"] = images.read_mask(files[mask], frame=frame)
    elif wanted is not None:
        models.check_size(*wanted)
    engine = Engine(models, engine_backend, None)
    made_with = {
        "prompt": prompt,
        "negative": negative or None,
        **sampled.used(),
        "skip": skip or 0,
        "size": pixels["image"].shape[:2] if pixels else wanted or models.usual_size,
    }
    files_used = {"image": image and str(image), "mask": mask and str(mask), "lora": loras}
    count_of_steps = len(sampled.times())
    previews = preview_files(list(targets.values()), count_of_steps, preview_every, inputs)
    print_table("settings", settings_rows(engine, **made_with))
    with step_bars(count_of_steps) as bar:
        for one, path in targets.items():
            text = written_by(model, engine, **{**made_with, **files_used, "seed": one})
            go = bar(f"seed {one}")

            def on_step(step: Step, path: Path = path, text: dict[str, str] = text, go: OnStep = go) -> None:
                go(step)
                if (path, step.index) in previews:
                    images.write_png(previews[path, step.index], models.images(step.x0)[0], text=text)

            result = drawn(
                models,
                prompt,
                negative=negative or "",
                size=wanted,
                skip=skip or 0,
                seed=one,
                on_step=on_step,
                **pixels,
                **chosen,
            )
            images.write_png(path, result.image, text=text)
            out.print(f"{path}: seed {one}, {result.stats.milliseconds / 1e3:.1f} s", soft_wrap=True)


def _check_together(image: Path | None, **options: Any) -> None:
    """Raise InputError if one of the options of an image is given without one."""
    alone = [f"--{name}" for name, value in options.items() if value is not None]
    if image is None and alone:
        raise InputError(f"{', '.join(alone)}: of an image; give the --image too")
