"""Sources whose values depend on all channels of their pixel: layer norms and geglu, written out or as rows."""

from __future__ import annotations

from ..interface import Array, Source, Tiles
from .launching import PIXELS, Launching
from .transforms import padded

PIXELS_OF_BLOCK = 4
"""Pixels of a block of `kernels/combined.cuh`, a warp each."""
CHANNELS = 512
"""Channels of a slice of geglu: four turns of a warp."""


class Combining(Launching):
    """The launches that read a source which `combines_channels`."""

    def _combined(self, source: Source) -> bytes:
        """Such a source as kernels take it."""
        _, height, width, channels = source.shape
        arrays = {"canvas": source.parts[0], "scale": source.scale, "shift": source.shift}
        apart = channels
        for each in arrays.values():
            apart |= 0 if each is None else self.device.address(each) >> 2
        return self._pack(
            "Combined",
            **arrays,
            height=height,
            width=width,
            channels=channels,
            affine_stride=channels if source.scale is not None and len(source.scale) > 1 else 0,
            eps=source.layer_eps or 0.0,
            fours=int(apart % 4 == 0),
        )

    def _combine_rows(
        self, source: Source, tiles: Tiles, rows: Array, precision: str, size: int, first: int, room: int
    ) -> None:
        """`rows` `[room, 16, size]` in a precision: the pixels of at most `room` tiles from `first` on, and zeros."""
        self._launch(
            f"combined_rows_{precision}",
            self._combining_grid(source, min(room, self._most(tiles) - first)),
            source=self._combined(source),
            tiles=self._list(tiles),
            rows=rows,
            first_tile=first,
            tile_room=room,
            padded=size,
        )

    def _rows_source(self, source: Source, tiles: Tiles) -> bytes:
        """The pixels of the tiles in their order, as a plain source of 4×4 pixels for each tile."""
        most, size = self._most(tiles), padded(source.shape[3])
        rows = self._scratch("combined rows", (most, PIXELS, size))
        self._combine_rows(source, tiles, rows, "float32", size, 0, most)
        nothing = dict.fromkeys(("second", "scale", "shift", "modulation", "codes"))
        return self._pack(
            "Source",
            first=rows,
            **nothing,
            first_channels=size,
            second_channels=0,
            height=4,
            width=4,
            halved=0,
            affine_stride=0,
            activation=0,
            fours=1,
        )

    def _write_combined(self, out: Array, tiles: Tiles, source: Source, residual: Source | None) -> None:
        """`out[tiles] = source + residual`."""
        self._launch(
            "combined_pointwise",
            self._combining_grid(source, self._most(tiles)),
            source=self._combined(source),
            residual=self._source(residual),
            out=out,
            tiles=self._list(tiles),
        )

    def _combining_grid(self, source: Source, tiles: int) -> tuple[int, int, int]:
        slices = 1 if source.layer_eps is not None else -(-source.shape[3] // CHANNELS)
        return tiles, PIXELS // PIXELS_OF_BLOCK, slices
