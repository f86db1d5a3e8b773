"""The queue of kernels in words of memory that threads share, and short waits for them without sleeping.

A caller *posts* kernels, and its helpers compute them in that order: the number of those posted comes in, the number of
those done goes out. The caller computes, too, when it waits for them (`handover.py`). So helpers compute while Python
prepares the kernels to come, and no thread waits while there is an item left.

Waking a thread that sleeps takes 50 to 150 µs, as long as half the layers of an edit compute, and threads that return
to Python come one by one, each when it gets the GIL. So a helper stays in machine code: it polls for the next kernel,
makes its call, and polls again. It sleeps after a moment without a kernel.

Pairs of words decide who may do what. The first is set before the second is watched (`atomics.py`):

- A thread sets BUSY to a kernel's number, and computes if it is still the next to be DONE. A thread that has found no
  item left clears BUSY; if no other is BUSY with the kernel, it is DONE. So a kernel begins when all threads have left
  the one before.
- The caller finds everything DONE, then waits for all that are BUSY. So no helper reads the arguments of a kernel when
  others take their place.
- A helper sets ASLEEP, then looks for a kernel once more; the caller sets POSTED, then sees who is ASLEEP. So no helper
  sleeps through a kernel: Python wakes it (`threads.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.types import int64

from .arrays import CACHE_LINE, aligned
from .atomics import swap, watched
from .jit import both, inline

LINE = CACHE_LINE // 8
"""int64 words of a cache line. Words that different threads write lie in separate ones."""
POSTED, DONE, STOP = range(0, 3 * LINE, LINE)
"""Places of: the number of kernels that were posted; of those that are done; 1 once the helpers shall end."""
SLOTS = 16
"""Kernels that may be posted and not yet waited for."""
COUNTER, CODE, WANTED, ARGUMENTS = 0, LINE, LINE + 1, 2 * LINE
"""Places in a kernel's slot of: its counter of items; the address of the code that makes its call; how many helpers may
join; its arguments."""
ROOM = 4096
"""The bytes that a kernel's arguments may take."""
SLOT = ARGUMENTS + ROOM // 8
"""Words of a slot."""
FIRST_SLOT = 3 * LINE
"""Place of the first of the slots, which lie one behind the other."""
THREADS = FIRST_SLOT + SLOTS * SLOT
"""Place of the lines of the threads, the caller's first."""
BUSY, ASLEEP, SEEN, ADDRESS, SIZE = range(5)
"""Places in a thread's line of: the number of the kernel that it computes, from 1 on, or 0; 1 while it sleeps; the
number of the kernel that it joined last; the address of its scratch; the size of that in floats."""
POLLS = 20000
"""Polls of a word before a thread sleeps: half a millisecond to one."""
WORDS = int64[::1]
"""Numba's type of the words."""


def words(threads: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Words for that many threads, all 0, from the start of a cache line."""
    return np.asarray(aligned(THREADS + threads * LINE, "int64"))


@both
def line_of(thread: int) -> int:
    """The place of a thread's line; the caller is thread 0."""
    return THREADS + thread * LINE


@inline
def slot_of(number: int) -> int:
    """The place of the slot of the kernel after `number` others."""
    return FIRST_SLOT + number % SLOTS * SLOT


@inline
def post(words: Any, place: int, code: int, helpers: int) -> None:
    """Post the kernel whose counter and arguments are in the slot at `place`, to that many helpers."""
    words[place + CODE] = code
    words[place + WANTED] = helpers
    swap(words, POSTED, words[POSTED] + 1)


@inline
def sleeping(words: Any, helpers: int) -> bool:
    """Whether one of the first that many helpers sleeps."""
    for place in range(THREADS + LINE, THREADS + LINE + helpers * LINE, LINE):
        if watched(words, place + ASLEEP) != 0:
            return True
    return False


@inline
def busy(words: Any, number: int) -> bool:
    """Whether a thread is busy with the kernel of that number; 0: with any."""
    for place in range(THREADS + BUSY, len(words), LINE):
        at = watched(words, place)
        if at != 0 and (number == 0 or at == number):
            return True
    return False
