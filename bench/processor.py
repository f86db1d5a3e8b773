"""This machine's processor: the features that the system lists come in, the kind of its vectors comes out.

Figures of different kinds of vectors are never compared: kernels differ, ours and everybody's.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

VECTORS = {"AVX-512": "avx512f", "AVX2": "avx2", "NEON": "asimd"}
"""Kind -> the feature by which Linux lists it; the widest first."""
BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""Features with which a product of bfloat16 is an instruction."""
AS_AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe",
}
"""Environment variables with which Numba compiles for a processor whose widest vectors are AVX2."""
CPUINFO = Path("/proc/cpuinfo")


def model() -> str:
    """The processor's name."""
    return _listed("model name") or platform.processor() or platform.machine()


def features() -> frozenset[str]:
    """The features of the first core, by Linux's names; without its list, what every such processor has."""
    listed = _listed("flags") or _listed("Features")
    if not listed and platform.machine() in ("arm64", "aarch64"):
        return frozenset({"asimd"})
    return frozenset(listed.split())


def vectors(features: Collection[str]) -> str:
    """The kind of the widest vectors among these features; "" if there is none of `VECTORS`."""
    return next((kind for kind, feature in VECTORS.items() if feature in features), "")


def kind_of(machine: str) -> str:
    """The kind of vectors that a machine's name has (`harness.machine`), or ""."""
    return next((kind for kind in VECTORS if kind in machine.split(", ")), "")


def _listed(name: str) -> str:
    """The first value of that name in the system's list, or ""."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name)
    return next(values, "")
