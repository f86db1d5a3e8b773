"""Arrays for kernels: any NumPy array comes in, one of the type in a kernel's signature comes out.

To Numba, a read-only array and a writable one are of two types. Signatures name the writable type alone, so an array
that a kernel only reads is passed through an alias of its memory that is not marked read-only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..interface import Array, BackendError

CACHE_LINE = 64
"""Bytes."""


def aligned(count: int, dtype: str) -> Array:
    """`count` zeros, flat, from the start of a cache line."""
    size = np.dtype(dtype).itemsize
    raw = np.zeros(count + CACHE_LINE // size, dtype)
    start = -(raw.ctypes.data // size) % (CACHE_LINE // size)
    return raw[start : start + count]


class _Alias:
    """A source for `np.asarray`: an array's memory, not marked read-only."""

    def __init__(self, array: Array) -> None:
        self.array = array  # the alias keeps its memory alive
        interface = array.__array_interface__
        self.__array_interface__: dict[str, Any] = {**interface, "data": (interface["data"][0], False)}


def readable(array: Array) -> Array:
    """An array for a kernel that only reads it: the same memory where it is contiguous, else a contiguous copy."""
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else np.asarray(_Alias(array))


def flat(array: Array) -> Array:
    """`readable`, flattened."""
    return readable(array).reshape(-1)


def writable(array: Array) -> Array:
    """An array for a kernel that writes it, flattened, sharing its memory.

    Raises BackendError where it is not contiguous or is read-only.
    """
    if not array.flags.c_contiguous:
        raise BackendError(
            f"an array of shape {array.shape} is not contiguous, expected C order; use alloc or upload"
        )
    if not array.flags.writeable:
        raise BackendError(
            f"an array of shape {array.shape} is read-only, expected a writable one; use alloc or upload"
        )
    return array.reshape(-1)
