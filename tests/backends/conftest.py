"""What the contract suite adds to the shared fixtures: the example backend, held to the contract beside the others."""

from __future__ import annotations

import pytest

from sparsegen.backends import Backend, backend_status, get_backend
from tests.backends.example_backend import ExampleBackend
from tests.conftest import tested_backends
from tests.cuda import emulator
from tests.cuda.backends import emulated

EMULATED = "cupy on a CPU"


@pytest.fixture(scope="session", params=[*tested_backends(), ExampleBackend.name, EMULATED])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every known backend in turn, the example, and the CUDA kernels on a CPU.

    One that cannot run here is skipped, and the summary says why.
    """
    if request.param == ExampleBackend.name:
        return ExampleBackend()
    if request.param == EMULATED:
        if emulator.COMPILER is None:
            pytest.skip(emulator.MISSING)
        return emulated()
    why = backend_status()[request.param]
    if why is not None:
        pytest.skip(f"backend {request.param}: {why}")
    return get_backend(request.param)
