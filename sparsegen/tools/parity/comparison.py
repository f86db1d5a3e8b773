"""A model and a reference come in, both are compared layer by layer, and a report comes out.

Each layer is compared twice. Its *inherited* error is that of two networks that both ran from the input. Its *own*
error is that of the one layer: it reads the reference's values, so nothing before it counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sparsegen.backends.interface import Backend, Host

from ...checks import in_range
from ...editing.state import State
from ...engine.allocator import BackendAllocator
from ...engine.journal import Journal
from ...engine.memory import Memory
from ...errors import ShapeError
from ...models.base import Model
from ...tiling.masks import difference_mask
from ...tiling.policies import Policy
from ...tiling.tiles import TileSet, gather_tiles
from .causes import causes_of
from .difference import Difference, at_size
from .reference import Reference, Values
from .report import Edit, Layer, Parity
from .walk import Walk


def compare(
    model: Model,
    reference: Reference,
    backend: Backend,
    *,
    policy: str | Policy,
    tolerance: float,
) -> Parity:
    """Compare every layer of the model with the reference; the parameters are those of `sparsegen.parity`.

    Raises
    ------
    InputError, ShapeError, NonFiniteError
        The reference is of another family, or its inputs are none of the model's; a layer's value is not finite.
    """
    in_range("tolerance", tolerance, 0, 1, ends="()")
    reference = reference.checked(model)
    chosen = model.policy(policy)
    original = reference.original
    state = State(model, backend, allocator=BackendAllocator(backend))
    _, output = state.paint(original.inputs.canvases, original.inputs.conditions, keep_scratch=True)
    dense = Difference.of(output, original.output) if output.shape == original.output.shape else None
    if dense is None:
        raise ShapeError(f"the model's output is {output.shape}, the reference's {original.output.shape}")
    paths = Walk(model, original.inputs).paths
    inherited, held, missing = _inherited(state.memory, paths, original, reference.missing)
    edit = None
    if reference.edited is not None:
        edit = _edit(model, state, original, reference.edited, paths, chosen)
    del state
    walk = Walk(model, original.inputs, backend, held)
    layers = []
    for path in paths:
        reads = (
            [read.canvas.path for read in walk.steps[path].reads if read.canvas] if path in walk.steps else []
        )
        own = None
        if path in inherited:
            own = Difference.of(walk.compute(path), original.layers[path])
        layers.append(
            Layer(
                path,
                walk.shape(path),
                inherited.get(path),
                own,
                edit.layers.get(path) if edit else None,
                missing.get(path, ""),
                tuple(name for name in reads if name in missing),
                reference.remarks.get(path, ""),
                str(reference.facts.get(path, {}).get("module", "")),
            )
        )
    first = next((each for each in layers if each.own is not None and each.own.relative > tolerance), None)
    causes = () if first is None else causes_of(walk, first.path, reference, tolerance)
    return Parity(
        model=f"{model.name or type(model).__name__} ({model.family})",
        reference=reference.made_by,
        backend=repr(backend).strip("<>"),
        tolerance=tolerance,
        notes=tuple(reference.differences(model)),
        other_weights=tuple(reference.other_weights(model)),
        layers=tuple(layers),
        output=dense,
        causes=causes,
        edit=edit,
    )


def _inherited(
    memory: Memory, paths: list[str], values: Values, missing: Mapping[str, str]
) -> tuple[dict[str, Difference], dict[str, Host], dict[str, str]]:
    """The differences of a dense run; the reference's values, with ours where it has none; and why it has none."""
    found: dict[str, Difference] = {}
    held: dict[str, Host] = {}
    reasons: dict[str, str] = {}
    for path in paths:
        ours, theirs = painted(memory, path), values.layers.get(path)
        if theirs is not None and theirs.shape == ours.shape:
            found[path], held[path] = Difference.of(ours, theirs), theirs
        else:
            held[path] = ours
            reasons[path] = missing.get(path) or (
                "the reference has no such layer"
                if theirs is None
                else f"the reference has {list(theirs.shape)} there, the model {list(ours.shape)}"
            )
    return found, held, reasons


def painted(memory: Memory, path: str) -> Host:
    """What a run painted for a layer: its canvas, its rows, or what its codebook stands for."""
    backend = memory.backend
    if path in memory.statistics and path not in memory.canvases:
        return np.asarray(backend.download(memory.statistics[path][0]))
    if path in memory.canvases:
        return np.asarray(backend.download(memory.canvases[path]))
    for codebook in memory.codebooks.values():
        if path in codebook.tables:
            codes = backend.download(memory.canvases[codebook.path])[..., 0]
            return np.asarray(backend.download(codebook.tables[path].rows)[codes])
    raise ShapeError(f"{path}: the run has kept no values of it")


def _edit(
    model: Model, state: State, original: Values, edited: Values, paths: list[str], policy: Policy
) -> Edit:
    """Edit the painted state, and compare with the reference's dense run of the edited input."""
    before, after = original.inputs.canvases, edited.inputs.canvases
    mask = difference_mask(before, after, eps=model.eps)
    changed = TileSet.of_mask(mask)
    if changed.count:
        values = {name: gather_tiles(array, changed.tiles) for name, array in after.items()}
        state.repaint(values, changed, policy.plan(mask), journal=Journal())
    layers: dict[str, tuple[Difference, Difference]] = {}
    for path in paths:
        theirs = edited.layers.get(path)
        if theirs is not None and theirs.ndim == 4:
            ours = painted(state.memory, path)
            if ours.shape == theirs.shape:
                layers[path] = _both(ours, theirs, mask)
    inside, outside = _both(state.output(), edited.output, mask)
    return Edit(repr(policy), float(mask.mean()), inside, outside, layers)


def _both(ours: Host, theirs: Host, mask: Host) -> tuple[Difference, Difference]:
    """The differences inside and outside of a mask."""
    inside = at_size(mask, *ours.shape[1:3])
    return Difference.of(ours, theirs, inside), Difference.of(ours, theirs, ~inside)
