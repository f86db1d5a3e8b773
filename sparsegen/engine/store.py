"""Memory for canvases: a budget comes in, arrays come out, in RAM first and then in mapped files.

A diffusion session keeps the canvases of every step, which may not fit in RAM. A `Store` cuts arrays from blocks:
anonymous mappings up to the budget, then pieces of temporary files, which the system reads and writes page by page, so
that an edit touches only the pages around its tiles. The files have no name (where the system allows it) and are
deleted when the process ends, however it ends. A block is reused once its last array is freed.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from sparsegen.backends.interface import TILE, Array, Backend

from ..checks import is_whole
from ..errors import InputError, SessionError
from .chunks import Chunk, cut_from, map_ram, shown
from .mapped_arrays import MappedArrays

CHUNK = 1 << 28
"""Bytes of a file; a larger array gets a separate one."""
LARGE = 1 << 22
"""Blocks of at least so many bytes leave a part of the RAM budget free, for the journals of edits."""
RESERVED = 256 << 20
"""That part; of a budget below 1 GiB, a quarter. It is reserved for smaller blocks: filling fresh pages of a file takes
several times as long as filling RAM.
"""

_POPULATE_WRITE = 23
"""Linux's MADV_POPULATE_WRITE, which Python does not name: find all pages at once, ready to be written."""

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
    """Bytes of "4GB", "500 MB", "2GiB" or 4000000000; None: no limit. Raises InputError, also for "4", without unit."""
    if size is None:
        return None
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]i?)?(b?)\s*", size.lower())
        if found is not None:
            number, unit, byte = found[1], found[2] or "", found[3]
            if not (unit or byte) and Fraction(number):
                raise InputError(f"{size!r} has no unit; write 4GB, 500MB, or {number}B for bytes")
            return int(Fraction(number) * _UNITS[unit])
    elif is_whole(size) and size >= 0:
        return int(size)
    raise InputError(f"{size!r} is not an amount of memory; write 4GB or 500MB")


class _Block(Chunk):
    """RAM for one array, of which nothing is cut: a separate mapping. Raises MemoryError."""

    def __init__(self, size: int) -> None:
        super().__init__(map_ram(size), size)


class Store(MappedArrays):
    """An allocator of arrays in RAM up to `budget` bytes, then in files in `folder`; safe to use from several threads.

    Parameters
    ----------
    budget
        Bytes of RAM, or text such as "4GB"; None: no limit, and no file ever.
    folder
        The folder of the files; None: the system's folder for temporary files.

    Raises
    ------
    InputError
        The budget is not an amount of memory, or the folder is not writable.
    """

    not_copied = "make another, Store(budget, folder)"

    def __init__(self, budget: int | str | None = None, folder: str | os.PathLike[str] | None = None) -> None:
        self.budget = parse_size(budget)
        self.folder = Path(tempfile.gettempdir() if folder is None else folder)
        wanted = self.budget is not None or folder is not None
        if wanted and not (self.folder.is_dir() and os.access(self.folder, os.W_OK | os.X_OK)):
            raise InputError(f"{self.folder}: not a writable folder; give another one for the cache's files")
        super().__init__()
        self._free: dict[int, list[_Block]] = {}
        """Size -> freed RAM blocks, kept for reuse."""
        self._files: list[Chunk] = []
        self.file_bytes = 0
        """Disk space of all files."""

    def __repr__(self) -> str:
        budget = "no budget" if self.budget is None else f"a budget of {shown(self.budget)}"
        return f"<Store with {budget}: {shown(self.ram_bytes)} in RAM, {shown(self.file_bytes)} in files>"

    def checked(self, backend: Backend) -> Store:
        """This store, if `backend` can compute in its arrays. Raises InputError. (See `device_store.py` for others.)"""
        if not backend.in_main_memory:
            raise InputError(
                f"backend {backend.name!r} computes in its device's memory, expected main memory; choose numba or "
                "reference"
            )
        return self

    def place_for_tiles(self, canvas: Array, count: int) -> Array | None:
        if self.budget is None:
            return None
        return self.allocate((count, TILE, TILE, canvas.shape[3]), dtype=str(canvas.dtype))

    def drop_pages(self) -> None:
        """Drop the pages of files from the process's memory; the next access maps them again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            with self._lock:
                for file in self._files:
                    file.mapping.madvise(mmap.MADV_DONTNEED)

    def ram_of(self, blocks: Sequence[int]) -> int:
        """A lower bound of the bytes that lie in RAM when an empty store holds blocks of these sizes."""
        if self.budget is None:
            return sum(blocks)
        small = sum(size for size in blocks if size < LARGE)
        large = min(sum(blocks) - small, max(0, int(self._limit(LARGE)) - small))
        return min(small, self.budget) + large

    def journals_on_disk(self, journals: int, *, in_ram: int) -> int:
        """The bytes of `journals` that go into files when canvases take `in_ram` bytes of the RAM."""
        return 0 if self.budget is None else max(0, journals - max(0, self.budget - in_ram))

    def check_room(self, blocks: Sequence[int], *, released: int = 0) -> None:
        """Raise SessionError if blocks of these sizes do not fit budget and disk after `released` bytes are freed."""
        if self.budget is None:
            return
        needed = sum(blocks)
        with self._lock:
            self._take_back()
            ram = max(0, self.ram_of(blocks) - self.ram_bytes + self._waiting)
            free = self.disk_free() + sum(file.free for file in self._files)
        on_disk = max(0, needed - released - ram)
        if on_disk > free:
            raise SessionError(
                f"the caches need {shown(needed)}: {shown(needed - on_disk)} in RAM and {shown(on_disk)} on the "
                f"disk of {self.folder}, where {shown(free)} are free; give more RAM, another folder or fewer steps"
            )

    def disk_free(self) -> int:
        """Free bytes on the folder's disk."""
        return shutil.disk_usage(self.folder).free

    # -- blocks ------------------------------------------------------------------------------------------

    def _place(self, size: int) -> tuple[Chunk, int]:
        waiting = self._free.get(size)
        if waiting:
            return waiting.pop(), 0
        used = self.ram_bytes - self._waiting
        # blocks kept for reuse never take more RAM than blocks in use
        limit = self._limit(size)
        if self._waiting > used or self.ram_bytes + size > limit:
            self._drop_free()
        if self.ram_bytes + size <= limit:
            try:
                block = _Block(size)
            except MemoryError:
                self._drop_free()
                block = _Block(size)
            self.ram_bytes += size
            return block, 0
        return cut_from(self._files, size, self._file)

    def _limit(self, size: int) -> float:
        """The RAM that all blocks together may take after a block of `size` bytes is added."""
        if self.budget is None:
            return math.inf
        return self.budget - (min(RESERVED, self.budget // 4) if size >= LARGE else 0)

    @property
    def _waiting(self) -> int:
        """RAM of the blocks kept for reuse."""
        return sum(size * len(blocks) for size, blocks in self._free.items())

    def _file(self, size: int) -> Chunk:
        """A new mapped file. Its disk space is allocated now: writing to a mapping on a full disk kills the process."""
        for file in [file for file in self._files if file.free == file.size]:  # unused, and too small
            self._files.remove(file)
            self.file_bytes -= file.size
        # a nearly full disk may still hold a file of this block alone
        for length in (max(size, CHUNK), size):
            try:
                mapping = self._mapped(length)
            except OSError as error:
                if error.errno == errno.ENOMEM:  # a limit of the process, not of the disk
                    raise
                why = error.strerror or str(error)
                continue
            self.file_bytes += length
            return Chunk(mapping, length)
        raise SessionError(
            f"{self.folder}: no room for another {shown(size)} of caches ({why}); give more RAM or another folder"
        )

    def _mapped(self, size: int) -> mmap.mmap:
        with tempfile.TemporaryFile(dir=self.folder, prefix="sparsegen-") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for _ in range(0, size, 1 << 20):
                    file.write(bytes(min(size, 1 << 20)))
                file.flush()
            mapping = mmap.mmap(file.fileno(), size)
            if sys.platform == "linux":
                # all its pages at once: edits with large journals take 0.65 to 0.8 of the time of one by one; one with
                # a small journal, which needs a part of the file, up to twice as long
                with contextlib.suppress(OSError):  # a kernel before 5.14
                    mapping.madvise(_POPULATE_WRITE)
        if hasattr(mmap, "MADV_RANDOM"):
            # an edit touches scattered pages; reading megabytes ahead of each is wasted
            mapping.madvise(mmap.MADV_RANDOM)
        return mapping

    def _drop_free(self) -> None:
        """Free the blocks that are kept for reuse."""
        self.ram_bytes -= self._waiting
        self._free.clear()

    def _reuse(self, size: int, chunk: Chunk, at: int) -> None:
        if isinstance(chunk, _Block):
            self._free.setdefault(size, []).append(chunk)
        else:
            super()._reuse(size, chunk, at)

    def _forget(self) -> None:
        super()._forget()
        self._free.clear()
        self._files.clear()
        self.file_bytes = 0
