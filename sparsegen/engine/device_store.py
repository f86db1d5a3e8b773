"""Memory for canvases on a device: arrays come from its own memory first, then from main memory that it reaches.

A diffusion session keeps the canvases of every step, which may not fit on a card. Those beyond its memory lie in main
memory at fixed addresses, and kernels read and write them there, over the bus. An edit touches only the tiles around
it: that moves fewer bytes than fetching the next step's canvases whole while this one computes. With float16 storage
only these tiles are widened into the device's memory, and everything else is computed there.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from sparsegen.backends.interface import Array, Backend, Host

from ..errors import InputError, SessionError
from .allocator import Allocator, BackendAllocator
from .store import Store, parse_size
from .turn import NotCopied, Turn


class DeviceStore(NotCopied, Allocator):
    """An allocator of a device's arrays, safe to use from several threads.

    Parameters
    ----------
    backend
        A backend whose arrays do not lie in main memory.
    budget
        Bytes of main memory for what the device has no room for, or text such as "16GB"; None: no limit.

    Raises
    ------
    InputError
        The budget is not an amount of memory.
    """

    not_copied = "make another"

    def __init__(self, backend: Backend, budget: int | str | None = None) -> None:
        self.budget = parse_size(budget)
        self._backend = backend
        self._plain = BackendAllocator(backend)
        self.conditioned = {}
        self.turn = Turn()
        self._lock = threading.Lock()
        self._shared: dict[str, Array] = {}
        self.device_bytes = 0
        """Device memory of the arrays that live."""
        self.ram_bytes = 0
        """Main memory of the arrays that live."""
        self._closed = False

    def __repr__(self) -> str:
        return f"<DeviceStore: {self.device_bytes / 1e6:.1f} MB on the device, {self.ram_bytes / 1e6:.1f} MB in RAM>"

    def allocate(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        """An array of `shape` and undefined value. Raises SessionError: there is no room, or the store is closed."""
        if self._closed:
            raise SessionError("the session is closed; open a new one")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        on_device = size <= self._backend.memory_left()
        if not on_device and self.budget is not None and self.ram_bytes + size > self.budget:
            raise SessionError(
                f"the caches need another {size / 1e6:.1f} MB: the device has no room for them, and RAM is limited to "
                f"{self.budget / 1e9:.2f} GB; give more RAM, fewer steps, or storage float16"
            )
        make = self._backend.alloc if on_device else self._backend.alloc_in_ram
        array = make(shape, dtype=dtype)
        self._count(size, on_device)
        weakref.finalize(array, self._count, -size, on_device).atexit = False
        return array

    def _count(self, size: int, on_device: bool) -> None:
        if on_device:
            self.device_bytes += size
        else:
            self.ram_bytes += size

    def scratch(self, name: str, shape: Sequence[int]) -> Array:
        return self._plain.scratch(name, shape)

    @property
    def scratch_bytes(self) -> int:
        return self._plain.scratch_bytes

    def shared(self, name: str, shape: Sequence[int]) -> Array:
        with self._lock:
            if name not in self._shared or self._shared[name].shape != tuple(shape):
                self._shared[name] = self._backend.alloc(shape)
            return self._shared[name]

    @property
    def shared_arrays(self) -> Mapping[str, Array]:
        return MappingProxyType(self._shared)

    def adopt(self, host: Host) -> Array:
        kept = self.allocate(host.shape, dtype=str(host.dtype))
        self._backend.copy_arrays([(kept, self._plain.adopt(host))])
        return kept

    def host(self, array: Array) -> Host:
        return self._backend.download(array)

    def ram_of(self, blocks: Sequence[int]) -> int:
        """The bytes of blocks of these sizes that lie in memory: all, on the device or in RAM."""
        return sum(blocks)

    def journals_on_disk(self, journals: int, *, in_ram: int) -> int:
        """Nothing goes to a disk."""
        return 0

    def check_room(self, blocks: Sequence[int], *, released: int = 0) -> None:
        needed, left = sum(blocks) - released, self._backend.memory_left()
        if self.budget is not None and needed > left + self.budget - self.ram_bytes:
            raise SessionError(
                f"the caches need {needed / 1e9:.2f} GB: {left / 1e9:.2f} GB are free on the device, and RAM is "
                f"limited to {self.budget / 1e9:.2f} GB; give more RAM, fewer steps, or storage float16"
            )

    def disk_free(self) -> int:
        """Nothing goes to a disk."""
        return 0

    def drop_pages(self) -> None:
        """Nothing lies in pages of a file."""

    def close(self) -> None:
        """Stop allocating; memory is freed as soon as the last array is."""
        self._closed = True
        self._shared.clear()


def open_store(
    backend: Backend, ram: int | str | None = None, folder: str | os.PathLike[str] | None = None
) -> Store | DeviceStore:
    """The store of a backend: `Store(ram, folder)` in main memory, or a `DeviceStore`. Raises InputError."""
    if backend.in_main_memory:
        return Store(ram, folder)
    if not backend.reaches_ram:
        raise InputError(
            f"backend {backend.name!r} has no room for the canvases of many steps, expected one that computes in main "
            "memory or reaches it: choose numba, reference or cupy"
        )
    if folder is not None:
        raise InputError(f"backend {backend.name!r} keeps no files; omit `folder=`")
    return DeviceStore(backend, ram)
