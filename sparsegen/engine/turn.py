"""Turns: threads that change one session run one after another, and a change that must not stop half-way is completed.

A session repaints its canvases in place, so two edits at once would corrupt both. A second thread waits for the first.
A callback runs in the middle of a change of its session: it may read the session. If it calls a change, SessionError is
raised, because its thread would wait for itself.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from ..errors import SessionError, SparsegenError


class Turn:
    """A lock with an owner, shared by all objects that must not change at the same time.

    Reading needs no turn: a finished change replaces the readable values and never writes into them. (Two threads whose
    callbacks each change the other's session would wait for each other.)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._lost = False
        """Whether the process was forked while another thread had the turn: this process cannot finish the change."""
        _turns.add(self)

    @contextmanager
    def change(self, call: str) -> Iterator[None]:
        """A context that holds the turn, entered once every other thread is done. `call`: its method, for messages.

        Raises
        ------
        SessionError
            This thread has the turn already (a callback called), or a fork left a change unfinished.
        """
        if self._mine:
            raise SessionError(
                f"{call}: a callback cannot change its session or another of the same store; call {call} after the "
                "running change has returned (reading is allowed)"
            )
        with self._lock:
            self._check()
            try:
                self._owner = threading.get_ident()
                yield
            finally:
                self._owner = None

    @property
    def _mine(self) -> bool:
        # an interrupt may leave the identifier behind; then the lock is not held
        return self._lock.locked() and self._owner == threading.get_ident()

    def _check(self) -> None:
        if self._lost:
            raise SessionError(
                "this process was forked while another thread was changing the session; load a saved session, or open "
                "a new one and call run"
            )

    def _after_fork(self) -> None:
        """Free the turn in a forked process, unless the forking thread holds it: no other thread exists there."""
        if self._lock.locked() and self._owner != threading.get_ident():
            self._lock, self._owner, self._lost = threading.Lock(), None, True


_TRIES = 100
"""How often an interrupted action is repeated: far more often than a user can interrupt it."""


def completed(action: Callable[[], None]) -> BaseException | None:
    """The last exception that interrupted `action`, which is repeated until it completes; None: nothing did.

    `action` must be idempotent, also after a partial run. The exception is returned, not raised: an interrupt, or any
    error that a signal handler raises. An action that fails every time raises its error.
    """
    interrupt = None
    for _ in range(_TRIES):
        try:
            action()
            return interrupt
        except BaseException as error:
            interrupt = error
    assert interrupt is not None
    raise interrupt


class NotCopied:
    """A base of objects whose memory is written in place: copying is refused, since both copies would share it."""

    not_copied: ClassVar[str]
    """The alternative to a copy, for the message."""
    refusal: ClassVar[type[SparsegenError]] = SessionError
    """The error that a copy raises."""

    def __copy__(self) -> Any:
        raise self._refused()

    def __deepcopy__(self, memo: Any) -> Any:
        raise self._refused()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise self._refused()

    def _refused(self) -> SparsegenError:
        return self.refusal(f"a {type(self).__name__} cannot be copied or pickled: {self.not_copied}")


_turns: weakref.WeakSet[Turn] = weakref.WeakSet()


def _after_fork() -> None:
    for turn in list(_turns):
        turn._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
