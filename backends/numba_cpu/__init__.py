"""The Numba backend: every primitive as a kernel compiled for this processor, without a line of another language.

Read `gemm.py` first, the product that everything rests on, then `winograd.py`. Kernels are written in the vectors of
`simd.py`; `reading.py` gathers and `writing.py` scatters. Each algorithm has one file, with its kernel, its scratch's
layout (`regions.py`) and its launch: `winograd`, `direct`, `depthwise`, `linear`, `norms`, `lookup`, `attention`,
`codebooks`, `copies`. `backend.py` chooses among them, `launch.py` and `items.py` cut work into items, `threads.py`,
`handover.py` and `waiting.py` run them, `jit.py` compiles kernels once for a machine, and `pieces.py` the functions
that they call.
"""

import sys

from .room import IMPORTING, check_room

if "numba" not in sys.modules:
    check_room(IMPORTING, "loading Numba and its kernels")

from .backend import NumbaBackend

__all__ = ["NumbaBackend"]
