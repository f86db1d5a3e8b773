"""Editing images at the command line: an image and strokes painted over it come in, real content goes out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host
from sparsegen.weights import builtin

from .. import images
from ..diffusion.registry import Step, get_sampler
from ..diffusion.settings import OnStep
from ..errors import InputError
from ..models.base import Model
from ..pipelines.latent_edit import MARGIN
from ..pipelines.latents import LatentDiffusion
from ..pipelines.sdedit import SDEdit
from ..pipelines.stable_diffusion import StableDiffusion
from ..pipelines.steps import CachePlan
from ..tiling.masks import dilate
from .console import check_writable, numbered, out, print_line, print_table, progress_bars
from .job import (
    Engine,
    Job,
    ignore_printed,
    print_result,
    settings_rows,
    written_by,
)
from .kept import ORIGINAL, PAINTED, digest_of, keeping, note_change
from .options import TextOptions
from .reading import decoded

Painting = SDEdit | StableDiffusion
"""A session that makes strokes real."""


@dataclass(frozen=True)
class Options:
    """The options of an edit with a diffusion model; None: not given, the model's default."""

    steps: int | None
    noise_level: int | None
    sampler: str | None
    sampler_options: dict[str, Any]
    """Options of a sampler, by name."""
    schedule: str | None
    margin: int | None
    ram: str | None
    cache_folder: Path | None
    cache_storage: str | None
    preview_every: int | None
    texts: TextOptions
    """Of Stable Diffusion alone."""

    @property
    def given(self) -> dict[str, Any]:
        """All of them by the name that the command line has for them."""
        named = dict(vars(self))
        del named["texts"]
        options = named.pop("sampler_options")
        return {**named, **options, **self.texts.given}


def edit(job: Job, options: Options) -> None:
    """Run the original through every step, then make the strokes of each edited image real, for each variation."""
    model, kept = job.engine.model, job.kept
    with _session(job, options, job.seeds[0]) as session:
        targets = [target for seed in job.seeds for target in job.outputs(seed)]
        previews = preview_files(targets, len(session.times), options.preview_every, job.inputs)
        channels = _channels(model)
        files = decoded(job.inputs)
        frame = job.fit.frame(model, files[job.original])
        first = images.read_image(files[job.original], channels=channels, frame=frame)
        if kept is not None:
            kept.check_file(ORIGINAL, job.original, first)
        before = _before(job, session, first)
        strokes = _strokes(job, files, before, frame)
        mask = None if job.mask is None else images.read_mask(files[job.mask], frame=frame)
        if job.mask is None:
            _notice(job, session, files, before, strokes)
        size = first.shape[:2]
        print_table("settings", settings_rows(job.engine, size=size, **_used(session)))
        out.print(f"caches: {_plan(session, first)}", soft_wrap=True)
        _edit(job, session, first, before, strokes, mask, previews, job.seeds[0])
    for seed in job.seeds[1:]:
        with _session(job, options, seed) as session:
            _edit(job, session, first, before, strokes, mask, previews, seed)


def _edit(
    job: Job,
    session: Painting,
    first: Host,
    before: Host,
    strokes: list[Host],
    mask: Host | None,
    previews: dict[tuple[Path, int], Path],
    seed: int | None,
) -> None:
    """One variation: the original, unless it has run, then every edit, of which the first was painted over `before`."""
    kept, model, of = job.kept, job.engine.model, len(session.times)
    text = written_by(job.model, job.engine, size=first.shape[:2], **_used(session))

    def on_step(target: Path, go: OnStep) -> OnStep:
        def after(step: Step) -> None:
            go(step)
            if (target, step.index) in previews:
                preview = model.images(step.x0)[0]
                images.write_png(previews[target, step.index], preview, text=text)

        return after

    with keeping(kept), step_bars(of) as bar, warnings.catch_warnings():
        ignore_printed()
        if kept is None or not kept.goes_on:
            result = session.run(first, on_step=bar("original"))
            note_change(kept)
            out.print(f"original: {of} steps in {result.stats.milliseconds / 1e3:.1f} s, kept for the edits")
        for path, target, painted in zip(job.named, job.outputs(seed), strokes, strict=True):
            # only the strokes since the previous file are edited: the strokes before are real by now, whether this file
            # was painted over them or over the result
            new = (painted != before).any(-1, keepdims=True)
            image = np.where(new, painted, session.image[..., : first.shape[-1]])
            result = session.edit(
                image, mask=mask, policy=job.policy, on_step=on_step(target, bar(path.name))
            )
            if kept is not None:
                kept.write_note(PAINTED, painted)
                kept.write_note(f"{PAINTED}.result", digest_of(session.image))
            note_change(kept)
            images.write_png(target, result.image, text=text)
            print_result(job, path, target, result.stats)
            before = painted


def _used(session: Painting) -> dict[str, Any]:
    """The settings in effect in a session."""
    texts = {}
    if isinstance(session, StableDiffusion):
        texts = {"prompt": session.prompt, "negative": session.negative or None, "skip": session.skip}
    used = session.settings.used()
    return {**texts, **used, "margin": session.margin, "cache_storage": session.storage}


Panels = list[tuple[str, Host]]
"""Captions and images, uint8 `[H, W, 3]`, of a sheet."""


def demo(engine: Engine, known: builtin.BuiltIn) -> tuple[Host, str, list[Any]]:
    """The first edit of the first example: a sheet of images, its caption, and the rows of a table."""
    example = known.examples[0]
    change = example.edits[0]
    with SDEdit(engine.model, policy=engine.policy or "fast", backend=engine.backend) as session:
        panels, rows = shown_edit(session, example, change)
    return images.sheet(panels, columns=len(panels)), change.caption, rows


def shown_edit(
    session: Painting, example: builtin.Example, change: builtin.Edit
) -> tuple[Panels, list[tuple[str, str]]]:
    """An example's edit, dense and under the session's policy: images for a sheet, and the rows of a table."""
    original = images.read_image(example.original)
    painted = images.read_image(change.path, below=original)
    mask = None if change.mask is None else images.read_mask(change.mask)
    plan = _plan(session, original)
    with step_bars(len(session.times)) as bar:
        session.run(original, on_step=bar("original, kept for edits"))
        dense = session.dense(painted, mask=mask, on_step=bar("dense edit"))
        sparse = session.edit(painted, mask=mask, on_step=bar("sparse edit"))
    dense_ms, sparse_ms = dense.stats.milliseconds, sparse.stats.milliseconds
    if mask is None:
        given, edited = (f"strokes: {change.caption}", painted), (painted != original).any(-1)
    else:
        given, edited = (f"mask: {change.caption}", masked(original, mask)), mask
    panels = [
        ("original", original),
        given,
        (f"dense: {dense_ms:.0f} ms", dense.image),
        (f"sparse: {sparse_ms:.0f} ms", sparse.image),
        ("active tiles over the result", images.overlay_tiles(sparse.image, sparse.active)),
    ]
    inside = images.psnr(sparse.image[edited], dense.image[edited])
    whole = images.psnr(sparse.image, dense.image)
    rows = [
        *[row for row in sparse.stats.lines() if row[0] not in ("time", "canvases", "undo")],
        ("dense edit, end to end", f"{dense_ms:.0f} ms for {len(session.times)} steps"),
        ("sparse edit, end to end", f"{sparse_ms:.0f} ms ({dense_ms / sparse_ms:.1f} times as fast)"),
        (
            "PSNR, sparse against dense",
            f"{whole:.1f} dB ({inside:.1f} dB where the {'strokes are' if mask is None else 'mask is'})",
        ),
        *sparse.stats.memory(),
        ("caches", str(plan)),
    ]
    return enlarged(panels), rows


def masked(image: Host, mask: Host) -> Host:
    """The image with the mask in white."""
    return np.where(mask[..., None], np.uint8(255), image)


def enlarged(panels: Panels) -> Panels:
    """Small images as wide as the captions need."""
    scale = max(1, -(-256 // panels[0][1].shape[1]))
    return [(caption, images.enlarge(image, scale)) for caption, image in panels]


@contextmanager
def step_bars(steps: int) -> Iterator[Callable[[str], OnStep]]:
    """A maker of progress bars with a step for each denoising step."""
    with progress_bars() as start:

        def bar(description: str) -> OnStep:
            go = start(description, steps)
            return lambda step: go(step.index + 1, f"step {step.index + 1} of {step.of}")

        yield bar


# -- checked before the work begins ----------------------------------------------------------------------


def _session(job: Job, options: Options, seed: int | None) -> Painting:
    """The session that the options describe. Raises InputError, also for an option that would have no effect."""
    kept = job.kept
    session: Painting
    if options.cache_folder is not None and options.ram is None:
        raise InputError("--cache-folder: has no effect without --ram; give --ram, such as --ram 4GB")
    given = {
        "steps": options.steps,
        "noise_level": options.noise_level,
        "sampler": options.sampler,
        **options.sampler_options,
        "schedule": options.schedule,
        "margin": options.margin,
    }
    if kept is not None and kept.goes_on:
        assert isinstance(kept.session, Painting)
        session = kept.session
        get_sampler(session.settings.sampler).checked_options(options.sampler_options)
        has = {**session.settings.described(), "margin": session.margin, "cache_storage": session.storage}
        if isinstance(session, StableDiffusion):
            given |= {name: value for name, value in options.texts.given.items() if name != "lora"}
            has |= {"prompt": session.prompt, "negative": session.negative, "skip": session.skip}
            has["predicts"] = session.models.diffusion.predicts
        kept.check_same({**given, "seed": seed, "cache_storage": options.cache_storage}, has)
    else:
        session = _new_session(job, options, given, seed or 0)
        if kept is not None:
            kept.begin(session)
    sampler = get_sampler(session.settings.sampler)
    if options.schedule is not None and sampler.schedule is not None:
        raise InputError(f"--schedule: sampler {sampler.name} has a schedule of its own; omit it")
    return session


def _new_session(job: Job, options: Options, given: dict[str, Any], seed: int) -> Painting:
    """A session that begins, with the settings `given`. Raises InputError."""
    model, texts, margin = job.engine.model, options.texts, given.pop("margin")
    common: dict[str, Any] = {
        "seed": seed,
        "policy": job.engine.policy or "fast",
        "ram": options.ram,
        "folder": options.cache_folder,
        "storage": options.cache_storage or "float32",
        "undo": job.undo,
    }
    if isinstance(model, LatentDiffusion):
        del given["noise_level"]  # refused before
        return StableDiffusion(
            model,
            texts.prompt or "",
            negative=texts.negative or "",
            # with a mask alone, nothing is painted that would be worth keeping in part
            strength=1.0 if texts.strength is None and not job.edited else texts.strength,
            guidance=texts.guidance,
            skip=texts.skip or 0,
            margin=MARGIN if margin is None else margin,
            **given,
            **common,
        )
    return SDEdit(model, margin=margin, backend=job.engine.backend, **given, **common)


def preview_files(
    targets: Sequence[Path], steps: int, every: int | None, inputs: Sequence[Path]
) -> dict[tuple[Path, int], Path]:
    """(output, index of a step) -> the file of the preview after it, out-preview-05.png. Raises InputError."""
    if every is None:
        return {}
    if every > steps:
        raise InputError(f"--preview-every {every}: there are {steps} steps; give {steps} or less")
    found = {
        (target, done - 1): numbered(target, f"preview-{done:02d}")
        for target in targets
        for done in range(every, steps + 1, every)
    }
    for path in found.values():
        check_writable(path, inputs=inputs)
    return found


def _before(job: Job, session: Painting, first: Host) -> Host:
    """The image that the first edit is painted over: the original, or the last strokes of a continued session."""
    kept = job.kept
    if kept is None or not kept.goes_on:
        return first
    image, painted = session.image, kept.note(PAINTED)
    if image.shape[:2] != first.shape[:2]:
        raise InputError(
            f"{job.original}: is {first.shape[0]}×{first.shape[1]}, expected {image.shape[0]}×{image.shape[1]}, the "
            "size of the session's image; resize it, or give another --session"
        )
    # after an undo, the image is no longer the result of those strokes
    if isinstance(painted, np.ndarray) and kept.note(f"{PAINTED}.result") == digest_of(image):
        return painted
    return image[..., : first.shape[-1]]


def _strokes(job: Job, files: dict[Path, images.ImageFile], before: Host, frame: images.Frame) -> list[Host]:
    """The edited images, uint8 `[H, W, C]`; a transparent part shows the image before. One for a mask alone."""
    found = [before]
    for path in job.edited:
        found.append(images.read_image(files[path], channels=before.shape[-1], below=found[-1], frame=frame))
    return found[1:] or [before]  # a mask alone: nothing is painted


def _channels(model: Model | LatentDiffusion) -> int:
    if isinstance(model, LatentDiffusion):
        return 3
    channels = int(model.config.in_channels)
    if channels not in (1, 3):
        raise InputError(f"this model takes {channels} channels, expected 3 or 1, as images have")
    return channels


def _plan(session: Painting, image: Host) -> CachePlan:
    """The memory of the caches. Raises InputError: there is too little RAM or disk."""
    plan = session.cache_plan(image)
    if not plan.fits:
        raise InputError(
            f"{plan}: too little disk; give another --cache-folder, more --ram, fewer --steps or a smaller --undo"
        )
    ram = _ram()
    if ram is not None and plan.ram_bytes + plan.scratch_bytes + plan.condition_bytes > ram:
        raise InputError(
            f"{plan}, but there are {ram / 1e9:.1f} GB of RAM; give a budget, such as --ram 4GB: the rest goes into "
            "files"
        )
    return plan


def _ram() -> int | None:
    """Bytes of RAM that this process may use; None: unknown."""
    found = []
    try:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    except (AttributeError, OSError, ValueError):  # another system, or no limit of a container
        pass
    return min((size for size in found if size > 0), default=None)


def _notice(
    job: Job, session: Painting, files: dict[Path, images.ImageFile], before: Host, strokes: list[Host]
) -> None:
    """Print a note with advice for each lossy file of which more than half would be recomputed."""
    known, lossy = job.original, files[job.original].lossy
    if job.kept is not None and job.kept.goes_on:
        known, lossy = job.kept.path, ""
    for path, painted in zip(job.edited, strokes, strict=True):
        share = _share(session, before, painted)
        why = ""
        if kind := files[path].lossy:
            why = f"it is saved as {kind}, which changes pixels everywhere. Save edited images as PNG"
        elif lossy:
            why = (
                f"{known} is saved as {lossy}, which programs decode differently. Save it as PNG, paint on that, "
                "and give the PNG as the original"
            )
        if why and share > 0.5:
            print_line(
                "note",
                f"{path}: {share:.0%} of it is recomputed, where its pixels are not those of {known}; {why}, or give a "
                "--mask",
            )
        known, lossy, before = path, files[path].lossy, painted


def _share(session: Painting, before: Host, painted: Host) -> float:
    """The share of an image that an edit recomputes: pixels that moved by more than the family's eps, with a margin.

    Of a margin wider than the family's, only the family's counts: the rest is the user's choice, and no sign of loss.
    """
    if isinstance(session, StableDiffusion):
        eps, margin = session.models.encoder.eps, MARGIN
    else:
        eps, margin = session.model.eps, session.model.paper.dilation
    # pixels are -1 to 1 to the model
    moved = np.abs(painted.astype(np.int16) - before) > eps * 127.5
    return float(dilate(np.asarray(moved.any(-1)), min(session.margin, margin)).mean())
