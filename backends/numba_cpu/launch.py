"""Launches: a kernel, its arguments and an estimate of its work come in; items are cut and threads take them.

No bit of a result depends on the choices made here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..interface import TILE, Array, Tiles
from . import threads, waiting
from .cores import available_cores
from .jit import Kernel
from .sizes import ceil_div, round_up
from .threads import Pool, Scratch, Words

ALONE = 1e7
"""Floating-point operations below which a second thread takes longer to wake than it saves."""


class Launcher:
    """Runs kernels in up to `threads` threads, one of them the caller's."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = Pool(threads, watchful=threads <= available_cores())

    def items(self, tiles: int, limit: int, panels: int, work: float, *, least: int = 1) -> tuple[int, int]:
        """Cut `tiles` tiles, each of `work` operations: tiles in a batch (≤ `limit`), and shares of the output panels.

        Threads take whole batches if each can have `least` tiles: from then on it costs a thread less to do for itself
        what is done once for a batch, such as to transform weights, than to prepare the tiles of other threads, too.
        With fewer tiles, threads share the panels of a batch, so that each reads a part of the weights.
        """
        if tiles * work < ALONE:
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
        """Run a kernel that is bound by memory over batches of tiles, with `floats` floats of scratch a thread."""
        count = len(tiles)
        if count:
            values = TILE * TILE * canvas.shape[3]
            batch = max(1, (1 << 15) // values)
            self.run(
                kernel, ceil_div(count, batch), (batch, tiles.host, *args), floats, 16.0 * values * count
            )

    def run(self, kernel: Kernel, items: int, args: tuple[Any, ...], floats: int, work: float) -> None:
        """Run `kernel(counter, items, *args, scratch)` in as many threads as `work` operations are worth.

        Each thread gets `floats` floats of scratch; 0: the kernel takes none.
        """
        run, together = kernel.ready(), 1 if work < ALONE else min(items, self.threads)
        if together > 1:
            for wait in (waiting.await_kernel, waiting.await_helpers):
                wait.ready()  # here: no helper compiles while its caller waits for it

            def call(counter: Words, own: Scratch) -> None:
                if floats:
                    run(counter, items, *args, own)
                else:
                    run(counter, items, *args)

            self._pool.count(call, floats, together)
        elif floats:
            run(np.zeros(1, np.int64), items, *args, threads.scratch(floats))
        else:
            run(np.zeros(1, np.int64), items, *args)
