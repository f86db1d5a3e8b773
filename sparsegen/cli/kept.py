"""Sessions in files at the command line: a file comes in, a session that continues from it goes out, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsegen.backends.interface import Backend, Host

from ..editing.session import Session
from ..engine.stats import counted, megabytes
from ..errors import InputError
from ..models.base import Model
from ..pipelines.latents import LatentDiffusion
from ..pipelines.opening import open_session
from ..pipelines.sdedit import SDEdit
from ..pipelines.stable_diffusion import StableDiffusion
from .console import bar_without_steps, out, progress_bars

_NOTES = "cli."
"""Prefix of the command line's notes in a session's file."""
ORIGINAL, PAINTED = "original", "painted"
"""Notes: the path of the original; the last edited image, whose strokes are applied by now."""

AnySession = Session | SDEdit | StableDiffusion


@dataclass
class Kept:
    """The file of `--session`, and the session in it."""

    path: Path
    session: AnySession | None = None
    """None: the file does not exist yet."""
    changed: bool = field(default=False, init=False)
    """Whether there is something to save."""
    options: dict[str, str] = field(default_factory=dict, init=False)
    """The options of a new session."""

    def __post_init__(self) -> None:
        self.goes_on = self.session is not None
        """Whether the session was in the file, so that its original has run."""

    @classmethod
    def open(
        cls, path: Path, backend: Backend, ram: str | None, folder: Path | None, undo: str | None = None
    ) -> Kept:
        """The session in the file, loaded if it exists. Raises SessionError, CheckpointError, InputError."""
        if not path.exists():
            return cls(path)
        with bar_without_steps(f"loading {path}"):
            session = open_session(path, backend, ram=ram, folder=folder, undo=undo)
        return cls(path, session)

    @property
    def model(self) -> Model | LatentDiffusion | None:
        """The model of the session, or the models; None: there is no session yet."""
        if isinstance(self.session, StableDiffusion):
            return self.session.models
        return None if self.session is None else self.session.model

    def original(self, given: Path | None) -> Path:
        """The original: as given, or as the session's file notes it. Raises InputError."""
        if given is not None:
            return given
        if self.session is None:
            raise InputError(f"{self.path}: a new session needs an original; give --original")
        noted = self.note(ORIGINAL)
        if not isinstance(noted, str):
            raise InputError(f"{self.path}: does not record its original; give --original")
        if not Path(noted).is_file():
            raise InputError(f"{self.path}: its original {noted} does not exist; give --original")
        return Path(noted)

    def note(self, name: str) -> str | Host | None:
        """A note in the session's file."""
        return None if self.session is None else self.session.notes.get(_NOTES + name)

    def write_note(self, name: str, note: str | Host) -> None:
        """Note something in the session's file."""
        assert self.session is not None
        self.session.notes[_NOTES + name] = note

    def option(self, name: str, given: str | int | None, *, later: bool = False) -> str | None:
        """An option of the original: the given one, or the one noted in the session's file.

        `later`: it may be given to a session that was made without it.

        Raises
        ------
        InputError
            The session has another value.
        """
        text, noted = None if given is None else str(given), self.note(name)
        if self.goes_on and (isinstance(noted, str) or not later):
            self.check_same({name: text}, {name: noted or "none"})
            return noted if isinstance(noted, str) else None
        if text is not None:
            self.options[name] = text
        return text

    def begin(self, session: AnySession) -> None:
        """Keep a new session, with its options as notes."""
        self.session = session
        for name, value in self.options.items():
            self.write_note(name, value)

    def check_file(self, name: str, path: Path, read: Host) -> None:
        """Note the digest of a file of the original.

        Raises
        ------
        InputError
            The session was made from another file, or without this one.
        """
        digest, noted = digest_of(read), self.note(f"{name}.sha256")
        if self.goes_on and noted is None and name != ORIGINAL:
            raise InputError(
                f"{path}: the session {self.path} was made without {name}; omit it, or make another"
            )
        if noted is not None and noted != digest:
            raise InputError(
                f"{path}: is not the {name} that the session {self.path} was made of; give that, or another --session"
            )
        self.write_note(f"{name}.sha256", digest)
        self.write_note(name, str(path.resolve()))

    def refuse(self, given: dict[str, Any], why: str) -> None:
        """Raise InputError if one of these options is given, which a session has from its beginning."""
        named = [
            f"--{name.replace('_', '-')}" for name, value in given.items() if value not in (None, [], False)
        ]
        if named:
            raise InputError(f"{', '.join(named)}: {self.path} {why}; omit it, or give another --session")

    def check_same(self, given: dict[str, Any], kept: dict[str, Any]) -> None:
        """Raise InputError if an option differs from the session in the file."""
        for name, value in given.items():
            if value is not None and value != kept.get(name):
                raise InputError(
                    f"--{name.replace('_', '-')} {value}: the session in {self.path} has {kept.get(name)}; omit it, or "
                    "give another --session"
                )

    def save(self) -> None:
        """Write the session back, or leave the old file whole. Raises CheckpointError."""
        assert self.session is not None
        if not isinstance(self.session, Session):
            with progress_bars() as start:
                bar = start(f"saving {self.path}", None)
                self.session.save(self.path, progress=lambda done, total, name: bar(done, name, total))
        else:
            with bar_without_steps(f"saving {self.path}"):
                self.session.save(self.path)
        size = self.path.stat().st_size
        out.print(
            f"session saved in {self.path}, {megabytes(size)}: {counted(self.session.edits, 'edit')} to "
            f"undo, {self.session.undone} to redo",
            soft_wrap=True,
        )


@contextmanager
def keeping(kept: Kept | None) -> Iterator[None]:
    """Save the session at the end, and also after a failure, with the edits before it."""
    try:
        yield
    except BaseException:  # also an interrupt: the edits before it may have taken long
        if kept is not None and kept.changed:
            kept.save()
        raise
    if kept is not None:
        kept.save()


def note_change(kept: Kept | None) -> None:
    """Mark the session as changed, to be saved."""
    if kept is not None:
        kept.changed = True


def digest_of(read: Host) -> str:
    """SHA-256 of an array: its type, shape and values."""
    digest = hashlib.sha256(f"{read.dtype.str} {read.shape}\n".encode())
    digest.update(np.ascontiguousarray(read).data)
    return digest.hexdigest()
