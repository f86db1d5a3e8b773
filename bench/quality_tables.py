"""Tables of quality: the rows of `quality.jsonl` and `chains.jsonl` come in, heads, lines and verdicts come out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

Row: TypeAlias = dict[str, Any]

POLICIES = {
    "paper": "paper",
    "exact": "exact",
    "fast": "fast",
    "sparse everywhere": "fast(statistics=0, refresh=1)",
    "statistics": "fast(refresh=1)",
    "carried": "fast(statistics=0)",
}
"""Label -> policy. Below `fast`, its ideas one by one."""
BINS = (0.0, 0.02, 0.05, 0.10, 0.25)
"""The bounds of the area classes, shares of the image."""
BEHIND_DB = 0.5
"""How far the median of `fast` may lie below `paper`'s in any area class."""
WORST_DB = 38.0
"""The least region PSNR of any edit under `fast`."""


class Verdict(NamedTuple):
    """A figure beside its aim."""

    what: str
    figure: str
    aim: str
    reached: bool


def by_policy(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Label -> rows, in the order of `POLICIES`; other policies come last, each labelled by itself."""
    labels = {policy: label for label, policy in POLICIES.items()}
    found: dict[str, list[Row]] = {label: [] for label in POLICIES}
    for row in rows:
        found.setdefault(labels.get(row["policy"], str(row["policy"])), []).append(row)
    return {label: some for label, some in found.items() if some}


def by_area(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Area class -> rows; a class without any is left out."""
    found = {
        f"{low:.0%} to {high:.0%}".replace("%", " %"): [row for row in rows if low <= row["area"] < high]
        for low, high in pairwise(BINS)
    }
    return {name: some for name, some in found.items() if some}


def head(rows: Sequence[Row]) -> list[str]:
    """The head of `lines`: each area class with its number of edits."""
    edits = {(row["group"], row["name"]): row for row in rows}
    classes = by_area(list(edits.values()))
    smallest = next(iter(classes))
    shown = [f"{name} ({len(some)})" for name, some in classes.items()]
    return ["policy", f"MACs, {smallest}", *shown, "all", "SSIM", "image"]


def lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    """A line for each policy: median and lowest region PSNR in every area class, in dB."""
    classes = list(by_area(rows))
    for label, some in by_policy(rows).items():
        of = by_area(some)
        small = of.get(classes[0], [])
        yield [
            label if label == some[0]["policy"] else f"{label}: {some[0]['policy']}",
            f"{_median(small, 'macs'):.1%}".replace("%", " %") if small else "",
            *(_pair(of.get(name, []), "psnr_region", decibels) for name in classes),
            _pair(some, "psnr_region", decibels),
            _pair([row for row in some if "ssim_region" in row], "ssim_region", "{:.4f}".format),
            _pair(some, "psnr", decibels),
        ]


def verdicts(rows: Sequence[Row]) -> Iterator[Verdict]:
    """The aims of `fast`, as far as it and `paper` are among the rows."""
    of = by_policy(rows)
    paper, fast = by_area(of.get("paper", [])), by_area(of.get("fast", []))
    for name in [name for name in paper if name in fast]:
        ours, theirs = _median(fast[name], "psnr_region"), _median(paper[name], "psnr_region")
        behind = 0.0 if ours == theirs else theirs - ours  # both may be infinite
        what = f"median of fast below paper's, {name}"
        yield Verdict(what, f"{behind:.1f} dB", f"≤ {BEHIND_DB:g} dB", behind <= BEHIND_DB)
    if fast:
        worst = min(row["psnr_region"] for row in of["fast"])
        yield Verdict("lowest of fast", f"{worst:.1f} dB", f"≥ {WORST_DB:g} dB", worst >= WORST_DB)


def beside_paper(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence on each edit of `fast` beside the same one of `paper`, if both are among the rows."""
    of = by_policy(rows)
    paper = {row["name"]: row for row in of.get("paper", [])}
    pairs = [(row, paper[row["name"]]) for row in of.get("fast", []) if row["name"] in paper]
    if pairs:
        gains = [ours["psnr_region"] - theirs["psnr_region"] for ours, theirs in pairs]
        macs = sorted(ours["macs"] / theirs["macs"] for ours, theirs in pairs)
        farther = [gain for gain in gains if gain < 0]
        yield (
            f"`fast` is nearer to the dense edit than `paper` in {len(pairs) - len(farther)} of {len(pairs)} edits, by "
            f"up to {max(gains):.1f} dB, and farther in {len(farther)}, by up to {-min(gains):.1f} dB; by "
            f"{statistics.median(gains):.1f} dB nearer at the median. Its MACs are {macs[0]:.2f} to {macs[-1]:.2f} of "
            f"`paper`'s, {statistics.median(macs):.2f} at the median."
        )


def chain_head(rows: Sequence[Row]) -> list[str]:
    """The head of `chain_lines`: the numbers of the edits."""
    return ["policy", "PSNR against dense edits", *map(str, _numbers(rows))]


def chain_lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Two lines for each policy: median and lowest PSNR of all regions so far, and of the last edit alone, in dB."""
    for label, some in by_policy(rows).items():
        for shown, field in (
            ("a row of them, all regions", "psnr_all"),
            ("the last one, its region", "psnr_last"),
        ):
            cells = [
                _pair([row for row in some if row["edit"] == number], field, decibels)
                for number in _numbers(rows)
            ]
            yield [label, shown, *cells]


def _numbers(rows: Sequence[Row]) -> list[int]:
    return sorted({row["edit"] for row in rows})


def _median(rows: Sequence[Row], field: str) -> float:
    return float(statistics.median(row[field] for row in rows))


def _pair(rows: Sequence[Row], field: str, show: Callable[[float], str]) -> str:
    """Median and lowest value; "" without rows."""
    return f"{show(_median(rows, field))} · {show(min(row[field] for row in rows))}" if rows else ""


def decibels(value: float) -> str:
    """A PSNR as text; ∞ of equal images."""
    return "∞" if value == float("inf") else f"{value:.1f}"
