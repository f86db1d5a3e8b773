"""The distance of sparse edits from dense ones, policy by policy, and what each idea of `fast` has to do with it.

    python -m bench.quality [--backend NAME] [--model landscape-ddpm] [--first 3000000] [--policies paper fast …]
    python -m bench.quality --study [edits] [levels] [steps] [confirm] [--edits 12]

The edits are 32 seeded strokes of 1 to 20 % on images outside the training data, and a built-in model's examples. Each
policy opens a session, since a session's canvases are laid out for its policy. Its edits are compared with dense edits
of the same strokes on the same noise (`SDEdit.dense`). PSNR and SSIM are of the whole image and of its *region*, the
pixels that either edit changed. Figures go to bench/results/quality.jsonl, a sheet of images and a curve beside it.
Then come edits in a row (`bench.chains`). `--study` sweeps the settings of `fast` instead (`bench.study`). With
`--model landscape-sd`, edits of Stable Diffusion are measured (`bench.latents`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sparsegen
from bench import chains, latents, study
from bench.compared import compared
from bench.harness import machine, parse, record, say, table, verdict
from bench.quality_tables import POLICIES, Row, by_policy, head, lines, verdicts
from bench.strokes import EDITS, EXAMPLES, FIRST, Strokes, examples, group_of, unseen
from sparsegen.images import sheet, write_png

QUICK_POLICIES = ("paper", "fast", "fast(refresh=3)")
QUICK_EDITS, QUICK_STEPS = 3, 6
SHOWN = ("paper", "fast")
"""The policies on the sheet of images."""
SHEET = 8
"""Edits on it."""


class Measure:
    """Edits of one list of strokes under one policy after the other; the dense edits are computed once.

    Parameters
    ----------
    model, backend
        As for `SDEdit`.
    strokes
        The edits.
    settings
        Further options of `SDEdit`.
    """

    def __init__(self, model: Any, backend: str | None, strokes: Sequence[Strokes], **settings: Any) -> None:
        self.model, self.backend, self.strokes, self.settings = model, backend, strokes, settings
        self.dense: dict[int, sparsegen.Result] = {}
        """Number of the strokes -> their dense edit."""
        self.images: dict[str, list[np.ndarray]] = {}
        """Policy -> its images, of the policies on the sheet."""

    def rows(self, policy: str) -> Iterator[Row]:
        """A row of figures for each of the strokes."""
        with sparsegen.SDEdit(self.model, policy=policy, backend=self.backend, **self.settings) as session:
            before = None
            for i, strokes in enumerate(self.strokes):
                say(f"{policy}: {strokes.group}, edit {i + 1} of {len(self.strokes)}")
                if before is strokes.original:
                    session.undo()
                else:
                    session.run(strokes.original)
                before = strokes.original
                if i not in self.dense:
                    self.dense[i] = session.dense(strokes.edited)
                result = session.edit(strokes.edited)
                if policy in SHOWN:
                    self.images.setdefault(policy, []).append(result.image)
                yield {
                    "group": strokes.group,
                    "name": strokes.name,
                    "policy": policy,
                    **compared(result, self.dense[i], strokes.original),
                }

    def sheet(self) -> np.ndarray:
        """Some of the edits: original, strokes, the dense edit, and the edits of the policies that have run."""
        panels: list[tuple[str, np.ndarray]] = []
        for i in range(0, len(self.strokes), max(1, len(self.strokes) // SHEET)):
            strokes, dense = self.strokes[i], self.dense[i]
            panels += [
                ("original", strokes.original),
                (f"strokes {dense.stats.edited_area:.1%}", strokes.edited),
                ("dense", dense.image),
                *((policy, images[i]) for policy, images in self.images.items()),
            ]
        return np.asarray(sheet(panels, columns=3 + len(self.images)))


def plot(path: Path, rows: Sequence[Row]) -> None:
    """The region PSNR over the MACs: a point at each policy's medians, a line down to its lowest PSNR."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 7), layout="constrained")
    for i, (label, some) in enumerate(by_policy(rows).items()):
        values = [min(row["psnr_region"], 100.0) for row in some]  # of equal images it is infinite
        macs, middle = statistics.median(row["macs"] for row in some) * 100, statistics.median(values)
        (point,) = axes.plot(macs, middle, "o" if label == some[0]["policy"] else ".")
        axes.vlines(macs, min(values), middle, color=point.get_color(), alpha=0.4)
        side, aligned = ((6, "left"), (-6, "right"))[i % 2]  # points of the same MACs lie close together
        axes.annotate(
            label, (macs, middle), (side, 0), textcoords="offset points", fontsize=8, ha=aligned, va="center"
        )
    axes.set(
        title="Edits against dense ones: median, and down to the lowest",
        xlabel="MACs, % of the dense edit's (median)",
        ylabel="PSNR of the region, dB",
    )
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def show(rows: Sequence[Row]) -> None:
    """Print the table and the verdicts of one group."""
    print(f"\n{rows[0]['group']}: PSNR of the region against the dense edit, median · lowest, in dB")
    table(head(rows), lines(rows))
    for what, figure, aim, reached in verdicts(rows):
        print(f"{what}: {figure} (aimed at {aim}): {verdict(reached)}")


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--edits", type=int, default=EDITS, help=f"number of strokes, of {EDITS}")
        parser.add_argument("--first", type=int, default=FIRST, help=f"seed of the first image ({FIRST})")
        parser.add_argument("--policies", nargs="+", help="policies to measure (all of the table)")
        parser.add_argument("--no-chains", action="store_true", help="no edits in a row")
        parser.add_argument(
            "--study", nargs="*", choices=study.PARTS, help="sweep the settings of fast: some parts, or all"
        )

    options = parse(__doc__, model="landscape-ddpm", more=more)
    quick, results = options.quick, options.results
    if options.study is not None:
        edits = QUICK_EDITS if quick else options.edits
        parts = options.study or study.PARTS
        study.study(
            options.model, parts, backend=options.backend, first=options.first, edits=edits, results=results
        )
        return
    bundle = sparsegen.load_bundle(options.model)
    if len(bundle.models) > 1:
        latents.report(options.model, backend=options.backend, quick=quick, results=results)
        return
    model = bundle.model
    settings = {"steps": QUICK_STEPS} if quick else {}
    strokes = [*unseen(options.first, QUICK_EDITS if quick else options.edits)]
    own = options.first == FIRST and not quick
    groups = {group_of(options.first): strokes, EXAMPLES: [*examples(options.model)] if own else []}
    measures = [Measure(model, options.backend, some, **settings) for some in groups.values() if some]
    found: list[Row] = []
    for policy in options.policies or (QUICK_POLICIES if quick else POLICIES.values()):
        for measure in measures:
            for row in measure.rows(policy):
                found.append(row)
                record("quality", {"model": options.model, "quick": quick, **row}, folder=results)
    print(machine())
    for group in groups:
        rows = [row for row in found if row["group"] == group]
        if rows:
            show(rows)
    if results is not None and options.first == FIRST and not options.policies:
        write_png(results / "quality.png", measures[0].sheet())
        plot(results / "quality-curve.png", [row for row in found if row["group"] == group_of(FIRST)])
    if not options.no_chains:
        print("\nEdits in a row: PSNR against dense edits, median · lowest, in dB")
        chains.report(options.model, backend=options.backend, quick=quick, results=results)


if __name__ == "__main__":
    main()
