"""Session files that somebody made: the digest is right, and what they hold would lead a kernel out of its arrays."""

from __future__ import annotations

import numpy as np
import pytest
from networks import random_gaugan, random_labels, repaint

from sparsegen import Session, SessionError, session_file
from sparsegen.backends import get_backend
from sparsegen.weights import read_checkpoint, write_safetensors

CODES, INNER = "windows.labels.3.1.3.1", "windows.labels.3.1"


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
    metadata = {key: str(v) for key, v in file.metadata.items() if key != "sparsegen.digest"}
    if value is None:
        tensors[name] = np.ascontiguousarray(tensors[name][..., :-1])
    else:
        tensors[name].flat[0] = value
    digest = session_file.Digest(metadata)
    for key, array in sorted(tensors.items()):
        digest.add(key, array)
    metadata["sparsegen.digest"] = digest.text()
    write_safetensors(path, tensors, metadata)
    with pytest.raises(SessionError):
        Session.load(path, backend)
