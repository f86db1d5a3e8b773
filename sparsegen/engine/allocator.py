"""Allocators of the arrays that outlive a run: from the backend's memory, or from a `Store` of RAM and mapped files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from sparsegen.backends.interface import Array, Backend, Host

from .turn import Turn


class Allocator(ABC):
    """A source of arrays of undefined value. Users of one allocator may share memory that every run overwrites."""

    turn: Turn
    """The turn of every session that uses this allocator: its runs must not overlap."""
    conditioned: dict[str, tuple[Hashable, tuple[Array, ...]]]
    """Path -> a condition, and the arrays that a layer computed of it alone (`Run.once_per_condition`)."""

    @abstractmethod
    def allocate(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        """An array of `shape` and undefined value, for a canvas or tiles of one. Raises SessionError: no room."""

    @abstractmethod
    def adopt(self, host: Host) -> Array:
        """An array with the values and the type of a host array, which it may take over. Raises SessionError."""

    @abstractmethod
    def host(self, array: Array) -> Host:
        """The values of an array, to be read before the array is written again."""

    @abstractmethod
    def scratch(self, name: str, shape: Sequence[int]) -> Array:
        """The float32 array of that name and shape, the same for every caller; it counts towards no budget."""

    @property
    @abstractmethod
    def scratch_bytes(self) -> int:
        """Memory of all arrays that `scratch` returned."""

    @abstractmethod
    def shared(self, name: str, shape: Sequence[int]) -> Array:
        """The float32 array of that name, the same for every caller; another shape replaces it."""

    @property
    @abstractmethod
    def shared_arrays(self) -> Mapping[str, Array]:
        """Name -> array that `shared` returned; the mapping follows later calls."""

    @property
    def shared_bytes(self) -> int:
        """Memory of all shared arrays."""
        return sum(int(array.nbytes) for array in list(self.shared_arrays.values()))

    def check_room(self, blocks: Sequence[int], *, released: int = 0) -> None:
        """Raise SessionError if arrays of these sizes in bytes do not fit after `released` bytes are freed."""
        return None

    def fresh(self) -> Allocator:
        """An allocator of the same turn without shared arrays; this one, where sessions share it."""
        return self

    def trim(self) -> None:
        """Give back to the system what nobody uses, as far as it is kept for reuse."""
        return None

    def place_for_tiles(self, canvas: Array, count: int) -> Array | None:
        """An array for a copy of `count` tiles of a canvas; None: the backend finds one."""
        return None


class BackendAllocator(Allocator):
    """An allocator of the backend's arrays, for one session."""

    def __init__(self, backend: Backend, *, turn: Turn | None = None) -> None:
        self.turn = turn or Turn()
        self._backend = backend
        self._scratch: dict[tuple[str, tuple[int, ...]], Array] = {}
        self._shared: dict[str, Array] = {}
        self.conditioned = {}

    def fresh(self) -> Allocator:
        return BackendAllocator(self._backend, turn=self.turn)

    def allocate(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        return self._backend.alloc(shape, dtype=dtype)

    def adopt(self, host: Host) -> Array:
        return uploaded(self._backend, host)

    def host(self, array: Array) -> Host:
        return self._backend.download(array)

    def scratch(self, name: str, shape: Sequence[int]) -> Array:
        key = (name, tuple(shape))
        if key not in self._scratch:
            self._scratch[key] = self._backend.alloc(shape)
        return self._scratch[key]

    @property
    def scratch_bytes(self) -> int:
        return sum(int(array.nbytes) for array in self._scratch.values())

    def shared(self, name: str, shape: Sequence[int]) -> Array:
        if name not in self._shared or self._shared[name].shape != tuple(shape):
            self._shared[name] = self._backend.alloc(shape)
        return self._shared[name]

    @property
    def shared_arrays(self) -> Mapping[str, Array]:
        return self._shared


def uploaded(backend: Backend, host: Host) -> Array:
    """An array of the backend with the values and the type of a host array of float16, float32, float64 or int32."""
    if host.dtype in (
        np.float16,
        np.float64,
    ):  # `upload` would make float32 of it; as 32-bit words, its bits stay
        return backend.upload(host.view(np.int32)).view(host.dtype)
    return backend.upload(host)
