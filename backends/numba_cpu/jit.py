"""Compilation of kernels: typed Python functions come in, machine code comes out and is kept for later processes.

`kernel` declares a function that Python calls, `inline` a piece of kernels, `both` a function for Python and kernels.
A kernel is compiled when it is first called, once for a machine and a version of this package: its machine code is kept
in files (`caches.py`) for the next process. All kernels together take half a minute; stderr has a line for each that
takes a second.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import threading
import time
from collections.abc import Callable, Sequence
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
from .pieces import Body, Piece
from .queued import settle
from .room import COMPILING, LOADING, check_room

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, so Numba compiles nothing; unset it")

F = TypeVar("F", bound=Callable[..., Any])

# No reference counts: kernels allocate nothing, and counting every access to an array takes longer than the access.
_OPTIONS = {"error_model": "numpy", "boundscheck": False, "_nrt": False}
# Kernels alone call a piece, so it needs no wrappers for calls from Python and C.
_PIECES = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": Piece}


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
        """Write a compiled kernel to its file: its machine code, and how Python calls it."""
        key = self._key(signature, compiled.codegen)
        kernel_files().save(self._name, key, dumps(_callable(compiled)))


def _callable(compiled: Any) -> tuple[Any, ...]:
    """What Numba keeps of a function, without a kernel's bitcode and the environments of its pieces.

    Numba compiles a loaded function into others by its bitcode, and makes Python objects by its environments: kernels
    need neither. To read them takes most of the time in which a kernel is loaded, and environments import much of
    Numba. It reads the names of functions in the bitcode, so that of the kernel's entry stays.
    """
    kept: tuple[Any, ...] = compiled._reduce()
    try:
        (name, kind, (machine_code, _)), *described, _ = kept
    except (TypeError, ValueError):  # a Numba that keeps other things: all of them
        return kept
    entry = f'define void @"{compiled.fndesc.llvm_cpython_wrapper_name}"() {{ unreachable }}'
    library = name, kind, (machine_code, llvm.parse_assembly(entry).as_bitcode())
    return (library, *described, ())


class Kernel:
    """A declared kernel. Called, it runs its machine code, which the first call makes ready.

    The machine code takes any array of the signature's element size for one of its type: a launch checks types first
    (`arrays.py`). Numba's own call looks for the signature of the arguments, which takes longer than a small kernel.
    """

    def __init__(
        self, function: Callable[..., Any], signature: Any, named: Callable[..., Any] | None = None
    ) -> None:
        """`named`: the function after which the kernel and its file are named, where `function` is made of it."""
        named = named or function
        self.name = f"{named.__module__.rpartition('.')[2]}.{named.__name__}"
        self.dispatcher: Any = numba.njit(nogil=True, no_cfunc_wrapper=True, **_OPTIONS)(function)
        self.dispatcher._cache = _Cache(named)
        self.signature = signature
        self._code: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """Run the machine code, after what this thread has queued."""
        settle()
        return self.ready()(*args)

    def beside(self, *args: Any) -> Any:
        """Run the machine code, beside what this thread has queued: kernels there use none of these arrays."""
        return self.ready()(*args)

    def ready(self) -> Callable[..., Any]:
        """The machine code, loaded or compiled at the first call. Any thread may call. Raises MemoryError."""
        while self._code is None:
            _make_ready([self])
        return self._code

    def make_ready(self) -> None:
        """Load the machine code from `kernel_files`, or compile it."""
        if not self.dispatcher.signatures:  # else an earlier, interrupted attempt made it
            self.dispatcher.compile(self.signature.args)
            self.dispatcher.disable_compile()
        self._code = self.dispatcher.get_overload(self.signature.args)

    @property
    def is_ready(self) -> bool:
        return self._code is not None


_declared: list[Kernel] = []
_lock = threading.RLock()
"""Held while kernels are made ready."""
if hasattr(os, "register_at_fork"):  # a child has no thread that would release it
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
_announced = False
"""Whether this process has said that it compiles."""


@dataclass(frozen=True)
class Ready:
    """The outcome of `compile_all`."""

    compiled: int
    """Kernels that it compiled; the others were loaded, or ready before."""
    folders: tuple[Path, ...]
    """Folders that kernels were loaded from or written to."""
    lost: str | None
    """Why some compiled kernels could not be written; None: the next process finds all of them."""
    why: str | None
    """Why some kernels are not in the user's cache folder; None: all of them are."""


def inline(function: F) -> F:
    """A piece of a kernel, compiled into the kernels that call it."""
    compiled: F = numba.njit(**_PIECES)(function)
    return compiled


def body(function: F) -> F:
    """A function of which one kernel is made, compiled into that kernel alone."""
    compiled: F = numba.njit(**{**_PIECES, "pipeline_class": Body})(function)
    return compiled


def both(function: F) -> F:
    """A function that Python calls as it is, and that is compiled into the kernels that call it."""
    plain: F = numba.extending.register_jitable(**_PIECES)(function)
    return plain


def kernel(signature: Any, named: Callable[..., Any] | None = None) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a kernel of that signature: it runs with the GIL released, and is kept in `kernel_files`.

    It is named after the function, or after `named`, of which the function is made.
    """

    def declare(function: Callable[..., Any]) -> Kernel:
        declared = Kernel(function, signature, named)
        _declared.append(declared)
        return declared

    return declare


def compile_all() -> Ready:
    """Make every declared kernel ready, as the first calls of all would. Raises MemoryError."""
    return _make_ready(_declared)


class _Progress(event.Listener):
    """Reports compilation on stderr as soon as Numba begins it, which is after it found no file to load."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self._kernels = {id(kernel.dispatcher) for kernel in kernels}
        self.compiled = 0

    def on_start(self, of: Any) -> None:
        global _announced
        if id(of.data["dispatcher"]) not in self._kernels:  # a piece, or another package's function
            return
        check_room(COMPILING, "compiling kernels")
        self.compiled += 1
        count = len(_declared)
        text = f"compiling up to {count} kernels for this processor, each once, when it is first used"
        report(text, sum(kernel.is_ready for kernel in _declared), count, first=not _announced)
        _announced = True

    def on_end(self, of: Any) -> None:
        pass


def _make_ready(kernels: Sequence[Kernel]) -> Ready:
    """Load kernels from `kernel_files`, or compile and keep them there. Raises MemoryError."""
    with _lock:
        files, progress, start = kernel_files(), _Progress(kernels), time.perf_counter()
        missing = [kernel for kernel in kernels if not kernel.is_ready]
        if missing and not any(kernel.is_ready for kernel in _declared):
            check_room(LOADING, "loading kernels")
        with event.install_listener("numba:compile", progress):
            for kernel in missing:
                kernel.make_ready()
        seconds = time.perf_counter() - start
        if progress.compiled and (seconds >= 1 or len(kernels) > 1):
            name = f" {kernels[0].name}" if len(kernels) == 1 else ""
            because = "" if files.why is None else f" ({files.why})"
            kept = f"kept in {files.kept}{because}" if files.lost is None else f"but not kept ({files.lost})"
            report(f"compiled{name} in {seconds:.0f} s; {kept}")
        why = files.why if files.folders.private in files.used else None
        return Ready(progress.compiled, tuple(sorted(files.used)), files.lost, why)
