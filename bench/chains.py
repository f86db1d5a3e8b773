"""Edits in a row, each on the result of the last: PSNR against the same row of dense edits; then undo and redo of all.

    python -m bench.chains [--backend NAME] [--model landscape-ddpm]

Under `DENSE` every layer computes every tile and every norm measures, so a session chains dense edits (checked: its
first edit has the bits of `SDEdit.dense`). Two figures follow each edit: the PSNR against the dense row, over the
regions of all edits so far; and that of the last edit alone, against the dense edit of the same strokes from the same
place. The first shows how errors add up, the second whether an edit suffers from the edits before it. Undo of all must
give the original, bit for bit, the first edit again its old bits, and undo and redo of all the last image.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import sparsegen
from bench.harness import machine, parse, record, say, table
from bench.quality_tables import Row, chain_head, chain_lines
from bench.strokes import painted, unseen_image
from sparsegen.images import psnr

POLICIES = ("paper", "fast")
DENSE = "fast(sparse_levels=0, refresh=1, statistics=1)"
FIRST = 4_000_000
"""The seed of the first image."""
CHAINS, EDITS, AREA = 2, 10, 0.02
QUICK_STEPS = 6


def dense_row(session: sparsegen.SDEdit, image: np.ndarray, seed: int, edits: int) -> list[np.ndarray]:
    """The images after each of a row of dense edits."""
    session.run(image)
    expected = session.dense(_strokes(session.image, seed, 0)).output
    found = []
    for number in range(edits):
        result = session.edit(_strokes(session.image, seed, number))
        if number == 0 and not np.array_equal(result.output, expected):
            raise SystemExit(
                f"{DENSE}: an edit differs from the dense edit; there is nothing to compare with"
            )
        found.append(result.image)
    return found


def chain(session: sparsegen.SDEdit, image: np.ndarray, seed: int, dense: list[np.ndarray]) -> Iterator[Row]:
    """The figures after each of a row of edits, once undo and redo of them all are checked."""
    rows, outputs, united = [], [session.run(image).output], np.zeros(image.shape[:2], bool)
    for number, expected in enumerate(dense):
        before = session.image
        strokes = _strokes(before, seed, number)
        alone = session.dense(strokes).image
        result = session.edit(strokes)
        outputs.append(result.output)
        last = (result.image != before).any(-1) | (alone != before).any(-1)
        united |= last | (expected != image).any(-1)
        rows.append(
            {
                "edit": number + 1,
                "area": float(united.mean()),
                "psnr_all": psnr(result.image[united], expected[united]),
                "psnr_last": psnr(result.image[last], alone[last]),
            }
        )
    _check_history(session, seed, outputs)
    yield from rows


def _check_history(session: sparsegen.SDEdit, seed: int, outputs: list[np.ndarray]) -> None:
    """Exit if undo or redo of a row of edits gives other bits than `outputs`, which start with the original's."""

    def check(what: str, found: np.ndarray, expected: np.ndarray) -> None:
        if not np.array_equal(found, expected):
            raise SystemExit(f"{session.policy}: {what} differs from what it was")

    for expected in outputs[-2::-1]:
        check("an image after undo", session.undo().output, expected)
    for expected in outputs[1:]:
        check("an image after redo", session.redo().output, expected)
    while session.edits:
        session.undo()
    first = session.edit(_strokes(session.image, seed, 0)).output
    check("the first edit, after undo of all,", first, outputs[1])


def _strokes(image: np.ndarray, seed: int, number: int) -> np.ndarray:
    """The strokes of an edit of a row, on an image."""
    return painted(image, seed + number, AREA)


def measured(model: Any, *, backend: str | None, chains: int, edits: int, **settings: Any) -> Iterator[Row]:
    """The rows of all chains under all policies; `settings` are those of `SDEdit`."""
    for number in range(chains):
        seed = FIRST + 100 * number
        image = unseen_image(seed)
        say(f"chain {number + 1} of {chains}: dense")
        with (
            warnings.catch_warnings(),
            sparsegen.SDEdit(model, policy=DENSE, backend=backend, **settings) as session,
        ):
            warnings.simplefilter("ignore")  # its journals are too large to keep, and nothing is undone
            dense = dense_row(session, image, seed, edits)
        for policy in POLICIES:
            say(f"chain {number + 1} of {chains}: {policy}")
            with sparsegen.SDEdit(model, policy=policy, backend=backend, undo="4GB", **settings) as session:
                for row in chain(session, image, seed, dense):
                    yield {"chain": number, "policy": policy, **row}


def report(name: str, *, backend: str | None, quick: bool, results: Path | None) -> None:
    """Measure, record, and print a table."""
    size: dict[str, int] = (
        {"chains": 1, "edits": 2, "steps": QUICK_STEPS} if quick else {"chains": CHAINS, "edits": EDITS}
    )
    rows = []
    for row in measured(sparsegen.load(name), backend=backend, **size):
        rows.append(row)
        record("chains", {"model": name, "quick": quick, **row}, folder=results)
    table(chain_head(rows), chain_lines(rows))


def main() -> None:
    options = parse(__doc__, model="landscape-ddpm")
    print(machine())
    report(options.model, backend=options.backend, quick=options.quick, results=options.results)


if __name__ == "__main__":
    main()
