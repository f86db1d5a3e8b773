"""A state's arrays by name: a state and its journals come in, small and large arrays to be written go out, and back.

The journals of all edits lie end to end in a few arrays, so that a session may have any number of edits:

    steps.table   int32 [R, 3]   edit, canvas (by its place among the sorted names), number of tiles
    steps.tiles   int32 [T, 3]   the tiles of all rows
    steps.values  int32 [B]      their values' bits, float32, float16 or int32 as the canvas is
    steps.books   int32 [B, 4]   edit, codebook (by its place among the sorted names), windows that stay, that follow
    steps.windows int32 [W]      the windows that follow, of all rows
    steps.norms   int32 [M, 2]   edit, canvas whose moments it moved (by its place among the sorted names)
    steps.moments float64 [V]    these moments, of all rows, each [6, N, C] as `_packed` lays them out

Edits that can be redone are numbered after the edits that can be undone, the next one last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from sparsegen.backends.interface import TILE, Array, Backend, Host, Tiles, WindowSet

from ..engine.allocator import uploaded
from ..engine.codebook import Codebook
from ..engine.journal import Journal
from ..engine.memory import input_path
from ..engine.moments import Moments
from .state import State

CANVAS = "canvas/"
"""Prefix of canvases, after the state's."""
_VALUES = "steps.values"


def is_large(name: str) -> bool:
    """Whether an array of that name is one that a store holds."""
    return CANVAS in name or name.endswith(_VALUES)


def under(tensors: Mapping[str, Host], prefix: str) -> dict[str, Host]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}


def parts(state: State, journals: Sequence[Journal]) -> dict[str, Callable[[], Host]]:
    """The arrays of a state and of its journals, each made when it is written."""
    backend, memory = state.memory.backend, state.memory
    found: dict[str, Callable[[], Host]] = {}
    for key, canvas in memory.canvases.items():
        found[f"{CANVAS}{key}"] = partial(memory.allocator.host, canvas)
    for key, codebook in memory.codebooks.items():  # its tables follow from its windows
        found[f"windows/{key}"] = partial(np.asarray, codebook.window_set.windows)
    for key, values in memory.statistics.items():
        for i, value in enumerate(values):
            found[f"measured/{key}/{i}"] = partial(backend.download, value)
    for key, moments in memory.moments.items():
        found[f"moments/{key}"] = partial(_packed, backend, moments)
    for key, value in state.conditions.items():
        found[f"condition/{key}"] = partial(np.ascontiguousarray, value)
    found |= {name: partial(np.asarray, value) for name, value in _tables(state, journals).items()}
    found[_VALUES] = partial(_values, state, journals)
    found["steps.moments"] = partial(_moments, state, journals)
    return found


def fill(state: State, tensors: Mapping[str, Array], edits: int) -> list[Journal]:
    """Put the arrays into a state, and return the journals of so many edits.

    Raises
    ------
    LookupError, ValueError, TypeError
        They are not what `parts` gave. (`session_check.check` finds what this does not.)
    """
    memory, backend = state.memory, state.memory.backend
    state.conditions = under(tensors, "condition/")
    memory.canvases = under(tensors, CANVAS)
    memory.inputs = {name: input_path(name) for name in state.model.inputs}
    for key, windows in under(tensors, "windows/").items():
        memory.codebooks[key] = Codebook(
            "", "", WindowSet(windows.shape[1], windows)
        )  # `check` gives the names
    statistics: dict[str, list[Array]] = {}
    for key, value in sorted(under(tensors, "measured/").items()):
        statistics.setdefault(key.rpartition("/")[0], []).append(backend.upload(value))
    memory.statistics = {key: tuple(values) for key, values in statistics.items()}
    memory.moments = {key: _unpacked(backend, packed) for key, packed in under(tensors, "moments/").items()}

    journals = [Journal() for _ in range(edits)]
    keys, tile, word = sorted(memory.canvases), 0, 0
    for i, canvas_number, count in tensors["steps.table"].tolist():
        key = keys[canvas_number]
        if i < 0 or key in journals[i].tiles:
            raise ValueError(f"the journal of edit {i} keeps tiles of {key} twice")
        canvas = memory.canvases[key]
        shape = (count, TILE, TILE, int(canvas.shape[3]))
        size = int(np.prod(shape)) * canvas.dtype.itemsize // 4
        values = tensors[_VALUES][word : word + size].view(canvas.dtype).reshape(shape)
        tiles = tensors["steps.tiles"][tile : tile + count]
        if tiles.dtype != np.int32 or tiles.shape != (count, 3):
            raise ValueError(
                f"a journal keeps {count} tiles of {key}, its list is {tiles.dtype} {tiles.shape}, expected int32 "
                f"{(count, 3)}"
            )
        journals[i].add(key, Tiles(tiles), values)
        tile, word = tile + count, word + size
    paths, at = sorted(memory.codebooks), 0
    for i, number, count, follow in tensors["steps.books"].tolist():
        codebook = memory.codebooks[paths[number]]
        width = codebook.window_set.storage.shape[1]
        windows = tensors["steps.windows"][at : at + follow * width].reshape(follow, width)
        if count < 0 or windows.dtype != np.int32:
            raise ValueError(f"a journal goes back to {count} windows of {paths[number]}")
        journals[i].add_windows(paths[number], count, windows)
        at += follow * width
    normed, at = sorted(memory.moments), 0
    for i, number in tensors["steps.norms"].tolist():
        shape = tensors[f"moments/{normed[number]}"].shape
        size = int(np.prod(shape))
        packed = tensors["steps.moments"][at : at + size].reshape(shape)
        journals[i].save_moments(normed[number], _unpacked(backend, packed))
        at += size
    return journals


def _packed(backend: Backend, moments: Moments) -> Host:
    """Float64 `[6, N, C]`: mean and variance in use, stale means, fresh means (NaN: unknown for that sample)."""
    arrays = (*moments.used, *moments.stale, *moments.fresh)
    packed = np.array([backend.download(array) for array in arrays], np.float64)
    packed[4:, sorted(moments.unknown)] = np.nan
    return packed


def _unpacked(backend: Backend, packed: Host) -> Moments:
    """The moments that `_packed` laid out. Raises ValueError: it did not."""
    if packed.dtype != np.float64 or packed.ndim != 3 or len(packed) != 6 or np.isinf(packed).any():
        raise ValueError(f"moments are {packed.dtype} {packed.shape}, expected finite float64 (6, N, C)")
    unknown = np.isnan(packed[4:]).any((0, 2))
    packed = packed.copy()
    packed[4:, unknown] = packed[2:4, unknown]
    used = tuple(backend.upload(array) for array in packed[:2].astype(np.float32))
    stale, fresh = (
        tuple(uploaded(backend, np.ascontiguousarray(array)) for array in packed[i : i + 2]) for i in (2, 4)
    )
    if np.isnan(packed[:4]).any():
        raise ValueError("moments in use are not numbers")
    samples = frozenset(np.flatnonzero(unknown).tolist())
    return Moments((used[0], used[1]), (stale[0], stale[1]), (fresh[0], fresh[1]), samples)


def _moments(state: State, journals: Sequence[Journal]) -> Host:
    """The moments of all journals end to end."""
    backend = state.memory.backend
    packed = [_packed(backend, moments) for journal in journals for moments in journal.moments.values()]
    return np.concatenate([np.zeros(0), *(each.reshape(-1) for each in packed)])


def _tables(state: State, journals: Sequence[Journal]) -> dict[str, Host]:
    """All journals end to end, without the values."""
    number = {key: i for i, key in enumerate(sorted(state.memory.canvases))}
    place = {key: i for i, key in enumerate(sorted(state.memory.codebooks))}
    norm = {key: i for i, key in enumerate(sorted(state.memory.moments))}
    table, tiles, codebooks, windows, norms = [], [], [], [], []
    for i, journal in enumerate(journals):
        for key in journal.paths:
            kept = journal.saved_tiles(key)
            table.append((i, number[key], len(kept)))
            tiles.append(kept.host)
        for key, (count, keys) in journal.windows.items():
            codebooks.append((i, place[key], count, len(keys)))
            windows.append(keys.reshape(-1))
        norms += [(i, norm[key]) for key in journal.moments]
    return {
        "steps.norms": np.array(norms, np.int32).reshape(-1, 2),
        "steps.table": np.array(table, np.int32).reshape(-1, 3),
        "steps.books": np.array(codebooks, np.int32).reshape(-1, 4),
        "steps.windows": np.concatenate([np.zeros(0, np.int32), *windows]),
        "steps.tiles": np.concatenate([np.zeros((0, 3), np.int32), *tiles]),
    }


def _values(state: State, journals: Sequence[Journal]) -> Host:
    """The values of all journals end to end, as 32-bit words."""
    backend = state.memory.backend
    values = [
        np.ascontiguousarray(backend.download(journal.saved(backend, key)[1])).reshape(-1).view(np.int32)
        for journal in journals
        for key in journal.paths
    ]
    return np.concatenate([np.zeros(0, np.int32), *values])
