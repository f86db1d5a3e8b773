"""The watch of a run: checks are queued, and the place of the first value that is not finite comes back at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..interface import TILE, Array, Position, Tiles, Watch
from .device import Device, Fetched

NONE = np.uint64(0xFFFFFFFFFFFFFFFF)
"""The place of no value: larger than any."""


class CudaWatch(Watch):
    """A watch whose state is one number on the device, the least place of a value that is not finite.

    Parameters
    ----------
    queue
        `queue(first, canvas, tiles, number)` queues a check.
    first
        The number on the device, already NONE; None: one is made at the first check.
    """

    def __init__(
        self, queue: Callable[[Array, Array, Tiles, int], None], device: Device, first: Array | None
    ) -> None:
        self._queue, self._device, self._first = queue, device, first
        self._checks: list[tuple[int, Tiles, int]] = []
        """By number: the caller's layer, the tiles, the channels."""
        self._fetched: Fetched | None = None

    def watch(self, canvas: Array, tiles: Tiles, layer: int) -> None:
        if self._first is None:
            self._first = self._device.upload(np.full(1, NONE))
        self._queue(self._first, canvas, tiles, len(self._checks))
        self._fetched = None
        self._checks.append((layer, tiles, canvas.shape[3]))

    def replayed(self, lists: Mapping[Tiles, Tiles], fetched: Fetched) -> CudaWatch:
        """The watch of a replayed recording, in which other `lists` took the place of the recorded ones."""
        other = CudaWatch(self._queue, self._device, self._first)
        other._checks = [(layer, lists[tiles], channels) for layer, tiles, channels in self._checks]
        other._fetched = fetched
        return other

    def ask(self) -> None:
        if self._first is not None and self._fetched is None:
            self._fetched = self._device.fetch(self._first)

    def first_watched(self) -> tuple[int, Position] | None:
        if self._first is None:
            return None
        self.ask()
        assert self._fetched is not None  # `ask` queued it
        place = int(self._fetched().view(np.uint64).reshape(-1)[0])
        if place == int(NONE):
            return None
        number, tile, pixel, channel = place >> 44, place >> 20 & 0xFFFFFF, place >> 16 & 0xF, place & 0xFFFF
        layer, tiles, _ = self._checks[number]
        n, row, column = tiles.host[tile].tolist()
        return layer, (n, row * TILE + pixel // TILE, column * TILE + pixel % TILE, channel)
