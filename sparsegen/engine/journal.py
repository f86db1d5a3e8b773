"""A journal: the tiles that an edit is about to overwrite come in, and are put back bit for bit."""

from __future__ import annotations

from sparsegen.backends.interface import Array, Backend, Host, SavedTiles, Tiles

from ..tiling.tiles import TileSet
from .memory import Memory
from .moments import Moments


class Journal:
    """The tiles that one change of a memory overwrites: saved before the write, put back bit for bit by `undo`.

    Tiles are copied. A canvas that will be repainted whole is set aside instead, and a new one takes its place: that
    costs no more memory, and no copying.
    """

    def __init__(self) -> None:
        self._tiles: dict[str, tuple[Tiles, Array]] = {}
        self._together: list[tuple[dict[str, Tiles], SavedTiles]] = []
        """Tiles of many canvases that were saved at once, and are no arrays yet."""
        self.whole: dict[str, Array] = {}
        """Path -> the canvas as it was; no path is in both."""
        self.windows: dict[str, tuple[int, Host]] = {}
        """Path of a codebook -> how many of its windows stay, and the windows after these, int32 `[R, width]`."""
        self.moments: dict[str, Moments] = {}
        """Path of a canvas -> its moments; they are small, and do not count."""
        self.nbytes = 0
        """Memory that undoing takes."""

    def save_before(self, memory: Memory, path: str, active: TileSet, *, in_place: bool = False) -> None:
        """Save the `active` tiles of a canvas before they change.

        If all are active, the memory gets a new canvas, of undefined value; not if the change is `in_place`, nor where
        recorded edits refer to the canvas.
        """
        canvas = memory.canvases[path]
        if active.count == active.total and not in_place and not memory.backend.records:
            self._set_aside(path, canvas)
            memory.canvases[path] = memory.allocator.allocate(canvas.shape, dtype=str(canvas.dtype))
        else:
            self._copy(memory, path, active.tiles)

    @property
    def tiles(self) -> dict[str, tuple[Tiles, Array]]:
        """Path of the canvas -> (tiles, values `[K, TILE, TILE, C]`)."""
        while self._together:
            tiles, saved = self._together[-1]
            for (path, each), values in zip(tiles.items(), saved.arrays(), strict=True):
                self._tiles[path] = (each, values)
            self._together.pop()
        return self._tiles

    def add_all(self, tiles: dict[str, Tiles], saved: SavedTiles) -> None:
        """Keep the values of tiles of many canvases, by path."""
        self._together.append((tiles, saved))
        self.nbytes += saved.nbytes

    def add(self, path: str, tiles: Tiles, values: Array) -> None:
        """Keep `values` `[K, TILE, TILE, C]` of the `tiles` of a canvas."""
        self._tiles[path] = (tiles, values)
        self.nbytes += int(values.nbytes)

    def save_moments(self, path: str, moments: Moments) -> None:
        """Save the moments of a canvas before they change."""
        self.moments.setdefault(path, moments)

    def add_windows(self, path: str, count: int, windows: Host) -> None:
        """Keep the windows of a codebook: its first `count`, and `windows` after these."""
        self.windows[path] = (count, windows)
        self.nbytes += int(windows.nbytes)

    def _set_aside(self, path: str, canvas: Array) -> None:
        self.whole[path] = canvas
        self.nbytes += int(canvas.nbytes)

    def _copy(self, memory: Memory, path: str, tiles: Tiles) -> None:
        canvas = memory.canvases[path]
        place = memory.allocator.place_for_tiles(canvas, len(tiles))
        self.add(path, tiles, memory.backend.read_tiles(canvas, tiles, place))

    def _copy_all(self, memory: Memory, tiles: dict[str, Tiles]) -> None:
        """Save tiles of many canvases, by path."""
        together: dict[str, Tiles] = {}
        for path, each in tiles.items():
            place = memory.allocator.place_for_tiles(memory.canvases[path], len(each))
            if place is None:
                together[path] = each
            else:
                self.add(path, each, memory.backend.read_tiles(memory.canvases[path], each, place))
        places = [(memory.canvases[path], each) for path, each in together.items()]
        for (path, each), values in zip(
            together.items(), memory.backend.read_many_tiles(places), strict=True
        ):
            self.add(path, each, values)

    def saved(self, backend: Backend, path: str) -> tuple[Tiles, Array]:
        """The saved tiles of a canvas and their values, as in `tiles`, also of a canvas that was set aside."""
        if path not in self.whole:
            return self.tiles[path]
        tiles = self.saved_tiles(path)
        return tiles, backend.read_tiles(self.whole[path], tiles)

    def saved_tiles(self, path: str) -> Tiles:
        """The saved tiles of a canvas."""
        if path not in self.whole:
            return self.tiles[path][0]
        return TileSet.full(*self.whole[path].shape[:3]).tiles

    @property
    def paths(self) -> list[str]:
        """The paths of the canvases that have saved tiles."""
        return [*self.tiles, *self.whole]

    def undo(self, memory: Memory) -> None:
        """Put everything back. Repeating it, also after an interrupt, changes nothing more."""
        memory.canvases.update(self.whole)
        memory.moments.update(self.moments)
        memory.backend.write_many_tiles(
            [(memory.canvases[path], tiles, values) for path, (tiles, values) in self.tiles.items()]
        )
        for path, (count, windows) in self.windows.items():  # no canvas refers to a later window any more
            memory.codebooks[path].restore(memory.backend, count, windows)

    def inverse(self, memory: Memory) -> Journal:
        """The journal that reverses `undo`: it saves the tiles that `undo` is about to overwrite.

        Raises
        ------
        MemoryError, SessionError
            There is no memory for the tiles.
        """
        forward = Journal()
        forward.moments.update((path, memory.moments[path]) for path in self.moments)
        for path in self.whole:
            forward._set_aside(path, memory.canvases[path])
        forward._copy_all(memory, {path: tiles for path, (tiles, _) in self.tiles.items()})
        for path, (count, _) in self.windows.items():
            forward.add_windows(path, count, memory.codebooks[path].window_set.windows[count:].copy())
        return forward
