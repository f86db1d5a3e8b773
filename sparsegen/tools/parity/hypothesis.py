"""A hypothesis: what a reference may do otherwise than a layer, as a change of the call that computes the layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host

from ...layers.base import Parameter
from .listening import Change


@dataclass(frozen=True)
class Hypothesis:
    """What the reference may do otherwise than a layer, and how the layer computes that."""

    kind: str
    """As of `Cause`."""
    text: str
    """The hypothesis in words."""
    change: Change | None = None
    """Of the kernel call."""
    parameters: tuple[tuple[Parameter, Host], ...] = ()
    """Values that parameters have instead, in layers of rows."""
    settings: tuple[tuple[Any, str, Any], ...] = ()
    """(layer, attribute, value) that layers of rows have instead."""

    @contextmanager
    def assumed(self) -> Iterator[None]:
        """Parameters and settings are as assumed within."""
        before = [(parameter, "read", parameter.read) for parameter, _ in self.parameters]
        before += [(target, name, getattr(target, name)) for target, name, _ in self.settings]
        try:
            for parameter, value in self.parameters:
                parameter.read = partial(np.asarray, value)
            for target, name, other in self.settings:
                setattr(target, name, other)
            yield
        finally:
            for target, name, other in before:
                setattr(target, name, other)


def by_head(parts: Sequence[Host], number: int, heads: int) -> Host:
    """One of three parts `[C, …]` of a fused `[3 C, …]`, if its rows are `[heads, 3, d]` instead of `[3, heads, d]`."""
    fused = np.concatenate(parts)
    rows = fused.reshape(heads, 3, -1, *fused.shape[1:])[:, number]
    return np.asarray(rows.reshape(len(parts[0]), *fused.shape[1:]))
