"""Editing label maps at the command line: PNGs of labels come in, painted images and their costs go out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host
from sparsegen.weights import builtin

from .. import images
from ..editing.session import Session
from ..engine.stats import LayerRecord
from ..errors import InputError
from ..images import ImageFile
from ..models.base import Model
from ..models.spade import SPADEGenerator
from ..tools.profile import profile
from .console import print_table, progress_bars
from .job import Engine, Job, ignore_printed, print_result, settings_rows, written_by
from .kept import ORIGINAL, keeping, note_change
from .reading import decoded, naming


def edit(
    job: Job, instances: Path | None, edited_instances: list[Path], unknown_label: int | None = None
) -> None:
    """Paint the original label map, then the changes of each edited one; a variation has its own latent vector."""
    model, kept = job.engine.model, job.kept
    assert isinstance(model, SPADEGenerator)  # the only kind that takes label maps
    goes_on = kept is not None and kept.goes_on
    if edited_instances and ((instances is None and not goes_on) or len(edited_instances) != len(job.edited)):
        raise InputError(
            f"{len(job.edited)} edited label maps have {len(edited_instances)} --edited-instances; "
            "give one for each, and --instances for the original"
        )
    if unknown_label is not None and not 0 <= unknown_label < model.labels:
        raise InputError(
            f"--unknown-label {unknown_label}: expected a label of this model, 0 to {model.labels - 1}"
        )
    latents: dict[int | None, dict[str, Any]]
    latents = {seed: {} if seed is None else {"z": latent(model, seed, job.count)} for seed in job.seeds}
    conditions: dict[str, Any] = {}
    seed = job.seeds[0]
    if kept is not None:
        kept_label = kept.option("unknown_label", unknown_label, later=True)
        unknown_label = None if kept_label is None else int(kept_label)
        kept_seed = kept.option("seed", seed)
        seed = None if kept_seed is None else int(kept_seed)
    files = decoded([*job.inputs, *([instances] if instances else []), *edited_instances])
    original = files[job.original]
    maps = [_read(files[path], original, job, model, unknown_label) for path in (job.original, *job.edited)]
    frame = job.fit.frame(model, original)
    first, *later = [
        frame.nearest(labels, path) for labels, path in zip(maps, (job.original, *job.edited), strict=True)
    ]
    if instances is not None:
        conditions["instances"] = images.read_labels(files[instances], frame=frame)
    changes: list[dict[str, Any]] = [
        {"instances": images.read_labels(files[path], frame=frame)} for path in edited_instances
    ] or [{} for _ in later]
    mask = None if job.mask is None else images.read_mask(files[job.mask], frame=frame)
    with naming(instances or job.original):
        model.encode(first, **conditions)
    for path, labels, change in zip(edited_instances or job.edited, later, changes, strict=True):
        with naming(path):
            model.encode(labels, **change)

    print_table("settings", settings_rows(job.engine, size=first.shape, seed=seed))
    session = (
        kept.session
        if kept is not None and kept.goes_on
        else Session(model, job.engine.backend, policy=job.engine.policy or "paper", undo=job.undo)
    )
    assert isinstance(session, Session)
    if kept is not None:
        if not kept.goes_on:
            kept.begin(session)
        elif (shape := session.memory.input("labels").shape[1:3]) != first.shape:
            raise InputError(
                f"{job.original}: is {first.shape[0]}×{first.shape[1]}, expected {shape[0]}×{shape[1]}, the size of "
                "the session's maps; resize it, or give another --session"
            )
        kept.check_file(ORIGINAL, job.original, first)
        if instances is not None:
            kept.check_file("instances", instances, conditions["instances"])
    with (
        keeping(kept),
        layer_bars(model, first, **conditions) as bar,
        warnings.catch_warnings(),
    ):
        # pixels that are not applied and forgotten edits are printed below
        ignore_printed()
        for one, z in latents.items():
            if not goes_on:
                session.run(first, progress=bar("dense run of the original"), **conditions, **z)
                note_change(kept)
            for path, target, labels, change in zip(
                job.edited, job.outputs(one), later, changes, strict=True
            ):
                result = session.edit(labels, mask=mask, policy=job.policy, progress=bar(path.name), **change)
                note_change(kept)
                text = written_by(job.model, job.engine, seed=seed if goes_on else one)
                images.write_png(target, result.image, text=text)
                print_result(job, path, target, result.stats)


def demo(engine: Engine, known: builtin.BuiltIn, labels: builtin.Labels) -> tuple[Host, str, list[Any]]:
    """The first edit of the first example: a sheet of images, its caption, and the rows of a table."""
    example = known.examples[0]
    change = example.edits[0]
    original, edited = (images.read_labels(path) for path in (example.original, change.path))
    assert isinstance(engine.model, SPADEGenerator)
    session = Session(engine.model, engine.backend, policy=engine.policy or "paper")
    with layer_bars(engine.model, original) as bar:
        first = session.run(original, progress=bar("dense run of the original"))
        sparse = session.edit(edited, policy=engine.policy, progress=bar("sparse edit"))
        # the same session again: the weights are prepared for both
        dense = session.run(edited, progress=bar("dense run of the edited"))
    dense_ms, sparse_ms = dense.stats.milliseconds, sparse.stats.milliseconds
    panels = [
        ("original labels", images.colourise(original, labels.palette)),
        (f"edited labels: {change.caption}", images.colourise(edited, labels.palette)),
        ("active tiles over the result", images.overlay_tiles(sparse.image, sparse.active)),
        ("original", first.image),
        (f"edited, dense: {dense_ms:.0f} ms", dense.image),
        (f"edited, sparse: {sparse_ms:.0f} ms", sparse.image),
    ]
    rows = [
        *[row for row in sparse.stats.lines() if row[0] not in ("time", "canvases", "codebooks", "undo")],
        ("dense run", f"{dense_ms:.0f} ms"),
        ("sparse edit", f"{sparse_ms:.0f} ms ({dense_ms / sparse_ms:.1f} times as fast)"),
        ("PSNR, sparse against dense", f"{images.psnr(sparse.images, dense.images):.1f} dB"),
        *sparse.stats.memory(),
    ]
    return images.sheet(panels, columns=3), change.caption, rows


def latent(model: Model, seed: int, count: int = 1) -> Host:
    """z from a standard normal. Raises InputError: the model has no z."""
    length = getattr(model.config, "z_dim", 0)
    if not length:
        option = "--seed" if count == 1 else "--count"
        raise InputError(
            f"{option}: this model starts from the label map and has no latent z to vary; omit it"
        )
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


@contextmanager
def layer_bars(
    model: Model, labels: Host, **conditions: Any
) -> Iterator[Callable[[str], Callable[[LayerRecord], None]]]:
    """A maker of progress bars with a step for each layer."""
    layers = len(profile(model, labels, **conditions).layers)
    with progress_bars() as start:

        def bar(description: str) -> Callable[[LayerRecord], None]:
            go, done = start(description, layers), 0

            def after(record: LayerRecord) -> None:
                nonlocal done
                done += 1
                go(done, record.path)

            return after

        yield bar


def _read(
    file: ImageFile, original: ImageFile, job: Job, model: SPADEGenerator, unknown_label: int | None
) -> Host:
    """A label map; of a built-in model by its colours, else by the numbers of the original."""
    known = builtin.get(job.model)
    palette = known.labels.palette if known and known.labels else None
    try:
        labels = images.read_labels(file, palette, like=original, unknown_label=unknown_label)
    except images.ColourError as error:
        raise InputError(
            f"{error}; {job.model} paints label maps (for images, give --model a diffusion model)"
        ) from None
    with naming(file.path):
        model.check_labels(labels)
    return labels
