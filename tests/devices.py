"""What tests of every backend ask of one that may compute in a device's memory."""

from __future__ import annotations

import pytest

from sparsegen.backends import Backend
from sparsegen.backends.interface import Host
from sparsegen.engine.memory import Memory


def host(memory: Memory, path: str) -> Host:
    """A canvas of a memory, in main memory."""
    return memory.backend.download(memory.canvases[path])


def skip_unless_in_main_memory(backend: Backend) -> None:
    """Skips a test of files and of memory that a card's backend does not have."""
    if not backend.in_main_memory:
        pytest.skip(f"{backend.name} keeps its canvases on the device")
