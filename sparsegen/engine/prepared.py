"""A model's weights as one backend lays them out: made when first needed, shared by all sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Prepared:
    """A model's weights as one backend lays them out, by layer path: made when first asked for, kept once.

    All sessions of that model and backend share them; sessions may run in several threads at once. `release` is called
    after each: what the weights were read from need not stay in memory.
    """

    def __init__(self, release: Callable[[], None] = lambda: None) -> None:
        self._release = release
        self._made: dict[tuple[str, Hashable], Any] = {}
        self._lock = threading.Lock()

    def get(self, path: str, purpose: Hashable, make: Callable[[], T]) -> T:
        """What `make()` gave for this path and purpose.

        Purposes are few, and all that were asked for stay: the layouts of a convolution's weights, of which sessions of
        two sizes use different ones for the lowest resolutions alone.
        """
        key = (path, purpose)
        if key not in self._made:  # nothing is ever taken out: a hit needs no lock
            with self._lock:  # also while making: two threads must not lay out the same weights twice
                if key not in self._made:
                    self._made[key] = make()
                    self._release()
        made: T = self._made[key]
        return made
