"""Rooflines: the layers of a run come in, beside each the least time that the card allows comes out.

A layer cannot take less than its arithmetic at the card's peak, nor less than its bytes at the card's bandwidth;
`sparsegen.profile` counts both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsegen.engine.stats import LayerRecord
from sparsegen.tools.report import Profile


@dataclass(frozen=True)
class Card:
    """The peaks of a card by its makers' data sheet: dense, with float32 sums."""

    name: str
    float32: float
    """TFLOP/s, two for each multiply-add."""
    tf32: float
    float16: float
    bandwidth: float
    """TB/s."""

    def peak(self, precision: str) -> float:
        """FLOP/s."""
        found: float = getattr(self, precision)
        return found * 1e12


CARDS = (
    Card("H200", 67, 494, 989, 4.8),
    Card("H100 PCIe", 51, 378, 756, 2.0),
    Card("H100 NVL", 60, 417, 835, 3.9),
    Card("H100", 67, 494, 989, 3.35),
    Card("A100-SXM4-80GB", 19.5, 156, 312, 2.04),
    Card("A100 80GB PCIe", 19.5, 156, 312, 1.94),
    Card("A100", 19.5, 156, 312, 1.56),
    Card("L40S", 91.6, 183, 362, 0.864),
    Card("L4", 30.3, 60, 121, 0.3),
    Card("RTX 3090", 35.6, 35.6, 71, 0.936),
    Card("RTX 4090", 82.6, 82.6, 165, 1.008),
    Card("RTX 5090", 104.8, 104.8, 209.5, 1.792),
)
"""The first whose name is a part of the device's counts."""


def card(device: str, *, multiprocessors: int = 0, gigahertz: float = 0.0, bandwidth: float = 0.0) -> Card:
    """The card of a device's name.

    One that is not in the table has the bandwidth of a copy (`bandwidth`, TB/s, reads and writes together), and 128
    multiply-adds a clock and multiprocessor, whatever the precision: nothing is assumed of its tensor cores.
    """
    for known in CARDS:
        words = device.replace("NVIDIA", "").split()
        if known.name in device and (known.name not in ("L4",) or known.name in words):
            return known
    flops = multiprocessors * 128 * 2 * gigahertz / 1e3
    return Card(device, flops, flops, flops, bandwidth)


@dataclass(frozen=True)
class Cost:
    """One layer of one run."""

    path: str
    macs: int
    """By the plain formula."""
    multiplied: float
    """Multiply-adds of the algorithm."""
    weight_bytes: int
    read_bytes: int
    written_bytes: int
    milliseconds: float

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.read_bytes + self.written_bytes

    def bound(self, on: Card, precision: str) -> tuple[float, str]:
        """The least milliseconds, and what they are spent on."""
        arithmetic = 2e3 * self.multiplied / peak if (peak := on.peak(precision)) else 0.0
        memory = 1e3 * self.total_bytes / (on.bandwidth * 1e12) if on.bandwidth else 0.0
        return (arithmetic, "arithmetic") if arithmetic > memory else (memory, "memory")


def costs(found: Profile, records: Sequence[LayerRecord]) -> list[Cost]:
    """The cost of each layer that a run computed: its work is counted in `found`, its time is in `records`."""
    taken = {record.path: record.milliseconds or 0.0 for record in records if record.active}
    return [
        Cost(
            layer.path,
            layer.macs,
            layer.work.multiplied,
            layer.work.weights,
            layer.work.read,
            layer.work.written,
            taken[layer.path],
        )
        for layer in found.layers
        if layer.active and layer.path in taken
    ]


def together(runs: Sequence[Sequence[Cost]]) -> list[Cost]:
    """The costs of several timed runs: each layer with the median of its times."""
    found = []
    for same in zip(*runs, strict=True):
        median = float(np.median([cost.milliseconds for cost in same]))
        found.append(Cost(**{**same[0].__dict__, "milliseconds": median}))
    return found
