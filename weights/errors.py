"""The error for every fault of a checkpoint, and names from untrusted files made safe to print."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, does not fit, or could not be written.

    Parameters
    ----------
    problem : str
        The fault, as a sentence without its subject (the file) and full stop.
    path : str
        The file. Readers below `read_checkpoint` omit it; `read_checkpoint` fills it in.
    where : str
        The place inside the file: an archive entry, a byte, a tensor's name.
    advice : str
        The fix, as a sentence without its full stop.
    """

    def __init__(self, problem: str, *, path: str = "", where: str = "", advice: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path
        self.where = where
        self.advice = advice

    def __str__(self) -> str:
        message = ": ".join(part for part in (self.path, self.where, self.problem) if part)
        if not self.advice:
            return message
        # After a message of several lines (the lists of a key map) the advice has a line of its own.
        return f"{message}\n  {self.advice}." if "\n" in message else f"{message}. {self.advice}."


def shown(text: object, limit: int = 80) -> str:
    """A name from an untrusted file, safe to print: one line, ASCII, at most `limit` characters.

    A hostile file can name a tensor with terminal escape sequences, or with a megabyte of text.
    """
    if not isinstance(text, (str, bytes)):
        # No repr() of a value from a file: nested a million deep, it would exhaust the stack.
        if isinstance(text, (list, tuple)) and not any(
            isinstance(each, (list, tuple)) for each in text[:100]
        ):
            return ", ".join(shown(each, limit) for each in text[:100]) + ", ..." * (len(text) > 100)
        return str(text) if isinstance(text, (int, float, bool)) else type(text).__name__
    if isinstance(text, bytes):
        text = text[: limit + 1].decode("latin-1")
    safe = ascii(text[: limit + 1])[1:-1]
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."


def listed(items: list[str], limit: int = 8) -> str:
    """`items` joined by commas; of a long list the first `limit`, and the number of the others."""
    head = ", ".join(items[:limit])
    return head if len(items) <= limit else f"{head}, and {len(items) - limit} more"
