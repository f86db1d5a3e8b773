"""How work is cut for threads: a kernel and what it works on come in; items are made of it, and threads take them.

No bit of a result depends on what is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..interface import TILE, Array, Host, Tiles
from . import writing
from .arrays import readable
from .cores import available_cores
from .jit import compile_all
from .threads import Pool, Scratch, Words

ALONE = 1e7
"""Floating-point operations below which waking another thread takes longer than it saves."""


def in_order(tiles: Tiles) -> Host:
    """Tiles as the kernels take them: int32 `[K, 3]`, the handle's memory under an array not marked read-only."""
    return tiles.on("numba", readable)


class Launcher:
    """Runs kernels in up to `threads` threads, the caller's among them."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = Pool(threads, watchful=threads <= available_cores())

    def items(self, tiles: int, limit: int, panels: int, work: float) -> tuple[int, int]:
        """How `tiles` tiles are cut: tiles in a batch (≤ `limit`), and shares of the output panels.

        With enough batches each thread takes whole ones; with few, the threads share the panels instead, so that
        each reads a part of the weights once.
        """
        if tiles * work < ALONE:
            return min(tiles, limit), 1
        batches = -(-tiles // limit)
        if batches < 2 * self.threads:
            return -(-tiles // batches), max(1, min(panels, self.threads))
        if batches < 16 * self.threads:  # as many for each thread
            batches = -(-batches // self.threads) * self.threads
        return -(-tiles // batches), 1

    def over_tiles(
        self,
        kernel: Callable[..., None],
        canvas: Array,
        tiles: Tiles,
        args: tuple[Any, ...],
        *,
        scratch: bool = True,
    ) -> None:
        """Run a kernel that is bound by memory over batches of tiles."""
        if len(tiles):
            channels = canvas.shape[3]
            batch = max(1, (1 << 15) // (TILE * TILE * channels))
            items = -(-len(tiles) // batch)
            work = 16.0 * TILE * TILE * channels * len(tiles)
            floats = writing.scratch_floats(channels) if scratch else 0
            self.run(kernel, items, (batch, in_order(tiles), *args), floats, work)

    def run(
        self, kernel: Callable[..., None], items: int, args: tuple[Any, ...], floats: int, work: float
    ) -> None:
        """Run `kernel(counter, items, *args, scratch)` in as many threads as its work is worth."""
        compile_all()

        def call(counter: Words, scratch: Scratch) -> None:
            if floats:
                kernel(counter, items, *args, scratch)
            else:
                kernel(counter, items, *args)

        threads = 1 if work < ALONE else min(items, self.threads)
        self._pool.count(call, floats, threads)
