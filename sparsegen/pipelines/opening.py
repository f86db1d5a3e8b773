"""Saved sessions of every kind: a file comes in, its session comes out."""

from __future__ import annotations

import os

from sparsegen.backends.interface import Backend
from sparsegen.weights import read_checkpoint

from ..editing.session import Session
from . import sdedit_file, stable_diffusion_file
from .sdedit import SDEdit
from .stable_diffusion import StableDiffusion


def open_session(
    path: str | os.PathLike[str],
    backend: str | Backend | None = None,
    *,
    ram: int | str | None = None,
    folder: str | os.PathLike[str] | None = None,
    undo: int | str | None = None,
) -> Session | SDEdit | StableDiffusion:
    """A saved session of any kind, to be continued; `ram` and `folder` apply to diffusion sessions.

    Raises
    ------
    SessionError, CheckpointError, InputError
        As `load` of the session's class; the file is not a session.
    """
    with read_checkpoint(path) as file:
        described = dict(file.metadata)
    diffusion: dict[str, type[SDEdit | StableDiffusion]] = {
        sdedit_file.KIND: SDEdit,
        stable_diffusion_file.KIND: StableDiffusion,
    }
    kind = diffusion.get(str(described.get("sparsegen.kind")))
    if kind is not None:
        return kind.load(path, backend=backend, ram=ram, folder=folder, undo=undo)
    return Session.load(path, backend, undo=undo)
