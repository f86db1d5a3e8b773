"""A history: the edits that can be undone and redone, over states that are edited together.

The history is one immutable value, replaced whole: a session is never between two edits. A change first notes which
journals take it back (`going`); if it is interrupted, playing these back completes it or removes every trace of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sparsegen.backends.interface import Host

from ..checks import warn
from ..engine.journal import Journal
from ..engine.stats import megabytes
from ..engine.turn import completed
from ..errors import SessionError
from ..tiling.tiles import TileSet
from .state import State

LEAST_UNDO = 256 << 20
"""Bytes that the journals of a session may take by default, if its canvases take less than twice that."""


@dataclass(frozen=True, eq=False)
class Edit:
    """The journals that lead to the other side of one edit: back before it, or forward again."""

    journals: tuple[Journal, ...]
    """One for each state; none where the edit repainted nothing."""
    stale: TileSet
    """The stale pixels on the other side."""
    image: Host | None = None
    """The history's image on the other side."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        image = 0 if self.image is None else int(self.image.nbytes)
        return image + sum(journal.nbytes for journal in self.journals)


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """A place among edits."""

    stale: TileSet
    """Input pixels whose change has not spread everywhere, after edits under approximate policies."""
    image: Host | None = None
    """A diffusion session's image at this place; its canvases do not hold it, so every edit keeps one."""
    shown: Any = None
    """Data that a session derived from the canvases at this place, never written into; None: not derived yet."""
    edits: tuple[Edit, ...] = ()
    """Edits that can be undone, the last one last."""
    undone: tuple[Edit, ...] = ()
    """Edits that can be redone, the next one last."""
    forgotten: int = 0
    """Edits since the last run that can no longer be undone."""
    going: tuple[tuple[Journal, ...], History] | None = None
    """Journals that are being written or played back, and the history once they have been played back."""

    @property
    def nbytes(self) -> int:
        """Memory that undoing and redoing takes."""
        return sum(edit.nbytes for edit in (*self.edits, *self.undone))

    def after(
        self, edit: Edit, *, stale: TileSet, limit: int, image: Host | None = None, shown: Any = None
    ) -> History:
        """The place after an edit: it can be undone, older ones as far as `limit` bytes reach, and none redone."""
        edits = (*self.edits, edit)
        return History(stale, image, shown, edits, forgotten=self.forgotten).within(limit)

    def within(self, limit: int) -> History:
        """The history without its oldest edits, as many as exceed `limit` bytes; a warning names their number."""
        history = self
        while history.nbytes > limit and len(history.edits) > 1:
            history = replace(history, edits=history.edits[1:], forgotten=history.forgotten + 1)
        forgotten = history.forgotten - self.forgotten
        if forgotten:
            warn(
                f"the last edit's journal does not fit beside the earlier ones: the oldest {forgotten} can no longer "
                f'be undone (journals may take {megabytes(limit)}; for more, give undo="4GB", say)'
            )
        return history


def undo_limit(limit: int | None, canvas_bytes: int) -> int:
    """Bytes that all journals of a session may take; `limit` None: half of its canvases, at least `LEAST_UNDO`."""
    return max(canvas_bytes // 2, LEAST_UNDO) if limit is None else limit


class Base:
    """The base of edits: states that are edited together, and their history.

    Parameters
    ----------
    states
        Painted states, each of which every edit repaints.
    history
        The place where they stand.
    """

    def __init__(self, states: Sequence[State], history: History) -> None:
        self.states = tuple(states)
        self.history = history

    @property
    def nbytes(self) -> int:
        """Memory of all canvases; a canvas that the states share is counted once."""
        shared = {state.memory.allocator: state.memory.allocator.shared_bytes for state in self.states}
        return sum(state.memory.nbytes for state in self.states) + sum(shared.values())

    def settle(self) -> History:
        """Complete an interrupted change, and return the history. A new interrupt is raised afterwards."""
        interrupt = completed(self._arrive)
        if interrupt is not None:
            raise interrupt
        return self.history

    def show(self, shown: Any) -> None:
        """Keep data that a session derived from the canvases as they are."""
        self.history = replace(self.history, shown=shown)

    @contextmanager
    def edit(self) -> Iterator[tuple[Journal, ...]]:
        """A context with new journals, one for each state to repaint; unless it calls `commit`, all is taken back."""
        before = self.settle()
        journals = tuple(Journal() for _ in self.states)
        self.history = replace(before, going=(journals, before))
        try:
            yield journals
        except BaseException:
            completed(self._arrive)
            raise
        self.settle()

    def commit(self, after: History) -> None:
        """End an edit: `after` is where the states stand."""
        self.history = after

    def undo(self) -> Edit:
        """Put back the tiles that the last edit overwrote, bit for bit, and return that edit.

        If there is no memory to save the tiles that this overwrites, the edit cannot be redone.

        Raises
        ------
        SessionError
            There is nothing to undo.
        """
        history = self.settle()
        if not history.edits:
            raise SessionError(
                "nothing to undo: "
                + ("older edits were forgotten" if history.forgotten else "no edit since the last run")
            )
        *edits, edit = history.edits
        try:
            undone = (*history.undone, self._inverse(edit))
        except (MemoryError, SessionError):
            undone = ()
        self._go(edit, edits=tuple(edits), undone=undone)
        return edit

    def redo(self) -> Edit:
        """Put back the tiles that the last undo overwrote, bit for bit, and return that edit.

        Raises
        ------
        SessionError, MemoryError
            There is nothing to redo, or no memory to save the tiles that this overwrites; nothing has changed.
        """
        history = self.settle()
        if not history.undone:
            raise SessionError("nothing to redo: no undo since the last edit or run")
        *undone, edit = history.undone
        self._go(edit, edits=(*history.edits, self._inverse(edit)), undone=tuple(undone))
        return edit

    def _inverse(self, edit: Edit) -> Edit:
        """The way back from the other side of an edit that is about to be undone or redone."""
        # (an edit that repainted nothing has no journals)
        journals = tuple(
            journal.inverse(state.memory) for journal, state in zip(edit.journals, self.states, strict=False)
        )
        return Edit(journals, self.history.stale, self.history.image)

    def _go(self, edit: Edit, *, edits: tuple[Edit, ...], undone: tuple[Edit, ...]) -> None:
        """Play an edit's journals back. An interrupt is raised afterwards."""
        before = self.history
        after = replace(before, stale=edit.stale, image=edit.image, shown=None, edits=edits, undone=undone)
        noted = replace(before, going=(edit.journals, after))

        def play() -> None:
            self.history = noted
            self._arrive()

        interrupt = completed(play)
        if interrupt is not None:
            raise interrupt

    def _arrive(self) -> None:
        """Play back the journals that are `going`; repeated after an interrupt, it changes nothing more."""
        if self.history.going is not None:
            journals, history = self.history.going
            for journal, state in zip(journals, self.states, strict=False):
                journal.undo(state.memory)
            self.history = history
