"""Rooflines: the layers of a run come in, beside each the least time that the card allows comes out.

A layer cannot take less than its arithmetic at the card's peak, nor less than its bytes at the card's bandwidth. Bytes
are counted as if each were moved once: the weights, the pixels of the canvases that the active tiles need at least, the
tiles written. Arithmetic is the algorithm's own: a 3×3 layer by Winograd's F(4×4, 3×3) multiplies a quarter as often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.engine.run import LayerStep
from sparsegen.engine.stats import LayerRecord


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


def costs(
    steps: Iterable[object],
    records: Sequence[LayerRecord],
    parameters: dict[str, Any],
    precision: str,
) -> list[Cost]:
    """The cost of each layer that a timed run computed.

    Parameters
    ----------
    steps
        The model's program.
    records
        The run's, with times. The record of a layer that another computes on its way is counted with that one.
    parameters
        The model's, by path: each has a shape.
    """
    by_path = {record.path: record for record in records}
    layers = [step for step in steps if isinstance(step, LayerStep)]
    shapes = {step.canvas.path: step.shape for step in layers}
    found = []
    for step in layers:
        if step.canvas.path not in by_path:
            continue
        record = by_path[step.canvas.path]
        n, h, w, c = step.shape
        pixels = min(record.active * 16, n * h * w)
        if not pixels:
            continue
        parts = [record, *(by_path[inner.path] for inner in step.inners if inner.path in by_path)]
        weights = [_weights(parameters, part.path) for part in parts]  # values, the weight's shape
        winograd = step.whole_tiles and precision == "float32"
        found.append(
            Cost(
                " + ".join(part.path for part in parts),
                sum(part.macs for part in parts),
                sum(
                    part.macs / (4 if winograd and shape[-2:] == (3, 3) else 1)
                    for part, (_, shape) in zip(parts, weights, strict=True)
                ),
                sum(count for count, _ in weights) * (2 if precision == "float16" else 4),
                4 * sum(_read(read, pixels, shapes) for read in step.reads),
                4 * pixels * c,
                sum(part.milliseconds or 0.0 for part in parts),
            )
        )
    return found


def _weights(parameters: dict[str, Any], path: str) -> tuple[int, tuple[int, ...]]:
    """The values of a layer's parameters, and the shape of its weight."""
    shapes = {name: tuple(each.shape) for name, each in parameters.items() if name.startswith(f"{path}.")}
    return sum(map(math.prod, shapes.values())), shapes.get(f"{path}.weight", ())


def _read(read: Any, pixels: int, shapes: dict[str, tuple[int, int, int, int]]) -> int:
    """The values of a canvas that so many output pixels need at least; `shapes` has the layers' canvases."""
    n, h, w, c = shapes.get(read.canvas.path) or read.canvas.shape  # of an input the array is there
    scale = read.window.stride * read.window.step / read.window.upsample
    least = n * h * w if read.everywhere else min(n * h * w, math.ceil(pixels * scale**2))
    return least * c


def together(runs: Sequence[Sequence[Cost]]) -> list[Cost]:
    """The costs of several timed runs: each layer with the median of its times."""
    found = []
    for same in zip(*runs, strict=True):
        median = float(np.median([cost.milliseconds for cost in same]))
        found.append(Cost(**{**same[0].__dict__, "milliseconds": median}))
    return found
