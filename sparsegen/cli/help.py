"""The layout of `--help`: a command comes in, and goes out with named types and columns that fit the terminal."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

TYPES = {str: "TEXT", Path: "PATH", int: "INTEGER", float: "FLOAT"}
"""Type -> its name in the help."""
WIDTHS = 20, 100
"""The least and the most columns that are used."""
BESIDE = 30
"""The least columns of a description beside its option; with fewer it is below."""


def first_sentence(command: Callable[..., None]) -> str:
    """A command's description in the list of commands; empty under `python -OO`, which drops docstrings."""
    return (inspect.getdoc(command) or "").partition("\n\n")[0].replace("\n", " ")


def type_name(hint: Any) -> str:
    """`Path | None`, `list[Path]` → PATH; a Literal → its choices."""
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    inner = [each for each in get_args(hint) if each is not type(None)]
    return type_name(inner[0]) if inner else TYPES[hint]


def make_readable(command: Any, function: Callable[..., Any]) -> None:
    """Name the types of a command's values, and lay its help out for narrow terminals too.

    The command-line library names types differently in each version, and has no layout for narrow terminals.
    """
    hints = get_type_hints(function)
    for parameter in command.params:
        hint = hints.get(parameter.name)
        if parameter.metavar is not None:  # given with the option
            continue
        if parameter.param_type_name == "argument":
            parameter.metavar = parameter.name.upper()
            parameter.display_type = lambda *_, **__: None  # some versions name a type beside it
        elif hint is not None and hint is not bool:
            parameter.metavar = type_name(hint)
    context = command.context_class
    columns = type("Columns", (_Columns, context.formatter_class), {})
    command.context_class = type("Context", (context,), {"formatter_class": columns})


class _Columns:
    """The library's formatter, as wide as the terminal, with one column where two would be too narrow."""

    width: int
    current_indent: int
    write: Callable[[str], None]
    write_text: Callable[[str], None]
    indentation: Callable[[], Any]

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        least, most = WIDTHS
        self.width = min(max(shutil.get_terminal_size().columns, least), most) - 2

    def write_dl(self, rows: Sequence[tuple[str, str]], *given: Any, **named: Any) -> None:
        """Write options or commands with their descriptions."""
        if self.width - max(len(first) for first, _ in rows) - 4 >= BESIDE:
            super().write_dl(rows, *given, **named)  # type: ignore[misc]  # the library's formatter
            return
        for first, second in rows:
            self.write(f"{'':>{self.current_indent}}{first}\n")
            with self.indentation(), self.indentation():
                self.write_text(second)
