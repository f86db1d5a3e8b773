"""Items: a counter that threads share comes in, the numbers of the items that one thread takes come out.

A kernel's work is cut into items. Each of its threads takes the next free one until none is left, so it does not matter
how many threads there are, or how long one of them is busy elsewhere. This is every kernel's outermost loop; LLVM
inlines the generators, which leaves the loop that they spell out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .atomics import next_item
from .jit import inline


@inline
def take_items(counter: Any, items: int) -> Iterator[int]:
    """The numbers, of 0 … `items` - 1, that this thread takes."""
    while True:
        item = next_item(counter)
        if item >= items:
            return
        yield item


@inline
def take_tiles(counter: Any, items: int, batch: int, tiles: int) -> Iterator[int]:
    """The same where an item is `batch` of `tiles` tiles (the last item: the rest): the numbers of the tiles."""
    while True:
        item = next_item(counter)
        if item >= items:
            return
        for t in range(item * batch, min((item + 1) * batch, tiles)):  # noqa: UP028  (Numba has no `yield from`)
            yield t
