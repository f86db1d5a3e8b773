"""Files and models: a built-in name or a checkpoint's path comes in, a ready network comes out, and back to a file.

The family is recognised by its keys, sizes are read off the tensors' shapes (a diffusers folder
has them in a configuration); no PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from sparsegen.weights import (
    SCHEDULE_KEY,
    SIZE_KEY,
    Checkpoint,
    CheckpointError,
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


def load(model: str | os.PathLike[str], *, progress: Progress | None = None, **settings: Any) -> Model:
    """Load a network.

    Parameters
    ----------
    model
        The name of a built-in model (`landscape`); a checkpoint file: PyTorch (zip or legacy) or safetensors; or the
        folder of a diffusers pipeline or `UNet2DModel`. The file is mapped, and read when weights are needed: do not
        write into it while the model lives (replacing it is safe).
    settings
        Overrides of what was recognised, by the names of the family's configuration, for what a checkpoint
        cannot tell (GauGAN: `num_upsampling_layers`, `edge_channel`; progressive distillation: `head_channels`).
        `weights` "ema" or "model": which to take of a file or folder that holds a moving average beside the last
        weights. By default the average, where it is a whole network (with batch norm: with statistics of its own).
        The model's `source` and the log (logger "sparsegen") say which were taken.
    progress
        Called after each parameter.

    Raises
    ------
    InputError
        No such built-in model or file, or a setting the family does not have.
    CheckpointError
        The file is damaged, hostile, of an unknown family, or its keys do not fit; says what and where.
    """
    known = builtin.get(str(model))
    path = known.checkpoint if known else Path(model)
    if not path.is_file() and not path.is_dir():
        raise InputError(
            f"model {str(model)!r} is neither a file or folder nor built in; built in: {', '.join(builtin.names())}"
        )
    which = settings.pop("weights", None)
    if which not in (None, "ema", "model"):
        raise InputError(f"weights is {which!r}, expected ema or model")
    checkpoint = read_checkpoint(path, weights=which)
    family, config = identify(checkpoint, weights=which)
    kind: Any = Model.registry.get(family.model)
    if kind is None:
        raise CheckpointError(
            f"holds a network of the kind {shown(family.model)!r}, which this version of sparsegen does not have",
            path=str(path),
            advice=f"It has: {', '.join(sorted(Model.registry))}. Update sparsegen, or convert the original file again",
        )
    fields = [field.name for field in dataclasses.fields(kind.config_type)]
    unknown = set(settings) - set(fields)
    if unknown:
        raise InputError(
            f"{family.model} has no setting {', '.join(sorted(unknown))}; it has {', '.join(fields)}, weights"
        )
    foreign = [shown(name) for name in sorted(set(config) - set(fields))]
    if foreign:
        raise CheckpointError(
            f"its configuration has settings that {family.model} does not have: {', '.join(foreign[:5])}",
            path=str(path),
            advice="Update sparsegen, or convert the original file again",
        )
    try:
        network: Model = kind(kind.config_type(**{**config, **settings}))
    except InputError as error:
        if settings:
            raise
        raise CheckpointError(f"its configuration is wrong: {error}", path=str(path)) from None
    expected = {name: parameter.shape for name, parameter in network.parameters().items()}
    network.load_parameters(
        convert(family, checkpoint, expected), release=checkpoint.release, progress=progress
    )
    network.name = str(model)
    network.source = str(family.chosen)
    level = (
        logging.WARNING
        if which is None and family.chosen.unusable and not family.chosen.averaged
        else logging.INFO
    )
    logger.log(level, "%s: took %s", path, network.source)
    schedule = checkpoint.schedule or checkpoint.metadata.get(SCHEDULE_KEY)
    if schedule is not None:
        if schedule not in SCHEDULES:
            raise CheckpointError(
                f"unknown noise schedule {shown(schedule)}; known: {', '.join(SCHEDULES)}", path=str(path)
            )
        network.sampling = MappingProxyType({"schedule": schedule})
    network.size = _trained_size(checkpoint)
    if known:
        network.defaults, network.sampling, network.size = known.defaults, known.sampling, known.size
        network.paper = dataclasses.replace(network.paper, **known.paper)
    return network


def _trained_size(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """The (height, width) that a file says its network was trained on (diffusers: `sample_size`), or None."""
    said: Any = (checkpoint.config or {}).get("sample_size")
    noted = checkpoint.metadata.get(SIZE_KEY)
    if isinstance(noted, str) and len(noted) < 100:
        with contextlib.suppress(ValueError):
            said = json.loads(noted)
    sides = [said, said] if type(said) is int else said
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
    """Write a network as safetensors that `load` reads back; `dtype` "float16" halves it.

    The file appears whole or not at all. Raises CheckpointError: no space, a value that float16 cannot hold.
    """
    values = {name: parameter.value for name, parameter in model.parameters().items()}
    metadata = native_metadata(model.family, dataclasses.asdict(model.config))
    if "schedule" in model.sampling:
        metadata[SCHEDULE_KEY] = model.sampling["schedule"]
    if model.size is not None:
        metadata[SIZE_KEY] = json.dumps(model.size)
    write_safetensors(path, values, metadata, dtype=dtype, progress=progress)
