"""Files of compiled kernels: a backend writes machine code to files, and a later process reads it back.

A file begins with a digest of its content, of the kernel's name and of the kernel's source. So a file that is missing,
empty, damaged or another kernel's is a miss: nothing of it is unpickled, and the kernel's next save overwrites it.

The content is code: a user who can write such a file can run code as this user. So a file or folder is used only if
it belongs to this user (or the administrator, who may provide kernels) and no other user may write to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

CACHE_VARIABLE = "SPARSEGEN_CACHE_DIR"
"""Environment variable: the folder of compiled kernels, instead of the user's cache folder."""

LARGEST = 1 << 26
"""Bytes that a file is read up to; a kernel's has less than 1 MB."""


def user_folder() -> Path:
    """Where compiled kernels belong on this system, absolute: `SPARSEGEN_CACHE_DIR`, or the user's cache folder.

    Raises RuntimeError where this user has no home folder.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home().absolute() / "Library" / "Caches" / "sparsegen"
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA", ""))
        return (local if local.is_absolute() else Path.home().absolute() / "AppData" / "Local") / "sparsegen"
    # the XDG specification ignores relative paths
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (caches if caches.is_absolute() else Path.home().absolute() / ".cache") / "sparsegen"


def private_folder() -> Path:
    """This user's folder among temporary files: for kernels that cannot be kept in `user_folder`.

    Raises OSError where there is no folder for temporary files.
    """
    # on Windows, each user has a separate folder for temporary files
    user = "" if sys.platform == "win32" else f"-{os.getuid()}"
    return Path(tempfile.gettempdir()) / f"sparsegen{user}"


@dataclass(frozen=True)
class Folders:
    """Where kernels are looked for, and where new ones are kept."""

    read: tuple[Path, ...]
    """In this order; they need not exist."""
    keep: Path | None
    """None: nowhere."""
    why: str | None
    """Why `keep` does not lie in the user's cache folder; None: it does."""
    spare: Path | None = None
    """Where kernels go that `keep` has no room for; None: nowhere."""

    @property
    def private(self) -> Path | None:
        """`keep` or `spare`, whichever is the one among temporary files."""
        return self.spare if self.why is None else self.keep


def choose(name: str) -> Folders:
    """The folder `name` in `user_folder`, made; where it cannot be written, the one in `private_folder`, not yet made.

    A folder that cannot be written is read all the same where it can be trusted.
    """
    read: tuple[Path, ...] = ()
    try:
        folder = user_folder() / name
    except RuntimeError:
        why: str | None = "this user has no home folder"
    else:
        read, why = (folder,), _unwritable(folder)
    try:
        private = private_folder()
        objection = _private_objection(private) if os.path.lexists(private) else None
    except OSError as error:
        objection = error.strerror or str(error)
    if objection is not None:
        return Folders(read, folder, None) if why is None else Folders(read, None, f"{why}; {objection}")
    both = (*read, private / name)
    return Folders(both, folder, None, private / name) if why is None else Folders(both, private / name, why)


def _unwritable(folder: Path) -> str | None:
    """Why kernels cannot be kept in a folder, which is made; None: they can."""
    try:
        # others may read it: an image may compile kernels as root and run as another user
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        objection = _objection(folder)
        if objection is None:
            tempfile.TemporaryFile(dir=folder).close()
        return objection
    except OSError as error:  # no room, no right, no folder
        return f"{folder} cannot be written: {error.strerror or error}"


def _objection(folder: Path) -> str | None:
    """Why kernels must not be kept in a folder; None: it is this user's, and no other user may write there."""
    if sys.platform == "win32":
        return None
    state = folder.stat()
    if state.st_uid != os.getuid():
        return f"{folder} belongs to another user"
    return f"others may write to {folder}" if _open_to_others(state) else None


def _private_objection(folder: Path) -> str | None:
    """The same for a folder where everybody may leave a link to another place."""
    return f"{folder} is a link" if folder.is_symlink() else _objection(folder)


def _trusted(state: os.stat_result) -> bool:
    """Whether code there may be run: it is this user's or the administrator's, and no other user may write there."""
    return sys.platform == "win32" or (state.st_uid in (0, os.getuid()) and not _open_to_others(state))


def _open_to_others(state: os.stat_result) -> bool:
    return bool(state.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


class KernelFiles:
    """A file for each kernel, in folders that this user can trust.

    Parameters
    ----------
    suffix
        How the files' names end.
    """

    def __init__(self, folders: Folders, suffix: str = ".nbc") -> None:
        self.folders = folders
        self.suffix = suffix
        self.used: set[Path] = set()
        """Folders that kernels were loaded from or saved to."""
        self.kept = folders.keep
        """Where the last kernel was saved, or the first one will be."""
        self.why = folders.why
        """Why a kernel is not kept in the user's cache folder; None: all are."""
        self.lost: str | None = None
        """Why a kernel could not be saved."""

    def load(self, name: str, key: str) -> bytes | None:
        """The content saved under that name and key; None: none, or it is damaged or cannot be trusted."""
        for folder in self.folders.read:
            with contextlib.suppress(OSError):  # no such file, or none that can be read
                content = _unsealed(_read(folder / (name + self.suffix)), name, key)
                if content is not None:
                    self.used.add(folder)
                    return content
        return None

    def save(self, name: str, key: str, content: bytes) -> None:
        """Write a kernel's file, replacing any of its name; `lost` gives the reason where no folder has room."""
        if self.folders.keep is None:
            self.lost = self.folders.why
            return
        failures = []
        for folder in filter(None, (self.folders.keep, self.folders.spare)):
            try:
                self._make(folder)
                _write(folder / (name + self.suffix), _digest(content, name, key) + content)
            except OSError as error:  # no room, no right
                failures.append(f"{folder}: {error.strerror or error}")
            else:
                self.used.add(folder)
                self.kept = folder
                self.why = "; ".join(failures) or self.why
                return
        self.lost = "; ".join(failures)

    def _make(self, folder: Path) -> None:
        if folder == self.folders.private:
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            objection = _private_objection(folder.parent)
            if objection is not None:
                raise PermissionError(objection)
        folder.mkdir(mode=0o755, exist_ok=True)


def _digest(content: bytes, name: str, key: str) -> bytes:
    # of a fixed length, so that no content continues a name or key
    sealed_with = hashlib.sha256(repr((name, key)).encode()).digest()
    return hashlib.sha256(sealed_with + content).digest()


def _unsealed(sealed: bytes, name: str, key: str) -> bytes | None:
    """The content behind its digest; None: it has changed since it was written."""
    size = hashlib.sha256().digest_size
    digest, content = sealed[:size], sealed[size:]
    return content if digest == _digest(content, name, key) else None


def _read(path: Path) -> bytes:
    """The bytes of a regular, trusted file in a trusted folder; else empty, as for a file that is too large."""
    if not (_trusted(path.parent.stat()) and path.is_file()):  # to open a pipe would wait for its writer
        return b""
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        return file.read() if _trusted(state) and state.st_size <= LARGEST else b""


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically: another process may read it at any moment."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}")
    try:
        # this user alone may write it, whatever the process's mask is; others may read it, unless the mask forbids it
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            file.write(content)
        for last in (False, True):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)  # another process may be removing it too
            try:
                part.replace(path)
                break
            except OSError:
                if last:
                    raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def report(text: str, done: int = 0, of: int = 0, *, first: bool = True) -> None:
    """Print a line to stderr. With `of`: a count that a terminal updates in place, and a file gets once."""
    if sys.stderr is None:
        return
    if not of:
        print(f"sparsegen: {text}", file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        print(f"sparsegen: {text}: {done} of {of} … ", end="\r", file=sys.stderr, flush=True)
    elif first:
        print(f"sparsegen: {text} …", file=sys.stderr, flush=True)
