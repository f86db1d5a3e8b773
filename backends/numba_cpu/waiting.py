"""Short waits without sleeping: words of memory that threads share come in, and are polled for a while.

Waking a thread that sleeps takes 50 to 150 µs, as long as half the layers of an edit compute, and threads that return
to Python come one by one, each when it gets the GIL. So a helper stays in machine code: it polls for the next kernel,
makes its call (`handover.py`), and polls again. It sleeps after a moment without a kernel. The caller polls for the
helpers that are still busy.

Two pairs of words decide who may do what, each set before the other is watched (`atomics.py`):

- A helper sets BUSY, then sees whether the kernel is still OPEN; the caller ends OPEN, then waits for all that are
  BUSY. So no helper begins after the caller has found all of them idle.
- A helper sets ASLEEP, then looks for a kernel once more; the caller sets OPEN, then sees who is ASLEEP. So no helper
  sleeps through a kernel: Python wakes it (`threads.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.types import int64

from .arrays import CACHE_LINE, aligned
from .atomics import pause, swap, watched
from .jit import inline, kernel

LINE = CACHE_LINE // 8
"""int64 words of a cache line. Words that different threads write lie in separate ones."""
COUNTER = 0
"""Place of the open kernel's counter of items."""
OPEN, NUMBER, WANTED, CODE = range(LINE, LINE + 4)
"""Places of: the number of the kernel that helpers may join, or 0; the number of the last one; how many helpers it
wants; the address of the code that makes its call."""
STOP = 2 * LINE
"""Place of: 1 once the helpers shall end."""
ARGUMENTS, ROOM = 3 * LINE, 4096
"""Place of the open kernel's arguments, and the bytes that they may take."""
THREADS = ARGUMENTS + ROOM // 8
"""Place of the lines of the threads, the caller's first."""
BUSY, ASLEEP, SEEN, ADDRESS, SIZE = range(5)
"""Places in a thread's line of: 1 while a helper may compute; 1 while it sleeps; the number of the kernel that it
joined last; the address of its scratch; the size of that in floats."""
POLLS = 20000
"""Polls of a word before a thread sleeps: half a millisecond to one."""
WORDS = int64[::1]
"""Numba's type of the words."""


def words(threads: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Words for that many threads, all 0, from the start of a cache line."""
    return np.asarray(aligned(THREADS + threads * LINE, "int64"))


def line_of(thread: int) -> int:
    """The place of a thread's line; the caller is thread 0."""
    return THREADS + thread * LINE


@inline
def begin(words: Any, helpers: int, code: int) -> None:
    """Open a kernel, whose arguments are kept, to that many helpers."""
    words[NUMBER] += 1
    words[WANTED] = helpers
    words[CODE] = code
    swap(words, OPEN, words[NUMBER])


@inline
def sleeping(words: Any, helpers: int) -> bool:
    """Whether one of the first that many helpers sleeps."""
    for place in range(THREADS + LINE, THREADS + LINE + helpers * LINE, LINE):
        if watched(words, place + ASLEEP) != 0:
            return True
    return False


@inline
def end(words: Any, helpers: int, polls: int) -> int:
    """Close a kernel to helpers that have not begun, and poll for the others: how many are busy after `polls` polls."""
    swap(words, OPEN, 0)
    place, last = THREADS + LINE, THREADS + helpers * LINE
    while place <= last:
        if watched(words, place + BUSY) == 0:
            place += LINE
        elif polls == 0:
            return (last - place) // LINE + 1
        else:
            polls -= 1
            pause()
    return 0


@kernel(int64(WORDS, int64, int64))
def await_helpers(words: Any, helpers: int, polls: int) -> int:
    """`end`, for Python."""
    return end(words, helpers, polls)
