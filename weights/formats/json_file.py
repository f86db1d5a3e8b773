"""A path in; the JSON object in that small file out, links followed, its size bounded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, shown
from ..mapped import MappedFile

LONGEST = 1 << 16
"""Bytes. A model's configuration takes about 1000."""


def read_json(path: Path, longest: int = LONGEST) -> dict[str, Any]:
    """The object in a file. Raises CheckpointError: it is no object, longer than that, or cannot be read."""
    file = MappedFile(followed(path))
    try:
        if file.size > longest:
            raise CheckpointError(f"has {file.size} bytes, at most {longest} are read", path=str(path))
        try:
            found = json.loads(file.bytes[:].decode("utf-8"))
        except (ValueError, RecursionError):
            found = None
    finally:
        file.close()
    if not isinstance(found, dict):
        raise CheckpointError("is not a JSON object", path=str(path), advice="Download or copy it again")
    return found


def there(path: Path) -> bool:
    """Whether a path exists, or is a link, even to nothing."""
    return os.path.lexists(path)


def followed(path: Path) -> Path:
    """`path`, unless it or its folder is a link to a file that does not exist. Raises CheckpointError."""
    for link in (path.parent, path):
        if link.is_symlink() and not os.path.exists(os.path.realpath(link)):
            raise CheckpointError(
                f"is a link to {shown(os.readlink(link))}, which does not exist",
                path=str(link),
                advice="Download or copy the folder again",
            )
    return path
