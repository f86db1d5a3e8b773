"""How the CUDA backend launches: a primitive's arrays come in, packed arguments go to a device's queue.

The parts of the backend (`convolutions.py`, `tiles.py`, …) build on `Launching`. Nothing here computes on the host, and
nothing waits but what the contract lets wait. A grid depends on the length of a list of tiles alone, never on its
contents: so a run that is recorded once serves every list that fits (`recording.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, ClassVar

import numpy as np

from ..base import PortableBackend
from ..interface import (
    TILE,
    Activation,
    Array,
    BackendError,
    Host,
    Recording,
    Source,
    Tiles,
    check_own_pixels,
)
from .device import Device
from .recording import CudaRecording, Slots, listed
from .sources import kernels, structures

PIXELS = TILE * TILE
"""Pixels of a tile."""
ACTIVATIONS: tuple[Activation, ...] = ("identity", "relu", "leaky_relu", "silu", "gelu", "quick_gelu", "tanh")
"""Of each value alone, by their number in `kernels/reading.cuh`."""


class _OfThread(threading.local):
    """What each thread has of its own: its scratch memory, and what it records."""

    def __init__(self) -> None:
        self.scratch: dict[str, Array] = {}
        self.slots: Slots | None = None


class Launching(PortableBackend):
    """A device, and the launches of kernels on it."""

    reaches_ram: ClassVar[bool] = True
    records: ClassVar[bool] = True

    def __init__(self, device: Device) -> None:
        self.device = device
        self.xp = device.xp
        self._thread = _OfThread()

    # -- memory ------------------------------------------------------------------------------------------

    def alloc(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        # a recorded run fills nothing: its arrays are written before they are read, in each replay
        make = self.device.zeros if self._thread.slots is None else self.device.empty
        return make(shape, np.dtype(dtype))

    def alloc_in_ram(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        return self.device.in_ram(shape, np.dtype(dtype))

    def memory_left(self) -> float:
        return self.device.memory_left()

    def upload(self, host: Host) -> Array:
        is_float = np.issubdtype(host.dtype, np.floating)
        return self.device.upload(np.ascontiguousarray(host, np.float32 if is_float else host.dtype))

    def download(self, array: Array) -> Host:
        return self.device.download(array)

    def fetch(self, array: Array) -> Callable[[], Host]:
        return self.device.fetch(array)

    def synchronize(self) -> None:
        self.device.synchronize()

    # -- recording ---------------------------------------------------------------------------------------

    def record(
        self,
        work: Callable[[], None],
        lists: Sequence[Tiles],
        *,
        saves: Sequence[tuple[Array, Tiles, Array]] = (),
        rooms: Sequence[int] = (),
    ) -> Recording:
        if self._thread.slots is not None:
            raise BackendError("a recording inside a recording")
        slots = self._thread.slots = Slots(self.device, lists, saves, rooms)
        try:
            graph = self.device.record(lambda: self._do_recorded(work, slots))
            save = self._save_launch(slots)
        finally:
            self._thread.slots = None
        for table, packed in slots.tables:
            self.device.write(table, packed)
        return CudaRecording(self.device, graph, slots, save)

    def _do_recorded(self, work: Callable[[], None], slots: Slots) -> None:
        work()
        self._end_work(slots)

    def _save_launch(self, slots: Slots) -> Callable[[], None]:
        """What queues the copy of a recording's tiles that are to be saved, from and to where its block says."""
        return lambda: None

    def _end_work(self, slots: Slots) -> None:
        """Queue what recorded work left for its end."""

    def _place_of(self, old: Array) -> Array | None:
        """Where the address of saved values stands, in a recorded run that `old` stands for them in; None: nowhere."""
        slots = self._thread.slots
        return None if slots is None else slots.place_of(old)

    def _table(self, structures: Iterable[bytes]) -> Array:
        """An array of structures on the device; a recorded run writes it once it is recorded."""
        packed = np.frombuffer(b"".join(structures), np.int32)
        slots = self._thread.slots
        if slots is None:
            return self.device.upload(packed)
        table = self.device.empty(packed.shape, np.int32)
        slots.tables.append((table, packed))
        return table

    def _list(self, tiles: Tiles) -> Array:
        """A list of tiles on the device, as `kernels/arguments.cuh` has it: uploaded once, or a recording's."""
        slots = self._thread.slots
        if slots is not None:
            return slots.array(tiles)
        return tiles.on((self, "list"), lambda host: self.device.upload(listed(host)))

    def _upload_lists(self, lists: Iterable[Tiles]) -> None:
        """Upload the lists that are not on the device yet, by one copy."""
        key = (self, "list")
        new = [tiles for tiles in dict.fromkeys(lists) if not tiles.is_on(key)]
        if len(new) < 2:
            return
        parts = [listed(tiles.host) for tiles in new]
        block, begin = self.device.upload(np.concatenate(parts)), 0
        for tiles, part in zip(new, parts, strict=True):
            array = block[begin : begin + len(part)]
            tiles.put(key, array)
            begin += len(part)

    def _most(self, tiles: Tiles) -> int:
        """The most tiles that the list may have: a grid is made for so many."""
        slots = self._thread.slots
        return len(tiles) if slots is None else slots.room_of(tiles)

    def _launch(self, kernel: str, grid: Sequence[int], *, shared: int = 0, **values: Any) -> None:
        """Queue a kernel, if its grid has a block; `values` are the fields of its arguments."""
        x, y, z = (*grid, 1, 1)[:3]
        if x and y and z:
            packed = kernels()[kernel].arguments.pack(self.device.address, values)
            self.device.launch(kernel, (x, y, z), packed, shared)

    def _pack(self, structure: str, **values: Any) -> bytes:
        return structures()[structure].pack(self.device.address, values)

    def _source(self, source: Source | None) -> bytes:
        """A source as kernels take it; None: no source. Raises BackendError: it combines channels."""
        if source is None:
            return bytes(structures()["Source"].layout.size)
        check_own_pixels(None, source)
        first, second = (*source.parts, None)[:2]
        _, height, width, channels = source.shape
        scale = source.scale
        arrays = {
            "first": first,
            "second": second,
            "scale": scale,
            "shift": source.shift,
            "modulation": source.modulation,
        }
        addresses = {name: 0 if each is None else self.device.address(each) for name, each in arrays.items()}
        codes = 0 if source.codes is None else self.device.address(source.codes)
        apart = channels | first.shape[3]
        for address in addresses.values():
            apart |= address >> 2
        return self._pack(
            "Source",
            **addresses,
            codes=codes,
            first_channels=first.shape[3],
            second_channels=0 if second is None else second.shape[3],
            height=height,
            width=width,
            halved=source.upsample - 1,
            affine_stride=channels if scale is not None and len(scale) > 1 else 0,
            activation=ACTIVATIONS.index(source.activation),
            fours=int(apart % 4 == 0),
        )

    def _scratch(self, name: str, shape: Sequence[int], dtype: str = "float32") -> Array:
        """Memory of undefined values, this thread's until its next call with that name."""
        size = prod(shape) * np.dtype(dtype).itemsize // 4
        held = self._thread.scratch.get(name)
        if held is None or held.size < size:
            held = self._thread.scratch[name] = self.device.empty((size + size // 4,), np.int32)
        if self._thread.slots is not None:
            self._thread.slots.kept[id(held)] = held
        return held
