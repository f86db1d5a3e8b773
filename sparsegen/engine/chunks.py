"""Chunks of memory: a mapping comes in, blocks are cut from it, and those that are freed are joined again."""

from __future__ import annotations

import contextlib
import errno
import mmap
from collections.abc import Callable

PAGE = 4096
"""Blocks begin and end on multiples of this."""
_HUGE = 1 << 22
"""A mapping of at least so many bytes has huge pages, where the system has them: far fewer page faults."""


def block_bytes(size: int) -> int:
    """The bytes of a block for an array of `size` bytes: whole pages."""
    return max(-(-size // PAGE) * PAGE, PAGE)


def shown(size: int) -> str:
    """A number of bytes for people to read."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def map_ram(size: int) -> mmap.mmap:
    """A mapping of RAM. Raises MemoryError."""
    # private: not shared with forked processes, and nearly every system gives such mappings huge pages
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        mapping = mmap.mmap(-1, size, **private)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"an array of {shown(size)}") from None
        raise
    if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # the kernel has no huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


class Chunk:
    """A mapping that blocks are cut from, and its free spans."""

    def __init__(self, mapping: mmap.mmap, size: int) -> None:
        self.mapping, self.size = mapping, size
        self.spans = [(0, size)]
        """(begin, end) of the free bytes, in order; no two spans touch."""

    @property
    def free(self) -> int:
        """Number of free bytes."""
        return sum(end - begin for begin, end in self.spans)

    def cut(self, size: int) -> int | None:
        """The offset of `size` bytes that are taken out of the free ones; None: no span is as large."""
        for i, (begin, end) in enumerate(self.spans):
            if end - begin >= size:
                self.spans[i : i + 1] = [(begin + size, end)] if end - begin > size else []
                return begin
        return None

    def join(self, begin: int, size: int) -> None:
        """Free a block, joining it with the spans that it touches."""
        joined: list[tuple[int, int]] = []
        for span in sorted([*self.spans, (begin, begin + size)]):
            if joined and joined[-1][1] == span[0]:
                joined[-1] = joined[-1][0], span[1]
            else:
                joined.append(span)
        self.spans = joined


def cut_from(chunks: list[Chunk], size: int, more: Callable[[int], Chunk]) -> tuple[Chunk, int]:
    """The first chunk that has `size` bytes, and the offset at which they were cut out of it.

    Where none has, it is `more(size)`, a chunk of at least so many, which joins the others.
    """
    for chunk in chunks:
        at = chunk.cut(size)
        if at is not None:
            return chunk, at
    chunk = more(size)
    chunks.append(chunk)
    return chunk, chunk.cut(size) or 0
