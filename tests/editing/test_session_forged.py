"""Session files that somebody made: the digest is right, and what they hold would lead a kernel out of its arrays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparsegen import Session, SessionError
from sparsegen.backends import get_backend
from sparsegen.editing import session_file
from sparsegen.weights import read_checkpoint, write_safetensors
from tests.networks import random_gaugan, random_labels, repaint

CODES, INNER = "windows.labels.3.1.3.1", "windows.labels.3.1"


def forged(path, tensors, metadata):
    """Write a session's file again, its digest right."""
    metadata = {key: str(v) for key, v in metadata.items() if key != "sparsegen.digest"}
    digest = session_file.Digest(metadata)
    for key, array in sorted(tensors.items()):
        digest.add(key, array)
    metadata["sparsegen.digest"] = digest.text()
    write_safetensors(path, tensors, metadata)


# edit, codebook, windows that stay, windows that follow: of two edits that can be undone, and one that can be redone
REDO = {
    "windows that stay beyond those there are": lambda t: t["steps.books"].__setitem__((0, 2), 1 << 20),
    "no window stays, and codes name some": lambda t: t["steps.books"].__setitem__((0, 2), 0),
    "fewer stay before others follow": lambda t: t["steps.books"].__setitem__((-1, 2), 3),
    "a negative number stays": lambda t: t["steps.books"].__setitem__((-1, 2), -1),
    "more follow than there are": lambda t: t["steps.books"].__setitem__((-1, 3), 1 << 20),
    "fewer follow than codes name": lambda t: t["steps.books"].__setitem__((-1, 3), 0),
    "another edit": lambda t: t["steps.books"].__setitem__((-1, 0), 7),
    "another codebook": lambda t: t["steps.books"].__setitem__((-1, 1), 99),
    "windows of no labels": lambda t: t["steps.windows"].__setitem__(slice(None), 1 << 30),
    "windows of another type": lambda t: t.__setitem__(
        "steps.windows", t["steps.windows"].astype(np.float32)
    ),
    "values of no codes": lambda t: t["steps.values"].__setitem__(slice(None), 1 << 30),
    "tiles outside": lambda t: t["steps.tiles"].__setitem__((-1, 1), 1 << 20),
    "too many edits": {"edits": 9},
    "a negative number of edits": {"edits": -1},
    "no number of edits": {"edits": "2"},
    "forgotten without a number": {"forgotten": "many"},
}


@pytest.mark.parametrize("what", REDO)
def test_a_forged_history_is_refused(tmp_path, what):
    backend = get_backend("numba")
    rng = np.random.default_rng(1)
    session = Session(random_gaugan(), backend)
    labels = random_labels(rng, (32, 64))
    session.run(labels)
    for _ in range(3):
        labels = repaint(rng, labels)
        session.edit(labels)
    session.undo()
    path = tmp_path / "session.safetensors"
    session.save(path)
    file = read_checkpoint(path)
    tensors = {key: np.array(tensor.numpy()) for key, tensor in file.tensors.items()}
    assert (tensors["steps.books"][:, 3] > 0).any() and len(tensors["steps.windows"])
    metadata = dict(file.metadata)
    forged(path, tensors, metadata)
    assert Session.load(path, backend).undone == 1  # the forger's files are taken
    change = REDO[what]
    if isinstance(change, dict):
        metadata["sparsegen.history"] = json.dumps({**json.loads(metadata["sparsegen.history"]), **change})
    else:
        change(tensors)
    forged(path, tensors, metadata)
    with pytest.raises(SessionError):
        Session.load(path, backend)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("canvas/input.labels", 1 << 30),
        ("canvas/input.labels", -2),
        (f"canvas/{CODES}", 1 << 30),
        (f"canvas/{CODES}", -1),
        (f"windows/{CODES}", 1 << 30),
        (f"windows/{INNER}", 1 << 30),
        (f"windows/{INNER}", None),
        ("measured/head_0.norm_0.norm/0", None),
    ],
)
def test_a_forged_session_is_refused(tmp_path, name, value):
    backend = get_backend("numba")  # whose sessions keep codebooks, and whose kernels do not check
    rng = np.random.default_rng(0)
    session = Session(random_gaugan(norm="instance"), backend)
    labels = random_labels(rng, (32, 64))
    session.run(labels)
    session.edit(repaint(rng, labels))
    path = tmp_path / "session.safetensors"
    session.save(path)

    file = read_checkpoint(path)
    tensors = {key: np.array(tensor.numpy()) for key, tensor in file.tensors.items()}
    if value is None:
        tensors[name] = np.ascontiguousarray(tensors[name][..., :-1])
    else:
        tensors[name].flat[0] = value
    forged(path, tensors, file.metadata)
    with pytest.raises(SessionError):
        Session.load(path, backend)
