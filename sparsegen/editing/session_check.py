"""The check of loaded sessions before any kernel reads them: a state comes in, one error comes out or none."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from sparsegen.backends.interface import TILE, Host

from ..engine.journal import Journal
from ..engine.memory import Memory
from ..errors import SessionError
from ..layers import LabelConv
from ..models.base import Inputs
from ..tiling.policies import Everything
from ..tiling.tiles import TileSet, scatter_tiles
from .dry_run import dry_run
from .state import State


def check(path: str | os.PathLike[str], state: State, journals: Sequence[Journal], edits: int) -> None:
    """Compare a loaded state with the memory that its model makes of its input.

    Kernels do not check what they index: every size, label and code is checked here.

    Parameters
    ----------
    path
        The file, for messages.
    journals
        The journals of its edits, the edits that can be undone first.
    edits
        The number of edits that can be undone.

    Raises
    ------
    SessionError
        A name, shape, type, label or code does not fit: a kernel could read or write outside its arrays.
    """
    memory, expected = state.memory, _expected(path, state)
    shapes = {key: tuple(canvas.shape) for key, canvas in expected.canvases.items()}
    found = {key: tuple(canvas.shape) for key, canvas in memory.canvases.items()}
    if found != shapes or state.output_path not in shapes:
        raise damaged(path, "its canvases are not those of its model")
    if {key: str(c.dtype) for key, c in memory.canvases.items()} != {
        key: memory.kept_as(key, c.shape, str(c.dtype)) for key, c in expected.canvases.items()
    }:
        raise damaged(path, "the types of its canvases are not those of its model")
    reads = "int32" if any(isinstance(layer, LabelConv) for layer in state.model.layers()) else "float32"
    if any(canvas.array.dtype != reads for canvas in state.inputs.values()):
        raise damaged(path, f"its input is not {reads}, as its model reads it")
    if {key: [tuple(v.shape) for v in values] for key, values in memory.statistics.items()} != {
        key: [tuple(v.shape) for v in values] for key, values in expected.statistics.items()
    }:
        raise damaged(path, "its statistics are not those of its model")
    samples = memory.canvases[state.output_path].shape[0]
    if any(v.dtype != "float32" or len(v) not in (1, samples) for m in memory.statistics.values() for v in m):
        raise damaged(path, f"its statistics are not float32 with 1 or {samples} rows")
    if {key: [tuple(v.shape) for v in m.stale] for key, m in memory.moments.items()} != {
        key: [tuple(v.shape) for v in m.stale] for key, m in expected.moments.items()
    }:
        raise damaged(path, "its moments are not those of its model")
    if set(memory.codebooks) != set(expected.codebooks):
        raise damaged(path, "its codebooks are not those of its model")
    for key, codebook in memory.codebooks.items():
        width = expected.codebooks[key].window_set.storage.shape[1]
        if codebook.window_set.storage.shape[1] != width:
            raise damaged(
                path, f"{key} has windows of {codebook.window_set.storage.shape[1]} values, expected {width}"
            )
    for key, codebook in expected.codebooks.items():
        memory.codebooks[key].name, memory.codebooks[key].source = codebook.name, codebook.source
    for journal in journals:
        for key, (tiles, _) in journal.tiles.items():
            samples, height, width, _ = memory.canvases[key].shape
            beyond = (samples, -(-height // TILE), -(-width // TILE))
            if len(tiles) and ((tiles.host < 0).any() or (tiles.host >= beyond).any()):
                raise damaged(path, f"its journal has tiles outside {key}")
    _check_indices(path, state, [])
    _check_indices(path, state, journals[:edits])
    _check_indices(path, state, journals[edits:])


def damaged(path: str | os.PathLike[str], fault: str) -> SessionError:
    """The error for a file whose content contradicts itself."""
    return SessionError(f"{path}: {fault}; the file was altered or damaged: save the session again")


def _check_indices(path: str | os.PathLike[str], state: State, journals: Sequence[Journal]) -> None:
    """Compare every label and code with its table's size, now and after undoing each journal, the last one first."""
    memory = state.memory
    canvases = {
        key: np.array(memory.backend.download(canvas))
        for key, canvas in memory.canvases.items()
        if np.issubdtype(canvas.dtype, np.integer)
    }
    windows = {key: codebook.window_set.windows for key, codebook in memory.codebooks.items()}
    for journal in [None, *reversed(journals)]:
        if journal is not None:
            for key in canvases.keys() & journal.tiles.keys():
                tiles, values = journal.tiles[key]
                scatter_tiles(canvases[key], tiles, memory.backend.download(values))
            for key, (count, keys) in journal.windows.items():
                if count > len(windows[key]) or (len(keys) and count != len(windows[key])):
                    raise damaged(path, f"a journal goes back to {count} windows of {key}")
                windows[key] = np.concatenate([windows[key][:count], keys])
        for key, canvas in canvases.items():
            if key in windows:
                _within(path, key, canvas, 0, len(windows[key]))
            else:
                _within(path, key, canvas, -1, _labels(state))
        for key, known in windows.items():
            inner = windows.get(memory.codebooks[key].source)  # a window consists of codes, or of labels
            _within(path, key, known, -1, _labels(state) if inner is None else len(inner))


def _labels(state: State) -> int:
    """The number of labels that all of the model's tables have."""
    return min(layer.weight.shape[1] for layer in state.model.layers() if isinstance(layer, LabelConv))


def _within(path: str | os.PathLike[str], key: str, values: Host, least: int, beyond: int) -> None:
    if values.size and not least <= values.min() <= values.max() < beyond:
        raise damaged(path, f"{key} has values outside the range, expected {least} to {beyond - 1}")


def _expected(path: str | os.PathLike[str], state: State) -> Memory:
    """The memory of a dense run of the state's input; also sets the state's record of an edit without change."""
    memory = state.memory
    try:
        inputs = Inputs({name: canvas.array for name, canvas in state.inputs.items()}, state.conditions)
        dry = dry_run(
            state.model,
            inputs,
            Everything(),
            TileSet.full(*inputs.shape),
            coded=memory.coded,
            least_size=memory.least_size,
            carried_rows=memory.carried_rows,
        )
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise damaged(path, f"its input does not fit its model ({error})") from None
    state.records = dry.records
    return dry.memory
