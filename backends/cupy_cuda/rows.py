"""Dense layers on rows: of an embedding, and of a codebook's windows."""

from __future__ import annotations

import numpy as np

from ..interface import Activation, Array, ConvWeights, Host
from .launching import ACTIVATIONS, Launching

ROWS = 4
"""Rows that a warp of `linear` computes at once."""
OUTPUTS = 8
"""Outputs of a block of `linear`, a warp each."""


class Rows(Launching):
    """`linear` and `convolve_windows`."""

    def linear(
        self, x: Array, weight: Array, bias: Array | None, *, activation: Activation = "identity"
    ) -> Array:
        (rows, inputs), outputs = x.shape, len(weight)
        out = self.device.empty((rows, outputs), np.float32)
        self._launch(
            "linear",
            (-(-outputs // OUTPUTS), -(-rows // ROWS)),
            x=x,
            weight=weight,
            bias=bias,
            out=out,
            rows=rows,
            inputs=inputs,
            outputs=outputs,
            activation=ACTIVATIONS.index(activation),
        )
        return out

    def convolve_windows(self, out: Array, windows: Host, table: Array, weights: ConvWeights) -> bool:
        if not len(windows):
            return False
        _, taps, inputs, outputs = weights.packed.shape
        rows = len(windows)
        block = (64, 16) if outputs <= 16 else (16, 64) if rows <= 256 else (64, 64)
        self._launch(
            f"windows_{block[0]}x{block[1]}",
            (-(-rows // block[0]), -(-outputs // block[1])),
            windows=self.device.upload(np.ascontiguousarray(windows, np.int32)),
            table=table,
            weight=weights.packed,
            bias=weights.bias,
            out=out,
            rows=rows,
            taps=taps,
            inputs=weights.geometry.inputs,
            outputs=weights.geometry.outputs,
            padded_inputs=inputs,
            padded_outputs=outputs,
        )
        return False
