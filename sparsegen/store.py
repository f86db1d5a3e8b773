"""Memory for canvases: a budget comes in, arrays come out, in RAM first and then in files that are mapped.

A diffusion session keeps the canvases of every step, which can be more than fits in RAM. A `Store` gives arrays out of
blocks: anonymous ones up to the budget, then pieces of temporary files, which the system reads and writes page by page,
so that an edit touches only the pages around its tiles. The files have no name (where the system allows it) and vanish
with the process, however it ends. When the last array of a block is gone, the block serves again.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsegen.backends.interface import Array, Host

from .errors import InputError, SessionError

PAGE = 4096
"""Blocks begin and end on multiples of this."""
CHUNK = 1 << 28
"""Bytes of a file; a larger array has one of its own."""

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def parse_size(size: int | str | None) -> int | None:
    """Bytes of "4GB", "500 MB", "2GiB", 4000000000; None: no limit. Raises InputError."""
    if size is None:
        return None
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]i?)?b?\s*", size.lower())
        if found is not None:
            return int(float(found[1]) * _UNITS[found[2] or ""])
    elif not isinstance(size, bool) and isinstance(size, int) and size >= 0:
        return size
    raise InputError(f"{size!r} is no amount of memory; write 4GB, 500MB, or a number of bytes")


class _Chunk:
    """A mapping that blocks are cut from, front to back."""

    def __init__(self, mapping: mmap.mmap, size: int, in_file: bool) -> None:
        self.mapping, self.size, self.in_file = mapping, size, in_file
        self.used = 0


class Store:
    """Gives out arrays in RAM up to `budget` bytes, then in files in `folder`; may be used from several threads.

    Parameters
    ----------
    budget
        Bytes of RAM, or text such as "4GB"; None: no limit, and no file ever.
    folder
        Where files go; None: the system's folder for temporary files.

    Raises
    ------
    InputError
        The budget is no amount of memory, or the folder cannot be written to.
    """

    def __init__(self, budget: int | str | None = None, folder: str | os.PathLike[str] | None = None) -> None:
        self.budget = parse_size(budget)
        self.folder = Path(tempfile.gettempdir() if folder is None else folder)
        if self.budget is not None and not os.access(self.folder, os.W_OK | os.X_OK):
            raise InputError(
                f"{self.folder}: no folder that can be written to; name one for the cache's files"
            )
        self._lock = threading.RLock()  # a block may be given back while another is being cut
        self._free: dict[tuple[int, bool], list[tuple[_Chunk, int]]] = {}
        self._files: list[_Chunk] = []
        self._local = threading.local()
        self.ram_bytes = 0
        """RAM that blocks take, those that wait to serve again included."""
        self.file_bytes = 0
        """Disk that files take."""
        self._closed = False

    def allocate(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        """An array of `shape` and of no particular value.

        Raises
        ------
        SessionError
            The disk is full; nothing that was given out is touched.
        """
        kind = np.dtype(dtype)
        count = math.prod(shape)
        size = max(-(-count * kind.itemsize // PAGE) * PAGE, PAGE)
        with self._lock:
            chunk, at = self._block(size)
        memory = (ctypes.c_char * size).from_buffer(chunk.mapping, at)
        # every view of the array keeps `memory` alive, and with it the block
        weakref.finalize(memory, self._give_back, size, chunk, at).atexit = False
        return np.frombuffer(memoryview(memory), kind, count).reshape(tuple(shape))

    def scratch(self, shape: Sequence[int]) -> Array:
        """A float32 array in RAM that this thread's next call writes over; beside the budget."""
        count = math.prod(shape)
        found: Host | None = getattr(self._local, "floats", None)
        if found is None or len(found) < count:
            found = self._local.floats = np.empty(count, np.float32)
        return found[:count].reshape(tuple(shape))

    def adopt(self, values: Array) -> Array:
        """A copy of an array in this store, where it counts; the array itself where there is no limit."""
        if self.budget is None:
            return values
        kept = self.allocate(values.shape, dtype=str(values.dtype))
        kept[...] = values
        return kept

    def settle(self) -> None:
        """Let the system take the pages of files out of the process's memory, until they are read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            with self._lock:
                for chunk in self._files:
                    chunk.mapping.madvise(mmap.MADV_DONTNEED)

    def check_room(self, needed: int) -> None:
        """Raise SessionError if `needed` bytes more do not fit the budget and the disk."""
        on_disk = 0 if self.budget is None else max(0, needed - max(0, self.budget - self.ram_bytes))
        free = self.disk_free() + sum(
            size * len(blocks) for (size, file), blocks in self._free.items() if file
        )
        if on_disk > free:
            raise SessionError(
                f"the caches need {_shown(needed)}: {_shown(needed - on_disk)} in RAM and {_shown(on_disk)} on the "
                f"disk of {self.folder}, where {_shown(free)} are free; give more RAM, another folder or fewer steps"
            )

    def disk_free(self) -> int:
        """Bytes that the folder's disk has left."""
        return shutil.disk_usage(self.folder).free

    # -- blocks ------------------------------------------------------------------------------------------

    def _block(self, size: int) -> tuple[_Chunk, int]:
        if self._closed:
            raise SessionError("the session is closed")
        for in_file in (False, True):
            blocks = self._free.get((size, in_file))
            if blocks:
                return blocks.pop()
        if self.budget is not None and self.ram_bytes + size > self.budget:
            self._drop_free()
        if self.budget is None or self.ram_bytes + size <= self.budget:
            mapping = mmap.mmap(-1, size)
            if size >= 1 << 22 and hasattr(mmap, "MADV_HUGEPAGE"):
                mapping.madvise(mmap.MADV_HUGEPAGE)  # fewer faults when it is painted
            self.ram_bytes += size
            return _Chunk(mapping, size, in_file=False), 0
        chunk = next((chunk for chunk in self._files if chunk.used + size <= chunk.size), None)
        if chunk is None:
            chunk = self._file(max(size, CHUNK))
            self._files.append(chunk)
        at, chunk.used = chunk.used, chunk.used + size
        return chunk, at

    def _file(self, size: int) -> _Chunk:
        """A new mapped file; its room on the disk is taken now: a write to a full disk would end the process."""
        try:
            with tempfile.TemporaryFile(dir=self.folder, prefix="sparsegen-") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    for _ in range(0, size, 1 << 20):
                        file.write(bytes(min(size, 1 << 20)))
                    file.flush()
                mapping = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise SessionError(
                f"{self.folder}: no room for {_shown(size)} more of caches ({error.strerror or error}); "
                "give more RAM or another folder"
            ) from None
        self.file_bytes += size
        return _Chunk(mapping, size, in_file=True)

    def _give_back(self, size: int, chunk: _Chunk, at: int) -> None:
        with self._lock:
            if not self._closed:
                self._free.setdefault((size, chunk.in_file), []).append((chunk, at))

    def _drop_free(self) -> None:
        """Return the RAM of blocks that nobody uses."""
        for key in [key for key in self._free if not key[1]]:
            for chunk, _ in self._free.pop(key):
                self.ram_bytes -= chunk.size

    def close(self) -> None:
        """Give nothing out any more; memory and disk are free as soon as the last array is gone."""
        with self._lock:
            self._closed = True
            self._free.clear()
            self._files.clear()
            self.ram_bytes = self.file_bytes = 0


def _shown(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
