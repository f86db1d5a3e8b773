"""Memory: everything that outlives a run. Canvases, moments, statistics and codebooks by path, and prepared weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from .moments import Moments
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
    moments: dict[str, Moments] = field(default_factory=dict)
    """Path of a canvas that a norm reads -> the moments of its channels."""
    least_size: int = 0
    """Layers whose every input has a shorter side of fewer pixels are computed whole by every run. Their canvases are
    transient: neither kept from one run to the next nor journalled.
    """
    carried_rows: int = 0
    """Layers whose output has at most so many rows are not kept either, but for the *frontier*: the canvases among
    them that larger layers read. An edit may carry these on from an earlier denoising step.
    """

    keeps_scratch: bool = False
    """Whether scratch layers are kept as canvases too, so that their values can be looked at."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.canvases)} canvases, {self.nbytes} bytes>"

    def take_inputs(self, arrays: dict[str, Array]) -> None:
        """Set the inputs' canvases, by name."""
        for name, array in arrays.items():
            self.inputs[name] = input_path(name)
            self.canvases[self.inputs[name]] = array

    def input(self, name: str, changed: TileSet | None = None) -> Canvas:
        """An input's canvas. `changed` are the tiles that may have changed; None: none."""
        path = self.inputs[name]
        unchanged = TileSet.empty(*self.canvases[path].shape[:3])
        return Canvas(path, self.canvases, unchanged if changed is None else changed)

    def canvas(
        self, path: str, shape: tuple[int, int, int, int], dtype: str, reads: Sequence[Read] = ()
    ) -> Canvas:
        """The canvas of a layer with these reads, allocated if there is none.

        Raises
        ------
        ShapeError
            It has another shape.
        """
        array, nothing = self.canvases.get(path), TileSet.empty(*shape[:3])
        if array is None and self._is_transient(shape, dtype, reads):
            self.allocator.shared(path, shape)
            return Canvas(path, self.allocator.shared_arrays, nothing)
        if array is None:
            array = self.allocator.allocate(shape, dtype=self.kept_as(path, shape, dtype))
            if not self.keep_canvases:
                return Canvas(path, {path: array}, nothing)
            self.canvases[path] = array
        elif tuple(array.shape) != shape:
            raise ShapeError(f"{path}: the canvas is {tuple(array.shape)}, this run needs {shape}")
        return Canvas(path, self._working(path), nothing)

    def _working(self, path: str) -> Mapping[str, Array]:
        """The table with the array of a kept canvas that kernels compute in."""
        return self.canvases

    def _is_transient(self, shape: Sequence[int], dtype: str, reads: Sequence[Read]) -> bool:
        if not self.keep_canvases or dtype != "float32" or not reads:
            return False
        return shape[1] <= self.carried_rows or all(min(read.size) < self.least_size for read in reads)

    def ready(self, canvas: Canvas, shape: tuple[int, int, int, int]) -> bool:
        """Whether a canvas is transient, of undefined value. Before a run writes one, it makes sure of its array."""
        if canvas.path in self.canvases or not self.keep_canvases:
            return False
        self.allocator.shared(canvas.path, shape)
        return True

    def keep_frontier(self, shape: Sequence[int], reads: Sequence[Read], checks: FiniteChecks) -> None:
        """Keep the canvases of at most `carried_rows` rows that a layer with a larger output of `shape` reads."""
        if not self.carried_rows or shape[1] <= self.carried_rows:
            return
        for read in reads:
            canvas = read.canvas
            if (
                canvas is not None
                and canvas.path not in self.canvases
                and canvas.shape[1] <= self.carried_rows
            ):
                self.persist(canvas, checks)

    def persist(self, canvas: Canvas, checks: FiniteChecks) -> None:
        """Copy a transient canvas into an array that is kept; a canvas that is kept already stays as it is."""
        if canvas.path in self.canvases:
            return
        kept, everywhere = self.allocator.allocate(canvas.shape), TileSet.full(*canvas.shape[:3]).tiles
        self.backend.write_tiles(kept, everywhere, self.backend.read_tiles(canvas.array, everywhere))
        self.canvases[canvas.path] = kept
        canvas.arrays = self.canvases

    def kept_as(self, path: str, shape: Sequence[int], dtype: str) -> str:
        """The type that a canvas of `dtype` is kept as."""
        return dtype

    def begin(self) -> None:
        """Start a run."""

    def fetch(self, reads: Sequence[Read], active: TileSet) -> None:
        """Make the values that the `active` tiles of a layer's output read ready for kernels."""

    def fetch_whole(self, canvas: Canvas) -> None:
        """Make all values of a canvas that `self.canvas` returned ready for kernels."""

    def commit(self, canvas: Canvas, tiles: Tiles, checks: FiniteChecks) -> None:
        """Take the values that a layer wrote into `tiles` of a canvas that `self.canvas` returned into the kept form.

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
