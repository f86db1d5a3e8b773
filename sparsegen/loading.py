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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsegen.weights import (
    SCHEDULE_KEY,
    SIZE_KEY,
    VOCABULARY,
    Beside,
    Checkpoint,
    CheckpointError,
    Part,
    Parts,
    Updates,
    Which,
    beside_metadata,
    builtin,
    convert,
    native_metadata,
    read_loras,
    read_parts,
    several_metadata,
    shown,
    write_safetensors,
)

from .checks import warn
from .diffusion.schedules import SCHEDULES
from .diffusion.settings import checked_own
from .errors import InputError
from .models.base import Model
from .models.tokenizer import Tokenizer
from .models.vocabulary import packed, unpacked

logger = logging.getLogger("sparsegen")

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, name)` after each tensor."""

Loras = Mapping[str | os.PathLike[str], float]
"""A LoRA's file, or the folder of one -> the factor of its updates."""
_MOST_SCALE = 1000

_SAMPLED = ("unet", "generator")
"""Roles of the models that a path's settings are of."""


@dataclass(frozen=True)
class Bundle:
    """The parts of a checkpoint: its models by their roles, and the settings, the tokenizer beside them."""

    name: str
    """As it was given to `load_bundle`: a built-in name or a path."""
    models: Mapping[str, Model]
    """Role -> model: "unet" of a diffusion model, "generator" of a GauGAN; of Stable Diffusion "unet", "encoder",
    "decoder", "text", those that the path has."""
    taken: Mapping[str, str]
    """Role -> the weights of the file that the model has: "averaged weights (ema); beside them: model"."""
    schedule: str | None = None
    """Name of the noise schedule that the checkpoint gives; None: it gives none."""
    prediction: str | None = None
    """The output of Stable Diffusion's UNet: "noise", "velocity"; None: the checkpoint does not show it."""
    scheduler: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Settings that Stable Diffusion is sampled with: `sampler` (the name of the one that the folder proposes, None: it
    has no such one here), `steps_offset`, `set_alpha_to_one` (of diffusers' schedulers)."""
    tokenizer: Tokenizer | None = None
    """Of a bundle with a text encoder."""

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
    lora: Loras | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Model:
    """The only model of a checkpoint, ready to run.

    Parameters
    ----------
    model
        The name of a built-in model (`landscape`); a checkpoint file: PyTorch (zip or legacy) or safetensors; or the
        folder of a diffusers pipeline or model. The file is mapped, and read when weights are needed: do not
        write into it while the model lives (replacing it is safe).
    which
        The weights to take of a file or folder that holds a moving average beside the last weights: "ema" or "model".
        None: the average, where it is a whole model (with batch norm: with statistics of its own). The model's
        `source` and the log (logger "sparsegen") name the weights taken.
    lora
        LoRA files of Stable Diffusion (kohya's, PEFT's, diffusers') -> the factor of their updates, which are added to
        the weights where these are read.
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
    return load_bundle(model, which=which, lora=lora, progress=progress, **settings).model


def load_bundle(
    model: str | os.PathLike[str],
    *,
    which: Which | None = None,
    lora: Loras | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Bundle:
    """All models of a checkpoint by their roles, with the settings beside them; else as `load`.

    Of several models, the settings are given by role: `unet={"heads": (8, 8, 8, 8)}`.
    """
    known = builtin.get(str(model))
    path = known.checkpoint if known else Path(model)
    if not path.is_file() and not path.is_dir():
        raise InputError(
            f"model {str(model)!r} is neither a file or folder nor built in; built in: {', '.join(builtin.names())}"
        )
    if which not in (None, "ema", "model"):
        raise InputError(f"which is {which!r}, expected ema or model")
    if not isinstance(lora, Mapping | None):
        raise InputError(f"lora is a {type(lora).__name__}, expected paths and scales: {{path: 0.8}}")
    found = read_parts(path, which=which)
    models = _read(found, which, lora or {}, settings, progress)
    checkpoint = found.parts[0].checkpoint
    schedule = _schedule(found) or checkpoint.metadata.get(SCHEDULE_KEY)
    if schedule is not None and schedule not in SCHEDULES:
        raise CheckpointError(
            f"unknown noise schedule {shown(schedule)}; known: {', '.join(SCHEDULES)}", path=str(path)
        )
    try:
        sampling = checked_own(found.sampling)
    except ValueError as error:
        raise CheckpointError(str(error), path=str(path), advice="Convert the original file again") from None
    for made, part in zip(models, found.parts, strict=True):
        made.name = str(model)
        if made.role in _SAMPLED:
            own = {} if schedule is None else {"schedule": schedule}
            made.sampling = MappingProxyType({**sampling, **own})
            made.size = _trained_size(part.checkpoint)
            if known:
                made.defaults, made.sampling = known.defaults, known.sampling
                made.size = known.size or made.size
                made.paper = dataclasses.replace(made.paper, **known.paper)
    return Bundle(
        str(model),
        MappingProxyType({made.role: made for made in models}),
        MappingProxyType({made.role: made.source for made in models}),
        models[0].sampling.get("schedule", schedule),
        found.prediction,
        found.scheduler,
        _tokenizer(found) if any(made.role == "text" for made in models) else None,
    )


def _schedule(found: Parts) -> str | None:
    """The noise schedule, by the name that has the scheduler's other settings as well."""
    as_trained = (found.scheduler.get("steps_offset"), found.scheduler.get("set_alpha_to_one")) == (1, False)
    return "stable_diffusion" if found.schedule == "scaled_linear" and as_trained else found.schedule


def _tokenizer(found: Parts) -> Tokenizer:
    """The file's or folder's tokenizer; of one that has none, CLIP's. Raises CheckpointError."""
    if found.vocabulary is not None:
        one = Tokenizer(unpacked(found.vocabulary, found.path))
    else:
        one = Tokenizer() if found.tokenizer is None else Tokenizer.from_folder(found.tokenizer)
    padding = one.vocabulary.ids.get(found.padding) if found.padding is not None else None
    return one if padding is None else Tokenizer(one.vocabulary, padding=padding)


def _read(
    found: Parts,
    which: Which | None,
    loras: Loras,
    settings: Mapping[str, Any],
    progress: Progress | None,
) -> list[Model]:
    """The models of a path, with their weights. Raises InputError, CheckpointError."""
    kinds = [_kind(part) for part in found.parts]
    roles = [kind.role for kind in kinds]
    given = _by_role(found.path, roles, settings) if len(kinds) > 1 else [settings]
    models = [_made(part, kind, each) for part, kind, each in zip(found.parts, kinds, given, strict=True)]
    shapes = [{name: parameter.shape for name, parameter in made.parameters().items()} for made in models]
    given_scale: Any
    for path, given_scale in loras.items():
        if not isinstance(given_scale, Real) or not -_MOST_SCALE <= float(given_scale) <= _MOST_SCALE:
            raise InputError(
                f"the scale of {os.fspath(path)} is {given_scale!r}, expected a number from -{_MOST_SCALE} to "
                f"{_MOST_SCALE}"
            )
    updates = read_loras(loras, found.parts, shapes)
    total, before = sum(map(len, shapes)), 0
    for i, (made, part) in enumerate(zip(models, found.parts, strict=True)):
        values = updates.adapted(i, convert(part.family, part.checkpoint, shapes[i]))
        made.load_parameters(
            values,
            check=values.check,
            stored=values.stored,
            release=partial(_release, part, updates),
            progress=_from(progress, before, total),
        )
        before += len(shapes[i])
        chosen = part.family.chosen
        made.source = str(chosen)
        passed_over = which is None and chosen.unusable and not chosen.averaged
        logger.log(
            logging.WARNING if passed_over else logging.INFO, "%s: took %s", part.checkpoint.path, made.source
        )
        if values.changed:
            named = [f"{shown(os.path.basename(path))} × {scale:g}" for path, scale in loras.items()]
            made.source += f"; with LoRA: {', '.join(named)}"
    return models


def _from(progress: Progress | None, before: int, total: int) -> Progress | None:
    """`progress` of one model of several: `before` parameters are there already."""
    if progress is None:
        return None
    return lambda done, _, name: progress(before + done, total, name)


def _release(part: Part, updates: Updates) -> None:
    """Free what reading a part's parameters took."""
    part.checkpoint.release()
    updates.release()


def _kind(part: Part) -> type[Model]:
    kind = Model.registry.get(part.family.model)
    if kind is None:
        raise CheckpointError(
            f"is of the unknown family {shown(part.family.model)!r}; known: {', '.join(sorted(Model.registry))}",
            path=part.checkpoint.path,
            advice="Update sparsegen, or convert the original file again",
        )
    return kind


def _by_role(path: str, roles: list[str], settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of each of several models. Raises InputError."""
    for role, given in settings.items():
        if role not in roles or not isinstance(given, Mapping):
            raise InputError(
                f"{path} holds several models, whose settings are given by role, such as {roles[0]}={{{role!r}: …}}; "
                f"its roles: {', '.join(roles)}"
            )
    return [settings.get(role, {}) for role in roles]


def _made(part: Part, kind: Any, settings: Mapping[str, Any]) -> Model:
    """The model of a part, without its weights. Raises InputError, CheckpointError."""
    path, config, name = part.checkpoint.path, part.config, part.family.model
    fields = [field.name for field in dataclasses.fields(kind.config_type)]
    unknown = set(settings) - set(fields)
    if unknown:
        raise InputError(
            f"{name} has no setting {', '.join(sorted(unknown))}; it has {', '.join(fields)}, which"
        )
    foreign = [shown(name) for name in sorted(set(config) - set(fields))]
    if foreign:
        raise CheckpointError(
            f"its configuration has unknown settings of {name}: {', '.join(foreign[:5])}",
            path=path,
            advice="Update sparsegen, or convert the original file again",
        )
    try:
        made: Model = kind(kind.config_type(**{**config, **settings}))
    except InputError as error:
        if settings:
            raise
        raise CheckpointError(f"its configuration is wrong: {error}", path=path) from None
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
    model: Model | Bundle,
    path: str | os.PathLike[str],
    *,
    dtype: Literal["float16", "float32"] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a model, or all of a bundle, as one safetensors file that `load` or `load_bundle` reads back.

    The file appears whole or not at all. One parameter is in memory at a time. With the models go the settings of
    their sampling and, from a bundle, those of its scheduler and its tokenizer. A warning names parameters with values
    that are not finite, which are written as they are: a run that needs them fails.

    Parameters
    ----------
    dtype
        The element type of the parameters. None: for each the narrowest of float16, bfloat16 and float32 in which the
        file that it was loaded from has it; one that LoRA updates changed is rounded to that type.

    Raises
    ------
    CheckpointError
        No space, or a value that float16 cannot hold.
    """
    whole = Bundle(model.name, {model.role: model}, {}) if isinstance(model, Model) else model
    parameters = {role: each.parameters() for role, each in whole.models.items()}
    configs = {role: (each.family, dataclasses.asdict(each.config)) for role, each in whole.models.items()}
    if len(whole.models) == 1 and whole.tokenizer is None:
        ((family, config),) = configs.values()
        metadata = native_metadata(family, config)
        (named,) = parameters.values()
    else:
        metadata = several_metadata(configs)
        named = {f"{role}.{name}": each for role, own in parameters.items() for name, each in own.items()}
    reads: dict[str, Callable[[], NDArray[Any]]] = {name: each.read for name, each in named.items()}
    if whole.tokenizer is not None:
        symbols = np.frombuffer(packed(whole.tokenizer.vocabulary), np.uint8)
        reads[VOCABULARY] = lambda: symbols

    def written(done: int, total: int, name: str) -> None:
        for each in whole.models.values():
            each.release()
        if progress is not None:
            progress(done, total, name)

    values = _Values(reads)
    write_safetensors(
        path,
        values,
        metadata | _beside(whole),
        dtype={name: dtype or each.stored for name, each in named.items()},
        progress=written,
    )
    if values.not_finite:
        first = ", ".join(f"{name} ({count})" for name, count in list(values.not_finite.items())[:3])
        more = ", …" if len(values.not_finite) > 3 else ""
        warn(
            f"{whole.name or os.fspath(path)}: {len(values.not_finite)} of {len(named)} parameters hold values that "
            f"are not finite, so runs fail: {first}{more}; the file is damaged, or its training diverged: take another"
        )


def _beside(bundle: Bundle) -> dict[str, str]:
    """The metadata of what is saved with models beside their configurations."""
    sampled = next((each for each in bundle.models.values() if each.role in _SAMPLED), None)
    sampling = {} if sampled is None else dict(sampled.sampling)
    schedule = sampling.pop("schedule", bundle.schedule)
    padding = None
    if bundle.tokenizer is not None:
        symbols = {i: symbol for symbol, i in bundle.tokenizer.vocabulary.ids.items()}
        padding = symbols[bundle.tokenizer.padding]
    metadata = beside_metadata(Beside(bundle.prediction, bundle.scheduler, padding, sampling))
    if schedule is not None:
        metadata[SCHEDULE_KEY] = schedule
    if sampled is not None and sampled.size is not None:
        metadata[SIZE_KEY] = json.dumps(sampled.size)
    return metadata


class _Values(Mapping[str, NDArray[Any]]):
    """Arrays by name, each read on access."""

    def __init__(self, reads: Mapping[str, Callable[[], NDArray[Any]]]) -> None:
        self._reads = reads
        self.not_finite: dict[str, int] = {}
        """Name of an array that was read -> how many of its values are not finite."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        array = self._reads[name]()
        count = array.size - int(np.count_nonzero(np.isfinite(array)))
        if count:
            self.not_finite[name] = count
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._reads)

    def __len__(self) -> int:
        return len(self._reads)
