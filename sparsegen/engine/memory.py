"""Memory: everything that outlives a run. Canvases, statistics and codebooks by layer path, and prepared weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from sparsegen.backends.interface import Array, Backend, Host, Tiles

from ..errors import ShapeError
from ..tiling.canvas import Canvas
from ..tiling.tiles import TileSet
from ..tiling.windows import Read
from .allocator import Allocator
from .codebook import Codebook
from .finite import FiniteChecks
from .prepared import Prepared


@dataclass(repr=False)
class Memory:
    """Everything that outlives a run of one model.

    Kernels work in the canvases themselves; a subclass may keep them in another form than kernels compute in.
    """

    storage: ClassVar[str] = "float32"
    """The type that float32 canvases are kept as."""
    backend: Backend
    allocator: Allocator
    prepared: Prepared = field(default_factory=Prepared)
    canvases: dict[str, Array] = field(default_factory=dict)
    """Path -> the canvas as it is kept, of layers and inputs."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Name of an input -> path of its canvas."""
    statistics: dict[str, tuple[Array, ...]] = field(default_factory=dict)
    """Path -> arrays that the dense run computed and every edit reuses."""
    coded: bool = False
    """Whether layers that depend on labels alone are kept as codebooks instead of canvases."""
    codebooks: dict[str, Codebook] = field(default_factory=dict)
    """Path of the canvas of codes -> its codebook."""
    keep_canvases: bool = True
    """Whether layers' canvases are kept after they have been read; without them nothing can be edited."""
    least_size: int = 0
    """Layers whose every input has a shorter side of fewer pixels are computed whole by every run. Their canvases are
    transient: neither kept from one run to the next nor journalled.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.canvases)} canvases, {self.nbytes} bytes>"

    def take_inputs(self, arrays: dict[str, Array]) -> None:
        """Set the inputs' canvases, by name."""
        for name, array in arrays.items():
            self.inputs[name] = input_path(name)
            self.canvases[self.inputs[name]] = array

    def input(self, name: str) -> Canvas:
        """An input's canvas."""
        return Canvas(self.inputs[name], self.canvases[self.inputs[name]])

    def canvas(self, path: str, shape: tuple[int, int, int, int], dtype: str) -> Canvas:
        """The canvas of a layer, allocated if there is none. Raises ShapeError: it has another shape."""
        array = self.canvases.get(path)
        if array is None:
            array = self.allocator.allocate(shape, dtype=dtype)
            if self.keep_canvases:
                self.canvases[path] = array
        elif tuple(array.shape) != shape:
            raise ShapeError(f"{path}: the canvas is {tuple(array.shape)}, this run needs {shape}")
        return Canvas(path, array)

    def is_transient(self, reads: Sequence[Read], dtype: str) -> bool:
        """Whether the canvas of a layer that reads these is transient (see `least_size`)."""
        small = self.keep_canvases and dtype == "float32" and bool(reads)
        return small and all(min(read.size) < self.least_size for read in reads)

    def transient(self, path: str, shape: tuple[int, int, int, int]) -> Canvas:
        """A transient canvas of undefined value, shared by all memories of an allocator."""
        return Canvas(path, self.allocator.shared(path, shape))

    def kept_as(self, path: str, shape: Sequence[int], dtype: str) -> str:
        """The type that a canvas of `dtype` is kept as."""
        return dtype

    def begin(self) -> None:
        """Start a run."""

    def fetch(self, reads: Sequence[Read], active: TileSet) -> None:
        """Make the values that the `active` tiles of a layer's output read ready for kernels."""

    def commit(self, canvas: Canvas, tiles: Tiles, checks: FiniteChecks) -> None:
        """Keep the values that a layer wrote into `tiles` of a canvas that `self.canvas` returned.

        `checks` are the run's: they report a value that cannot be kept at its end.
        """

    def whole(self, canvas: Canvas) -> Host:
        """A host copy of a whole canvas that `self.canvas` returned."""
        return self.backend.download(canvas.array)

    def tiles(self, canvas: Canvas, tiles: Tiles) -> Host:
        """A host copy of some tiles, `[K, TILE, TILE, C]`, of a canvas that `self.canvas` returned."""
        return self.backend.download(self.backend.read_tiles(canvas.array, tiles))

    @property
    def nbytes(self) -> int:
        """Memory of the canvases, without the ones that all memories of an allocator share."""
        return sum(int(canvas.nbytes) for canvas in self.canvases.values())

    @property
    def codebook_nbytes(self) -> int:
        """Memory of the codebooks' tables."""
        return sum(codebook.nbytes for codebook in self.codebooks.values())


def input_path(name: str) -> str:
    """The path of an input's canvas (no layer is called `input`)."""
    return f"input.{name}"
