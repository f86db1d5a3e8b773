"""`sparsegen explain`: an edit comes in, a page of HTML goes out that shows what every layer did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsegen.weights import builtin

from .. import images
from ..errors import InputError
from ..images import Palette
from ..loading import load_bundle
from ..models.base import Model
from ..pipelines.latents import LatentDiffusion
from ..tools.explain import explain as explain_edit
from .console import check_writable, out, progress_bars
from .editing import DEFAULT_MODEL, opened, refuse
from .options import (
    MODEL_HELP,
    TEXT_MODEL,
    BackendOption,
    CacheFolderOption,
    CropOption,
    DirectOption,
    GuidanceOption,
    LoraOption,
    NegativeOption,
    PolicyOption,
    PrecisionOption,
    PredictsOption,
    RamOption,
    ResizeOption,
    SeedOption,
    SetOption,
    SkipOption,
    StrengthOption,
    TextOptions,
    ThreadsOption,
    WeightsOption,
    check_memory,
    open_backend,
    parse_loras,
    parse_settings,
)
from .reading import Fit, decoded, naming


def explain(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The page to write, a file that ends in .html.")
    ],
    original: Annotated[
        Path | None,
        typer.Option(
            "--original",
            help="What is there at first: an image, or a label map (PNG).",
            show_default="the example of a built-in model",
        ),
    ] = None,
    edited: Annotated[
        Path | None,
        typer.Option(
            "--edited",
            help="An edited copy of it. Stable Diffusion paints in a --mask without one.",
            show_default="the example's",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="Recompute where this image is white: at least half as bright."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help=MODEL_HELP, show_default=f"{TEXT_MODEL} with a --prompt, else {DEFAULT_MODEL}"
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            help="Stable Diffusion: the text that the edit follows.",
            show_default="that of the example",
        ),
    ] = None,
    negative: NegativeOption = None,
    policy: PolicyOption = None,
    step: Annotated[
        int | None,
        typer.Option(
            "--step",
            help="Diffusion: the denoising step, from 0, whose layers are shown.",
            show_default="one in the middle",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Diffusion: denoising steps.", show_default="the model's"),
    ] = None,
    noise_level: Annotated[
        int | None,
        typer.Option(
            "--noise-level",
            help="Diffusion: how much noise goes over the strokes.",
            show_default="the model's",
        ),
    ] = None,
    strength: StrengthOption = None,
    guidance: GuidanceOption = None,
    skip: SkipOption = None,
    predicts: PredictsOption = None,
    lora: LoraOption = None,
    seed: SeedOption = None,
    ram: RamOption = None,
    cache_folder: CacheFolderOption = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Leave out what takes longest: the curve of costs, and the what-ifs."),
    ] = False,
    crop: CropOption = None,
    resize: ResizeOption = None,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    direct: DirectOption = False,
    weights: WeightsOption = None,
    precision: PrecisionOption = None,
    settings: SetOption = None,
) -> None:
    """Make an edit and explain it: a page that shows every layer's tiles, costs and distance from dense.

    One HTML file, to be opened in any browser; it loads nothing from elsewhere. Without files, the example of a
    built-in model is edited. One forward pass runs on the reference backend too, which takes longer than the edit; of
    Stable Diffusion one each of encoder, UNet and decoder.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{output}: the page is written as HTML; give a name that ends in .html")
    given = [path for path in (original, edited, mask) if path is not None]
    check_writable(output, inputs=given)
    check_memory(ram=ram)
    if cache_folder is not None and ram is None:
        raise InputError("--cache-folder: has no effect without --ram; give --ram, such as --ram 4GB")
    engine_backend = open_backend(backend, threads, direct, weights, precision)
    name = model or (DEFAULT_MODEL if prompt is None else TEXT_MODEL)
    known = builtin.get(name)
    if not given and known is not None:
        example = known.examples[0]
        change = example.edits[0]
        original, edited, mask = example.original, None if change.mask else change.path, change.mask
        prompt = change.prompt if prompt is None else prompt
    texts = TextOptions(prompt, negative, strength, guidance, skip, predicts, parse_loras(lora))
    loaded = opened(load_bundle(name, lora=texts.lora, **parse_settings(settings)), texts, engine_backend)
    latent = isinstance(loaded, LatentDiffusion)
    if original is None or (edited is None and not (latent and mask is not None)):
        raise InputError(
            "explain: give --original and --edited (of Stable Diffusion also --original and --mask); without files, "
            "the example of a built-in model is explained"
        )
    options = _options(
        loaded, texts, edited, steps=steps, noise_level=noise_level, seed=seed, ram=ram, folder=cache_folder
    )
    first, second, masked = _read(loaded, known, original, edited, mask, Fit.parse(crop, resize))
    with progress_bars() as start:
        bar, done = start("explain", None), 0

        def progress(doing: str) -> None:
            nonlocal done
            done += 1
            bar(done, doing)

        found = explain_edit(
            loaded,
            first,
            second,
            mask=masked,
            policy=policy,
            backend=engine_backend,
            step=step,
            whole=not quick,
            progress=progress,
            **options,
        )
    found.save(output)
    out.print(repr(found).strip("<>"), soft_wrap=True)
    out.print(f"page written to {output.resolve()}", soft_wrap=True)


def _options(
    model: Model | LatentDiffusion, texts: TextOptions, edited: Path | None, **given: Any
) -> dict[str, Any]:
    """The options of a session that are given. Raises InputError: this kind of model does not have one of them."""
    named = {"cache_folder" if name == "folder" else name: value for name, value in given.items()}
    if isinstance(model, LatentDiffusion):
        noise_level = named["noise_level"]
        refuse({"noise_level": noise_level}, f"{model.name} is Stable Diffusion, which has a --strength")
        own = {name: value for name, value in texts.given.items() if name not in ("predicts", "lora")}
        if texts.strength is None and edited is None:
            own["strength"] = (
                1.0  # as `edit` does: with a mask alone, nothing is painted that is to be kept in part
            )
        given |= own
    elif model.diffusion is not None:
        refuse(texts.given, f"{model.name} is a diffusion model ({model.family}), which reads no text")
    else:
        refuse({**named, **texts.given}, f"{model.name} is no diffusion model ({model.family})")
    return {name: value for name, value in given.items() if value is not None}


def _read(
    model: Model | LatentDiffusion,
    known: builtin.BuiltIn | None,
    original: Path,
    edited: Path | None,
    mask: Path | None,
    fit: Fit,
) -> tuple[Any, Any, Any]:
    """Original, edited (the original, if there is none) and mask as arrays, cropped and resized alike."""
    pair = [original, edited or original]
    files = decoded([*pair, *([mask] if mask else [])])
    frame = fit.frame(model, files[original])
    masked = None if mask is None else images.read_mask(files[mask], frame=frame)
    if model.diffusion is not None:
        channels = 3 if isinstance(model, LatentDiffusion) else model.config.in_channels
        first = images.read_image(files[original], channels=channels, frame=frame)
        second = images.read_image(files[pair[1]], channels=channels, below=first, frame=frame)
        return first, second, masked
    palette: Palette | None = known.labels.palette if known and known.labels else None
    maps = []
    for path in pair:
        labels = images.read_labels(files[path], palette, like=files[original])
        with naming(path):
            model.check_labels(labels)  # type: ignore[attr-defined]  # only GauGANs have no diffusion here
        maps.append(frame.nearest(labels, path))
    return maps[0], maps[1], masked
