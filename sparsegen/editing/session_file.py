"""Sessions on disk: models, states and a history come in, one safetensors file comes out, and back again, bit for bit.

The file is self-contained. A digest over every tensor and all metadata is checked before any of them is used; tensors
are data, and the file holds no code. A session has named *models* and states of them, each by its prefix: a session of
a GAN one of both, a diffusion session a state for each denoising step, one of Stable Diffusion several models.

    parameter/MODEL/…   the parameters of a model, as they are stored
    PREFIX…             a state and its journals (`session_arrays.py`)
    history/image       float32 [N, H, W, C]: the image of a diffusion session; then history/image.00000, … on the
                        other side of each edit
    history/counts      int32 [S + 1]: tiles of the stale set beyond each edit, and now; then history/tiles int32 [T, 3]
                        and history/pixels uint8 [T, TILE, TILE]
    beside/…, notes/…   arrays of the session's kind; of the user

Edits that can be redone are numbered after the edits that can be undone, the next one last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from sparsegen.backends.interface import Array, Backend, Host
from sparsegen.weights import Checkpoint, read_checkpoint, shown, write_safetensors

from ..checks import is_whole
from ..engine.allocator import Allocator
from ..engine.chunks import block_bytes
from ..engine.journal import Journal
from ..errors import SessionError, SparsegenError
from ..layers import Parameter
from ..models.base import Model
from ..tiling import policies
from ..tiling.policies import Paper, Policy
from ..tiling.tiles import TileSet
from .history import Edit, History
from .session_arrays import CANVAS, fill, is_large, parts, under
from .session_check import check, damaged
from .state import State

VERSION = "7"
DIGEST = "sparsegen.digest"
_PREFIX = "sparsegen."
KIND = "session"
"""The kind of a `Session`, in its file."""
AHEAD = 16 << 20
"""Bytes of arrays that are read before they are hashed, at most, or one array."""
_KEPT = (np.float32, np.int32, np.float16)
_SMALL = ("parameter/", "history/", "beside/", "notes/")
"""Prefixes of arrays that are no state's."""
Notes: TypeAlias = "dict[str, str | Host]"
"""A user's notes in a session's file: text and arrays by name."""


def save(
    path: str | os.PathLike[str],
    models: Mapping[str, Model],
    states: Mapping[str, State],
    history: History,
    *,
    policy: Policy,
    kind: str = KIND,
    settings: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Host] | None = None,
    notes: Notes | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Write `models` by name, states of them by prefix, and the history of the states, or leave the old file whole.

    The `kind` of the session, its `settings` (plain values), `tensors` of its own and the user's `notes` are kept
    beside them. An array is copied as it is written: no more than
    one at a time.

    Raises
    ------
    CheckpointError
        The file could not be written.
    """
    names = {model: name for name, model in models.items()}
    edits = (*history.edits, *history.undone)
    written: dict[str, Callable[[], Host]] = {
        f"parameter/{name}/{key}": partial(_value, parameter)
        for name, model in models.items()
        for key, parameter in model.parameters().items()
    }
    written |= {
        f"history/{name}": partial(np.ascontiguousarray, value) for name, value in _told(history, edits)
    }
    for name, value in (tensors or {}).items():
        written[f"beside/{name}"] = partial(np.ascontiguousarray, value)
    texts = {name: note for name, note in (notes or {}).items() if isinstance(note, str)}
    for name, note in (notes or {}).items():
        if not isinstance(note, str):
            written[f"notes/{name}"] = partial(np.ascontiguousarray, note)
    for i, (prefix, state) in enumerate(states.items()):
        journals = [edit.journals[i] if edit.journals else Journal() for edit in edits]
        written |= {f"{prefix}{name}": value for name, value in parts(state, journals).items()}
    described = {
        "session": VERSION,
        "kind": kind,
        "settings": json.dumps(dict(settings or {})),
        "models": json.dumps({name: _of_model(model) for name, model in models.items()}),
        "policy": json.dumps(policies.described(policy)),
        "states": json.dumps(
            {prefix: _of_state(state, names[state.model]) for prefix, state in states.items()}
        ),
        "history": json.dumps(
            {
                "edits": len(history.edits),
                "ran": [bool(edit.journals) for edit in edits],
                "forgotten": history.forgotten,
                "images": history.image is not None,
            }
        ),
        "notes": json.dumps(texts),
    }
    digesting = _Digesting(written, {_PREFIX + name: text for name, text in described.items()})
    write_safetensors(path, digesting, digesting.metadata, progress=progress)


def _of_model(model: Model) -> dict[str, Any]:
    """A model without its parameters, in plain values."""
    return {
        "family": model.family,
        "config": asdict(model.config),
        "about": model.described(),
        "paper": asdict(model.paper),
    }


def _of_state(state: State, model: str) -> dict[str, Any]:
    """A state without its arrays, in plain values; `model` is the name of its model."""
    memory = state.memory
    return {
        "model": model,
        "output": state.output_path,
        "coded": memory.coded,
        "storage": memory.storage,
        "least_size": memory.least_size,
        "carried_rows": memory.carried_rows,
    }


def _told(history: History, edits: Sequence[Edit]) -> Iterator[tuple[str, Host]]:
    """The arrays of a history, by name."""
    if history.image is not None:
        yield "image", history.image
    for i, edit in enumerate(edits):
        if edit.image is not None:
            yield f"image.{i:05d}", edit.image
    sets = [*(edit.stale for edit in edits), history.stale]
    yield "counts", np.array([each.count for each in sets], np.int32)
    yield "tiles", np.concatenate([each.tiles.host for each in sets])
    yield "pixels", np.concatenate([each.pixels for each in sets]).astype(np.uint8)


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


@dataclass(frozen=True, eq=False, repr=False)
class Loaded:
    """The contents of a file."""

    models: dict[str, Model]
    """By name."""
    states: dict[str, State]
    """By prefix, in the order of the journals of an edit."""
    history: History
    """Of all states together."""
    policy: Policy
    """The session's."""
    settings: dict[str, Any]
    """Of its kind; not checked."""
    tensors: dict[str, Host]
    notes: Notes

    @property
    def model(self) -> Model:
        """The only model. Raises ValueError: there are several, or none."""
        (model,) = self.models.values()
        return model


def load(
    path: str | os.PathLike[str],
    backend: Backend,
    allocator: Allocator,
    *,
    kind: str = KIND,
    allocators: Mapping[str, Allocator] | None = None,
    edited: str | None = None,
) -> Loaded:
    """Read a session file, its canvases and journals into arrays of `allocator`.

    Parameters
    ----------
    kind
        The kind of session that the file must hold.
    allocators
        Prefix of a state -> another allocator for that state.
    edited
        Prefix of the state whose input's pixels the stale sets of the history are of; None: the first.

    Raises
    ------
    SessionError, CheckpointError
        The file is cut, altered, not a session, of another kind or version; there is no room for its arrays.
    """
    checkpoint = read_checkpoint(path)
    metadata = read_metadata(path, checkpoint)
    if metadata.get("sparsegen.kind") != kind:
        raise SessionError(
            f"{path}: a session of another kind ({shown(metadata.get('sparsegen.kind'))}, expected {kind}); open it "
            "with sparsegen.open_session"
        )
    tensors: dict[str, Array] = {}
    digest_in_file = metadata.pop(DIGEST, "")
    digest = Digest(metadata)
    places = {
        name: _allocator(name, allocator, allocators or {}) for name in checkpoint.tensors if is_kept(name)
    }
    for each in dict.fromkeys(places.values()):
        named = [name for name, place in places.items() if place is each]
        each.check_room([block_bytes(checkpoint.tensors[name].nbytes) for name in named])
    with ThreadPoolExecutor(1) as beside:  # hashing takes longer than reading
        hashing: deque[tuple[Future[None], int]] = deque()
        ahead = 0
        for name, tensor in sorted(checkpoint.tensors.items()):
            value = np.array(tensor.numpy())  # a copy: the file may be overwritten while the session lives
            hashing.append((beside.submit(digest.add, name, value), value.nbytes))
            ahead += value.nbytes
            while ahead > AHEAD and len(hashing) > 1:
                hashed, size = hashing.popleft()
                hashed.result()
                ahead -= size
            if name in places and value.dtype in _KEPT:
                # edits compute in a float32 canvas of this shape: allocate it before the RAM is full
                if value.dtype == np.float16 and value.ndim == 4:
                    places[name].shared(name.partition(CANVAS)[2], value.shape)
                tensors[name] = places[name].adopt(value)
            else:
                tensors[name] = value
            checkpoint.release()
        for hashed, _ in hashing:
            hashed.result()
    if digest_in_file != digest.text():
        raise damaged(path, "its digest does not match")
    try:
        return _loaded(path, tensors, metadata, backend, allocator, allocators or {}, edited)
    except SessionError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError, SparsegenError) as error:
        raise damaged(path, f"it does not describe a session ({error})") from None


def read_metadata(path: str | os.PathLike[str], checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata of a session's file. Raises SessionError: it is none, or one of another version."""
    metadata = {key: str(value) for key, value in checkpoint.metadata.items() if key.startswith(_PREFIX)}
    version = metadata.get("sparsegen.session")
    if version is None:
        raise SessionError(f"{path}: not a saved session; expected a file that the save() of a session wrote")
    if version != VERSION:
        raise SessionError(f"{path}: session format {version}; this version of sparsegen reads {VERSION}")
    return metadata


def is_kept(name: str) -> bool:
    """Whether an array of that name lies in an allocator's memory."""
    return is_large(name) and not name.startswith(_SMALL)


def _allocator(name: str, allocator: Allocator, others: Mapping[str, Allocator]) -> Allocator:
    """The allocator of an array, or of a state's prefix."""
    return next((each for prefix, each in others.items() if name.startswith(prefix)), allocator)


def _value(parameter: Parameter) -> Host:
    return np.ascontiguousarray(parameter.value)


def _loaded(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str],
    backend: Backend,
    allocator: Allocator,
    allocators: Mapping[str, Allocator],
    edited: str | None,
) -> Loaded:
    models = {
        name: _model(described, under(tensors, f"parameter/{name}/"))
        for name, described in json.loads(metadata["sparsegen.models"]).items()
    }
    told = json.loads(metadata["sparsegen.history"])
    ran, edits = told["ran"], told["edits"]
    if not isinstance(ran, list) or not is_whole(edits) or not 0 <= edits <= len(ran):
        raise damaged(path, f"{edits!r} edits can be undone, expected 0 to the number of all")
    states: dict[str, State] = {}
    columns: list[list[Journal]] = []
    for prefix, kept in json.loads(metadata["sparsegen.states"]).items():
        place = _allocator(prefix, allocator, allocators)
        state = State(models[kept["model"]], backend, allocator=place, storage=kept["storage"])
        state.memory.coded = bool(kept["coded"])
        state.memory.least_size = int(kept["least_size"])
        state.memory.carried_rows = int(kept["carried_rows"])
        state.output_path = str(kept["output"])
        journals = fill(state, under(tensors, prefix), len(ran))
        check(path, state, journals, edits)
        states[prefix] = state
        columns.append(journals)
    if not states:
        raise ValueError("it has no states")
    shape = next(iter(states[next(iter(states)) if edited is None else edited].inputs.values())).shape
    history = _history(told, under(tensors, "history/"), columns, (shape[0], shape[1], shape[2]))
    notes: Notes = {str(name): str(text) for name, text in json.loads(metadata["sparsegen.notes"]).items()}
    notes |= under(tensors, "notes/")
    policy = policies.read_policy(json.loads(metadata["sparsegen.policy"]))
    settings = json.loads(metadata["sparsegen.settings"])
    if not isinstance(settings, dict):
        raise ValueError("its settings are no JSON object")
    return Loaded(models, states, history, policy, settings, under(tensors, "beside/"), notes)


def _model(described: Mapping[str, Any], parameters: Mapping[str, Host]) -> Model:
    """The model that `_of_model` described."""
    kind = Model.registry.get(described["family"])
    if kind is None:
        raise ValueError(f"unknown family {described['family']!r}")
    build: Any = kind
    model: Model = build(kind.config_type(**described["config"]))
    model.describe(described["about"])
    model.paper = Paper(**described["paper"])
    model.load_parameters(parameters)
    return model


def _history(
    told: Mapping[str, Any],
    tensors: Mapping[str, Host],
    columns: Sequence[Sequence[Journal]],
    shape: tuple[int, int, int],
) -> History:
    """The history of states that have these journals; stale sets are of pixels `shape` = (N, H, W).

    Raises
    ------
    LookupError, ValueError, TypeError
        Its arrays do not fit each other.
    """
    ran, edits = told["ran"], told["edits"]
    counts, tiles, pixels = tensors["counts"], tensors["tiles"], tensors["pixels"]
    if counts.shape != (len(ran) + 1,) or (counts < 0).any() or not counts.sum() == len(tiles) == len(pixels):
        raise ValueError("its stale tiles are not those of its edits")
    if tiles.dtype != np.int32 or pixels.dtype != np.uint8:
        raise ValueError(f"its stale tiles are {tiles.dtype} and {pixels.dtype}, expected int32 and uint8")
    ends = np.cumsum(counts)[:-1]
    *beyond, stale = (
        TileSet.of_tiles(shape, *each)
        for each in zip(np.split(tiles, ends), np.split(pixels.astype(bool), ends), strict=True)
    )
    images: list[Host | None] = [None] * (len(ran) + 1)
    if told["images"]:
        found = [tensors["image"], *(tensors[f"image.{i:05d}"] for i in range(len(ran)))]
        if found[0].ndim != 4 or any(
            each.dtype != np.float32 or each.shape != found[0].shape for each in found
        ):
            raise ValueError("its images are not float32 of one shape [N, H, W, C]")
        images[:] = found
    done: list[Edit] = []
    for i, moved in enumerate(ran):
        journals = tuple(column[i] for column in columns)
        if not moved and any(journal.paths or journal.moments or journal.windows for journal in journals):
            raise ValueError(f"edit {i} repainted nothing, and has a journal")
        done.append(Edit(journals if moved else (), beyond[i], images[i + 1]))
    forgotten = max(int(told["forgotten"]), 0)
    return History(
        stale, images[0], edits=tuple(done[:edits]), undone=tuple(done[edits:]), forgotten=forgotten
    )
