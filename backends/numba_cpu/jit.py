"""How kernels are compiled: typed Python functions come in, machine code comes out and is kept for later processes.

`inline` marks a piece of a kernel, `kernel` one that is called from Python. Nothing is compiled before
`compile_all`, which takes some seconds once for a machine and a version of this package, says so on stderr, and
keeps the result in a folder of the user's; the next process loads it from there in a moment.

The folder holds machine code as Numba pickles it: whoever can write there can run code as this user. So it is made
for this user alone, and one that somebody else owns or may write to is not used.
"""

from __future__ import annotations

import atexit
import contextlib
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
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba

F = TypeVar("F", bound=Callable[..., Any])

# No reference counts: kernels allocate nothing, and counting every access to an array takes longer than the access.
_OPTIONS = {"error_model": "numpy", "boundscheck": False, "_nrt": False}

CACHE_VARIABLE = "SPARSEGEN_CACHE_DIR"
"""Environment variable: where compiled kernels are kept, instead of the user's cache folder."""


def _version() -> str:
    """A digest of all that the machine code depends on: these sources, Numba, Python and the processor."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for source in sorted([*here.glob("*.py"), here.parent / "interface.py"]):
        digest.update(source.read_bytes())
    processor = numba.config.CPU_NAME, numba.config.CPU_FEATURES, llvm.get_host_cpu_name()
    features = llvm.get_host_cpu_features().flatten()
    digest.update(repr((numba.__version__, platform.python_version(), processor, features)).encode())
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


def _usable(folder: Path) -> Path:
    """`folder`, made and writable; or where that cannot be, one for this process alone with a copy of what is there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _ours(folder):
            tempfile.TemporaryFile(dir=folder).close()
            return folder
    except OSError:
        pass  # no room, no right, no folder
    private = Path(tempfile.mkdtemp(prefix="sparsegen-"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    try:
        if _trusted(folder):
            shutil.copytree(folder, private, dirs_exist_ok=True)
    except OSError:
        pass  # what could not be copied is compiled again
    return private


def _trusted(folder: Path) -> bool:
    """Whether code in a folder that is not used itself may be run: ours or the administrator's, and nobody else's."""
    if sys.platform == "win32":
        return folder.is_dir()
    state = folder.stat()
    return state.st_uid in (0, os.getuid()) and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


_folder: Path | None = None
_declared: list[tuple[Any, Any]] = []
_lock = threading.Lock()
_ready = False


def cache_folder() -> Path:
    """The folder of this version's compiled kernels."""
    global _folder
    if _folder is None:
        _folder = _usable(user_folder() / f"kernels-{_version()}")
    return _folder


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


def compile_all() -> None:
    """Make every declared kernel ready: from the cache folder, or by compiling it (once; said on stderr)."""
    if not _ready:  # asked without the lock, which another thread may hold while the process forks
        with _lock:
            _compile_all()


def _compile_all() -> None:
    global _ready
    if _ready:
        return
    done = cache_folder() / "complete"
    first_time = not done.exists()
    start = time.perf_counter()
    for number, (compiled, signature) in enumerate(_declared):
        if first_time:
            text = f"compiling {len(_declared)} kernels for this processor, once (half a minute)"
            _say(text, number, len(_declared))
        try:
            compiled.compile(signature.args)
        except OSError:  # it is compiled, but could not be kept: a full disk
            if not compiled.signatures:
                raise
        compiled.disable_compile()
    if first_time:
        seconds = time.perf_counter() - start
        _say(f"compiled in {seconds:.0f} s; kept in {cache_folder()}")
        with contextlib.suppress(OSError):
            done.touch()
    _ready = True


def _say(text: str, done: int = 0, of: int = 0) -> None:
    """A line on stderr. With `of`, one that counts up in its place, or said once where nobody watches it count."""
    if sys.stderr is None:
        return
    if not of:
        print(f"sparsegen: {text}", file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        print(f"sparsegen: {text}: {done} of {of} … ", end="\r", file=sys.stderr, flush=True)
    elif not done:
        print(f"sparsegen: {text} …", file=sys.stderr, flush=True)
