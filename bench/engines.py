"""Engines by name, and the methods that a worker calls. One module an engine, imported only where it is timed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.cases import Big, Case
from bench.processor import BFLOAT16 as FEATURES
from bench.processor import LIMITED, features, kind

TORCH = ("torch-nchw", "torch-nhwc")
"""PyTorch's two memory formats; the better one counts."""
RIVALS = (*TORCH, "ncnn", "onnxruntime")
OURS = "sparsegen"
TORCH_BFLOAT16, OURS_BFLOAT16 = BFLOAT16 = ("torch-bfloat16", "sparsegen-bfloat16")
"""PyTorch with weights and values in bfloat16, channels last; sparsegen with products of bfloat16. They are timed
beside the others, and count in no factor that has a target."""

UNLIMITED = ("ncnn", "onnxruntime")
"""Engines that choose their instructions by themselves: no variable limits them to AVX2."""

STORED = {f"{OURS}-weights-{stored}": stored for stored in ("float16", "bfloat16")}
"""sparsegen with weights stored in 16 bits, by the name of the engine."""


def usual(engines: Iterable[str]) -> list[str]:
    """The engines of these that are timed where none is named.

    Those in bfloat16 where the processor multiplies it, and where it is limited to AVX2, those that it limits.
    """
    without: tuple[str, ...] = ()
    if kind(features()) == LIMITED:
        without = (*BFLOAT16, *UNLIMITED)
    elif features().isdisjoint(FEATURES):
        without = BFLOAT16
    elif not _multiplies_bfloat16():
        without = (OURS_BFLOAT16,)
    return [engine for engine in engines if engine not in without]


def _multiplies_bfloat16() -> bool:
    """Whether sparsegen does on this processor."""
    # only here: bench.commits imports this file beside packages of old commits
    from sparsegen.backends.interface import BackendError
    from sparsegen.backends.registry import get_backend

    try:
        get_backend("numba", precision="bfloat16")
    except BackendError:
        return False
    return True


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
    area: float | None = None
    """Time a dense run and edits of this area alone; None: all that the task has."""

    def areas(self, usual: tuple[float, ...]) -> tuple[float, ...]:
        """The areas of the edits to time, of those that the task usually has."""
        return usual if self.area is None else (self.area,)


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
