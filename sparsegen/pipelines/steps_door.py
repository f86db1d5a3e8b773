"""The door of a session with a state for each denoising step: what `SDEdit` and `StableDiffusion` have in common."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from sparsegen.backends.interface import TILE, Host

from ..checks import warn
from ..editing.door import Door, Result, warn_of_canvases, within_mask
from ..editing.history import Base, Edit, History
from ..editing.session_file import Notes
from ..editing.state import State
from ..engine.device_store import DeviceStore
from ..engine.stats import LayerRecord, Stats, StepRecord, counted, megabytes
from ..engine.store import Store
from ..engine.turn import Turn
from ..errors import SessionError, ShapeError
from ..models.base import Model
from ..tiling.masks import dilated
from ..tiling.policies import Policy
from ..tiling.tiles import TileSet
from .steps import carried_rows

_NO_IMAGE = "no image yet: call run(original) first, and let it end"


class StepsDoor(Door):
    """A session of an image over a state for each denoising step; a subclass encodes images, runs and edits."""

    store: Store | DeviceStore
    """Where the canvases of the steps lie."""
    policy: Policy
    margin: int
    times: list[float]
    _states: list[State]
    """One for each step."""
    notes: Notes
    """Text and arrays that `save` keeps for the user, by name."""
    _running = False
    """Whether the states are being painted; until that ends, nothing can be edited."""

    @property
    @abstractmethod
    def _shown_by(self) -> Model:
        """The model whose `images` show the session's image."""

    @property
    @abstractmethod
    def _compares_by(self) -> Model:
        """The model whose `eps` is the largest difference of equal pixels."""

    @abstractmethod
    def _encode(self, image: Any) -> Host:
        """A user's image as float32 `[N, H, W, C]` in [-1, 1]. Raises InputError, ShapeError."""

    @abstractmethod
    def _write(
        self, path: str | os.PathLike[str], history: History, progress: Callable[[int, int, str], None] | None
    ) -> None:
        """Write the session to a file, for `save`."""

    @property
    def _turn(self) -> Turn:
        return self.store.turn

    def _described(self, lines: Sequence[str]) -> str:
        """The session in words: `lines`, then its image and what can be undone."""
        base = self._base
        if base is None:
            return "\n".join([*lines, "  no image yet: call run(original)>"])
        n, height, width, _ = image_of(base.history).shape
        undoing = f"{counted(self.edits, 'edit')} to undo, {self.undone} to redo"
        return "\n".join(
            [
                *lines,
                f"  {n} of {height}×{width}, caches {megabytes(base.nbytes)}",
                f"  {undoing}, journals {megabytes(base.history.nbytes)}>",
            ]
        )

    @property
    def image(self) -> Host:
        """The current first image, uint8 `[H, W, 3]`; during a change, the image before it, without waiting.

        Raises SessionError: nothing has run yet.
        """
        base = self._base
        if base is None:
            raise SessionError(_NO_IMAGE)
        return np.asarray(self._shown_by.images(image_of(base.history))[0])

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        """Write the whole session (models, caches of all steps, undo) to one file, or leave the old file whole.

        The file is as large as the caches and the weights. `progress(done, total, name)` is called after each array.

        Raises
        ------
        SessionError, CheckpointError
            Nothing has run yet; the file could not be written; the caller is a callback of this session.
        """
        with self._turn.change("save"):
            base, _ = self._ready()
            self._write(path, base.history, progress)

    def close(self) -> None:
        """Drop the image, the canvases and the caches' files. (The files are also deleted when the process ends.)"""
        with self._turn.change("close"):
            self._base = None
            self._states.clear()
            self.store.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ready(self) -> tuple[Base, Host]:
        """The base, once any interrupted change is completed, and the current image."""
        if self._base is None or self._running:
            raise SessionError(_NO_IMAGE)
        return self._base, image_of(self._base.settle())

    def _exchanged(self, base: Base, before: Host, start: float, edit: Edit) -> Result:
        changed = TileSet.of_mask((before != image_of(base.history)).any(-1))
        return self._result(base, base.history, start, changed)

    def _carried_rows(self, height: int, width: int) -> tuple[int, ...]:
        """For each step, the rows of the first resolution of its input that is carried; 0: none is."""
        return carried_rows(self.policy, height, width, len(self.times))

    def _kept_rows(self, height: int, width: int) -> tuple[int, ...]:
        """As `_carried_rows`, of the states as they were painted: a saved session may have other steps than a new one.

        A session of which every step keeps every canvas can take the steps of any policy.
        """
        kept = tuple(state.memory.carried_rows for state in self._states)
        return kept if any(kept) else self._carried_rows(height, width)

    def _rows_of_edit(self, chosen: Policy, changed: TileSet) -> tuple[int, ...]:
        """The rows that an edit carries at each step, as `_carried_rows`; `changed` are the pixels of the steps' input.

        Warns of a policy that needs canvases which the session, opened under another one, does not keep.
        """
        warn_of_canvases(self.policy, chosen)
        rows = self._kept_rows(*changed.shape[1:])
        whole = sum(map(bool, rows))
        other = (chosen.refresh, chosen.frontier) != (self.policy.refresh, self.policy.frontier)
        if whole and other:
            warn(
                f"the session was opened under another policy, which keeps few canvases at {whole} of its {len(rows)} "
                "steps: layers without a kept canvas compute all their tiles there; open a session with this policy="
            )
        # an edit of everything is the dense run
        everything = bool(changed.mask()[changed.edited].all())
        return (0,) * len(rows) if other or everything else rows

    def _kept_bytes(self) -> int:
        """A lower bound of the bytes that are freed in the store when the states are dropped."""
        return self.store.shared_bytes + sum(state.layers_nbytes for state in self._states)

    def _difference(self, before: Host, edited: Any, mask: Any) -> tuple[Host, Host, int]:
        """(the edited image, bool `[N, H, W]`: the pixels to recompute, the number of changed pixels left out)."""
        image = self._encode(edited)
        if image.shape != before.shape:
            raise ShapeError(
                f"the edited image is {image.shape[:3]}, expected the base's {before.shape[:3]} (N, H, W)"
            )
        difference = (np.abs(image - before) > self._compares_by.eps).any(-1)
        return image, *within_mask(difference, mask)

    def _region(self, difference: Host) -> TileSet:
        """The pixels to recompute: the pixels that differ, grown by the margin."""
        changed = TileSet.of_mask(difference)
        if not changed.count:
            return changed
        n, row, column = changed.first
        margin = min(self.margin, max(changed.height, changed.width))  # a larger one ends outside the image
        return dilated(changed.shape, changed.box, (n, row * TILE, column * TILE), margin)

    def _result(
        self,
        base: Base,
        history: History,
        start: float,
        active: TileSet,
        records: Iterable[LayerRecord] = (),
        edited_area: float = 0.0,
        ignored: int = 0,
        journal_bytes: int = 0,
        steps: Sequence[StepRecord] = (),
    ) -> Result:
        """The result of a change that ends at `history`."""
        stats = Stats(
            edited_area,
            tuple(records),
            (time.perf_counter() - start) * 1e3,
            base.nbytes,
            journal_bytes=journal_bytes,
            ignored_pixels=ignored,
            undo_edits=len(history.edits),
            undo_bytes=history.nbytes,
            forgotten_edits=history.forgotten,
            steps=tuple(steps),
        )
        image = image_of(history)
        return Result(self._shown_by.images(image), image.copy(), stats, active)


def image_of(history: History) -> Host:
    """The image at a place of a session's history; every place has one."""
    assert history.image is not None
    return history.image
