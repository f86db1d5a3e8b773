"""The command that samples: a diffusion model and a number come in, that many images from pure noise go out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import images
from ..diffusion.settings import whole_way
from ..errors import InputError
from ..loading import load_bundle
from ..pipelines.sampling import sample as drawn
from .console import check_writable, numbered, out, print_table
from .job import Engine, settings_rows, written_by
from .options import (
    BackendOption,
    DirectOption,
    PrecisionOption,
    SamplerOption,
    ScheduleOption,
    SetOption,
    ThreadsOption,
    WeightsOption,
    open_backend,
    parse_settings,
    sample_steps,
    with_sampler_options,
)
from .reading import parse_size
from .strokes import step_bars


@with_sampler_options
def sample(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The PNG to write; several get -seed0, -seed1, …")
    ],
    model: Annotated[
        str, typer.Option("--model", help="A diffusion model: built in, a file or a diffusers folder.")
    ] = "landscape-ddpm",
    count: Annotated[int, typer.Option("--count", min=1, help="How many images, each of its own seed.")] = 1,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="HEIGHTxWIDTH",
            help="In pixels, such as 256x512.",
            show_default="what the model was trained on",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, help="Draw the noise; further images are of the seeds that follow."),
    ] = 0,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Denoising steps.", show_default=sample_steps())
    ] = None,
    sampler: SamplerOption = None,
    sampler_options: Any = None,
    schedule: ScheduleOption = None,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    direct: DirectOption = False,
    weights: WeightsOption = None,
    precision: PrecisionOption = None,
    settings: SetOption = None,
) -> None:
    """Make images out of noise alone, with a diffusion model."""
    targets = {
        one: output if count == 1 else numbered(output, f"seed{one}") for one in range(seed, seed + count)
    }
    for path in targets.values():
        check_writable(path, suffix=".png", inputs=[Path(model)] if Path(model).exists() else [])
    wanted = None if size is None else parse_size("--size", size)
    bundle = load_bundle(model, **parse_settings(settings))
    if len(bundle.models) > 1:
        raise InputError(f"--model {model}: makes images of a text; see 'sparsegen generate --help'")
    loaded = bundle.model
    if loaded.diffusion is None:
        raise InputError(f"--model {model}: no diffusion model ({loaded.family}); sample needs one")
    if wanted is None and loaded.size is None:
        raise InputError(f"{model}: the size that it was trained on is unknown; give --size, such as 256x256")
    engine = Engine(loaded, open_backend(backend, threads, direct, weights, precision), None)
    chosen: dict[str, Any] = {"steps": steps, "sampler": sampler, "schedule": schedule, **sampler_options}
    settings_used = whole_way(loaded.diffusion, loaded.sampling, **chosen, seed=seed)
    used = {**settings_used.used(), "size": wanted or loaded.size}
    print_table("settings", settings_rows(engine, **used))
    with step_bars(used["steps"]) as bar:
        for one, path in targets.items():
            result = drawn(
                loaded, size=wanted, seed=one, backend=engine.backend, on_step=bar(f"seed {one}"), **chosen
            )
            images.write_png(path, result.image, text=written_by(model, engine, **{**used, "seed": one}))
            out.print(f"{path}: seed {one}, {result.stats.milliseconds / 1e3:.1f} s", soft_wrap=True)
