"""Saved sessions of either kind: a file comes in, its session comes out."""

from __future__ import annotations

import os

from sparsegen.backends.interface import Backend

from ..editing.session import Session
from .sdedit import SDEdit
from .sdedit_file import is_sdedit


def open_session(
    path: str | os.PathLike[str],
    backend: str | Backend | None = None,
    *,
    ram: int | str | None = None,
    folder: str | os.PathLike[str] | None = None,
    undo: int | str | None = None,
) -> Session | SDEdit:
    """A saved session of either kind, to be continued; `ram` and `folder` apply to diffusion sessions.

    Raises
    ------
    SessionError, CheckpointError, InputError
        As `Session.load` and `SDEdit.load`; the file is not a session.
    """
    if is_sdedit(path):
        return SDEdit.load(path, backend=backend, ram=ram, folder=folder, undo=undo)
    return Session.load(path, backend, undo=undo)
