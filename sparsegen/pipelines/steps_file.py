"""Files of sessions with a state for each denoising step: the names of their states, and the checks of these."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..editing.session_check import damaged
from ..editing.state import State
from ..models.base import Inputs


def step_prefix(step: int) -> str:
    """The prefix of a step's arrays."""
    return f"step.{step:05d}/"


def checked_states(
    path: str | os.PathLike[str], states: Mapping[str, State], prefixes: Sequence[str]
) -> list[State]:
    """The states of a file, which has those of `prefixes`, in that order, and no others. Raises SessionError."""
    if list(states) != list(prefixes):
        raise damaged(path, f"it has {len(states)} states, expected the {len(prefixes)} of its settings")
    return list(states.values())


def check_inputs(
    path: str | os.PathLike[str], states: Sequence[State], inputs: Iterable[Inputs], storage: str
) -> None:
    """Raise SessionError if states do not have the sizes and the conditions of these inputs, or another storage."""
    for state, expected in zip(states, inputs, strict=True):
        same = state.conditions.keys() == expected.conditions.keys() and all(
            state.conditions[name].dtype == value.dtype and np.array_equal(state.conditions[name], value)
            for name, value in expected.conditions.items()
        )
        sizes = {name: tuple(canvas.shape) for name, canvas in state.inputs.items()}
        if (
            not same
            or sizes != {name: array.shape for name, array in expected.canvases.items()}
            or state.memory.storage != storage
        ):
            raise damaged(path, "its steps do not fit one image, storage and noise schedule")
