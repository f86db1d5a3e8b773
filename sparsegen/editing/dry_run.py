"""Dry runs: a model, an input's size and a plan come in, tiles, MACs and shapes come out; nothing is computed."""

from __future__ import annotations

from sparsegen.backends.shapes import ShapesBackend

from ..engine.allocator import BackendAllocator
from ..engine.feature import Feature
from ..engine.memory import Memory
from ..engine.run import Run
from ..models.base import Inputs, Model
from ..tiling.policies import Plan
from ..tiling.tiles import TileSet


def dry_run(
    model: Model,
    inputs: Inputs,
    plan: Plan,
    changed: TileSet,
    *,
    coded: bool = False,
    least_size: int = 0,
    carried_rows: int = 0,
) -> Run:
    """The model's forward pass on arrays without storage: its records and the shapes of its canvases.

    `coded`, `least_size` and `carried_rows` are the memory's.
    """
    backend = ShapesBackend()
    least = min(least_size, *inputs.shape[1:])
    memory = Memory(
        backend, BackendAllocator(backend), coded=coded, least_size=least, carried_rows=carried_rows
    )
    memory.take_inputs(inputs.canvases)
    run = Run(memory, plan, edited=changed.edited)
    features = {name: Feature(run, (memory.input(name, changed),)) for name in inputs.canvases}
    output = model.forward(features, inputs.conditions)
    memory.persist(output.parts[0], run.finite)
    return run
