"""SDEdit sessions on disk: settings, states and a history come in, one safetensors file comes out, and back again.

The file has the format of `editing.session_file`, with a state for each denoising step. Beside the states it holds the
current image, the image on the other side of every edit (`history.00000`, …), and the settings. An edit that repainted
nothing has an image alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import Backend, Host
from sparsegen.weights import read_checkpoint

from ..checks import is_whole
from ..diffusion.settings import Settings
from ..editing import session_file
from ..editing.history import Edit, History
from ..editing.session_check import damaged
from ..editing.session_file import Notes
from ..editing.state import State
from ..engine.device_store import DeviceStore
from ..engine.store import Store
from ..tiling.policies import Policy

_SETTINGS = "sparsegen.sdedit"
"""Name of the settings in the file's metadata."""


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
    edits = (*history.edits, *history.undone)
    images = {"picture": history.image} | {f"history.{i:05d}": edit.image for i, edit in enumerate(edits)}
    described = {
        **settings.described(),
        "margin": margin,
        "storage": storage,
        "ran": [bool(edit.journals) for edit in edits],
        "edits": len(history.edits),
        "forgotten": history.forgotten,
    }
    session_file.save(
        path,
        {_prefix(i): state for i, state in enumerate(states)},
        history,
        policy=policy,
        metadata={_SETTINGS: json.dumps(described)},
        tensors={name: image for name, image in images.items() if image is not None},
        notes=notes,
        progress=progress,
    )


def load(path: str | os.PathLike[str], backend: Backend, store: Store | DeviceStore) -> Loaded:
    """Read a session, its canvases and journals into `store`.

    Raises
    ------
    SessionError, CheckpointError, InputError
        The file is cut, altered, of another kind or of a newer version; the caches do not fit; a setting is wrong.
    """
    file = session_file.load(path, backend, store)
    try:
        described = json.loads(file.metadata[_SETTINGS])
        ran, margin, storage, edits = (described.pop(name) for name in ("ran", "margin", "storage", "edits"))
        forgotten = max(int(described.pop("forgotten")), 0)
        settings = Settings.read(described).checked()  # these names and no others
        times = settings.times()
        states = [file.states.pop(_prefix(i)) for i in range(len(times))]
        if file.states:
            raise ValueError(f"it has {len(file.states)} steps more than its settings, {len(times)}")
        images = [file.tensors[f"history.{i:05d}"] for i in range(len(ran))]
        image = file.tensors["picture"]
        history = _with_images(file.history, ran, images, edits)
        if file.model.diffusion is None:
            raise ValueError(f"a {file.model.family} model is not a diffusion model")
        time = file.model.diffusion.time
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise damaged(path, f"it does not describe an SDEdit session ({error})") from None
    for state, now in zip(states, times, strict=True):
        if not (
            state.inputs["x"].shape == image.shape
            and state.memory.storage == storage
            and list(state.conditions) == [time]
            and np.array_equal(state.conditions[time], np.array([now], np.float32))
        ):
            raise damaged(path, "its steps do not fit one image, storage and noise schedule")
    if any(each.shape != image.shape or each.dtype != np.float32 for each in (image, *images)):
        raise damaged(path, "its images are not float32 of one shape")
    history = dataclasses.replace(history, image=image, forgotten=forgotten)
    return Loaded(file.model, settings, file.policy, margin, storage, states, history, file.notes)


def is_sdedit(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds an SDEdit session. Raises CheckpointError: it cannot be read."""
    with read_checkpoint(path) as file:
        return _SETTINGS in file.metadata


def _prefix(step: int) -> str:
    """The prefix of a step's arrays."""
    return f"step.{step:05d}/"


def _with_images(history: History, ran: list[bool], images: list[Host], edits: Any) -> History:
    """A history with its images, and with the edits that repainted nothing.

    Raises
    ------
    ValueError
        The numbers of edits do not agree.
    """
    if not is_whole(edits) or not 0 <= edits <= len(ran):
        raise ValueError(f"{edits} edits can be undone, expected 0 to {len(ran)}")
    counts = sum(map(bool, ran[:edits])), sum(map(bool, ran[edits:]))
    if counts != (len(history.edits), len(history.undone)):
        raise ValueError(
            f"{counts} edits repainted something, the states keep {len(history.edits)} and {len(history.undone)}"
        )
    written = iter((*history.edits, *history.undone))
    steps = [next(written) if moved else Edit((), history.stale) for moved in ran]
    both = [dataclasses.replace(step, image=image) for step, image in zip(steps, images, strict=True)]
    return dataclasses.replace(history, edits=tuple(both[:edits]), undone=tuple(both[edits:]))
