"""Kernels compiled by NVRTC: an architecture comes in, cubins come out, made once for each source and compiler.

NVRTC needs no card: `sparsegen warmup --arch sm_90` and the tests compile with it anywhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..caches import CACHE_VARIABLE, KernelFiles, choose, report
from ..interface import BackendError
from . import sources

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
"""The architectures that the tests compile for. Any from sm_80 on can be compiled for."""

OLDEST = 80
"""The number of the oldest architecture: Ampere, the first with asynchronous copies and TF32."""

OPTIONS = ("--std=c++17", "--fmad=false", "--ptxas-options=-v", "-default-device")
"""`--fmad=false`: a product and a sum are contracted only where a kernel says `fmaf`, so a value's bits are the
kernel's, not the compiler's."""


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of a multiprocessor, as the assembler reports it."""

    registers: int
    shared_bytes: int
    """Static shared memory of a block."""
    stack_bytes: int
    """Local memory of a thread: arrays that are indexed by variables."""
    spilled_bytes: int
    """Local memory written and read because registers were too few."""


@cache
def nvrtc() -> Any:
    """The bindings of NVRTC. Raises BackendError: CuPy, or the library, is missing."""
    try:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()
    except ImportError:
        raise BackendError("CuPy is not installed: pip install 'sparsegen[cuda13]'") from None
    except RuntimeError:  # its message has a line for each folder that was searched
        raise BackendError(
            "NVRTC, CUDA's compiler, is not installed: pip install 'sparsegen[cuda13]' "
            "(sparsegen[cuda12] beside cupy-cuda12x)"
        ) from None
    return nvrtc


def target(architecture: str) -> str:
    """The architecture to compile for: this one, or the nearest older one that NVRTC knows and whose cubins it runs.

    Raises BackendError: it is none, is too old, or NVRTC knows none of its generation.
    """
    found = re.fullmatch(r"sm_(\d{2,3})", architecture)
    if found is None:
        raise BackendError(
            f"architecture {architecture!r} is unknown; write {', '.join(ARCHITECTURES)} or the like"
        )
    number = int(found[1])
    if number < OLDEST:
        raise BackendError(f"architecture {architecture} is too old; the kernels need sm_{OLDEST} or newer")
    known = [each for each in nvrtc().getSupportedArchs() if each // 10 == number // 10 and each <= number]
    if not known:
        version = ".".join(map(str, nvrtc().getVersion()))
        raise BackendError(
            f"NVRTC {version} does not know {architecture}: pip install --upgrade nvidia-cuda-nvrtc"
        )
    return f"sm_{max(known)}"


def compiled(file: str, architecture: str, *options: str, source: str | None = None) -> tuple[bytes, str]:
    """The cubin of a file of kernels, and the compiler's log, which is empty where NVRTC remembers the cubin.

    `options` are NVRTC's, beside `OPTIONS`; `source` is the text of a file elsewhere, such as checks of a card. Raises
    BackendError: it does not compile.
    """
    library, headers = nvrtc(), sources.headers()
    program = library.createProgram(
        sources.source(file) if source is None else source,
        f"{file}.cu",
        [text.encode() for text in headers.values()],
        [name.encode() for name in headers],
    )
    try:
        library.compileProgram(program, [*OPTIONS, *options, f"--gpu-architecture={architecture}"])
        return library.getCUBIN(program), library.getProgramLog(program)
    except library.NVRTCError as error:
        log = library.getProgramLog(program)
        raise BackendError(f"{file}.cu does not compile for {architecture}: {error}\n{log}") from None
    finally:
        library.destroyProgram(program)


def usage(log: str) -> dict[str, Usage]:
    """The usage of each kernel, from the log of a compilation."""
    found: dict[str, Usage] = {}
    for part in log.split("Compiling entry function '")[1:]:

        def number(pattern: str, part: str = part) -> int:
            return sum(map(int, re.findall(pattern, part)))

        found[part.partition("'")[0]] = Usage(
            registers=number(r"Used (\d+) registers"),
            shared_bytes=number(r"(\d+) bytes smem"),
            stack_bytes=number(r"(\d+) bytes stack frame"),
            spilled_bytes=number(r"(\d+) bytes spill"),
        )
    return found


# -- the cache -------------------------------------------------------------------------------------------


@cache
def cubin_files() -> KernelFiles:
    """The files of cubins."""
    return KernelFiles(choose("cuda"), ".cubin")


def key(file: str, architecture: str) -> str:
    """A digest of everything that a cubin depends on: sources, options, architecture, compiler."""
    parts = [
        sources.source(file),
        *sources.headers().values(),
        *OPTIONS,
        architecture,
        str(nvrtc().getVersion()),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def cubins(architecture: str) -> dict[str, bytes]:
    """The cubin of every file of kernels, from the cache, or compiled now, reported on stderr and kept there.

    Where none can be kept, the next process compiles again. Raises BackendError: one does not compile.
    """
    names, files = sources.files(), cubin_files()
    keys = {name: key(name, architecture) for name in names}
    made: dict[str, bytes] = {}
    for name in names:
        found = files.load(_file(name, architecture, keys[name]), keys[name])
        if found is not None:
            made[name] = found
    missing = [name for name in names if name not in made]
    if not missing:
        return made
    start = time.perf_counter()
    text = f"compiling CUDA kernels for {architecture}, once (a few seconds)"
    report(text, 0, len(missing))
    for done, (name, code) in enumerate(_compile(missing, architecture), 1):
        made[name] = code
        files.save(_file(name, architecture, keys[name]), keys[name], code)
        report(text, done, len(missing), first=False)
    because = "" if files.why is None else f" ({files.why})"
    kept = f"kept in {files.kept}{because}" if files.lost is None else f"but not kept ({files.lost})"
    report(f"compiled in {time.perf_counter() - start:.0f} s; {kept}")
    return made


def _file(name: str, architecture: str, digest: str) -> str:
    """A cubin's name in the cache; with the key, so that versions of this package live side by side."""
    return f"{name}-{architecture}-{digest[:12]}"


def _compile(names: list[str], architecture: str) -> Iterator[tuple[str, bytes]]:
    """Files compiled in several threads (NVRTC releases Python's lock), in order."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        yield from zip(names, pool.map(lambda name: compiled(name, architecture)[0], names), strict=True)


def warm_up(architecture: str) -> str:
    """Compile all kernels for an architecture into the cache; returns a line that says where they are.

    Raises BackendError: one does not compile, or the next process would have to compile them again.
    """
    files, chosen = cubin_files(), target(architecture)
    cubins(chosen)
    if files.lost is not None:
        raise BackendError(
            f"the kernels were compiled, but the next process must compile them again: {files.lost}; "
            f"name a folder that can be written in {CACHE_VARIABLE}"
        )
    because = files.why if files.folders.private in files.used else None
    until = "" if because is None else f", until the system clears it, because {because}"
    return f"kernels for {chosen} in {' and '.join(map(str, sorted(files.used)))}{until}"
