"""The CUDA backend: every primitive of the contract as kernels on a device, each subject in a file of its own."""

from __future__ import annotations

from .convolutions import Convolutions
from .reading import Reading
from .rows import Rows
from .statistics import Statistics
from .tiles import TileCopies


class CudaBackend(Convolutions, Reading, Rows, Statistics, TileCopies):
    """Every primitive as kernels on a device."""

    name = "cupy"
