"""The command that compares: a checkpoint and what PyTorch computed come in, which layer differs and why goes out."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..loading import load_bundle
from ..models.base import Model
from ..tools.parity import TOLERANCE, Reference
from ..tools.parity import parity as compared
from .console import check_writable, out, progress_bars
from .options import (
    BackendOption,
    DirectOption,
    PrecisionOption,
    SetOption,
    ThreadsOption,
    WeightsOption,
    open_backend,
    parse_settings,
)

DIFFERS = 3
"""The exit code where the model differs from the reference."""


def parity(
    file: Annotated[
        Path, typer.Argument(help="A checkpoint, file or diffusers folder, or a built-in model's name.")
    ],
    golden: Annotated[
        Path | None,
        typer.Option("--golden", help="What PyTorch computed: a golden file, checked without PyTorch."),
    ] = None,
    module: Annotated[
        str | None,
        typer.Option(
            "--module",
            metavar="PACKAGE.MODULE:FUNCTION",
            help="Instead: run your own code. FUNCTION(model) returns a dict with the arguments of sparsegen.parity: "
            "module (a torch.nn.Module), image, and others by name.",
        ),
    ] = None,
    golden_out: Annotated[
        Path | None, typer.Option("--golden-out", help="With --module: the golden file to write.")
    ] = None,
    role: Annotated[
        str | None,
        typer.Option("--role", help="Of several models, the one to compare: unet, encoder, decoder, text."),
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", help="Of an edit, where the reference has an edited input.")
    ] = "paper",
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", help="A layer's own error, relative to its largest value, that is rounding."
        ),
    ] = TOLERANCE,
    json: Annotated[Path | None, typer.Option("--json", help="Write everything as JSON.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page that opens offline.")] = None,
    settings: SetOption = None,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    direct: DirectOption = False,
    weights: WeightsOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Hold a checkpoint's model to PyTorch, layer by layer, and name the first that differs, and why.

    Each layer is compared when both networks run from the input, and on its own, from PyTorch's values. The exit code
    is 3 if the model differs.
    """
    if (golden is None) == (module is None):
        raise InputError(
            "give --golden FILE, or --module PACKAGE.MODULE:FUNCTION (see 'sparsegen parity --help')"
        )
    if golden_out is not None and module is None:
        raise InputError("--golden-out: is written with --module alone; a golden file is there already")
    for path in (golden_out, json, html):
        if path is not None:
            check_writable(path, inputs=[each for each in (file, golden) if each is not None])
    engine = open_backend(backend, threads, direct, weights, precision)
    with progress_bars() as start:
        bar = start("reading", None)
        bundle = load_bundle(
            file, progress=lambda done, total, name: bar(done, name, total), **parse_settings(settings)
        )
    family = None if golden is None else Reference.load(golden).family
    model = _chosen(bundle.models, role, family)
    if golden is not None:
        report = compared(model, golden, policy=policy, backend=engine, tolerance=tolerance)
    else:
        given = _called(str(module), model)
        report = compared(
            model,
            **{"policy": policy, "backend": engine, "tolerance": tolerance, "golden": golden_out, **given},
        )
    if json is not None:
        report.write_json(json)
    if html is not None:
        report.write_html(html)
    out.print(str(report), soft_wrap=True)
    if not report.agrees:
        raise typer.Exit(DIFFERS)


def _chosen(models: Mapping[str, Model], role: str | None, family: str | None) -> Model:
    """The model to compare: of that role, or the one of the reference's family, or the only one. Raises InputError."""
    if role is None and len(models) > 1:
        role = next((each for each, model in models.items() if model.family == family), None)
    if role is None and len(models) == 1:
        return next(iter(models.values()))
    if role is None or role not in models:
        given = "several models" if role is None else f"no {role}"
        raise InputError(f"the checkpoint holds {given}; give --role, one of {', '.join(models)}")
    return models[role]


def _called(named: str, model: Model) -> dict[str, Any]:
    """The arguments that the user's function returns. Raises InputError: there is no such function."""
    module, colon, function = named.partition(":")
    if not colon or not module or not function:
        raise InputError(f"--module {named}: expected PACKAGE.MODULE:FUNCTION, such as mine.networks:unet")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"--module {named}: {error}; it is looked for from this folder on, {here}") from None
    found = getattr(imported, function, None)
    if found is None:
        raise InputError(f"--module {named}: {module} has no {function}")
    given = found(model)
    if not isinstance(given, Mapping) or "module" not in given:
        raise InputError(
            f'--module {named}: returned {type(given).__name__}, expected a dict with "module", "image" and other '
            "arguments of sparsegen.parity"
        )
    return dict(given)
