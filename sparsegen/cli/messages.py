"""What went wrong, in a line for the user: an exception comes in; one that is a bug of ours has no such line."""

from __future__ import annotations

import errno
import re
from difflib import get_close_matches
from typing import Any

from sparsegen.backends import BackendError
from sparsegen.weights import CheckpointError

from ..errors import InputError, SparsegenError


def message_of(error: Exception, command: Any) -> str | None:
    """The line for an error of the command (the command-line library's object) that the user gave; None: a bug."""
    if _no_memory(error):
        return _memory_message(error, command)
    if isinstance(error, (SparsegenError, CheckpointError, BackendError)):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    # what the command-line library raises for wrong words; its class differs between its versions
    describe = getattr(error, "format_message", None)
    if describe is None:
        return None
    context = getattr(error, "ctx", None)
    path = f"sparsegen {command.name}" if command is not None else "sparsegen"
    if context is not None:
        path = context.command_path
    return f"{describe()} (see '{path} --help')"


def check_command(word: str, known: list[str]) -> None:
    """Raise InputError for a command that there is none of; it names the nearest."""
    if word not in known:
        near = get_close_matches(word, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
        raise InputError(f"no command '{word}'; {hint} (see 'sparsegen --help')")


def _no_memory(error: Exception) -> bool:
    """Whether the system gave no memory: for an array, a mapping or a thread's stack."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "can't start new thread" in str(error))
    )


def _memory_message(error: Exception, command: Any) -> str:
    asked = re.match(r"Unable to allocate ([\d.]+ \w+)", str(error))  # NumPy's words
    if asked is not None:
        what = f" for {asked[1]} more"
    else:
        what = f": {error}" if isinstance(error, MemoryError) and str(error) else ""
    limit = _limit()
    if limit is not None:
        what += f" (ulimit -v leaves this process {limit / 1e9:.2f} GB)"
    advice = "give a smaller input, or the process more memory"
    if any("--cache" in parameter.opts for parameter in getattr(command, "params", ())):
        files = "" if limit is None else ", whose files ulimit -v counts too,"
        advice += f"; for diffusion, a budget such as --cache 500MB{files} or fewer --steps"
    return f"not enough memory{what}; {advice}"


def _limit() -> int | None:
    """Bytes of address space that this process may take, where that is limited."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit
