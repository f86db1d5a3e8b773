"""Moments of a canvas's channels, followed through edits: sums over the tiles that change come in, statistics come out.

A norm normalises with moments over the whole canvas. The dense run measures them; an edit never passes over the canvas
again. It moves the sums by the tiles that it repaints, old values out, new values in, so the *fresh* moments are known.
But the canvas's other tiles were computed with the *stale* ones, and a mixture of both is nearer to a dense run than
either (`tiling.policies.Fast`).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

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

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Its six arrays."""
        return (*self.used, *self.stale, *self.fresh)

    @staticmethod
    def measured(backend: Backend, mean: Array, variance: Array) -> Moments:
        """The moments after a dense run, from `Backend.channel_moments`."""
        return _Measured(backend, mean, variance)

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
        if len(samples) == len(measured[0]):
            return Moments(self.used, self.stale, measured)
        mean, square = (each * 1 for each in self.fresh)  # copies
        for n in samples:
            mean[n], square[n] = measured[0][n], measured[1][n]
        return Moments(self.used, self.stale, (mean, square), self.unknown - samples)

    def not_followed(self, samples: Set[int]) -> Moments:
        """The moments after an edit of some samples that does not follow them."""
        if samples <= self.unknown:
            return self
        other = object.__new__(type(self))  # what was not made yet is made when somebody asks
        other.__dict__.update(self.__dict__, unknown=self.unknown | samples)
        return other


class _Measured(Moments):
    """Moments as a dense run measures them; the means of v and of v² are computed when somebody asks for them."""

    def __init__(self, backend: Backend, mean: Array, variance: Array) -> None:
        object.__setattr__(self, "used", (mean, variance))
        object.__setattr__(self, "_backend", backend)

    def __getattr__(self, name: str) -> Any:
        if name not in ("stale", "fresh"):
            raise AttributeError(name)
        means = self._backend.second_moments(*self.used)
        for each in ("stale", "fresh"):
            object.__setattr__(self, each, means)
        return means


class _Placed(Moments):
    """Moments in a block: four arrays of doubles, then two of floats, which are made when somebody looks at them."""

    def __init__(self, block: Array, begin: int, shape: tuple[int, ...]) -> None:
        object.__setattr__(self, "_place", (block, begin, shape))

    @property
    def block(self) -> Array:
        """The block that they lie in."""
        return self._place[0]

    @property
    def begin(self) -> int:
        """Where they begin in it."""
        begin: int = self._place[1]
        return begin

    def __getattr__(self, name: str) -> Any:
        if name not in ("used", "stale", "fresh"):
            raise AttributeError(name)
        block, begin, shape = self._place
        size = int(np.prod(shape))
        doubles = block[begin : begin + 4 * size].reshape(4, *shape)
        floats = block[begin + 4 * size : begin + 5 * size].view("float32").reshape(2, *shape)
        for each, pair in (
            ("used", (floats[0], floats[1])),
            ("stale", (doubles[0], doubles[1])),
            ("fresh", (doubles[2], doubles[3])),
        ):
            object.__setattr__(self, each, pair)
        return self.__dict__[name]


class MomentBank:
    """The moments of canvases in one block of memory, where a recorded edit reads and moves them.

    Moments outside it are never written into. So a replay begins with a copy of those that others have moved, and ends
    with a copy of the whole block. The moments of an edit lie in one such copy: while an undo brings them back, or the
    next edit goes on from them, a block is copied, never an array for each canvas.
    """

    def __init__(self, backend: Backend, moments: Mapping[str, Moments]) -> None:
        self._backend = backend
        self._shapes = {path: tuple(each.used[0].shape) for path, each in moments.items()}
        ends = np.cumsum([0] + [5 * int(np.prod(shape)) for shape in self._shapes.values()]).tolist()
        # in doubles: the two arrays of floats take the room of one
        self._begins = dict(zip(self._shapes, ends[:-1], strict=True))
        self._block = backend.alloc((ends[-1],), dtype="float64")
        self.moments = self._placed(self._block)
        """Those in the block."""
        self._last: Array | None = None
        """The block outside whose values are in the block; None: nobody knows."""

    def _placed(self, block: Array) -> dict[str, Moments]:
        """The moments that lie in a block of this layout."""
        return {path: _Placed(block, self._begins[path], shape) for path, shape in self._shapes.items()}

    def _of_one_block(self, moments: Mapping[str, Moments]) -> Array | None:
        """The block of this layout that all moments lie in; None: there is none."""
        block: Array | None = None
        for path, begin in self._begins.items():
            each = moments[path]
            if not isinstance(each, _Placed) or each.begin != begin or each.block.size != self._block.size:
                return None
            if block is not None and each.block is not block:
                return None
            block = each.block
        return block

    def follow(self, moments: MutableMapping[str, Moments]) -> None:
        """Copy moments into the block, unless they are there; they come to lie in one block outside, too."""
        block = self._of_one_block(moments)
        if block is None:
            self._backend.copy_arrays(
                [
                    pair
                    for path, placed in self.moments.items()
                    for pair in zip(placed.arrays, moments[path].arrays, strict=True)
                ]
            )
            moments.update(self.after(moments))
        elif block is not self._last:
            self._backend.copy_arrays([(self._block, block)])
        self._last = None  # from here on the replay may move them, whether it is completed or not

    def take(self, moments: Mapping[str, Moments]) -> None:
        """Copy into the block the moments that recorded work left."""
        self._backend.copy_arrays(
            [
                (target, source)
                for path, before in self.moments.items()
                for target, source in zip(before.arrays, moments[path].arrays, strict=True)
                if target is not source
            ]
        )

    def after(self, before: Mapping[str, Moments]) -> dict[str, Moments]:
        """The moments after a replay, in a block of their own; `before` tells which were unknown."""
        self._last = self._backend.alloc(tuple(self._block.shape), dtype="float64")
        self._backend.copy_arrays([(self._last, self._block)])
        placed = self._placed(self._last)
        return {path: each.not_followed(before[path].unknown) for path, each in placed.items()}
