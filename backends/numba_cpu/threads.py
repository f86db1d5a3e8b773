"""Threads: a kernel comes in as a call; several threads make it, and share its items until none is left.

They are Python threads, and kernels run with the GIL released. So any number of sessions may compute at once in as many
Python threads, where Numba's pool aborts the process, and nothing depends on OpenMP, which does not survive a fork.
After a fork the child starts new threads.
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
    """A thread's scratch, kept from one kernel to the next."""

    floats: Scratch = np.zeros(0, np.float32)


_local = _Local()


def scratch(count: int) -> Scratch:
    """At least `count` uninitialised floats that belong to this thread, from the start of a cache line."""
    if len(_local.floats) < count:
        _local.floats = aligned(count, "float32")
    return _local.floats


class _Job:
    """One kernel call that several threads make, until it is closed."""

    def __init__(self, call: Callable[[Scratch], None], floats: int, words: Words | None) -> None:
        self._call: Callable[[Scratch], None] | None = call
        self._floats = floats
        self._words = words
        """The pool's words, if the kernel is watched: they show which helpers compute for it."""
        self.number = 0 if words is None else int(words[waiting.NUMBER])
        """The kernel's number among all watched ones; 0: it is not watched."""
        self.failure: BaseException | None = None
        """The exception of a helper that failed."""
        self._lock = threading.Lock()
        self._closed, self._running = False, 0
        self._news: SimpleQueue[None] = SimpleQueue()
        """An entry for each helper that has finished."""

    def help(self, number: int) -> None:
        """Make the call in the helper of that number; return at once where the job is closed."""
        with self._lock:
            call = self._call
            if self._closed or call is None:
                return
            self._running += 1
            if self._words is not None:
                self._words[waiting.BUSY + number * waiting.LINE] = 1
        try:
            call(scratch(self._floats))
        except BaseException as error:  # such as a MemoryError: raised again in the caller
            self.failure = error
        with self._lock:
            self._running -= 1
        self._news.put(None)

    def close(self) -> None:
        """Let no more helpers begin, and wait for those that have; may be called again after an interrupt."""
        with self._lock:
            self._closed = True
        if self._words is not None and self._running:
            waiting.await_helpers(self._words, waiting.POLLS)
        # a running helper puts an entry after it has left the count, so this never waits in vain
        while self._running:
            self._news.get()
        # the job stays in the queue of a busy helper, and must not keep canvases alive there
        self._call = None


def _work(jobs: SimpleQueue[_Job | None], words: Words, number: int) -> None:
    """A helper's loop: poll for a watched kernel for a moment, then sleep until there is a job."""
    seen = 0
    while True:
        begun = waiting.await_kernel(words, number, seen, waiting.POLLS) if words[waiting.READY] else -1
        try:
            job = jobs.get() if begun < 0 else jobs.get_nowait()
        except Empty:  # other helpers took that kernel's jobs
            seen = begun
            continue
        if job is None:
            return
        seen = max(seen, begun, job.number)
        job.help(number)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """Up to `threads` threads, one of them the caller's; the helpers start with the first job that needs them.

    With `watchful`, helpers poll for the next kernel for a moment before they sleep (`waiting.py`). It suits no more
    threads than there are cores.
    """

    def __init__(self, threads: int, *, watchful: bool = False) -> None:
        self.threads = threads
        self._watchful = watchful
        self._forget()
        _pools.add(self)

    def _forget(self) -> None:
        """Reset to a pool in which no thread runs, as in a forked child."""
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._words = waiting.words(self.threads - 1)
        self._watched = threading.Lock()
        """Held while a kernel is watched, which one at a time can be."""
        self._helpers: int | None = None
        """Helpers that were started; None: not yet tried."""

    def _start(self) -> int:
        """Start the helpers, as many as the system allows, and return their number."""
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
                    except RuntimeError:  # a limit on threads or memory: fewer helpers do the work
                        break
                    self._helpers = number
                weakref.finalize(self, _stop, self._jobs, self._helpers)
            return self._helpers

    def count(self, call: Callable[[Words, Scratch], None], floats: int, threads: int) -> None:
        """`run` a kernel, `call(counter, scratch)`, that takes the numbers of its items from an int64 counter."""
        if min(threads, self.threads) < 2:  # no helper to wait for
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
            words[waiting.COUNTER] = 0  # over: no helper joins any more
            self._watched.release()

    def run(
        self, call: Callable[[Scratch], None], floats: int, threads: int, words: Words | None = None
    ) -> None:
        """`call(scratch)` in up to `threads` threads at once, each with `floats` floats of scratch; wait for all.

        The calls share a counter of items, so their number does not matter. When the caller's call returns, no item is
        left: a helper that has not begun by then is not waited for. `words` are the pool's, for a watched kernel.
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
        while True:  # however often it is interrupted: no helper may write once the caller goes on
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
