"""A canvas: a layer's whole output, the path by which it is kept from run to run, and the tiles that a run changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sparsegen.backends.interface import Array, Tiles

from .tiles import TileSet

Compute: TypeAlias = "Callable[[Array, Tiles], bool | None]"
"""Computes some tiles of a canvas's array; returns whether it knows every value to be finite, as primitives do."""


@dataclass(eq=False)
class Canvas:
    """The array `[N, H, W, C]` of the backend that lies under `path` in a table of arrays.

    The array is looked up when it is read: an edit that repaints a canvas whole puts another array in its place.
    """

    path: str
    arrays: Mapping[str, Array]
    """Path -> array."""
    changed: TileSet
    """The tiles that may have changed in the present run."""

    def __repr__(self) -> str:
        return f"<Canvas {self.path}: {' × '.join(map(str, self.shape))}>"

    @property
    def array(self) -> Array:
        """The array as it is now."""
        return self.arrays[self.path]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, C)`."""
        shape: tuple[int, int, int, int] = self.array.shape
        return shape
