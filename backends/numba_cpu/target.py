"""Processors: a processor's features come in, the width of vectors and the shape of the product's block come out.

The table is all that is specific to a processor; every kernel is written in terms of `Target`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace

import llvmlite.binding as llvm
import numba


@dataclass(frozen=True)
class Target:
    """Vectors of `width` floats, and the block of a matrix product that fills the registers with sums."""

    width: int
    """float32 values in a vector."""
    rows: int
    """Rows of the product's register block."""
    columns: int
    """Vectors across the register block; a panel of weights is `columns * width` outputs wide."""
    fused: bool
    """Whether a multiply-add is one instruction; where it is not, it is a product and a sum."""
    half: bool
    """Whether float16 widens to float32 in one instruction."""
    few: int = 0
    """Tiles for which Winograd's kernels are transformed where they are multiplied (`few_tiles.py`), at most."""
    dot: str = ""
    """LLVM's name of the instruction that adds a pair of products of bfloat16 to each float32 of a vector, if any."""
    pause: tuple[str, ...] = ()
    """LLVM's name of the instruction that lets a core rest between two polls, and its argument, if any."""

    @property
    def panel(self) -> int:
        """Outputs side by side in a panel of packed weights."""
        return self.columns * self.width


# rows * columns sums, `columns` vectors of weights and one of inputs must fit the registers (32, 16, 32, 16), and
# the sums must cover the multiply-add's latency times its rate (8 to 10)
_AVX512 = Target(width=16, rows=8, columns=2, fused=True, half=True, few=16, pause=("llvm.x86.sse2.pause",))
TARGETS: dict[str, Target] = {
    "avx512": _AVX512,
    "avx512bf16": replace(_AVX512, dot="llvm.x86.avx512bf16.dpbf16ps.512"),
    "avx2": Target(width=8, rows=6, columns=2, fused=True, half=True, pause=("llvm.x86.sse2.pause",)),
    "neon": Target(width=4, rows=6, columns=4, fused=True, half=True, pause=("llvm.aarch64.isb", "15")),
    "portable": Target(width=4, rows=4, columns=2, fused=False, half=False),
}


def detect(machine: str, features: Mapping[str, bool]) -> Target:
    """The target of a processor: `machine` from `platform.machine()`; LLVM's `features`, name -> supported."""
    if machine.lower() in ("arm64", "aarch64"):
        return TARGETS["neon"]
    if features.get("avx512f") and features.get("avx512vl"):
        # before LLVM 17 the instruction's arguments are of another type
        pairs = features.get("avx512bf16") and llvm.llvm_version_info >= (17,)
        return TARGETS["avx512bf16" if pairs else "avx512"]
    if features.get("avx2") and features.get("fma") and features.get("f16c"):
        return TARGETS["avx2"]
    return TARGETS["portable"]


def _features() -> dict[str, bool]:
    """LLVM's features of the processor that Numba compiles for (its NUMBA_CPU_NAME and NUMBA_CPU_FEATURES win)."""
    named = numba.config.CPU_FEATURES
    if numba.config.CPU_NAME is None and named is None:
        found = dict(llvm.get_host_cpu_features())
        # NUMBA_ENABLE_AVX=0, which is Numba's choice for some virtual processors: it compiles without these
        without = () if numba.config.ENABLE_AVX else [name for name in found if name.startswith("avx")]
        return {**found, **dict.fromkeys(without, False)}
    return {word[1:]: word[0] == "+" for word in (named or "").split(",") if word}


TARGET = detect(platform.machine(), _features())
"""The target of this process."""
