"""Room in memory: a number of bytes comes in; MemoryError is raised where the system cannot allocate them.

Checked before Numba and LLVM are loaded, and before kernels are: out of memory, they end the process or hang. The
numbers are address space, which `ulimit -v` limits; little of it is ever touched.
"""

from __future__ import annotations

import mmap

IMPORTING = 370 << 20
"""Bytes that importing Numba and LLVM and then loading the kernels takes at most."""
LOADING = 190 << 20
"""Bytes that loading the kernels from their files takes at most."""
COMPILING = 1 << 28
"""Bytes that compiling them takes at most, beside those of loading them."""


def check_room(size: int, purpose: str) -> None:
    """Raise MemoryError where `size` bytes cannot be allocated."""
    try:
        mmap.mmap(-1, size).close()
    except OSError:
        raise MemoryError(f"{purpose} takes {size / 1e6:.0f} MB") from None
