"""The passes of an edit, looked into: what the models read comes in, what every layer did comes out.

Of each pass, three runs of the same model are compared: the *original* (a dense run), the *edit* of it, and the *dense*
run of the edited input. What an edit misses in a layer is compared with what it should have moved there:

    error = |dense - edit|,    moved = |dense - original|        (root of the sum of squares over a tile, or a layer)

An error of 1 × moved means that the layer is as it was before the edit, 0 that it equals the dense run. It comes
twice: *inherited*, as the edit computes, and *own*, where everything that the layer reads is that of the dense run.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsegen.backends.interface import TILE, Backend, Host

from ...editing.state import State
from ...engine.allocator import BackendAllocator
from ...engine.journal import Journal
from ...engine.run import Run
from ...engine.stats import LayerRecord
from ...models.base import Inputs, Model
from ...tiling.tiles import TileSet
from .observed import Observed
from .passes import Pass
from .tile import TileNumbers, numbers

MOST_TILES = 40
"""Tiles of a layer whose numbers are kept: of more, some that lie apart."""
REPEATS = 5
"""Edits of which a layer's least time counts: in the middle of any of them another program may take a core."""


@dataclass(eq=False)
class Layer:
    """What one layer did in an edit."""

    path: str
    kind: str
    """The class of the layer, such as Conv2d."""
    part: str
    """The pass that it belongs to; empty: there is one."""
    height: int
    width: int
    channels: int
    active: Host
    """bool `[rows, columns]`: the tiles that the edit recomputed, of the sample that is shown."""
    moved: Host
    """float `[rows, columns]`: how far the dense run moves each tile."""
    error: Host
    """float `[rows, columns]`: the inherited error of each tile."""
    kept: bool = True
    """False: a scratch layer, of which a session keeps no canvas."""
    macs: int = 0
    """Multiply-accumulates of the active tiles of all samples, by the layer's plain formula."""
    macs_dense: int = 0
    milliseconds: float | None = None
    """Its time in the edit on the user's backend, the least of some edits; None: not measured."""
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


@dataclass
class Size:
    """The layers of one resolution of one part, together."""

    part: str
    height: int
    width: int
    active: float = 0.0
    """The largest share of active tiles of a layer."""
    macs: int = 0
    macs_dense: int = 0
    milliseconds: float = 0.0
    """0: not measured."""


@dataclass(frozen=True, eq=False)
class Forward:
    """The layers of an edit's passes, in the order in which they ran."""

    layers: Sequence[Layer]
    passes: Sequence[Pass]

    @property
    def culprit(self) -> Layer | None:
        """The layer whose own error is the largest; None: no layer errs on its own."""
        worst = max(self.layers, key=lambda layer: layer.own, default=None)
        return worst if worst is not None and worst.own > 0 else None

    @property
    def sizes(self) -> list[Size]:
        """Where the work and the time are: what the layers of each resolution add up to, the largest first."""
        found: dict[tuple[str, int, int], Size] = {}
        for layer in self.layers:
            key = layer.part, layer.height, layer.width
            size = found.setdefault(key, Size(*key))
            size.active = max(size.active, float(layer.active.mean()))
            size.macs += layer.macs
            size.macs_dense += layer.macs_dense
            size.milliseconds += layer.milliseconds or 0.0
        parts = list(dict.fromkeys(layer.part for layer in self.layers))
        return sorted(found.values(), key=lambda size: (parts.index(size.part), -size.height * size.width))


def look_into(
    passes: Sequence[Pass], backend: Backend | None = None, *, said: Callable[[str], None] = lambda _: None
) -> Forward:
    """Run the model of each pass three times, on the reference backend, and compare.

    Every layer is computed (no deltas are carried).

    Parameters
    ----------
    backend
        The backend whose tiles, MACs and times are those of the layers; None: the reference backend, without times.
    said
        Called with what begins now.
    """
    return Forward([layer for one in passes for layer in _layers(one, backend, said)], passes)


def _layers(one: Pass, backend: Backend | None, said: Callable[[str], None]) -> list[Layer]:
    """The layers of one pass."""
    layers: dict[str, Layer] = {}
    of = f", {one.part}" if one.part else ""
    said(f"the original, layer by layer{of}")
    state = _painted(one.model, one.before, on_layer=lambda record: _note_place(layers, one, record))
    said(f"the edited input, densely{of}")
    dense = _painted(one.model, one.after).memory.canvases
    kept = state.memory.canvases
    for path in layers:
        layers[path].moved = _tile_norms(dense[path], kept[path], one.sample)
        layers[path].channels = int(kept[path].shape[3])
    observed = state.memory.backend
    assert isinstance(observed, Observed)
    observed.convolutions.clear()
    said(f"the edit, sparsely{of}")
    journal = Journal()
    run = _repainted(state, one, journal)
    for record in run.records:
        layers[record.path].macs, layers[record.path].macs_dense = record.macs, record.macs_dense
    for canvas in state.layer_canvases:
        path, active, layer = canvas.path, canvas.changed, layers[canvas.path]
        layer.active = _mask(active, one.sample)
        layer.error = _tile_norms(dense[path], kept[path], one.sample)
        known = observed.convolutions.get(id(kept[path]))
        if known is not None and active.count:
            layer.tiles = numbers(known, kept[path], _some(active, one.sample))
    journal.undo(state.memory)
    said(f"each layer by itself{of}")

    def correct(record: LayerRecord) -> None:
        """Measure a layer, and put the dense run's values into its canvas."""
        layer, path = layers[record.path], record.path
        layer.own = _share(_tile_norms(dense[path], kept[path], one.sample), layer.moved)
        kept[path][...] = dense[path]

    _repainted(state, one, Journal(), on_layer=correct)
    if backend is not None:
        said(f"the time of each layer{of}")
        _measure(one, backend, layers)
    return [replace(layer, path=one.path(path)) for path, layer in layers.items()]


def _measure(one: Pass, backend: Backend, layers: dict[str, Layer]) -> None:
    """Note what a backend computes for each layer, as a session has it: scratch layers on the way, codebooks as such.

    Its times are the least of `REPEATS` edits, after a first one.
    """
    state = State(one.model, backend, allocator=BackendAllocator(backend))
    state.paint(one.before.canvases, one.before.conditions)
    times: dict[str, list[float]] = {}
    for repeat in range(1 + REPEATS):
        journal = Journal()
        run = _repainted(state, one, journal, on_layer=lambda _: None)
        journal.undo(state.memory)
        for record in run.records if repeat else ():
            times.setdefault(record.path, []).append(record.milliseconds or 0.0)
    tiles = state.layer_tiles
    for record in run.records:
        layer = layers.get(record.path)
        if layer is not None:  # a codebook of two layers is one layer of the backend
            layer.milliseconds, layer.macs = min(times[record.path]), record.macs
            if record.path in tiles:
                layer.active = _mask(tiles[record.path], one.sample)


def _mask(active: TileSet, sample: int) -> Host:
    """bool `[rows, columns]`: a sample's active tiles."""
    return np.asarray(active.mask(whole_tiles=True)[sample, ::TILE, ::TILE])


def _painted(model: Model, inputs: Inputs, **options: Any) -> State:
    backend = Observed()
    state = State(model, backend, allocator=BackendAllocator(backend))
    state.paint(inputs.canvases, inputs.conditions, keep_scratch=True, **options)
    return state


def _repainted(state: State, one: Pass, journal: Journal, **options: Any) -> Run:
    """The run of a pass's edit of a state that holds what the pass read before."""
    return state.repaint(one.values, one.changed, one.plan, journal=journal, spread=one.spread, **options).run


def _some(active: TileSet, sample: int) -> Host:
    """Up to `MOST_TILES` of a sample's active tiles, evenly apart: `[K, 3]`."""
    tiles = active.tiles.host[active.tiles.host[:, 0] == sample]
    chosen = np.linspace(0, len(tiles) - 1, min(len(tiles), MOST_TILES)).round().astype(int)
    return np.asarray(tiles[chosen])


def _tile_norms(a: Host, b: Host, sample: int) -> Host:
    """Of each tile of a sample, the root of the sum of squares of a - b: float `[rows, columns]`."""
    squares = np.square(a[sample] - b[sample], dtype=np.float64).sum(-1)
    height, width = squares.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = np.zeros((rows * TILE, columns * TILE))
    padded[:height, :width] = squares
    return np.asarray(np.sqrt(padded.reshape(rows, TILE, columns, TILE).sum((1, 3))))


def _share(error: Host, moved: Host) -> float:
    """How large an error is beside what should move."""
    whole = float(np.linalg.norm(moved))
    return float(np.linalg.norm(error)) / whole if whole else 0.0


def _note_place(layers: dict[str, Layer], one: Pass, record: LayerRecord) -> None:
    """Add a layer to `layers`, with the line of the model's source that calls it: called while that line runs."""
    if record.path in layers:
        return
    rows, columns = -(-record.height // TILE), -(-record.width // TILE)
    nothing = np.zeros((rows, columns))
    size = record.height, record.width
    found = Layer(record.path, "", one.part, *size, 0, nothing > 0, nothing, nothing)
    layer = next((each for each in one.model.layers() if each.path == record.path), None)
    if layer is not None:
        found.kind, found.kept = type(layer).__name__, getattr(layer, "kept", True)
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
