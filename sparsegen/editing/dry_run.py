"""What a run would cost: a model, an input's size and a mask come in, tiles and MACs come out; nothing is computed."""

from __future__ import annotations

from sparsegen.backends.shapes import ShapesBackend

from ..engine.memory import Memory, input_path
from ..engine.run import Feature, Run
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
    least_size: int | None = None,
) -> Run:
    """The model's forward pass on arrays without storage: its records and the shapes of its canvases.

    `least_size` is the memory's; None: what a session of this input has.
    """
    canvases = {input_path(name): array for name, array in inputs.canvases.items()}
    least = model.least_size(*inputs.shape[1:]) if least_size is None else least_size
    memory = Memory(ShapesBackend(), canvases=canvases, coded=coded, least_size=least)
    run = Run(memory, plan, edited=changed.edited)
    features = {name: Feature(run, (array,), (changed,)) for name, array in inputs.canvases.items()}
    model.forward(features, inputs.conditions)
    return run
