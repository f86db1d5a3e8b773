"""Recordings: the launches of a run come in, and are queued again with other tiles by one launch of a graph.

A recorded launch reads its tiles in a *slot*: room for a list, at a fixed address, its length on the device. All slots,
and the number that a watch leaves, are one block of memory. A replay fills it by one copy, launches the graph, and
queues the watch's number back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..interface import Array, BackendError, Host, Recording, Tiles, Watch
from .device import Device, Graph
from .watching import NONE, CudaWatch


def room(count: int) -> int:
    """The room of a list of `count` tiles: 8, 12, 16, 24, 32, 48, … so that lists of about a length share a grid."""
    size = 8
    while size < count:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def listed(tiles: Host) -> Host:
    """A list of tiles `[K, 3]` as kernels take it, int32 `[4 + 3 K]`: K, three unused words, then the tiles."""
    return np.concatenate([np.array([len(tiles), 0, 0, 0], np.int32), tiles.reshape(-1)])


class Slots:
    """The slots of one recording.

    Parameters
    ----------
    lists
        The lists of tiles that the recorded work uses, all different handles; a replay replaces each.
    olds
        The arrays of old values that it reads; a replay replaces each. They stand as addresses in the block.
    """

    def __init__(self, device: Device, lists: Sequence[Tiles], olds: Sequence[Array]) -> None:
        self._device = device
        self.lists = list(lists)
        self.rooms = [room(len(tiles)) for tiles in self.lists]
        places = 2 + 2 * len(olds)  # in words; addresses of 8 bytes come first
        begins = np.cumsum([places] + [4 + 3 * each for each in self.rooms]).tolist()
        self.block = device.empty((begins[-1],), np.int32)
        self.watched = self.block[0:2]
        """The number of the watch, two words."""
        self.tables: list[tuple[Array, Any]] = []
        """Arrays to be written before the first replay, with their bytes."""
        self.checks: list[tuple[tuple[int, int], bytes]] = []
        """The grid and the packed arguments of each check of values, which are queued together."""
        self.kept: dict[int, Array] = {}
        """Arrays whose addresses are in the graph."""
        self._of = {
            tiles: (self.block[begin:end], size)
            for tiles, begin, end, size in zip(self.lists, begins[:-1], begins[1:], self.rooms, strict=True)
        }
        self._olds = {id(old): self.block[2 + 2 * i : 4 + 2 * i] for i, old in enumerate(olds)}
        self._kept_olds = list(olds)  # an array's id is its own only while it lives
        self._begins = begins

    def array(self, tiles: Tiles) -> Array:
        """The slot of a list. Raises BackendError: the recording was not given it."""
        return self._find(tiles)[0]

    def room_of(self, tiles: Tiles) -> int:
        """The most tiles that the slot of a list takes."""
        return self._find(tiles)[1]

    def _find(self, tiles: Tiles) -> tuple[Array, int]:
        if tiles not in self._of:
            raise BackendError("recorded work used a list of tiles that the recording was not given")
        return self._of[tiles]

    def place_of(self, old: Array) -> Array:
        """Where the address of an old array stands. Raises BackendError: the recording was not given it."""
        if id(old) not in self._olds:
            raise BackendError("recorded work used old values that the recording was not given")
        return self._olds[id(old)]

    def filled(self, lists: Sequence[Tiles], olds: Sequence[Array]) -> Any:
        """The block, int32, for a replay with these lists and old values."""
        host = np.zeros(self._begins[-1], np.int32)
        host[:2] = np.full(1, NONE).view(np.int32)
        host[2 : self._begins[0]] = np.array([*map(self._device.address, olds)], np.int64).view(np.int32)
        for begin, tiles in zip(self._begins[:-1], lists, strict=True):
            host[begin : begin + 4 + 3 * len(tiles)] = listed(tiles.host)
        return host


class CudaRecording(Recording):
    """A graph, and the memory that its launches refer to."""

    def __init__(self, device: Device, graph: Graph, slots: Slots) -> None:
        self._device, self._graph, self._slots = device, graph, slots

    @property
    def room(self) -> Sequence[int]:
        return self._slots.rooms

    def replay(
        self, lists: Sequence[Tiles], watch: Watch | None = None, *, olds: Sequence[Array] = ()
    ) -> Watch | None:
        for tiles, most in zip(lists, self._slots.rooms, strict=True):
            if len(tiles) > most:
                raise BackendError(f"a list of {len(tiles)} tiles, in a recording with room for {most}")
        self._device.write(self._slots.block, self._slots.filled(lists, olds))
        self._graph.launch()
        if not isinstance(watch, CudaWatch):
            return None
        fetched = self._device.fetch(self._slots.watched)
        return watch.replayed(dict(zip(self._slots.lists, lists, strict=True)), fetched)
