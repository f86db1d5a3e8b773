"""Error messages: an exception comes in, a line for the user goes out; an exception that is our bug has none."""

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

# compiled and imported now: an error about memory may leave too little for it
_ARRAY = re.compile(r"Unable to allocate ([\d.]+ \w+)")
"""NumPy's message for an array that cannot be allocated."""
_SMALLER = {"--original": "a smaller input", "--size": "a smaller --size"}
"""Option -> the advice of a command that has it, to take less memory."""


def message_of(error: Exception, command: Any) -> str | None:
    """The line for an error of `command` (the command-line library's object); None: the error is a bug."""
    if _no_memory(error) and not isinstance(
        error, BackendError
    ):  # a card's memory is no matter of the process
        return _memory_message(error, command)
    if isinstance(error, (SparsegenError, CheckpointError, BackendError)):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    # the command-line library's error for wrong arguments, whose class differs between its versions
    describe = getattr(error, "format_message", None)
    if describe is None:
        return None
    context = getattr(error, "ctx", None)
    path = f"sparsegen {command.name}" if command is not None else "sparsegen"
    if context is not None:
        path = context.command_path
    return f"{describe()} (see '{path} --help')"


def check_command(word: str, known: list[str]) -> None:
    """Raise InputError, which names the nearest command, if `word` is none."""
    if word not in known:
        near = get_close_matches(word.lower(), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        raise InputError(f"unknown command '{word}'; {hint} (see 'sparsegen --help')")


def _no_memory(error: Exception) -> bool:
    """Whether the system refused memory: for an array, a mapping, a thread's stack or an imported library."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "can't start new thread" in str(error))
        # Python's own message where an allocation fails while it imports
        or (isinstance(error, SystemError) and _limit() is not None)
        # the loader's message too for a library on a disk mounted noexec, hence the limit
        or (isinstance(error, ImportError) and "failed to map segment" in str(error) and _limit() is not None)
    )


def _memory_message(error: Exception, command: Any) -> str:
    """The line for too little memory, with the options that help. The failed calls' frames are freed first."""
    failed: BaseException | None = error
    while failed is not None:
        failed.__traceback__, failed = None, failed.__context__
    array = _ARRAY.match(str(error))
    if array is not None:
        problem = f" for {array[1]} more"
    else:
        problem = f": {error}" if isinstance(error, MemoryError) and str(error) else ""
    limit = _limit()
    if limit is not None:
        problem += f" (ulimit -v leaves this process {limit / 1e9:.2f} GB)"
    options = {name for parameter in getattr(command, "params", ()) for name in parameter.opts}
    smaller = "".join(f"{given}, or " for option, given in _SMALLER.items() if option in options)
    advice = f"give {smaller}the process more memory"
    if "--ram" in options:
        files = "" if limit is None else " (ulimit -v counts its files too)"
        steps = " or fewer --steps" if "--steps" in options else ""
        advice += f"; for diffusion, a budget such as --ram 500MB{files}{steps}"
    return f"not enough memory{problem}; {advice}"


def _limit() -> int | None:
    """The limit of this process's address space in bytes; None: there is none."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else int(limit)
