"""Whose turn it is: threads that want one session come in, and go on one after another; what they began is completed.

A session repaints its canvases in place, so two edits at once would spoil both. Threads wait for each other. A callback
runs while its own session is being changed: it may read the session, and a change that it asks for is refused, since
waiting for itself would never end.
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
    """A lock with an owner, shared by all that must not change at once.

    Reading needs no turn: what can be read is replaced when a change is done, and never written into. (Two threads
    whose callbacks each change the other's session would wait for each other.)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._lost = False
        """Whether a process was forked while another thread had the turn: nobody will finish its change here."""
        _turns.add(self)

    @contextmanager
    def change(self, call: str) -> Iterator[None]:
        """Have the turn alone, once every other thread is done; `call` is what asks for it, for messages.

        Raises
        ------
        SessionError
            This thread has the turn already: a callback asked.
        """
        if self._mine:
            raise SessionError(
                f"{call}: the session is being changed, or one of the same store, and this is a callback of that "
                f"change; call {call} once it has returned (reading is possible now)"
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
        # a thread's identifier may be left behind by an interrupt, a lock that is not held says so
        return self._lock.locked() and self._owner == threading.get_ident()

    def _check(self) -> None:
        if self._lost:
            raise SessionError(
                "another thread was changing this session when this process was forked from it; load a saved session, "
                "or open a new one and run"
            )

    def _after_fork(self) -> None:
        """In the child: whoever had the turn is not here, unless it is the thread that forked."""
        if self._lock.locked() and self._owner != threading.get_ident():
            self._lock, self._owner, self._lost = threading.Lock(), None, True


_TRIES = 100
"""How often something is begun again that is interrupted: far oftener than anybody can interrupt it."""


def completed(action: Callable[[], None]) -> BaseException | None:
    """Do what must not be left half done, whatever comes; begun again, or done twice, it must be as done once.

    What came is returned, not raised: an interrupt, or whatever a handler of a signal raises.
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
    """What owns memory that is written in place: a copy would share it, and either would spoil the other's."""

    not_copied: ClassVar[str]
    """What to do instead of a copy."""
    refusal: ClassVar[type[SparsegenError]] = SessionError

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
