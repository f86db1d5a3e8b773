"""The cost of a run: its layer records come in, areas, tiles, MACs and times come out, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class LayerRecord:
    """One layer of one run."""

    path: str
    height: int
    width: int
    active: int
    """Tiles recomputed."""
    total: int
    """Tiles of the canvas."""
    macs: int
    """Multiply-accumulates of the tiles recomputed, counted by the layer's plain formula (zeros included)."""
    macs_dense: int
    milliseconds: float | None = None
    """Time of the layer; None if the run did not measure (then no layer waits for the device)."""

    @property
    def idle(self) -> LayerRecord:
        """The record of a run in which no tile of the layer is recomputed."""
        return LayerRecord(self.path, self.height, self.width, 0, self.total, 0, self.macs_dense)


@dataclass(frozen=True)
class StepRecord:
    """One denoising step of an edit."""

    step: int
    refreshed: bool
    """Whether every layer was computed; otherwise deltas of earlier steps were carried on at the lower resolutions."""
    macs: int
    macs_dense: int
    milliseconds: float

    @classmethod
    def of(cls, step: int, refreshed: bool, layers: Sequence[LayerRecord], seconds: float) -> StepRecord:
        """The record of a step that took `seconds`, from the records of its layers."""
        macs, dense = sum(layer.macs for layer in layers), sum(layer.macs_dense for layer in layers)
        return cls(step, refreshed, macs, dense, seconds * 1e3)


def megabytes(count: int) -> str:
    """A number of bytes as text, such as 12.3 MB."""
    return f"{count / 1e6:.1f} MB"


def counted(count: int, noun: str) -> str:
    """A number with its noun, such as 1 edit, 2 edits."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


class Tiled(Protocol):
    """A layer, with its canvas's size and its active tiles."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def active(self) -> int: ...
    @property
    def total(self) -> int: ...


def active_tiles(layers: Iterable[Tiled]) -> dict[tuple[int, int], tuple[int, int]]:
    """(height, width) -> (active, all) tiles, of the layer with the most active ones at that resolution."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for layer in layers:
        size = (layer.height, layer.width)
        found[size] = max(found.get(size, (0, 0)), (layer.active, layer.total))
    return dict(sorted(found.items(), reverse=True))


@dataclass(frozen=True, repr=False)
class Stats:
    """The cost of one run or edit, next to the dense run of the same input."""

    edited_area: float
    """Share of the input's pixels that the edit changed (its mask, before any dilation), 0 to 1."""
    layers: tuple[LayerRecord, ...]
    """Every layer in the order it ran; none when the edit was empty."""
    milliseconds: float
    """From input to output, everything included."""
    canvas_bytes: int
    """Memory of all canvases."""
    codebook_bytes: int = 0
    """Memory of all codebooks: activations that depend on labels alone, a row for each distinct window."""
    journal_bytes: int = 0
    """Memory that undoing this edit takes."""
    ignored_pixels: int = 0
    """Pixels that changed outside the mask the user gave: not applied."""
    undo_edits: int = 0
    """Edits that can be undone after this one."""
    undo_bytes: int = 0
    """Memory of the journals of all edits that can be undone or redone."""
    forgotten_edits: int = 0
    """Edits since the last run that can no longer be undone: their journals did not fit."""
    steps: tuple[StepRecord, ...] = ()
    """Of an edit of a diffusion session: its denoising steps in order."""

    @property
    def tiles(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(height, width) -> (active, all) tiles, of the layer with the most active ones at that resolution."""
        return active_tiles(self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates as computed."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_dense(self) -> int:
        """Multiply-accumulates of the dense run."""
        return sum(layer.macs_dense for layer in self.layers)

    def lines(self) -> Sequence[tuple[str, str]]:
        """(name, amount) for a table."""
        rows = [("edited area", f"{self.edited_area:.2%}")]
        rows += [
            (f"active tiles at {h}×{w}", f"{active} of {total} ({active / max(total, 1):.1%})")
            for (h, w), (active, total) in self.tiles.items()
        ]
        share = self.macs / self.macs_dense if self.macs_dense else 0.0
        refreshed = sum(step.refreshed for step in self.steps)
        if refreshed < len(self.steps):
            rows.append(
                ("steps", f"{refreshed} of {len(self.steps)} computed every layer, the others carried")
            )
        rows += [
            ("MACs", f"{self.macs / 1e9:.3f} G of {self.macs_dense / 1e9:.3f} G ({share:.1%})"),
            ("time", f"{self.milliseconds:.1f} ms"),
            *self.memory(),
        ]
        return rows

    def memory(self) -> Sequence[tuple[str, str]]:
        """The lines of `lines` about memory."""
        kept = {"canvases": self.canvas_bytes, "codebooks": self.codebook_bytes}
        rows = [(name, megabytes(count)) for name, count in kept.items() if count]
        if self.undo_edits or self.undo_bytes or self.forgotten_edits:
            gone = f" ({self.forgotten_edits} older forgotten)" if self.forgotten_edits else ""
            rows.append(("undo", f"{counted(self.undo_edits, 'edit')}{gone}, {megabytes(self.undo_bytes)}"))
        return rows

    def summary(self) -> str:
        """The cost in a short line."""
        share = self.macs / self.macs_dense if self.macs_dense else 0.0
        macs = f"{self.macs / 1e9:.3f} G MACs ({share:.1%})"
        return f"{self.edited_area:.2%} edited, {macs}, {self.milliseconds:.1f} ms"

    def __repr__(self) -> str:
        return f"<Stats: {self.summary()}>"

    def __str__(self) -> str:
        return "\n".join(f"{name:<28}{value}" for name, value in self.lines())
