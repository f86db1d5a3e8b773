"""The command that profiles: an architecture or a checkpoint and an edit come in, costs layer by layer go out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from sparsegen.backends.interface import Backend, Host
from sparsegen.weights import builtin

from .. import images
from ..errors import InputError
from ..loading import load_bundle
from ..models import VAEDecoder, VAEEncoder
from ..models.base import Model
from ..models.spade import SPADEGenerator
from ..tiling.policies import POLICIES, Paper
from ..tools.architectures import ARCHITECTURES, with_random_weights
from ..tools.described import csv_text, described
from ..tools.edits import REDUCTION, Given, profile_edit
from ..tools.report import Profile
from ..tools.roofline import Machine, measured
from ..tools.tables import counts, times
from .console import out, print_line, print_table, progress_bars
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
from .reading import decoded, parse_size

_POLICY_HELP = (
    f'Which tiles the edit recomputes: {", ".join(POLICIES)}; with settings as in "fast(refresh=3)".'
)
_MODEL_HELP = (
    f"An architecture by name, without weights: {', '.join(ARCHITECTURES)}; a built-in model; a checkpoint file or a "
    "diffusers folder, whose weights are read only by --run."
)


def profile(
    model: Annotated[
        str,
        typer.Argument(help=_MODEL_HELP),
    ],
    mask: Annotated[
        Path | None, typer.Option("--mask", help="The edit: an image that is white where the input changes.")
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            "--original",
            help="The original image or label map. Of labels, the rows of codebooks are counted.",
        ),
    ] = None,
    edited: Annotated[
        Path | None,
        typer.Option("--edited", help="The edit: an edited copy of the --original, where the two differ."),
    ] = None,
    area: Annotated[
        float | None,
        typer.Option("--area", help="The edit: a square of so many percent of the image, in its middle."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help=_POLICY_HELP,
            show_default="fast for diffusion models, else paper",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="HEIGHTxWIDTH",
            help="Of the image in pixels, such as 256x512.",
            show_default="the files', else what the model was trained on",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="Diffusion: denoising steps that the edit is made in.",
            show_default="those of 'sparsegen edit'",
        ),
    ] = None,
    run: Annotated[
        bool,
        typer.Option("--run", help="Run it, an architecture with random weights, and add the times."),
    ] = False,
    roofline: Annotated[
        bool,
        typer.Option(
            "--roofline",
            help="Measure the machine's peaks, about a second, and add the least time that they allow each layer; "
            "--run does so too.",
        ),
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="A line for each layer, not for each kind at a resolution.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with every layer instead of tables.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a row for every layer.")] = False,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    direct: DirectOption = False,
    weights: WeightsOption = None,
    precision: PrecisionOption = None,
    settings: SetOption = None,
) -> None:
    """Print what an edit costs layer by layer: MACs dense, as the paper counts and as computed here, bytes, times.

    Without --mask, --edited or --area, it is the dense run. Nothing is computed unless --run is given.
    """
    _check(mask, original, edited, area, as_json=as_json, as_csv=as_csv)
    subject = _subject(model, settings)
    engine = open_backend(backend, threads, direct, weights, precision)
    wanted = None if size is None else parse_size("--size", size)
    given = _given(subject, wanted, mask, original, edited, area, policy, steps)
    models = subject.models
    if run and subject.random:
        models = {role: with_random_weights(each) for role, each in models.items()}
    with progress_bars() as start:
        machine: Machine | None = None
        if run or roofline:
            start("measuring the machine", None)(0, engine.name)
            machine = measured(engine)
        bar = start(f"running {model}", None)
        found = profile_edit(
            models, given, engine, run=run, progress=lambda done, total, name: bar(done, name, total)
        )
    if as_json:
        about = {"name": model, "policy": given.policy or "the default", "size": given.size}
        out.print(json.dumps({**about, **described(found, machine)}, indent=1), soft_wrap=True)
    elif as_csv:
        out.print(csv_text(found, machine).rstrip("\n"), soft_wrap=True)
    else:
        for role, each in found.items():
            _print(model, role, each, given, subject, machine, engine, layers=layers)
        if len(found) > 1:
            print_table(f"{model}: {', '.join(found)}", _together(found.values()))


def _check(
    mask: Path | None,
    original: Path | None,
    edited: Path | None,
    area: float | None,
    *,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Raise InputError for options that exclude each other, or values out of range."""
    edits = {"--mask": mask, "--edited": edited, "--area": area}
    named = [name for name, value in edits.items() if value is not None]
    if len(named) > 1:
        raise InputError(f"{', '.join(named)}: each describes the edit; give one of them")
    if edited is not None and original is None:
        raise InputError("--edited: give the --original too; where the two differ is the edit")
    if area is not None and not 0 < area <= 100:
        raise InputError(f"--area {area:g}: expected a percentage, more than 0 and at most 100")
    if as_json and as_csv:
        raise InputError("--json, --csv: give one of them")


@dataclass(frozen=True)
class Subject:
    """What is profiled."""

    name: str
    models: Mapping[str, Model]
    """By role."""
    size: tuple[int, int] | None
    """(height, width) of the images that it was trained on; None: unknown."""
    random: bool
    """Whether it has no weights."""
    source: str
    papers: Mapping[str, Paper]
    """As `Architecture.papers`."""

    @property
    def labels(self) -> bool:
        """Whether it takes label maps."""
        return any(isinstance(model, SPADEGenerator) for model in self.models.values())


def _subject(name: str, settings: list[str] | None) -> Subject:
    """The models of a name or a path. Raises InputError, CheckpointError."""
    known = ARCHITECTURES.get(name)
    if known is not None:
        if settings:
            raise InputError(f"--set: {name} is an architecture by name, whose settings are known; omit it")
        return Subject(name, known.models(), known.size, True, known.source, known.papers)
    inside = builtin.get(name)
    if inside is None and not Path(name).exists():
        raise InputError(
            f"no architecture, built-in model or file {name!r}; architectures: {', '.join(ARCHITECTURES)}; built in: "
            f"{', '.join(builtin.names())}"
        )
    models = load_bundle(name, **parse_settings(settings)).models
    unet = models.get("unet")
    trained = None if unet is None else unet.size
    if trained is not None and len(models) > 1:
        parts = [each for each in models.values() if isinstance(each, VAEDecoder | VAEEncoder)]
        scale = parts[0].config.reduction if parts else REDUCTION
        trained = trained[0] * scale, trained[1] * scale
    if inside is not None and inside.labels is not None:
        trained = images.read_file(inside.examples[0].original).size
    return Subject(name, models, trained, False, "", {})


def _given(
    subject: Subject,
    size: tuple[int, int] | None,
    mask: Path | None,
    original: Path | None,
    edited: Path | None,
    area: float | None,
    policy: str | None,
    steps: int | None,
) -> Given:
    """The edit of these options. Raises InputError: a file does not fit."""
    files = decoded([path for path in (original, mask, edited) if path is not None])
    for path in (original, mask):
        if path is not None and size is None and (subject.size is None or path == original):
            size = files[path].size
    size = size or subject.size
    if size is None:
        raise InputError(
            f"{subject.name}: the size that it was trained on is unknown; give --size, such as 256x256"
        )
    for path, file in files.items():
        if file.size != size:
            raise InputError(
                f"{path}: is {_by(file.size)}, expected {_by(size)}, the size of the image that is profiled; resize "
                "it, or give --size"
            )
    if steps is not None and "unet" not in subject.models:
        raise InputError(f"--steps: {subject.name} is no diffusion model; omit it")
    given: dict[str, Host] = {}
    if mask is not None:
        given["mask"] = images.read_mask(files[mask])
    elif area is not None:
        given["mask"] = square(size, area / 100)
    if original is not None and subject.labels:
        known = builtin.get(subject.name)
        palette = known.labels.palette if known and known.labels else None
        given["labels"] = images.read_labels(files[original], palette, like=files[original])
        if edited is not None:
            given["edited"] = images.read_labels(files[edited], palette, like=files[original])
    elif original is not None and edited is not None:
        before, after = (images.read_image(files[path]).astype(np.int16) for path in (original, edited))
        least = max(model.eps for model in subject.models.values()) * 127.5  # of values in [-1, 1]
        given["mask"] = (np.abs(before - after) > least).any(-1)
    return Given(size, **given, policy=policy, steps=steps, papers=subject.papers)


def square(size: tuple[int, int], share: float) -> Host:
    """bool `[H, W]`: a square of that share of the pixels, in the middle; where it is too high or wide, a rectangle."""
    mask, pixels = np.zeros(size, bool), share * size[0] * size[1]
    height = min(size[0], max(1, round(pixels**0.5)))
    width = min(size[1], max(1, round(pixels / height)))
    height = min(size[0], max(1, round(pixels / width)))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    mask[top : top + height, left : left + width] = True
    return mask


def _print(
    name: str,
    role: str,
    found: Profile,
    given: Given,
    subject: Subject,
    machine: Machine | None,
    backend: Backend,
    *,
    layers: bool,
) -> None:
    """The tables of one model, totals last."""
    n, height, width = found.size
    title = f"{name}: {role}, " if len(subject.models) > 1 else f"{name}: "
    dense = found.edited_area == 1 and given.mask is None and given.edited is None
    what = "dense run" if dense else f"edit of {found.edited_area:.2%}"
    samples = f"{n} × " if n > 1 else ""
    policy = "" if dense else f", policy {given.policy or ('paper' if subject.labels else 'fast')}"
    of_steps = f"; one step, the mean of {found.steps}" if found.steps > 1 else ""
    out.print(
        f"{title}{what} of {samples}{height}×{width}{policy}, {backend.name}{of_steps}",
        style="bold",
        soft_wrap=True,
    )
    for line in counts(found.layers, found.steps, each=layers):
        out.print(line, soft_wrap=True)
    if machine is not None:
        out.print(f"roofline of {backend.name} here: {machine}", style="bold", soft_wrap=True)
        for line in times(found.layers, found.steps, machine, each=layers):
            out.print(line, soft_wrap=True)
    print_table("in all", _rows(found, dense=dense))
    if found.at_most:
        print_line(
            "note",
            "labels are not known, so the rows of codebooks are counted at their most; give --original and --edited to "
            "count those of your maps",
        )


def _rows(found: Profile, *, dense: bool) -> list[tuple[str, str]]:
    """The sums of a profile, for a table."""

    def giga(macs: int) -> str:
        share = f" ({macs / found.macs_dense:.1%} of dense)" if not dense and macs != found.macs_dense else ""
        return (
            f"{macs / found.steps / 1e9:.2f} G a step{share}"
            if found.steps > 1
            else f"{macs / 1e9:.2f} G{share}"
        )

    carried = found.steps - found.computed_steps
    rows = [("MACs, dense", giga(found.macs_dense))]
    if not dense:
        rows += [("MACs, as the paper counts", giga(found.macs_paper)), ("MACs here", giga(found.macs))]
    rows += [(f"multiply-adds of {found.backend}", giga(found.multiplied))]
    if found.steps > 1:
        how = (
            f"{found.computed_steps} compute every layer, {carried} carry deltas on"
            if carried
            else "all compute"
        )
        rows += [("steps", f"{found.steps}: {how}; {found.macs / 1e9:.1f} G MACs in all")]
    memory = {
        "canvases": found.canvas_bytes,
        "shared by all steps": found.shared_bytes,
        "codebooks": found.codebook_bytes,
        "to compute in": found.scratch_bytes,
        "undo of this edit": found.journal_bytes,
        "weights": found.weight_bytes,
    }
    rows += [(word, f"{count / 1e6:.1f} MB") for word, count in memory.items() if count]
    if found.milliseconds is not None:
        assert found.dense_milliseconds is not None  # both are measured
        faster = found.dense_milliseconds / found.milliseconds if found.milliseconds else 0.0
        ratio = "" if dense else f", {faster:.1f} times as fast as {found.dense_milliseconds:.1f} ms dense"
        rows += [("time", f"{found.milliseconds:.1f} ms{' in all' if found.steps > 1 else ''}{ratio}")]
    return rows


def _together(profiles: Iterable[Profile]) -> list[tuple[str, str]]:
    """The sums of all models of an edit, for a table."""
    each = list(profiles)
    dense, paper, here, multiplied = (
        sum(getattr(one, name) for one in each) for name in ("macs_dense", "macs_paper", "macs", "multiplied")
    )
    rows = [("MACs, dense", f"{dense / 1e9:.1f} G")]
    for name, count in {"MACs, as the paper counts": paper, "MACs here": here}.items():
        rows.append((name, f"{count / 1e9:.1f} G ({count / dense:.1%} of dense)"))
    rows.append((f"multiply-adds of {each[0].backend}", f"{multiplied / 1e9:.1f} G"))
    times = [one.milliseconds for one in each if one.milliseconds is not None]
    return rows + ([("time", f"{sum(times) / 1e3:.2f} s")] if times else [])


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
