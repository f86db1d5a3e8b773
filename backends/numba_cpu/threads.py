"""Threads: a kernel and its items come in; several threads take items until none is left.

The threads are Python's own, and kernels run without the GIL. So any number of sessions may compute at once in as many
Python threads (Numba's own pool aborts the process then), and nothing depends on OpenMP, which does not survive a fork.
After a fork the child starts threads of its own.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from . import waiting
from .arrays import aligned

Scratch = np.ndarray[Any, np.dtype[np.float32]]
Words = np.ndarray[Any, np.dtype[np.int64]]


class _Local(threading.local):
    """Each thread's scratch memory, kept from one kernel to the next."""

    floats: Scratch = np.zeros(0, np.float32)


_local = _Local()


def scratch(count: int) -> Scratch:
    """At least `count` floats of this thread's own, of no particular value, from the start of a cache line."""
    if len(_local.floats) < count:
        _local.floats = aligned(count, "float32")
    return _local.floats


class _Job:
    """One kernel call that several threads make, until it is closed."""

    def __init__(self, call: Callable[[Scratch], None], floats: int, words: Words | None) -> None:
        self._call: Callable[[Scratch], None] | None = call
        self._floats = floats
        self._words = words
        """Of a kernel that is watched: what says who computes for it."""
        self.number = 0 if words is None else int(words[waiting.NUMBER])
        """Of all that were watched; 0: it is not."""
        self.failure: BaseException | None = None
        """What a helper failed with."""
        self._lock = threading.Lock()
        self._closed, self._running = False, 0
        self._news: SimpleQueue[None] = SimpleQueue()
        """An entry after each helper that is done with it."""

    def help(self, number: int) -> None:
        """Take items until none is left, in the helper of that number; nothing once the job is closed."""
        with self._lock:
            call = self._call
            if self._closed or call is None:
                return
            self._running += 1
            if self._words is not None:
                self._words[waiting.BUSY + number * waiting.LINE] = 1
        try:
            call(scratch(self._floats))
        except BaseException as error:  # a MemoryError, say: it is raised where the job was given
            self.failure = error
        with self._lock:
            self._running -= 1
        self._news.put(None)

    def close(self) -> None:
        """Let nobody begin any more, and wait for those who have; may be called again where it was interrupted."""
        with self._lock:
            self._closed = True
        if self._words is not None and self._running:
            waiting.await_helpers(self._words, waiting.LOOKS)
        # whoever runs will put an entry after it is counted out, so this never waits for nobody
        while self._running:
            self._news.get()
        # a helper that is busy elsewhere has this job in its queue, and needs no canvas for it
        self._call = None


def _work(jobs: SimpleQueue[_Job | None], words: Words, number: int) -> None:
    """What a helper does all its life: look out for a watched kernel for a moment, then sleep until there is work."""
    seen = 0
    while True:
        begun = waiting.await_kernel(words, number, seen, waiting.LOOKS) if words[waiting.READY] else -1
        try:
            job = jobs.get() if begun < 0 else jobs.get_nowait()
        except Empty:  # that kernel needs no more helpers
            seen = begun
            continue
        if job is None:
            return
        seen = max(seen, begun, job.number)
        job.help(number)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """Up to `threads` threads, the caller's among them; the others start with the first job that needs them.

    With `watchful`, helpers look out for the next kernel for a moment before they sleep (`waiting.py`): for no more
    threads than there are cores.
    """

    def __init__(self, threads: int, *, watchful: bool = False) -> None:
        self.threads = threads
        self._watchful = watchful
        self._forget()
        _pools.add(self)

    def _forget(self) -> None:
        """As new: no thread runs (what a forked child finds)."""
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._words = waiting.words(self.threads - 1)
        self._watched = threading.Lock()
        """Held while a kernel is watched: one at a time."""
        self._helpers: int | None = None
        """Threads that were started."""

    def _start(self) -> int:
        """How many helpers there are; those that the system has no room for are done without."""
        with self._lock:
            if self._helpers is None:
                self._helpers = 0
                for number in range(1, self.threads):
                    work = (self._jobs, self._words, number - 1)
                    thread = threading.Thread(
                        target=_work, args=work, name=f"sparsegen-{number}", daemon=True
                    )
                    try:
                        thread.start()
                    except RuntimeError:  # a limit on threads or memory: those that run do all the work
                        break
                    self._helpers = number
                weakref.finalize(self, _stop, self._jobs, self._helpers)
            return self._helpers

    def count(self, call: Callable[[Words, Scratch], None], floats: int, threads: int) -> None:
        """`run` a kernel, `call(counter, scratch)`, that takes the numbers of its items from an int64 counter."""
        if min(threads, self.threads) < 2:  # nobody to wait for
            call(np.zeros(1, np.int64), scratch(floats))
            return
        if not (self._watchful and self._watched.acquire(blocking=False)):
            self.run(partial(call, np.zeros(1, np.int64)), floats, threads)
            return
        try:
            words = self._words
            words[waiting.COUNTER] = 0
            words[waiting.NUMBER] += 1
            words[waiting.READY] = 1
            counter = words[waiting.COUNTER : waiting.COUNTER + 1]
            self.run(partial(call, counter), floats, threads, words)
        finally:
            words[waiting.COUNTER] = 0  # over: nobody comes any more
            self._watched.release()

    def run(
        self, call: Callable[[Scratch], None], floats: int, threads: int, words: Words | None = None
    ) -> None:
        """`call(scratch)` in up to `threads` threads at once, each with `floats` floats of scratch; wait for all.

        The call shares a counter of items with its copies, so it does not matter how many there are. When the caller's
        own returns, no item is left: a helper that another session keeps busy until then is not waited for. `words`
        are those by which helpers know of it.
        """
        job = _Job(call, floats, words)
        failure: BaseException | None = None
        try:
            helpers = min(threads, self.threads) - 1
            if helpers > 0:
                for _ in range(min(helpers, self._start())):
                    self._jobs.put(job)
            call(scratch(floats))
        except BaseException as error:
            failure = error
        while True:  # however often it is interrupted: nobody may still write when the caller goes on
            try:
                job.close()
                break
            except KeyboardInterrupt as error:
                failure = failure or error
        failure = failure or job.failure
        if failure is not None:
            raise failure


def _stop(jobs: SimpleQueue[_Job | None], threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)


def _after_fork() -> None:
    for pool in list(_pools):
        pool._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
