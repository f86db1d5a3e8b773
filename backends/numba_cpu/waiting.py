"""Short waits without sleeping: a few words of memory that threads share come in; who waits looks at them for a while.

To wake a thread that sleeps takes 50 to 150 µs, as long as half the layers of an edit compute. So a helper that is done
looks out for the next kernel for a moment before it sleeps, and the caller for the last helper. Both look without the
GIL, and nothing is said while anybody holds it: the words change inside kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from .arrays import CACHE_LINE, aligned
from .atomics import pause, watched, word_set
from .jit import kernel

LINE = CACHE_LINE // 8
"""int64 words of a cache line: each of those below has one of its own."""
COUNTER, NUMBER, READY, BUSY = 0, LINE, 2 * LINE, 3 * LINE
"""The watched kernel's counter of items; its number, of all that were watched; whether any was; from BUSY on, a line
for each helper: whether it computes for that kernel.
"""
LOOKS = 20000
"""Looks at a word before a thread sleeps: half a millisecond or one."""


def words(helpers: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Words for so many helpers, from the start of a cache line."""
    return np.asarray(aligned(BUSY + helpers * LINE, "int64"))


@kernel(types.int64(types.int64[::1], types.int64, types.int64, types.int64))
def await_kernel(shared: Any, helper: int, seen: int, looks: int) -> Any:
    """A helper has nothing to do: the number, not `seen`, of a watched kernel that has begun; -1: none for a while."""
    word_set(shared, BUSY + helper * LINE, 0)
    for _ in range(looks):
        if watched(shared, COUNTER) > 0:  # its caller has taken an item, and holds the GIL no more
            number = watched(shared, NUMBER)
            if number != seen:
                return number
        pause()
    return -1


@kernel(types.void(types.int64[::1], types.int64))
def await_helpers(shared: Any, looks: int) -> None:
    """Return when no helper computes for the watched kernel, or after a while."""
    busy = BUSY
    for _ in range(looks):
        while busy < len(shared) and watched(shared, busy) == 0:
            busy += LINE
        if busy >= len(shared):
            return
        pause()
