"""Ways in which a file of a compiled kernel may be damaged: name -> what is done to the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def put_folder(path: Path) -> None:
    path.unlink()
    (path / "with").mkdir(parents=True)
    (path / "with" / "something").write_bytes(b"in it")


def put_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_anothers(path: Path) -> None:
    """The file of the next kernel, which may have the same signature and source."""
    later = sorted(other for other in path.parent.glob("*.nbc") if other > path)
    path.write_bytes(later[0].read_bytes())


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "another kernel's": put_anothers,
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "shorter than its digest": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "its digest alone": lambda path: path.write_bytes(path.read_bytes()[:32]),
    "cut off in the middle": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its last byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "with a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "far too large": lambda path: os.truncate(path, 40 << 30),
    "noise": lambda path: path.write_bytes(os.urandom(5000)),
    "a bit of the digest": lambda path: flip(path, 3),
    "a bit of the code": lambda path: flip(path, path.stat().st_size // 2),
    "a pickle of something else": lambda path: path.write_bytes(b"\x80\x04K\x01."),
    "a folder": put_folder,
    "a broken link": put_link,
}
if hasattr(os, "mkfifo"):
    DAMAGES["a pipe that nobody writes to"] = put_pipe
