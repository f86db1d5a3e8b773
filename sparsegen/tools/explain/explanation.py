"""`explain`: everything that is known about one edit, collected, and written as a page."""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from typing import Any

from sparsegen.backends.interface import Backend, Host

from ...editing.door import Result
from ...errors import InputError
from ...models.base import Model
from ...pipelines import LatentDiffusion
from ...tiling.policies import Policy
from . import page
from .cases import case_of
from .findings import Findings
from .forward import look_into
from .outcomes import DenoisingStep, costs, what_ifs
from .passes import noted


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
    model: Model | LatentDiffusion,
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

    Sessions compute on `backend`; the passes that are looked into run three times more, on the reference backend.

    Parameters
    ----------
    model
        A GauGAN, DDPM or ProgressiveDistillation; or the `LatentDiffusion` of Stable Diffusion.
    original, edited
        Label maps `[H, W]`, or images `[H, W, 3]`, as for `Session`, `SDEdit` and `StableDiffusion`. (The latter also
        takes the original twice, with a mask: the text is painted there.)
    mask
        bool `[H, W]`: the pixels to recompute; None: those that differ.
    policy
        As for `Session`; None: "paper", of a diffusion model "fast".
    backend
        As for `Session`; None: the fastest that can run here, of a `LatentDiffusion` its own.
    step
        Of a diffusion model, the number of the denoising step whose layers are shown; None: the one in the middle of
        those that compute.
    whole
        False: leave out what takes longest, the curve of costs and the what-ifs.
    progress
        Called with what begins now.
    conditions
        Of a GauGAN those of `Session.run`; of a diffusion model options of `SDEdit`; of Stable Diffusion `prompt` and
        options of `StableDiffusion`.

    Raises
    ------
    InputError, ShapeError, BackendError
        Something does not fit; the edit changes nothing; the step is carried, so not all of its layers compute.
    """
    case = case_of(model, original, edited, mask=mask, policy=policy, backend=backend, options=conditions)
    page.check_plots()
    if step is not None and not case.stepped:
        raise InputError(f"step is {step}; only an edit of a diffusion model has steps")
    said = progress or (lambda _: None)
    previews, dense_previews = list[Host](), list[Host]()
    said("the original")
    with case.opened() as session:
        chosen = case.policy = session.policy
        difference = case.difference
        if not difference.any():
            raise InputError(
                "explain: the edit changes no pixel; give an edited copy that differs, or a mask that holds some"
            )
        said("the edited input, densely")
        dense = case.dense(session, dense_previews)
        said("the edit")
        states = session.states
        with noted(states) as passes:
            result = case.edit(session, previews=previews)
        number = _step(result, step) if case.stepped else None
        found = case.noted(passes, states, number)
        del passes
        session.undo()
        settings = case.settings(session)
        curve = list(costs(case, session, said)) if whole else []
    forward = look_into(found, case.backend, said=said)
    region = result.active.mask()
    pictures = [case.pictures(each, region) for each in (previews, dense_previews)]
    steps = [DenoisingStep(*each) for each in zip(result.stats.steps, *pictures, strict=True)]
    return Explanation(
        case.name,
        case.models,
        chosen,
        case.backend.name,
        settings,
        case.shown_original,
        *case.given,
        result,
        dense,
        difference[0],
        forward,
        case.repeated,
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
