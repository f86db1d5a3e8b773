"""SDEdit sessions on disk: settings, states and a history come in, one safetensors file comes out, and back again.

The file has the format of `editing.session_file`, with one model and a state for each denoising step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import Backend

from ..diffusion.settings import Settings
from ..editing import session_file
from ..editing.history import History
from ..editing.session_check import damaged
from ..editing.session_file import Notes
from ..editing.state import State
from ..engine.device_store import DeviceStore
from ..engine.store import Store
from ..errors import SessionError, SparsegenError
from ..tiling.policies import Policy
from .steps_file import check_inputs, checked_states, step_prefix

KIND = "sdedit"


@dataclass(frozen=True, eq=False, repr=False)
class Loaded:
    """The contents of a file."""

    model: Any
    settings: Settings
    policy: Policy
    margin: int
    storage: str
    states: list[State]
    """One for each step."""
    history: History
    """With its images."""
    notes: Notes


def save(
    path: str | os.PathLike[str],
    states: Sequence[State],
    history: History,
    settings: Settings,
    *,
    policy: Policy,
    margin: int,
    storage: str,
    notes: Notes,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Write a session to `path`, or leave the old file whole. Raises CheckpointError: it could not be written."""
    session_file.save(
        path,
        {"model": states[0].model},
        {step_prefix(i): state for i, state in enumerate(states)},
        history,
        policy=policy,
        kind=KIND,
        settings={**settings.described(), "margin": margin, "storage": storage},
        notes=notes,
        progress=progress,
    )


def load(path: str | os.PathLike[str], backend: Backend, store: Store | DeviceStore) -> Loaded:
    """Read a session, its canvases and journals into `store`.

    Raises
    ------
    SessionError, CheckpointError, InputError
        The file is cut, altered, of another kind or of another version; the caches do not fit; a setting is wrong.
    """
    file = session_file.load(path, backend, store, kind=KIND)
    try:
        described = dict(file.settings)
        margin, storage = described.pop("margin"), described.pop("storage")
        settings = Settings.read(described).checked()  # these names and no others
        times = settings.times()
        states = checked_states(path, file.states, [step_prefix(i) for i in range(len(times))])
        model, image = file.model, file.history.image
        if model.diffusion is None or image is None:
            raise ValueError(f"a {model.family} model, or it has no image")
        x = np.zeros(image.shape, np.float32)
        conditions: list[dict[str, Any]] = [{model.diffusion.time: now} for now in times]
        check_inputs(path, states, (model.encode(x, **each) for each in conditions), storage)
    except SessionError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, SparsegenError) as error:
        raise damaged(path, f"it does not describe an SDEdit session ({error})") from None
    return Loaded(model, settings, file.policy, margin, storage, states, file.history, file.notes)
