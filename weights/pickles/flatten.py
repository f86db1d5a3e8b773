"""The object of a pickle in; its tensors and plain values by dotted name out."""

from __future__ import annotations

from ..errors import CheckpointError, shown
from ..limits import MAX_DEPTH, MAX_ENTRIES, SAVE_ALONE, Budget
from ..tensor import Layout
from .plain import Plainness
from .refused_names import PLAIN, WHOLE
from .stand_ins import MANY_VALUES, Global, Placeholder, Skipped, TupleKey

Scalar = str | int | float | bool | None

_VISIT_COST = 130


class Flat:
    """The leaves of a checkpoint: tensors, the plain values beside them, and the values that were skipped.

    `stand_ins` maps the dotted names of objects to their classes.

    Raises CheckpointError for a root that holds no tensors and is not a dict: an object pickled whole, or a text.
    """

    def __init__(self, root: object, budget: Budget) -> None:
        self.tensors: dict[str, Layout] = {}
        self.values: dict[str, Scalar] = {}
        self.placeholders: dict[str, None] = {}
        self.stand_ins: dict[str, str] = {}
        self._budget = budget
        self._visits = 0
        self._is_plain = Plainness(budget)
        self._open: set[int] = set()
        if isinstance(root, Layout):
            self.tensors["tensor"] = root
        else:
            self._visit("", root)
        if not self.tensors and type(root) is not dict:
            foreign = isinstance(root, (Global, Placeholder))
            raise CheckpointError(
                f"holds {_kind(root)} and no tensors, expected a dict of tensors",
                advice=WHOLE if foreign else PLAIN,
            )

    def _visit(self, name: str, value: object) -> None:
        self._visits += 1
        if self._visits > MAX_ENTRIES:
            if not self._is_plain(value):
                raise CheckpointError(
                    f"the file has more than {MAX_ENTRIES} entries when flattened, with tensors among the last",
                    advice=SAVE_ALONE,
                )
            self.placeholders[MANY_VALUES.name] = None
            return
        self._budget.take(_VISIT_COST + 4 * len(name))
        kind = type(value)
        if kind is Layout:
            if name in self.tensors:
                raise CheckpointError(
                    "two tensors have the same dotted name", where=shown(name), advice=SAVE_ALONE
                )
            self.tensors[name] = value  # type: ignore[assignment]  # a Layout, by its kind
        elif kind is dict or kind is list or kind is tuple:
            self._enter(name, value)
        elif kind in (str, int, float, bool, type(None)):
            self.values[name] = value  # type: ignore[assignment]  # a scalar, by its kind
        elif kind is Placeholder or kind is Global or kind is Skipped:
            self.placeholders[value.name] = None  # type: ignore[attr-defined]  # a stand-in, by its kind
            if kind is Placeholder:
                self.stand_ins[name] = value.name  # type: ignore[attr-defined]  # likewise
        # Bytes and bare storages are neither tensors nor plain values: ignored.

    def _enter(self, name: str, container: object) -> None:
        assert isinstance(container, (dict, list, tuple))
        if id(container) in self._open:
            raise CheckpointError("a container holds itself", where=shown(name), advice=SAVE_ALONE)
        if len(self._open) >= MAX_DEPTH:
            raise CheckpointError(
                f"containers are nested more than {MAX_DEPTH} deep", where=shown(name), advice=SAVE_ALONE
            )
        self._open.add(id(container))
        prefix = name + "." if name else ""
        if isinstance(container, dict):
            alike: dict[str, int] = {}
            for key, value in container.items():
                word = _word(key)
                if isinstance(key, (Global, Placeholder, Skipped)):
                    # Two objects of one class are two keys, and have two names.
                    count = alike[word] = alike.get(word, 0) + 1
                    word += f"[{count}]" if count > 1 else ""
                self._visit(prefix + word, key if key is MANY_VALUES else value)
        else:
            for index, value in enumerate(container):
                self._visit(f"{prefix}{index}", value)
        self._open.discard(id(container))


def _word(key: object) -> str:
    if isinstance(key, (Global, Placeholder, Skipped)):
        return key.name
    if isinstance(key, TupleKey):
        return key.text
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


def _kind(root: object) -> str:
    """The name of a root in an error."""
    if isinstance(root, (Global, Placeholder, Skipped)):
        return shown(root.name)
    return f"a {type(root).__name__}"
