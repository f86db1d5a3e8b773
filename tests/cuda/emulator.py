"""A device without a card: arrays in main memory, and the kernels' own sources compiled by a C++ compiler.

`EmulatedDevice` runs one block after another (see `cuda_on_cpu.h`), and counts what it is asked for, so that tests can
say how often a forward waits or launches. Arrays refuse the host as CuPy's do (`tests/backends/device_arrays.py`), and
are laid out exactly as large as they are: built as SANITIZED, in a process started by `sanitized`, a kernel that reads
or writes beyond one ends the process.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sparsegen.backends.cupy_cuda import sources
from sparsegen.backends.cupy_cuda.device import Device, Fetched, Graph
from sparsegen.backends.interface import Array, Host
from tests.backends.device_arrays import DeviceArray, DeviceModule

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
MISSING = "no g++ here: install the package g++ (Debian, Ubuntu), gcc-c++ (Fedora) or name a compiler in CXX"
STAND_IN = Path(__file__).with_name("cuda_on_cpu.h")
ROOT = Path(__file__).parents[2]
FLAGS = (
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-x",
    "c++",
)
"""Of every build. Fortified, the C library takes a jump to another fiber for a damaged stack."""
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS = ("-mfma", *FLAGS)  # else `fmaf` is a call, in software
OPTIMISED = ("-O1",)
SANITIZED = (
    "-O1",
    "-g1",
    "-fsanitize=address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fsanitize-sections=shared_memory",
)
"""Accesses beyond an array, of shared memory, too, misaligned ones, and numbers out of range end the process. The other
checks of `undefined` would double the time of the compiler."""

FORWARDS, BACKWARDS, SHUFFLED = 0, 1, 2
"""Orders of threads and blocks."""

_LOCK = threading.RLock()
"""One kernel runs at a time: the stand-in's state is global."""


class KernelError(RuntimeError):
    """A kernel did what a card forbids, or what would differ from run to run."""


def build(text: str, name: str, *, flags: Sequence[str] = OPTIMISED) -> Path:
    """The shared library of a kernel source, compiled once for each text. Raises RuntimeError: it does not compile."""
    assert COMPILER is not None, MISSING
    parts = [text, STAND_IN.read_text("utf-8"), *sources.headers().values(), *FLAGS, *flags, COMPILER]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"sparsegen-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user: its libraries are not loaded")
    library = folder / f"{name}-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            path = Path(place) / f"{name}.cu"
            path.write_text(text, "utf-8")
            made = Path(place) / "made.so"
            include = ["-I", str(sources.FOLDER), "-include", str(STAND_IN)]
            command = [COMPILER, *flags, *include, *FLAGS, str(path), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            os.replace(made, library)
    return library


class Library:
    """The kernels of one file, as functions of the host."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.cpu_message.restype = ctypes.c_char_p
        self._library.cpu_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self._launches: dict[str, tuple[Any, int]] = {}
        """Kernel -> its function of the host, and the size of its arguments."""

    def order(self, order: int, seed: int = 1) -> None:
        """Choose the order of threads and blocks."""
        with _LOCK:
            self._library.cpu_order(order, seed)

    def size_of(self, kernel: str) -> int:
        """The size of a kernel's arguments as the compiler lays them out."""
        size: int = self._library[f"size_of_{kernel}"]()
        return size

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: bytes, shared: int = 0) -> None:
        """Run a kernel. Raises KernelError."""
        with _LOCK:
            if kernel not in self._launches:
                function = self._library[f"launch_{kernel}"]
                function.argtypes = [ctypes.POINTER(ctypes.c_uint), ctypes.c_size_t, ctypes.c_char_p]
                self._launches[kernel] = function, self.size_of(kernel)
            function, size = self._launches[kernel]
            if len(arguments) != size:
                raise KernelError(f"{kernel}: {len(arguments)} bytes of arguments, the kernel takes {size}")
            if function((ctypes.c_uint * 3)(*grid), shared, arguments):
                raise KernelError(f"{kernel}: {self._library.cpu_message().decode()}")


def build_all(flags: tuple[str, ...] = OPTIMISED) -> dict[str, Path]:
    """The shared libraries of all files, by name."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = pool.map(lambda file: build(sources.source(file), file, flags=flags), sources.files())
        return dict(zip(sources.files(), paths, strict=True))


_LIBRARIES: dict[tuple[str, ...], dict[str, Library]] = {}


def libraries(flags: tuple[str, ...] = OPTIMISED) -> dict[str, Library]:
    """The kernels of all files, by name."""
    with _LOCK:
        if flags not in _LIBRARIES:
            _LIBRARIES[flags] = {file: Library(path) for file, path in build_all(flags).items()}
        return _LIBRARIES[flags]


@contextmanager
def in_order(order: int, seed: int = 1) -> Iterator[None]:
    """All kernels run in that order; afterwards forwards again."""
    for library in libraries().values():
        library.order(order, seed)
    try:
        yield
    finally:
        for library in libraries().values():
            library.order(FORWARDS)


@cache
def sanitizers() -> tuple[str, ...] | None:
    """The libraries that a process must load before what is built as SANITIZED; None: the compiler lacks them."""
    if COMPILER is None:
        return None
    try:
        build("", "sanitizers", flags=SANITIZED)
    except RuntimeError:
        return None
    asked = [[COMPILER, f"-print-file-name=lib{name}.so"] for name in ("asan", "ubsan")]
    return tuple(subprocess.run(each, capture_output=True, text=True).stdout.strip() for each in asked)


def sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a process that may load what is built as SANITIZED, and wait for its end."""
    preloaded = sanitizers()
    assert preloaded is not None, "the compiler has no sanitizers"
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at its exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


class _Recorded(Graph):
    def __init__(self, device: EmulatedDevice) -> None:
        self.launches: list[tuple[str, tuple[int, int, int], bytes, int]] = []
        self.arrays: list[Array] = []
        self._device = device

    def launch(self) -> None:
        self._device.count("graph")
        for each in self.launches:
            self._device.run(*each)


class _OfThread(threading.local):
    """What each thread has of its own, as it has a stream of its own."""

    def __init__(self) -> None:
        self.recorded: _Recorded | None = None
        self.waits = 0


class _Module(DeviceModule):
    """The array module, which refuses to compute while its device records: a replay would not compute it again."""

    def __init__(self, device: EmulatedDevice) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Any:
        self._device.refuse_recorded(f"{name} of the array module")
        return super().__getattr__(name)


class EmulatedDevice(Device):
    """A device in main memory.

    Parameters
    ----------
    flags
        How kernels are compiled.
    memory
        Bytes that arrays of `zeros` may take, for tests of stores.
    """

    name = "the CPU in place of a card"
    multiprocessors = 4

    def __init__(self, flags: tuple[str, ...] = OPTIMISED, *, memory: float = math.inf) -> None:
        self.xp = _Module(self)
        self._memory, self._taken = memory, 0
        self.counts: Counter[str] = Counter()
        """How often all threads did what: "launch", "graph", "wait", "upload", "download"."""
        self.kernels: Counter[str] = Counter()
        """How often each kernel ran, also in graphs."""
        self._flags = flags
        self._thread = _OfThread()
        self._counting = threading.RLock()

    def count(self, what: str) -> None:
        """Add one to a count."""
        with self._counting:
            self.counts[what] += 1

    def refuse_recorded(self, what: str) -> None:
        """Raises KernelError: this thread records."""
        if self._thread.recorded is not None:
            raise KernelError(f"{what} while launches are recorded")

    def _made(self, held: Host) -> Array:
        array = DeviceArray(held)
        if self._thread.recorded is not None:
            self._thread.recorded.arrays.append(array)
        return array

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        self.refuse_recorded("an array was filled")
        array = self._made(np.zeros(tuple(shape), dtype))
        self._take(array.nbytes)
        weakref.finalize(array, self._take, -array.nbytes).atexit = False
        return array

    def _take(self, size: int) -> None:
        with self._counting:
            self._taken += size

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        undefined = np.empty(tuple(shape), dtype)
        undefined.reshape(-1).view(np.uint8).fill(0xFF)  # NaN, or -1
        return self._made(undefined)

    def in_ram(self, shape: Sequence[int], dtype: Any) -> Array:
        return self.empty(shape, dtype)

    def memory_left(self) -> float:
        return self._memory - self._taken

    def upload(self, host: Host) -> Array:
        self.refuse_recorded("an upload")
        self.count("upload")
        return self._made(np.array(host, order="C"))

    def write(self, array: Array, host: Host) -> None:
        self.refuse_recorded("a copy to the device")
        self.count("upload")
        given = np.ascontiguousarray(host)
        assert given.nbytes == array.nbytes, f"{given.nbytes} bytes for an array of {array.nbytes}"
        self.address(array)  # it is contiguous: what follows is a view of it
        array.held.reshape(-1).view(np.uint8)[:] = given.reshape(-1).view(np.uint8)

    def fetch(self, array: Array) -> Fetched:
        self.refuse_recorded("a download")
        self.count("download")
        host: Host = self.xp.to_host(array)
        waits = self._thread.waits

        def get() -> Host:
            if self._thread.waits == waits:
                self.synchronize()
            return host

        return get

    def address(self, array: Array) -> int:
        if not isinstance(array, DeviceArray):
            raise TypeError(f"expected an array of the device, got {type(array).__name__}")
        assert array.held.flags.c_contiguous, f"an array {array.held.shape} with strides {array.held.strides}"
        address: int = array.held.ctypes.data
        return address

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: bytes, shared: int = 0) -> None:
        assert min(grid) >= 1, f"{kernel}: an empty grid {grid}"
        assert grid[0] < 1 << 31 and max(grid[1:]) < 1 << 16, (
            f"{kernel}: a grid {grid}, more than a card takes"
        )
        if self._thread.recorded is not None:
            self._thread.recorded.launches.append((kernel, grid, arguments, shared))
            return
        self.count("launch")
        self.run(kernel, grid, arguments, shared)

    def run(self, kernel: str, grid: tuple[int, int, int], arguments: bytes, shared: int = 0) -> None:
        """Run a kernel now; it is no launch."""
        libraries(self._flags)[sources.kernels()[kernel].file].launch(kernel, grid, arguments, shared)
        with self._counting:
            self.kernels[kernel] += 1

    def synchronize(self) -> None:
        self.refuse_recorded("a wait")
        self.count("wait")
        self._thread.waits += 1

    def record(self, work: Callable[[], None]) -> Graph:
        recorded = self._thread.recorded = _Recorded(self)
        try:
            work()
        finally:
            self._thread.recorded = None
        return recorded
