"""Sessions on disk: a session's state comes in, one safetensors file comes out, and back again, bit for bit.

The file is self-contained (network, canvases, statistics, journal). A digest over every tensor and all metadata is
checked before anything is used; tensors are data, nothing in the file is ever executed. The journals of all edits
lie end to end in a few tensors, so that a session may have any number of edits:

    steps.table   int32 [R, 3]   edit, canvas (by its place among the sorted names), number of tiles
    steps.tiles   int32 [T, 3]   the tiles of all rows
    steps.values  uint8 [B]      their bytes
    steps.books   int32 [B, 3]   edit, codebook (by its place among the sorted names), windows it knew before
    stale.counts  int32 [S + 1]  tiles of the stale set before each edit, and now; then stale.tiles, stale.pixels
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import TILE, Array, Backend, Book, Host
from sparsegen.weights import read_checkpoint, write_safetensors

from .codebook import Codebook
from .errors import SessionError, SparsegenError
from .layers import LabelConv
from .memory import Journal, Memory
from .model import Model
from .tiles import TileSet

VERSION = "2"


@dataclass(frozen=True, eq=False)
class Step:
    """One edit that can be undone."""

    journal: Journal
    stale_before: TileSet
    """The session's stale pixels before the edit."""


@dataclass(eq=False)
class State:
    """What makes a session, once it has run."""

    model: Model
    memory: Memory
    conditions: dict[str, Host]
    steps: list[Step]
    stale: TileSet
    """Input pixels whose change has not spread everywhere: what edits under approximate policies touched."""
    output_path: str
    images: Host | None = None
    """The output's pictures; None where they are not known, also while they change."""


def save(path: str | os.PathLike[str], state: State) -> None:
    """Write `state` to `path`; on any failure (CheckpointError) the old file stays whole."""
    backend = state.memory.backend
    tensors: dict[str, Host] = {}
    for key, parameter in state.model.parameters().items():
        tensors[f"parameter/{key}"] = np.ascontiguousarray(parameter.value)
    for key, canvas in state.memory.canvases.items():
        tensors[f"canvas/{key}"] = backend.download(canvas)
    for key, codebook in state.memory.codebooks.items():  # its tables follow from its windows
        tensors[f"windows/{key}"] = codebook.book.keys
    for key, values in state.memory.measured.items():
        for i, value in enumerate(values):
            tensors[f"measured/{key}/{i}"] = backend.download(value)
    for key, value in state.conditions.items():
        tensors[f"condition/{key}"] = np.ascontiguousarray(value)
    tensors |= _journals(state, backend) | _stale_sets(
        [*(step.stale_before for step in state.steps), state.stale]
    )
    metadata = {
        "sparsegen.session": VERSION,
        "sparsegen.family": state.model.family,
        "sparsegen.config": state.model.config_json(),
        "sparsegen.output": state.output_path,
        "sparsegen.model_name": state.model.name,
        "sparsegen.coded": str(int(state.memory.coded)),
    }
    metadata["sparsegen.digest"] = _digest(tensors, metadata)
    write_safetensors(path, tensors, metadata)


def load(path: str | os.PathLike[str], backend: Backend) -> State:
    """Read a session file. Raises SessionError, CheckpointError."""
    checkpoint = read_checkpoint(path)
    metadata = {key: str(value) for key, value in checkpoint.metadata.items() if key.startswith("sparsegen.")}
    version = metadata.get("sparsegen.session")
    if version is None:
        raise SessionError(f"{path}: not a saved session")
    if version != VERSION:
        raise SessionError(f"{path}: session format {version}; this version of sparsegen reads {VERSION}")
    # copies: the file may be written over while the session lives
    tensors = {name: np.array(tensor.numpy()) for name, tensor in checkpoint.tensors.items()}
    digest = metadata.pop("sparsegen.digest", "")
    if digest != _digest(tensors, metadata):
        raise SessionError(
            f"{path}: the file was altered or damaged (its digest does not match); save it again"
        )
    try:
        return _state(tensors, metadata, backend)
    except (KeyError, IndexError, ValueError, TypeError, SparsegenError) as error:
        raise SessionError(f"{path}: the file does not describe a session ({error})") from None


def check(path: str | os.PathLike[str], state: State, expected: Memory) -> None:
    """Hold a loaded state against the memory that its network makes of its input. Raises SessionError.

    Kernels do not check what they index: every size, number of a label and number of a window is checked here.
    """
    memory, backend = state.memory, state.memory.backend
    shapes = {key: tuple(canvas.shape) for key, canvas in expected.canvases.items()}
    found = {key: tuple(canvas.shape) for key, canvas in memory.canvases.items()}
    if found != shapes or state.output_path not in shapes:
        raise SessionError(f"{path}: its canvases are not those of its network")
    if {key: str(c.dtype) for key, c in memory.canvases.items()} != {
        key: str(c.dtype) for key, c in expected.canvases.items()
    }:
        raise SessionError(f"{path}: its canvases are of other types than those of its network")
    if {key: [tuple(v.shape) for v in values] for key, values in memory.measured.items()} != {
        key: [tuple(v.shape) for v in values] for key, values in expected.measured.items()
    }:
        raise SessionError(f"{path}: its statistics are not those of its network")
    if set(memory.codebooks) != set(expected.codebooks):
        raise SessionError(f"{path}: its codebooks are not those of its network")
    for key, (least, most) in _index_ranges(state).items():
        kept = [step.journal.tiles[key][1] for step in state.steps if key in step.journal.tiles]
        for values in (memory.canvases[key], *kept):
            _within(path, key, backend.download(values), least, most)
    for key, codebook in memory.codebooks.items():
        book, width = codebook.book, expected.codebooks[key].book.storage.shape[1]
        if book.storage.shape[1] != width:
            raise SessionError(f"{path}: {key} has windows of {book.storage.shape[1]} instead of {width}")
        inner = key.rsplit(".", 2)[0]  # what its windows are made of: codes, or labels
        known = memory.codebooks.get(inner)
        _within(path, key, book.keys, -1, _labels(state) if known is None else len(known.book))
    for step in state.steps:
        for key, (tiles, _) in step.journal.tiles.items():
            samples, height, width, _ = state.memory.canvases[key].shape
            beyond = (samples, -(-height // TILE), -(-width // TILE))
            if len(tiles) and ((tiles < 0).any() or (tiles >= beyond).any()):
                raise SessionError(f"{path}: its journal has tiles outside {key}")


def _labels(state: State) -> int:
    """How many labels the network's tables know."""
    return min(layer.weight.shape[1] for layer in state.model.layers() if isinstance(layer, LabelConv))


def _index_ranges(state: State) -> dict[str, tuple[int, int]]:
    """Every index canvas -> (least, most + 1) of what may stand in it: labels (-1: none), or codes."""
    books = state.memory.codebooks
    return {
        key: (0, len(books[key].book)) if key in books else (-1, _labels(state))
        for key, canvas in state.memory.canvases.items()
        if np.issubdtype(canvas.dtype, np.integer)
    }


def _within(path: str | os.PathLike[str], key: str, values: Host, least: int, beyond: int) -> None:
    if values.size and not least <= values.min() <= values.max() < beyond:
        raise SessionError(f"{path}: {key} has numbers outside {least} to {beyond - 1}")


def _journals(state: State, backend: Backend) -> dict[str, Host]:
    """All journals, end to end."""
    number = {key: i for i, key in enumerate(sorted(state.memory.canvases))}
    table, tiles, values = [], [], []
    for i, step in enumerate(state.steps):
        for key in step.journal.paths:
            kept_tiles, kept = step.journal.kept(backend, key)
            table.append((i, number[key], len(kept_tiles)))
            tiles.append(kept_tiles)
            values.append(np.ascontiguousarray(backend.download(kept)).reshape(-1).view(np.uint8))
    book_number = {key: i for i, key in enumerate(sorted(state.memory.codebooks))}
    books = [
        (i, book_number[key], count)
        for i, step in enumerate(state.steps)
        for key, count in step.journal.books.items()
    ]
    return {
        "steps.table": np.array(table, np.int32).reshape(-1, 3),
        "steps.books": np.array(books, np.int32).reshape(-1, 3),
        "steps.tiles": np.concatenate([np.zeros((0, 3), np.int32), *tiles]),
        "steps.values": np.concatenate([np.zeros(0, np.uint8), *values]),
    }


def _stale_sets(sets: list[TileSet]) -> dict[str, Host]:
    """All stale sets, end to end."""
    return {
        "stale.counts": np.array([s.count for s in sets], np.int32),
        "stale.tiles": np.concatenate([s.tiles for s in sets]),
        "stale.pixels": np.concatenate([s.pixels for s in sets]).astype(np.uint8),
    }


def _state(tensors: Mapping[str, Host], metadata: Mapping[str, str], backend: Backend) -> State:
    def under(prefix: str) -> dict[str, Host]:
        return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}

    kind = Model.registry.get(metadata["sparsegen.family"])
    if kind is None:
        raise ValueError(f"unknown network {metadata['sparsegen.family']!r}")
    build: Any = kind
    model: Model = build(kind.config_type(**json.loads(metadata["sparsegen.config"])))
    model.name = metadata["sparsegen.model_name"]
    model.load_parameters(under("parameter/"))
    memory = Memory(backend, model.prepared_for(backend))
    memory.canvases = {key: backend.upload(value) for key, value in under("canvas/").items()}
    memory.coded = metadata["sparsegen.coded"] == "1"
    for key, windows in under("windows/").items():
        memory.codebooks[key] = Codebook(Book(windows.shape[1], windows))
    measured: dict[str, list[Array]] = {}
    for key, value in sorted(under("measured/").items()):
        measured.setdefault(key.rpartition("/")[0], []).append(backend.upload(value))
    memory.measured = {key: tuple(values) for key, values in measured.items()}

    height, width = next(c for key, c in memory.canvases.items() if key.startswith("input.")).shape[1:3]
    samples = len(next(iter(memory.canvases.values())))
    ends = np.cumsum(tensors["stale.counts"])
    sets = [
        TileSet.of_tiles((samples, height, width), tiles, pixels.astype(bool))
        for tiles, pixels in zip(
            np.split(tensors["stale.tiles"], ends[:-1]),
            np.split(tensors["stale.pixels"], ends[:-1]),
            strict=True,
        )
    ]
    *before, stale = sets
    steps = [Step(Journal(), s) for s in before]
    keys, tile, byte = sorted(memory.canvases), 0, 0
    for i, canvas_number, count in tensors["steps.table"].tolist():
        key = keys[canvas_number]
        canvas = memory.canvases[key]
        shape = (count, TILE, TILE, int(canvas.shape[3]))
        size = int(np.prod(shape)) * canvas.dtype.itemsize
        values = tensors["steps.values"][byte : byte + size].view(canvas.dtype).reshape(shape)
        steps[i].journal.tiles[key] = (tensors["steps.tiles"][tile : tile + count], backend.upload(values))
        tile, byte = tile + count, byte + size
    books = sorted(memory.codebooks)
    for i, book, count in tensors["steps.books"].tolist():
        if not 0 <= count <= len(memory.codebooks[books[book]].book):
            raise ValueError(f"a journal goes back to {count} windows of {books[book]}")
        steps[i].journal.books[books[book]] = count
    return State(model, memory, under("condition/"), steps, stale, metadata["sparsegen.output"])


def _digest(tensors: Mapping[str, Host], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, and over the metadata."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"\n{name} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).data if value.size else b"")
    return digest.hexdigest()
