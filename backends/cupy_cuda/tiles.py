"""Tiles: copied, merged, compared, narrowed to float16 and widened, and checked for values that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..interface import TILE, Array, Host, Position, Tiles, Watch
from .launching import PIXELS, Launching
from .recording import Slots
from .watching import CudaWatch

MANY_BLOCKS = 128
"""Most blocks along the tiles of one canvas, where many canvases are copied: each takes several tiles in turn."""


def _words(canvas: Array) -> int:
    """Words of four bytes in a pixel."""
    words: int = canvas.shape[3] * canvas.dtype.itemsize // 4
    return words


def _blocks_of(tiles: int) -> int:
    """Blocks along the tiles where many canvases share a grid: it is as wide as the widest needs, and as deep.

    Most blocks of an edit's grid would find nothing to do, and starting them takes longer than a few turns.
    """
    return min(tiles, max(16, tiles // 8), MANY_BLOCKS)


class TileCopies(Launching):
    """The primitives on tiles and masks."""

    def read_tiles(self, canvas: Array, tiles: Tiles, out: Array | None = None) -> Array:
        if out is None:
            shape = (self._most(tiles), TILE, TILE, canvas.shape[3])
            out = self.device.empty(shape, canvas.dtype)
        self._copy_tiles("read_tiles", canvas, tiles, out)
        return out

    def write_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        self._copy_tiles("write_tiles", canvas, tiles, values)

    def _copy_tiles(self, kernel: str, canvas: Array, tiles: Tiles, values: Array) -> None:
        grid = self._grid_of_words(tiles, _words(canvas))
        self._launch(kernel, grid, **self._copy_of(canvas, tiles, values))

    def _copy_of(
        self, canvas: Array, tiles: Tiles, values: Array | None, place: Array | None = None
    ) -> dict[str, Any]:
        """The fields of a `CopyTiles`; of a recording's copies, the values' address stands at `place`."""
        return {
            "values_place": place,
            "canvas": canvas,
            "values": values,
            "tiles": self._list(tiles),
            "height": canvas.shape[1],
            "width": canvas.shape[2],
            "channels": _words(canvas),
        }

    def read_many_tiles(self, places: Sequence[tuple[Array, Tiles]]) -> list[Array]:
        places = [(canvas, tiles) for canvas, tiles in places]
        sizes = [len(tiles) * PIXELS * _words(canvas) for canvas, tiles in places]
        ends = np.cumsum(sizes).tolist() if sizes else [0]
        block = self.device.empty((ends[-1],), np.int32)
        values = [
            block[end - size : end].view(canvas.dtype).reshape(len(tiles), TILE, TILE, canvas.shape[3])
            for (canvas, tiles), end, size in zip(places, ends, sizes, strict=False)
        ]
        self._copy_many("read_many_tiles", [(*each, v) for each, v in zip(places, values, strict=True)])
        return values

    def write_many_tiles(self, places: Sequence[tuple[Array, Tiles, Array]]) -> None:
        self._copy_many("write_many_tiles", places)

    def _copy_many(self, kernel: str, places: Sequence[tuple[Array, Tiles, Array]]) -> None:
        some = [(canvas, tiles, values) for canvas, tiles, values in places if len(tiles)]
        if not some:
            return
        self._upload_lists(tiles for _, tiles, _ in some)
        table = self._table(
            self._pack("CopyTiles", **self._copy_of(canvas, tiles, values)) for canvas, tiles, values in some
        )
        most = max(len(tiles) for _, tiles, _ in some)
        words = max(_words(canvas) for canvas, _, _ in some)
        self._launch(
            kernel,
            (_blocks_of(most), -(-PIXELS * words // 1024), len(some)),
            each=table,
            count=len(some),
        )

    def _save_launch(self, slots: Slots) -> Callable[[], None]:
        if not slots.saves:
            return lambda: None
        table = self._table(
            self._pack("CopyTiles", **self._copy_of(canvas, tiles, None, place))
            for (canvas, tiles), place in zip(slots.saves, slots.places, strict=True)
        )
        slots.kept[id(table)] = table
        most = max(self._most(tiles) for _, tiles in slots.saves)
        words = max(_words(canvas) for canvas, _ in slots.saves)
        grid, count = (_blocks_of(most), -(-PIXELS * words // 1024), len(slots.saves)), len(slots.saves)
        return lambda: self._launch("read_many_tiles", grid, each=table, count=count)

    def copy_arrays(self, pairs: Sequence[tuple[Array, Array]]) -> None:
        if not pairs:
            return
        words = [target.size * target.dtype.itemsize // 4 for target, _ in pairs]
        table = self._table(
            self._pack("CopyArray", target=target, source=source, words=size, unused=0)
            for (target, source), size in zip(pairs, words, strict=True)
        )
        self._launch(
            "copy_arrays",
            (min(-(-max(words) // 256), MANY_BLOCKS), len(pairs)),
            each=table,
            count=len(pairs),
        )

    def _grid_of_words(self, tiles: Tiles, words: int) -> tuple[int, int]:
        """A grid of blocks of 256 threads, each for up to four words of a tile."""
        return self._most(tiles), -(-PIXELS * words // 1024)

    def merge_tiles(self, canvas: Array, tiles: Tiles, values: Array, pixels: Host) -> None:
        if len(tiles):
            self._launch(
                "merge_tiles",
                self._grid_of_words(tiles, canvas.shape[3]),
                canvas=canvas,
                values=values,
                pixels=self.device.upload(np.ascontiguousarray(pixels, np.uint8)),
                tiles=self._list(tiles),
                height=canvas.shape[1],
                width=canvas.shape[2],
                channels=canvas.shape[3],
                halves=int(values.dtype == np.float16),
            )

    def add_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        self._launch(
            "add_tiles",
            self._grid_of_words(tiles, canvas.shape[3]),
            canvas=canvas,
            values=values,
            tiles=self._list(tiles),
            height=canvas.shape[1],
            width=canvas.shape[2],
            channels=canvas.shape[3],
        )

    def tile_change(self, canvas: Array, tiles: Tiles, old: Array) -> Array:
        change = self.device.empty((self._most(tiles), TILE, TILE, canvas.shape[3]), np.float32)
        self._launch(
            "tile_change",
            self._grid_of_words(tiles, canvas.shape[3]),
            canvas=canvas,
            old=old,
            change=change,
            tiles=self._list(tiles),
            height=canvas.shape[1],
            width=canvas.shape[2],
            channels=canvas.shape[3],
            halves=int(old.dtype == np.float16),
        )
        return change

    def narrow_tiles(self, halves: Array, canvas: Array, tiles: Tiles, *, watch: Watch, layer: int) -> None:
        self._copy_halves("narrow_tiles", canvas, halves, tiles)
        watch.watch(canvas, tiles, layer)

    def widen_tiles(self, canvas: Array, halves: Array, tiles: Tiles) -> None:
        self._copy_halves("widen_tiles", canvas, halves, tiles)

    def _copy_halves(self, kernel: str, canvas: Array, halves: Array, tiles: Tiles) -> None:
        self._launch(
            kernel,
            self._grid_of_words(tiles, canvas.shape[3]),
            canvas=canvas,
            halves=halves,
            tiles=self._list(tiles),
            height=canvas.shape[1],
            width=canvas.shape[2],
            channels=canvas.shape[3],
        )

    # -- checks ------------------------------------------------------------------------------------------

    def watch_run(self) -> Watch:
        slots = self._thread.slots
        return CudaWatch(self._watch, self.device, None if slots is None else slots.watched)

    def _watch(self, first: Array, canvas: Array, tiles: Tiles, layer: int) -> None:
        """Queue a check: `first` becomes the lesser of itself and the place of a value that is not finite."""
        if not np.issubdtype(canvas.dtype, np.floating):
            return
        _, height, width, channels = canvas.shape
        grid = self._most(tiles), -(-PIXELS * -(-channels // 4) // 256)
        values = {
            "canvas": canvas,
            "tiles": self._list(tiles),
            "first": first,
            "height": height,
            "width": width,
            "channels": channels,
            "layer": layer,
        }
        slots = self._thread.slots
        if slots is None:
            self._launch("watch_tiles", grid, **values)
        else:
            slots.checks.append((grid, self._pack("WatchTiles", **values)))

    def _end_work(self, slots: Slots) -> None:
        # a recorded run writes each canvas once: all checks are one launch at its end
        if slots.checks:
            grids, packed = zip(*slots.checks, strict=True)
            blocks, shares = (max(sizes) for sizes in zip(*grids, strict=True))
            self._launch(
                "watch_many_tiles",
                (_blocks_of(blocks), shares, len(packed)),
                each=self._table(packed),
                count=len(packed),
            )

    def find_non_finite(self, canvas: Array, tiles: Tiles) -> Position | None:
        watch = CudaWatch(self._watch, self.device, None)
        watch.watch(canvas, tiles, 0)
        found = watch.first_watched()
        return None if found is None else found[1]

    def largest_change(self, canvas: Array, tiles: Tiles, values: Array) -> Host:
        if not len(tiles):
            return np.zeros(0, np.float32)
        largest = self.device.empty((len(tiles),), np.float32)
        is_float = np.issubdtype(canvas.dtype, np.floating)
        self._launch(
            "largest_change",
            (len(tiles),),
            canvas=canvas,
            old=values,
            largest=largest,
            tiles=self._list(tiles),
            height=canvas.shape[1],
            width=canvas.shape[2],
            channels=canvas.shape[3],
            type=(1 if values.dtype == np.float16 else 0) if is_float else 2,
        )
        return self.device.download(largest)
