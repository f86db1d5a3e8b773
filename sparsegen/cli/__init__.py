"""The command line: arguments and files come in, images and tables go out; a mistake is one line and exit code 2.

Commands: `editing` has demo and edit, implemented in `labels` and `strokes` for label maps and images; `generating`
has generate, `history` undo and redo, `sampling` sample, `explaining` explain, `profiling` profile, `comparing` parity,
`checkpoints` inspect and convert, `machine` backends, warmup and the version. Shared by them: `kept` (sessions in
files), `contents` (what files say about themselves), `options`, `reading`, `job` and `console`. `messages` turns errors
into lines, `streams` survives closed pipes, `help` lays help out for narrow terminals, `starting` keeps starts short.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Annotated, Any

import typer

from .console import print_line
from .help import first_sentence, make_readable
from .messages import check_command, message_of
from .starting import starting
from .streams import lasting_streams

COMMANDS = {
    "demo": "editing",
    "edit": "editing",
    "undo": "history",
    "redo": "history",
    "generate": "generating",
    "sample": "sampling",
    "explain": "explaining",
    "profile": "profiling",
    "parity": "comparing",
    "inspect": "checkpoints",
    "convert": "checkpoints",
    "backends": "machine",
    "warmup": "machine",
}
"""Command -> the module here that has it, which is imported when the command or the list of all is shown or used."""
REPORTS = {"inspect", "profile", "parity", "backends"}
"""Commands whose only result is printed."""


def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, Python and the default backend, and exit.")
    ] = False,
) -> None:
    """Edit an image with a generative model and recompute only what the edit touches."""
    if version:
        from .machine import print_version

        print_version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done, even if standard output was closed or full meanwhile; 1: it was full, and the command only prints;
    2: a user's mistake, or too little memory or disk; 3: parity found a difference; 130: interrupted.
    """
    words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with lasting_streams() as out, warnings.catch_warnings():
        warnings.simplefilter(
            "always", UserWarning
        )  # PYTHONWARNINGS=error must not turn a note into an error
        warnings.showwarning = _print_warning
        code = _run(words)
        if out is not None:
            out.flush()
            if out.failure is not None:
                code = code or int(_prints_alone(words))
                kind = "error" if code else "note"
                print_line(kind, f"standard output: {out.failure.strerror}; what was printed is cut off")
    return code


def _group(names: Iterable[str]) -> Any:
    """The command-line library's object for these commands, with their help laid out."""
    app = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
    app.callback(invoke_without_command=True)(root)
    functions: dict[str, Callable[..., Any]] = {
        name: getattr(import_module(f".{COMMANDS[name]}", __name__), name) for name in names
    }
    for function in functions.values():
        app.command(short_help=first_sentence(function))(function)
    group: Any = typer.main.get_command(app)
    make_readable(group, root)
    for name, function in functions.items():
        make_readable(group.commands[name], function)
    return group


def _run(words: list[str]) -> int:
    named, command = not words[0].startswith("-"), None
    try:
        if named:
            check_command(words[0], list(COMMANDS))
        with starting():
            group = _group(words[:1] if named else COMMANDS)
        command = group.commands.get(words[0])
        return int(group.main(words, prog_name="sparsegen", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        return 130
    except SystemExit as ended:  # how the command-line library ends --show-completion
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception as error:
        # some versions of the command-line library raise an exception of their own for it
        if isinstance(error.__cause__, KeyboardInterrupt):
            return 130
        message = message_of(error, command)
        if message is None:
            raise
        print_line("error", message)
        return 2
    finally:
        gc.unfreeze()


def _prints_alone(words: list[str]) -> bool:
    """Whether the command of these words only prints."""
    return words[0].startswith("-") or words[0] in REPORTS or not {"-h", "--help"}.isdisjoint(words)


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """As a note, without the line of code that Python shows."""
    print_line("note", str(message))
