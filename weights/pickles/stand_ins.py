"""Stand-ins for objects of a pickle that are not built: names, foreign objects, skipped values, tuple keys.

None holds anything that runs, and each is hashed by its identity or by a text of bounded length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import CheckpointError
from ..limits import SAVE_ALONE


@dataclass(eq=False, frozen=True, slots=True)
class Global:
    """The stand-in for a name. REDUCE and NEWOBJ run `call`; without one they are refused.

    A `narrow` name (getattr, type, functools.partial) is harmless in one kind of call only: a pickle that names it
    and never makes that call is refused.
    """

    name: str
    call: Callable[[tuple[object, ...]], object] | None = None
    storage: str | None = None
    dtype: str | None = None
    tensor_type: bool = False
    narrow: bool = False


@dataclass(eq=False, frozen=True, slots=True)
class Placeholder:
    """The stand-in for an object of a foreign class: its name alone."""

    name: str


@dataclass(eq=False, frozen=True, slots=True)
class Skipped:
    """The stand-in for skipped values: a long text (one stand-in each), or many plain values in a row."""

    name: str = "a long text or array"


MANY_VALUES = Skipped("a long list of plain values")


@dataclass(frozen=True, slots=True)
class TupleKey:
    """A tuple as the key of a dict, by its text: a file could choose tuples of numbers that share one hash."""

    text: str


_MOST_PARTS, _LONGEST_PART, _DEEPEST_KEY = 16, 256, 3


def tuple_key(key: tuple[object, ...], number: int) -> TupleKey:
    """The stand-in for a key that is a tuple of strings, numbers, stand-ins, and such tuples.

    Parameters
    ----------
    key : tuple
        The tuple in the pickle.
    number : int
        A different one for each key: distinguishes keys with the same text (of stand-ins and long strings).

    Raises
    ------
    CheckpointError
        The tuple has more than 16 parts, is nested more than three deep, or a part cannot be a key.
    """
    parts = 0
    alike = False

    def text(item: object, depth: int) -> str:
        nonlocal parts, alike
        parts += 1
        if parts > _MOST_PARTS or depth > _DEEPEST_KEY:
            raise CheckpointError(
                f"a dict has a tuple of more than {_MOST_PARTS} parts or {_DEEPEST_KEY} levels as key",
                advice=SAVE_ALONE,
            )
        if isinstance(item, tuple):
            inner = ", ".join([text(each, depth + 1) for each in item])
            return f"({inner},)" if len(item) == 1 else f"({inner})"
        if isinstance(item, (str, bytes)):
            alike = alike or len(item) > _LONGEST_PART
            return ascii(item[:_LONGEST_PART])
        if item is None or isinstance(item, (int, float)):
            return repr(item)
        if isinstance(item, (Global, Placeholder, Skipped)):
            alike = True
            return item.name
        raise CheckpointError(
            f"a dict has a tuple as key that holds a {_PLAINLY.get(type(item).__name__, 'tensor')},"
            " expected strings, numbers and tuples of them",
            advice=SAVE_ALONE,
        )

    spelled = text(key, 0)
    return TupleKey(f"{spelled}[{number}]" if alike else spelled)


_PLAINLY = {"list": "list or set", "dict": "dict"}
