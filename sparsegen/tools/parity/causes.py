"""A layer that differs on its own comes in, and the likely causes, each tested by computing the layer again, come out.

A hypothesis changes the one kernel call by which the layer is computed: its weights, its norm, what it reads. Where the
error falls to rounding, the reference computes what the hypothesis says.
"""

from __future__ import annotations

from dataclasses import dataclass

from .difference import Difference
from .hypotheses import hypotheses
from .reference import Reference
from .walk import Walk


@dataclass(frozen=True)
class Cause:
    """A hypothesis about the reference, and what it does to the error of one layer."""

    layer: str
    kind: str
    """One of: transposed weight, spectral norm, eps, padding, q/k/v order, group count, upsampling, bias, heads, other
    weights, flipped kernel, gamma and beta, activation, time, residual, time embedding."""
    hypothesis: str
    """What the reference does, in words."""
    before: float
    """The layer's own error, relative to its largest value."""
    after: float
    """The same, computed under the hypothesis."""
    explains: bool
    """Whether the error falls below the tolerance."""


def causes_of(walk: Walk, path: str, reference: Reference, tolerance: float) -> tuple[Cause, ...]:
    """Every hypothesis that can hold for a layer, tested: first those that explain its error, the rest by what is left.

    Parameters
    ----------
    walk
        Over the reference's values.
    path
        The layer.
    tolerance
        The relative error that is rounding.
    """
    theirs = reference.original.layers[path]
    before = Difference.of(walk.compute(path), theirs).relative
    found = []
    for each in hypotheses(walk, path, reference):
        with each.assumed():
            after = Difference.of(walk.compute(path, each.change), theirs).relative
        found.append(Cause(path, each.kind, each.text, before, after, after <= tolerance))
    # special hypotheses stand before general ones, such as other weights
    explained = [cause for cause in found if cause.explains]
    others = [cause for cause in found if not cause.explains]
    return (*explained, *sorted(others, key=lambda cause: cause.after))
