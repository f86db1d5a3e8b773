"""Values read by index or by similarity: look-ups of labels in a table, and attention."""

from __future__ import annotations

from ..interface import Activation, Array, BackendError, Source, Tiles
from .launching import ACTIVATIONS, Launching
from .transforms import padded

HEADS = {64: (4, 1, 16), 96: (4, 1, 16), 192: (4, 2, 16), 512: (1, 8, 8)}
"""The kernels of `attention.cu`, by the most output channels of a block: rows of a tile, splits, depth."""
MOST_CHANNELS = 960
"""Of a head: four queries of so many fill the 48 KB of a block, beside the keys."""


class Reading(Launching):
    """`lookup` and `attention`."""

    def lookup(
        self,
        out: Array,
        tiles: Tiles,
        indices: Array,
        table: Array,
        bias: Array,
        *,
        step: int = 1,
        activation: Activation = "identity",
    ) -> bool:
        taps, labels, outputs = table.shape
        self._launch(
            "lookup",
            (self._most(tiles), -(-outputs // 128)),
            indices=indices,
            table=table,
            bias=bias,
            out=out,
            tiles=self._list(tiles),
            height=out.shape[1],
            width=out.shape[2],
            index_height=indices.shape[1],
            index_width=indices.shape[2],
            planes=indices.shape[3],
            labels=labels,
            outputs=outputs,
            side=round(taps**0.5),
            step=step,
            activation=ACTIVATIONS.index(activation),
        )
        return False

    def attention(
        self,
        out: Array,
        tiles: Tiles,
        query: Source,
        key: Source,
        value: Source,
        *,
        heads: int,
        causal: bool = False,
    ) -> bool:
        if not len(tiles):
            return False
        channels = query.shape[3] // heads
        if channels > MOST_CHANNELS:
            raise BackendError(f"attention: a head has {channels} channels, expected at most {MOST_CHANNELS}")
        wide = next((most for most in HEADS if channels <= most), 512)
        rows, splits, depth = HEADS[wide]
        slice_ = padded(-(-channels // splits), depth)
        keys, key_padded = self._rows(key, heads, "attention keys")
        values, value_padded = self._rows(value, heads, "attention values")
        self._launch(
            f"attention_{wide}",
            (self._most(tiles) * (4 // rows), heads, -(-channels // wide)),
            shared=4 * rows * splits * slice_ * 4,
            query=self._source(query),
            key=keys,
            value=values,
            out=out,
            tiles=self._list(tiles),
            tokens=key.shape[1] * key.shape[2],
            heads=heads,
            channels=channels,
            key_padded=key_padded,
            value_padded=value_padded,
            slice=slice_,
            shared_keys=int(key.shape[0] == 1),
            causal=int(causal),
            scale=float(channels**-0.5),
        )
        return False

    def _rows(self, source: Source, heads: int, name: str) -> tuple[Array, int]:
        """All pixels of a source `[N, h, w, C]` as attention reads them, `[N, h * w, heads, padded]`, and `padded`.

        A canvas on which no work is pending, and whose heads begin at multiples of 16 bytes, is read where it is.
        """
        samples, height, width, total = source.shape
        channels = total // heads
        plain = len(source.parts) == 1 and source.upsample == 1 and source.activation == "identity"
        if plain and source.scale is None and source.modulation is None and channels % 4 == 0:
            [canvas] = source.parts
            if self.device.address(canvas) % 16 == 0:
                return canvas, channels
        size = padded(channels)
        rows = self._scratch(name, (samples, height * width, heads, size))
        self._launch(
            "attention_rows",
            (samples * height * width,),
            source=self._source(source),
            rows=rows,
            samples=samples,
            heads=heads,
            channels=channels,
            padded=size,
        )
        return rows, size
