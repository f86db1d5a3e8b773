"""The door of every session: the results that users get, and the edits that they can undo and redo."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host

from ..checks import warn
from ..engine.stats import Stats
from ..engine.turn import NotCopied, Turn
from ..tiling.masks import check_mask
from ..tiling.policies import Paper, Policy
from ..tiling.tiles import TileSet
from .history import Base, Edit
from .state import State


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The result of a run or an edit."""

    images: Host
    """uint8 `[N, H, W, 3]`."""
    output: Host
    """The model's output, float32 `[N, H, W, C]`; of a diffusion session, the image in [-1, 1]."""
    stats: Stats
    active: TileSet
    """Tiles of the output that this run repainted."""

    @property
    def image(self) -> Host:
        """The first (usually the only) image, uint8 `[H, W, 3]`."""
        return np.asarray(self.images[0])

    def __repr__(self) -> str:
        n, height, width = self.images.shape[:3]
        return f"<Result: {n} of {height}×{width}; {self.stats.summary()}>"


def within_mask(difference: Host, mask: Any) -> tuple[Host, int]:
    """The pixels to recompute, bool `[N, H, W]`, and the number of changed ones that a user's mask leaves out.

    `difference` bool `[N, H, W]`: the changed pixels; `mask` None: all of these. A warning names what is left out.

    Raises
    ------
    InputError, ShapeError
        The mask does not fit.
    """
    if mask is None:
        return difference, 0
    given = check_mask(mask, difference.shape)
    ignored = int(np.count_nonzero(difference & ~given))
    if ignored:
        warn(
            f"{ignored} changed pixels lie outside the mask and are not applied; widen the mask to apply them"
        )
    return given, ignored


def warn_of_canvases(opened: Policy, chosen: Policy) -> None:
    """Warn if `chosen` is sparse at resolutions that a session `opened` under another policy does not keep."""
    if isinstance(chosen, Paper) and chosen.least_size < opened.least_size:
        warn(
            f"the session keeps no resolution below {opened.least_size} pixels, this policy is sparse down to "
            f"{chosen.least_size}: those between are computed whole; open the session with policy= to keep them"
        )


class Door(NotCopied):
    """A session over a `Base`; a subclass encodes inputs, runs and edits."""

    _base: Base | None = None
    """None: nothing has run yet."""

    @property
    @abstractmethod
    def _turn(self) -> Turn:
        """The turn that a change needs."""

    @abstractmethod
    def _ready(self) -> tuple[Base, Any]:
        """The base, once any interrupted change is completed, and the subclass's data for that place.

        Raises SessionError: nothing has run yet.
        """

    @abstractmethod
    def _exchanged(self, base: Base, before: Any, start: float, edit: Edit) -> Result:
        """The result of an undo or redo that began at `start` and exchanged an edit's tiles.

        `before` is the second value of `_ready`.
        """

    @property
    def states(self) -> tuple[State, ...]:
        """The states that every edit repaints, for instruments: of Stable Diffusion encoder, steps and decoder.

        Raises SessionError: nothing has run yet.
        """
        with self._turn.change("states"):
            return self._ready()[0].states

    def undo(self) -> Result:
        """Put back the tiles that the last edit overwrote, bit for bit; possible `edits` times.

        An interrupt is raised after the undo is complete.

        Raises
        ------
        SessionError
            There is nothing to undo, or the caller is a callback of this session.
        """
        with self._turn.change("undo"):
            start, (base, before) = time.perf_counter(), self._ready()
            return self._exchanged(base, before, start, base.undo())

    def redo(self) -> Result:
        """Put back the tiles that the last undo overwrote, bit for bit; possible `undone` times.

        An interrupt is raised after the redo is complete.

        Raises
        ------
        SessionError
            There is nothing to redo, or the caller is a callback of this session.
        """
        with self._turn.change("redo"):
            start, (base, before) = time.perf_counter(), self._ready()
            return self._exchanged(base, before, start, base.redo())

    @property
    def edits(self) -> int:
        """Number of edits that can be undone."""
        base = self._base
        return 0 if base is None else len(base.history.edits)

    @property
    def undone(self) -> int:
        """Number of edits that can be redone: undos since the last edit or run."""
        base = self._base
        return 0 if base is None else len(base.history.undone)
