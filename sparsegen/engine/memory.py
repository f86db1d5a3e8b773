"""What outlives a run: canvases, statistics and prepared weights are kept here, and what an edit overwrote.

A `Memory` is what a session edits; a `Journal` is what takes one edit back; `Prepared` are a model's weights as one
backend lays them out, shared by all sessions of that model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from sparsegen.backends.interface import Array, Backend, Host, Tiles

from ..errors import ShapeError
from ..tiling.tiles import TileSet
from ..tiling.windows import Read
from .codebook import Codebook
from .prepared import Prepared
from .store import Store

T = TypeVar("T")


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

    def keep(self, path: str, canvas: Array, tiles: Tiles) -> None:
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
