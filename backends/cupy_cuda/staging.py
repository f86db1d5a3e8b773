"""Copies between the host and a card: pageable arrays come in, and pass through pinned memory without a wait.

A copy from pageable memory may wait for the card; one from pinned memory is queued. Pinned memory must not change until
the queue has passed the copy: an event is recorded behind each copy, and memory is used again behind its event.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ..interface import Array, Host

ROOM = 8 << 20
"""Bytes of the ring that uploads pass through. More than that in one go waits for the first copies to be done."""
PIECE = ROOM // 4
"""Bytes of one copy: the host fills a piece while the card copies those before it."""
LARGEST = 16 << 20
"""Bytes of the largest download into pinned memory: it stays pinned for the next."""


class Ring:
    """Pinned memory that uploads pass through in turn. One thread at a time uses it.

    Parameters
    ----------
    memory
        uint8 `[ROOM]`, pinned.
    """

    def __init__(self, memory: Host) -> None:
        self._memory = memory
        self._next = 0
        self._pending: deque[tuple[int, int, Any]] = deque()
        """Begin, end and event of each copy that may not be done, in the queue's order."""

    def take(self, size: int) -> Host:
        """`size` bytes that no copy reads; waits for the copies that do. Follow it by `passed`."""
        while self._pending and self._pending[0][2].done:
            self._pending.popleft()
        begin = self._next if self._next + size <= len(self._memory) else 0
        end = begin + size
        while any(first < end and begin < last for first, last, _ in self._pending):
            self._pending.popleft()[2].synchronize()
        self._next = end
        return self._memory[begin:end]

    def passed(self, taken: Host, event: Any) -> None:
        """`taken` is free once the event is done."""
        self._pending.append((self._next - len(taken), self._next, event))


class Download:
    """A queued copy to the host.

    Parameters
    ----------
    pinned
        uint8, where the card writes; at least as many bytes as the array's.
    number
        Its number in the queue's order.
    event
        Recorded behind the copy.
    """

    def __init__(self, array: Array, pinned: Host, number: int, event: Any) -> None:
        self.number, self.event = number, event
        self._shape, self._dtype, self._size = array.shape, array.dtype, array.nbytes
        self._pinned: Host | None = pinned
        self._host: Host | None = None

    def host(self) -> Host:
        """The array on the host. The copy is done."""
        if self._host is None:
            assert self._pinned is not None
            # copied: pinned memory is scarce, and whoever keeps the array must not keep it
            self._host = self._pinned[: self._size].copy().view(self._dtype).reshape(self._shape)
            self._pinned = None
        return self._host


def pinned_bytes(size: int) -> int:
    """The bytes of the pinned memory for a download: a power of two, so that few sizes are in use."""
    return max(4096, 1 << (size - 1).bit_length())
