"""What a thread has queued: kernels that it has posted, and that may not have computed yet, in the order of its posts.

A launch returns once its kernel has computed, unless it is made `within` a queue, and says that it may wait: by
`Launcher.queue`. Everything else waits first for what its thread has queued, by `settle`: kernels that Python calls
itself (`jit.Kernel`), launches that return results, arrays that are copied (`arrays.py`), primitives in NumPy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

Odd = np.ndarray[Any, np.dtype[np.uint8]]
"""A mark of values that are not finite, uint8 `[1]`: 1 once a kernel has written one."""


class Queue(Protocol):
    """A pool of threads on which kernels of this thread are queued."""

    def finish(self) -> None:
        """Return when all of them have computed; the thread has nothing queued then."""


class _Thread(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.queue: Queue | None = None
        """Where it has queued kernels; None: nowhere."""
        self.odd: Odd | None = None
        """The mark of the queue that it is within; None: within none."""


_thread = _Thread()


def queue() -> Queue | None:
    """Where this thread has queued kernels; None: nowhere."""
    return _thread.queue


def set_queue(queue: Queue | None) -> None:
    """Set where this thread has queued kernels."""
    _thread.queue = queue


def settle() -> None:
    """Return when every kernel that this thread has queued has computed."""
    if _thread.queue is not None:
        _thread.queue.finish()


def is_within() -> bool:
    """Whether this thread is within a queue."""
    return _thread.odd is not None


def odd() -> Odd:
    """uint8 `[1]`, which a kernel sets where a value is not finite: within a queue the one of all its kernels."""
    return np.zeros(1, np.uint8) if _thread.odd is None else _thread.odd


def known_finite(odd: Odd) -> bool:
    """Whether kernels with that mark have computed, and set nothing."""
    return _thread.odd is None and not odd[0]


@contextmanager
def within() -> Iterator[None]:
    """A queue: within it, this thread's launches may return before their kernels have computed; all have at its end."""
    before = _thread.odd
    _thread.odd = np.zeros(1, np.uint8)
    try:
        yield
    finally:
        _thread.odd = before
        settle()


@contextmanager
def outside() -> Iterator[None]:
    """Within it, this thread's launches return once their kernels have computed, as outside of every queue."""
    settle()
    before = _thread.odd
    _thread.odd = None
    try:
        yield
    finally:
        _thread.odd = before


if hasattr(os, "register_at_fork"):  # a child has no helper that would compute what is queued
    os.register_at_fork(before=settle)
