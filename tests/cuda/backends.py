"""The CUDA backend on the emulated device, as the suites take it."""

from __future__ import annotations

from functools import cache

from sparsegen.backends.cupy_cuda.backend import CudaBackend
from tests.cuda.emulator import EmulatedDevice


@cache
def emulated() -> CudaBackend:
    """The CUDA backend whose kernels run on the CPU."""
    return CudaBackend(EmulatedDevice())
