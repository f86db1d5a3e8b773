"""How kernels are compiled: typed Python functions come in, machine code comes out and is kept for later processes.

`inline` marks a piece of a kernel, `kernel` one that is called from Python. Nothing is compiled before
`compile_all`, which takes some seconds once for a machine and a version of this package, says so on stderr whenever it
does, and keeps the result in a folder of the user's; the next process loads it from there in a moment. (Numba files
machine code by the place of its source too: another environment with the same files compiles them once more.)

The folder holds machine code as Numba pickles it: whoever can write there can run code as this user. So it is made
for this user alone, and one that somebody else owns or may write to is not used.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba
from numba.core import event

F = TypeVar("F", bound=Callable[..., Any])

# No reference counts: kernels allocate nothing, and counting every access to an array takes longer than the access.
_OPTIONS = {"error_model": "numpy", "boundscheck": False, "_nrt": False}

CACHE_VARIABLE = "SPARSEGEN_CACHE_DIR"
"""Environment variable: where compiled kernels are kept, instead of the user's cache folder."""


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


def user_folder() -> Path:
    """Where compiled kernels belong on this system: `SPARSEGEN_CACHE_DIR`, or the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sparsegen"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "sparsegen"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsegen"


def _ours(folder: Path) -> bool:
    """Whether `folder` belongs to this user and nobody else may write there (not asked on Windows)."""
    if sys.platform == "win32":
        return True
    state = folder.stat()
    return state.st_uid == os.getuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _usable(folder: Path) -> tuple[Path, str | None]:
    """`folder`, made and writable, and None; or where that cannot be, one for this process alone, and why.

    That one has a copy of what is there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _ours(folder):
            tempfile.TemporaryFile(dir=folder).close()
            return folder, None
        why = f"{folder} belongs to somebody else, or others may write there"
    except OSError as error:  # no room, no right, no folder
        why = f"{folder} cannot be used: {error}"
    private = Path(tempfile.mkdtemp(prefix="sparsegen-"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    try:
        if _trusted(folder):
            shutil.copytree(folder, private, dirs_exist_ok=True)
    except OSError:
        pass  # what could not be copied is compiled again
    return private, why


def _trusted(folder: Path) -> bool:
    """Whether code in a folder that is not used itself may be run: ours or the administrator's, and nobody else's."""
    if sys.platform == "win32":
        return folder.is_dir()
    state = folder.stat()
    return state.st_uid in (0, os.getuid()) and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


_folder: tuple[Path, str | None] | None = None
_declared: list[tuple[Any, Any]] = []
_lock = threading.Lock()
_ready: Ready | None = None


@dataclass(frozen=True)
class Ready:
    """How the kernels were made ready."""

    compiled: int
    """Kernels that this process compiled; it loaded the others."""
    folder: Path
    """Where they come from and are kept."""
    lost: str | None
    """Why some that were compiled could not be kept; None when the next process will find all of them."""


def _chosen() -> tuple[Path, str | None]:
    """`_usable` of this version's folder."""
    global _folder
    if _folder is None:
        _folder = _usable(user_folder() / f"kernels-{_version()}")
    return _folder


def cache_folder() -> Path:
    """The folder of this version's compiled kernels."""
    return _chosen()[0]


def inline(function: F) -> F:
    """A piece of a kernel, compiled into the kernels that call it."""
    compiled: F = numba.njit(**_OPTIONS)(function)
    return compiled


def kernel(signature: Any) -> Callable[[F], F]:
    """A kernel of that signature: it runs without the GIL, and the next process loads it from `cache_folder`."""

    def declare(function: F) -> F:
        # Numba asks for its folder while a function is declared; nobody else's functions are to land in ours
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(cache_folder())
        try:
            compiled: F = numba.njit(nogil=True, cache=True, **_OPTIONS)(function)
        finally:
            numba.config.CACHE_DIR = before
        _declared.append((compiled, signature))
        return compiled

    return declare


def compile_all() -> Ready:
    """Make every declared kernel ready: from the cache folder, or by compiling it (which is said on stderr)."""
    global _ready
    if _ready is None:  # asked without the lock, which another thread may hold while the process forks
        with _lock:
            if _ready is None:
                _ready = _make_ready(_declared, *_chosen())
    return _ready


class _Progress(event.Listener):
    """Says that kernels are being compiled: as soon as Numba begins to, which is when it found no code to load."""

    def __init__(self, kernels: list[Any]) -> None:
        self._numbers = {id(kernel): number for number, kernel in enumerate(kernels)}
        self.compiled = 0
        self._said = False

    def on_start(self, of: Any) -> None:
        number = self._numbers.get(
            id(of.data["dispatcher"])
        )  # None: somebody else's function, in another thread
        if number is not None:
            self.compiled += 1
            text = f"compiling up to {len(self._numbers)} kernels for this processor, once (half a minute)"
            _say(text, number, len(self._numbers), first=not self._said)
            self._said = True

    def on_end(self, of: Any) -> None:
        pass


def _make_ready(declared: list[tuple[Any, Any]], folder: Path, lost: str | None) -> Ready:
    """Load or compile kernels, which are kept in `folder` unless `lost` says why not."""
    start, progress = time.perf_counter(), _Progress([compiled for compiled, _ in declared])
    with event.install_listener("numba:compile", progress):
        for compiled, signature in declared:
            if compiled.signatures:  # an attempt before this one was interrupted
                continue
            try:
                compiled.compile(signature.args)
            except OSError as error:  # it is compiled, but could not be kept: a full disk
                if not compiled.signatures:
                    raise
                lost = lost or str(error)
            compiled.disable_compile()
    if not progress.compiled:
        lost = None  # there was nothing to keep
    else:
        seconds = time.perf_counter() - start
        kept = f"kept in {folder}" if lost is None else f"but not kept ({lost})"
        _say(f"compiled in {seconds:.0f} s; {kept}")
    return Ready(progress.compiled, folder, lost)


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
