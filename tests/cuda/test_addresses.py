"""Every kernel, built with sanitizers, accesses nothing beyond an array and does nothing undefined."""

from __future__ import annotations

import pytest

from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.cupy_cuda.sources import kernels
from tests.cuda import emulator
from tests.cuda.calls import missed
from tests.cuda.emulator import SANITIZED, EmulatedDevice


def run_all() -> None:
    """What the test's process runs. Values are checked, too."""
    assert missed(CudaBackend(EmulatedDevice(SANITIZED)), kernels()) == []
    print("all")


def test_no_kernel_strays() -> None:
    if emulator.COMPILER is None:
        pytest.skip(emulator.MISSING)
    if emulator.sanitizers() is None:
        pytest.skip("this compiler has no sanitizers: take g++")
    emulator.build_all(SANITIZED)  # the process would run the compiler with the sanitizers, too
    done = emulator.sanitized("-c", "from tests.cuda.test_addresses import run_all; run_all()")
    assert (done.returncode, done.stdout, done.stderr) == (0, "all\n", "")
