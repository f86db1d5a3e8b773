"""A device: arrays, copies, launches and recorded graphs. NVIDIA's is CuPy's, the tests have one on the CPU.

Everything that the backend asks of CUDA goes through these methods, so its Python is tested where there is no card.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from ..interface import Array, Host

Fetched: TypeAlias = "Callable[[], Host]"
"""A queued copy to the host: called, it waits for the copy unless this thread has waited since, and returns it."""


class Graph(ABC):
    """Launches that were recorded, to be queued again with the same arguments by one call."""

    @abstractmethod
    def launch(self) -> None:
        """Queue them."""


class Device(ABC):
    """One device. Threads may use it at once; what they queue runs in the order of their calls."""

    name: str
    """What it is, for people: "NVIDIA H100 80GB HBM3"."""
    xp: Any
    """The module of its arrays, with NumPy's functions."""
    multiprocessors: int
    """How many blocks run at once, at least: a grid has some multiple of it where work is shared out."""

    @abstractmethod
    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """An array of zeros."""

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """An array of undefined values."""

    @abstractmethod
    def in_ram(self, shape: Sequence[int], dtype: Any) -> Array:
        """An array of undefined values in main memory, pinned, which kernels reach at its address over the bus."""

    @abstractmethod
    def memory_left(self) -> float:
        """Bytes that arrays may still take on the device."""

    @abstractmethod
    def upload(self, host: Host) -> Array:
        """A copy of a host array, of its type. Does not wait: the host array may change at once."""

    @abstractmethod
    def write(self, array: Array, host: Host) -> None:
        """Copy a host array into an array of as many bytes. Does not wait, as `upload`."""

    @abstractmethod
    def fetch(self, array: Array) -> Fetched:
        """Queue a copy of an array to the host. One wait serves all copies that were queued before it."""

    def download(self, array: Array) -> Host:
        """A host copy of an array. Waits."""
        return self.fetch(array)()

    @abstractmethod
    def address(self, array: Array) -> int:
        """The address of an array's first value. Raises TypeError: it is none of this device's."""

    @abstractmethod
    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: bytes, shared: int = 0) -> None:
        """Queue a kernel: `grid` blocks (each number 1 or more), `shared` bytes of dynamic shared memory a block."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything that this thread queued is done."""

    @abstractmethod
    def record(self, work: Callable[[], None]) -> Graph:
        """Call `work`, and record the launches that it queues instead of running them.

        `work` must not upload, download or wait. Arrays that it makes live as long as the graph.
        """
