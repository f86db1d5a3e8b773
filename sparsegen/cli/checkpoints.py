"""Commands about models in files: a checkpoint comes in, a description or another file goes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sparsegen.weights import (
    SCHEDULE_KEY,
    CheckpointError,
    Part,
    Which,
    builtin,
    listed,
    read_checkpoint,
    read_parts,
    shown,
)

from ..errors import InputError
from ..loading import load_bundle, save
from .console import check_new, out, print_table, progress_bars
from .contents import is_png, is_session, png_rows, session_rows
from .options import LoraOption, SetOption, parse_loras, parse_settings

DTypeName = Literal["stored", "float32", "float16"]


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint: a PyTorch file (zip, legacy), a safetensors file or a diffusers folder; a built-in "
            "model's name; a session's file; a PNG that sparsegen wrote."
        ),
    ],
    settings: SetOption = None,
) -> None:
    """Print the contents of a checkpoint: format, family, sizes, weights taken, tensors. Nothing in it is executed.

    Of a session's file: its models, its settings and prompt, and what can be undone. Of a PNG that sparsegen wrote: the
    settings and the prompt in it.
    """
    which = _which(parse_settings(settings))
    known = None if file.exists() else builtin.get(str(file))
    if known is not None:
        file = known.checkpoint
    if is_png(file):
        print_table(str(file), png_rows(file))
        return
    described: list[tuple[str, str]] = []
    try:
        found = read_parts(file, which=which)
    except CheckpointError as error:
        if which is not None:
            raise
        try:
            checkpoints = [read_checkpoint(file)]
        except CheckpointError:
            raise error from None
        form, schedule = checkpoints[0].format, checkpoints[0].schedule
        if is_session(checkpoints[0]):
            described += session_rows(file, checkpoints[0])
        else:
            described += [("family", f"not recognised: {error}")]
    else:
        # the parts of a single file have one checkpoint
        checkpoints = list({id(part.checkpoint): part.checkpoint for part in found.parts}.values())
        form, schedule = found.format, found.schedule
        for part in found.parts:
            described += _described(part)
        described += [("prediction", found.prediction)] if found.prediction is not None else []
        described += [(name, shown(value)) for name, value in found.scheduler.items() if value is not None]
    noted = [each.metadata[SCHEDULE_KEY] for each in checkpoints if SCHEDULE_KEY in each.metadata]
    schedules = [schedule] if schedule is not None else noted[:1]
    described += [("noise schedule", shown(each)) for each in schedules]
    placeholders = [shown(name) for each in checkpoints for name in each.placeholders]
    described += [("not read", f"objects of {listed(placeholders)}")] if placeholders else []
    places = [f"{Path(each.path).name}/" if len(checkpoints) > 1 else "" for each in checkpoints]
    tensors = [
        (place + shown(name), tensor)
        for place, each in zip(places, checkpoints, strict=True)
        for name, tensor in each.tensors.items()
    ]
    size = sum(tensor.nbytes for _, tensor in tensors)
    count = ("tensors", f"{len(tensors)}, {size / 1e6:.1f} MB")
    print_table(str(file), [("format", form), *described, count])
    if is_session(checkpoints[0]):
        return  # its arrays are those of every step
    width = max((len(name) for name, _ in tensors), default=0)
    for name, tensor in tensors:
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        out.print(f"  {name:<{width}}  {tensor.dtype:<9} {shape}", soft_wrap=True)


def _described(part: Part) -> list[tuple[str, str]]:
    """The rows of one model."""
    chosen = part.family.chosen
    kind = {"the only": "the only ones", "": "those in the usual place"}.get(chosen.kind, chosen.kind)
    rows = [("family", part.family.name), ("model", shown(part.family.model))]
    rows += [(shown(key), shown(value)) for key, value in part.config.items()]
    rows += [("weights taken", f"{kind} ({chosen.place})" if chosen.place else kind)]
    rows += [("beside them", listed(list(chosen.beside)))] if chosen.beside else []
    return rows + [("not taken", reason) for reason in chosen.unusable[:8]]


def convert(
    file: Annotated[
        Path, typer.Argument(help="A checkpoint, file or diffusers folder, of a family that sparsegen knows.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The safetensors file to write; a new one.")],
    dtype: Annotated[
        DTypeName,
        typer.Option(
            "--dtype", help="Storage type of the weights; stored: each as it is in the file, without loss."
        ),
    ] = "stored",
    lora: LoraOption = None,
    settings: SetOption = None,
) -> None:
    """Write a checkpoint as one safetensors file with sparsegen's names: smaller, safe, and quick to load.

    All models of Stable Diffusion go into it, with the tokenizer and the settings of the scheduler.
    """
    check_new(output)
    loras = parse_loras(lora)
    with progress_bars() as start:

        def progress(description: str) -> Callable[[int, int, str], None]:
            bar = start(description, None)
            return lambda done, total, name: bar(done, name, total)

        given = parse_settings(settings)
        bundle = load_bundle(file, lora=loras, progress=progress("reading"), **given)
        save(bundle, output, dtype=None if dtype == "stored" else dtype, progress=progress("writing"))
    models = bundle.models.values()
    counts = {
        model.family: sum(math.prod(each.shape) for each in model.parameters().values()) for model in models
    }
    written = ", ".join(f"{family} {count / 1e6:.2f} M" for family, count in counts.items())
    kinds = {each.stored for model in models for each in model.parameters().values()}
    kind = ", ".join(sorted(kinds)) if dtype == "stored" else dtype
    size = output.stat().st_size
    out.print(f"{file} → {output}: {written} parameters, {size / 1e6:.2f} MB {kind}", soft_wrap=True)
    for role, source in bundle.taken.items():
        out.print(f"written: {f'{role}: ' * (len(bundle.taken) > 1)}{source}", soft_wrap=True)


def _which(settings: dict[str, Any]) -> Which | None:
    """The setting `which`, the only one that inspect takes. Raises InputError."""
    which: Which | None = settings.pop("which", None)
    if settings or which not in (None, "ema", "model"):
        raise InputError("inspect: expected --set which=ema or --set which=model, and no other setting")
    return which
