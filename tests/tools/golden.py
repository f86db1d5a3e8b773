"""Golden files without PyTorch: a model and an image come in, the file of what the model itself computes goes out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsegen.backends import get_backend
from sparsegen.editing.state import State
from sparsegen.engine.allocator import BackendAllocator
from sparsegen.models.base import Model
from sparsegen.tools.parity import Reference
from sparsegen.tools.parity.comparison import painted
from sparsegen.tools.parity.reference import Values
from sparsegen.tools.parity.walk import Walk


def write_golden(model: Model, image: Any, path: Path, **conditions: Any) -> None:
    """Write a golden file as if the reference backend were PyTorch."""
    inputs, backend = model.encode(image, **conditions), get_backend("reference")
    state = State(model, backend, allocator=BackendAllocator(backend))
    _, output = state.paint(inputs.canvases, inputs.conditions, keep_scratch=True)
    layers = {each: painted(state.memory, each) for each in Walk(model, inputs).paths}
    Reference(
        model.family, asdict(model.config), Values(inputs, layers, output), made_by="the model itself"
    ).save(path)
