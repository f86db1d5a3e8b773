"""Policies: the difference mask of an edit comes in, each layer's active tiles come out.

A policy is a setting (`Paper`, `Exact`); for one edit it makes a `Plan`, which every layer of the run asks once. The
dense run has a plan too, `Everything`: that is all the difference there is between dense and sparse.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparsegen.backends.interface import TILE, Host

from ..checks import in_range, whole_number
from ..errors import InputError, ShapeError
from .masks import dilated, halvings, pyramid
from .tiles import TileSet, union
from .windows import Read, Window, grow


class Plan(ABC):
    """Answers, for one run, which tiles of a layer's output are active."""

    tau: float | None = None
    """A recomputed tile that moved by no more than this does not spread and keeps its old values; None: all spread."""
    whole_tiles: bool = False
    """Whether every pixel of a recomputed tile counts as changed, of layers that compute a tile as one."""

    @abstractmethod
    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        """Active tiles of an output of `shape` (N, H, W). A layer that reads nothing of the edit has none."""


class Everything(Plan):
    """The dense run: every tile of every layer."""

    def __init__(self) -> None:
        self._full: dict[tuple[int, int, int], TileSet] = {}

    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        if shape not in self._full:
            self._full[shape] = TileSet.full(*shape)
        return self._full[shape]


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
        in_range("policy adaptive: tau", self.tau, 0, ends="[)")

    @property
    def exact(self) -> bool:
        return self.tau == 0

    def plan(self, difference: Host, *, settled: bool = True) -> Plan:
        # where a reader lags behind, that a tile does not move now says nothing: all spreads, if it is to be exact
        return _ExactPlan(None if self.exact and not settled else float(self.tau))


class _ExactPlan(Plan):
    def __init__(self, tau: float | None = None) -> None:
        self.tau, self.whole_tiles = tau, not tau
        self._grown: dict[Any, TileSet] = {}
        """By output shape and reads; a `TileSet` is itself the key, by identity."""

    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        changed = [read for read in reads if read.changed.count]
        # the norms of one block read the same canvas through the same window: grow it once
        key = (shape, frozenset(changed))
        if key not in self._grown:
            grown = [self._grow(read, shape) for read in changed]
            self._grown[key] = union(grown) if grown else TileSet.empty(*shape)
        return self._grown[key]

    def _grow(self, read: Read, shape: tuple[int, int, int]) -> TileSet:
        key = (shape, read)
        if key not in self._grown:
            if read.everywhere:
                self._grown[key] = TileSet.full(*shape, only=read.changed.edited)
            else:
                self._grown[key] = grow(read.changed, read.window, *shape[1:])
        return self._grown[key]


@dataclass(frozen=True)
class Paper(Policy):
    """SIGE's approximation: one mask per resolution, and everything recomputed at the lowest resolutions.

    The difference mask is dilated by `dilation`; each resolution's mask comes from `masks.pyramid`, dilated by
    `level_dilation`; a tile is active when its window (6×6 for a 3×3 convolution, 4×4 for 1×1) holds a masked
    pixel. The first `sparse_levels` resolutions, counted from the input's, are sparse if their shorter side has at
    least `least_size` pixels; below, samples with any edit are recomputed whole. What attention reads of other pixels
    makes none active. Source: arXiv 2211.02048, section 3; defaults per model family from its code.
    """

    dilation: int = 1
    level_dilation: int = 1
    sparse_levels: int = 5
    least_size: int = 1
    threshold: float = 0.3

    def __post_init__(self) -> None:
        for name in ("dilation", "level_dilation", "sparse_levels", "least_size"):
            value = whole_number(f"policy paper: {name}", getattr(self, name), 0)
            object.__setattr__(self, name, value)
        in_range("policy paper: threshold", self.threshold, 0, 1, ends="[)")

    def plan(self, difference: Host, *, settled: bool = True) -> Plan:
        return _PaperPlan(self, difference)


class _PaperPlan(Plan):
    def __init__(self, policy: Paper, difference: Host) -> None:
        changed = TileSet.of_mask(difference)
        edited = changed.edited
        n, row, column = changed.first
        at = (n, row * TILE, column * TILE)
        levels = pyramid(
            dilated(changed.shape, changed.box, at, policy.dilation),
            dilation=policy.level_dilation,
            threshold=policy.threshold,
        )
        self._masks: dict[tuple[int, int], TileSet] = {}
        for level, size in enumerate(halvings(changed.height, changed.width)):
            sparse = level < policy.sparse_levels and min(size) >= policy.least_size
            self._masks[size] = next(levels) if sparse else TileSet.full(changed.samples, *size, only=edited)
        self._active: dict[Any, TileSet] = {}

    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        through = frozenset(
            # (what attention reads of other pixels does not spread: that is this policy's approximation)
            (read.changed.height, read.changed.width, read.window)
            for read in reads
            if read.changed.count and not read.everywhere
        )
        if not through:
            return TileSet.empty(*shape)
        # which pixels of a canvas changed has no say: layers of one kind share their tiles
        key = (shape, through)
        if key not in self._active:
            self._active[key] = union(self._through(*read, shape) for read in through)
        return self._active[key]

    def _through(self, height: int, width: int, window: Window, shape: tuple[int, int, int]) -> TileSet:
        # SIGE's masks live at the resolution that a layer reads, after any resampling
        size = window.resampled(height, width)
        if size not in self._masks:
            known = ", ".join(f"{h}×{w}" for h, w in self._masks)
            raise ShapeError(
                f"policy paper: no mask for a layer that reads {size[0]}×{size[1]}; the input halves to {known}"
            )
        if not window.step == window.upsample == 1:
            window = replace(window, step=1, upsample=1)
        key = (shape, size, window)
        if key not in self._active:
            self._active[key] = grow(self._masks[size], window, *shape[1:])
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
