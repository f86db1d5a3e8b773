"""The Numba backend: every primitive as a kernel compiled for this processor, without a line of another language.

Read `gemm.py` first (the product that everything rests on), then `winograd.py`; `simd.py` is the vocabulary they are
written in, `reading.py` and `writing.py` what happens before and after; `backend.py` puts the primitives together,
`launch.py` cuts work for threads, `threads.py` and `waiting.py` run it in them.
"""

import sys

from .room import IMPORTING, check_room

if "numba" not in sys.modules:
    check_room(IMPORTING, "loading Numba and its kernels")

from .backend import NumbaBackend

__all__ = ["NumbaBackend"]
