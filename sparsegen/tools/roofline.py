"""Rooflines: a backend comes in, the peaks that it reaches on this machine go out; by them, the least time of work.

No layer can take less than its multiply-adds at the peak rate, nor less than its bytes at the peak bandwidth (Williams,
Waterman and Patterson, "Roofline: An Insightful Visual Performance Model", 2009). Bytes are counted as if each moved
once, from memory: a layer that finds them in a cache may take less than its bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsegen.backends.counting import Work
from sparsegen.backends.interface import Backend, Source

from ..tiling.tiles import TileSet

REPEATS = 5
"""Runs of each measurement, of which the fastest counts."""
_PRODUCTS = (96, 96, 768), (32, 32, 512)
"""Rows, columns and channels of 1×1 convolutions that arithmetic bounds: 5.4 G multiply-adds, for a card; 0.3 G, which
move less out of a processor's caches."""
_COPY = 512, 512, 64
"""Of canvases that are copied: 67 MB each."""


@dataclass(frozen=True)
class Machine:
    """The peaks of a backend on a machine."""

    multiply_adds: float
    """A second."""
    bandwidth: float
    """Bytes a second, read and written."""

    @property
    def ridge(self) -> float:
        """Multiply-adds for a byte, from which on arithmetic bounds a layer and not memory."""
        return self.multiply_adds / self.bandwidth

    def bound(self, work: Work) -> tuple[float, str]:
        """The least milliseconds, and what bounds them: "compute" or "memory"."""
        arithmetic = 1e3 * work.multiplied / self.multiply_adds
        memory = 1e3 * work.moved / self.bandwidth
        return (arithmetic, "compute") if arithmetic > memory else (memory, "memory")

    def __str__(self) -> str:
        return (
            f"{self.multiply_adds / 1e9:.1f} G multiply-adds a second, {self.bandwidth / 1e9:.1f} GB a second"
        )


def measured(backend: Backend) -> Machine:
    """The peaks of a backend here, measured in about a second; of five runs the fastest counts.

    Multiply-adds: those of 1×1 convolutions by its own kernel. Bandwidth: of a copy of a canvas by the backend; in main
    memory also of NumPy's sum of two. The higher one counts.
    """
    rate = max(_product_rate(backend, *shape) for shape in _PRODUCTS)

    height, width, channels = _COPY
    values = np.ones((1, height, width, channels), np.float32)
    one, two = (backend.upload(values) for _ in range(2))
    bandwidth = 2 * values.nbytes / _fastest(backend, lambda: backend.copy_arrays([(two, one)]))
    if backend.in_main_memory:
        took = _fastest(backend, lambda: np.add(one, two, out=values))
        bandwidth = max(bandwidth, 3 * values.nbytes / took)
    return Machine(rate, bandwidth)


def _product_rate(backend: Backend, height: int, width: int, channels: int) -> float:
    """Multiply-adds a second of a 1×1 convolution of as many outputs as inputs."""
    rng = np.random.default_rng(0)
    x = backend.upload(rng.standard_normal((1, height, width, channels), np.float32))
    weight = rng.standard_normal((channels, channels, 1, 1), np.float32)
    prepared = backend.prepare_conv(weight, None, size=(height, width))
    out, tiles = backend.alloc((1, height, width, channels)), TileSet.full(1, height, width).tiles
    seconds = _fastest(backend, lambda: backend.conv2d(out, tiles, Source((x,)), prepared))
    return height * width * channels**2 / seconds


def _fastest(backend: Backend, work: Callable[[], object]) -> float:
    """Seconds of the fastest run, after a warm-up."""
    times = []
    for _ in range(1 + REPEATS):
        backend.synchronize()
        start = time.perf_counter()
        work()
        backend.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
