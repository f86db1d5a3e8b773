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
from ..tools.explain import explain as explain_edit
from .console import check_writable, out, progress_bars
from .options import (
    BackendOption,
    CropOption,
    DirectOption,
    ModelOption,
    PolicyOption,
    ResizeOption,
    SeedOption,
    SetOption,
    ThreadsOption,
    WeightsOption,
    open_backend,
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
        typer.Option("--edited", help="An edited copy of it.", show_default="the example's"),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="Recompute where this image is white: at least half as bright."),
    ] = None,
    model: ModelOption = "landscape",
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
    seed: SeedOption = None,
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
    settings: SetOption = None,
) -> None:
    """Make an edit and explain it: a page that shows every layer's tiles, costs and distance from dense.

    One HTML file, to be opened in any browser; it loads nothing from elsewhere. Without files, the example of a
    built-in model is edited. One forward pass runs on the reference backend too, which takes longer than the edit.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{output}: the page is written as HTML; give a name that ends in .html")
    given = [path for path in (original, edited, mask) if path is not None]
    check_writable(output, inputs=given)
    engine_backend = open_backend(backend, threads, direct, weights)
    known = builtin.get(model)
    bundle = load_bundle(model, **parse_settings(settings))
    if len(bundle.models) > 1:
        raise InputError(
            f"{model}: holds {', '.join(bundle.models)}; edits of GauGANs and of diffusion models of images are "
            "explained, not yet those of Stable Diffusion"
        )
    loaded = bundle.model
    if original is None or edited is None:
        if original is not None or edited is not None or mask is not None or known is None:
            raise InputError(
                "explain: give --original and --edited; without files, the example of a built-in model is explained"
            )
        example = known.examples[0]
        original, edited = example.original, example.edits[0].path
    first, second, masked = _read(loaded, known, original, edited, mask, Fit.parse(crop, resize))
    options: dict[str, Any] = {"steps": steps, "noise_level": noise_level, "seed": seed}
    options = {name: value for name, value in options.items() if value is not None}
    if loaded.diffusion is None and options:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise InputError(f"{names}: this model has no denoising steps; omit it")
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


def _read(
    model: Model, known: builtin.BuiltIn | None, original: Path, edited: Path, mask: Path | None, fit: Fit
) -> tuple[Any, Any, Any]:
    """Original, edited and mask as arrays, cropped and resized alike."""
    files = decoded([original, edited, *([mask] if mask else [])])
    frame = fit.frame(model, files[original])
    masked = None if mask is None else images.read_mask(files[mask], frame=frame)
    if model.diffusion is not None:
        channels = model.config.in_channels
        found = [
            images.read_image(files[path], channels=channels, frame=frame) for path in (original, edited)
        ]
        return found[0], found[1], masked
    palette: Palette | None = known.labels.palette if known and known.labels else None
    maps = []
    for path in (original, edited):
        labels = images.read_labels(files[path], palette, like=files[original])
        with naming(path):
            model.check_labels(labels)  # type: ignore[attr-defined]  # only GauGANs have no diffusion here
        maps.append(frame.nearest(labels, path))
    return maps[0], maps[1], masked
