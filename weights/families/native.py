"""sparsegen's files: safetensors named by parameter paths, with the family and the configuration in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..keymap import Family, Rule

MODEL_KEY = "sparsegen.family"
CONFIG_KEY = "sparsegen.config"
SESSION_KEY = "sparsegen.session"
SCHEDULE_KEY = "sparsegen.schedule"
"""The noise schedule that a diffusion model was trained on."""
SIZE_KEY = "sparsegen.size"
"""The height and width that a diffusion model was trained on, a JSON list."""

_LONGEST_CONFIG = 1 << 16


def native_metadata(model: str, config: Mapping[str, Any]) -> dict[str, str]:
    """The metadata by which `identify` recognises a file of ours: the model's family and its configuration."""
    return {MODEL_KEY: model, CONFIG_KEY: json.dumps(dict(config), sort_keys=True)}


def _recognise(checkpoint: Checkpoint) -> dict[str, Any] | None:
    if SESSION_KEY in checkpoint.metadata:
        raise CheckpointError(
            "is a saved session, expected a model", advice="Open it with sparsegen.open_session"
        )
    model = checkpoint.metadata.get(MODEL_KEY)
    text = checkpoint.metadata.get(CONFIG_KEY)
    if checkpoint.format != "safetensors" or checkpoint.prefix or model is None:
        return None
    config: object = None
    if isinstance(text, str) and len(text) <= _LONGEST_CONFIG:
        try:
            config = json.loads(text)
        except (ValueError, RecursionError):
            config = None
    if not isinstance(config, dict) or not all(_plain(value) for value in config.values()):
        raise CheckpointError(
            "is not a JSON object of plain values and lists of them",
            where=f"metadata {CONFIG_KEY}",
            advice="Save the model again with write_safetensors and native_metadata",
        )
    return {**config, "model": str(model)}


def _plain(value: object) -> bool:
    each = value if isinstance(value, list) else [value]
    return all(isinstance(one, (str, int, float, bool, type(None))) for one in each)


SPARSEGEN = Family("sparsegen", "", (Rule(r"(?P<path>.+)", ("{path}",)),), _recognise)
