"""Arrays cut from mappings of memory: a shape comes in, an array comes out whose memory serves again once it is freed.

Where the mappings come from and when they go back is for the allocators built on this, `own_store.py` and `store.py`.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from sparsegen.backends.interface import Array, Host

from ..errors import SessionError
from .allocator import Allocator
from .chunks import Chunk, block_bytes
from .turn import NotCopied, Turn


class MappedArrays(NotCopied, Allocator):
    """An allocator of arrays in main memory, cut from chunks; safe to use from several threads.

    Parameters
    ----------
    turn
        The turn of the sessions that use it; None: a new one.
    """

    def __init__(self, turn: Turn | None = None) -> None:
        self._lock = threading.RLock()
        self._given_back: deque[tuple[int, Chunk, int]] = deque()
        self._scratch: dict[tuple[str, tuple[int, ...]], Host] = {}
        self.conditioned = {}
        self._shared: dict[str, Array] = {}
        self.ram_bytes = 0
        """RAM of all chunks, what is kept for reuse included."""
        self._closed = False
        self.turn = turn or Turn()
        """The turn of all sessions that share the canvases of `shared`."""

    def allocate(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        """An array of `shape` and undefined value.

        Raises
        ------
        SessionError, MemoryError
            The disk or the RAM is full, or the allocator is closed; arrays allocated before stay valid.
        """
        kind = np.dtype(dtype)
        count = math.prod(shape)
        size = block_bytes(count * kind.itemsize)
        with self._lock:
            if self._closed:
                raise SessionError("the session is closed; open a new one")
            self._take_back()
            chunk, at = self._place(size)
        memory = (ctypes.c_char * size).from_buffer(chunk.mapping, at)
        # every view of the array keeps `memory` alive, and with it the block
        weakref.finalize(memory, self._give_back, size, chunk, at).atexit = False
        return np.frombuffer(memoryview(memory), kind, count).reshape(tuple(shape))

    def adopt(self, host: Host) -> Array:
        kept = self.allocate(host.shape, dtype=str(host.dtype))
        kept[...] = host
        return kept

    def host(self, array: Array) -> Host:
        return np.asarray(array)

    def scratch(self, name: str, shape: Sequence[int]) -> Array:
        """The float32 array of that name and shape, in RAM; it does not count towards the budget."""
        with self._lock:
            key = (name, tuple(shape))
            if key not in self._scratch:
                self._scratch[key] = np.empty(tuple(shape), np.float32)
            return self._scratch[key]

    @property
    def scratch_bytes(self) -> int:
        """Memory of all arrays that `scratch` returned."""
        with self._lock:
            return sum(int(array.nbytes) for array in self._scratch.values())

    def shared(self, name: str, shape: Sequence[int]) -> Array:
        """The float32 array of that name, the same for every caller; another shape replaces it."""
        with self._lock:
            if name in self._shared and self._shared[name].shape != tuple(shape):
                del self._shared[name]
            if name not in self._shared:
                self._shared[name] = self.allocate(shape)
            return self._shared[name]

    @property
    def shared_arrays(self) -> Mapping[str, Array]:
        return MappingProxyType(self._shared)

    def close(self) -> None:
        """Stop allocating; memory and disk space are freed as soon as the last array is."""
        with self._lock:
            self._closed = True
            self._shared.clear()
            self._given_back.clear()
            self._forget()

    # -- blocks, under the lock ------------------------------------------------------------------------------

    @abstractmethod
    def _place(self, size: int) -> tuple[Chunk, int]:
        """A block of `size` bytes, whole pages: its chunk, and its offset there. Raises as `allocate` does."""

    def _reuse(self, size: int, chunk: Chunk, at: int) -> None:
        """Keep a freed block for the next arrays."""
        chunk.join(at, size)

    def _forget(self) -> None:
        """Let go of all chunks, which live as long as their arrays do."""
        self.ram_bytes = 0

    def _give_back(self, size: int, chunk: Chunk, at: int) -> None:
        # a finalizer runs at any moment in any thread, also in one that holds the lock: it only queues the block
        if not self._closed:
            self._given_back.append((size, chunk, at))

    def _take_back(self) -> None:
        """Make the blocks that were given back available."""
        while self._given_back:
            self._reuse(*self._given_back.popleft())
