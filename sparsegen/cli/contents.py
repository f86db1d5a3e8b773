"""What our files say about themselves, for `inspect`: a session's file or a PNG comes in, rows of a table go out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsegen.weights import Checkpoint

from .. import images
from ..editing.session_summary import summary
from ..engine.stats import megabytes
from ..errors import InputError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KINDS = {"session": "Session", "sdedit": "SDEdit", "stable_diffusion": "Stable Diffusion"}
_INTERNAL = {"stable_diffusion": ("proposed", "padding", "noise_level")}
"""Kind of a session -> its settings that no user gives."""
_LONGEST = 4000
"""Characters of a text that are printed."""


def is_session(file: Checkpoint) -> bool:
    """Whether a file is a saved session, of whatever version."""
    return "sparsegen.session" in file.metadata


def session_rows(path: Path, file: Checkpoint) -> list[tuple[str, str]]:
    """The rows of a session's file. Raises SessionError: it is of another version, or damaged."""
    found = summary(path, file)
    n, height, width = found.size
    hidden = _INTERNAL.get(found.kind, ())
    return [
        ("session", _KINDS.get(found.kind, _plain(found.kind))),
        *((_plain(name), _plain(family)) for name, family in found.models.items()),
        *_setting_rows({name: value for name, value in found.settings.items() if name not in hidden}),
        ("policy", _plain(found.policy)),
        ("image", f"{n} of {height}×{width}"),
        ("states", f"{found.states}, kept as {_plain(found.storage)}"),
        ("edits", f"{found.edits} to undo, {found.undone} to redo, {found.forgotten} forgotten"),
        ("weights", megabytes(found.weights_bytes)),
        ("canvases", megabytes(found.canvas_bytes)),
        ("journals", megabytes(found.journal_bytes)),
    ]


def is_png(path: Path) -> bool:
    """Whether a file begins as a PNG."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_SIGNATURE)) == _SIGNATURE
    except OSError:  # said where it is opened as a checkpoint
        return False


def png_rows(path: Path) -> list[tuple[str, str]]:
    """The size of a PNG, and the settings that it was made with.

    Raises
    ------
    InputError
        It is damaged, or has no settings.
    """
    file = images.read_file(path)
    height, width = file.size
    rows = [("format", "PNG"), ("size", f"{height}×{width}")]
    try:
        settings = json.loads(file.texts.get("sparsegen", "null"))
    except (ValueError, RecursionError):
        settings = None
    if isinstance(settings, dict):
        return [*rows, *_setting_rows({name: value for name, value in settings.items() if name != "size"})]
    if "parameters" in file.texts:  # of another program
        lines = file.texts["parameters"].splitlines()
        return [*rows, *(("parameters", _plain(line)) for line in lines)]
    raise InputError(
        f"{path}: an image without settings; expected a PNG that sparsegen edit, generate or sample wrote (programs "
        "that save it again may drop them)"
    )


def _setting_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row for each setting that has a value; a prompt in full."""
    return [
        (_plain(str(name)).replace("_", " "), _text(value))
        for name, value in settings.items()
        if value not in (None, "")
    ]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return _plain(value)
    try:
        return _plain(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError):
        return "nested too deep to be shown"


def _plain(text: str) -> str:
    """A text of a file on one line, safe to print: what is not printable is escaped."""
    cut = text[:_LONGEST]
    safe = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in cut)
    return safe + "…" * (len(text) > _LONGEST)
