"""Launches: a kernel, its arguments and an estimate of its work come in; items are cut and threads take them.

No bit of a result depends on the choices made here.
"""

from __future__ import annotations

from typing import Any

from ..interface import TILE, Array, Tiles
from . import queued
from .cores import available_cores
from .jit import Kernel
from .sizes import ceil_div, round_up
from .threads import Pool

ALONE = 1e6
"""Floating-point operations below which a second thread takes longer to come than it saves."""
ASLEEP = 10
"""How many times as many they are where helpers sleep between any two kernels."""


class Launcher:
    """Runs kernels in up to `threads` threads, one of them the caller's."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._watchful = threads <= available_cores()
        self._pool = Pool(threads, watchful=self._watchful)

    def items(self, tiles: int, limit: int, panels: int, work: float, *, least: int = 1) -> tuple[int, int]:
        """Cut `tiles` tiles, each of `work` operations: tiles in a batch (≤ `limit`), and shares of the output panels.

        Threads take whole batches if each can have `least` tiles: from then on it costs a thread less to do for itself
        what is done once for a batch, such as to transform weights, than to prepare the tiles of other threads, too.
        With fewer tiles, threads share the panels of a batch, so that each reads a part of the weights.
        """
        if self._is_alone(tiles * work):
            return min(tiles, limit), 1
        batches = ceil_div(tiles, limit)
        if batches < self.threads:
            counts = range(batches, self.threads + 1)
            fair = [count for count in counts if self._is_fair(count, tiles, panels)]
            own = [count for count in fair if count * least <= tiles]
            unfair = max(batches, min(tiles, ceil_div(self.threads, panels)))  # no thread without an item
            batches = max(own) if own else min(fair, default=unfair)
            return ceil_div(tiles, batches), min(panels, ceil_div(self.threads, batches))
        if batches < 16 * self.threads:  # the same number for each thread
            batches = round_up(batches, self.threads)
        return ceil_div(tiles, batches), 1

    def _is_alone(self, work: float) -> bool:
        """Whether one thread makes so many operations faster than several."""
        return work < ALONE * (1 if self._watchful else ASLEEP)

    def _is_fair(self, batches: int, tiles: int, panels: int) -> bool:
        """Whether so many batches, each in as many shares as it takes, give every thread one item."""
        shares, rest = divmod(self.threads, batches)
        return rest == 0 and shares <= panels and ceil_div(tiles, ceil_div(tiles, batches)) == batches

    def over_tiles(
        self,
        kernel: Kernel,
        canvas: Array,
        tiles: Tiles,
        args: tuple[Any, ...],
        floats: int = 0,
    ) -> None:
        """Queue a kernel that is bound by memory over batches of tiles, with `floats` floats of scratch a thread."""
        count = len(tiles)
        if count:
            values = TILE * TILE * canvas.shape[3]
            batch = max(1, (1 << 15) // values)
            self.queue(
                kernel, ceil_div(count, batch), (batch, tiles.host, *args), floats, 16.0 * values * count
            )

    def run(self, kernel: Kernel, items: int, args: tuple[Any, ...], floats: int, work: float) -> None:
        """Run a `shared` kernel, of these arguments after its items, in as many threads as `work` operations are worth.

        Each thread gets `floats` floats of scratch; 0: the kernel takes none.
        """
        self._pool.run(kernel.ready(), items, args, floats, self._threads_for(items, work))

    def queue(self, kernel: Kernel, items: int, args: tuple[Any, ...], floats: int, work: float) -> None:
        """`run`, but that within a queue (`queued.py`) it may return before the kernel has computed.

        So nobody may look at what it writes without `queued.settle`. Its arrays are kept until then.
        """
        threads = self._threads_for(items, work)
        make = self._pool.queue if self._watchful and queued.is_within() else self._pool.run
        make(kernel.ready(), items, args, floats, threads)

    def _threads_for(self, items: int, work: float) -> int:
        return 1 if self._is_alone(work) else min(items, self.threads)
