"""Sessions on disk: a session's state comes in, one safetensors file comes out, and back again, bit for bit.

The file is self-contained (network, canvases, statistics, journal). A digest over every tensor and all metadata is
checked before anything is used; tensors are data, nothing in the file is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import Array, Backend, Host
from sparsegen.weights import CheckpointError, read_checkpoint, write_safetensors

from .errors import SessionError
from .layers import Model
from .run import Journal, Memory

VERSION = "1"


@dataclass(frozen=True, eq=False)
class Step:
    """One edit that can be undone."""

    journal: Journal
    stale_before: Host
    """bool `[N, H, W]`: the session's stale pixels before the edit."""


@dataclass(eq=False)
class State:
    """Everything that makes a session."""

    model: Model
    memory: Memory
    conditions: dict[str, Host]
    steps: list[Step]
    stale: Host
    output_path: str


def save(path: str | os.PathLike[str], state: State) -> None:
    """Write `state` to `path`; on any failure (CheckpointError) the old file stays whole."""
    backend = state.memory.backend
    tensors: dict[str, Host] = {"stale": state.stale.astype(np.uint8)}
    for key, parameter in state.model.parameters().items():
        tensors[f"parameter/{key}"] = np.ascontiguousarray(parameter.value)
    for key, canvas in state.memory.canvases.items():
        tensors[f"canvas/{key}"] = backend.download(canvas)
    for key, values in state.memory.measured.items():
        for i, value in enumerate(values):
            tensors[f"measured/{key}/{i}"] = backend.download(value)
    for key, value in state.conditions.items():
        tensors[f"condition/{key}"] = np.ascontiguousarray(value)
    for i, step in enumerate(state.steps):
        tensors[f"step/{i}/stale"] = step.stale_before.astype(np.uint8)
        for key, (tiles, kept) in step.journal.entries.items():
            tensors[f"step/{i}/tiles/{key}"] = tiles
            tensors[f"step/{i}/values/{key}"] = backend.download(kept)
    metadata = {
        "sparsegen.session": VERSION,
        "sparsegen.family": state.model.family,
        "sparsegen.config": state.model.config_json(),
        "sparsegen.steps": str(len(state.steps)),
        "sparsegen.output": state.output_path,
        "sparsegen.model_name": state.model.name,
    }
    metadata["sparsegen.digest"] = _digest(tensors, metadata)
    write_safetensors(path, tensors, metadata)


def load(path: str | os.PathLike[str], backend: Backend) -> State:
    """Read a session file. Raises SessionError, CheckpointError, OSError."""
    checkpoint = read_checkpoint(path)
    metadata = {key: str(value) for key, value in checkpoint.metadata.items() if key.startswith("sparsegen.")}
    version = metadata.get("sparsegen.session")
    if version is None:
        raise SessionError(f"{path}: not a saved session")
    if version != VERSION:
        raise SessionError(f"{path}: session format {version}; this version of sparsegen reads {VERSION}")
    tensors = {name: tensor.numpy() for name, tensor in checkpoint.tensors.items()}
    digest = metadata.pop("sparsegen.digest", "")
    if digest != _digest(tensors, metadata):
        raise SessionError(
            f"{path}: the file was altered or damaged (its digest does not match); save it again"
        )
    try:
        return _state(tensors, metadata, backend)
    except (KeyError, ValueError, TypeError) as error:
        raise SessionError(f"{path}: the file does not describe a session ({error})") from None


def _state(tensors: Mapping[str, Host], metadata: Mapping[str, str], backend: Backend) -> State:
    def under(prefix: str) -> dict[str, Host]:
        return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}

    kind = Model.registry.get(metadata["sparsegen.family"])
    if kind is None:
        raise ValueError(f"unknown network {metadata['sparsegen.family']!r}")
    build: Any = kind
    model: Model = build(kind.config_type(**json.loads(metadata["sparsegen.config"])))
    model.name = metadata["sparsegen.model_name"]
    model.load_parameters({key: np.array(value) for key, value in under("parameter/").items()})
    memory = Memory(backend)
    memory.canvases = {key: backend.upload(value) for key, value in under("canvas/").items()}
    measured: dict[str, list[Array]] = {}
    for key, value in sorted(under("measured/").items()):
        measured.setdefault(key.rpartition("/")[0], []).append(backend.upload(value))
    memory.measured = {key: tuple(values) for key, values in measured.items()}
    steps = []
    for i in range(int(metadata["sparsegen.steps"])):
        values = under(f"step/{i}/values/")
        entries = {
            key: (np.array(tiles), backend.upload(values[key]))
            for key, tiles in under(f"step/{i}/tiles/").items()
        }
        steps.append(Step(Journal(entries), np.array(tensors[f"step/{i}/stale"], bool)))
    conditions = {key: np.array(value) for key, value in under("condition/").items()}
    stale = np.array(tensors["stale"], bool)
    return State(model, memory, conditions, steps, stale, metadata["sparsegen.output"])


def _digest(tensors: Mapping[str, Host], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, and over the metadata."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"\n{name} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).data if value.size else b"")
    return digest.hexdigest()


__all__ = ["CheckpointError", "State", "Step", "load", "save"]
