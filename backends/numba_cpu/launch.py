"""Launches: a kernel, its arguments and an estimate of its work come in; items are cut and threads take them.

No bit of a result depends on the choices made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..interface import TILE, Array, Host, Tiles
from .arrays import readable
from .cores import available_cores
from .jit import compile_all
from .sizes import ceil_div, round_up
from .threads import Pool, Scratch, Words

ALONE = 1e7
"""Floating-point operations below which a second thread takes longer to wake than it saves."""


def in_order(tiles: Tiles) -> Host:
    """Tiles as the kernels take them: int32 `[K, 3]`, the handle's memory under an array not marked read-only."""
    return tiles.on("numba", readable)


class Launcher:
    """Runs kernels in up to `threads` threads, one of them the caller's."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = Pool(threads, watchful=threads <= available_cores())

    def items(self, tiles: int, limit: int, panels: int, work: float) -> tuple[int, int]:
        """Cut `tiles` tiles, each of `work` operations: tiles in a batch (≤ `limit`), and shares of the output panels.

        With enough batches there is one share, and threads take whole batches. With few, threads share the panels, so
        that each reads a part of the weights once.
        """
        if tiles * work < ALONE:
            return min(tiles, limit), 1
        batches = ceil_div(tiles, limit)
        if batches < 2 * self.threads:
            return ceil_div(tiles, batches), max(1, min(panels, self.threads))
        if batches < 16 * self.threads:  # the same number for each thread
            batches = round_up(batches, self.threads)
        return ceil_div(tiles, batches), 1

    def over_tiles(
        self,
        kernel: Callable[..., None],
        canvas: Array,
        tiles: Tiles,
        args: tuple[Any, ...],
        floats: int = 0,
    ) -> None:
        """Run a kernel that is bound by memory over batches of tiles, with `floats` floats of scratch a thread."""
        if len(tiles):
            channels = canvas.shape[3]
            batch = max(1, (1 << 15) // (TILE * TILE * channels))
            items = ceil_div(len(tiles), batch)
            work = 16.0 * TILE * TILE * channels * len(tiles)
            self.run(kernel, items, (batch, in_order(tiles), *args), floats, work)

    def run(
        self, kernel: Callable[..., None], items: int, args: tuple[Any, ...], floats: int, work: float
    ) -> None:
        """Run `kernel(counter, items, *args, scratch)` in as many threads as `work` operations are worth.

        Each thread gets `floats` floats of scratch; 0: the kernel takes none.
        """
        compile_all()

        def call(counter: Words, scratch: Scratch) -> None:
            if floats:
                kernel(counter, items, *args, scratch)
            else:
                kernel(counter, items, *args)

        threads = 1 if work < ALONE else min(items, self.threads)
        self._pool.count(call, floats, threads)
