"""Tables of costs: layers come in, lines of at most 100 columns go out, totals last; numbers are those of one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .costs import LayerCost, grouped, summed
from .roofline import Machine

NAME = 27
"""Columns of a layer's name; a longer one loses its beginning."""
_COUNTS = "dense", "paper", "here", "mult."
_BYTES = "canvas", "undo", "weights"
_TIMES = "mult. G", "MB", "per byte", "bound", "least ms", "ms", "of bound", "of time"


def counts(layers: Sequence[LayerCost], steps: int, *, each: bool = False) -> list[str]:
    """MACs and memory: a line for every kind of layer at a resolution, or for `each` layer, and their totals.

    G MACs by the plain formula: of a dense run, as the paper counts an edit, here; and the multiply-adds that the
    backend performs. MB of canvases and of what undo takes, at one step on average, and of weights.
    """
    heads = f"{'':<{NAME}} {'':>9} {'':>6}  {'G MACs':<31} {'MB':<23}"
    names = "".join(f" {name:>7}" for name in (*_COUNTS, *_BYTES))
    lines = [heads.rstrip(), f"{'layer':<{NAME}} {'size':>9} {'active':>6}{names}"]
    total = summed("total", "", layers)
    for row in (*(layers if each else grouped(layers)), total):
        macs = (row.macs_dense, row.macs_paper, row.macs, row.work.multiplied)
        memory = (row.canvas_bytes / steps, row.journal_bytes / steps, row.weight_bytes)
        figures = [number(value / 1e9 / steps) for value in macs] + [number(value / 1e6) for value in memory]
        lines.append(_start(row, row is total) + "".join(f" {figure:>7}" for figure in figures))
    return lines


def times(
    layers: Sequence[LayerCost], steps: int, machine: Machine | None, *, each: bool = False
) -> list[str]:
    """Rooflines and times, a line as in `counts`.

    The multiply-adds that the backend performs, the megabytes that it moves, their ratio; what bounds the layer on the
    `machine`, the least time by that, the time measured, the share of the bound that it reaches (above 100 %: its data
    came from a cache), its share of the time of all layers.
    """
    names = "".join(f" {name:>8}" for name in _TIMES)
    lines = [f"{'layer':<{NAME - 9}} {'size':>9}{names}"]
    total = summed("total", "", layers)
    for row in (*(layers if each else grouped(layers)), total):
        least, bound = bounds(layers if row is total else [row], machine)
        took, work = row.milliseconds, row.work
        figures = (
            number(work.multiplied / 1e9 / steps),
            number(work.moved / 1e6 / steps),
            number(work.multiplied / work.moved) if work.moved else "",
            "" if machine is None or row is total else bound,
            "" if machine is None else number(least / steps),
            "" if took is None else number(took / steps),
            "" if machine is None or not took else f"{least / took:.0%}",
            "" if not took or not total.milliseconds else f"{took / total.milliseconds:.1%}",
        )
        size = "" if row is total else f"{row.height}×{row.width}"
        name = _cut(row.path, NAME - 9)
        lines.append(f"{name} {size:>9}" + "".join(f" {figure:>8}" for figure in figures))
    return lines


def bounds(layers: Iterable[LayerCost], machine: Machine | None) -> tuple[float, str]:
    """The least milliseconds of layers that run one after another, and what bounds most of that time."""
    by: dict[str, float] = {}
    for layer in layers if machine is not None else ():
        assert machine is not None
        least, bound = machine.bound(layer.work)
        by[bound] = by.get(bound, 0.0) + least
    return sum(by.values()), max(by, key=lambda bound: by[bound], default="")


def number(value: float) -> str:
    """Three digits or more, in at most seven columns."""
    if not value:
        return "0"
    if value < 0.005:
        return "<0.01"
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 10**5 else f"{value:.0f}"


def _start(row: LayerCost, is_total: bool) -> str:
    size = "" if is_total else f"{row.height}×{row.width}"
    share = "" if is_total else f"{row.active / max(row.total, 1):.1%}"
    return f"{_cut(row.path, NAME)} {size:>9} {share:>6}"


def _cut(name: str, width: int) -> str:
    return f"{name:<{width}}" if len(name) <= width else "…" + name[1 - width :]
