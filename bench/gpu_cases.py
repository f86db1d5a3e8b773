"""What the bench on a card times: networks, areas, precisions and aims; and the messages between its processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.cases import Big, Unet, big, unets
from sparsegen.diffusion.settings import Settings
from sparsegen.models import DDPM, ProgressiveDistillation

CASES = ("gaugan", "ddpm", "pd")
PRECISIONS = ("float32", "tf32", "float16")
POLICIES = ("paper", "fast")
ENGINES = ("torch", "sparsegen")
"""In the order in which they take turns: PyTorch is the oracle of the first turn."""

DENSE = "dense"
AS_AN_EDIT = "dense, as an edit"
"""An edit of the whole input: a dense run that is replayed as one graph."""
SDEDIT = "SDEdit"

MOST_OF_TORCH = 1.3
"""The most that a dense run may take, in PyTorch's dense runs."""
OVER_TORCH = {"gaugan": 10.0, "ddpm": 6.0}
"""How many times as fast as PyTorch's dense run an edit of `AIMED_AREA` must be, by case."""
AIMED_AREA = 0.012

TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2}
"""The largest error against PyTorch in float32, relative to its largest value, at which an engine is still timed: a
layer is within 3e-4 in TF32 and float16, and a network has about a hundred of them."""


def net_of(case: str, emulated: bool) -> Big | Unet:
    """The network of a case, tiny for the emulated device."""
    if case == "gaugan":
        return replace(big(emulated), ngf=1, nhidden=2) if emulated else big(False)
    if not emulated:
        return unets(False)["DDPM 256" if case == "ddpm" else "PD 256"]
    net = unets(True)["DDPM 256" if case == "ddpm" else "PD 128"]
    return replace(net, size=16, time_channels=32)


def denoising(net: Unet, emulated: bool) -> Settings:
    """How SDEdit denoises: the family's own settings, three steps for the emulated device."""
    settings = (DDPM if net.family == "ddpm" else ProgressiveDistillation).diffusion.edit
    if not emulated:
        return settings
    return replace(settings, steps=3, noise_level=500 if net.family == "ddpm" else 3)


@dataclass(frozen=True)
class Task:
    """The work of one turn: an engine's process times one case, precision by precision."""

    engine: str
    case: str
    checkpoint: Path
    precisions: tuple[str, ...] = PRECISIONS
    areas: tuple[float, ...] = (AIMED_AREA, 0.15)
    policies: tuple[str, ...] = POLICIES
    dense: bool = True
    sdedit: bool = True
    layers: bool = True
    check: bool = True
    """Whether outputs are handed over, and the timing waits until they are approved."""
    repeats: int = 7
    emulated: bool = False

    @property
    def net(self) -> Big | Unet:
        return net_of(self.case, self.emulated)

    @property
    def warm_ups(self) -> int:
        """Untimed calls before the timed ones: of a session's edits the first is computed layer by layer, the second
        records a graph or replays one."""
        return 1 if self.emulated else 3

    def written(self) -> str:
        return json.dumps({**asdict(self), "checkpoint": str(self.checkpoint)})

    @classmethod
    def read(cls, text: str) -> Task:
        given = json.loads(text)
        lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        return cls(**{**given, **lists, "checkpoint": Path(given["checkpoint"])})


def timed(what: str, samples: list[Any], **figures: Any) -> dict[str, Any]:
    """The message of one timing: samples of `gpu_clock`."""
    device = [sample.device for sample in samples]
    return {
        "what": what,
        "wall": [sample.wall for sample in samples],
        "device": None if None in device else device,
        "graphs": max(sample.graphs for sample in samples),
        **figures,
    }
