"""The passes of an edit: the states of a session come in, what an edit repaints in each of them comes out.

A session repaints its states in its own way: a GauGAN's one, a diffusion model's at every denoising step, Stable
Diffusion's encoder, steps and decoder, each with masks of its own. All of it goes through `State.repaint`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from sparsegen.backends.interface import Host

from ...editing.state import State
from ...models.base import Inputs, Model
from ...tiling.policies import Plan
from ...tiling.tiles import TileSet, gather_tiles, scatter_tiles


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass of a model in an edit."""

    model: Model
    before: Inputs
    """What it read before the edit."""
    values: Mapping[str, Host]
    """What the edit writes into its inputs, by name: the tiles of `changed`, `[K, TILE, TILE, P]`."""
    changed: TileSet
    """The pixels of the inputs that the edit writes."""
    spread: TileSet
    """The pixels of the inputs from which active tiles grow."""
    plan: Plan
    """The rule for the active tiles."""
    part: str = ""
    """What its layers' paths begin with where there are several passes, such as "unet"."""
    title: str = ""
    """The part in words."""
    sample: int = 0
    """The sample of a batch that is looked at."""

    @property
    def after(self) -> Inputs:
        """What the model reads after the edit."""
        canvases = {name: np.array(array) for name, array in self.before.canvases.items()}
        for name, array in canvases.items():
            old = gather_tiles(array, self.changed.tiles)
            new = np.where(self.changed.pixels[..., None], self.values[name], old)
            scatter_tiles(array, self.changed.tiles, new)
        return Inputs(canvases, self.before.conditions)

    def path(self, path: str) -> str:
        """A layer's path among those of all passes."""
        return f"{self.part}.{path}" if self.part else path


@contextmanager
def noted(states: Sequence[State]) -> Iterator[dict[State, Pass]]:
    """A context that notes the last repaint of each of these states, by state."""
    found: dict[State, Pass] = {}

    def note(state: State, values: Mapping[str, Host], changed: TileSet, spread: TileSet, plan: Plan) -> None:
        before = {name: state.input(name) for name in state.inputs}
        kept = Inputs(before, dict(state.conditions))
        found[state] = Pass(state.model, kept, dict(values), changed, spread, plan)

    for state in states:
        state.on_repaint = partial(note, state)
    try:
        yield found
    finally:
        for state in states:
            state.on_repaint = None
