"""CuPy's modules without a card: what `backends/cupy_cuda/card.py` calls, over main memory.

Work that is queued on a stream runs when somebody waits for an event behind them, or at `run`; so memory that is
used too early is seen. `calls` lists what was called, in order.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from sparsegen.backends.cupy_cuda import sources
from sparsegen.backends.cupy_cuda.presence import Cuda
from sparsegen.backends.interface import Host

H100 = ("NVIDIA H100 80GB HBM3", 9, 0)
T4 = ("Tesla T4", 7, 5)
"""Cards: a name and the two numbers of the architecture."""


class OutOfMemoryError(MemoryError):
    """CuPy's."""


class CudaError(RuntimeError):
    """CuPy's errors of CUDA."""


class FakeArray:
    """An array of the card: memory at an address."""

    def __init__(self, held: Any, dtype: Any = None, memptr: Any = None) -> None:
        if memptr is not None:  # shape, type and memory, as CuPy's
            self.memory = memptr
            held = memptr.pinned.held.view(dtype).reshape(held)
        self.held: Host = held
        self.data = SimpleNamespace(ptr=held.ctypes.data)

    def __getattr__(self, name: str) -> Any:
        if name not in ("shape", "dtype", "size", "nbytes", "ndim"):
            raise AttributeError(name)
        return getattr(self.held, name)

    def __getitem__(self, index: Any) -> FakeArray:
        return FakeArray(self.held[index])


class Pinned:
    """Pinned memory."""

    def __init__(self, held: Host) -> None:
        self.held = held
        self.ptr = held.ctypes.data


class Unowned:
    """Memory of an owner."""

    def __init__(self, ptr: int, size: int, owner: Any, device: int) -> None:
        self.owner, self.pinned = owner, owner._pinned
        assert (self.pinned.ptr, self.pinned.held.size) == (ptr, size)


class FakeStream:
    """A stream: work in order."""

    def __init__(self, cuda: FakeCuda, ptr: int) -> None:
        self._cuda, self.ptr = cuda, ptr
        self.work: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None

    def use(self) -> None:
        self._cuda.thread.stream = self
        self._cuda.calls.append(("use", self.ptr))

    def queue(self, work: Callable[[], None]) -> None:
        (self.work if self.captured is None else self.captured).append(work)

    def run(self) -> None:
        """Run what is queued."""
        while self.work:
            self.work.pop(0)()

    def begin_capture(self) -> None:
        self.captured = []
        self._cuda.calls.append(("begin", self.ptr))

    def end_capture(self) -> Any:
        assert self.captured is not None
        self._cuda.calls.append(("end", self.ptr))
        captured, self.captured = self.captured, None

        def launch(stream: FakeStream) -> None:
            self._cuda.calls.append(("graph", stream.ptr))
            for each in captured:
                stream.queue(each)

        return SimpleNamespace(launch=launch)


class FakeEvent:
    """An event."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.done = False
        self._stream: FakeStream | None = None

    def record(self, stream: FakeStream) -> None:
        self._stream = stream
        stream.queue(self._happen)

    def _happen(self) -> None:
        self.done = True

    def synchronize(self) -> None:
        assert self._stream is not None
        self._cuda.calls.append(("wait", self._stream.ptr))
        while not self.done:
            self._stream.work.pop(0)()


class FakePool:
    """A memory pool."""

    def __init__(self, cuda: FakeCuda, base: Callable[[int], Any] | None = None) -> None:
        self._cuda, self._base = cuda, base
        self.limit = self.used = 0

    def malloc(self, size: int) -> Any:
        if self._base is not None:
            self.used += size
            return self._base(size)
        self._cuda.calls.append(("malloc", size, self._cuda.thread.stream.ptr))
        if self.limit and self.used + size > self.limit:
            raise OutOfMemoryError(size)
        self.used += size
        return size

    def set_limit(self, *, size: int) -> None:
        self.limit = size

    def get_limit(self) -> int:
        return self.limit

    def used_bytes(self) -> int:
        return self.used

    def free_bytes(self) -> int:
        return 7

    def total_bytes(self) -> int:
        return self.used

    def free_all_blocks(self) -> None:
        self._cuda.calls.append(("free_all_blocks",))


class FakeCuda:
    """The modules of a machine with `cards`, each a name and the two numbers of its architecture."""

    def __init__(self, *cards: tuple[str, int, int], driver: int = 13000, built: int = 13020) -> None:
        self.cards = cards
        self.calls: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []
        """Kernel, grid, threads, shared memory and the bytes of the arguments of each launch."""
        self.kernel: Callable[..., None] = lambda *_: None
        """Runs a launch: kernel, grid, arguments, shared memory."""
        self.thread = threading.local()
        self.pool = FakePool(self)
        self.kept: list[Host] = []
        """All memory of the card: a queued copy may be to an array that nobody holds any more."""
        self.pinned: list[weakref.ref[Pinned]] = []
        """Pinned memory of arrays in RAM, dead once it is freed."""
        self._names: list[str] = []
        self._streams = 0
        self._versions = driver, built

    def modules(self) -> Cuda:
        """As `presence.cuda`."""
        return Cuda(self._cupy(), self._cupyx(), self._runtime(), self._driver())

    # -- cupy --------------------------------------------------------------------------------------------

    def _allocate(self, size: int) -> None:
        getattr(self.thread, "allocator", self.pool.malloc)(size)

    def _cupy(self) -> Any:
        def empty(shape: tuple[int, ...], dtype: Any) -> FakeArray:
            made = np.empty(shape, dtype)
            made.reshape(-1).view(np.uint8)[:] = 0xFF
            self._allocate(made.nbytes)
            self.kept.append(made)
            return FakeArray(made)

        def zeros(shape: tuple[int, ...], dtype: Any) -> FakeArray:
            made = empty(shape, dtype)
            self.thread.stream.queue(lambda: made.held.fill(0))
            return made

        def stream(non_blocking: bool = False) -> FakeStream:
            assert non_blocking
            self._streams += 1
            return FakeStream(self, self._streams)

        @contextlib.contextmanager
        def using_allocator(allocator: Callable[[int], Any]) -> Iterator[None]:
            self.thread.allocator = allocator
            yield
            del self.thread.allocator

        class Module:
            def load(_, cubin: bytes) -> None:
                self.calls.append(("load", cubin))

            def get_function(_, name: str) -> Any:
                self._names.append(name)
                return SimpleNamespace(ptr=1000 + len(self._names) - 1)

        def pinned(size: int, flags: int) -> Any:
            if size > 10**9:
                raise CudaError("cudaErrorMemoryAllocation")
            held = np.full(size, 0xFF, np.uint8)
            self.pinned.append(weakref.ref(made := Pinned(held)))
            return made

        cuda = SimpleNamespace(
            PinnedMemory=pinned,
            UnownedMemory=Unowned,
            MemoryPointer=lambda memory, offset: memory,
            Stream=stream,
            Event=lambda disable_timing: FakeEvent(self),
            MemoryPool=lambda base: FakePool(self, base),
            function=SimpleNamespace(Module=Module),
            get_allocator=lambda: self.pool.malloc,
            get_current_stream=lambda device: getattr(self.thread, "stream", None),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            using_allocator=using_allocator,
        )
        return SimpleNamespace(
            cuda=cuda,
            ndarray=FakeArray,
            empty=empty,
            zeros=zeros,
            ascontiguousarray=lambda array: FakeArray(np.ascontiguousarray(array.held)),
            get_default_memory_pool=lambda: self.pool,
            float32=np.float32,
        )

    def _cupyx(self) -> Any:
        return SimpleNamespace(empty_pinned=np.empty)

    # -- CUDA --------------------------------------------------------------------------------------------

    def _runtime(self) -> Any:
        def memcpy_async(to: int, source: int, size: int, kind: int, stream: int) -> None:
            assert kind == 4, "the direction is by the addresses"
            self.thread.stream.queue(lambda: ctypes.memmove(to, source, size))
            assert stream == self.thread.stream.ptr

        def properties(number: int) -> dict[str, Any]:
            name, major, minor = self.cards[number]
            return {
                "name": name.encode(),
                "major": major,
                "minor": minor,
                "multiProcessorCount": 132,
                "totalGlobalMem": 80 * 10**9,
            }

        def set_device(number: int) -> None:
            self.thread.device = number
            self.calls.append(("device", number))

        return SimpleNamespace(
            CUDARuntimeError=CudaError,
            driverGetVersion=lambda: self._versions[0],
            runtimeGetVersion=lambda: self._versions[1],
            getDeviceCount=lambda: len(self.cards),
            getDeviceProperties=properties,
            getDevice=lambda: getattr(self.thread, "device", 0),
            setDevice=set_device,
            free=lambda pointer: None,
            memGetInfo=lambda: (3 * 10**8, 80 * 10**9),
            memcpyAsync=memcpy_async,
            memcpyDefault=4,
            hostAllocPortable=1,
            hostAllocMapped=2,
        )

    def _driver(self) -> Any:
        def launch_kernel(pointer: int, *numbers: int) -> None:
            *grid, threads, one, also_one, shared, stream, parameters, extra = numbers
            assert (one, also_one, extra) == (1, 1, 0)
            assert stream == self.thread.stream.ptr
            name = self._names[pointer - 1000]
            size = sources.kernels()[name].arguments.layout.size
            address = ctypes.c_void_p.from_address(parameters).value
            assert address is not None
            arguments = ctypes.string_at(address, size)  # as the driver does: read before the call returns
            self.launched.append((name, tuple(grid), threads, shared, arguments))
            self.thread.stream.queue(lambda: self.kernel(name, tuple(grid), arguments, shared))

        def set_attribute(pointer: int, attribute: int, value: int) -> None:
            self.calls.append(("attribute", self._names[pointer - 1000], attribute, value))

        return SimpleNamespace(
            CUDADriverError=CudaError,
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
            launchKernel=launch_kernel,
            funcSetAttribute=set_attribute,
        )


class FakeCompiler:
    """NVRTC's bindings, as far as an architecture is chosen."""

    @staticmethod
    def getVersion() -> tuple[int, int]:
        return 13, 5

    @staticmethod
    def getSupportedArchs() -> tuple[int, ...]:
        return 75, 80, 86, 89, 90, 100, 120


Install = Callable[..., FakeCuda]
"""The fixture `install`: cards in, the stand-in out."""
