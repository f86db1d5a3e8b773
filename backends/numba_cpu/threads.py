"""Threads: a kernel comes in as a call; several threads make it, and share its items until none is left.

They are Python threads, and kernels run with the GIL released. So any number of sessions may compute in as many Python
threads, where Numba's pool aborts the process, and nothing depends on OpenMP, which does not survive a fork. After a
fork the child starts new threads.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from . import waiting
from .arrays import aligned
from .handover import WAKE, go_on, help_out
from .waiting import ADDRESS, ASLEEP, SIZE, STOP, line_of

Scratch = np.ndarray[Any, np.dtype[np.float32]]
Words = np.ndarray[Any, np.dtype[np.int64]]
Call = Callable[..., int]
"""The machine code of a kernel that is `handover.shared`."""

NAP = 1e-4
"""Seconds between two looks at helpers that are busy for longer than they are polled for."""


def scratch(count: int) -> Scratch:
    """That many uninitialised floats, from the start of a cache line."""
    return np.asarray(aligned(count, "float32"))


class _Local(threading.local):
    """A thread's own words and scratch, kept from one kernel to the next."""

    def __init__(self) -> None:
        self.words = waiting.words(1)
        self.scratch = scratch(0)
        self.address = 0

    def room(self, floats: int) -> tuple[int, int]:
        """The address and the size of scratch of at least that many floats."""
        if len(self.scratch) < floats:
            self.scratch = scratch(floats)
            self.address = self.scratch.ctypes.data
        return self.address, len(self.scratch)


_local = _Local()


def _help(words: Words, number: int, polls: int, sleep: threading.Lock) -> None:
    """A helper's loop: help out until there has been no kernel for a while, then sleep until it is woken."""
    while not words[STOP]:
        help_out(words, number, polls)
        sleep.acquire()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """Up to `threads` threads, one of them the caller's; the helpers start with the first kernel that needs them.

    With `watchful`, helpers poll for the next kernel for a moment before they sleep (`waiting.py`). It suits no more
    threads than there are cores. One kernel at a time has the helpers; sessions in several threads take turns.
    """

    def __init__(self, threads: int, *, watchful: bool = False) -> None:
        self.threads = threads
        self._polls = waiting.POLLS if watchful else 0
        self._forget()
        _pools.add(self)

    def _forget(self) -> None:
        """Reset to a pool in which no thread runs, as in a forked child."""
        self._turn = threading.Lock()
        """Held by the caller whose kernel has the helpers."""
        self._words = waiting.words(self.threads)
        self._sleeps: list[threading.Lock] = []
        """By helper, a lock that is released to wake it."""
        self._helpers: int | None = None
        """Helpers that were started; None: not yet tried."""
        self._scratch: list[Scratch] = []
        """The helpers', of equal size."""

    def run(self, call: Call, items: int, args: tuple[Any, ...], floats: int, threads: int) -> None:
        """Make a kernel's call in up to `threads` threads, each with `floats` floats of scratch; wait for all.

        The calls share a counter of items, so their number does not matter. When the caller's own returns, no item is
        left: a helper that has not begun by then is not waited for.
        """
        address, size = _local.room(floats)
        if min(threads, self.threads) < 2:
            call(_local.words, 0, 0, items, args, address, size)
            return
        with self._turn:
            helpers = min(threads - 1, self._start())
            self._give(floats)
            busy = WAKE  # until the call has returned
            try:
                busy = call(self._words, helpers, self._polls, items, args, address, size)
                if busy == WAKE:
                    self._wake(helpers)
                    busy = go_on(self._words, helpers, self._polls)
            finally:
                if busy:
                    self._await(helpers)

    def _start(self) -> int:
        """Start the helpers, as many as the system allows, and return their number."""
        if self._helpers is None:
            for each in (help_out, go_on, waiting.await_helpers):
                each.ready()  # here: nobody waits for a thread that compiles
            self._helpers = 0
            for number in range(1, self.threads):
                sleep = threading.Lock()
                sleep.acquire()
                work = (self._words, number, self._polls, sleep)
                thread = threading.Thread(target=_help, args=work, name=f"sparsegen-{number}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # a limit on threads or memory: fewer helpers do the work
                    break
                self._sleeps.append(sleep)
                self._helpers = number
            weakref.finalize(self, _stop, self._words, self._sleeps)
        return self._helpers

    def _give(self, floats: int) -> None:
        """Give every helper scratch of at least that many floats. Raises MemoryError."""
        helpers = len(self._sleeps)
        if floats and (not self._scratch or len(self._scratch[0]) < floats):
            self._scratch = [scratch(floats) for _ in range(helpers)]
            for number, own in enumerate(self._scratch, 1):
                self._words[line_of(number) + ADDRESS] = own.ctypes.data
                self._words[line_of(number) + SIZE] = floats

    def _wake(self, helpers: int) -> None:
        """Wake the first that many helpers, if they sleep."""
        for number, sleep in enumerate(self._sleeps[:helpers], 1):
            if self._words[line_of(number) + ASLEEP] and sleep.locked():
                sleep.release()

    def _await(self, helpers: int) -> None:
        """Wait for that many helpers, however often it is interrupted: none may write once the caller goes on."""
        interrupted: KeyboardInterrupt | None = None
        while True:
            try:
                while waiting.await_helpers(self._words, helpers, self._polls):
                    time.sleep(NAP)
                break
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted


def _stop(words: Words, sleeps: list[threading.Lock]) -> None:
    words[STOP] = 1
    for sleep in sleeps:
        if sleep.locked():
            sleep.release()


def _after_fork() -> None:
    for pool in list(_pools):
        pool._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
