"""Fixtures of the CUDA tests: a machine with the cards that a test names, or with none."""

from __future__ import annotations

import pytest

from sparsegen.backends import registry
from sparsegen.backends.cupy_cuda import compile as compiler
from sparsegen.backends.cupy_cuda import presence, sources
from tests.cuda.fake_cupy import FakeCompiler, FakeCuda, Install


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install CuPy, a driver and cards for a test."""

    def with_cards(*cards: tuple[str, int, int], **versions: int) -> FakeCuda:
        fake = FakeCuda(*cards, **versions)
        modules = fake.modules()
        monkeypatch.setattr(presence, "cuda", lambda: modules)
        monkeypatch.setattr(compiler, "nvrtc", lambda: FakeCompiler)
        monkeypatch.setattr(compiler, "cubins", lambda architecture: dict.fromkeys(sources.files(), b"cubin"))
        monkeypatch.setattr(registry, "_OPEN", {})
        return fake

    return with_cards
