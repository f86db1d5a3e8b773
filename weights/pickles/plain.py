"""A value of a pickle in; whether it holds no tensor, out."""

from __future__ import annotations

from ..limits import Budget
from ..tensor import Layout, Storage

_LOOK_COST = 128

_CONTAINERS = (list, dict, tuple)


class Plainness:
    """A test for values without tensors. Each container is searched once, however often it is referred to."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        # The containers are kept, so that no other one gets their identity.
        self._known: dict[int, tuple[object, bool]] = {}

    def __call__(self, value: object) -> bool:
        """Whether `value` is not a tensor or storage, and holds none. Raises CheckpointError: the budget is spent."""
        if type(value) not in _CONTAINERS:
            return type(value) not in (Layout, Storage)
        seen: dict[int, tuple[object, bool]] = {}
        open_ones = [value]
        while open_ones:
            each = open_ones.pop()
            known = self._known.get(id(each))
            if known is None and id(each) not in seen:
                assert isinstance(each, _CONTAINERS)
                self._budget.take(_LOOK_COST + 8 * len(each))
                seen[id(each)] = each, True
                inside = each.values() if isinstance(each, dict) else each
                open_ones += [item for item in inside if type(item) in _CONTAINERS]
                plain = not any(type(item) in (Layout, Storage) for item in inside)
            else:
                plain = known is None or known[1]
            if not plain:
                self._known[id(value)] = value, False
                return False
        self._known |= seen
        return True
