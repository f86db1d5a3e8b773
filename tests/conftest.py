"""What every test file shares: the backends that can run here, and how hypothesis draws."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from sparsegen.backends import Backend, backend_status, get_backend

# the same examples on every machine: a test that fails here fails there
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


EMULATED = "SPARSEGEN_TEST_EMULATED"
"""With this variable set, `cupy` is the tests' emulated device, alone: any test as it would go on a card, slowly."""


def tested_backends() -> list[str]:
    """The names of the backends to test: every known one, but `cupy` only where there is a card.

    Elsewhere `tests/cuda/test_card.py` says in one line what is missing, in place of every test once more.
    """
    if os.environ.get(EMULATED):
        return ["cupy"]
    return [name for name, why in backend_status().items() if why is None or name != "cupy"]


@pytest.fixture(scope="session", params=tested_backends())
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every known backend in turn; one that cannot run here is skipped, and the summary says why."""
    if os.environ.get(EMULATED):
        from tests.cuda.backends import emulated

        return emulated()
    why = backend_status()[request.param]
    if why is not None:
        pytest.skip(f"backend {request.param}: {why}")
    return get_backend(request.param)


# How torch.save can write one object: zip or legacy, and in which pickle protocol.
WRITTEN = [(True, 2), (True, 4), (True, 5), (False, 2), (False, 4)]


@pytest.fixture(params=WRITTEN, ids=lambda how: f"{'zip' if how[0] else 'legacy'}-protocol{how[1]}")
def save(request, tmp_path):
    """A function that writes a value in each of these ways, and gives the file's path."""
    torch = pytest.importorskip("torch")
    as_zip, protocol = request.param

    def write(value):
        path = tmp_path / "written.pth"
        torch.save(value, path, _use_new_zipfile_serialization=as_zip, pickle_protocol=protocol)
        return path

    return write
