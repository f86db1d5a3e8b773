"""Files and models: a built-in name or a checkpoint's path comes in, ready models come out, and back to a file.

The family is recognised by its keys, sizes are read off the tensors' shapes (a diffusers folder has them in a
configuration); no PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from sparsegen.weights import (
    SCHEDULE_KEY,
    SIZE_KEY,
    Checkpoint,
    CheckpointError,
    Which,
    builtin,
    convert,
    identify,
    native_metadata,
    read_checkpoint,
    shown,
    write_safetensors,
)

from .diffusion.schedules import SCHEDULES
from .errors import InputError
from .models.base import Model

logger = logging.getLogger("sparsegen")

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, name)` after each tensor."""


@dataclass(frozen=True)
class Bundle:
    """The parts of a checkpoint: its models by their roles, the noise schedule and the tokenizer beside them."""

    name: str
    """As it was given to `load_bundle`: a built-in name or a path."""
    models: Mapping[str, Model]
    """Role -> model: "unet" of a diffusion model, "generator" of a GauGAN."""
    taken: Mapping[str, str]
    """Role -> the weights of the file that the model has: "averaged weights (ema); beside them: model"."""
    schedule: str | None = None
    """Name of the noise schedule that the checkpoint gives; None: it gives none."""
    tokenizer: None = None
    """Of a model that is conditioned on text; no family here is."""

    @property
    def model(self) -> Model:
        """The only model. Raises InputError, which lists the roles: there are several."""
        if len(self.models) != 1:
            raise InputError(
                f"{self.name} holds {len(self.models)} models ({', '.join(self.models)}), expected one; "
                "use load_bundle(path).models[role]"
            )
        return next(iter(self.models.values()))


def load(
    model: str | os.PathLike[str],
    *,
    which: Which | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Model:
    """The only model of a checkpoint, ready to run.

    Parameters
    ----------
    model
        The name of a built-in model (`landscape`); a checkpoint file: PyTorch (zip or legacy) or safetensors; or the
        folder of a diffusers pipeline or `UNet2DModel`. The file is mapped, and read when weights are needed: do not
        write into it while the model lives (replacing it is safe).
    which
        The weights to take of a file or folder that holds a moving average beside the last weights: "ema" or "model".
        None: the average, where it is a whole model (with batch norm: with statistics of its own). The model's
        `source` and the log (logger "sparsegen") name the weights taken.
    settings
        Overrides of the recognised configuration, by the names of the family's configuration, for the settings that a
        checkpoint does not determine (GauGAN: `num_upsampling_layers`, `edge_channel`; progressive distillation:
        `head_channels`).
    progress
        Called after each parameter.

    Raises
    ------
    InputError
        No such built-in model or file, a setting that the family does not have, or several models.
    CheckpointError
        The file is damaged, hostile, of an unknown family, or its keys do not fit; names the fault and its place.
    """
    return load_bundle(model, which=which, progress=progress, **settings).model


def load_bundle(
    model: str | os.PathLike[str],
    *,
    which: Which | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Bundle:
    """All models of a checkpoint by their roles, with the noise schedule beside them; else as `load`."""
    known = builtin.get(str(model))
    path = known.checkpoint if known else Path(model)
    if not path.is_file() and not path.is_dir():
        raise InputError(
            f"model {str(model)!r} is neither a file or folder nor built in; built in: {', '.join(builtin.names())}"
        )
    if which not in (None, "ema", "model"):
        raise InputError(f"which is {which!r}, expected ema or model")
    checkpoint = read_checkpoint(path, which=which)
    made = _read(checkpoint, which, settings, progress)
    made.name = str(model)
    schedule = checkpoint.schedule or checkpoint.metadata.get(SCHEDULE_KEY)
    if schedule is not None:
        if schedule not in SCHEDULES:
            raise CheckpointError(
                f"unknown noise schedule {shown(schedule)}; known: {', '.join(SCHEDULES)}", path=str(path)
            )
        made.sampling = MappingProxyType({"schedule": schedule})
    made.size = _trained_size(checkpoint)
    if known:
        made.defaults, made.sampling, made.size = known.defaults, known.sampling, known.size
        made.paper = dataclasses.replace(made.paper, **known.paper)
    return Bundle(
        made.name,
        MappingProxyType({made.role: made}),
        MappingProxyType({made.role: made.source}),
        made.sampling.get("schedule"),
    )


def _read(
    checkpoint: Checkpoint, which: Which | None, settings: Mapping[str, Any], progress: Progress | None
) -> Model:
    """The model of a checkpoint, with its weights. Raises InputError, CheckpointError."""
    path = checkpoint.path
    family, config = identify(checkpoint, which=which)
    kind: Any = Model.registry.get(family.model)
    if kind is None:
        raise CheckpointError(
            f"is of the unknown family {shown(family.model)!r}; known: {', '.join(sorted(Model.registry))}",
            path=path,
            advice="Update sparsegen, or convert the original file again",
        )
    fields = [field.name for field in dataclasses.fields(kind.config_type)]
    unknown = set(settings) - set(fields)
    if unknown:
        raise InputError(
            f"{family.model} has no setting {', '.join(sorted(unknown))}; it has {', '.join(fields)}, which"
        )
    foreign = [shown(name) for name in sorted(set(config) - set(fields))]
    if foreign:
        raise CheckpointError(
            f"its configuration has unknown settings of {family.model}: {', '.join(foreign[:5])}",
            path=path,
            advice="Update sparsegen, or convert the original file again",
        )
    try:
        made: Model = kind(kind.config_type(**{**config, **settings}))
    except InputError as error:
        if settings:
            raise
        raise CheckpointError(f"its configuration is wrong: {error}", path=path) from None
    expected = {name: parameter.shape for name, parameter in made.parameters().items()}
    values = convert(family, checkpoint, expected)
    made.load_parameters(values, check=values.check, release=checkpoint.release, progress=progress)
    made.source = str(family.chosen)
    passed_over = which is None and family.chosen.unusable and not family.chosen.averaged
    logger.log(logging.WARNING if passed_over else logging.INFO, "%s: took %s", path, made.source)
    return made


def _trained_size(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """The (height, width) that the model was trained on (diffusers: `sample_size`), None where the file has none."""
    size: Any = (checkpoint.config or {}).get("sample_size")
    noted = checkpoint.metadata.get(SIZE_KEY)
    if isinstance(noted, str) and len(noted) < 100:
        with contextlib.suppress(ValueError):
            size = json.loads(noted)
    sides = [size, size] if type(size) is int else size
    if not isinstance(sides, list) or len(sides) != 2:
        return None
    height, width = sides
    if type(height) is not int or type(width) is not int or not 0 < min(sides) <= max(sides) <= 1 << 16:
        return None
    return height, width


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    dtype: Literal["float16", "float32"] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a model as safetensors that `load` reads back; `dtype` "float16" halves the file.

    The file appears whole or not at all.

    Raises
    ------
    CheckpointError
        No space, or a value that float16 cannot hold.
    """
    values = {name: parameter.value for name, parameter in model.parameters().items()}
    metadata = native_metadata(model.family, dataclasses.asdict(model.config))
    if "schedule" in model.sampling:
        metadata[SCHEDULE_KEY] = model.sampling["schedule"]
    if model.size is not None:
        metadata[SIZE_KEY] = json.dumps(model.size)
    write_safetensors(path, values, metadata, dtype=dtype, progress=progress)
