"""What went wrong, in a line for the user: an exception comes in; one that is a bug of ours has no such line."""

from __future__ import annotations

import errno
import re
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from sparsegen.backends import BackendError
from sparsegen.weights import CheckpointError

from ..errors import InputError, SparsegenError

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None

# compiled and imported beforehand: where there is no memory, there may be none for that either
_ARRAY = re.compile(r"Unable to allocate ([\d.]+ \w+)")
"""NumPy's words for an array that it gets no memory for."""
_SMALLER = {"--original": "a smaller input", "--size": "a smaller --size"}
"""Option -> what may be given to a command that has it, so that it takes less memory."""


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
        near = get_close_matches(word.lower(), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
        raise InputError(f"no command '{word}'; {hint} (see 'sparsegen --help')")


def _no_memory(error: Exception) -> bool:
    """Whether the system gave no memory: for an array, a mapping, a thread's stack or a library that is imported."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "can't start new thread" in str(error))
        # also the loader's words for a library on a disk from which nothing may run
        or (isinstance(error, ImportError) and "failed to map segment" in str(error) and _limit() is not None)
    )


def _memory_message(error: Exception, command: Any) -> str:
    """What is wrong, and which of the command's options help. What the failed calls hold is let go of first."""
    failed: BaseException | None = error
    while failed is not None:
        failed.__traceback__, failed = None, failed.__context__
    array = _ARRAY.match(str(error))
    if array is not None:
        what = f" for {array[1]} more"
    else:
        what = f": {error}" if isinstance(error, MemoryError) and str(error) else ""
    limit = _limit()
    if limit is not None:
        what += f" (ulimit -v leaves this process {limit / 1e9:.2f} GB)"
    options = {name for parameter in getattr(command, "params", ()) for name in parameter.opts}
    smaller = "".join(f"{given}, or " for option, given in _SMALLER.items() if option in options)
    advice = f"give {smaller}the process more memory"
    if "--ram" in options:
        files = "" if limit is None else " (ulimit -v counts its files too)"
        steps = " or fewer --steps" if "--steps" in options else ""
        advice += f"; for diffusion, a budget such as --ram 500MB{files}{steps}"
    return f"not enough memory{what}; {advice}"


def _limit() -> int | None:
    """Bytes of address space that this process may take, where that is limited."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else int(limit)
