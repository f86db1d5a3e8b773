"""Sessions in files at the command line: a file comes in, a session that goes on from it; and back into the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsegen.backends.interface import Backend, Host

from ..errors import InputError
from ..pipelines import SDEdit, open_session
from ..session import Session
from ..stats import counted, megabytes
from .console import out, progress_bars

ORIGINAL, PAINTED = "original", "painted"
"""What a session's file notes: the path of its original, and the last edited picture, whose strokes are no news."""


@dataclass
class Kept:
    """The file of `--session`, and what is in it."""

    path: Path
    session: Session | SDEdit | None = None
    """None: there is no such file yet."""
    changed: bool = field(default=False, init=False)
    """Whether there is something to save."""

    def __post_init__(self) -> None:
        self.goes_on = self.session is not None
        """Whether the session was in the file: its original has run."""

    @classmethod
    def open(
        cls, path: Path, backend: Backend, cache: str | None, folder: Path | None, undo: str | None = None
    ) -> Kept:
        """Look whether there is such a file, and load it. Raises SessionError, CheckpointError, InputError."""
        if not path.exists():
            return cls(path)
        with progress_bars() as start:
            start(f"loading {path}", None)
            session = open_session(path, backend, cache=cache, folder=folder, undo=undo)
        return cls(path, session)

    def original(self, given: Path | None) -> Path:
        """The original: as given, or as the session's file notes it. Raises InputError."""
        if given is not None:
            return given
        if self.session is None:
            raise InputError(f"{self.path}: a new session, which begins with a picture: give --original")
        noted = self.session.notes.get(ORIGINAL)
        if not isinstance(noted, str):
            raise InputError(f"{self.path}: does not say what its original is; give --original")
        if not Path(noted).is_file():
            raise InputError(f"{self.path}: its original was {noted}, which is gone; give --original")
        return Path(noted)

    def begin(self, session: Session | SDEdit, *, seed: int | None = None) -> None:
        """Take a new session to save, or see that the one in the file is of this seed. Raises InputError."""
        if self.session is None:
            self.session = session
            if seed is not None:
                session.notes["seed"] = str(seed)
        elif seed is not None:
            self.check_same({"seed": str(seed)}, {"seed": session.notes.get("seed", "no --seed")})

    def check_file(self, name: str, path: Path, read: Host) -> None:
        """Note what was read of a file of the original; where the session goes on, see that it is the same.

        Raises InputError.
        """
        assert self.session is not None
        digest, notes = _digest(read), self.session.notes
        if notes.setdefault(f"{name}.sha256", digest) != digest:
            raise InputError(
                f"{path}: is not the {name} that the session {self.path} was made of (or --crop, --resize and "
                "--unknown-label are not as they were); give that, or another --session"
            )
        notes[name] = str(path.resolve())

    def noted_number(self, name: str, given: int | None) -> int | None:
        """An option that the original was read with: as given, or as the session's file notes it. Raises InputError."""
        noted = None if self.session is None else self.session.notes.get(name)
        if isinstance(noted, str) and noted.isdecimal():
            self.check_same({name: given}, {name: int(noted)})
            return int(noted)
        return given

    def refuse(self, given: dict[str, Any], why: str) -> None:
        """Raise InputError if one of these options is given: it is decided when a session is made."""
        named = [
            f"--{name.replace('_', '-')}" for name, value in given.items() if value not in (None, [], False)
        ]
        if named:
            raise InputError(f"{', '.join(named)}: {self.path} {why}; omit it, or give another --session")

    def check_same(self, given: dict[str, Any], kept: dict[str, Any]) -> None:
        """Raise InputError where an option says otherwise than the session in the file."""
        for name, value in given.items():
            if value is not None and value != kept[name]:
                raise InputError(
                    f"--{name.replace('_', '-')} {value}: the session in {self.path} has {kept[name]}; omit it, or "
                    "give another --session"
                )

    def save(self) -> None:
        """Write the session back, or leave the old file whole. Raises CheckpointError."""
        assert self.session is not None
        with progress_bars() as start:
            bar = start(f"saving {self.path}", None)
            if isinstance(self.session, SDEdit):
                self.session.save(self.path, progress=lambda done, total, name: bar(done, name, total))
            else:
                self.session.save(self.path)
        size = self.path.stat().st_size
        out.print(
            f"session saved in {self.path}, {megabytes(size)}: {counted(self.session.edits, 'edit')} to "
            f"undo, {self.session.undone} to redo",
            soft_wrap=True,
        )


@contextmanager
def keeping(kept: Kept | None) -> Iterator[None]:
    """Save the session at the end; also what was done before something failed."""
    try:
        yield
    except Exception:
        if kept is not None and kept.changed:
            kept.save()
        raise
    if kept is not None:
        kept.save()


def note_change(kept: Kept | None) -> None:
    """There is something to save."""
    if kept is not None:
        kept.changed = True


def _digest(read: Host) -> str:
    digest = hashlib.sha256(f"{read.dtype.str} {read.shape}\n".encode())
    digest.update(np.ascontiguousarray(read).data)
    return digest.hexdigest()
