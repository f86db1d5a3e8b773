"""Commands that undo and redo edits of a saved session: its file comes in, the image after the step goes out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsegen.backends import get_backend

from .. import images
from ..errors import SessionError
from .console import check_writable, out, print_table
from .kept import ORIGINAL, Kept
from .options import CacheFolderOption, RamOption, check_memory

SessionFile = Annotated[Path, typer.Option("--session", help="The session's file; it is saved again.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write the image as it is then, as PNG.")]


def undo(
    session: SessionFile,
    output: Output = None,
    ram: RamOption = None,
    cache_folder: CacheFolderOption = None,
) -> None:
    """Take back the last edit of a saved session."""
    _walk("undo", session, output, ram, cache_folder)


def redo(
    session: SessionFile,
    output: Output = None,
    ram: RamOption = None,
    cache_folder: CacheFolderOption = None,
) -> None:
    """Make again the last edit of a saved session that was taken back."""
    _walk("redo", session, output, ram, cache_folder)


def _walk(call: str, path: Path, output: Path | None, ram: str | None, folder: Path | None) -> None:
    if not path.exists():
        raise SessionError(f"{path}: no such file; sparsegen edit --session {path} makes it")
    check_writable(path)
    if output is not None:
        check_writable(output, suffix=".png", inputs=[path])
    check_memory(ram=ram)
    kept = Kept.open(path, get_backend(None), ram, folder)
    session, original = kept.session, kept.note(ORIGINAL)
    assert session is not None
    if output is not None and isinstance(original, str):
        check_writable(output, inputs=[Path(original)])
    result = session.undo() if call == "undo" else session.redo()
    if output is not None:
        images.write_png(output, result.image)
        out.print(f"image written to {output}", soft_wrap=True)
    tiles = f"{result.active.count} of {result.active.total}"
    print_table(f"{call} {path}", [("tiles put back", tiles), *result.stats.memory()])
    kept.save()
