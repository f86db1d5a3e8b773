"""Short waits without sleeping: words of memory that threads share come in, and are polled for a while.

Waking a thread that sleeps takes 50 to 150 µs, as long as half the layers of an edit compute. So a helper that has
finished polls for the next kernel for a moment before it sleeps, and the caller polls for the last helper. Both sides
poll with the GIL released. A helper joins a kernel only after its counter has moved, which happens inside the kernel,
when its caller has released the GIL too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.types import int64, void

from .arrays import CACHE_LINE, aligned
from .atomics import pause, watched, word_set
from .jit import kernel

LINE = CACHE_LINE // 8
"""int64 words of a cache line; each word below lies in a separate one."""
COUNTER, NUMBER, READY, BUSY = 0, LINE, 2 * LINE, 3 * LINE
"""Places of the words: the watched kernel's counter of items; its number among all watched kernels; 1 once a kernel was
watched; from BUSY on, a line for each helper: 1 while it computes for that kernel.
"""
POLLS = 20000
"""Polls of a word before a thread sleeps: half a millisecond to one."""


def words(helpers: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Words for that many helpers, all 0, from the start of a cache line."""
    return np.asarray(aligned(BUSY + helpers * LINE, "int64"))


@kernel(int64(int64[::1], int64, int64, int64))
def await_kernel(shared: Any, helper: int, seen: int, polls: int) -> Any:
    """Poll, in an idle helper, for a watched kernel that has begun: its number, other than `seen`; -1: none came."""
    word_set(shared, BUSY + helper * LINE, 0)
    for _ in range(polls):
        if watched(shared, COUNTER) > 0:  # the caller has taken an item, with the GIL released
            number = watched(shared, NUMBER)
            if number != seen:
                return number
        pause()
    return -1


@kernel(void(int64[::1], int64))
def await_helpers(shared: Any, polls: int) -> None:
    """Poll until no helper computes for the watched kernel, at most `polls` times."""
    busy = BUSY
    for _ in range(polls):
        while busy < len(shared) and watched(shared, busy) == 0:
            busy += LINE
        if busy >= len(shared):
            return
        pause()
