"""The stack of a pickle that is read: values in; groups of them out, or one stand-in for a long group without tensors.

A group is plain if nothing in it is `held`: no tensor, and no container with one. Of a plain group with too many values
none is kept, of one that takes too many bytes no containers. Their cost is refunded to the budget, unless the pickle
refers to something in the group again.
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

from ..errors import CheckpointError
from ..limits import KEPT_BYTES, KEPT_VALUES, Budget
from ..tensor import Layout, Storage
from .operands import DAMAGED, TEXT_COST, Operands
from .stand_ins import MANY_VALUES, Placeholder

SLOT = 48
"""Bytes that a slot of the stack takes, with a small number in it."""
ENTRY = 104
"""Bytes that an entry of a dict takes."""
MARK = 112
"""Bytes that an open group takes."""

WEIGHTY = (list, dict, tuple, Layout, Storage)
"""Types of values that are or may hold tensors."""


class Mark(NamedTuple):
    """The start of an open group on the stack, and the state of the machine's counters at that time."""

    start: int
    bytes_left: int
    held: int
    remembered: int
    retained: int


NO_MARK = Mark(0, 0, 0, 0, 0)


class Stack(Operands):
    """The values of one pickle, and its open groups.

    Attributes
    ----------
    held : int
        Tensors, storages and containers with them that were met.
    remembered : int
        Values of any size that the memo keeps.
    retained : int
        Bytes of values that are kept outside the stack.
    whole : bool
        Whether every value is built, long lists too.
    """

    def __init__(self, buffer: mmap.mmap, start: int, end: int, budget: Budget, *, whole: bool) -> None:
        super().__init__(buffer, start, end, budget)
        self.whole = whole
        self.clear()

    def clear(self) -> None:
        """Begin a pickle: no values, no groups."""
        self.stack: list[object] = []
        self.marks: list[Mark] = []
        self.held = self.remembered = self.retained = 0

    def mark(self) -> None:
        """Open a group."""
        mark = Mark(len(self.stack), self.budget.bytes_left, self.held, self.remembered, self.retained)
        self.budget.take(MARK)
        self.marks.append(mark)

    def pop(self) -> object:
        """Take the last value of the open group. Raises CheckpointError where it has none."""
        if len(self.stack) <= (self.marks[-1].start if self.marks else 0):
            raise CheckpointError("the pickle takes a value from an empty stack", advice=DAMAGED)
        return self.stack.pop()

    def top(self) -> object:
        """The last value of the open group. Raises CheckpointError where it has none."""
        if len(self.stack) <= (self.marks[-1].start if self.marks else 0):
            raise CheckpointError("the pickle looks at an empty stack", advice=DAMAGED)
        return self.stack[-1]

    def pop_mark(self) -> list[object]:
        """Close the open group and take all its values. Raises CheckpointError where no group is open."""
        if not self.marks:
            raise CheckpointError("the pickle closes a group that it never opened", advice=DAMAGED)
        start = self.marks.pop().start
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop_group(self, *, step: int = 1) -> list[object]:
        """Close a group that fills a container, and take the items that are kept.

        Of a plain group with too many values none is kept, of one with too many bytes no containers. `step` is 2 for
        keys and values.
        """
        mark = self.marks[-1] if self.marks else NO_MARK
        spent = mark.bytes_left - self.budget.bytes_left
        items = self.pop_mark()
        if mark.held != self.held or self.whole or len(items) % step:
            return items
        if len(items) > KEPT_VALUES:
            passed_over: list[object] = [MANY_VALUES, None] if step == 2 else [MANY_VALUES]
            if step == 2:
                # One object of many is kept with its key, so that its class can be reported.
                at = next((i for i in range(1, len(items), 2) if type(items[i]) is Placeholder), None)
                passed_over += [] if at is None else items[at - 1 : at + 1]
            items = passed_over
        elif spent > KEPT_BYTES:
            for index in range(step - 1, len(items), step):
                if type(items[index]) in WEIGHTY:
                    items[index] = MANY_VALUES
        else:
            return items
        texts = sum(TEXT_COST + 4 * len(item) for item in items if isinstance(item, (str, bytes)))
        self.give_back(mark, ENTRY * len(items) + texts)
        return items

    def pop_group_for_top(self, *, step: int = 1) -> list[object]:
        """`pop_group` of items that fill the container below them; a placeholder keeps none."""
        mark = self.marks[-1] if self.marks else None
        items = self.pop_group(step=step)
        if mark is not None and mark.held == self.held and type(self.top()) is Placeholder:
            self.give_back(mark, 0)
        return items

    def thin_out(self) -> None:
        """When the budget runs out: drop the values of an open group that is plain and far too long to be kept.

        Tuples and frozen sets come as one group of any length. The number of values left is too many to be kept, and
        even if it was even.
        """
        mark = self.marks[-1] if self.marks else None
        if mark is None or mark.held != self.held or self.whole:
            return
        count = len(self.stack) - mark.start
        if count > 4 * KEPT_VALUES:
            left = KEPT_VALUES + 1 + (KEPT_VALUES + 1 - count) % 2
            self.stack[mark.start :] = [MANY_VALUES] * left
            self.give_back(mark, MARK + SLOT * left)

    def give_back(self, mark: Mark, cost: int) -> None:
        """Refund the bytes that were taken since `mark`, but for `cost` bytes of values that are kept."""
        if mark.remembered == self.remembered:
            left = mark.bytes_left - (self.retained - mark.retained) - cost
            self.budget.bytes_left = max(self.budget.bytes_left, left)
