"""Threads: a kernel comes in as a call; several threads make it, and share its items until none is left.

A call is waited for (`Pool.run`), or queued (`Pool.queue`): then helpers compute while Python goes on, and the caller
joins them when it waits.

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
from .handover import QUEUE, WAKE, drain, help_out
from .queued import queue, set_queue, settle
from .waiting import ADDRESS, ASLEEP, SIZE, SLOTS, STOP, line_of

Scratch = np.ndarray[Any, np.dtype[np.float32]]
Words = np.ndarray[Any, np.dtype[np.int64]]
Call = Callable[..., int]
"""The machine code of a kernel that is `handover.shared`."""

NAP = 1e-4
"""Seconds between two looks at helpers that are busy for longer than they are polled for."""
PATIENCE = 1.0
"""Seconds that a caller waits for the helpers, before it computes without: another caller may wait for it meanwhile."""


def scratch(count: int) -> Scratch:
    """That many uninitialised floats, from the start of a cache line."""
    return np.asarray(aligned(count, "float32"))


class _Local(threading.local):
    """A thread's own words and scratch, kept from one kernel to the next."""

    def __init__(self) -> None:
        self.words = waiting.words(1)
        self.scratch = scratch(0)
        self.address = 0

    def lacks(self, floats: int) -> bool:
        """Whether there is less scratch than that many floats."""
        return len(self.scratch) < floats

    def room(self, floats: int) -> tuple[int, int]:
        """The address and the size of scratch of at least that many floats."""
        if self.lacks(floats):
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
    threads than there are cores. The kernels of one caller at a time have the helpers; sessions in several threads take
    turns.
    """

    def __init__(self, threads: int, *, watchful: bool = False) -> None:
        self.threads = threads
        self._polls = waiting.POLLS if watchful else 0
        self._forget()
        _pools.add(self)

    def _forget(self) -> None:
        """Reset to a pool in which no thread runs, as in a forked child."""
        self._turn = threading.RLock()
        """Held by the caller whose kernels have the helpers."""
        self._waiting: list[None] = []
        """As many as callers wait for their turn."""
        self._kept: list[Any] = []
        """The arguments of queued kernels: nobody else may keep their arrays."""
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
        settle()
        if min(threads, self.threads) < 2 or not self._take_turn():
            address, size = _local.room(floats)
            call(_local.words, 0, 0, items, args, address, size)
            return
        busy = WAKE  # until the call has returned
        try:
            helpers = min(threads - 1, self._start())
            address, size = self._room(floats)
            busy = call(self._words, helpers, self._polls, items, args, address, size)
            if busy == WAKE:
                self._wake(helpers)
        finally:
            try:
                if busy:
                    self._drain()
            finally:
                self._turn.release()

    def queue(self, call: Call, items: int, args: tuple[Any, ...], floats: int, threads: int) -> None:
        """Make a kernel's call in up to `threads` threads, after those that this thread has queued; wait for none.

        Up to `waiting.SLOTS` are queued before it waits for all, and none while another caller waits for the helpers.
        """
        if queue() is not self:
            settle()
            if min(threads, self.threads) < 2 or not self._take_turn():
                self.run(call, items, args, floats, 1)
                return
            set_queue(self)
        try:
            helpers = min(max(1, threads - 1), self._start())  # 0: the call computes
            address, size = self._room(floats)
            self._kept.append(args)
            if call(self._words, helpers, QUEUE, items, args, address, size) == WAKE:
                self._wake(helpers)
        except BaseException:
            self.finish()
            raise
        if len(self._kept) == SLOTS or self._waiting:
            self.finish()

    def finish(self) -> None:
        """Compute with the helpers until all that this thread has queued is computed, and let others take turns."""
        try:
            self._drain()
        finally:
            self._kept.clear()
            set_queue(None)
            self._turn.release()

    def _take_turn(self) -> bool:
        """Take the turn; False: it did not come."""
        if self._turn.acquire(blocking=False):
            return True
        self._waiting.append(None)
        try:
            return self._turn.acquire(timeout=PATIENCE)
        finally:
            self._waiting.pop()

    def _room(self, floats: int) -> tuple[int, int]:
        """Give every thread scratch of that many floats; the address and the size of the caller's. Raises MemoryError.

        Another place for it means that kernels in the old one have to end first.
        """
        if self._kept and (_local.lacks(floats) or self._lack(floats)):
            self._drain()
            self._kept.clear()
        self._give(floats)
        return _local.room(floats)

    def _start(self) -> int:
        """Start the helpers, as many as the system allows, and return their number."""
        if self._helpers is None:
            for each in (help_out, drain):
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

    def _lack(self, floats: int) -> bool:
        """Whether helpers have less scratch than that many floats."""
        return floats > 0 and (not self._scratch or len(self._scratch[0]) < floats)

    def _give(self, floats: int) -> None:
        """Give every helper scratch of at least that many floats. Raises MemoryError."""
        helpers = len(self._sleeps)
        if self._lack(floats):
            self._scratch = [scratch(floats) for _ in range(helpers)]
            for number, own in enumerate(self._scratch, 1):
                self._words[line_of(number) + ADDRESS] = own.ctypes.data
                self._words[line_of(number) + SIZE] = floats

    def _wake(self, helpers: int) -> None:
        """Wake the first that many helpers, if they sleep."""
        for number, sleep in enumerate(self._sleeps[:helpers], 1):
            if self._words[line_of(number) + ASLEEP] and sleep.locked():
                sleep.release()

    def _drain(self) -> None:
        """Compute what was posted, with the helpers, and wait for them, however often it is interrupted.

        None may write once the caller goes on.
        """
        interrupted: KeyboardInterrupt | None = None
        while True:
            try:
                while drain.ready()(self._words, self._polls):  # called, it would wait for the queue
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
