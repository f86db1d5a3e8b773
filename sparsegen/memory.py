"""What outlives a run: canvases, statistics and prepared weights are kept here, and what an edit overwrote.

A `Memory` is what a session edits; a `Journal` is what takes one edit back; `Prepared` are a model's weights as one
backend lays them out, shared by all sessions of that model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from sparsegen.backends.interface import TILE, Array, Backend, Host

from .codebook import Codebook
from .errors import ShapeError
from .policies import Read
from .store import Store
from .tiles import TileSet

T = TypeVar("T")


class Journal:
    """What a change overwrote: it is kept before it is written, and `undo` puts it back bit for bit.

    Tiles are copied. A canvas that will be repainted whole is set aside instead, and a new one takes its place: that
    costs no more memory, and no copying.
    """

    def __init__(self) -> None:
        self.tiles: dict[str, tuple[Host, Array]] = {}
        """Path of the canvas -> (tiles `[K, 3]`, values `[K, TILE, TILE, C]`)."""
        self.whole: dict[str, Array] = {}
        """Path -> the canvas as it was; no path is in both."""
        self.books: dict[str, tuple[int, Host]] = {}
        """Path of a codebook -> how many of its windows stay, and those that follow them, int32 `[R, width]`."""
        self.nbytes = 0
        """Memory that undoing takes."""

    def keep(self, memory: Memory, path: str, active: TileSet) -> None:
        """Keep the `active` tiles of a canvas before they change. All of them: the memory gets a new one to paint."""
        canvas = memory.canvases[path]
        if active.count == active.total:
            self._set_aside(path, canvas)
            memory.canvases[path] = memory.allocate(canvas.shape, dtype=str(canvas.dtype))
        else:
            self._copy(memory, path, active.tiles)

    def add(self, path: str, tiles: Host, values: Array) -> None:
        """Keep `values` `[K, TILE, TILE, C]` of the `tiles` of a canvas."""
        self.tiles[path] = (tiles, values)
        self.nbytes += int(values.nbytes)

    def add_book(self, path: str, count: int, keys: Host) -> None:
        """Keep that a codebook knew `count` windows, and after them `keys`."""
        self.books[path] = (count, keys)
        self.nbytes += int(keys.nbytes)

    def _set_aside(self, path: str, canvas: Array) -> None:
        self.whole[path] = canvas
        self.nbytes += int(canvas.nbytes)

    def _copy(self, memory: Memory, path: str, tiles: Host) -> None:
        canvas, place = memory.canvases[path], None
        if memory.store is not None and memory.store.budget is not None:  # where they count
            shape = (len(tiles), TILE, TILE, canvas.shape[3])
            place = memory.allocate(shape, dtype=str(canvas.dtype))
        self.add(path, tiles, memory.backend.read_tiles(canvas, tiles, place))

    def kept(self, backend: Backend, path: str) -> tuple[Host, Array]:
        """The tiles kept of a canvas and their values, as in `tiles`, however they are kept."""
        if path not in self.whole:
            return self.tiles[path]
        tiles = self.kept_tiles(path)
        return tiles, backend.read_tiles(self.whole[path], tiles)

    def kept_tiles(self, path: str) -> Host:
        """The tiles `[K, 3]` kept of a canvas."""
        if path not in self.whole:
            return self.tiles[path][0]
        return TileSet.full(*self.whole[path].shape[:3]).tiles

    @property
    def paths(self) -> list[str]:
        """The canvases of which something is kept."""
        return [*self.tiles, *self.whole]

    def undo(self, memory: Memory) -> None:
        """Put everything back. Done twice, or begun again after an interrupt, it is done once."""
        memory.canvases.update(self.whole)
        for path, (tiles, values) in self.tiles.items():
            memory.backend.write_tiles(memory.canvases[path], tiles, values)
        for path, (count, keys) in self.books.items():  # no canvas names a later window any more
            memory.codebooks[path].restore(memory.backend, count, keys)

    def inverse(self, memory: Memory) -> Journal:
        """The journal that puts back what `undo` is about to overwrite: that of the way forward."""
        forward = Journal()
        for path in self.whole:
            forward._set_aside(path, memory.canvases[path])
        for path, (tiles, _) in self.tiles.items():
            forward._copy(memory, path, tiles)
        for path, (count, _) in self.books.items():
            forward.add_book(path, count, memory.codebooks[path].book.keys[count:].copy())
        return forward


class Prepared:
    """A model's weights as one backend lays them out, by layer path: made when first asked for, kept once.

    All sessions of that model and backend share them; sessions may run in several threads at once. `release` is called
    after each: what the weights were read from need not stay in memory.
    """

    def __init__(self, release: Callable[[], None] = lambda: None) -> None:
        self._release = release
        self._made: dict[tuple[str, Hashable], Any] = {}
        self._lock = threading.Lock()

    def get(self, path: str, purpose: Hashable, make: Callable[[], T]) -> T:
        """What `make()` gave for this path and purpose.

        Purposes are few, and all that were asked for stay: the layouts of a convolution's weights, of which sessions of
        two sizes use different ones for the lowest resolutions alone.
        """
        key = (path, purpose)
        if key not in self._made:  # nothing is ever taken out: a hit needs no lock
            with self._lock:  # also while making: two threads must not lay out the same weights twice
                if key not in self._made:
                    self._made[key] = make()
                    self._release()
        made: T = self._made[key]
        return made


@dataclass(repr=False)
class Memory:
    """What outlives a run: canvases and measured statistics by layer path, weights as the backend lays them out.

    Kernels work in the canvases themselves; a subclass may keep them otherwise than kernels know them.
    """

    storage: ClassVar[str] = "float32"
    """What float32 canvases are kept as."""
    backend: Backend
    prepared: Prepared = field(default_factory=Prepared)
    canvases: dict[str, Array] = field(default_factory=dict)
    measured: dict[str, tuple[Array, ...]] = field(default_factory=dict)
    coded: bool = False
    """Whether what depends on labels alone is kept in codebooks instead of canvases."""
    codebooks: dict[str, Codebook] = field(default_factory=dict)
    """Path of the canvas of codes -> its codebook."""
    store: Store | None = None
    """Where arrays come from, if not from the backend; its arrays are in main memory."""
    recording: bool = True
    """Whether layers' canvases are kept after they have been read; what is not kept cannot be edited."""
    least_size: int = 0
    """Layers that read nothing with a shorter side of so many pixels are computed whole by every run: of their canvases
    nothing has to be kept from one run to the next, and nothing put back.
    """
    _scratch: dict[tuple[int, ...], Array] = field(default_factory=dict)
    transients: dict[str, Array] = field(default_factory=dict)
    """Path -> canvas that holds its values for one run only (see `least_size`), of a memory without a store."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.canvases)} canvases, {self.nbytes} bytes>"

    def allocate(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        """An array of no particular value, for a canvas that will be painted whole, or for tiles of one."""
        if self.store is None:
            return self.backend.alloc(shape, dtype=dtype)
        return self.store.allocate(shape, dtype=dtype)

    def scratch(self, shape: tuple[int, int, int, int]) -> Array:
        """An array for values that are read before the next such array is asked for."""
        if self.store is not None:
            return self.store.scratch(shape)
        if shape not in self._scratch:
            self._scratch[shape] = self.backend.alloc(shape)
        return self._scratch[shape]

    def canvas(self, path: str, shape: tuple[int, int, int, int], dtype: str) -> Array:
        """The canvas of a layer, new if there is none. Raises ShapeError: there is one of another shape."""
        canvas = self.canvases.get(path)
        if canvas is None:
            canvas = self.allocate(shape, dtype=dtype)
            if self.recording or dtype != "float32":  # codes are found again by their canvas
                self.canvases[path] = canvas
        elif tuple(canvas.shape) != shape:
            raise ShapeError(f"{path}: the canvas is {tuple(canvas.shape)}, this run needs {shape}")
        return canvas

    def is_transient(self, reads: Sequence[Read], dtype: str) -> bool:
        """Whether the canvas of a layer that reads these holds its values for one run only (see `least_size`)."""
        small = self.recording and dtype == "float32" and bool(reads)
        return small and all(min(read.size) < self.least_size for read in reads)

    def transient(self, path: str, shape: tuple[int, int, int, int]) -> Array:
        """A transient canvas, of no particular value; all memories of a store have the same."""
        if self.store is not None:
            return self.store.shared(path, shape)
        if path not in self.transients or self.transients[path].shape != shape:
            self.transients[path] = self.backend.alloc(shape)
        return self.transients[path]

    def kept_as(self, path: str, shape: Sequence[int], dtype: str) -> str:
        """The type that a canvas of `dtype` is kept as."""
        return dtype

    def begin(self) -> None:
        """A run begins."""

    def fetch(self, reads: Sequence[Read], active: TileSet) -> None:
        """Have in place what the `active` tiles of a layer's output read."""

    def keep(self, path: str, canvas: Array, tiles: Host) -> None:
        """Keep what a layer wrote into `tiles` of the `canvas` that `self.canvas` gave. Raises SessionError."""

    def whole(self, canvas: Array) -> Host:
        """A host copy of all of a canvas that `self.canvas` gave."""
        return self.backend.download(canvas)

    @property
    def nbytes(self) -> int:
        """Memory that the canvases take, without those that all memories of a store have together."""
        canvases = [*self.canvases.values(), *self.transients.values()]
        return sum(int(canvas.nbytes) for canvas in canvases)

    @property
    def codebook_nbytes(self) -> int:
        """Memory that the codebooks' tables take."""
        return sum(codebook.nbytes for codebook in self.codebooks.values())


def input_path(name: str) -> str:
    """Where an input's canvas lies among the layers' (no layer is called `input`)."""
    return f"input.{name}"
