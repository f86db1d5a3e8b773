"""What tests of the Numba backend compute again and again: a session's work, and its digest for other processes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from sparsegen import Session
from sparsegen.backends import Backend
from sparsegen.backends.interface import Host
from sparsegen.backends.numba_cpu import NumbaBackend
from sparsegen.backends.numba_cpu import launch as module
from tests.models import random_gaugan, random_labels, repaint, values

ROOT = Path(__file__).parents[2]
"""Where other processes find `tests.backends.numba_work`."""


def worked(backend: Backend, seed: int = 0) -> dict[str, Host]:
    """What a session holds after a run and two edits of a model that takes every kernel of GauGAN's."""
    rng = np.random.default_rng(seed)
    session = Session(random_gaugan(1, ngf=4, nhidden=12, norm="instance"), backend)
    labels = random_labels(rng, (2, 32, 64))
    session.run(labels)
    for policy in ("paper", "exact"):
        labels = repaint(rng, labels)
        session.edit(labels, policy=policy)
    return values(session)


def digest(threads: int) -> str:
    """`worked` in one line, computed by a backend of its own; also what other processes run."""
    module.ALONE = 0.0
    found = worked(NumbaBackend(threads))
    return hashlib.sha256(b"".join(found[path].tobytes() for path in sorted(found))).hexdigest()


def in_this_process(threads: int) -> str:
    """`digest`, and the module as it was."""
    before = module.ALONE
    try:
        return digest(threads)
    finally:
        module.ALONE = before
