"""`explain`: everything that is known about one edit, collected, and written as a page."""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from sparsegen.backends.interface import Backend, Host
from sparsegen.backends.registry import get_backend
from sparsegen.weights import builtin

from ...editing.door import Result
from ...errors import InputError
from ...models.base import Model
from ...pipelines import SDEdit
from ...tiling.masks import check_mask, dilate
from ...tiling.policies import Paper, Policy
from . import page
from .cases import Case, DenoisingStep, Previews, check_inputs, costs, what_ifs
from .findings import Findings
from .forward import look_into, times


class Explanation(Findings):
    """An edit, explained: `save` writes a page, a notebook shows it."""

    def __repr__(self) -> str:
        return (
            f"<Explanation of an edit of {self.edited.stats.edited_area:.2%} under {self.policy}: "
            f"{self.psnr:.1f} dB, {len(self.forward.layers)} layers>"
        )

    @property
    def html(self) -> str:
        """The page: one self-contained HTML document."""
        return page.page(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, or leave an old one as it is. Raises InputError."""
        from ...images import write_whole

        write_whole(path, self.html.encode())

    def _repr_html_(self) -> str:
        """The page, in a frame: a notebook's styles stay out of it."""
        return (
            '<iframe style="width:100%;height:90vh;border:1px solid #888" title="An edit explained" '
            f'srcdoc="{html.escape(self.html)}"></iframe>'
        )


def explain(
    model: Model,
    original: Any,
    edited: Any,
    *,
    mask: Any = None,
    policy: str | Policy | None = None,
    backend: str | Backend | None = None,
    step: int | None = None,
    whole: bool = True,
    progress: Callable[[str], None] | None = None,
    **conditions: Any,
) -> Explanation:
    """Make an edit, and collect what it does: tiles, costs, and where it differs from the dense run.

    Sessions compute on `backend`; one forward pass runs three times on the reference backend to be looked into.

    Parameters
    ----------
    model
        A GauGAN, DDPM or ProgressiveDistillation.
    original, edited
        Label maps `[H, W]`, or images `[H, W, 3]`, as for `Session` and `SDEdit`.
    mask
        bool `[H, W]`: the pixels to recompute; None: those that differ.
    policy
        As for `Session`; None: "paper", of a diffusion model "fast".
    step
        Of a diffusion model, the number of the denoising step whose layers are shown; None: the one in the middle of
        those that compute.
    whole
        False: leave out what takes longest, the curve of costs and the what-ifs.
    progress
        Called with what begins now.
    conditions
        Of a GauGAN those of `Session.run`; of a diffusion model options of `SDEdit`.

    Raises
    ------
    InputError, ShapeError, BackendError
        Something does not fit; the step is carried, so none of its layers computes.
    """
    check_inputs(model, original, edited)
    page.check_plots()
    if step is not None and model.diffusion is None:
        raise InputError(f"step is {step}; only an edit of a diffusion model has steps")
    said = progress or (lambda _: None)
    original, edited = np.asarray(original), np.asarray(edited)
    chosen = ("paper" if model.diffusion is None else "fast") if policy is None else policy
    if mask is not None:
        mask = np.array(check_mask(mask, (1, *original.shape[:2]))[0])
    case = Case(model, original, edited, mask, model.policy(chosen), get_backend(backend), conditions)
    previews, dense_previews = Previews(model), Previews(model)
    with ExitStack() as opened:
        said("the original")
        session = case.painted(chosen)
        case.policy = session.policy
        if isinstance(session, SDEdit):
            opened.enter_context(session)
            options: dict[str, Any] = {"on_step": dense_previews}
        else:
            options = {}
        said("the edited input, densely")
        dense = case.dense(session, **options)
        said("the edit")
        result = case.edit(session, **({"on_step": previews} if isinstance(session, SDEdit) else {}))
        if isinstance(session, SDEdit):
            number = _step(result, step)
            after = session.inputs(number)
            session.undo()
            before, difference = session.inputs(number), dilate(case.difference, session.margin)
            policy_of_step = (
                replace(case.policy, dilation=0) if isinstance(case.policy, Paper) else case.policy
            )
            steps = [
                DenoisingStep(*each)
                for each in zip(result.stats.steps, previews.images, dense_previews.images, strict=True)
            ]
        else:
            session.undo()
            number, steps, policy_of_step = None, [], case.policy
            before = model.encode(original, **conditions)
            after = model.encode(case.applied, **conditions)
            difference = case.difference
        forward = look_into(model, before, after, policy_of_step, difference=difference, said=said)
        said("the time of each layer")
        milliseconds = times(model, case.backend, before, after, policy_of_step, difference)
        curve = list(costs(case, session, said)) if whole else []
    return Explanation(
        model,
        case.policy,
        case.backend.name,
        case.shown_original,
        _shown(case, edited),
        result,
        dense,
        case.difference[0],
        forward,
        milliseconds,
        number,
        steps,
        curve,
        list(what_ifs(case, dense.image, said)) if whole else [],
    )


def _step(result: Result, step: int | None) -> int:
    """The number of the denoising step to look into. Raises InputError."""
    computed = [each.step for each in result.stats.steps if each.refreshed]
    if step is None:
        return computed[len(computed) // 2]
    if step not in computed:
        raise InputError(
            f"step is {step!r}, expected one that computes its layers under this policy: "
            f"{', '.join(map(str, computed))}"
        )
    return step


def _shown(case: Case, image: Host) -> Host:
    """An input as an image, uint8 `[H, W, 3]`: labels in the built-in model's colours, or in greys."""
    if image.ndim == 2:
        from ...images import colourise

        known = builtin.get(case.model.name)
        if known is not None and known.labels is not None:
            return colourise(image, known.labels.palette)
        grey = (image.astype(np.int64) * 89 % 206 + 30).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1)
    return image if image.dtype == np.uint8 else case.model.images(image[None].astype(np.float32))[0]
