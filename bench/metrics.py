"""How near edits are to dense ones, over a folder of originals, edited copies and masks; a CSV row for each.

    python -m bench.metrics FOLDER --model landscape-ddpm --policies paper fast -o rows.csv
    python -m bench.metrics FOLDER -o rows.csv --workers tcp://HOST:8786

FOLDER is laid out as SIGE's sets are (`church_outdoor_sdedit`, `cityscapes-edit`; see bench/triples.py). Each row has
the edited area, the share of the MACs, milliseconds, and PSNR, SSIM (and LPIPS) against the dense edit, of the whole
image, inside and outside the mask. Rows that are in the CSV are not computed again, so a run that was stopped goes on.
A file that is missing or damaged is named and skipped; the exit status is 1 then. With `--workers` the originals are
spread over a Dask cluster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import learned
from bench.cluster import measured_on
from bench.harness import table
from bench.measured import DENSE, KEY, VALUES, Job, Wanted, check, measured
from bench.rows import Row, Rows
from bench.triples import Folder, Original, read_folder
from sparsegen.backends.interface import BackendError
from sparsegen.backends.registry import get_backend
from sparsegen.engine.stats import counted
from sparsegen.errors import InputError, SparsegenError
from sparsegen.weights import CheckpointError, builtin

POLICIES = ("paper", "fast")
SETTINGS = {
    "steps": int,
    "noise_level": int,
    "strength": float,
    "guidance": float,
    "sampler": str,
    "seed": int,
    "margin": int,
    "storage": str,
    "ram": str,
}
"""Options that are the session's, by name -> type."""
SHOWN = ("area", "macs", "ms", "psnr", "psnr_in", "psnr_out", "ssim", "ssim_in", "lpips", "psnr_truth")
"""Columns of the table of medians."""


def wanted(folder: Folder, job: Job, rows: Rows) -> list[tuple[Original, Wanted]]:
    """Each original with the (edit, policy) that the CSV has no row of; originals without any are left out."""
    groups: list[tuple[Original, Wanted]] = []
    for original in folder.originals:
        missing = [
            (edit.name, policy)
            for policy in job.policies
            for edit in original.edits
            if job.key(edit.name, policy) not in rows
        ]
        if missing:
            groups.append((original, missing))
    return groups


def compute(
    job: Job, groups: Sequence[tuple[Original, Wanted]], rows: Rows, workers: str | None
) -> list[str]:
    """Compute the rows and write each into the CSV; the lines about files that failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    problems: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("rows", total=sum(len(missing) for _, missing in groups))

        def say(line: str) -> None:
            progress.console.print(line, soft_wrap=True, highlight=False, markup=False)

        for item in _items(job, groups, workers, say):
            if isinstance(item, str):
                say(item)
                problems.append(item)
            elif rows.add(item):
                progress.update(bar, advance=1, description=f"{item['policy']} {item['edit']}")
    return problems


def _items(
    job: Job, groups: Sequence[tuple[Original, Wanted]], workers: str | None, say: object
) -> Iterator[Row | str]:
    if workers is not None and groups:
        yield from measured_on(workers, job, groups, say)
        return
    for original, missing in groups:
        yield from measured(job, original, missing)


def show(job: Job, folder: Folder, rows: Rows, reference: Path | None, *, fid: bool) -> None:
    """Print the medians of each policy over the folder's edits, and FID against a folder of images."""
    names = {edit.name for original in folder.originals for edit in original.edits}
    lines = []
    for policy in job.policies:
        some = [rows.rows[key] for name in sorted(names) if (key := job.key(name, policy)) in rows]
        if not some:
            continue
        line = [policy, str(len(some))]
        for column in SHOWN:
            values = [float(row[column]) for row in some if row[column]]
            line.append(_number(column, statistics.median(values)) if values else "")
        if fid and job.images is not None:
            other = reference or job.images / DENSE
            line.append(f"{learned.fid(job.images / policy, other):.2f}")
        lines.append(line)
    print("medians:")
    table(["policy", "edits", *SHOWN, *(["FID"] if fid else [])], lines)


def _number(column: str, value: float) -> str:
    if column in ("area", "macs"):
        return f"{value:.1%}"
    if value == float("inf"):
        return "∞"
    return f"{value:.1f}" if column == "ms" or column.startswith("psnr") else f"{value:.4f}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, help="original, edited and masks; or meta.csv and what it names")
    add("--model", default="landscape", help="built-in name or checkpoint (landscape)")
    add("--policies", nargs="+", default=POLICIES, help=f"({' '.join(POLICIES)}); {DENSE}: the dense edit")
    add("-o", "--output", type=Path, required=True, help="the CSV; rows that it has are kept")
    add("--backend", help="sparsegen's backend (its default)")
    add("--edits", type=int, help="measure only that many of the folder's edits")
    add("--one-way", action="store_true", help="Cityscapes: only from the real map to the synthetic one")
    add("--size", help="HEIGHTxWIDTH to resize all files to")
    add("--prompt", help="Stable Diffusion: the text that every edit follows")
    for name, kind in SETTINGS.items():
        add(f"--{name.replace('_', '-')}", type=kind, help="of the diffusion session")
    add("--repeats", type=int, default=1, help="times that each edit is made; its ms are the median (1)")
    add("--images", type=Path, help="write each image to IMAGES/POLICY/EDIT.png")
    add("--lpips", nargs="?", const=learned.NETS[0], choices=learned.NETS, help="also LPIPS (package lpips)")
    add(
        "--fid",
        nargs="?",
        const=DENSE,
        help="also FID (package clean-fid) of --images against a folder, or the policy dense",
    )
    add("--workers", metavar="tcp://HOST:PORT", help="the scheduler of a Dask cluster (this process alone)")
    return parser.parse_args(arguments)


def _job(options: argparse.Namespace) -> Job:
    size = None
    if options.size is not None:
        sides = options.size.split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
            raise InputError(f"--size {options.size}: expected HEIGHTxWIDTH in pixels, such as 256x512")
        size = int(sides[0]), int(sides[1])
    if options.repeats < 1 or (options.edits is not None and options.edits < 1):
        raise InputError("--repeats, --edits: expected a whole number of 1 or more")
    policies = tuple(dict.fromkeys(options.policies))
    if options.fid is not None:
        if options.images is None:
            raise InputError("--fid: compares folders of images; give --images FOLDER, too")
        learned.check_fid()
        if options.fid == DENSE and DENSE not in policies:
            policies = (DENSE, *policies)
    return Job(
        options.folder.resolve().name,
        options.model if builtin.get(options.model) else str(Path(options.model).resolve()),
        get_backend(options.backend).name,
        policies,
        {name: value for name in SETTINGS if (value := getattr(options, name)) is not None},
        options.prompt,
        size,
        options.repeats,
        options.lpips,
        None if options.images is None else options.images.resolve(),
    )


def run(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status. Raises InputError, SessionError, CheckpointError, BackendError."""
    options = _options(arguments)
    job = _job(options)
    check(job)
    folder = read_folder(options.folder.resolve(), both_ways=not options.one_way)
    if options.edits is not None:
        folder = folder.first(options.edits)
    rows = Rows(options.output, KEY, VALUES)
    if rows.mended:
        print(f"{options.output}: its last line was cut off; it is computed again", file=sys.stderr)
    for line in folder.problems:
        print(line, file=sys.stderr)
    groups = wanted(folder, job, rows)
    todo = sum(len(missing) for _, missing in groups)
    there = folder.edits * len(job.policies) - todo
    print(
        f"{counted(folder.edits, 'edit')} of {counted(len(folder.originals), 'original')}: "
        f"{there} rows are there, {todo} to compute"
    )
    problems = [*folder.problems, *compute(job, groups, rows, options.workers)]
    reference = None if options.fid in (None, DENSE) else Path(options.fid)
    show(job, folder, rows, reference, fid=options.fid is not None)
    if problems:
        print(f"{counted(len(problems), 'file')} skipped; mended, the same command measures them")
    return 1 if problems else 0


def main() -> None:
    try:
        sys.exit(run())
    except (SparsegenError, CheckpointError, BackendError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the rows that are written are kept: run it again to go on")


if __name__ == "__main__":
    main()
