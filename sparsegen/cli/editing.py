"""Commands that edit: options and files come in, a model of either kind runs, images and tables go out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsegen.backends.interface import Backend
from sparsegen.weights import builtin

from .. import images
from ..errors import InputError
from ..loading import Bundle, load_bundle
from ..models.base import Model
from ..models.spade import SPADEGenerator
from ..pipelines.latent_edit import MARGIN
from ..pipelines.latents import LatentDiffusion
from . import labels, strokes, text_demo
from .console import check_writable, out, print_table
from .job import Engine, Job, output_paths
from .kept import Kept
from .options import (
    DIFFUSION,
    MODEL_HELP,
    TEXT_MODEL,
    BackendOption,
    CacheFolderOption,
    CropOption,
    DirectOption,
    GuidanceOption,
    LoraOption,
    ModelOption,
    NegativeOption,
    PolicyOption,
    PrecisionOption,
    PredictsOption,
    RamOption,
    ResizeOption,
    SamplerOption,
    ScheduleOption,
    SeedOption,
    SetOption,
    SkipOption,
    StrengthOption,
    TextOptions,
    ThreadsOption,
    WeightsOption,
    check_memory,
    open_backend,
    own_settings,
    parse_loras,
    parse_settings,
    with_sampler_options,
)
from .reading import Fit

DEFAULT_MODEL = "landscape"


def _margins() -> str:
    """The default of --margin, of each family and of Stable Diffusion."""
    found = [f"{family} {kind.paper.dilation}" for family, (kind, _) in DIFFUSION.items()]
    return ", ".join([*found, f"Stable Diffusion {MARGIN}"])


def demo(
    model: ModelOption = "landscape",
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    direct: DirectOption = False,
    weights: WeightsOption = None,
    precision: PrecisionOption = None,
    policy: PolicyOption = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The image to write.")] = Path("demo.png"),
) -> None:
    """Edit a built-in example; write inputs, dense and sparse results and tiles side by side; print what it cost.

    Of landscape-sd also images of texts, changed and painted ones. No network is needed.
    """
    known = builtin.get(model)
    if known is None:
        raise InputError(f"no built-in model {model!r}; built in: {', '.join(builtin.names())}")
    check_writable(output, suffix=".png")
    engine_backend, bundle = open_backend(backend, threads, direct, weights, precision), load_bundle(model)
    several = len(bundle.models) > 1
    loaded = LatentDiffusion(bundle, backend=engine_backend) if several else bundle.model
    engine = Engine.of(loaded, engine_backend, policy)
    if isinstance(loaded, LatentDiffusion):
        sheet, caption, rows = text_demo.demo(engine, known)
    elif known.labels is None:
        sheet, caption, rows = strokes.demo(engine, known)
    else:
        sheet, caption, rows = labels.demo(engine, known, known.labels)
    images.write_png(output, sheet)
    print_table(f"{model}: {caption} (backend {engine.backend.name}, policy {engine.policy})", rows)
    out.print(f"image written to {output.resolve()}", soft_wrap=True)


@with_sampler_options
def edit(
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="The PNG to write; several edits get -1, -2, …, variations -seed0, -seed1, …",
        ),
    ],
    original: Annotated[
        Path | None,
        typer.Option(
            "--original",
            help="What is there at first: an image, or a label map (PNG).",
            show_default="that of the --session",
        ),
    ] = None,
    edited: Annotated[
        list[Path] | None,
        typer.Option(
            "--edited",
            help="An edited copy of it; repeat to go on editing. Of images, transparent parts show what was before. "
            "Stable Diffusion paints in a --mask without one.",
        ),
    ] = None,
    session: Annotated[
        Path | None,
        typer.Option(
            "--session",
            help="A file to keep the session in. Where it is there, the edits go on from it, and the original does "
            "not run again; 'sparsegen undo' and 'redo' walk through it.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help=MODEL_HELP,
            show_default=f"that of the --session, {TEXT_MODEL} with a --prompt, else {DEFAULT_MODEL}",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            help="Recompute where this image is white: at least half as bright. Painted on a transparent layer, "
            "in whatever colour: where it is opaque.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", help="Stable Diffusion: the text that edits follow; a new session needs one."
        ),
    ] = None,
    negative: NegativeOption = None,
    crop: CropOption = None,
    resize: ResizeOption = None,
    policy: PolicyOption = None,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    direct: DirectOption = False,
    weights: WeightsOption = None,
    precision: PrecisionOption = None,
    seed: SeedOption = None,
    count: Annotated[
        int,
        typer.Option("--count", min=1, help="Variations: of the --seed, and of those that follow it."),
    ] = 1,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Diffusion: denoising steps.", show_default=own_settings("steps")),
    ] = None,
    noise_level: Annotated[
        int | None,
        typer.Option(
            "--noise-level",
            help="Diffusion: how much noise goes over the strokes, in timesteps of 1000 (pd: in steps). "
            "More: freer; less: closer to what was painted.",
            show_default=own_settings("noise_level"),
        ),
    ] = None,
    sampler: SamplerOption = None,
    sampler_options: Any = None,
    schedule: ScheduleOption = None,
    strength: StrengthOption = None,
    guidance: GuidanceOption = None,
    skip: SkipOption = None,
    predicts: PredictsOption = None,
    lora: LoraOption = None,
    margin: Annotated[
        int | None,
        typer.Option(
            "--margin",
            help="Diffusion: pixels around the strokes that are recomputed with them.",
            show_default=_margins(),
        ),
    ] = None,
    ram: RamOption = None,
    cache_folder: CacheFolderOption = None,
    cache_storage: Annotated[
        str | None,
        typer.Option(
            "--cache-storage",
            help="Diffusion: float32, or float16: half the memory, values rounded to 11 bits.",
            show_default="float32",
        ),
    ] = None,
    undo: Annotated[
        str | None,
        typer.Option(
            "--undo",
            help="Memory for undoing edits, such as 1GB; the oldest go first.",
            show_default="half of what the canvases take",
        ),
    ] = None,
    preview_every: Annotated[
        int | None,
        typer.Option(
            "--preview-every",
            min=1,
            help="Diffusion: write the image as predicted after every so many steps, as OUTPUT-preview-05.png.",
        ),
    ] = None,
    instances: Annotated[
        Path | None,
        typer.Option("--instances", help="Label maps: instance map of the original, for models with edges."),
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

    A GauGAN (such as the built-in landscape) takes label maps. A diffusion model takes an image and copies of it with
    strokes painted over, and makes the strokes real (SDEdit); Stable Diffusion takes a --prompt for it, and with a
    --mask alone paints what the prompt says. Options that begin with "Diffusion", "Stable Diffusion" or "Label maps"
    are for that kind alone; their defaults are the model family's, or those that a built-in model says.
    """
    # all options and paths are checked before the work begins
    copies = tuple(edited or ())
    if not copies and mask is None:
        raise InputError(
            "--edited: missing; give an edited copy (Stable Diffusion also takes a --mask alone)"
        )
    files = (original, *copies, mask, instances, *(edited_instances or ()))
    given = [path for path in files if path is not None]
    seeds = [None] if count == 1 else [(seed or 0) + i for i in range(count)]
    targets = [path for one in seeds for path in output_paths(output, max(len(copies), 1), one)]
    for path in targets:
        check_writable(path, suffix=".png", inputs=[*given, *([session] if session else [])])
    check_memory(ram=ram, undo=undo)
    texts = TextOptions(prompt, negative, strength, guidance, skip, predicts, parse_loras(lora))
    engine_backend = open_backend(backend, threads, direct, weights, precision)
    kept = None
    if session is not None:
        if count > 1:
            raise InputError("--count: each variation is a session; omit --session, which keeps one")
        if session.resolve() in {path.resolve() for path in targets}:
            raise InputError(f"--session {session}: is also an output; give another name")
        check_writable(session, inputs=given)
        kept = Kept.open(session, engine_backend, ram, cache_folder, undo)
        crop, resize = kept.option("crop", crop), kept.option("resize", resize)
    fit = Fit.parse(crop, resize)
    if kept is not None and kept.model is not None:
        kept.refuse({"set": settings, "lora": lora}, "has its model already")
        loaded: Model | LatentDiffusion = kept.model
        known = loaded.name
        if (
            model is not None
            and Path(model).exists()
            and Path(known).exists()
            and Path(model).samefile(known)
        ):
            model = known  # another path to the same file
        kept.check_same({"model": model}, {"model": known})
    else:
        usual = DEFAULT_MODEL if prompt is None else TEXT_MODEL
        bundle = load_bundle(model or usual, lora=texts.lora, **parse_settings(settings))
        loaded = opened(bundle, texts, engine_backend)
    if original is None and kept is None:
        raise InputError("--original: missing; give it, or a --session that exists")
    named = original if kept is None else kept.original(original)
    assert named is not None
    for path in targets:
        check_writable(path, inputs=[named])
    engine = Engine.of(loaded, engine_backend, policy, kept)
    called = loaded.name
    job = Job(engine, called, named, copies, output, mask, seed, count, fit, policy, undo, kept)
    if not copies and not isinstance(loaded, LatentDiffusion):
        raise InputError(f"--edited: missing; {called} is not Stable Diffusion, which takes a --mask alone")
    options = strokes.Options(
        steps,
        noise_level,
        sampler,
        sampler_options,
        schedule,
        margin,
        ram,
        cache_folder,
        cache_storage,
        preview_every,
        texts,
    )
    of_maps = {
        "instances": instances,
        "edited_instances": edited_instances,
        "unknown_label": unknown_label,
    }
    if isinstance(loaded, LatentDiffusion):
        refuse(of_maps, f"{called} is Stable Diffusion, which takes images")
        refuse({"noise_level": noise_level}, f"{called} is Stable Diffusion, which has a --strength")
        strokes.edit(job, options)
    elif loaded.diffusion is not None:
        refuse(of_maps, f"{called} is a diffusion model ({loaded.family}), which takes images")
        refuse(texts.given, f"{called} is a diffusion model ({loaded.family}), which reads no text")
        strokes.edit(job, options)
    else:
        refuse(options.given, f"{called} is no diffusion model ({loaded.family})")
        labels.edit(job, instances, edited_instances or [], unknown_label)


def opened(bundle: Bundle, texts: TextOptions, backend: Backend) -> Model | LatentDiffusion:
    """The model of a checkpoint, or the models of Stable Diffusion. Raises InputError: no edit is possible with it."""
    if len(bundle.models) > 1:
        if texts.prompt is None:
            raise InputError(
                f"--prompt: missing; {bundle.name} is Stable Diffusion, whose edits follow a text"
            )
        return LatentDiffusion(bundle, backend=backend, predicts=texts.predicts)
    model = bundle.model
    if model.diffusion is None and not isinstance(model, SPADEGenerator):
        raise InputError(
            f"--model {bundle.name}: holds one part of Stable Diffusion ({model.family}); give the whole checkpoint"
        )
    return model


def refuse(options: dict[str, Any], why: str) -> None:
    """Raise InputError if one of another kind of model's options is given."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value not in (None, [])]
    if given:
        raise InputError(f"{', '.join(given)}: not for this model, {why}; omit it")
