"""Regions of scratch: the floats that each takes come in, their offsets and the size of all come out.

Every algorithm has a `layout` function, which lays its regions out and returns a named tuple of offsets, of steps, and
of the `size` of the whole. Its launch gives each thread `size` floats and passes the same tuple to the kernel. So a
region's size is written in one place, beside a table of the regions. Offsets and sizes count floats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from numba import types

from .gemm import LINE
from .simd import WIDTH
from .sizes import round_up

SCRATCH = types.float32[::1]
"""Numba's type of scratch."""

F = TypeVar("F", bound=Callable[..., Any])

OVERRUN = WIDTH
"""Floats behind a region that whole vectors may be loaded from or stored to, where its rows do not fill vectors."""


class Regions:
    """Lays out regions one behind the other."""

    def __init__(self) -> None:
        self.size = 0
        """Floats of all regions so far."""

    def add(self, floats: int) -> int:
        """Where a region of that many floats begins: at a cache line."""
        start = round_up(self.size, LINE)
        self.size = start + floats
        return start


def layout_type(layout: Any) -> Any:
    """Numba's type of a layout: a named tuple of integers."""
    return types.NamedUniTuple(types.int64, len(layout._fields), layout)


def remembered(layout: F) -> F:
    """A layout function whose results are cached: every launch needs one, and most need the same."""
    kept: Any = lru_cache(maxsize=1024)(layout)
    return kept  # type: ignore[no-any-return]  # an F, with a cache
