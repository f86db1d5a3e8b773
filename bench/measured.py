"""Edits beside dense ones: an original with its edits comes in, a row of figures for each edit and policy comes out.

One session of each policy edits the original: it runs the original once, then makes each edit and takes it back. Every
edit is compared with the dense edit of the same input on the same noise, in all pixels, inside the edit's mask and
outside it. A file that cannot be read, or does not fit, becomes a line that names it; the others go on.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import sparsegen
from bench import learned
from bench.rows import Row
from bench.similarity import ssim
from bench.subjects import Given, Opened, Subject, array, resized, subject
from bench.triples import Edit, Original
from sparsegen.errors import InputError, SparsegenError
from sparsegen.images import Frame, psnr, read_file, read_image, read_mask, write_png

KEY = ("data", "model", "backend", "settings", "edit", "policy")
"""Columns that tell one row from another."""
VALUES = (
    *("area", "macs", "ms", "psnr", "psnr_in", "psnr_out", "ssim", "ssim_in", "ssim_out"),
    *("lpips", "lpips_in", "psnr_truth", "lpips_truth"),
)
"""Columns of figures: `area` of the mask and `macs`, both as shares; `ms` of the edit alone; against the dense edit, of
the whole image, inside and outside the mask; against the true image, where there is one."""
DENSE = "dense"
"""In place of a policy: the dense edit itself, which the others are compared with."""

UNFIT = (SparsegenError, OSError, ValueError)
"""Errors of a file that cannot be read, or does not fit."""

Wanted = Collection[tuple[str, str]]
"""(name of the edit, policy) of each row to compute."""


@dataclass(frozen=True)
class Job:
    """How edits are made and measured; the same on every machine.

    Attributes
    ----------
    data
        The name of the folder, for the rows.
    model, backend
        As for `sparsegen.load`, and the name of a backend.
    policies
        In the order in which they run; `DENSE` among them is the dense edit.
    options
        Options of `SDEdit` or `StableDiffusion`, by name; of a GauGAN none.
    prompt
        Of Stable Diffusion: the text that every edit follows.
    size
        (height, width) to which all files are resized; None: their own.
    repeats
        Times that an edit is made; `ms` is the median.
    lpips
        The network of LPIPS; None: not computed.
    images
        A folder for images: POLICY/EDIT.png; None: not written.
    """

    data: str
    model: str
    backend: str
    policies: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    size: tuple[int, int] | None = None
    repeats: int = 1
    lpips: str | None = None
    images: Path | None = None

    @property
    def settings(self) -> str:
        """All by which rows of one edit and policy differ, as text."""
        named = dict(sorted(self.options.items()))
        named |= {} if self.prompt is None else {"prompt": repr(self.prompt)}
        named |= {} if self.size is None else {"size": "x".join(map(str, self.size))}
        named |= {} if self.lpips is None else {"lpips": self.lpips}
        return " ".join(f"{name}={value}" for name, value in named.items())

    def key(self, edit: str, policy: str) -> tuple[str, ...]:
        """The cells of `KEY`."""
        return (self.data, self.model, self.backend, self.settings, edit, policy)


def check(job: Job) -> None:
    """Raises InputError, CheckpointError, BackendError: the job can be done with no file."""
    if job.lpips is not None:
        learned.check_lpips(job.lpips)
    for policy in job.policies:
        with _session(subject(job.model, job.backend), job, policy):
            pass


def _session(of: Subject, job: Job, policy: str) -> AbstractContextManager[Opened]:
    """A session for edits under a policy; for `DENSE`, under the usual one."""
    return of.session(None if policy == DENSE else policy, job.options, job.prompt)


def measured(job: Job, original: Original, wanted: Wanted) -> Iterator[Row | str]:
    """A row for each wanted (edit, policy) of one original; in place of one that fails, a line that says why.

    Raises
    ------
    InputError, CheckpointError, BackendError
        The job fits no file: the model, the backend, an option or LPIPS.
    """
    check(job)
    of = subject(job.model, job.backend)
    try:
        first = of.read(original.original, original.original, job.size)
    except UNFIT as error:
        yield _problem(original.original.path, error)
        return
    dense: dict[str, sparsegen.Result] = {}
    failed: set[str] = set()
    for policy in job.policies:
        edits = [each for each in original.edits if (each.name, policy) in wanted]
        if not edits:
            continue
        with _session(of, job, policy) as session:
            try:
                session.run(first.input, **first.conditions)
            except (SparsegenError, ValueError) as error:
                yield _problem(original.original.path, error)
                return
            for edit in edits:
                if edit.name in failed:
                    continue  # it is named once
                try:
                    yield _row(job, of, session, original, edit, policy, first, dense)
                except UNFIT as error:
                    failed.add(edit.name)
                    yield _problem(edit.edited.path, error)


def _problem(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if str(path) in text else f"{path}: {text}"


def _row(
    job: Job,
    of: Subject,
    session: Opened,
    original: Original,
    edit: Edit,
    policy: str,
    first: Given,
    dense: dict[str, sparsegen.Result],
) -> Row:
    after = of.read(edit.edited, original.original, job.size)
    if after.input.shape != first.input.shape:
        raise InputError(
            f"{edit.edited.path}: {after.input.shape}, expected {first.input.shape} like {original.original.path}"
        )
    changed = after.input != first.input
    changed = changed.any(-1) if changed.ndim == 3 else changed
    mask = changed if edit.mask is None else _mask(edit.mask, changed.shape)
    truth = None if edit.truth is None else _truth(edit.truth, changed.shape)
    if edit.name not in dense:
        dense[edit.name] = of.dense(session, after)
    expected = dense[edit.name]
    if policy == DENSE:
        result, milliseconds = expected, expected.stats.milliseconds
    else:
        times = []
        for _ in range(job.repeats):
            result = session.edit(after.input, **after.conditions)
            times.append(result.stats.milliseconds)
            session.undo()
        milliseconds = statistics.median(times)
    stats = result.stats
    if job.images is not None:
        path = job.images / policy / f"{edit.name.replace('/', '-')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, result.image)
    return {
        **dict(zip(KEY, job.key(edit.name, policy), strict=True)),
        "area": float(mask.mean()),
        # of an edit that changes nothing no layer runs
        "macs": stats.macs / stats.macs_dense if stats.macs_dense else 0.0,
        "ms": milliseconds,
        **figures(result.image, expected.image, mask, truth, job.lpips),
    }


def figures(
    image: np.ndarray, expected: np.ndarray, mask: np.ndarray, truth: np.ndarray | None, net: str | None
) -> Row:
    """The figures of an image against the expected one, uint8 `[H, W, 3]`, and the true one; `mask` bool `[H, W]`.

    None: there is nothing to measure, such as outside a mask of everything. `net`: the network of LPIPS, if any.
    """
    regions = {"": np.ones_like(mask), "_in": mask, "_out": ~mask}
    found: Row = {}
    for name, where in regions.items():
        some = bool(where.any())
        found[f"psnr{name}"] = psnr(image[where], expected[where]) if some else None
        found[f"ssim{name}"] = ssim(image, expected, where) if some else None
    found["psnr_truth"] = None if truth is None else psnr(image, truth)
    found |= {"lpips": None, "lpips_in": None, "lpips_truth": None}
    if net is not None:
        found["lpips"] = learned.lpips(image, expected, net)
        found["lpips_in"] = learned.lpips(image, expected, net, mask) if mask.any() else None
        found["lpips_truth"] = None if truth is None else learned.lpips(image, truth, net)
    return found


# -- files -----------------------------------------------------------------------------------------------


def _mask(path: Path, size: tuple[int, ...]) -> np.ndarray:
    """A mask, bool `[H, W]`, of any size with the same ratio of sides."""
    given = array(path) if path.suffix == ".npy" else read_mask(path)
    if given.ndim == 2 and given.shape[0] * size[1] != given.shape[1] * size[0]:
        raise InputError(f"{path}: {given.shape}, expected {size} or a multiple")
    mask: np.ndarray = resized(given, (size[0], size[1]), path) > 0
    return mask


def _truth(path: Path, size: tuple[int, ...]) -> np.ndarray:
    source = read_file(path)
    return np.asarray(
        read_image(source, frame=Frame(source.size, source.size, (size[0], size[1]), str(path)))
    )
