"""Kernels compiled by NVRTC: an architecture comes in, cubins come out, made once for each source and compiler.

NVRTC needs no card: `sparsegen warmup` and the tests compile with it anywhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..interface import BackendError
from . import sources

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
"""The architectures that the tests compile for; a card of another is compiled for just so, from sm_80 on."""

OPTIONS = ("--std=c++17", "--fmad=false", "--ptxas-options=-v", "-default-device")
"""`--fmad=false`: a product and a sum are contracted only where a kernel says `fmaf`, so a value's bits are the
kernel's, not the compiler's."""

CACHE = "SPARSEGEN_CACHE"
"""Environment variable: the folder of compiled kernels."""


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of a multiprocessor, as the assembler reports it."""

    registers: int
    shared_bytes: int
    spilled_bytes: int


def _nvrtc() -> Any:
    """The bindings of NVRTC. Raises BackendError: they, or the library, are missing."""
    try:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()
    except ImportError as error:
        raise BackendError(f"CuPy is not installed ({error}): pip install 'sparsegen[cuda13]'") from None
    except RuntimeError as error:
        raise BackendError(f"NVRTC is missing ({error}): pip install 'sparsegen[cuda13]'") from None
    return nvrtc


def compiled(file: str, architecture: str) -> tuple[bytes, str]:
    """The cubin of a file of kernels, and the compiler's log. Raises BackendError: it does not compile."""
    nvrtc = _nvrtc()
    headers = sources.headers()
    program = nvrtc.createProgram(
        sources.source(file),
        f"{file}.cu",
        [text.encode() for text in headers.values()],
        [name.encode() for name in headers],
    )
    try:
        nvrtc.compileProgram(program, [*OPTIONS, f"--gpu-architecture={architecture}"])
        return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise BackendError(f"{file}.cu does not compile for {architecture}: {error}\n{log}") from None
    finally:
        nvrtc.destroyProgram(program)


def usage(log: str) -> dict[str, Usage]:
    """The usage of each kernel, from the log of a compilation."""
    found: dict[str, Usage] = {}
    for part in log.split("Compiling entry function '")[1:]:
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert registers is not None, part
        found[part.partition("'")[0]] = Usage(int(registers[1]), int(shared[1]) if shared else 0, spilled)
    return found


def cache_folder() -> Path:
    """Where cubins are kept: SPARSEGEN_CACHE, else the user's cache folder."""
    given = os.environ.get(CACHE)
    return Path(given) if given else Path.home() / ".cache" / "sparsegen"


def _key(file: str, architecture: str) -> str:
    parts = [
        sources.source(file),
        *sources.headers().values(),
        *OPTIONS,
        architecture,
        str(_nvrtc().getVersion()),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def cubin(file: str, architecture: str, *, keep: bool = True) -> bytes:
    """The cubin of a file of kernels, from the cache or compiled now and kept there.

    A cache that cannot be written is no error: the next process compiles again. Raises BackendError.
    """
    path = cache_folder() / "cuda" / f"{file}-{architecture}-{_key(file, architecture)}.cubin"
    try:
        found = path.read_bytes()
    except OSError:
        found = b""
    if found[:4] == b"\x7fELF":  # an interrupted write leaves nothing at this path; a damaged disk may
        return found
    made, _ = compiled(file, architecture)
    if keep:
        _write(path, made)
    return made


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        os.replace(name, path)
    except OSError:
        return


def warm_up(architecture: str, progress: Callable[[int, int, str], None] | None = None) -> Path:
    """Compile all kernels for an architecture into the cache, whose folder is returned.

    `progress(done, total, file)` is called after each file. Raises BackendError: a kernel does not compile, or the next
    process would have to compile again.
    """
    files = sources.files()
    for done, file in enumerate(files):
        cubin(file, architecture)
        if progress is not None:
            progress(done + 1, len(files), file)
    folder = cache_folder() / "cuda"
    if not any(folder.glob(f"{files[-1]}-{architecture}-*.cubin")):
        raise BackendError(f"{folder} cannot be written: the next process would compile again; set {CACHE}")
    return folder
