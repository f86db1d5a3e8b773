"""The memory of one session: a backend comes in, an allocator comes out that reuses what layers and edits free.

A page that is touched first has to be found by the system, which takes longer than to paint it; so memory that is freed
serves the next arrays. They are cut from chunks, larger from one to the next.
"""

from __future__ import annotations

import math

from sparsegen.backends.interface import TILE, Array, Backend

from .allocator import Allocator, BackendAllocator
from .chunks import Chunk, cut_from, map_ram, shown
from .mapped_arrays import MappedArrays
from .turn import Turn

LEAST, MOST = 1 << 20, 1 << 26
"""Bytes of a chunk, unless a larger array needs one: as many as all chunks before it."""
LARGE_COPY = 1 << 20
"""Bytes of a copy of tiles that is cut from a chunk: smaller ones are found as fast elsewhere."""


class OwnStore(MappedArrays):
    """An allocator of arrays in RAM for one session alone."""

    not_copied = "make another, OwnStore()"

    def __init__(self, turn: Turn | None = None) -> None:
        super().__init__(turn)
        self._chunks: list[Chunk] = []

    def __repr__(self) -> str:
        return f"<OwnStore: {shown(self.ram_bytes)}>"

    def fresh(self) -> Allocator:
        return OwnStore(self.turn)

    def place_for_tiles(self, canvas: Array, count: int) -> Array | None:
        shape = (count, TILE, TILE, int(canvas.shape[3]))
        if math.prod(shape) * canvas.itemsize < LARGE_COPY:
            return None
        return self.allocate(shape, dtype=str(canvas.dtype))

    def trim(self) -> None:
        with self._lock:
            self._take_back()
            self._drop_unused()

    def _place(self, size: int) -> tuple[Chunk, int]:
        return cut_from(self._chunks, size, self._chunk)

    def _forget(self) -> None:
        super()._forget()
        self._chunks.clear()

    def _chunk(self, size: int) -> Chunk:
        """A new chunk, for an array of `size` bytes and for others. Raises MemoryError."""
        length = max(size, LEAST, min(self.ram_bytes, MOST))
        try:
            mapping = map_ram(length)
        except MemoryError:
            self._drop_unused()
            length = size
            mapping = map_ram(length)
        self.ram_bytes += length
        return Chunk(mapping, length)

    def _drop_unused(self) -> None:
        """Free the chunks of which no array has a part."""
        self._chunks[:] = [chunk for chunk in self._chunks if chunk.free < chunk.size]
        self.ram_bytes = sum(chunk.size for chunk in self._chunks)


def own_allocator(backend: Backend, turn: Turn | None = None) -> Allocator:
    """An allocator of one session alone."""
    return OwnStore(turn) if backend.in_main_memory else BackendAllocator(backend, turn=turn)
