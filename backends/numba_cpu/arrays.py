"""Arrays for kernels: any NumPy array comes in, a flat one of the type in a kernel's signature comes out.

Machine code trusts its arguments, so types and layout are checked here.
"""

from __future__ import annotations

import numpy as np

from ..interface import Array, BackendError
from .queued import settle

CACHE_LINE = 64
"""Bytes."""


def aligned(count: int, dtype: str) -> Array:
    """`count` zeros, flat, from the start of a cache line: as long as a vector of AVX-512, which else lies in two."""
    size = np.dtype(dtype).itemsize
    raw = np.zeros(count + CACHE_LINE // size, dtype)
    start = -(raw.ctypes.data // size) % (CACHE_LINE // size)
    return raw[start : start + count]


def flat(array: Array, dtype: str = "f") -> Array:
    """An array for a kernel that only reads it, flattened: the same memory where it is contiguous, else a copy.

    Raises BackendError where its type is not the one with that character ("f": float32, "i": int32).
    """
    if array.dtype.char != dtype:
        raise _wrong_type(array, dtype)
    if not array.flags.c_contiguous:
        settle()  # it is copied now
    return array.ravel()


def contiguous(array: Array, dtype: str) -> Array:
    """An array for a kernel that only reads it, in its shape: a copy where it is of another type, or not contiguous."""
    if array.dtype.char != dtype or not array.flags.c_contiguous:
        settle()  # it is copied now
    return np.ascontiguousarray(array, dtype)


def writable(array: Array, dtype: str = "f") -> Array:
    """An array for a kernel that writes it, flattened, sharing its memory.

    Raises BackendError where its type is another one, where it is not contiguous or is read-only.
    """
    if array.dtype.char != dtype:
        raise _wrong_type(array, dtype)
    flags = array.flags
    if not flags.c_contiguous:
        raise BackendError(
            f"an array of shape {array.shape} is not contiguous, expected C order; use alloc or upload"
        )
    if not flags.writeable:
        raise BackendError(
            f"an array of shape {array.shape} is read-only, expected a writable one; use alloc or upload"
        )
    return array.ravel()


def _wrong_type(array: Array, dtype: str) -> BackendError:
    return BackendError(
        f"an array of shape {array.shape} is {array.dtype}, expected {np.dtype(dtype)}; use alloc or upload"
    )
