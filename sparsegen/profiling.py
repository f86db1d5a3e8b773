"""What a run would cost: a model, an input's size and a mask come in, tiles and MACs come out; nothing is computed."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsegen.backends.interface import Host
from sparsegen.backends.shapes import ShapesBackend

from .errors import InputError, ShapeError
from .memory import Memory, input_path
from .model import Inputs, Model
from .policies import Everything, Plan, Policy, get_policy
from .run import Feature, Run
from .stats import Stats
from .tiles import TileSet


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


def profile(
    model: Model, picture: Any, *, mask: Any = None, policy: str | Policy | None = None, **conditions: Any
) -> Stats:
    """The cost of a dense run (`mask` None) or of an edit of `mask` (bool `[H, W]` or `[N, H, W]`).

    `picture` only gives the size, and the model needs no weights. Every time in the result is 0. Which tiles stop
    spreading under `adaptive` depends on the values: its cost here is the most that it can be, that of `exact`. Both
    are counted as on a backend without Winograd's transforms, where tiles do not spread as a whole.

    Raises
    ------
    InputError, ShapeError
    """
    inputs = model.encode(picture, **conditions)
    difference = np.ones(inputs.shape, bool) if mask is None else check_mask(mask, inputs.shape)
    plan = Everything() if mask is None else get_policy(policy, paper=model.paper).plan(difference)
    run = dry_run(model, inputs, plan, TileSet.of_mask(difference))
    return Stats(float(difference.mean()), tuple(run.records), 0.0, run.memory.nbytes)


def check_mask(mask: Any, shape: tuple[int, int, int]) -> Host:
    """A user's mask as bool `[N, H, W]`; one `[H, W]` serves all samples. Raises InputError, ShapeError."""
    array = np.asarray(mask)
    if array.dtype != bool:
        if not np.isin(array, (0, 1)).all():
            raise InputError(f"the mask is {array.dtype} with other values than 0 and 1; give booleans")
        array = array.astype(bool)
    if array.shape not in (shape, shape[1:]):
        raise ShapeError(f"the mask is {array.shape}, expected {shape[1:]} or {shape}")
    return np.broadcast_to(array, shape)
