"""How kernels are compiled: typed Python functions come in, machine code comes out and is kept for later processes.

`inline` marks a piece of a kernel, `kernel` one that is called from Python. Nothing is compiled before
`compile_all`, which takes some seconds once for a machine and a version of this package, says so on stderr whenever it
does, and keeps the machine code in files (`cache.py`); the next process loads it from there in a moment.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import platform
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding as llvm
import numba
import numba.extending
from numba.core import event
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from .cache import KernelFiles, choose
from .room import COMPILING, LOADING, check_room

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, so Numba compiles nothing; unset it")

F = TypeVar("F", bound=Callable[..., Any])

# No reference counts: kernels allocate nothing, and counting every access to an array takes longer than the access.
_OPTIONS = {"error_model": "numpy", "boundscheck": False, "_nrt": False}


def _version() -> str:
    """A digest of all that the machine code depends on: these sources, Numba, LLVM, Python and the processor."""
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
    """A digest of a source file; of one that is not there, nothing."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


class _Cache:
    """What Numba asks for a kernel's machine code and hands it to: `kernel_files`, not files that Numba looks after.

    Numba's own (`numba.core.caching.Cache`, whose methods these are) trust what they find, which may be damaged, and
    cannot read a folder that they cannot write.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        self._name = f"{function.__module__}.{function.__qualname__}-{code.co_firstlineno}"
        self._source = _source(code.co_filename)
        self.cache_path = None

    def _key(self, signature: Any, codegen: Any) -> str:
        return repr((self._source, signature, codegen.magic_tuple()))

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The kernel, ready to be called; None: it must be compiled."""
        target.refresh()
        content = kernel_files().load(self._name, self._key(signature, target.codegen()))
        if content is None:
            return None
        try:
            return CompileResult._rebuild(target, *pickle.loads(content))
        except MemoryError:
            raise
        except Exception:  # what this Numba cannot rebuild, it compiles again
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep what was compiled."""
        key = self._key(signature, compiled.codegen)
        kernel_files().save(self._name, key, dumps(compiled._reduce()))


_declared: list[tuple[Any, Any]] = []
_lock = threading.Lock()
_ready: Ready | None = None


@dataclass(frozen=True)
class Ready:
    """How the kernels were made ready."""

    compiled: int
    """Kernels that this process compiled; it loaded the others."""
    folders: tuple[Path, ...]
    """Where they were loaded from or are kept."""
    lost: str | None
    """Why some that were compiled could not be kept; None when the next process will find all of them."""
    why: str | None
    """Why some of them are not in the user's cache folder; None when all of them are."""


def inline(function: F) -> F:
    """A piece of a kernel, compiled into the kernels that call it."""
    compiled: F = numba.njit(**_OPTIONS)(function)
    return compiled


def both(function: F) -> F:
    """A function that Python calls as it is, and that is compiled into the kernels that call it."""
    plain: F = numba.extending.register_jitable(**_OPTIONS)(function)
    return plain


def kernel(signature: Any) -> Callable[[F], F]:
    """A kernel of that signature: it runs without the GIL, and the next process loads it from `kernel_files`."""

    def declare(function: F) -> F:
        compiled: Any = numba.njit(nogil=True, **_OPTIONS)(function)
        compiled._cache = _Cache(function)
        _declared.append((compiled, signature))
        return cast(F, compiled)

    return declare


def compile_all() -> Ready:
    """Make every declared kernel ready: from `kernel_files`, or by compiling it (which is said on stderr)."""
    global _ready
    if _ready is None:  # asked without the lock, which another thread may hold while the process forks
        with _lock:
            if _ready is None:
                _ready = _make_ready(_declared)
    return _ready


class _Progress(event.Listener):
    """Says that kernels are being compiled: as soon as Numba begins to, which is when it found no code to load."""

    def __init__(self, kernels: list[Any]) -> None:
        self._numbers = {id(kernel): number for number, kernel in enumerate(kernels)}
        self.compiled = 0
        self._said = False

    def on_start(self, of: Any) -> None:
        number = self._numbers.get(id(of.data["dispatcher"]))
        if number is not None:  # else somebody else's function, in another thread
            if not self._said:
                check_room(COMPILING, "compiling kernels")
            self.compiled += 1
            text = f"compiling up to {len(self._numbers)} kernels for this processor, once (half a minute)"
            _say(text, number, len(self._numbers), first=not self._said)
            self._said = True

    def on_end(self, of: Any) -> None:
        pass


def _make_ready(declared: list[tuple[Any, Any]]) -> Ready:
    """Load kernels from `kernel_files`, or compile and keep them there. Raises MemoryError."""
    check_room(LOADING, "loading kernels")
    start, files = time.perf_counter(), kernel_files()
    progress = _Progress([compiled for compiled, _ in declared])
    with event.install_listener("numba:compile", progress):
        for compiled, signature in declared:
            if not compiled.signatures:  # else an attempt before this one was interrupted
                compiled.compile(signature.args)
                compiled.disable_compile()
    if progress.compiled:
        because = "" if files.why is None else f" ({files.why})"
        kept = f"kept in {files.kept}{because}" if files.lost is None else f"but not kept ({files.lost})"
        _say(f"compiled in {time.perf_counter() - start:.0f} s; {kept}")
    why = files.why if files.folders.private in files.used else None
    return Ready(progress.compiled, tuple(sorted(files.used)), files.lost, why)


def _say(text: str, done: int = 0, of: int = 0, *, first: bool = True) -> None:
    """A line on stderr. With `of`, one that counts up in its place, or said once where nobody watches it count."""
    if sys.stderr is None:
        return
    if not of:
        print(f"sparsegen: {text}", file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        print(f"sparsegen: {text}: {done} of {of} … ", end="\r", file=sys.stderr, flush=True)
    elif first:
        print(f"sparsegen: {text} …", file=sys.stderr, flush=True)
