"""Compilation of kernels: typed Python functions come in, machine code comes out and is kept for later processes.

`kernel` declares a function that Python calls, `inline` a piece of kernels, `both` a function for Python and kernels.
Nothing is compiled before `compile_all`. It takes half a minute once for a machine and a version of this package,
reports that on stderr, and keeps the machine code in files (`caches.py`) for the next process.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba
import numba.extending
from numba.core import event
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from ..caches import KernelFiles, choose, report
from .room import COMPILING, LOADING, check_room

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, so Numba compiles nothing; unset it")

F = TypeVar("F", bound=Callable[..., Any])

# No reference counts: kernels allocate nothing, and counting every access to an array takes longer than the access.
_OPTIONS = {"error_model": "numpy", "boundscheck": False, "_nrt": False}


def _version() -> str:
    """A digest of everything that the machine code depends on: these sources, Numba, LLVM, Python, the processor."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for source in sorted([*here.glob("*.py"), here.parent / "interface.py"]):
        digest.update(source.read_bytes())
    processor = numba.config.CPU_NAME, numba.config.CPU_FEATURES, llvm.get_host_cpu_name()
    features = llvm.get_host_cpu_features().flatten()
    versions = numba.__version__, llvm.llvm_version_info, platform.python_version()
    digest.update(repr((*versions, processor, features)).encode())
    return digest.hexdigest()[:16]


@functools.cache
def kernel_files() -> KernelFiles:
    """The files of this version's compiled kernels."""
    return KernelFiles(choose(f"kernels-{_version()}"))


@functools.cache
def _source(path: str) -> str:
    """A digest of a source file; "" where there is no such file."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


class _Cache:
    """A kernel's cache, with the methods that Numba calls, over `kernel_files`.

    Numba's own `numba.core.caching.Cache` trusts files that may be damaged, and cannot read a folder that it cannot
    write.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        self._name = f"{function.__module__}.{function.__qualname__}-{code.co_firstlineno}"
        self._source = _source(code.co_filename)
        self.cache_path = None

    def _key(self, signature: Any, codegen: Any) -> str:
        return repr((self._source, signature, codegen.magic_tuple()))

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The kernel, ready to be called; None: no valid file holds it."""
        target.refresh()
        content = kernel_files().load(self._name, self._key(signature, target.codegen()))
        if content is None:
            return None
        try:
            return CompileResult._rebuild(target, *pickle.loads(content))
        except MemoryError:
            raise
        except Exception:  # a kernel that this Numba cannot rebuild is compiled again
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Write a compiled kernel to its file."""
        key = self._key(signature, compiled.codegen)
        kernel_files().save(self._name, key, dumps(compiled._reduce()))


class Kernel:
    """A declared kernel. Called, it runs its machine code, which `compile_all` must have made ready.

    The machine code takes any array of the signature's element size for one of its type: a launch checks types first
    (`arrays.py`). Numba's own call looks for the signature of the arguments, which takes longer than a small kernel.
    """

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self.dispatcher: Any = numba.njit(nogil=True, **_OPTIONS)(function)
        self.dispatcher._cache = _Cache(function)
        self.signature = signature
        self.run: Callable[..., Any] = self._not_ready
        """The machine code."""

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)

    def make_ready(self) -> None:
        """Load the machine code from `kernel_files`, or compile it."""
        if not self.dispatcher.signatures:  # else an earlier, interrupted attempt made it
            self.dispatcher.compile(self.signature.args)
            self.dispatcher.disable_compile()
        self.run = self.dispatcher.get_overload(self.signature.args)

    def _not_ready(self, *args: Any) -> Any:
        raise RuntimeError("a kernel was called before compile_all")


_declared: list[Kernel] = []
_lock = threading.Lock()
_ready: Ready | None = None


@dataclass(frozen=True)
class Ready:
    """The outcome of `compile_all`."""

    compiled: int
    """Kernels that this process compiled; the others were loaded."""
    folders: tuple[Path, ...]
    """Folders that kernels were loaded from or written to."""
    lost: str | None
    """Why some compiled kernels could not be written; None: the next process finds all of them."""
    why: str | None
    """Why some kernels are not in the user's cache folder; None: all of them are."""


def inline(function: F) -> F:
    """A piece of a kernel, compiled into the kernels that call it."""
    compiled: F = numba.njit(**_OPTIONS)(function)
    return compiled


def both(function: F) -> F:
    """A function that Python calls as it is, and that is compiled into the kernels that call it."""
    plain: F = numba.extending.register_jitable(**_OPTIONS)(function)
    return plain


def kernel(signature: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a kernel of that signature: it runs with the GIL released, and is kept in `kernel_files`."""

    def declare(function: Callable[..., Any]) -> Kernel:
        declared = Kernel(function, signature)
        _declared.append(declared)
        return declared

    return declare


def compile_all() -> Ready:
    """Load every declared kernel from `kernel_files`, or compile it and report that on stderr. Raises MemoryError."""
    global _ready
    if _ready is None:  # first without the lock, which another thread may hold while the process forks
        with _lock:
            if _ready is None:
                _ready = _make_ready(_declared)
    return _ready


class _Progress(event.Listener):
    """Reports compilation on stderr as soon as Numba begins it, which is after it found no file to load."""

    def __init__(self, kernels: list[Kernel]) -> None:
        self._numbers = {id(kernel.dispatcher): number for number, kernel in enumerate(kernels)}
        self.compiled = 0
        self._reported = False

    def on_start(self, of: Any) -> None:
        number = self._numbers.get(id(of.data["dispatcher"]))
        if number is not None:  # None: another package's function, in another thread
            if not self._reported:
                check_room(COMPILING, "compiling kernels")
            self.compiled += 1
            text = f"compiling up to {len(self._numbers)} kernels for this processor, once (half a minute)"
            report(text, number, len(self._numbers), first=not self._reported)
            self._reported = True

    def on_end(self, of: Any) -> None:
        pass


def _make_ready(declared: list[Kernel]) -> Ready:
    """Load kernels from `kernel_files`, or compile and keep them there. Raises MemoryError."""
    check_room(LOADING, "loading kernels")
    start, files = time.perf_counter(), kernel_files()
    progress = _Progress(declared)
    with event.install_listener("numba:compile", progress):
        for each in declared:
            each.make_ready()
    if progress.compiled:
        because = "" if files.why is None else f" ({files.why})"
        kept = f"kept in {files.kept}{because}" if files.lost is None else f"but not kept ({files.lost})"
        report(f"compiled in {time.perf_counter() - start:.0f} s; {kept}")
    why = files.why if files.folders.private in files.used else None
    return Ready(progress.compiled, tuple(sorted(files.used)), files.lost, why)
