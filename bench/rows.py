"""A CSV that grows row by row: rows come in and are written at once, each once; a run that was cut off can go on.

A row is known by the columns of its key. A line that was cut off half-way is removed when the file is opened again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsegen.errors import InputError

Row = dict[str, Any]
"""Column -> value: text, a number, or None (an empty cell)."""


class Rows:
    """The rows of one CSV; `key` are the first columns.

    Parameters
    ----------
    path
        The file; it is made with its first row.
    key, values
        The columns.

    Raises
    ------
    InputError
        The file has other columns, or a damaged line that is not the last.
    """

    def __init__(self, path: Path, key: Sequence[str], values: Sequence[str]) -> None:
        self.path, self.key, self.columns = path, tuple(key), (*key, *values)
        self.mended = False
        """Whether a line that was cut off was removed."""
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        """Key -> cells, of every row in the file."""
        if path.exists():
            self._open()

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self.rows

    def key_of(self, row: Row) -> tuple[str, ...]:
        return tuple(_cell(row[column]) for column in self.key)

    def add(self, row: Row) -> bool:
        """Append a row; False: it is there already. Raises OSError: the file could not be written."""
        key = self.key_of(row)
        if key in self.rows:
            return False
        cells = {column: _cell(row[column]) for column in self.columns}
        lines = [cells.values()] if self.rows else [self.columns, cells.values()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab" if self.rows else "wb") as file:
            file.write("".join(map(_line, lines)).encode())  # one write: whole, or cut off at its end
        self.rows[key] = cells
        return True

    def _open(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole and whole.splitlines()[0].decode("utf-8", "replace") != _line(self.columns).rstrip("\n"):
            raise InputError(
                f"{self.path}: its columns are not those of this command's rows; name another file (-o)"
            )
        if not whole and content and not _line(self.columns).encode().startswith(content):
            raise InputError(f"{self.path}: is no CSV of this command; name another file (-o)")
        if whole != content:
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
            self.mended = True
        for number, cells in enumerate(csv.reader(io.StringIO(whole.decode())), start=1):
            if number == 1:
                continue
            if len(cells) != len(self.columns):
                raise InputError(
                    f"{self.path}, line {number}: {len(cells)} cells, expected {len(self.columns)}; "
                    "remove the line, and it is computed again"
                )
            row = dict(zip(self.columns, cells, strict=True))
            self.rows[self.key_of(row)] = row


def _line(cells: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _cell(value: Any) -> str:
    """Numbers with six digits; no line breaks, by which lines are told apart."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split("\n"))
