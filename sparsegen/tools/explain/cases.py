"""The edit itself, as a user makes it: a model and two inputs come in, images, costs and what-ifs come out.

Everything here goes through sessions on the backend that the user chose; `forward.py` looks inside one forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import Backend, Host

from ...diffusion.registry import Step
from ...editing.door import Result
from ...editing.session import Session
from ...engine.stats import StepRecord
from ...errors import InputError
from ...models.base import Model
from ...models.spade import SPADEGenerator
from ...pipelines import SDEdit
from ...tiling.policies import Fast, Paper, Policy
from .observed import WithoutHalo

AREAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of the image that the curve of costs has edits of."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """An edit's image beside the dense one."""

    name: str
    text: str
    """What is different from the edit itself, and what to look at."""
    image: Host
    """uint8 `[H, W, 3]`."""
    psnr: float
    """Of the pixels that the edit or the dense run changed, in dB; infinite if equal."""


@dataclass(frozen=True)
class Cost:
    """An edit of some share of the image."""

    area: float
    milliseconds: float
    macs: int
    macs_dense: int


@dataclass(frozen=True, eq=False)
class DenoisingStep:
    """One denoising step of an edit."""

    record: StepRecord
    preview: Host
    """The image as it is predicted after the step, uint8 `[H, W, 3]`."""
    dense: Host
    """The same of the dense edit."""


@dataclass(eq=False)
class Case:
    """A model, an input and its edit, with the sessions that they run in.

    `painted` makes a session and runs the original in it; `edit` edits in it; `dense` is the dense run of the edited
    input.
    """

    model: Model
    original: Any
    edited: Any
    mask: Host | None
    policy: Policy
    """The edit's; set once a session is open."""
    backend: Backend
    conditions: dict[str, Any]

    shown_original: Host = dataclasses.field(init=False)
    """The first image, uint8 `[H, W, 3]`."""

    def painted(
        self, policy: str | Policy, backend: Backend | None = None, **options: Any
    ) -> Session | SDEdit:
        """A session of a policy that has run the original; a name gives the model's settings for so many steps."""
        chosen, session = self.backend if backend is None else backend, None
        if self.model.diffusion is None:
            session = Session(self.model, chosen, policy=policy)
            self.shown_original = session.run(self.original, **self.conditions).image
            return session
        steps = SDEdit(self.model, policy=policy, backend=chosen, **self.conditions, **options)
        self.shown_original = steps.run(self.original).image
        return steps

    def edit(self, session: Session | SDEdit, edited: Any = None, **options: Any) -> Result:
        """An edit in a session."""
        given = self.edited if edited is None else edited
        mask = self.mask if edited is None else None
        return session.edit(given, mask=mask, **options)

    def dense(self, session: Session | SDEdit, **options: Any) -> Result:
        """The dense run of the edited input."""
        if isinstance(session, SDEdit):
            return session.dense(self.edited, mask=self.mask, **options)
        applied = self.applied
        return Session(self.model, self.backend).run(applied, keep_canvases=False, **self.conditions)

    @property
    def applied(self) -> Any:
        """The edited input, with the original's values outside the mask."""
        if self.mask is None:
            return self.edited
        mask = self.mask[..., None] if np.ndim(self.edited) == 3 and self.model.diffusion else self.mask
        return np.where(mask, self.edited, self.original)

    @property
    def difference(self) -> Host:
        """bool `[N, H, W]`: the pixels that the edit changes."""
        ends = [self._encoded(image) for image in (self.original, self.applied)]
        return np.asarray((np.abs(ends[0] - ends[1]) > self.model.eps).any(-1))

    def _encoded(self, image: Any) -> Host:
        if self.model.diffusion is None:
            return next(iter(self.model.encode(image, **self.conditions).canvases.values()))
        array = np.asarray(image)
        array = array[None] if array.ndim == 3 else array
        if array.dtype == np.uint8:
            return array.astype(np.float32) / np.float32(127.5) - 1
        return array.astype(np.float32)


class Previews:
    """Collects what a diffusion session tells after each step."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.images: list[Host] = []
        """The image as predicted after each step, uint8 `[H, W, 3]`."""

    def __call__(self, step: Step) -> None:
        self.images.append(self._model.images(step.x0)[0])


def region_psnr(image: Host, dense: Host, before: Host) -> float:
    """The PSNR in dB over the pixels that either image changes."""
    from ...images import psnr  # here: the door of the package loads no Pillow

    region = ((image != before) | (dense != before)).any(-1)
    return psnr(image[region], dense[region]) if region.any() else float("inf")


def costs(
    case: Case, session: Session | SDEdit, said: Callable[[str], None], areas: Sequence[float] = AREAS
) -> Iterator[Cost]:
    """Edits of squares of these shares of the image, each undone; the first is a warm-up."""
    height, width = np.asarray(case.original).shape[:2]
    for number, area in enumerate([areas[0], *areas]):
        said(f"edits of {area:.0%} of the image")
        result = case.edit(session, _square(case, height, width, area))
        session.undo()
        if number:
            stats = result.stats
            yield Cost(stats.edited_area, stats.milliseconds, stats.macs, stats.macs_dense)


def _square(case: Case, height: int, width: int, area: float) -> Host:
    """The original with other values in a centred rectangle of that share: another label, or inverted colours."""
    h, w = (max(1, round(side * area**0.5)) for side in (height, width))
    top, left = (height - h) // 2, (width - w) // 2
    edited = np.array(case.original)
    part = edited[top : top + h, left : left + w]
    if case.model.diffusion is None:
        labels = getattr(case.model, "labels", 2)
        part[...] = (part + 1) % labels
    elif edited.dtype == np.uint8:
        part[...] = 255 - part
    else:
        part[...] = -part
    return edited


def what_ifs(case: Case, dense: Host, said: Callable[[str], None]) -> Iterator[Outcome]:
    """The edit with one of its ideas taken away at a time."""

    def outcome(name: str, text: str, image: Host) -> Outcome:
        return Outcome(name, text, image, region_psnr(image, dense, case.shown_original))

    for name, text, policy, options in _other_policies(case):
        said(f"the edit {name}")
        with ExitStack() as opened:
            session = case.painted(policy, **options)
            if isinstance(session, SDEdit):
                opened.enter_context(session)
            yield outcome(name, text, case.edit(session).image)
    said("the edit without halos")
    broken = WithoutHalo()
    with ExitStack() as opened:
        session = case.painted(case.policy, broken)
        if isinstance(session, SDEdit):
            opened.enter_context(session)
        broken.broken = True
        yield outcome(
            "without halos",
            "A 3×3 convolution reads one pixel around its tile. Here each tile reads zeros there, as if it were an "
            "image by itself: the borders of tiles show. The edit itself reads those pixels from the canvases.",
            case.edit(session).image,
        )


def _other_policies(case: Case) -> Iterator[tuple[str, str, Policy, dict[str, Any]]]:
    policy = case.policy
    if isinstance(policy, Paper):
        narrow = dataclasses.replace(policy, dilation=0, level_dilation=0)
        margin = {} if case.model.diffusion is None else {"margin": 0}
        yield (
            "without dilation",
            "Masks are not grown: only tiles that hold a changed pixel are recomputed, at every resolution. What the "
            "edit should change around itself stays as it was.",
            narrow,
            margin,
        )
    if isinstance(policy, Fast):
        stale = dataclasses.replace(policy, statistics=0.0)
        yield (
            "with stale statistics",
            "Norms keep the moments of the original, as under paper. The dense run's moments have moved with the edit: "
            "the recomputed tiles are a little too bright, too dark, or of another contrast.",
            stale,
            {},
        )
        if case.model.diffusion is not None and policy.refresh > 1:
            yield (
                "with every step computed",
                "No deltas are carried from step to step: refresh is 1. This is nearer to dense, for more work.",
                dataclasses.replace(policy, refresh=1),
                {},
            )


def check_inputs(model: Any, original: Any, edited: Any) -> None:
    """Raise InputError if a model or its inputs are none that can be explained."""
    if not isinstance(model, Model):
        raise InputError(
            f"explain needs one model, as sparsegen.load gives it, not {type(model).__name__}; of Stable Diffusion no "
            "edit can be explained yet"
        )
    if model.diffusion is None and not isinstance(model, SPADEGenerator):
        raise InputError(f"explain needs a GauGAN or a diffusion model, not one of family {model.family!r}")
    for name, value in (("original", original), ("edited", edited)):
        if np.ndim(value) not in (2, 3):
            raise InputError(
                f"explain: {name} has shape {np.shape(value)}, expected one label map or one image"
            )
