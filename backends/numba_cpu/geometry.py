"""A convolution's geometry, as kernels take it."""

from __future__ import annotations

from typing import NamedTuple

from numba.types import NamedUniTuple, int64

from ..interface import ConvGeometry


class Geometry(NamedTuple):
    """A `ConvGeometry` without its channels, which a kernel takes from its source and output."""

    kernel_rows: int
    kernel_columns: int
    stride: int
    top: int
    """Rows of zeros above the input."""
    left: int
    groups: int


GEOMETRY = NamedUniTuple(int64, 6, Geometry)
"""Numba's type of a `Geometry`."""


def geometry_of(geometry: ConvGeometry) -> Geometry:
    """A convolution's `Geometry`."""
    top, _, left, _ = geometry.padding
    return Geometry(*geometry.kernel, geometry.stride, top, left, geometry.groups)
