"""Costs: what a layer of a run or an edit takes; layers come in, their sums by kind and in total go out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsegen.backends.counting import Work


@dataclass(frozen=True)
class LayerCost:
    """One layer of a run or an edit. MACs, multiply-adds and bytes are those of all its steps together."""

    path: str
    kind: str
    """"3×3", "1×1", "attention", "labels", …"""
    height: int
    width: int
    active: int
    """Tiles recomputed at a step that computes every layer."""
    total: int
    """Tiles of the canvas."""
    macs_dense: int
    macs_paper: int
    macs: int
    """By the plain formula, over the active tiles."""
    work: Work
    """What the backend does for it."""
    canvas_bytes: int
    """Of the canvas, at every step that keeps it."""
    journal_bytes: int
    """Of the tiles that undoing the edit takes."""
    weight_bytes: int
    """Of its parameters, once."""
    milliseconds: float | None = None
    """Measured; None: nothing ran."""


def summed(path: str, kind: str, layers: Sequence[LayerCost]) -> LayerCost:
    """One row for several layers: sums, and the tiles of the layer with the most active ones."""
    most = max(layers, key=lambda layer: layer.active)
    times = [layer.milliseconds for layer in layers if layer.milliseconds is not None]
    return LayerCost(
        path,
        kind,
        most.height,
        most.width,
        most.active,
        most.total,
        sum(layer.macs_dense for layer in layers),
        sum(layer.macs_paper for layer in layers),
        sum(layer.macs for layer in layers),
        sum((layer.work for layer in layers), Work()),
        sum(layer.canvas_bytes for layer in layers),
        sum(layer.journal_bytes for layer in layers),
        sum(layer.weight_bytes for layer in layers),
        sum(times) if times else None,
    )


def grouped(layers: Iterable[LayerCost]) -> list[LayerCost]:
    """One row for all layers of a resolution and a kind, the largest resolution first."""
    found: dict[tuple[int, int, str], list[LayerCost]] = {}
    for layer in layers:
        found.setdefault((-layer.height, -layer.width, layer.kind), []).append(layer)
    return [
        summed(f"{kind} ({len(same)})" if len(same) > 1 else f"{kind}", kind, same)
        for (_, _, kind), same in sorted(found.items(), key=lambda item: item[0][:2])
    ]
