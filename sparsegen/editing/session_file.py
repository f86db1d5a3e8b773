"""Sessions on disk: states come in, one safetensors file comes out, and back again, bit for bit.

The file is self-contained (model, canvases, statistics, journal). A digest over every tensor and all metadata is
checked before any of them is used; tensors are data, and the file holds no code. A diffusion session has a state for
each step, whose names begin with the step's prefix. The journals of all edits lie end to end in a few tensors, so that
a session may have any number of edits:

    steps.table   int32 [R, 3]   edit, canvas (by its place among the sorted names), number of tiles
    steps.tiles   int32 [T, 3]   the tiles of all rows
    steps.values  int32 [B]      their values' bits, float32, float16 or int32 as the canvas is
    steps.books   int32 [B, 4]   edit, codebook (by its place among the sorted names), windows that stay, that follow
    steps.windows int32 [W]      the windows that follow, of all rows
    steps.norms   int32 [M, 2]   edit, canvas whose moments it moved (by its place among the sorted names)
    steps.moments float64 [V]    these moments, of all rows, each [6, N, C] as `_packed` lays them out
    stale.counts  int32 [S + 1]  tiles of the stale set beyond each edit, and now; then stale.tiles, stale.pixels

Edits that can be redone are numbered after the edits that can be undone, the next one last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from sparsegen.backends.interface import TILE, Array, Backend, Host, Tiles, WindowSet
from sparsegen.weights import read_checkpoint, write_safetensors

from ..engine.allocator import Allocator, uploaded
from ..engine.codebook import Codebook
from ..engine.journal import Journal
from ..engine.memory import input_path
from ..engine.moments import Moments
from ..engine.store import block_bytes
from ..errors import SessionError, SparsegenError
from ..layers import Parameter
from ..models.base import Model
from ..tiling import policies
from ..tiling.policies import Paper, Policy
from ..tiling.tiles import TileSet
from .history import Edit, History
from .session_check import check, damaged
from .state import State

VERSION = "6"
DIGEST = "sparsegen.digest"
_KEPT = (np.float32, np.int32, np.float16)
VALUES = "steps.values"
Notes: TypeAlias = "dict[str, str | Host]"
"""A user's notes in a session's file: text and arrays by name."""


def save(
    path: str | os.PathLike[str],
    states: Mapping[str, State],
    history: History,
    *,
    policy: Policy,
    metadata: Mapping[str, str] | None = None,
    tensors: Mapping[str, Host] | None = None,
    notes: Notes | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Write `states` of one model, by their prefixes, and their history to `path`, or leave the old file whole.

    `metadata`, `tensors` and the user's `notes` are kept beside them. An array is copied as it is written: no more than
    one at a time. An edit that repainted nothing is not written: the caller keeps it.

    Raises
    ------
    CheckpointError
        The file could not be written.
    """
    model = next(iter(states.values())).model
    written: dict[str, Callable[[], Host]] = {
        f"parameter/{key}": partial(_value, parameter) for key, parameter in model.parameters().items()
    }
    for name, value in (tensors or {}).items():
        written[f"beside/{name}"] = partial(np.ascontiguousarray, value)
    texts = {name: note for name, note in (notes or {}).items() if isinstance(note, str)}
    for name, note in (notes or {}).items():
        if not isinstance(note, str):
            written[f"notes/{name}"] = partial(np.ascontiguousarray, note)
    described = {
        "sparsegen.session": VERSION,
        "sparsegen.family": model.family,
        "sparsegen.config": model.config_json(),
        "sparsegen.model": json.dumps(model.described()),
        "sparsegen.paper": json.dumps(asdict(model.paper)),
        "sparsegen.policy": json.dumps(policies.described(policy)),
        "sparsegen.states": json.dumps(
            {
                prefix: {
                    "output": state.output_path,
                    "coded": state.memory.coded,
                    "storage": state.memory.storage,
                    "least_size": state.memory.least_size,
                    "carried_rows": state.memory.carried_rows,
                    "edits": len(_written(history.edits)),
                    "forgotten": history.forgotten,
                }
                for prefix, state in states.items()
            }
        ),
        "sparsegen.notes": json.dumps(texts),
        **(metadata or {}),
    }
    for i, (prefix, state) in enumerate(states.items()):
        edits = [_Share(edit.journals[i], edit.stale) for edit in _written((*history.edits, *history.undone))]
        written |= {f"{prefix}{name}": value for name, value in _parts(state, edits, history.stale).items()}
    digesting = _Digesting(written, described)
    write_safetensors(path, digesting, digesting.metadata, progress=progress)


class _Digesting(Mapping[str, Host]):
    """Arrays that are made when they are read, in the order of their names, and their digest after the last one."""

    def __init__(self, made: Mapping[str, Callable[[], Host]], metadata: Mapping[str, str]) -> None:
        self._made, self._names = made, sorted(made)
        self._digest = Digest(metadata)
        self.metadata = {**metadata, DIGEST: "0" * len(self._digest.text())}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Host:
        value = self._made[name]()
        self._digest.add(name, value)
        self.metadata[DIGEST] = self._digest.text()
        return value


class Digest:
    """SHA-256 over the metadata, then names, types, shapes and bytes of all arrays, in the order of their names."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())

    def add(self, name: str, value: Host) -> None:
        """Take in one array."""
        self._digest.update(f"\n{name} {value.dtype} {value.shape}\n".encode())
        self._digest.update(np.ascontiguousarray(value).data if value.size else b"")

    def text(self) -> str:
        """The digest so far, in hexadecimal digits."""
        return self._digest.hexdigest()


@dataclass(frozen=True, eq=False)
class _Share:
    """One state's share of an edit."""

    journal: Journal
    stale: TileSet


def _written(edits: Sequence[Edit]) -> list[Edit]:
    """The edits of which the file keeps journals."""
    return [edit for edit in edits if edit.journals]


@dataclass(frozen=True, eq=False, repr=False)
class Loaded:
    """The contents of a file."""

    model: Model
    states: dict[str, State]
    """By their prefixes, in the order of these."""
    history: History
    """Of all states together, without its images."""
    policy: Policy
    """The session's."""
    metadata: dict[str, str]
    tensors: dict[str, Host]
    notes: Notes


def load(path: str | os.PathLike[str], backend: Backend, allocator: Allocator) -> Loaded:
    """Read a session file, its canvases and journals into arrays of `allocator`.

    Raises
    ------
    SessionError, CheckpointError
        The file is cut, altered, not a session or of another version; there is no room for its arrays.
    """
    checkpoint = read_checkpoint(path)
    metadata = {key: str(value) for key, value in checkpoint.metadata.items() if key.startswith("sparsegen.")}
    version = metadata.get("sparsegen.session")
    if version is None:
        raise SessionError(
            f"{path}: not a saved session; expected a file that Session.save or SDEdit.save wrote"
        )
    if version != VERSION:
        raise SessionError(f"{path}: session format {version}; this version of sparsegen reads {VERSION}")
    tensors: dict[str, Array] = {}
    digest_in_file = metadata.pop(DIGEST, "")
    digest = Digest(metadata)
    cached = {name for name, tensor in checkpoint.tensors.items() if _is_cached(name)}
    allocator.check_room([block_bytes(checkpoint.tensors[name].nbytes) for name in cached])
    for name, tensor in sorted(checkpoint.tensors.items()):
        value = np.array(tensor.numpy())  # a copy: the file may be overwritten while the session lives
        digest.add(name, value)
        if name in cached and value.dtype in _KEPT:
            # edits compute in a float32 canvas of this shape: allocate it before the RAM is full
            if value.dtype == np.float16 and value.ndim == 4:
                allocator.shared(name.partition("canvas/")[2], value.shape)
            tensors[name] = allocator.adopt(value)
        else:
            tensors[name] = value
        checkpoint.release()
    if digest_in_file != digest.text():
        raise damaged(path, "its digest does not match")
    try:
        return _loaded(path, tensors, metadata, backend, allocator)
    except SessionError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError, SparsegenError) as error:
        raise damaged(path, f"it does not describe a session ({error})") from None


def _is_cached(name: str) -> bool:
    """Whether an array of that name is one that a store holds."""
    return "canvas/" in name or name.endswith(VALUES)


def _value(parameter: Parameter) -> Host:
    return np.ascontiguousarray(parameter.value)


def _parts(state: State, steps: Sequence[_Share], stale: TileSet) -> dict[str, Callable[[], Host]]:
    """A state's arrays by name, each made when it is written; `steps` as in the file, `stale` after all of them."""
    backend, memory = state.memory.backend, state.memory
    parts: dict[str, Callable[[], Host]] = {}
    for key, canvas in memory.canvases.items():
        parts[f"canvas/{key}"] = partial(memory.allocator.host, canvas)
    for key, codebook in memory.codebooks.items():  # its tables follow from its windows
        parts[f"windows/{key}"] = partial(np.asarray, codebook.window_set.windows)
    for key, values in memory.statistics.items():
        for i, value in enumerate(values):
            parts[f"measured/{key}/{i}"] = partial(backend.download, value)
    for key, moments in memory.moments.items():
        parts[f"moments/{key}"] = partial(_packed, backend, moments)
    for key, value in state.conditions.items():
        parts[f"condition/{key}"] = partial(np.ascontiguousarray, value)
    small = {**_journal_tables(state, steps), **_stale_sets([*(step.stale for step in steps), stale])}
    parts |= {name: partial(np.asarray, value) for name, value in small.items()}
    parts[VALUES] = partial(_journal_values, state, steps)
    parts["steps.moments"] = partial(_journal_moments, state, steps)
    return parts


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


def _journal_moments(state: State, steps: Sequence[_Share]) -> Host:
    """The moments of all journals end to end."""
    backend = state.memory.backend
    packed = [_packed(backend, moments) for step in steps for moments in step.journal.moments.values()]
    return np.concatenate([np.zeros(0), *(each.reshape(-1) for each in packed)])


def _journal_tables(state: State, steps: Sequence[_Share]) -> dict[str, Host]:
    """All journals end to end, without the values."""
    number = {key: i for i, key in enumerate(sorted(state.memory.canvases))}
    place = {key: i for i, key in enumerate(sorted(state.memory.codebooks))}
    norm = {key: i for i, key in enumerate(sorted(state.memory.moments))}
    table, tiles, codebooks, windows, norms = [], [], [], [], []
    for i, step in enumerate(steps):
        for key in step.journal.paths:
            kept = step.journal.saved_tiles(key)
            table.append((i, number[key], len(kept)))
            tiles.append(kept.host)
        for key, (count, keys) in step.journal.windows.items():
            codebooks.append((i, place[key], count, len(keys)))
            windows.append(keys.reshape(-1))
        norms += [(i, norm[key]) for key in step.journal.moments]
    return {
        "steps.norms": np.array(norms, np.int32).reshape(-1, 2),
        "steps.table": np.array(table, np.int32).reshape(-1, 3),
        "steps.books": np.array(codebooks, np.int32).reshape(-1, 4),
        "steps.windows": np.concatenate([np.zeros(0, np.int32), *windows]),
        "steps.tiles": np.concatenate([np.zeros((0, 3), np.int32), *tiles]),
    }


def _journal_values(state: State, steps: Sequence[_Share]) -> Host:
    """The values of all journals end to end, as 32-bit words."""
    backend = state.memory.backend
    values = [
        np.ascontiguousarray(backend.download(step.journal.saved(backend, key)[1])).reshape(-1).view(np.int32)
        for step in steps
        for key in step.journal.paths
    ]
    return np.concatenate([np.zeros(0, np.int32), *values])


def _stale_sets(sets: list[TileSet]) -> dict[str, Host]:
    """All stale sets, end to end."""
    return {
        "stale.counts": np.array([s.count for s in sets], np.int32),
        "stale.tiles": np.concatenate([s.tiles.host for s in sets]),
        "stale.pixels": np.concatenate([s.pixels for s in sets]).astype(np.uint8),
    }


def _loaded(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str],
    backend: Backend,
    allocator: Allocator,
) -> Loaded:
    kind = Model.registry.get(metadata["sparsegen.family"])
    if kind is None:
        raise ValueError(f"unknown family {metadata['sparsegen.family']!r}")
    build: Any = kind
    model: Model = build(kind.config_type(**json.loads(metadata["sparsegen.config"])))
    model.describe(json.loads(metadata["sparsegen.model"]))
    model.paper = Paper(**json.loads(metadata["sparsegen.paper"]))
    model.load_parameters(_under(tensors, "parameter/"))
    states: dict[str, State] = {}
    histories = []
    for prefix, kept in json.loads(metadata["sparsegen.states"]).items():
        state = State(model, backend, allocator=allocator, storage=kept["storage"])
        state.memory.coded = bool(kept["coded"])
        state.memory.least_size = int(kept["least_size"])
        state.memory.carried_rows = int(kept["carried_rows"])
        steps, stale = _fill(state, _under(tensors, prefix), str(kept["output"]))
        check(path, state, [step.journal for step in steps], kept["edits"])
        states[prefix] = state
        histories.append((steps, stale, kept["edits"], int(kept["forgotten"])))
    notes: Notes = {str(name): str(text) for name, text in json.loads(metadata["sparsegen.notes"]).items()}
    notes |= _under(tensors, "notes/")
    history = _joined(histories)
    policy = policies.read_policy(json.loads(metadata["sparsegen.policy"]))
    return Loaded(model, states, history, policy, dict(metadata), _under(tensors, "beside/"), notes)


def _joined(histories: Sequence[tuple[list[_Share], TileSet, int, int]]) -> History:
    """The history of states that were edited together. Raises ValueError: they were not."""
    steps, stale, edits, forgotten = histories[0]
    for others, other_stale, other_edits, _ in histories[1:]:
        pairs = [(stale, other_stale), *((a.stale, b.stale) for a, b in zip(steps, others, strict=True))]
        if other_edits != edits or any(
            not np.array_equal(a.tiles.host, b.tiles.host) or not np.array_equal(a.pixels, b.pixels)
            for a, b in pairs
        ):
            raise ValueError("its states were not edited together")
    columns = zip(*(each[0] for each in histories), strict=True)
    joined = [Edit(tuple(step.journal for step in column), column[0].stale) for column in columns]
    return History(
        stale, edits=tuple(joined[:edits]), undone=tuple(joined[edits:]), forgotten=max(forgotten, 0)
    )


def _under(tensors: Mapping[str, Host], prefix: str) -> dict[str, Host]:
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}


def _fill(state: State, tensors: Mapping[str, Array], output_path: str) -> tuple[list[_Share], TileSet]:
    """Put a file's arrays into a state, and return its steps and its stale pixels."""
    memory, backend = state.memory, state.memory.backend
    state.output_path, state.conditions = output_path, _under(tensors, "condition/")
    memory.canvases = _under(tensors, "canvas/")
    memory.inputs = {name: input_path(name) for name in state.model.inputs}
    for key, windows in _under(tensors, "windows/").items():
        memory.codebooks[key] = Codebook(
            "", "", WindowSet(windows.shape[1], windows)
        )  # `check` gives the names
    statistics: dict[str, list[Array]] = {}
    for key, value in sorted(_under(tensors, "measured/").items()):
        statistics.setdefault(key.rpartition("/")[0], []).append(backend.upload(value))
    memory.statistics = {key: tuple(values) for key, values in statistics.items()}
    memory.moments = {key: _unpacked(backend, packed) for key, packed in _under(tensors, "moments/").items()}

    samples, height, width, _ = next(iter(state.inputs.values())).shape
    ends = np.cumsum(tensors["stale.counts"])
    sets = [
        TileSet.of_tiles((samples, height, width), tiles, pixels.astype(bool))
        for tiles, pixels in zip(
            np.split(tensors["stale.tiles"], ends[:-1]),
            np.split(tensors["stale.pixels"], ends[:-1]),
            strict=True,
        )
    ]
    *beyond, stale = sets
    steps = [_Share(Journal(), each) for each in beyond]
    keys, tile, word = sorted(memory.canvases), 0, 0
    for i, canvas_number, count in tensors["steps.table"].tolist():
        key = keys[canvas_number]
        canvas = memory.canvases[key]
        shape = (count, TILE, TILE, int(canvas.shape[3]))
        size = int(np.prod(shape)) * canvas.dtype.itemsize // 4
        values = tensors[VALUES][word : word + size].view(canvas.dtype).reshape(shape)
        tiles = tensors["steps.tiles"][tile : tile + count]
        if tiles.dtype != np.int32 or tiles.shape != (count, 3):
            raise ValueError(
                f"a journal keeps {count} tiles of {key}, its list is {tiles.dtype} {tiles.shape}, expected int32 "
                f"{(count, 3)}"
            )
        steps[i].journal.add(key, Tiles(tiles), values)
        tile, word = tile + count, word + size
    paths, at = sorted(memory.codebooks), 0
    for i, number, count, follow in tensors["steps.books"].tolist():
        codebook = memory.codebooks[paths[number]]
        width = codebook.window_set.storage.shape[1]
        windows = tensors["steps.windows"][at : at + follow * width].reshape(follow, width)
        if count < 0 or windows.dtype != np.int32:
            raise ValueError(f"a journal goes back to {count} windows of {paths[number]}")
        steps[i].journal.add_windows(paths[number], count, windows)
        at += follow * width
    normed, at = sorted(memory.moments), 0
    for i, number in tensors["steps.norms"].tolist():
        shape = tensors[f"moments/{normed[number]}"].shape
        size = int(np.prod(shape))
        packed = tensors["steps.moments"][at : at + size].reshape(shape)
        steps[i].journal.save_moments(normed[number], _unpacked(backend, packed))
        at += size
    return steps, stale
