"""One forward pass, looked into: inputs before and after an edit come in, what every layer did comes out.

Three runs of the same model are compared: the *original* (a dense run), the *edit* of it, and the *dense* run of the
edited input. What an edit misses in a layer is compared with what it should have moved there:

    error = |dense - edit|,    moved = |dense - original|        (root of the sum of squares over a tile, or a layer)

An error of 1 × moved means that the layer is as it was before the edit, 0 that it equals the dense run. It comes
twice: *inherited*, as the edit computes, and *own*, where everything that the layer reads is that of the dense run.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsegen.backends.interface import TILE, Backend, Host

from ...editing.state import State
from ...engine.allocator import BackendAllocator
from ...engine.journal import Journal
from ...engine.stats import LayerRecord
from ...models.base import Inputs, Model
from ...tiling.masks import difference_mask
from ...tiling.policies import Policy
from ...tiling.tiles import TileSet, gather_tiles
from .observed import Observed
from .tile import TileNumbers, numbers

MOST_TILES = 40
"""Tiles of a layer whose numbers are kept: of more, some that lie apart."""


@dataclass(eq=False)
class Layer:
    """What one layer did in an edit."""

    path: str
    kind: str
    """The class of the layer, such as Conv2d."""
    height: int
    width: int
    channels: int
    active: Host
    """bool `[rows, columns]`: the tiles that the edit recomputed (of the first sample)."""
    moved: Host
    """float `[rows, columns]`: how far the dense run moves each tile."""
    error: Host
    """float `[rows, columns]`: the inherited error of each tile."""
    macs: int = 0
    """Multiply-accumulates of the active tiles, by the layer's plain formula."""
    macs_dense: int = 0
    own: float = 0.0
    """The layer's own error as a share of what it should move."""
    file: str = ""
    line: int = 0
    """Where the model calls it."""
    code: str = ""
    """That line."""
    tiles: list[TileNumbers] = field(default_factory=list)
    """The numbers of some active tiles, of a convolution."""

    @property
    def inherited(self) -> float:
        """The inherited error as a share of what the layer should move; 0 if nothing should."""
        return _share(self.error, self.moved)


@dataclass(frozen=True, eq=False)
class Forward:
    """The layers of a model in an edit, in the order in which they ran."""

    layers: Sequence[Layer]

    @property
    def culprit(self) -> Layer | None:
        """The layer whose own error is the largest; None: no layer errs on its own."""
        worst = max(self.layers, key=lambda layer: layer.own, default=None)
        return worst if worst is not None and worst.own > 0 else None


def look_into(
    model: Model,
    original: Inputs,
    edited: Inputs,
    policy: Policy,
    *,
    difference: Host | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> Forward:
    """Run a model three times, on the reference backend, and compare.

    Parameters
    ----------
    original, edited
        The inputs before and after the edit, as `Model.encode` gives them, of one size.
    policy
        The policy of the edit; every layer is computed (no deltas are carried).
    difference
        bool `[N, H, W]`: the pixels that the edit changes; None: those that differ by more than the model's eps.
    said
        Called with what begins now.
    """
    if difference is None:
        difference = difference_mask(original.canvases, edited.canvases, eps=model.eps)
    changed, plan = TileSet.of_mask(difference), policy.plan(difference)
    layers: dict[str, Layer] = {}
    said("the original, layer by layer")
    state = _painted(model, original, policy, on_layer=lambda record: _note_place(layers, model, record))
    said("the edited input, densely")
    dense = _painted(model, edited, policy).memory.canvases
    kept = state.memory.canvases
    for path in layers:
        layers[path].moved = _tile_norms(dense[path], kept[path])
        layers[path].channels = int(kept[path].shape[3])
    backend = state.memory.backend
    assert isinstance(backend, Observed)
    backend.convolutions.clear()
    values = {name: gather_tiles(array, changed.tiles) for name, array in edited.canvases.items()}
    said("the edit, sparsely")
    journal = Journal()
    run = state.repaint(values, changed, plan, journal=journal).run
    for record in run.records:
        layers[record.path].macs, layers[record.path].macs_dense = record.macs, record.macs_dense
    for canvas in state.layer_canvases:
        path, active, layer = canvas.path, canvas.changed, layers[canvas.path]
        layer.active = active.mask(whole_tiles=True)[0, ::TILE, ::TILE]
        layer.error = _tile_norms(dense[path], kept[path])
        known = backend.convolutions.get(id(kept[path]))
        if known is not None and active.count:
            layer.tiles = numbers(known, kept[path], _some(active))
    journal.undo(state.memory)
    said("each layer by itself")
    _measure_own(state, layers, dense, values, changed, plan)
    return Forward([*layers.values()])


def times(
    model: Model, backend: Backend, original: Inputs, edited: Inputs, policy: Policy, difference: Host
) -> dict[str, float]:
    """Path -> milliseconds of each layer in an edit on a backend, the second time that it is made."""
    state = State(model, backend, allocator=BackendAllocator(backend))
    state.paint(original.canvases, original.conditions)
    changed, found = TileSet.of_mask(difference), dict[str, float]()
    values = {name: gather_tiles(array, changed.tiles) for name, array in edited.canvases.items()}
    for _ in range(2):
        journal = Journal()
        plan = policy.plan(difference)
        run = state.repaint(values, changed, plan, journal=journal, on_layer=lambda _: None).run
        journal.undo(state.memory)
        found = {record.path: record.milliseconds or 0.0 for record in run.records}
    return found


def _painted(model: Model, inputs: Inputs, policy: Policy, **options: Any) -> State:
    backend = Observed()
    state = State(model, backend, allocator=BackendAllocator(backend))
    state.paint(inputs.canvases, inputs.conditions, keep_scratch=True, **options)
    return state


def _measure_own(
    state: State,
    layers: dict[str, Layer],
    dense: dict[str, Host],
    values: dict[str, Host],
    changed: TileSet,
    plan: Any,
) -> None:
    """Do the edit once more, and put the dense run's values into every canvas once its layer is measured."""
    kept, journal = state.memory.canvases, Journal()

    def correct(record: LayerRecord) -> None:
        layer = layers.get(record.path)
        if layer is not None:
            layer.own = _share(_tile_norms(dense[record.path], kept[record.path]), layer.moved)
            kept[record.path][...] = dense[record.path]

    state.repaint(values, changed, plan, journal=journal, on_layer=correct)


def _some(active: TileSet) -> Host:
    """Up to `MOST_TILES` of the first sample's active tiles, evenly apart: `[K, 3]`."""
    tiles = active.tiles.host[active.tiles.host[:, 0] == 0]
    chosen = np.linspace(0, len(tiles) - 1, min(len(tiles), MOST_TILES)).round().astype(int)
    return np.asarray(tiles[chosen])


def _tile_norms(a: Host, b: Host) -> Host:
    """Of each tile of the first sample, the root of the sum of squares of a - b: float `[rows, columns]`."""
    squares = np.square(a[0] - b[0], dtype=np.float64).sum(-1)
    height, width = squares.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = np.zeros((rows * TILE, columns * TILE))
    padded[:height, :width] = squares
    return np.asarray(np.sqrt(padded.reshape(rows, TILE, columns, TILE).sum((1, 3))))


def _share(error: Host, moved: Host) -> float:
    """How large an error is beside what should move."""
    whole = float(np.linalg.norm(moved))
    return float(np.linalg.norm(error)) / whole if whole else 0.0


def _note_place(layers: dict[str, Layer], model: Model, record: LayerRecord) -> None:
    """Add a layer to `layers`, with the line of the model's source that calls it: called while that line runs."""
    if record.path in layers:
        return
    rows, columns = -(-record.height // TILE), -(-record.width // TILE)
    nothing = np.zeros((rows, columns))
    found = Layer(record.path, "", record.height, record.width, 0, nothing > 0, nothing, nothing)
    kinds = {layer.path: type(layer).__name__ for layer in model.layers()}
    found.kind = kinds.get(record.path, "")
    folder = Path(sys.modules[Model.__module__].__file__ or "").parent
    frame = sys._getframe()
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.parent == folder:
            found.file, found.line = f"{folder.name}/{file.name}", frame.f_lineno
            found.code = linecache.getline(str(file), frame.f_lineno).strip()
            break
        frame = frame.f_back  # type: ignore[assignment]  # None ends it
    layers[record.path] = found
