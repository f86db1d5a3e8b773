"""Moments of a canvas's channels, followed through edits: sums over the tiles that change come in, statistics come out.

A norm normalises with moments over the whole canvas. The dense run measures them; an edit never passes over the canvas
again. It moves the sums by the tiles that it repaints, old values out, new values in, so the *fresh* moments are known.
But the canvas's other tiles were computed with the *stale* ones, and a mixture of both is nearer to a dense run than
either (`tiling.policies.Fast`).
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TypeAlias

from sparsegen.backends.interface import Array, Backend

from ..tiling.tiles import TileSet

Means: TypeAlias = "tuple[Array, Array]"
"""The means of v and of v² of each channel over a sample, two float64 `[N, C]`."""


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments of a canvas's channels. Its arrays are never written into: an edit makes new ones."""

    used: tuple[Array, Array]
    """The mean and variance that a norm of this canvas uses, two float32 `[N, C]`."""
    stale: Means
    """What its tiles were computed with, on average over its area."""
    fresh: Means
    """Of the values as they are."""
    unknown: frozenset[int] = frozenset()
    """The samples whose fresh means are not known, after an edit that did not follow them."""

    @classmethod
    def measured(cls, mean: Array, variance: Array) -> Moments:
        """The moments after a dense run, from `Backend.channel_moments`."""
        means = as_means(mean, variance)
        return cls((mean, variance), means, means)

    def followed(
        self,
        backend: Backend,
        change: Array | None,
        *,
        active: TileSet,
        statistics: float,
    ) -> Moments:
        """The moments after an edit, by `Backend.follow_moments`.

        Parameters
        ----------
        change
            How the sums over the canvas changed, as `Backend.sum_change` gives it; None: `fresh` are those after the
            edit.
        active
            The tiles that were repainted. A sample that was repainted whole is as after a dense run.
        statistics
            The weight of the fresh moments against the stale ones, of a small edit.
        """
        used, stale, fresh = backend.follow_moments(
            self.used,
            self.stale,
            self.fresh,
            change,
            tiles=active.tiles,
            size=(active.height, active.width),
            statistics=statistics,
        )
        return Moments(used, stale, fresh, self.unknown)

    def with_fresh(self, measured: Means, samples: Set[int]) -> Moments:
        """The moments with the fresh means of some samples as `measured`."""
        mean, square = (each * 1 for each in self.fresh)  # copies
        for n in samples:
            mean[n], square[n] = measured[0][n], measured[1][n]
        return replace(self, fresh=(mean, square), unknown=self.unknown - samples)

    def not_followed(self, samples: Set[int]) -> Moments:
        """The moments after an edit of some samples that does not follow them."""
        return replace(self, unknown=self.unknown | samples)


def as_means(mean: Array, variance: Array) -> Means:
    """The means of v and of v² from a mean and a variance."""
    mean, variance = mean.astype("float64"), variance.astype("float64")
    return mean, variance + mean * mean
