"""Policies: the difference mask of an edit comes in, each layer's active tiles come out.

A policy is a setting (`Paper`, `Exact`); for one edit it makes a `Plan`, which every layer of the run asks once. The
dense run has a plan too, `Everything`: that is all the difference there is between dense and sparse.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host

from .errors import InputError, ShapeError
from .masks import dilate, pyramid
from .tiles import TileSet, Window, grow, union


@dataclass(frozen=True)
class Read:
    """One thing that a layer reads: the pixels of a canvas that may have changed, and the window it reads through."""

    changed: TileSet
    window: Window


class Plan(ABC):
    """Answers, for one run, which tiles of a layer's output are active."""

    tau: float | None = None
    """A recomputed tile that moved by no more than this does not spread and keeps its old values; None: all spread."""

    @abstractmethod
    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        """Active tiles of an output of `shape` (N, H, W). A layer that reads nothing of the edit has none."""


class Everything(Plan):
    """The dense run: every tile of every layer."""

    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        return TileSet.full(*shape)


class Policy(ABC):
    """A way to choose active tiles; hashable settings only."""

    @property
    def exact(self) -> bool:
        """Whether an edit under this policy equals a dense run of the edited input."""
        return False

    @abstractmethod
    def plan(self, difference: Host, *, settled: bool = True) -> Plan:
        """The plan of an edit whose input differs where `difference` (bool `[N, H, W]`) is True.

        Not `settled`: earlier edits left pixels of `difference` unspread, so that layers may not have taken over
        what the canvases that they read hold.
        """


@dataclass(frozen=True)
class Exact(Policy):
    """Tiles grow layer by layer with the receptive field: an edit equals a dense run of the edited input.

    Bit for bit with fixed statistics (batch norm); measured statistics (instance and group norm) are those of the
    dense run, as the paper has it. (Where a layer computes a tile as one, by Winograd's transforms, they grow by
    whole tiles, to be exact in every bit; a small tau of `Adaptive` spares that.)
    """

    @property
    def exact(self) -> bool:
        return True

    def plan(self, difference: Host, *, settled: bool = True) -> Plan:
        return _ExactPlan()


@dataclass(frozen=True)
class Adaptive(Policy):
    """Tiles grow as under `Exact`, but a recomputed tile that moved by no more than `tau` stops spreading.

    Such a tile keeps its old values, which are what its readers have read. So errors do not add up over edits: every
    value lies within `tau`, in the units of its layer's activations, of what the layer makes of what it reads.
    `Adaptive(0)` is exact, and cheaper than `Exact` where an edit has no effect.
    """

    tau: float

    def __post_init__(self) -> None:
        tau: Any = self.tau
        if isinstance(tau, bool) or not isinstance(tau, (int, float, np.floating)) or not 0 <= tau < math.inf:
            raise InputError(f"policy adaptive: tau is {tau!r}, expected a number, 0 or more")

    @property
    def exact(self) -> bool:
        return self.tau == 0

    def plan(self, difference: Host, *, settled: bool = True) -> Plan:
        # where a reader lags behind, that a tile does not move now says nothing: all spreads, if it is to be exact
        return _ExactPlan(None if self.exact and not settled else float(self.tau))


class _ExactPlan(Plan):
    def __init__(self, tau: float | None = None) -> None:
        self.tau = tau
        # norms of one block read the same canvas through the same window: grow it once
        self._grown: dict[tuple[int, Window, int, int], tuple[TileSet, TileSet]] = {}

    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        grown = [self._grow(read, shape[1], shape[2]) for read in reads if read.changed.count]
        return union(grown) if grown else TileSet.empty(*shape)

    def _grow(self, read: Read, height: int, width: int) -> TileSet:
        key = (id(read.changed), read.window, height, width)
        if key not in self._grown:  # the input is kept beside the result, so that its id stays its own
            self._grown[key] = (read.changed, grow(read.changed, read.window, height, width))
        return self._grown[key][1]


@dataclass(frozen=True)
class Paper(Policy):
    """SIGE's approximation: one mask per resolution, and everything recomputed at the lowest resolutions.

    The difference mask is dilated by `dilation`; each resolution's mask comes from `masks.pyramid`, dilated by
    `level_dilation`; a tile is active when its window (6×6 for a 3×3 convolution, 4×4 for 1×1) holds a masked
    pixel. The first `sparse_levels` resolutions, counted from the input's, are sparse; below, samples with any
    edit are recomputed whole. Source: arXiv 2211.02048, section 3; defaults per model family from its code.
    """

    dilation: int = 1
    level_dilation: int = 1
    sparse_levels: int = 5
    threshold: float = 0.3

    def __post_init__(self) -> None:
        for name in ("dilation", "level_dilation", "sparse_levels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"policy paper: {name} is {value!r}, expected a whole number, 0 or more")
        if not 0 <= self.threshold < 1:
            raise InputError(
                f"policy paper: threshold is {self.threshold!r}, expected 0 or more and less than 1"
            )

    def plan(self, difference: Host, *, settled: bool = True) -> Plan:
        return _PaperPlan(self, difference)


class _PaperPlan(Plan):
    def __init__(self, policy: Paper, difference: Host) -> None:
        mask = dilate(difference, policy.dilation)
        edited = np.asarray(difference.any((1, 2)))
        self._masks: dict[tuple[int, int], TileSet] = {}
        for level, levels_mask in enumerate(
            pyramid(mask, dilation=policy.level_dilation, threshold=policy.threshold)
        ):
            sparse = level < policy.sparse_levels
            tiles = TileSet.of_mask(levels_mask) if sparse else TileSet.full(*levels_mask.shape, only=edited)
            self._masks[levels_mask.shape[1:]] = tiles
        self._active: dict[tuple[Window, tuple[int, ...], int, int], TileSet] = {}

    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        if not any(read.changed.count for read in reads):
            return TileSet.empty(*shape)
        return union([self._through(read, shape[1], shape[2]) for read in reads if read.changed.count])

    def _through(self, read: Read, height: int, width: int) -> TileSet:
        # SIGE's masks live at the resolution that a layer reads, after any resampling
        changed, window = read.changed, read.window
        size = tuple(side * window.upsample // window.step for side in (changed.height, changed.width))
        window = replace(window, step=1, upsample=1)
        key = (window, size, height, width)
        if key not in self._active:
            if size not in self._masks:
                known = ", ".join(f"{h}×{w}" for h, w in self._masks)
                raise ShapeError(
                    f"policy paper: no mask for a layer that reads {size[0]}×{size[1]}; the input halves to {known}"
                )
            self._active[key] = grow(self._masks[size], window, height, width)
        return self._active[key]


POLICIES = ("paper", "exact", "adaptive(TAU)")


def get_policy(policy: str | Policy | None, *, paper: Paper) -> Policy:
    """A policy by name (`paper` is the model family's own), as it is, or for None the family's.

    Raises
    ------
    InputError
        No policy of that name; "adaptive" without a TAU in brackets, or with one that is no number, 0 or more.
    """
    if isinstance(policy, Policy):
        return policy
    if policy in (None, "paper"):
        return paper
    if policy == "exact":
        return Exact()
    adaptive = re.fullmatch(r"adaptive(?:\((.*)\))?", str(policy))
    if adaptive is None:
        raise InputError(f"policy {policy!r} is unknown; choose one of {', '.join(POLICIES)}")
    try:
        return Adaptive(float(adaptive[1] or "none"))
    except ValueError:
        raise InputError(
            f"policy {policy!r}: expected a number, 0 or more, in brackets, such as adaptive(0.02)"
        ) from None
