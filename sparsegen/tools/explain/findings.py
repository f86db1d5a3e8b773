"""What is found out about one edit: the data of a page, before it becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsegen.backends.interface import Host

from ...editing.door import Result
from ...models.base import Model
from ...tiling.policies import Policy
from .forward import Forward
from .outcomes import Cost, DenoisingStep, Outcome, region_psnr


@dataclass(frozen=True, eq=False, repr=False)
class Findings:
    """Everything that is known about one edit."""

    name: str
    """The name that the model was loaded by."""
    models: Mapping[str, Model]
    """Role -> model, of all whose weights the edit needs."""
    policy: Policy
    backend: str
    settings: list[tuple[str, str]]
    """(name, value) of the settings of a diffusion session."""
    original: Host
    """The image before the edit, uint8 `[H, W, 3]`, as the four after it."""
    strokes: Host
    """The edited input, as it is shown."""
    strokes_title: str
    """What that is, in words."""
    edited: Result
    dense: Result
    difference: Host
    """bool `[H, W]`: the pixels that the edit changed."""
    forward: Forward
    """The layers; of a diffusion session those of `step`, of Stable Diffusion also of its encoder and decoder."""
    repeated: str
    """The part of the layers that runs at every denoising step; empty: there is one part."""
    step: int | None
    """The denoising step whose layers are shown; None: there are none."""
    steps: list[DenoisingStep]
    costs: list[Cost]
    what_ifs: list[Outcome]

    @property
    def psnr(self) -> float:
        """Of the edit against the dense run, in dB, over the pixels that either changed."""
        return region_psnr(self.edited.image, self.dense.image, self.original)
