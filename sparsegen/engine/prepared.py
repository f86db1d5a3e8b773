"""A model's weights as one backend lays them out: made when first needed, shared by all sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Prepared:
    """A model's weights as one backend lays them out, by layer path: made at first use, kept once.

    All sessions of that model and backend share them; sessions may run in several threads at once. `release` is called
    after each, to drop the source of the weights from memory.
    """

    def __init__(self, release: Callable[[], None] = lambda: None) -> None:
        self._release = release
        self._made: dict[tuple[str, Hashable], Any] = {}
        self._lock = threading.Lock()
        self.normed: set[str] = set()
        """Paths of layers whose values a norm measures: known once a dense run has reached the norm."""

    def get(self, path: str, purpose: Hashable, make: Callable[[], T]) -> T:
        """The result of `make()` for this path and purpose, made at the first call.

        Every purpose stays in memory. There are few: the layouts of a convolution's weights, in which sessions of two
        sizes differ only at the lowest resolutions.
        """
        key = (path, purpose)
        if key not in self._made:  # nothing is ever taken out: a hit needs no lock
            with self._lock:  # also while making: two threads must not lay out the same weights twice
                if key not in self._made:
                    self._made[key] = make()
                    self._release()
        made: T = self._made[key]
        return made
