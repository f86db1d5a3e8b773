"""More edits of a case: other areas, and the edit without one of its ideas; their costs and images come out.

They go through sessions on the backend that the user chose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host

from ...engine.stats import StepRecord
from ...tiling.policies import Fast, Paper, Policy
from .cases import Case
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


def region_psnr(image: Host, dense: Host, before: Host) -> float:
    """The PSNR in dB over the pixels that either image changes."""
    from ...images import psnr  # here: the door of the package loads no Pillow

    region = ((image != before) | (dense != before)).any(-1)
    return psnr(image[region], dense[region]) if region.any() else float("inf")


def costs(
    case: Case, session: Any, said: Callable[[str], None], areas: Sequence[float] = AREAS
) -> Iterator[Cost]:
    """Edits of squares of these shares of the image, each undone; the first is a warm-up."""
    for number, area in enumerate([areas[0], *areas]):
        said(f"edits of {area:.0%} of the image")
        result = case.edit(session, _square(case, area))
        session.undo()
        if number:
            stats = result.stats
            yield Cost(stats.edited_area, stats.milliseconds, stats.macs, stats.macs_dense)


def _square(case: Case, area: float) -> Host:
    """The original with other values in a centred rectangle of that share."""
    edited = np.array(case.original)
    height, width = edited.shape[:2]
    h, w = (max(1, round(side * area**0.5)) for side in (height, width))
    top, left = (height - h) // 2, (width - w) // 2
    part = edited[top : top + h, left : left + w]
    part[...] = case.other(part)
    return edited


def what_ifs(case: Case, dense: Host, said: Callable[[str], None]) -> Iterator[Outcome]:
    """The edit with one of its ideas taken away at a time."""

    def outcome(name: str, text: str, image: Host) -> Outcome:
        return Outcome(name, text, image, region_psnr(image, dense, case.shown_original))

    for name, text, policy, options in _other_policies(case):
        said(f"the edit {name}")
        with case.opened(policy, **options) as session:
            yield outcome(name, text, case.edit(session).image)
    said("the edit without halos")
    broken = WithoutHalo()
    with case.opened(backend=broken) as session:
        broken.broken = True
        yield outcome(
            "without halos",
            "A 3×3 convolution reads one pixel around its tile. Here each tile reads zeros there, as if it were an "
            "image by itself: the borders of tiles show. The edit itself reads those pixels from the canvases.",
            case.edit(session).image,
        )


def _other_policies(case: Case) -> Iterator[tuple[str, str, Policy, Mapping[str, Any]]]:
    policy = case.policy
    # encoder and decoder have settings of their own, whatever the UNet's are
    of = f" of the {case.repeated.replace('unet', 'UNet')}" if case.repeated else ""
    if isinstance(policy, Paper):
        narrow = dataclasses.replace(policy, dilation=0, level_dilation=0)
        yield (
            "without dilation",
            f"Masks{of} are not grown: only tiles that hold a changed pixel are recomputed, at every resolution. What "
            "the edit should change around itself stays as it was.",
            narrow,
            {"margin": 0} if case.stepped else {},
        )
    if isinstance(policy, Fast):
        stale = dataclasses.replace(policy, statistics=0.0)
        yield (
            "with stale statistics",
            f"Norms{of} keep the moments of the original, as under paper. The dense run's moments have moved with the "
            "edit: the recomputed tiles are a little too bright, too dark, or of another contrast.",
            stale,
            {},
        )
        if case.stepped and policy.refresh > 1:
            yield (
                "with every step computed",
                "No deltas are carried from step to step: refresh is 1. This is nearer to dense, for more work.",
                dataclasses.replace(policy, refresh=1),
                {},
            )
