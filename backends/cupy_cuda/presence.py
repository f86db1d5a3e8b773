"""What this machine has for CUDA: a number comes in, the card, or an error whose one sentence says what is missing.

CuPy is imported last: it takes half a second, and a machine without a driver has no use for it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Any

from ..interface import BackendError
from . import compile as compiler


@dataclass(frozen=True)
class Cuda:
    """The modules of CuPy that a card needs."""

    cupy: Any
    cupyx: Any
    runtime: Any
    driver: Any


@dataclass(frozen=True)
class Found:
    """A card."""

    number: int
    name: str
    """What people call it, such as NVIDIA H100 80GB HBM3."""
    architecture: str
    """Of its kernels, such as sm_90."""
    multiprocessors: int
    bytes: int
    """Its memory."""

    def __str__(self) -> str:
        return f"cupy:{self.number} {self.name} ({self.architecture}, {self.bytes / 1e9:.0f} GB)"


def _installed(package: str) -> bool:
    try:
        return package in sys.modules or importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def _driver_loads() -> bool:
    """Whether NVIDIA's driver is installed: its library loads."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def cuda() -> Cuda:
    """CuPy's modules. Raises BackendError: CuPy or the driver is missing."""
    if sys.platform not in ("linux", "win32"):
        raise BackendError("CUDA is for Linux and Windows alone")
    if not _installed("cupy"):
        raise BackendError(
            "CuPy is not installed: pip install 'sparsegen[cuda13]' (cuda12 for older drivers)"
        )
    if not _driver_loads():
        raise BackendError("there is no NVIDIA driver here")
    try:
        import cupy
        import cupyx
        from cupy_backends.cuda.api import driver, runtime
    except ImportError as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise BackendError(f"CuPy cannot be imported: {reason}") from None
    return Cuda(cupy, cupyx, runtime, driver)


def _version(number: int) -> str:
    """12040 -> "12.4"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def cards(runtime: Any) -> list[Found]:
    """Every card, by its number. Raises BackendError: the driver is too old, or finds none."""
    supported, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if not supported:
        raise BackendError("there is no NVIDIA driver here")
    if supported // 1000 < needed // 1000:
        other = f", or pip install 'sparsegen[cuda{supported // 1000}]'" if supported >= 12000 else ""
        raise BackendError(
            f"the NVIDIA driver is too old: it supports CUDA {_version(supported)}, and CuPy is built for CUDA "
            f"{needed // 1000}; update the driver{other}"
        )
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise BackendError(f"the NVIDIA driver finds no card ({error})") from None
    if not count:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r})"
        raise BackendError(f"the NVIDIA driver finds no card{why}")
    return [_card(runtime, number) for number in range(count)]


def _card(runtime: Any, number: int) -> Found:
    properties = runtime.getDeviceProperties(number)
    name = properties["name"]
    return Found(
        number,
        name.decode() if isinstance(name, bytes) else name,
        f"sm_{properties['major']}{properties['minor']}",
        properties["multiProcessorCount"],
        properties["totalGlobalMem"],
    )


def find(number: int) -> Found:
    """The card of that number. Raises BackendError, whose one sentence says what is missing."""
    found = cards(cuda().runtime)
    if not 0 <= number < len(found):
        raise BackendError(f"there is no device {number}; devices: {', '.join(map(str, found))}")
    card = found[number]
    if int(card.architecture[3:]) < compiler.OLDEST:
        raise BackendError(f"{card} is too old; the kernels need sm_{compiler.OLDEST} (Ampere) or newer")
    compiler.target(card.architecture)  # NVRTC is there and knows it
    return card
