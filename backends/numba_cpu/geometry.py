"""A convolution's geometry, as kernels take it."""

from __future__ import annotations

from typing import NamedTuple

from numba.types import NamedUniTuple, int64

from ..interface import ConvGeometry


class Geometry(NamedTuple):
    """A `ConvGeometry` without the zeros below and right of the input: they follow from the output's size."""

    inputs: int
    outputs: int
    kernel_rows: int
    kernel_columns: int
    stride: int
    top: int
    """Rows of zeros above the input."""
    left: int
    groups: int


GEOMETRY = NamedUniTuple(int64, 8, Geometry)
"""Numba's type of a `Geometry`."""


def geometry_of(geometry: ConvGeometry) -> Geometry:
    """A convolution's `Geometry`."""
    g, (top, _, left, _) = geometry, geometry.padding
    return Geometry(g.inputs, g.outputs, *g.kernel, g.stride, top, left, g.groups)
