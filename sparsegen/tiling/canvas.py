"""A canvas: a layer's whole output and the path by which it is kept from run to run."""

from __future__ import annotations

from dataclasses import dataclass

from sparsegen.backends.interface import Array


@dataclass(frozen=True, eq=False)
class Canvas:
    """An array `[N, H, W, C]` of the backend and the path of the layer that writes it."""

    path: str
    array: Array

    def __repr__(self) -> str:
        return f"<Canvas {self.path}: {' × '.join(map(str, self.shape))}>"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, C)`."""
        shape: tuple[int, int, int, int] = self.array.shape
        return shape
