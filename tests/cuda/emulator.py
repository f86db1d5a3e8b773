"""A device without a card: arrays in main memory, and the kernels' own sources compiled by a C++ compiler.

`EmulatedDevice` runs one block after another (see `cuda_on_cpu.h`), and counts what it is asked for, so that tests can
say how often a forward waits or launches. Arrays refuse the host as CuPy's do (`tests/backends/device_arrays.py`).
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
FLAGS = ["-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-mfma", "-ffp-contract=off", "-x", "c++"]
FORWARDS, BACKWARDS, SHUFFLED = 0, 1, 2
"""Orders of threads and blocks."""

_LOCK = threading.RLock()
"""One kernel runs at a time: the stand-in's state is global."""


class KernelError(RuntimeError):
    """A kernel did what a card forbids, or what would differ from run to run."""


def build(text: str, name: str, *, flags: Sequence[str] = ("-O1",)) -> Path:
    """The shared library of a kernel source, compiled once for each text."""
    assert COMPILER is not None, MISSING
    parts = [text, STAND_IN.read_text("utf-8"), *sources.headers().values(), *FLAGS, *flags, COMPILER]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"sparsegen-kernels-{os.getuid()}"
    folder.mkdir(exist_ok=True)
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

    def order(self, order: int, seed: int = 1) -> None:
        """Choose the order of threads and blocks."""
        self._library.cpu_order(order, seed)

    def size_of(self, kernel: str) -> int:
        """The size of a kernel's arguments as the compiler lays them out."""
        size: int = self._library[f"size_of_{kernel}"]()
        return size

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: bytes, shared: int = 0) -> None:
        """Run a kernel. Raises KernelError."""
        with _LOCK:
            function = self._library[f"launch_{kernel}"]
            if function((ctypes.c_uint * 3)(*grid), ctypes.c_size_t(shared), arguments):
                raise KernelError(f"{kernel}: {self._library.cpu_message().decode()}")


@cache
def libraries() -> dict[str, Library]:
    """The libraries of all files, by name."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = pool.map(lambda file: build(sources.source(file), file), sources.files())
        return {file: Library(path) for file, path in zip(sources.files(), paths, strict=True)}


class _Recorded(Graph):
    def __init__(self, device: EmulatedDevice) -> None:
        self.launches: list[tuple[str, tuple[int, int, int], bytes, int]] = []
        self.arrays: list[Array] = []
        self._device = device

    def launch(self) -> None:
        self._device.counts["graph"] += 1
        for each in self.launches:
            self._device.run(*each)


class EmulatedDevice(Device):
    """A device of one multiprocessor. `counts` counts launches, graphs, waits and copies by name."""

    name = "the CPU in place of a card"
    multiprocessors = 4

    def __init__(self) -> None:
        self.xp = DeviceModule()
        self.memory = math.inf
        """Bytes that arrays of `zeros` may take, for tests of stores."""
        self._taken = 0
        self.counts: Counter[str] = Counter()
        self._recorded: _Recorded | None = None

    def _not_recorded(self, what: str) -> None:
        if self._recorded is not None:
            raise KernelError(f"{what} while launches are recorded")

    def _made(self, host: Host) -> Array:
        array = self.xp.to_device(host)
        if self._recorded is not None:
            self._recorded.arrays.append(array)
        return array

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        self._not_recorded("an array was filled")
        array = self._made(np.zeros(tuple(shape), dtype))
        self._take(array.nbytes)
        weakref.finalize(array, self._take, -array.nbytes).atexit = False
        return array

    def _take(self, size: int) -> None:
        self._taken += size

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        undefined = np.empty(tuple(shape), dtype)
        undefined.view(np.uint8).fill(0xFF) if undefined.ndim else undefined.fill(0)
        return self._made(undefined)

    def in_ram(self, shape: Sequence[int], dtype: Any) -> Array:
        return self.empty(shape, dtype)

    def memory_left(self) -> float:
        return self.memory - self._taken

    def upload(self, host: Host) -> Array:
        self._not_recorded("an upload")
        self.counts["upload"] += 1
        return self._made(host)

    def write(self, array: Array, host: Host) -> None:
        self._not_recorded("a copy to the device")
        self.counts["upload"] += 1
        array.held.reshape(-1).view(np.uint8)[:] = np.ascontiguousarray(host).reshape(-1).view(np.uint8)

    def fetch(self, array: Array) -> Fetched:
        self._not_recorded("a download")
        self.counts["download"] += 1
        host: Host = self.xp.to_host(array)
        waited = self.counts["wait"]

        def get() -> Host:
            if self.counts["wait"] == waited:
                self.synchronize()
            return host

        return get

    def address(self, array: Array) -> int:
        if not isinstance(array, DeviceArray):
            raise TypeError(f"expected an array of the device, got {type(array).__name__}")
        assert array.held.flags.c_contiguous
        address: int = array.held.ctypes.data
        return address

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: bytes, shared: int = 0) -> None:
        assert min(grid) >= 1, f"{kernel}: an empty grid {grid}"
        if self._recorded is not None:
            self._recorded.launches.append((kernel, grid, arguments, shared))
            return
        self.counts["launch"] += 1
        self.run(kernel, grid, arguments, shared)

    def run(self, kernel: str, grid: tuple[int, int, int], arguments: bytes, shared: int = 0) -> None:
        """Run a kernel now, uncounted."""
        libraries()[sources.kernels()[kernel].file].launch(kernel, grid, arguments, shared)

    def synchronize(self) -> None:
        self._not_recorded("a wait")
        self.counts["wait"] += 1

    def record(self, work: Callable[[], None]) -> Graph:
        recorded = self._recorded = _Recorded(self)
        try:
            work()
        finally:
            self._recorded = None
        return recorded
