"""Chains of a convolution's depth, made by blocks of their own: their sums come in, the finished outputs go out."""

from __future__ import annotations

from typing import Any

from ..interface import Array
from .launching import PIXELS, Launching


class AddingChains(Launching):
    """The second launch of a convolution whose chains are blocks of their own (`kernels/chains.cu`)."""

    def _add_chains(
        self,
        out: Array,
        sums: Array,
        epilogue: bytes,
        count: int,
        *,
        chains: int,
        padded_outputs: int,
        **batch: Any,
    ) -> None:
        """Add the sums `[chains, tile_room * 16, padded_outputs]` in their order, and finish `count` tiles of `out`.

        `batch` has the tiles, the first of them, and `tile_room`.
        """
        _, height, width, outputs = out.shape
        self._launch(
            "chain_sums",
            (count, -(-PIXELS * outputs // 256)),
            sums=sums,
            out=out,
            epilogue=epilogue,
            height=height,
            width=width,
            outputs=outputs,
            padded_outputs=padded_outputs,
            chains=chains,
            **batch,
        )
