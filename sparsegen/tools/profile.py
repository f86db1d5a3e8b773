"""The cost of a run without the run: a model, an input's size and a mask come in, tiles and MACs come out."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..editing.dry_run import dry_run
from ..engine.stats import Stats
from ..models.base import Model
from ..tiling.masks import check_mask
from ..tiling.policies import Everything, Policy
from ..tiling.tiles import TileSet


def profile(
    model: Model, image: Any, *, mask: Any = None, policy: str | Policy = "paper", **conditions: Any
) -> Stats:
    """The cost of a dense run (`mask` None) or of an edit of `mask` (bool `[H, W]` or `[N, H, W]`).

    `image` only gives the size, and the model needs no weights. Every time in the result is 0. Which tiles stop
    spreading under `adaptive` depends on the values: its cost here is the upper bound, the cost of `exact`. Both are
    counted as on a backend without Winograd's transforms, where tiles do not spread as a whole.

    Raises
    ------
    InputError, ShapeError
        The image, a condition, the mask or the policy does not fit.
    """
    inputs = model.encode(image, **conditions)
    difference = np.ones(inputs.shape, bool) if mask is None else check_mask(mask, inputs.shape)
    chosen = model.policy(policy)
    plan = Everything() if mask is None else chosen.plan(difference)
    run = dry_run(model, inputs, plan, TileSet.of_mask(difference), least_size=chosen.least_size)
    return Stats(float(difference.mean()), tuple(run.records), 0.0, run.memory.nbytes)
