"""Tables of the study of `fast`'s settings: rows that `bench.study` recorded come in, heads and lines come out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from bench.quality_tables import Row, by_area, decibels

K = TypeVar("K", bound=Hashable)
PAPER = "`paper`"


class Table(NamedTuple):
    """A table of figures."""

    head: list[str]
    lines: list[list[str]]


def weights(rows: Sequence[Row], refresh: int) -> Table:
    """Weight of fresh statistics by area class, of edits with that `refresh`; `paper` comes first."""
    some = [row for row in rows if _is_paper(row) or (row["refresh"], row["frontier"]) == (refresh, 0)]
    return _by_area("weight", some, lambda row: f"{row['statistics']:g}")


def refreshes(rows: Sequence[Row], weight: float) -> Table:
    """`refresh` and `frontier` by area class, of edits with that weight of fresh statistics; `paper` comes first."""
    some = [row for row in rows if _is_paper(row) or row["statistics"] == weight]
    some.sort(key=lambda row: (row.get("frontier", -1), row.get("refresh", -1)))
    return _by_area("`frontier`, `refresh`", some, lambda row: f"{row['frontier']}, {row['refresh']}")


def levels(rows: Sequence[Row]) -> Table:
    """Setting by noise level, of the strokes and the settings that were measured at all levels."""
    rows = [row for row in rows if _is_paper(row) or row["frontier"] == 0]
    known = sorted({row["noise_level"] for row in rows})
    of_strokes = [{row["name"] for row in rows if row["noise_level"] == level} for level in known]
    common = set.intersection(*of_strokes)
    lines = []
    for name, some in grouped(rows, lambda row: PAPER if _is_paper(row) else _shown(row)).items():
        cells = [
            [row for row in some if row["noise_level"] == level and row["name"] in common] for level in known
        ]
        if all(cells):
            lines.append([name, *map(_pair, cells)])
    head = ["weight, `refresh`", *(f"from noise level {level} ({len(common)})" for level in known)]
    return Table(head, lines)


def of_level(rows: Sequence[Row], level: int) -> Table:
    """Setting by area class, of edits from one noise level."""
    some = [row for row in rows if row["noise_level"] == level]
    return _by_area("weight, `refresh`", some, _shown)


def steps(rows: Sequence[Row]) -> Table:
    """Weight of fresh statistics by the time of a single step: median · lowest gain, in dB."""
    times = sorted({row["time"] for row in rows}, reverse=True)
    lines = []
    for weight, of in sorted(grouped(rows, lambda row: row["statistics"]).items()):
        gains = [[row["gain"] for row in of if row["time"] == time] for time in times]
        lines.append([f"{weight:g}", *(f"{statistics.median(some):.1f} · {min(some):.1f}" for some in gains)])
    return Table(["weight", *(f"time {time}" for time in times)], lines)


def count(rows: Sequence[Row]) -> int:
    """The number of strokes."""
    return len({(row["group"], row["name"]) for row in rows})


def plot(path: Path, rows: Sequence[Row], weight: float, refresh: int) -> None:
    """The region PSNR over the weight, by area class, with every step computed and with that `refresh`; with that
    `weight`, over the MACs, by the other settings.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    settings = [row for row in rows if not _is_paper(row)]
    for every, style in ((1, "-"), (refresh, "--")):
        some = [row for row in settings if (row["refresh"], row["frontier"]) == (every, 0)]
        for i, (name, of) in enumerate(by_area(some).items()):
            medians = {at: _median(each) for at, each in grouped(of, lambda row: row["statistics"]).items()}
            label = f"{name}, refresh {every}"
            left.plot(medians.keys(), medians.values(), style, marker=".", color=f"C{i}", label=label)
    left.set(xlabel="weight of fresh statistics", ylabel="PSNR of the region, dB (median)")
    of_weight = sorted(
        (row for row in settings if row["statistics"] == weight), key=lambda row: row["frontier"]
    )
    for frontier, some in grouped(of_weight, lambda row: row["frontier"]).items():
        by_refresh = sorted(grouped(some, lambda row: row["refresh"]).items())
        macs = [_median(each, "macs") * 100 for _, each in by_refresh]
        values = [_median(each) for _, each in by_refresh]
        right.plot(macs, values, marker=".", label=f"frontier {frontier}")
        for at, value, (every, _) in zip(macs, values, by_refresh, strict=True):
            right.annotate(str(every), (at, value), (4, -9), textcoords="offset points", fontsize=7)
    paper = [row for row in rows if _is_paper(row)]
    right.plot(_median(paper, "macs") * 100, _median(paper), "kx", label="paper")
    right.set(xlabel="MACs, % of the dense edit's (median); the numbers are refresh")
    for axes in (left, right):
        axes.legend(loc="lower right", fontsize=7)
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def grouped(rows: Sequence[Row], key: Callable[[Row], K]) -> dict[K, list[Row]]:
    """Key -> its rows, in their order."""
    found: dict[K, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _is_paper(row: Row) -> bool:
    return bool(row["policy"] == "paper")


def _shown(row: Row) -> str:
    return f"{row['statistics']:g}, {row['refresh']}"


def _by_area(first: str, rows: Sequence[Row], name: Callable[[Row], str]) -> Table:
    """A line for each name: MACs (median), and the median · lowest PSNR of each area class."""
    classes = {each: count(some) for each, some in by_area(rows).items()}
    lines = []
    for shown, some in grouped(rows, lambda row: PAPER if _is_paper(row) else name(row)).items():
        of = by_area(some)
        cells = [_pair(of[each]) for each in classes]
        lines.append([shown, f"{_median(some, 'macs') * 100:.1f} %", *cells, _pair(some)])
    return Table(
        [first, "MACs", *(f"{each} ({n})" for each, n in classes.items()), f"all ({count(rows)})"], lines
    )


def _median(rows: Sequence[Row], field: str = "psnr_region") -> float:
    return float(statistics.median(row[field] for row in rows))


def _pair(rows: Sequence[Row]) -> str:
    """The median and the lowest PSNR of the region."""
    return f"{decibels(_median(rows))} · {decibels(min(row['psnr_region'] for row in rows))}"
