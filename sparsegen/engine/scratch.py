"""Scratch layers: values that only the same pixels of later layers read, computed for the tiles that a reader computes.

Nothing of them outlives the layers that read them, so they are neither kept nor journalled: of a transformer's layers,
keys, values and the output have canvases, all others are scratch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from weakref import ref

from sparsegen.backends.interface import Tiles

from ..errors import ShapeError
from ..tiling.canvas import Canvas, Compute
from ..tiling.tiles import TileSet
from ..tiling.windows import Read, Window
from .allocator import Allocator


@dataclass
class Inner:
    """A layer that others compute on their way, without a canvas."""

    path: str
    macs_per_pixel: int
    milliseconds: float | None = None
    """Its time; set when it is computed in a run that measures."""


@dataclass(eq=False)
class Scratch(Canvas):
    """The output of a scratch layer, in an array that other such layers write too."""

    buffer: str
    """The name of the array."""
    reads: tuple[Read, ...]
    """The canvases that its values depend on: none is scratch."""
    below: tuple[Scratch, ...]
    """The scratch layers that it reads."""
    kernel: Compute
    inner: Inner
    whole_tiles: bool
    counted: bool = False
    """Whether a step of the program has it among its `inners`."""

    def chain(self) -> Iterator[Scratch]:
        """This layer, and all scratch layers that its values depend on."""
        yield self
        for each in self.below:
            yield from each.chain()


def scratch(
    allocator: Allocator,
    path: str,
    shape: tuple[int, int, int, int],
    reads: Sequence[Read],
    kernel: Compute,
    macs_per_pixel: int,
    whole_tiles: bool,
) -> Scratch:
    """The scratch layer at `path`; the parameters are those of `Run.compute`.

    Layers of one shape and of the same place in their blocks share an array: the blocks follow one another.

    Raises
    ------
    ShapeError
        It reads another scratch layer elsewhere than at its own pixels, or two that share an array.
    """
    reads, below = flattened(path, reads)
    buffer = f"{' × '.join(map(str, shape))} {re.sub(r'.*[.][0-9]+[.]', '', path)}"
    made = Scratch(
        path,
        {path: allocator.scratch(buffer, shape)},
        TileSet.empty(*shape[:3]),
        buffer,
        tuple(reads),
        below,
        kernel,
        Inner(path, macs_per_pixel),
        whole_tiles or any(each.whole_tiles for each in below),
    )
    _check_arrays(path, [made])
    return made


def flattened(path: str, reads: Iterable[Read]) -> tuple[list[Read], tuple[Scratch, ...]]:
    """The reads of a layer with those of the scratch layers that it reads in their place, and these layers.

    Raises ShapeError, which names the layer at `path`: as `scratch`.
    """
    kept: dict[object, Read] = {}
    below: dict[Scratch, None] = {}

    def keep(read: Read) -> None:
        kept.setdefault((read.canvas, read.window, read.everywhere), read)

    for read in reads:
        if not isinstance(read.canvas, Scratch):
            keep(read)
            continue
        if read.window != Window() or read.everywhere:
            raise ShapeError(
                f"{path}: {read.canvas.path} is a scratch layer, expected a layer that is kept; only a pixel's own "
                "values can be read of a scratch layer"
            )
        below[read.canvas] = None
        for each in read.canvas.reads:
            keep(each)
    _check_arrays(path, below)
    return [*kept.values()], tuple(below)


def _check_arrays(path: str, layers: Iterable[Scratch]) -> None:
    """Raise ShapeError if two layers that must hold their values at the same time share an array."""
    arrays: dict[str, Scratch] = {}
    for layer in layers:
        for each in layer.chain():
            other = arrays.setdefault(each.buffer, each)
            if other is not each:
                raise ShapeError(
                    f"{path}: the scratch layers {other.path} and {each.path} share an array; give them different names"
                )


class Computed:
    """The tiles of scratch layers that a run has computed, and that nothing has overwritten."""

    def __init__(self) -> None:
        self._tiles: dict[str, tuple[ref[Scratch], Tiles]] = {}
        """Name of an array -> the layer whose values it holds, and the tiles. A run that keeps nothing frees canvases
        as soon as they are read: a strong reference to a layer would hold those that it reads."""

    def clear(self) -> None:
        """Forget everything: a new run begins."""
        self._tiles.clear()

    def compute(
        self, layers: Iterable[Scratch], tiles: Tiles, timed: Callable[[Inner, Callable[[], None]], None]
    ) -> list[Inner]:
        """Compute `tiles` of the layers, and of those below them; returns what had to be computed, in order.

        `timed(inner, work)` calls `work` and sets the time of `inner`.
        """
        found: list[Inner] = []
        for layer in layers:
            if self._tiles.get(layer.buffer) == (ref(layer), tiles):  # layers and tiles compare by identity
                continue
            found += self.compute(layer.below, tiles, timed)
            self._tiles.pop(layer.buffer, None)
            timed(layer.inner, lambda layer=layer: layer.kernel(layer.array, tiles))  # type: ignore[misc]  # a lambda's default
            self._tiles[layer.buffer] = (ref(layer), tiles)
            found.append(layer.inner)
        return found
