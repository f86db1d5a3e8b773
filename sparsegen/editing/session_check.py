"""Loaded sessions are held against their model before a kernel sees them: a state comes in, or one error goes out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

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


def check(path: str | os.PathLike[str], state: State, journals: Sequence[Journal], edits: Any) -> None:
    """Hold a loaded state against the memory that its model makes of its input.

    Kernels do not check what they index: every size, label and code is checked here.

    Parameters
    ----------
    path
        The file, for messages.
    journals
        Those of its edits, the ones that can be undone first.
    edits
        How many of them can be undone, as the file has it.

    Raises
    ------
    SessionError
        A kernel would read or write outside its arrays, or nothing fits.
    """
    memory, expected = state.memory, _expected(path, state)
    if not isinstance(edits, int) or isinstance(edits, bool) or not 0 <= edits <= len(journals):
        raise SessionError(f"{path}: {edits!r} of {len(journals)} edits can be undone")
    shapes = {key: tuple(canvas.shape) for key, canvas in expected.canvases.items()}
    found = {key: tuple(canvas.shape) for key, canvas in memory.canvases.items()}
    if found != shapes or state.output_path not in shapes:
        raise SessionError(f"{path}: its canvases are not those of its model")
    if {key: str(c.dtype) for key, c in memory.canvases.items()} != {
        key: memory.kept_as(key, c.shape, str(c.dtype)) for key, c in expected.canvases.items()
    }:
        raise SessionError(f"{path}: its canvases are of other types than those of its model")
    reads = "int32" if any(isinstance(layer, LabelConv) for layer in state.model.layers()) else "float32"
    if any(canvas.array.dtype != reads for canvas in state.inputs.values()):
        raise SessionError(f"{path}: its input is of another type than {reads}")
    if {key: [tuple(v.shape) for v in values] for key, values in memory.statistics.items()} != {
        key: [tuple(v.shape) for v in values] for key, values in expected.statistics.items()
    }:
        raise SessionError(f"{path}: its statistics are not those of its model")
    samples = memory.canvases[state.output_path].shape[0]
    if any(v.dtype != "float32" or len(v) not in (1, samples) for m in memory.statistics.values() for v in m):
        raise SessionError(f"{path}: its statistics are not one for each sample")
    if set(memory.codebooks) != set(expected.codebooks):
        raise SessionError(f"{path}: its codebooks are not those of its model")
    for key, codebook in memory.codebooks.items():
        width = expected.codebooks[key].window_set.storage.shape[1]
        if codebook.window_set.storage.shape[1] != width:
            raise SessionError(
                f"{path}: {key} has windows of {codebook.window_set.storage.shape[1]} instead of {width}"
            )
    for key, codebook in expected.codebooks.items():
        memory.codebooks[key].name, memory.codebooks[key].source = codebook.name, codebook.source
    for journal in journals:
        for key, (tiles, _) in journal.tiles.items():
            samples, height, width, _ = memory.canvases[key].shape
            beyond = (samples, -(-height // TILE), -(-width // TILE))
            if len(tiles) and ((tiles.host < 0).any() or (tiles.host >= beyond).any()):
                raise SessionError(f"{path}: its journal has tiles outside {key}")
    _check_indices(path, state, [])
    _check_indices(path, state, journals[:edits])
    _check_indices(path, state, journals[edits:])


def _check_indices(path: str | os.PathLike[str], state: State, journals: Sequence[Journal]) -> None:
    """Hold every label and code, as it is and after each of the journals from the last one back, against its table."""
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
                    raise SessionError(f"{path}: a journal goes back to {count} windows of {key}")
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
    """How many labels the model's tables have."""
    return min(layer.weight.shape[1] for layer in state.model.layers() if isinstance(layer, LabelConv))


def _within(path: str | os.PathLike[str], key: str, values: Host, least: int, beyond: int) -> None:
    if values.size and not least <= values.min() <= values.max() < beyond:
        raise SessionError(f"{path}: {key} has values outside {least} to {beyond - 1}")


def _expected(path: str | os.PathLike[str], state: State) -> Memory:
    """The memory of a dense run of the state's input; gives the state the record of an edit without change."""
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
        )
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise SessionError(f"{path}: its input does not fit its model ({error})") from None
    state.idle = tuple(record.idle for record in dry.records)
    return dry.memory
