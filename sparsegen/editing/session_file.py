"""Sessions on disk: states come in, one safetensors file comes out, and back again, bit for bit.

The file is self-contained (network, canvases, statistics, journal). A digest over every tensor and all metadata is
checked before anything is used; tensors are data, nothing in the file is ever executed. A diffusion session has a state
for each step, whose names begin with the step's prefix. The journals of all edits lie end to end in a few tensors, so
that a session may have any number of edits:

    steps.table   int32 [R, 3]   edit, canvas (by its place among the sorted names), number of tiles
    steps.tiles   int32 [T, 3]   the tiles of all rows
    steps.values  int32 [B]      their values' bits, float32, float16 or int32 as the canvas is
    steps.books   int32 [B, 4]   edit, codebook (by its place among the sorted names), windows that stay, that follow
    steps.windows int32 [W]      the windows that follow, of all rows
    stale.counts  int32 [S + 1]  tiles of the stale set beyond each edit, and now; then stale.tiles, stale.pixels

Edits that were undone and can be redone are counted on after those that can be undone, the next one last.
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

from ..engine.codebook import Codebook
from ..engine.journal import Journal
from ..engine.memory import Memory, input_path
from ..engine.memory_float16 import memory_kind
from ..engine.store import Store, block_bytes
from ..errors import SessionError, SparsegenError
from ..layers import LabelConv, Parameter
from ..models.base import Model
from ..tiling.policies import Paper
from ..tiling.tiles import TileSet

VERSION = "5"
DIGEST = "sparsegen.digest"
_KEPT = (np.float32, np.int32, np.float16)
VALUES = "steps.values"
Notes: TypeAlias = "dict[str, str | Host]"
"""What a user keeps in a session's file: text and arrays by name."""


@dataclass(frozen=True, eq=False)
class Step:
    """The way to the other side of one edit: back before it, or forward again."""

    journal: Journal
    stale: TileSet
    """The session's stale pixels on the other side."""


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """Where a session stands among its edits; one value, so that a session is never between two."""

    stale: TileSet
    """Input pixels whose change has not spread everywhere: what edits under approximate policies touched."""
    steps: tuple[Step, ...] = ()
    """Edits that can be undone, the last one last."""
    undone: tuple[Step, ...] = ()
    """Edits that can be made again, the next one last."""
    forgotten: int = 0
    """Edits since the last run that can no longer be undone."""
    going: tuple[Journal, History] | None = None
    """A journal that is being written or played back, and where the session stands once it has been played back."""

    @property
    def nbytes(self) -> int:
        """Memory that undoing and redoing takes."""
        return sum(step.journal.nbytes for step in (*self.steps, *self.undone))


@dataclass(eq=False, repr=False)
class State:
    """What makes a session, once it has run."""

    model: Model
    memory: Memory
    conditions: dict[str, Host]
    output_path: str
    history: History
    images: Host | None = None
    """The output's pictures, of before an edit while it runs, never written into; None: not known."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """Those of the history."""
        return self.history.steps

    @property
    def undone(self) -> tuple[Step, ...]:
        """Those of the history."""
        return self.history.undone


def save(
    path: str | os.PathLike[str],
    states: Mapping[str, State],
    *,
    metadata: Mapping[str, str] | None = None,
    tensors: Mapping[str, Host] | None = None,
    notes: Notes | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Write `states` of one model, by their prefixes, to `path`; on failure (CheckpointError) the old file stays whole.

    `metadata`, `tensors` and the user's `notes` are kept beside them. An array is copied as it is written: no more than
    one at a time.
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
        "sparsegen.states": json.dumps(
            {
                prefix: {
                    "output": state.output_path,
                    "coded": state.memory.coded,
                    "storage": state.memory.storage,
                    "least_size": state.memory.least_size,
                    "edits": len(state.steps),
                    "forgotten": state.history.forgotten,
                }
                for prefix, state in states.items()
            }
        ),
        "sparsegen.notes": json.dumps(texts),
        **(metadata or {}),
    }
    for prefix, state in states.items():
        written |= {f"{prefix}{name}": value for name, value in _parts(state).items()}
    digesting = _Digesting(written, described)
    write_safetensors(path, digesting, digesting.metadata, progress=progress)


class _Digesting(Mapping[str, Host]):
    """Arrays that are made when they are asked for, in the order of their names, and what they digest to at the end."""

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
        self._digest.update(f"\n{name} {value.dtype} {value.shape}\n".encode())
        self._digest.update(np.ascontiguousarray(value).data if value.size else b"")

    def text(self) -> str:
        return self._digest.hexdigest()


@dataclass(frozen=True, eq=False, repr=False)
class Loaded:
    """What a file holds."""

    model: Model
    states: dict[str, State]
    metadata: dict[str, str]
    tensors: dict[str, Host]
    notes: Notes


def load(path: str | os.PathLike[str], backend: Backend, store: Store | None = None) -> Loaded:
    """Read a session file, its arrays into `store`. Raises SessionError, CheckpointError."""
    checkpoint = read_checkpoint(path)
    metadata = {key: str(value) for key, value in checkpoint.metadata.items() if key.startswith("sparsegen.")}
    version = metadata.get("sparsegen.session")
    if version is None:
        raise SessionError(f"{path}: not a saved session")
    if version != VERSION:
        raise SessionError(f"{path}: session format {version}; this version of sparsegen reads {VERSION}")
    # copies: the file may be written over while the session lives
    tensors: dict[str, Host] = {}
    said = metadata.pop(DIGEST, "")
    digest = Digest(metadata)
    if store is not None:
        cached = [tensor for name, tensor in checkpoint.tensors.items() if _is_cached(name)]
        store.check_room([block_bytes(tensor.nbytes) for tensor in cached])
    for name, tensor in sorted(checkpoint.tensors.items()):
        value = tensor.numpy()
        if store is not None and value.dtype in _KEPT and _is_cached(name):
            if value.dtype == np.float16 and value.ndim == 4:  # what edits compute in, before the RAM is full
                store.shared(name.partition("canvas/")[2], value.shape)
            tensors[name] = store.allocate(value.shape, dtype=str(value.dtype))
            tensors[name][...] = value
        else:
            tensors[name] = np.array(value)
        digest.add(name, tensors[name])
        checkpoint.release()
    if said != digest.text():
        raise SessionError(
            f"{path}: the file was altered or damaged (its digest does not match); save it again"
        )
    try:
        return _loaded(tensors, metadata, backend, store)
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError, SparsegenError) as error:
        raise SessionError(f"{path}: the file does not describe a session ({error})") from None


def _is_cached(name: str) -> bool:
    """Whether an array of that name is one that a store holds."""
    return "canvas/" in name or name.endswith(VALUES)


def check(path: str | os.PathLike[str], state: State, expected: Memory) -> None:
    """Hold a loaded state against the memory that its network makes of its input. Raises SessionError.

    Kernels do not check what they index: every size, number of a label and number of a window is checked here.
    """
    memory = state.memory
    shapes = {key: tuple(canvas.shape) for key, canvas in expected.canvases.items()}
    found = {key: tuple(canvas.shape) for key, canvas in memory.canvases.items()}
    if found != shapes or state.output_path not in shapes:
        raise SessionError(f"{path}: its canvases are not those of its network")
    if {key: str(c.dtype) for key, c in memory.canvases.items()} != {
        key: memory.kept_as(key, c.shape, str(c.dtype)) for key, c in expected.canvases.items()
    }:
        raise SessionError(f"{path}: its canvases are of other types than those of its network")
    reads = "int32" if any(isinstance(layer, LabelConv) for layer in state.model.layers()) else "float32"
    if any(c.dtype != reads for key, c in memory.canvases.items() if key.startswith(input_path(""))):
        raise SessionError(f"{path}: its input is of another type than {reads}")
    if {key: [tuple(v.shape) for v in values] for key, values in memory.measured.items()} != {
        key: [tuple(v.shape) for v in values] for key, values in expected.measured.items()
    }:
        raise SessionError(f"{path}: its statistics are not those of its network")
    samples = memory.canvases[state.output_path].shape[0]
    if any(v.dtype != "float32" or len(v) not in (1, samples) for m in memory.measured.values() for v in m):
        raise SessionError(f"{path}: its statistics are not one for each sample")
    if set(memory.codebooks) != set(expected.codebooks):
        raise SessionError(f"{path}: its codebooks are not those of its network")
    for key, codebook in memory.codebooks.items():
        width = expected.codebooks[key].window_set.storage.shape[1]
        if codebook.window_set.storage.shape[1] != width:
            raise SessionError(
                f"{path}: {key} has windows of {codebook.window_set.storage.shape[1]} instead of {width}"
            )
    for step in [*state.steps, *state.undone]:
        for key, (tiles, _) in step.journal.tiles.items():
            samples, height, width, _ = state.memory.canvases[key].shape
            beyond = (samples, -(-height // TILE), -(-width // TILE))
            if len(tiles) and ((tiles.host < 0).any() or (tiles.host >= beyond).any()):
                raise SessionError(f"{path}: its journal has tiles outside {key}")
    _check_indices(path, state, [])
    _check_indices(path, state, state.steps)
    _check_indices(path, state, state.undone)


def _check_indices(path: str | os.PathLike[str], state: State, steps: Sequence[Step]) -> None:
    """Hold every index, as it stands and after each of the `steps` from the last one back, against what it indexes."""
    memory = state.memory
    canvases = {
        key: np.array(memory.backend.download(canvas))
        for key, canvas in memory.canvases.items()
        if np.issubdtype(canvas.dtype, np.integer)
    }
    windows = {key: codebook.window_set.windows for key, codebook in memory.codebooks.items()}
    for step in [None, *reversed(steps)]:
        if step is not None:
            for key in canvases.keys() & step.journal.tiles.keys():
                tiles, values = step.journal.tiles[key]
                _paint(canvases[key], tiles, memory.backend.download(values))
            for key, (count, follow) in step.journal.codebooks.items():
                if count > len(windows[key]) or (len(follow) and count != len(windows[key])):
                    raise SessionError(f"{path}: a journal goes back to {count} windows of {key}")
                windows[key] = np.concatenate([windows[key][:count], follow])
        for key, canvas in canvases.items():
            if key in windows:
                _within(path, key, canvas, 0, len(windows[key]))
            else:
                _within(path, key, canvas, -1, _labels(state))
        for key, known in windows.items():
            inner = windows.get(key.rsplit(".", 2)[0])  # what its windows are made of: codes, or labels
            _within(path, key, known, -1, _labels(state) if inner is None else len(inner))


def _paint(canvas: Host, tiles: Tiles, values: Host) -> None:
    """Write `values` `[K, TILE, TILE, C]` into the tiles of a canvas; what overhangs it is cut off."""
    for (n, row, column), value in zip(tiles.host.tolist(), values, strict=True):
        place = canvas[n, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        place[...] = value[: place.shape[0], : place.shape[1]]


def _labels(state: State) -> int:
    """How many labels the network's tables know."""
    return min(layer.weight.shape[1] for layer in state.model.layers() if isinstance(layer, LabelConv))


def _within(path: str | os.PathLike[str], key: str, values: Host, least: int, beyond: int) -> None:
    if values.size and not least <= values.min() <= values.max() < beyond:
        raise SessionError(f"{path}: {key} has numbers outside {least} to {beyond - 1}")


def _value(parameter: Parameter) -> Host:
    return np.ascontiguousarray(parameter.value)


def _parts(state: State) -> dict[str, Callable[[], Host]]:
    """A state's arrays by name, each made when it is asked for."""
    backend, memory = state.memory.backend, state.memory
    parts: dict[str, Callable[[], Host]] = {}
    for key, canvas in memory.canvases.items():
        # a canvas of a store is in main memory: it is written from there
        parts[f"canvas/{key}"] = partial(backend.download if memory.store is None else np.asarray, canvas)
    for key, codebook in memory.codebooks.items():  # its tables follow from its windows
        parts[f"windows/{key}"] = partial(np.asarray, codebook.window_set.windows)
    for key, values in memory.measured.items():
        for i, value in enumerate(values):
            parts[f"measured/{key}/{i}"] = partial(backend.download, value)
    for key, value in state.conditions.items():
        parts[f"condition/{key}"] = partial(np.ascontiguousarray, value)
    stale = _stale_sets([*(step.stale for step in _both(state)), state.history.stale])
    small = {**_journal_tables(state), **stale}
    parts |= {name: partial(np.asarray, value) for name, value in small.items()}
    parts[VALUES] = partial(_journal_values, state)
    return parts


def _both(state: State) -> list[Step]:
    """The steps that can be undone, and those that can be redone."""
    return [*state.steps, *state.undone]


def _journal_tables(state: State) -> dict[str, Host]:
    """What all journals keep, end to end, without the values."""
    number = {key: i for i, key in enumerate(sorted(state.memory.canvases))}
    codebook_number = {key: i for i, key in enumerate(sorted(state.memory.codebooks))}
    table, tiles, codebooks, windows = [], [], [], []
    for i, step in enumerate(_both(state)):
        for key in step.journal.paths:
            kept = step.journal.kept_tiles(key)
            table.append((i, number[key], len(kept)))
            tiles.append(kept.host)
        for key, (count, follow) in step.journal.codebooks.items():
            codebooks.append((i, codebook_number[key], count, len(follow)))
            windows.append(follow.reshape(-1))
    return {
        "steps.table": np.array(table, np.int32).reshape(-1, 3),
        "steps.books": np.array(codebooks, np.int32).reshape(-1, 4),
        "steps.windows": np.concatenate([np.zeros(0, np.int32), *windows]),
        "steps.tiles": np.concatenate([np.zeros((0, 3), np.int32), *tiles]),
    }


def _journal_values(state: State) -> Host:
    """The values that all journals keep, end to end, as 32-bit words."""
    backend = state.memory.backend
    values = [
        np.ascontiguousarray(backend.download(step.journal.kept(backend, key)[1])).reshape(-1).view(np.int32)
        for step in _both(state)
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
    tensors: Mapping[str, Host], metadata: Mapping[str, str], backend: Backend, store: Store | None
) -> Loaded:
    kind = Model.registry.get(metadata["sparsegen.family"])
    if kind is None:
        raise ValueError(f"unknown network {metadata['sparsegen.family']!r}")
    build: Any = kind
    model: Model = build(kind.config_type(**json.loads(metadata["sparsegen.config"])))
    model.describe(json.loads(metadata["sparsegen.model"]))
    model.paper = Paper(**json.loads(metadata["sparsegen.paper"]))
    model.load_parameters(_under(tensors, "parameter/"))
    states = {}
    for prefix, described in json.loads(metadata["sparsegen.states"]).items():
        keep = memory_kind(described["storage"])
        memory = keep(
            backend,
            model.prepared_for(backend),
            store=store,
            coded=bool(described["coded"]),
            least_size=int(described["least_size"]),
        )
        states[prefix] = _state(
            _under(tensors, prefix),
            model,
            memory,
            str(described["output"]),
            described["edits"],
            int(described["forgotten"]),
        )
    notes: Notes = {str(name): str(text) for name, text in json.loads(metadata["sparsegen.notes"]).items()}
    notes |= _under(tensors, "notes/")
    return Loaded(model, states, dict(metadata), _under(tensors, "beside/"), notes)


def _under(tensors: Mapping[str, Host], prefix: str) -> dict[str, Host]:
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}


def _state(
    tensors: Mapping[str, Host],
    model: Model,
    memory: Memory,
    output_path: str,
    edits: int,
    forgotten: int,
) -> State:
    backend = memory.backend
    take: Callable[[Host], Array] = backend.upload if memory.store is None else np.asarray
    memory.canvases = {key: take(value) for key, value in _under(tensors, "canvas/").items()}
    for key, windows in _under(tensors, "windows/").items():
        memory.codebooks[key] = Codebook(WindowSet(windows.shape[1], windows))
    measured: dict[str, list[Array]] = {}
    for key, value in sorted(_under(tensors, "measured/").items()):
        measured.setdefault(key.rpartition("/")[0], []).append(backend.upload(value))
    memory.measured = {key: tuple(values) for key, values in measured.items()}

    inputs = [canvas for key, canvas in memory.canvases.items() if key.startswith(input_path(""))]
    samples, height, width, _ = inputs[0].shape
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
    steps = [Step(Journal(), s) for s in beyond]
    if not isinstance(edits, int) or not 0 <= edits <= len(steps):
        raise ValueError(f"{edits} of {len(steps)} edits can be undone")
    keys, tile, word = sorted(memory.canvases), 0, 0
    for i, canvas_number, count in tensors["steps.table"].tolist():
        key = keys[canvas_number]
        canvas = memory.canvases[key]
        shape = (count, TILE, TILE, int(canvas.shape[3]))
        size = int(np.prod(shape)) * canvas.dtype.itemsize // 4
        values = tensors[VALUES][word : word + size].view(canvas.dtype).reshape(shape)
        tiles = tensors["steps.tiles"][tile : tile + count]
        if tiles.dtype != np.int32 or tiles.shape != (count, 3):
            raise ValueError(f"a journal keeps {count} tiles of {key} and names {tiles.shape} {tiles.dtype}")
        steps[i].journal.add(key, Tiles(tiles), take(values))
        tile, word = tile + count, word + size
    codebooks, at = sorted(memory.codebooks), 0
    for i, place, count, follow in tensors["steps.books"].tolist():
        codebook = memory.codebooks[codebooks[place]]
        width = codebook.window_set.storage.shape[1]
        windows = tensors["steps.windows"][at : at + follow * width].reshape(follow, width)
        if count < 0 or windows.dtype != np.int32:
            raise ValueError(f"a journal goes back to {count} windows of {codebooks[place]}")
        steps[i].journal.add_codebook(codebooks[place], count, windows)
        at += follow * width
    conditions = _under(tensors, "condition/")
    history = History(stale, tuple(steps[:edits]), tuple(steps[edits:]), max(forgotten, 0))
    return State(model, memory, conditions, output_path, history)
