"""What a session's file holds, for people: its metadata and the sizes of its arrays come in, a summary comes out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sparsegen.weights import Checkpoint

from .session_check import damaged
from .session_file import is_kept, read_metadata


@dataclass(frozen=True)
class Summary:
    """A session's file. Its texts and settings are as the file has them; its digest is not checked."""

    kind: str
    models: dict[str, str]
    """Name -> family."""
    settings: dict[str, Any]
    """Of its kind, the settings of the denoising among the others."""
    policy: str
    size: tuple[int, ...]
    """(N, H, W) of its image, or of its input."""
    edits: int
    undone: int
    forgotten: int
    states: int
    storage: str
    weights_bytes: int
    canvas_bytes: int
    journal_bytes: int
    """Of the tiles in the journals."""


def summary(path: str | os.PathLike[str], file: Checkpoint) -> Summary:
    """The summary of an open session's file; no array is read.

    Raises
    ------
    SessionError
        It is not a session, or of another version, or its metadata contradicts itself.
    """
    metadata = read_metadata(path, file)
    try:
        models, states, history, policy, settings = (
            json.loads(metadata[f"sparsegen.{name}"])
            for name in ("models", "states", "history", "policy", "settings")
        )
        denoising = settings.pop("settings", {})
        tensors = file.tensors
        image = tensors.get("history/image")
        if image is None:
            image = next(tensors[name] for name in tensors if "canvas/input." in name)
        return Summary(
            metadata["sparsegen.kind"],
            {str(name): str(model["family"]) for name, model in models.items()},
            {**settings, **denoising},
            str(policy["policy"]),
            tuple(image.shape[:3]),
            int(history["edits"]),
            len(history["ran"]) - int(history["edits"]),
            int(history["forgotten"]),
            len(states),
            ", ".join(sorted({str(state["storage"]) for state in states.values()})),
            _bytes(file, (name for name in tensors if name.startswith("parameter/"))),
            _bytes(file, (name for name in tensors if is_kept(name) and not name.endswith(".values"))),
            _bytes(file, (name for name in tensors if is_kept(name) and name.endswith(".values"))),
        )
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError, StopIteration) as error:
        raise damaged(path, f"it does not describe a session ({error})") from None


def _bytes(file: Checkpoint, names: Iterable[str]) -> int:
    return sum(int(file.tensors[name].nbytes) for name in names)
