"""Editing label maps at the command line: PNGs of labels come in, painted pictures and what they cost go out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host
from sparsegen.weights import builtin

from .. import pictures
from ..errors import InputError
from ..model import Model
from ..profiling import check_mask, profile
from ..run import LayerRecord
from ..session import Session
from .console import out, print_table, progress_bars
from .job import Engine, Job


def edit(job: Job, instances: Path | None, edited_instances: list[Path]) -> None:
    """Paint the original label map, then what each edited one changes."""
    network = job.engine.network
    if edited_instances and (instances is None or len(edited_instances) != len(job.edited)):
        raise InputError(
            f"{len(job.edited)} edited label maps have {len(edited_instances)} --edited-instances; "
            "give one for each, and --instances for the original"
        )
    first, *later = [_read(path, job.model) for path in (job.original, *job.edited)]
    conditions: dict[str, Any] = {} if job.seed is None else {"z": latent(network, job.seed)}
    if instances is not None:
        conditions["instances"] = pictures.read_labels(instances)
    base = network.encode(first, **conditions)
    changes: list[dict[str, Any]] = [
        {} if not edited_instances else {"instances": pictures.read_labels(edited_instances[i])}
        for i in range(len(later))
    ]
    for path, labels, change in zip(job.edited, later, changes, strict=True):
        shape = network.encode(labels, **change).shape
        if shape != base.shape:
            raise InputError(
                f"{path}: {shape[1]}×{shape[2]}, but {job.original} is {base.shape[1]}×{base.shape[2]}"
            )
    mask = None if job.mask is None else check_mask(pictures.read_mask(job.mask), base.shape)

    session = Session(network, job.engine.backend)
    with layer_bars(network, first, **conditions) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pixels outside the mask: said below, in our words
        session.run(first, progress=bar("dense run of the original"), **conditions)
        for path, target, labels, change in zip(job.edited, job.outputs, later, changes, strict=True):
            result = session.edit(
                labels, mask=mask, policy=job.engine.policy, progress=bar(path.name), **change
            )
            pictures.write_png(target, result.image, text=job.text())
            print_table(f"{path} → {target}", result.stats.lines())
            if result.stats.ignored_pixels:
                out.print(
                    f"{result.stats.ignored_pixels} changed pixels lie outside {job.mask} and were not applied"
                )


def demo(engine: Engine, known: builtin.BuiltIn, labels: builtin.Labels) -> tuple[Host, str, list[Any]]:
    """The first edit of the first example: a sheet of pictures, what was edited, and the lines of a table."""
    example = known.examples[0]
    change = example.edits[0]
    original, edited = (pictures.read_labels(path) for path in (example.original, change.path))
    session = Session(engine.network, engine.backend)
    with layer_bars(engine.network, original) as bar:
        first = session.run(original, progress=bar("dense run of the original"))
        sparse = session.edit(edited, policy=engine.policy, progress=bar("sparse edit"))
        # the same session again: what is made ready once, the weights, is ready for both
        dense = session.run(edited, progress=bar("dense run of the edited"))
    dense_ms, sparse_ms = dense.stats.milliseconds, sparse.stats.milliseconds
    panels = [
        ("original labels", pictures.colourise(original, labels.palette)),
        (f"edited labels: {change.caption}", pictures.colourise(edited, labels.palette)),
        ("active tiles over the result", pictures.overlay_tiles(sparse.image, sparse.active)),
        ("original", first.image),
        (f"edited, dense: {dense_ms:.0f} ms", dense.image),
        (f"edited, sparse: {sparse_ms:.0f} ms", sparse.image),
    ]
    rows = [
        *[row for row in sparse.stats.lines() if row[0] not in ("time", "canvases", "codebooks")],
        ("dense run", f"{dense_ms:.0f} ms"),
        ("sparse edit", f"{sparse_ms:.0f} ms ({dense_ms / sparse_ms:.1f} times as fast)"),
        ("PSNR, sparse against dense", f"{pictures.psnr(sparse.images, dense.images):.1f} dB"),
        *sparse.stats.memory(),
    ]
    return pictures.sheet(panels, columns=3), change.caption, rows


def latent(network: Model, seed: int) -> Host:
    """z from a standard normal; InputError where the network has none."""
    length = getattr(network.config, "z_dim", 0)
    if not length:
        raise InputError("--seed: this network starts from the label map; it has no latent z")
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


@contextmanager
def layer_bars(
    network: Model, labels: Host, **conditions: Any
) -> Iterator[Callable[[str], Callable[[LayerRecord], None]]]:
    """A maker of progress bars, one step a layer."""
    layers = len(profile(network, labels, **conditions).layers)
    with progress_bars() as start:

        def bar(description: str) -> Callable[[LayerRecord], None]:
            go, done = start(description, layers), 0

            def after(record: LayerRecord) -> None:
                nonlocal done
                done += 1
                go(done, record.path)

            return after

        yield bar


def _read(path: Path, model: str) -> Host:
    """A label map, or in its own colours one of a built-in model."""
    known = builtin.get(model)
    palette = known.labels.palette if known and known.labels else None
    try:
        return pictures.read_labels(path, palette)
    except pictures.ColourError as error:
        raise InputError(
            f"{error}; {model} paints label maps (for pictures, give --model a diffusion model)"
        ) from None
