"""Saved sessions of either kind: a file comes in, the session that it holds comes out."""

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
    """Continue a saved session of either kind; `ram` and `folder` are for one of several steps.

    Raises
    ------
    SessionError, CheckpointError, InputError
        As `Session.load` and `SDEdit.load`; the file is no session at all.
    """
    if is_sdedit(path):
        return SDEdit.load(path, backend=backend, ram=ram, folder=folder, undo=undo)
    return Session.load(path, backend, undo=undo)
