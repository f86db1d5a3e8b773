"""Recordings: the launches of a run come in, and are queued again with other tiles by one launch of a graph.

A recorded launch reads its tiles in a *slot*: room for a list, at a fixed address, its length on the device. All slots,
the addresses of the values that are saved, and the number that a watch leaves are one block of memory. A replay fills
it by one copy, launches the graph, and queues the watch's number back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..interface import TILE, Array, BackendError, Host, Recording, SavedTiles, Tiles, Watch
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
    rooms
        How many tiles each list must be able to have; none given: as many as it has.
    saves
        The canvases to save, of each its list, and what stands for the values saved. Their addresses are in the block.
    """

    def __init__(
        self,
        device: Device,
        lists: Sequence[Tiles],
        saves: Sequence[tuple[Array, Tiles, Array]] = (),
        rooms: Sequence[int] = (),
    ) -> None:
        self.lists = list(lists)
        self.saves = [(canvas, tiles) for canvas, tiles, _ in saves]
        self.rooms = [room(count) for count in rooms or map(len, self.lists)]
        places = 2 + 2 * len(self.saves)  # in words; addresses of 8 bytes come first
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
        self.places = [self.block[2 + 2 * i : 4 + 2 * i] for i in range(len(self.saves))]
        """Where the address of the values of each save stands."""
        self._olds = [old for _, _, old in saves]  # kept: an array's id is its own only while it lives
        self._places = {id(old): place for old, place in zip(self._olds, self.places, strict=True)}
        self._begins = begins
        number = {tiles: i for i, tiles in enumerate(self.lists)}
        self._list_of = np.array([number[tiles] for _, tiles in self.saves], np.intp)
        tile_bytes = [TILE * TILE * canvas.shape[3] * canvas.dtype.itemsize for canvas, _ in self.saves]
        self._tile_bytes = np.array(tile_bytes, np.int64)

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
        """Where the address of the values that `old` stands for is. Raises BackendError: it stands for none."""
        if id(old) not in self._places:
            raise BackendError("recorded work used old values that the recording does not save")
        return self._places[id(old)]

    def sizes(self, lists: Sequence[Tiles]) -> Host:
        """The bytes that saving takes of each canvas with these lists."""
        counts = np.array([len(tiles) for tiles in lists], np.int64)
        sizes: Host = self._tile_bytes * counts[self._list_of]
        return sizes

    def filled(self, lists: Sequence[Tiles], addresses: Host) -> Any:
        """The block, int32, for a replay with these lists, whose saved values lie at `addresses`."""
        host = np.zeros(self._begins[-1], np.int32)
        host[:2] = np.full(1, NONE).view(np.int32)
        host[2 : self._begins[0]] = addresses.view(np.int32)
        for begin, tiles in zip(self._begins[:-1], lists, strict=True):
            host[begin : begin + 4 + 3 * len(tiles)] = listed(tiles.host)
        return host


class CudaSavedTiles(SavedTiles):
    """Values that one launch copies into a block; they become arrays when somebody asks for them."""

    def __init__(self, block: Array, saves: Sequence[tuple[Array, Tiles]], sizes: Host) -> None:
        self._block, self._saves, self._sizes = block, saves, sizes

    @property
    def nbytes(self) -> int:
        return int(self._block.nbytes)

    def arrays(self) -> list[Array]:
        ends = (np.cumsum(self._sizes) // 4).tolist()
        return [
            self._block[begin:end].view(canvas.dtype).reshape(-1, TILE, TILE, canvas.shape[3])
            for (canvas, _), begin, end in zip(self._saves, [0, *ends], ends, strict=False)
        ]


class CudaRecording(Recording):
    """A graph, and the memory that its launches refer to; `save` queues the copy of what is to be saved."""

    def __init__(self, device: Device, graph: Graph, slots: Slots, save: Callable[[], None]) -> None:
        self._device, self._graph, self._slots, self._save = device, graph, slots, save
        self._given: list[Tiles] = []
        """The lists that the slots were filled with for the next replay."""

    @property
    def room(self) -> Sequence[int]:
        return self._slots.rooms

    def save(self, lists: Sequence[Tiles]) -> SavedTiles:
        sizes = self._slots.sizes(lists)
        block = self._device.empty((int(sizes.sum()) // 4,), np.int32)
        self._fill(lists, self._device.address(block) + np.cumsum(sizes) - sizes)
        self._save()
        self._given = list(lists)
        return CudaSavedTiles(block, self._slots.saves, sizes)

    def replay(self, lists: Sequence[Tiles], watch: Watch | None = None) -> Watch | None:
        if self._given != list(lists):
            if self._slots.saves:
                raise BackendError("a replay of tiles that were not saved")
            self._fill(lists, np.zeros(0, np.int64))
        self._given = []
        self._graph.launch()
        if not isinstance(watch, CudaWatch):
            return None
        fetched = self._device.fetch(self._slots.watched)
        return watch.replayed(dict(zip(self._slots.lists, lists, strict=True)), fetched)

    def _fill(self, lists: Sequence[Tiles], addresses: Host) -> None:
        """Give each list to its slot. Raises BackendError: one has more tiles than its room."""
        for tiles, most in zip(lists, self._slots.rooms, strict=True):
            if len(tiles) > most:
                raise BackendError(f"a list of {len(tiles)} tiles, in a recording with room for {most}")
        self._device.write(self._slots.block, self._slots.filled(lists, addresses))
