"""A card: NVIDIA's device through CuPy, one queue for all threads, kernels as cubins; and the backend on it.

**One queue.** All threads queue on one non-blocking stream of the card. Threads share prepared weights and pass
sessions on, and CuPy's memory pool hands freed memory to the next array of the same stream: on one stream, order makes
all of that right, without an event at each hand-over. The stream is made current on each thread (`Stream.use`), and so
is the card, so that CuPy's array operations are queued between the launches; both stay current afterwards. A recording
is captured on a stream of its own, and launched on the queue.

**Waits.** An event is recorded behind each copy to the host. A wait is for one event, not for all that other threads
have queued since.

**Memory** is CuPy's pool of this process, or whatever allocator is set there.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..interface import Array, BackendError, Host
from . import compile as compiler
from . import presence
from .backend import CudaBackend
from .device import Device, Fetched, Graph
from .sources import Kernel, kernels
from .staging import LARGEST, PIECE, ROOM, Download, Ring, pinned_bytes
from .tensor import Precision

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


class CardMemoryError(BackendError, MemoryError):
    """The card, or the limit on its use, has no room for an array."""


def parse_memory(memory: int | str | None) -> int | None:
    """Bytes of "8GB", "500MB", "2GiB" or 4000000000; None: no limit. Raises BackendError."""
    if memory is None:
        return None
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]i?)?b\s*", memory.lower())
        size = int(float(found[1]) * _UNITS[found[2] or ""]) if found is not None else 0
    else:
        size = 0 if isinstance(memory, bool) or int(memory) != memory else int(memory)
    if size < 1:
        raise BackendError(f"memory is {memory!r}, expected an amount such as 8GB or 500MB")
    return size


RESERVED = 16
"""A card's sixteenth is left to scratch memory and recordings when caches fill it."""


class _Ram:
    """Pinned memory of an array, freed once the card is done with it."""

    def __init__(self, card: Card, pinned: Any) -> None:
        self._card, self._pinned = card, pinned

    def __del__(self) -> None:
        with suppress(Exception):  # while the process ends
            self._card.hold(self._pinned)


@dataclass(slots=True)
class _Loaded:
    """A kernel on the card."""

    pointer: int
    threads: int
    shared: int = 0
    """The most dynamic shared memory that it may be launched with."""


class _OfThread(threading.local):
    entered = False
    """Whether the card's context is this thread's."""
    capturing: Any = None
    """The stream on which this thread records."""


class _Recorded(Graph):
    """A captured graph."""

    def __init__(self, card: Card, graph: Any) -> None:
        self._card, self._graph = card, graph

    def launch(self) -> None:
        self._graph.launch(self._card._now("a replay"))


class Card(Device):
    """One card.

    Parameters
    ----------
    number
        CUDA's number of the device.
    memory
        The most memory that CuPy's pool takes on it, such as "8GB"; None: no limit.

    Raises
    ------
    BackendError
        What is missing, in one sentence; or a method was called in a forked process.
    """

    def __init__(self, number: int = 0, *, memory: int | str | None = None) -> None:
        found = presence.find(number)
        self.number, self.name, self.architecture = found.number, found.name, found.architecture
        self.multiprocessors = found.multiprocessors
        self.bytes = found.bytes
        self.limit = parse_memory(memory)
        self._cuda = presence.cuda()
        self.xp = _Arrays(self)
        self._process = os.getpid()
        self._thread = _OfThread()
        self._lock = threading.RLock()
        """Held while a copy is queued: its place in the queue is its number."""
        self._queue: Any = None  # made at the first use: a stream makes a context, which takes memory
        self._kernels: dict[str, _Loaded] = {}
        self._modules: list[Any] = []
        self._ring: Ring | None = None
        self._held: deque[tuple[int, Any, Any]] = deque()
        """Number, event and memory of the host that queued work may still touch, though nobody asks for it any more."""
        self._pools: list[tuple[weakref.ref[_Recorded], Any]] = []
        """The pool of each graph's arrays."""
        self._queued = self._passed = 0
        """Numbers of the last copy to the host or wait that was queued, and of the last that is known to be done."""

    # -- this thread -------------------------------------------------------------------------------------

    def enter(self) -> Any:
        """Make the card and its queue current on this thread; returns the stream, a recording's while one is made.

        Raises BackendError in a forked process.
        """
        if os.getpid() != self._process:
            raise BackendError(
                "a forked process cannot use the card of its parent; start processes by multiprocessing's method "
                "'spawn' or 'forkserver', and open the backend in each"
            )
        cuda, thread = self._cuda, self._thread
        if not thread.entered or cuda.runtime.getDevice() != self.number:
            cuda.runtime.setDevice(self.number)
            cuda.runtime.free(0)  # launches need the context that this makes current
            thread.entered = True
        stream = thread.capturing or self._queue or self._open()
        if cuda.cupy.cuda.get_current_stream(self.number) is not stream:
            stream.use()
        return stream

    def _open(self) -> Any:
        with self._lock:
            if self._queue is None:
                cupy = self._cuda.cupy
                if self.limit is not None:
                    cupy.get_default_memory_pool().set_limit(size=self.limit)
                self._queue = cupy.cuda.Stream(non_blocking=True)
            return self._queue

    def _now(self, what: str) -> Any:
        """The queue, for something that cannot be recorded."""
        if self._thread.capturing is not None:
            raise BackendError(f"{what} while launches are recorded")
        return self.enter()

    # -- memory ------------------------------------------------------------------------------------------

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        return self._allocated(self._cuda.cupy.zeros, shape, dtype)

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        return self._allocated(self._cuda.cupy.empty, shape, dtype)

    def in_ram(self, shape: Sequence[int], dtype: Any) -> Array:
        self.enter()
        cupy, runtime, type = self._cuda.cupy, self._cuda.runtime, np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * type.itemsize
        if not size:
            return self.empty(shape, dtype)
        try:
            # not CuPy's pool of pinned memory, which would keep it
            pinned = cupy.cuda.PinnedMemory(size, runtime.hostAllocPortable | runtime.hostAllocMapped)
        except runtime.CUDARuntimeError as error:
            raise CardMemoryError(f"main memory has no room for {_amount(size)}, pinned ({error})") from None
        # one address space: the card reads it at the address where the host has it
        memory = cupy.cuda.UnownedMemory(pinned.ptr, size, _Ram(self, pinned), self.number)
        return cupy.ndarray(tuple(shape), type, memptr=cupy.cuda.MemoryPointer(memory, 0))

    def memory_left(self) -> float:
        self.enter()
        pool = self._cuda.cupy.get_default_memory_pool()
        free, total = map(float, self._cuda.runtime.memGetInfo())
        left = free + float(pool.free_bytes())
        if self.limit is not None:
            left, total = min(left, self.limit - float(pool.used_bytes())), min(total, self.limit)
        return max(0.0, left - total / RESERVED)

    def _let_go(self) -> None:
        """Drop what the queue has passed. The lock is held."""
        while self._held and self._held[0][0] <= self._passed:
            self._held.popleft()

    def hold(self, memory: Any) -> None:
        """Keep memory of the host until the queue has passed what is queued now."""
        if os.getpid() == self._process and self._queue is not None:
            with self._lock:
                self._held.append((*self._behind(self._queue), memory))
                self._let_go()

    def _allocated(self, make: Callable[..., Array], shape: Sequence[int], dtype: Any) -> Array:
        self.enter()
        full = self._cuda.cupy.cuda.memory.OutOfMemoryError
        try:
            return make(tuple(shape), dtype)
        except full:
            pass
        # blocks that are free, but too small or another stream's
        self._drop_pools()
        pool = self._cuda.cupy.get_default_memory_pool()
        pool.free_all_blocks()
        try:
            return make(tuple(shape), dtype)
        except full:
            free, total = self._cuda.runtime.memGetInfo()
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            held, limit = pool.total_bytes(), pool.get_limit()
        wanted, taken, whole, rest = map(_amount, (size, held, total, free))
        bound = f"; the limit is {_amount(limit)} (memory=)" if limit else ""
        raise CardMemoryError(
            f"{self.name} has no room for {wanted} more: this process holds {taken} of its {whole}, {rest} are free"
            f'{bound}. To take less: fewer samples at once, or storage="float16"'
        )

    def upload(self, host: Host) -> Array:
        self._now("an upload")
        array = self.empty(host.shape, host.dtype)
        self.write(array, host)
        return array

    def write(self, array: Array, host: Host) -> None:
        queue = self._now("a copy to the card")
        left = np.ascontiguousarray(host).reshape(-1).view(np.uint8)
        address, runtime = self.address(array), self._cuda.runtime
        with self._lock:
            if self._ring is None:
                self._ring = Ring(self._cuda.cupyx.empty_pinned((ROOM,), np.uint8))
            for begin in range(0, left.size, PIECE):
                piece = left[begin : begin + PIECE]
                pinned = self._ring.take(piece.size)
                pinned[:] = piece
                # the direction is by the addresses: an array of the card may lie in RAM
                runtime.memcpyAsync(
                    address + begin, pinned.ctypes.data, piece.size, runtime.memcpyDefault, queue.ptr
                )
                self._ring.passed(pinned, self._recorded(queue))

    def fetch(self, array: Array) -> Fetched:
        queue = self._now("a download")
        if not array.size:
            return lambda: np.empty(array.shape, array.dtype)
        source = self._cuda.cupy.ascontiguousarray(array)
        address, size, runtime = self.address(source), source.nbytes, self._cuda.runtime
        # CUDA takes a large one through pinned memory of its own
        pinned = (
            self._cuda.cupyx.empty_pinned((pinned_bytes(size),), np.uint8)
            if size <= LARGEST
            else np.empty(size, np.uint8)
        )
        with self._lock:
            runtime.memcpyAsync(pinned.ctypes.data, address, size, runtime.memcpyDefault, queue.ptr)
            download = Download(array, pinned, *self._behind(queue))
            self._held.append((download.number, download.event, pinned))
            self._let_go()

        def fetched() -> Host:
            self._wait(download.number, download.event)
            return download.host()

        return fetched

    def address(self, array: Array) -> int:
        if not isinstance(array, self._cuda.cupy.ndarray):
            raise TypeError(f"expected an array of the card, got {type(array).__name__}")
        address: int = array.data.ptr
        return address

    # -- waiting -----------------------------------------------------------------------------------------

    def _recorded(self, queue: Any) -> Any:
        """An event, recorded now."""
        event = self._cuda.cupy.cuda.Event(disable_timing=True)
        event.record(queue)
        return event

    def _behind(self, queue: Any) -> tuple[int, Any]:
        """A number and an event for what was just queued. The lock is held."""
        self._queued += 1
        return self._queued, self._recorded(queue)

    def _wait(self, number: int, event: Any) -> None:
        """Wait for an event, unless one behind it is known to be done."""
        if number <= self._passed:
            return
        self._now("a wait")
        try:
            event.synchronize()
        except (
            self._cuda.runtime.CUDARuntimeError
        ) as error:  # such as an illegal address: the context is lost
            raise BackendError(f"{self.name}: {error}; restart the process to use the card again") from None
        with self._lock:
            self._passed = max(self._passed, number)

    def synchronize(self) -> None:
        queue = self._now("a wait")
        with self._lock:
            behind = self._behind(queue)
        self._wait(*behind)

    # -- launches ----------------------------------------------------------------------------------------

    def _load(self) -> dict[str, _Loaded]:
        """Every kernel, loaded at the first launch."""
        with self._lock:
            if not kernels().keys() <= self._kernels.keys():
                self.add(compiler.cubins(compiler.target(self.architecture)), kernels())
            return self._kernels

    def add(self, cubins: Mapping[str, bytes], declared: Mapping[str, Kernel]) -> None:
        """Load the cubins of files of kernels, so that `launch` knows those that they declare, by name."""
        modules = {file: self._cuda.cupy.cuda.function.Module() for file in cubins}
        for file, cubin in cubins.items():
            modules[file].load(cubin)
        self._modules += modules.values()  # kernels live as long as their module
        self._kernels |= {
            name: _Loaded(modules[each.file].get_function(name).ptr, each.threads)
            for name, each in declared.items()
        }

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: bytes, shared: int = 0) -> None:
        stream, driver = self.enter(), self._cuda.driver
        loaded = self._kernels.get(kernel) or self._load()[kernel]
        # what a launch takes: the address of an array with the address of each parameter; here there is one
        parameters = ctypes.c_char_p(arguments)
        try:
            if shared > loaded.shared:
                self._allow(loaded, shared)
            driver.launchKernel(
                loaded.pointer,
                *grid,
                loaded.threads,
                1,
                1,
                shared,
                stream.ptr,
                ctypes.addressof(parameters),
                0,
            )
        except driver.CUDADriverError as error:
            raise BackendError(f"{self.name}: kernel {kernel}, grid {grid}: {error}") from None

    def _allow(self, kernel: _Loaded, shared: int) -> None:
        """Let a kernel have so much dynamic shared memory: beyond 48 KB of a block it must ask for it."""
        driver = self._cuda.driver
        with self._lock:
            if shared > kernel.shared:
                attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                driver.funcSetAttribute(kernel.pointer, attribute, shared)
                kernel.shared = shared

    # -- recordings --------------------------------------------------------------------------------------

    def record(self, work: Callable[[], None]) -> Graph:
        queue = self._now("a recording")
        self._load()  # nothing is compiled or loaded inside a capture
        self._drop_pools()
        cupy = self._cuda.cupy
        stream = cupy.cuda.Stream(non_blocking=True)
        outer = cupy.cuda.get_allocator()

        def more(size: int) -> Any:
            """Memory for the graph's pool: the queue's, for the graph is launched there."""
            queue.use()
            try:
                return outer(size)
            finally:
                stream.use()

        # arrays made inside may be freed there; the pool keeps their memory from everybody but the graph
        pool = cupy.cuda.MemoryPool(more)
        self._thread.capturing = stream
        try:
            stream.use()
            stream.begin_capture()
            try:
                with cupy.cuda.using_allocator(pool.malloc):
                    work()
            except BaseException:
                with suppress(self._cuda.runtime.CUDARuntimeError):
                    stream.end_capture()
                raise
            graph = stream.end_capture()
        finally:
            self._thread.capturing = None
            queue.use()
        recorded = _Recorded(self, graph)
        with self._lock:
            self._pools.append((weakref.ref(recorded), pool))
        return recorded

    def _drop_pools(self) -> None:
        """Give back the memory of graphs that nobody holds any more."""
        with self._lock:
            # an array that was made while a graph was captured may outlive it, but not the pool: CuPy would free it
            self._pools = [
                (graph, pool) for graph, pool in self._pools if graph() is not None or pool.used_bytes()
            ]


class _Arrays:
    """CuPy, on this card: its functions queue on the card's queue, whatever was current on the thread."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def __getattr__(self, name: str) -> Any:
        self._card.enter()
        return getattr(self._card._cuda.cupy, name)


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


class CupyBackend(CudaBackend):
    """Kernels on an NVIDIA card.

    Parameters
    ----------
    device
        CUDA's number of the card; "cupy:1" names device 1.
    memory
        The most memory to take on it, such as "8GB"; None: no limit. It is CuPy's limit in this process.
    precision
        Of convolutions' products: "float32"; "tf32" or "float16" use tensor cores (`TensorConvolutions`).

    Raises
    ------
    BackendError
        There is no such card, or something that it needs: one sentence names it. `memory` is no amount, or `precision`
        is unknown.
    """

    options = ("device", "memory", "precision")

    def __init__(
        self, *, device: int = 0, memory: int | str | None = None, precision: Precision = "float32"
    ) -> None:
        card = Card(device, memory=memory)
        super().__init__(card, precision=precision)
        self.architecture = card.architecture

    def __repr__(self) -> str:
        assert isinstance(self.device, Card)
        return f"<backend cupy:{self.device.number}, {self.device.name}>"

    def warm_up(self) -> str:
        return compiler.warm_up(self.architecture)

    @staticmethod
    def compile_for(architecture: str) -> str:
        """As `warm_up`, for an architecture such as "sm_90", without a card."""
        return compiler.warm_up(architecture)
