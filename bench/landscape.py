"""The cost of an edit of the built-in landscape over the edited area, against the dense run; checked, then timed.

    python -m bench.landscape [--backend NAME] [--repeats 3]

For each area, a rectangle of that share of the image becomes water (and water becomes meadow).
"""

from __future__ import annotations

from typing import Any

import numpy as np

import sparsegen
from bench.harness import Timing, machine, measure, parse, record
from sparsegen.images import psnr, read_labels
from sparsegen.weights import builtin

AREAS = (0.0, 0.01, 0.02, 0.05, 0.10, 0.20, 0.50, 1.0)
QUICK_AREAS = (0.0, 0.01)
POLICIES = ("paper", "exact")


def original() -> np.ndarray:
    """The labels of the first example, `[H, W]`."""
    known = builtin.get("landscape")
    assert known is not None
    return read_labels(known.examples[0].original)


def edited(labels: np.ndarray, area: float) -> tuple[np.ndarray, np.ndarray]:
    """A copy with a rectangle of `area` repainted, and the rectangle as a mask."""
    known = builtin.get("landscape")
    assert known is not None
    water, meadow = known.labels.names.index("water"), known.labels.names.index("meadow")
    height, width = labels.shape
    h, w = round(height * area**0.5), round(width * area**0.5)
    top, left = (height - h) // 2, (width - w) // 2
    mask = np.zeros(labels.shape, bool)
    mask[top : top + h, left : left + w] = True
    return np.where(mask, np.where(labels == water, meadow, water), labels), mask


def time_edit(
    session: sparsegen.Session, labels: np.ndarray, area: float, policy: str, repeats: int
) -> tuple[Timing, sparsegen.Result]:
    """The times of an edit of `area` on a dense run of `labels`, and its result."""
    changed, mask = edited(labels, area)
    session.run(labels)
    results: list[sparsegen.Result] = []
    timing = measure(
        lambda: results.append(session.edit(changed, mask=mask, policy=policy)),
        repeats=repeats,
        between=session.undo,
    )
    return timing, results[-1]


def main() -> None:
    options = parse(__doc__, repeats=3)
    model, labels = sparsegen.load("landscape"), original()
    chosen = {} if options.backend is None else {"backend": options.backend}

    # correctness first: an exact edit equals the dense run of the edited labels, bit for bit
    session = sparsegen.Session(model, **chosen)
    session.run(labels)
    changed, _ = edited(labels, 0.02)
    assert np.array_equal(
        session.edit(changed, policy="exact").output,
        sparsegen.Session(model, **chosen).run(changed).output,
    )

    print(machine())
    dense = measure(lambda: session.run(labels), repeats=options.repeats)
    common = {"model": "landscape", "size": "256x512", "backend": session.memory.backend.name}

    def keep(**row: Any) -> None:
        record("landscape", {**common, **row}, folder=options.results)

    keep(what="dense", ms=dense.median, spread=dense.spread)
    print(f"dense run: {dense.median:8.1f} ms (spread {dense.spread:.0%})")
    print("  area  policy        ms  spread  times as fast     MACs    PSNR to dense")
    for area in QUICK_AREAS if options.quick else AREAS:
        changed, _ = edited(labels, area)
        truth = sparsegen.Session(model, **chosen).run(changed).images
        for policy in POLICIES:
            timing, result = time_edit(session, labels, area, policy, options.repeats)
            stats = result.stats
            share = stats.macs / stats.macs_dense if stats.layers else 0.0
            quality = psnr(result.images, truth)
            keep(
                what="edit",
                area=stats.edited_area,
                policy=policy,
                ms=timing.median,
                spread=timing.spread,
                ratio=dense.median / timing.median,
                macs=share,
                psnr=quality,
            )
            print(
                f"{stats.edited_area:6.1%}  {policy:6}  {timing.median:8.1f}  {timing.spread:6.0%}"
                f"  {dense.median / timing.median:13.1f}  {share:7.1%}  {quality:10.1f} dB"
            )


if __name__ == "__main__":
    main()
