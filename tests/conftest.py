"""What every test file shares: the backends that can run here, and how hypothesis draws."""

from __future__ import annotations

import pytest
from hypothesis import settings

from sparsegen.backends import Backend, backend_status, get_backend

# the same examples on every machine: a test that fails here fails there
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", params=list(backend_status()))
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every known backend in turn; one that cannot run here is skipped, and the summary says why."""
    why = backend_status()[request.param]
    if why is not None:
        pytest.skip(f"backend {request.param}: {why}")
    return get_backend(request.param)
