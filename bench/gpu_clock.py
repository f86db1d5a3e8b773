"""Two clocks: a call comes in, its time on the host and on the card come out.

The host's clock runs from the call to its result in main memory. The card's is CUDA's events: around the graphs that
the call launches, if it launches any, so that gaps in which the card waits for Python do not count; else around the
whole call. Both engines are timed by these rules.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """Milliseconds of one call."""

    wall: float
    device: float | None
    """None: there is no card."""
    graphs: int
    """How many graphs the call launched."""


class Clock:
    """The clocks of one engine.

    Parameters
    ----------
    event
        `event()` records an event in the queue, and returns it; None: there is no card.
    elapsed
        `elapsed(first, second)` is the milliseconds between two events that have passed.
    wait
        Waits until the queue is empty.
    """

    def __init__(
        self,
        event: Callable[[], Any] | None = None,
        elapsed: Callable[[Any, Any], float] = lambda first, second: 0.0,
        wait: Callable[[], Any] = lambda: None,
    ) -> None:
        self._event, self._elapsed, self._wait = event, elapsed, wait
        self._graphs: list[tuple[Any, Any]] = []
        self._launched = 0

    @contextmanager
    def graph(self) -> Iterator[None]:
        """The launch of a graph."""
        first = self._event() if self._event else None
        yield
        self._launched += 1
        if self._event:
            self._graphs.append((first, self._event()))

    def taken(self) -> tuple[float | None, int]:
        """Milliseconds of the graphs launched since this was called last, and their number. Waits."""
        self._wait()
        graphs, launched = self._graphs, self._launched
        self._graphs, self._launched = [], 0
        return sum(self._elapsed(*events) for events in graphs) if graphs else None, launched

    def time(self, call: Callable[[], Any]) -> Sample:
        """Time one call."""
        self.taken()
        first = self._event() if self._event else None
        start = time.perf_counter()
        call()
        wall = (time.perf_counter() - start) * 1e3
        last = self._event() if self._event else None
        device, launched = self.taken()
        if device is None and self._event:
            device = self._elapsed(first, last)
        return Sample(wall, device, launched)

    def measure(
        self,
        call: Callable[[], Any],
        *,
        repeats: int,
        warm_ups: int,
        between: Callable[[], Any] = lambda: None,
    ) -> list[Sample]:
        """So many timed calls after the warm-ups; `between` runs untimed after each."""
        samples = []
        gc.collect()
        gc.disable()
        try:
            for i in range(warm_ups + repeats):
                sample = self.time(call)
                between()
                if i >= warm_ups:
                    samples.append(sample)
        finally:
            gc.enable()
        return samples
