"""What the contract suite adds to the shared fixtures: the example backend, held to the contract beside the others."""

from __future__ import annotations

import pytest

from sparsegen.backends import Backend, backend_status, get_backend
from tests.backends.example_backend import ExampleBackend


@pytest.fixture(scope="session", params=[*backend_status(), ExampleBackend.name])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every known backend in turn, and the example; one that cannot run here is skipped, and the summary says why."""
    if request.param == ExampleBackend.name:
        return ExampleBackend()
    why = backend_status()[request.param]
    if why is not None:
        pytest.skip(f"backend {request.param}: {why}")
    return get_backend(request.param)
