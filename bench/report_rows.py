"""Which rows of `bench/results/` the page of benchmarks shows: a folder and a file's name come in, rows come out.

Of each case the newest line counts; lines of `--quick` and `--plain-memory` runs do not. Of each kind of vectors the
machine counts that was measured last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.processor import KINDS, kind_of
from bench.quality_tables import Row


def newest(folder: Path, file: str, *fields: str) -> list[Row]:
    """The last line of each case of `<folder>/<file>.jsonl`; a case is the values of `fields` (absent: None).

    No file: no case.
    """
    path = folder / f"{file}.jsonl"
    if not path.exists():
        return []
    found: dict[tuple[Any, ...], Row] = {}
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if not row.get("quick") and not row.get("plain_memory"):
            case = tuple(row.get(field) for field in fields)
            found.pop(case, None)  # in the order of the newest lines
            found[case] = row
    return list(found.values())


def by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Kind of vectors -> the rows of the machine of that kind which the last of `rows` comes from."""
    last = {kind_of(row["machine"]): row["machine"] for row in rows}
    return {
        kind: [row for row in rows if row["machine"] == last[kind]] for kind in (*KINDS, "") if kind in last
    }


def by_kind_and_cores(rows: Sequence[Row]) -> list[list[Row]]:
    """As `by_kind` has them, for each number of cores: the fewest first."""
    cores: dict[int, list[Row]] = {}
    for row in rows:
        named = re.search(r"(\d+) cores", row["machine"])
        cores.setdefault(int(named[1]) if named else 0, []).append(row)
    return [of for number in sorted(cores) for of in by_kind(cores[number]).values()]


def of_the_default(rows: Iterable[Row]) -> list[Row]:
    """The rows of sparsegen's default backend."""
    return [row for row in rows if row["backend"] is None]


def of_file(folder: Path, file: str) -> list[Row]:
    """The newest rows of a network's file, of all machines."""
    return of_the_default(newest(folder, file, "machine", "model", "backend", "engine", "what"))
