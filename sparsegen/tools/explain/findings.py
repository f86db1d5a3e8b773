"""What is found out about one edit: the data of a page, before it becomes one."""

from __future__ import annotations

from dataclasses import dataclass

from sparsegen.backends.interface import Host

from ...editing.door import Result
from ...models.base import Model
from ...tiling.policies import Policy
from .cases import Cost, DenoisingStep, Outcome, region_psnr
from .forward import Forward


@dataclass(frozen=True, eq=False, repr=False)
class Findings:
    """Everything that is known about one edit."""

    model: Model
    policy: Policy
    backend: str
    original: Host
    """The image before the edit, uint8 `[H, W, 3]`, as the four after it."""
    strokes: Host
    """The edited input, as it is shown."""
    edited: Result
    dense: Result
    difference: Host
    """bool `[H, W]`: the pixels that the edit changed."""
    forward: Forward
    """The layers; of a diffusion model those of `step`."""
    milliseconds: dict[str, float]
    """Path -> the time of a layer on the backend."""
    step: int | None
    """The denoising step whose layers are shown; None: there are none."""
    steps: list[DenoisingStep]
    costs: list[Cost]
    what_ifs: list[Outcome]

    @property
    def psnr(self) -> float:
        """Of the edit against the dense run, in dB, over the pixels that either changed."""
        return region_psnr(self.edited.image, self.dense.image, self.original)
