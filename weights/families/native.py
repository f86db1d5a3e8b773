"""sparsegen's files: safetensors named by parameter paths, with the family and the configuration in the metadata.

A file of Stable Diffusion has several models: the names begin with their roles (`unet.conv_in.weight`), and beside them
lies the tokenizer's vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, listed, shown
from ..keymap import Family, Rule
from ..which import Chosen

MODEL_KEY = "sparsegen.family"
CONFIG_KEY = "sparsegen.config"
MODELS_KEY = "sparsegen.models"
"""Of several models: role -> family and configuration, a JSON object."""
SESSION_KEY = "sparsegen.session"
SCHEDULE_KEY = "sparsegen.schedule"
"""The noise schedule that a diffusion model was trained on."""
SIZE_KEY = "sparsegen.size"
"""The height and width that a diffusion model was trained on, a JSON list."""
VOCABULARY = "vocabulary"
"""The tensor of a tokenizer's vocabulary, bytes."""
_BESIDE_KEY = "sparsegen.beside"

_LONGEST_CONFIG = 1 << 16
_LONGEST_VOCABULARY = 1 << 24
_ROLE = re.compile(r"[a-z]{1,20}")
_AGAIN = "Convert the original file again"


@dataclass(frozen=True)
class Beside:
    """What a file of ours holds beside its models; see `Parts` for the attributes that both have.

    Attributes
    ----------
    sampling : mapping
        The settings of sampling in which the model differs from its family, by name.
    """

    prediction: str | None = None
    scheduler: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    padding: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def native_metadata(model: str, config: Mapping[str, Any]) -> dict[str, str]:
    """The metadata by which `identify` recognises a file of ours: the model's family and its configuration."""
    return {MODEL_KEY: model, CONFIG_KEY: json.dumps(dict(config), sort_keys=True)}


def several_metadata(models: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """The metadata of a file of several models: role -> family and configuration."""
    described = {
        role: {"family": family, "config": dict(config)} for role, (family, config) in models.items()
    }
    return {MODELS_KEY: json.dumps(described)}


def beside_metadata(beside: Beside) -> dict[str, str]:
    """The metadata of what lies beside the models; none, if nothing does."""
    held = {
        "prediction": beside.prediction,
        "scheduler": dict(beside.scheduler),
        "padding": beside.padding,
        "sampling": dict(beside.sampling),
    }
    held = {name: value for name, value in held.items() if value}
    return {_BESIDE_KEY: json.dumps(held, sort_keys=True)} if held else {}


def read_beside(checkpoint: Checkpoint) -> Beside:
    """What a file of ours holds beside its models. Raises CheckpointError."""
    if _BESIDE_KEY not in checkpoint.metadata:
        return Beside()
    found = _object(checkpoint, _BESIDE_KEY)
    prediction, padding = found.pop("prediction", None), found.pop("padding", None)
    scheduler, sampling = found.pop("scheduler", {}), found.pop("sampling", {})
    texts = (prediction, padding, scheduler.get("sampler") if isinstance(scheduler, dict) else 0)
    if (
        found
        or not all(isinstance(each, (str, type(None))) for each in texts)
        or prediction not in (None, "noise", "velocity")
        or not (set(scheduler) <= {"sampler", "steps_offset", "set_alpha_to_one"})
        or not isinstance(sampling, dict)
        or not all(_is_plain(each) for each in (*scheduler.values(), *sampling.values()))
    ):
        raise CheckpointError(
            "does not hold a prediction, a scheduler, a padding symbol and settings of sampling",
            path=checkpoint.path,
            where=f"metadata {_BESIDE_KEY}",
            advice=_AGAIN,
        )
    return Beside(prediction, MappingProxyType(scheduler), padding, MappingProxyType(sampling))


def read_stored_vocabulary(checkpoint: Checkpoint) -> bytes | None:
    """The bytes of the vocabulary in a file of several models; None: it has none. Raises CheckpointError."""
    tensor = checkpoint.tensors.get(VOCABULARY) if MODELS_KEY in checkpoint.metadata else None
    if tensor is None:
        return None
    if tensor.dtype != "uint8" or tensor.nbytes > _LONGEST_VOCABULARY:
        raise CheckpointError(
            f"is {tensor.nbytes} bytes of {tensor.dtype}, expected at most {_LONGEST_VOCABULARY} of uint8",
            path=checkpoint.path,
            where=f"tensor {VOCABULARY}",
            advice=_AGAIN,
        )
    return tensor.numpy().tobytes()


def several(checkpoint: Checkpoint, families: tuple[str, ...]) -> list[tuple[Family, dict[str, Any]]]:
    """The models of a file of several, each of another one of `families`; none, if it is another kind of file.

    Raises CheckpointError: the description is damaged, or a tensor is of none of the models.
    """
    if MODELS_KEY not in checkpoint.metadata or SESSION_KEY in checkpoint.metadata:
        return []
    described = _object(checkpoint, MODELS_KEY)
    named = [str(each.get("family")) if isinstance(each, dict) else "" for each in described.values()]
    if not named or not set(named) <= set(families) or len(set(named)) < len(named):
        raise CheckpointError(
            f"describes models of the families {listed([shown(name) for name in named]) or 'none'}, expected "
            f"different ones of {', '.join(families)}",
            path=checkpoint.path,
            where=f"metadata {MODELS_KEY}",
            advice="Update sparsegen, or convert the original file again",
        )
    found, left = [], set(checkpoint.tensors) - {VOCABULARY}
    for role, each in described.items():
        config = each.get("config")
        if _ROLE.fullmatch(role) is None or not _is_config(config):
            raise CheckpointError(
                f"describes {shown(role)} without a configuration of plain values",
                path=checkpoint.path,
                where=f"metadata {MODELS_KEY}",
                advice=_AGAIN,
            )
        prefix = f"{role}."
        keys = {key.removeprefix(prefix): key for key in checkpoint.tensors if key.startswith(prefix)}
        left -= set(keys.values())
        kept = replace(SPARSEGEN, prefix=prefix, model=each["family"], keys=keys, chosen=Chosen())
        found.append((kept, config))
    if left:
        raise CheckpointError(
            f"holds {len(left)} tensors of none of its models ({', '.join(described)}): "
            f"{listed([shown(key) for key in sorted(left)], 4)}",
            path=checkpoint.path,
            advice=_AGAIN,
        )
    return found


def _parsed(checkpoint: Checkpoint, key: str) -> Any:
    """The JSON in the metadata; None: there is none, or too much."""
    text = checkpoint.metadata.get(key)
    if not isinstance(text, str) or len(text) > _LONGEST_CONFIG:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _object(checkpoint: Checkpoint, key: str) -> dict[str, Any]:
    """The JSON object in the metadata. Raises CheckpointError."""
    found = _parsed(checkpoint, key)
    if not isinstance(found, dict):
        raise CheckpointError(
            "is not a JSON object", path=checkpoint.path, where=f"metadata {key}", advice=_AGAIN
        )
    return found


def _recognise(checkpoint: Checkpoint) -> dict[str, Any] | None:
    if SESSION_KEY in checkpoint.metadata:
        raise CheckpointError(
            "is a saved session, expected a model", advice="Open it with sparsegen.open_session"
        )
    model = checkpoint.metadata.get(MODEL_KEY)
    if checkpoint.format != "safetensors" or checkpoint.prefix or model is None:
        return None
    config = _parsed(checkpoint, CONFIG_KEY)
    if not _is_config(config):
        raise CheckpointError(
            "is not a JSON object of plain values and lists of them",
            where=f"metadata {CONFIG_KEY}",
            advice="Save the model again with write_safetensors and native_metadata",
        )
    return {**config, "model": str(model)}


def _is_config(value: object) -> bool:
    return isinstance(value, dict) and all(
        all(map(_is_plain, each)) if isinstance(each, list) else _is_plain(each) for each in value.values()
    )


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float, bool, type(None)))


SPARSEGEN = Family("sparsegen", "", (Rule(r"(?P<path>.+)", ("{path}",)),), _recognise)
