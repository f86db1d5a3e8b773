"""Engines by name, and the methods that a worker calls. One module an engine, imported only where it is timed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.cases import Big, Case

TORCH = ("torch-nchw", "torch-nhwc")
"""PyTorch's two memory formats; the better one counts."""
RIVALS = (*TORCH, "ncnn", "onnxruntime")
OURS = "sparsegen"


@dataclass(frozen=True)
class Convolution:
    """A layer that is ready to run: `call` is timed, `read` returns the output, `[1, H, W, O]`."""

    call: Callable[[], Any]
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Job:
    """One task of a worker."""

    engine: str
    task: str
    """layers, or the name of a method of the engine."""
    check: bool = False
    """Reply with outputs instead of timings."""
    quick: bool = False
    repeats: int = 1
    backend: str | None = None
    """sparsegen's backend; None: its default."""
    checkpoint: Path = Path()
    net: str = ""
    """The UNet or the big network, by its name in `cases`; "": GauGAN."""
    policy: str = "paper"
    storage: str = "float32"
    """sparsegen's, of SDEdit."""


@dataclass
class Answer:
    """A worker's reply: milliseconds, outputs and other figures, each by name."""

    timings: dict[str, list[float]]
    outputs: dict[str, np.ndarray]
    figures: dict[str, Any]


class Engine(Protocol):
    """The methods of every engine."""

    version: str

    def convolution(self, case: Case) -> Convolution: ...


class Painter(Engine, Protocol):
    """An engine that also runs the big network."""

    def gaugan(self, net: Big, job: Job) -> Answer: ...


def open_engine(name: str, backend: str | None = None) -> Any:
    """The engine of that name; `torch-nhwc` is the module `torch_engine`, opened with "nhwc"."""
    kind, _, layout = name.partition("-")
    return importlib.import_module(f"bench.{kind}_engine").open_engine(layout or backend)
