"""Commands about models in files: a checkpoint comes in, a description or another file goes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from sparsegen.weights import (
    SCHEDULE_KEY,
    CheckpointError,
    Which,
    identify,
    listed,
    read_checkpoint,
    shown,
)

from ..errors import InputError
from ..loading import load, save
from .console import check_writable, out, print_table, progress_bars
from .options import SetOption, parse_settings

DTypeName = Literal["float32", "float16"]


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint: a PyTorch file (zip, legacy), a safetensors file or a diffusers folder."
        ),
    ],
    settings: SetOption = None,
) -> None:
    """Print the contents of a checkpoint: format, family, sizes, weights taken, tensors. Nothing in it is executed."""
    which = _which(parse_settings(settings))
    checkpoint = read_checkpoint(file, which=which)
    try:
        family, config = identify(checkpoint, which=which)
    except CheckpointError as error:
        if which is not None:
            raise
        described = [("family", f"not recognised: {error}")]
    else:
        chosen = family.chosen
        kind = {"the only": "the only ones", "": "those in the usual place"}.get(chosen.kind, chosen.kind)
        described = [("family", family.name), ("model", shown(family.model))]
        described += [(shown(key), shown(value)) for key, value in config.items()]
        described += [("weights taken", f"{kind} ({chosen.place})" if chosen.place else kind)]
        described += [("beside them", listed(list(chosen.beside)))] if chosen.beside else []
        described += [("not taken", reason) for reason in chosen.unusable[:8]]
    schedule = checkpoint.schedule or checkpoint.metadata.get(SCHEDULE_KEY)
    described += [("noise schedule", shown(schedule))] if schedule is not None else []
    if checkpoint.placeholders:
        described += [("not read", f"objects of {listed([shown(name) for name in checkpoint.placeholders])}")]
    size = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    tensors = [("tensors", f"{len(checkpoint.tensors)}, {size / 1e6:.1f} MB")]
    print_table(str(file), [("format", checkpoint.format), *described, *tensors])
    names = {shown(name): tensor for name, tensor in checkpoint.tensors.items()}
    width = max(map(len, names), default=0)
    for name, tensor in names.items():
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        out.print(f"  {name:<{width}}  {tensor.dtype:<9} {shape}", soft_wrap=True)


def convert(
    file: Annotated[
        Path, typer.Argument(help="A checkpoint, file or diffusers folder, of a family that sparsegen knows.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The safetensors file to write.")],
    dtype: Annotated[DTypeName, typer.Option("--dtype", help="Storage type of the weights.")] = "float32",
    settings: SetOption = None,
) -> None:
    """Write a checkpoint as safetensors with sparsegen's names: smaller, safe, and quick to load."""
    check_writable(output, inputs=[file])
    with progress_bars() as start:

        def progress(description: str) -> Callable[[int, int, str], None]:
            bar = start(description, None)
            return lambda done, total, name: bar(done, name, total)

        model = load(file, progress=progress("reading"), **parse_settings(settings))
        save(model, output, dtype=dtype, progress=progress("writing"))
    count = sum(int(np.prod(parameter.shape)) for parameter in model.parameters().values())
    size = output.stat().st_size
    out.print(
        f"{file} → {output}: {model.family}, {count / 1e6:.2f} M parameters, {size / 1e6:.2f} MB {dtype}",
        soft_wrap=True,
    )
    out.print(f"written: {model.source}", soft_wrap=True)


def _which(settings: dict[str, Any]) -> Which | None:
    """The setting `which`, the only one that inspect takes. Raises InputError."""
    which: Which | None = settings.pop("which", None)
    if settings or which not in (None, "ema", "model"):
        raise InputError("inspect: expected --set which=ema or --set which=model, and no other setting")
    return which
