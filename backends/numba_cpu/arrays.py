"""Arrays on their way to kernels: any of NumPy's come in, what a kernel's signature takes comes out.

Numba takes a read-only array for another type than a writable one. Kernels say which arrays they write; for the
others it does not matter, so what is only read is passed on as if it were writable.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..interface import Array, BackendError

CACHE_LINE = 64
"""Bytes."""


def aligned(count: int, dtype: str) -> Array:
    """Zeros, one row that begins with a cache line."""
    size = np.dtype(dtype).itemsize
    raw = np.zeros(count + CACHE_LINE // size, dtype)
    start = -(raw.ctypes.data // size) % (CACHE_LINE // size)
    return raw[start : start + count]


class _Alias:
    """What NumPy makes an array of that shares another's memory, and is not marked read-only."""

    def __init__(self, array: Array) -> None:
        self.array = array  # kept alive by whoever uses its memory
        interface = array.__array_interface__
        self.__array_interface__: dict[str, Any] = {**interface, "data": (interface["data"][0], False)}


def readable(array: Array) -> Array:
    """An array that a kernel only reads, contiguous: the same memory where it is that already, else a copy."""
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else np.asarray(_Alias(array))


def flat(array: Array) -> Array:
    """An array that a kernel only reads, as one row."""
    return readable(array).reshape(-1)


def writable(array: Array) -> Array:
    """An array that a kernel writes, as one row that shares its memory; BackendError where that cannot be."""
    if not array.flags.c_contiguous:
        raise BackendError(f"an array of shape {array.shape} is not contiguous; use alloc or upload")
    if not array.flags.writeable:
        raise BackendError(f"an array of shape {array.shape} is to be written, and is read-only")
    return array.reshape(-1)
