"""What stands in for objects of a pickle that are not built: names, foreign objects, skipped values, tuple keys.

None of them holds anything that runs, and each is hashed by its identity or by text of bounded length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import CheckpointError
from ..limits import SAVE_ALONE


@dataclass(eq=False, frozen=True, slots=True)
class Global:
    """The stand-in for a name. `call` is what REDUCE and NEWOBJ do with it; without one they are refused.

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
    """An object of a foreign class: it holds nothing and does nothing; its presence is noted."""

    name: str


@dataclass(eq=False, frozen=True, slots=True)
class Skipped:
    """Values that were passed over: a long text (each its own stand-in), or many plain values in a row."""

    name: str = "a long text or array"


MANY_VALUES = Skipped("a long list of plain values")


@dataclass(frozen=True, slots=True)
class TupleKey:
    """A tuple as the key of a dict, by its text: Python's hash of a tuple of numbers can be chosen by a file."""

    text: str


_MOST_PARTS, _LONGEST_PART, _DEEPEST_KEY = 16, 256, 3


def tuple_key(key: tuple[object, ...], number: int) -> TupleKey:
    """The key that stands in for a tuple of strings, numbers, stand-ins, and such tuples.

    Parameters
    ----------
    key : tuple
        As the pickle has it.
    number : int
        Another one for each key: it tells those apart whose text does not, as stand-ins and long strings are in them.

    Raises
    ------
    CheckpointError
        For a tuple of more than 16 parts, or nested more than three deep, or with a part that is no key itself.
    """
    parts = 0
    alike = False

    def text(item: object, depth: int) -> str:
        nonlocal parts, alike
        parts += 1
        if parts > _MOST_PARTS or depth > _DEEPEST_KEY:
            raise CheckpointError(
                f"a dict has a tuple as key of more than {_MOST_PARTS} parts or {_DEEPEST_KEY} levels",
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

    said = text(key, 0)
    return TupleKey(f"{said}[{number}]" if alike else said)


_PLAINLY = {"list": "list or set", "dict": "dict"}
