"""The command line: arguments and files come in, pictures and tables go out; a mistake is one line and exit code 2.

`editing` has demo and edit, which `labels` and `strokes` do for the two kinds of models; `checkpoints` has inspect and
convert, `machine` backends and warmup; `options` and `console` are what they share.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from sparsegen.backends import BackendError
from sparsegen.weights import CheckpointError

from .. import __version__
from ..errors import SparsegenError
from .checkpoints import convert, inspect
from .console import err, out
from .editing import demo, edit
from .history import redo, undo
from .machine import backends, warmup
from .sampling import sample

app = typer.Typer(add_completion=False, rich_markup_mode=None)
for command in (demo, edit, undo, redo, sample, inspect, convert, backends, warmup):
    app.command()(command)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Edit a picture with a generative model and recompute only what the edit touches."""
    if show:
        out.print(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without × shows ?, and the work is not lost
    words = sys.argv[1:] if arguments is None else arguments
    try:
        return int(app(words or ["--help"], standalone_mode=False) or 0)
    except (SparsegenError, CheckpointError, BackendError) as error:
        message = str(error)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except MemoryError:
        message = "not enough memory for this input; give a smaller one"
    except Exception as error:
        # what the command-line library raises for wrong words; its class differs between its versions
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        message = f"{describe()} (see 'sparsegen --help')"
    err.print(f"error: {' '.join(message.split())}", soft_wrap=True)
    return 2
