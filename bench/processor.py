"""This machine's processor: the features that the system lists come in, the kind of its vectors comes out.

Figures of different kinds of vectors are never compared: kernels differ, ours and everybody's, or what processors make
of them. One with AVX-512 can be limited to AVX2, which is a kind of its own (`AS_AVX2`).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path

FULL, HALVED = "full AVX-512", "AVX-512"
"""AVX-512 with twice AVX2's multiply-adds in a cycle; and computed in two halves, as on Zen 4, with as many as AVX2."""
WHOLE = "avx512_whole"
"""The name among `features` of what Linux does not list: that vectors of 512 bits are not computed in halves."""
VECTORS = {FULL: WHOLE, HALVED: "avx512f", "AVX2": "avx2", "NEON": "asimd"}
"""Kind -> the feature that it takes, by Linux's names and WHOLE; the widest first."""
ZEN_5 = 26
"""Linux's number of the family of AMD's processors from which vectors of 512 bits are not computed in halves.

Zen 5's mobile processors, of the same family, do compute them so."""
BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""Features with which a product of bfloat16 is an instruction."""
AS_AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""Environment variables with which Numba and PyTorch (itself, oneDNN and MKL) use no vectors wider than AVX2's."""
LIMITABLE, LIMITED = (FULL, HALVED), "AVX2 alone"
"""The kinds of processors that these variables limit, and their kind where all are set."""
KINDS = (*VECTORS, LIMITED)
"""All kinds, in the order in which they are shown."""
CPUINFO = Path("/proc/cpuinfo")


def model() -> str:
    """The processor's name, with the generation of those that virtual machines name alike."""
    generation = " (Zen 5)" if _amd_family() == ZEN_5 else ""
    return f"{_listed('model name') or platform.processor() or platform.machine()}{generation}"


def features() -> frozenset[str]:
    """The features of the first core, by Linux's names and WHOLE; without its list, what every such processor has."""
    listed = _listed("flags") or _listed("Features")
    if not listed and platform.machine() in ("arm64", "aarch64"):
        return frozenset({"asimd"})
    found = frozenset(listed.split())
    halves = 0 < _amd_family() < ZEN_5
    return found | {WHOLE} if VECTORS[HALVED] in found and not halves else found


def vectors(features: Collection[str]) -> str:
    """The kind of the widest vectors among these features; "" if there is none of `VECTORS`."""
    return next((kind for kind, feature in VECTORS.items() if feature in features), "")


def kind(features: Collection[str], settings: Mapping[str, str] = os.environ) -> str:
    """The kind of the widest vectors that a processor of these features uses; "" if there is none of `VECTORS`."""
    limited = all(settings.get(name) == value for name, value in AS_AVX2.items())
    widest = vectors(features)
    return LIMITED if widest in LIMITABLE and limited else widest


def kind_of(machine: str) -> str:
    """The kind of vectors that a machine's name has (`harness.machine`), or ""."""
    return next((kind for kind in KINDS if kind in machine.split(", ")), "")


def _amd_family() -> int:
    """Linux's number of the processor's family, if AMD made it; else 0."""
    return int(_listed("cpu family")) if _listed("vendor_id") == "AuthenticAMD" else 0


def _listed(name: str) -> str:
    """The first value of that name in the system's list, or ""."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name)
    return next(values, "")
