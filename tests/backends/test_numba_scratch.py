"""Scratch of the Numba backend's kernels: each region is as large as its layout says, and no kernel leaves it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sparsegen.backends import Source
from sparsegen.backends.interface import Host
from tests.backends.contract_cases import CASES, assert_same_bits, build, conv_case, normal
from tests.tolerances import check

numba = pytest.importorskip("numba")

from sparsegen.backends.numba_cpu import (  # noqa: E402  (needs numba)
    NumbaBackend,
    attention,
    codebooks,
    depthwise,
    direct,
    lookup,
    moments,
    regions,
    threads,
    winograd,
    writing,
)
from sparsegen.backends.numba_cpu.target import TARGET  # noqa: E402  (needs numba)

LAYOUTS = (
    attention.layout,
    attention.tokens_layout,
    codebooks.layout,
    depthwise.layout,
    direct.layout,
    lookup.layout,
    moments.layout,
    winograd.layout,
    writing.layout,
)
GAP = 64
"""Floats between regions here."""
CANARY = 0x7FC0DEAD
"""Bits of a NaN in every float of scratch before a kernel runs: what is read unwritten and used spreads."""


class Apart:
    """Scratch whose regions lie apart: what lies between them is checked after each kernel."""

    def __init__(self) -> None:
        self.gaps: list[int] = []
        """Where gaps begin, in the layout that was made last."""
        self.layouts = 0
        """Layouts whose gaps were checked."""
        self.scratch: Host | None = None

    def add(self, region: regions.Regions, floats: int) -> int:
        """`Regions.add`, with a gap behind each region."""
        if region.size == 0:
            self.check()
            self.gaps = []
        start = region.size
        self.gaps.append(start + floats)
        region.size += floats + GAP
        return start

    def give(self, count: int) -> tuple[int, int]:
        """A thread's own scratch for one kernel: exactly so many floats, all of them canaries."""
        self.check()
        self.scratch = np.full(count, CANARY, np.uint32).view(np.float32)
        return self.scratch.ctypes.data, count

    def check(self) -> None:
        """No kernel wrote between regions."""
        if self.scratch is not None and len(self.scratch):
            words = self.scratch.view(np.uint32)
            for number, gap in enumerate(self.gaps):
                written = np.flatnonzero(words[gap : gap + GAP] != CANARY)
                assert not len(written), f"region {number} is overrun by {written.max() + 1} floats"
            self.layouts += 1
        self.scratch = None


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[Apart]:
    """Every layout is made anew with gaps between its regions."""
    apart = Apart()
    monkeypatch.setattr(regions.Regions, "add", lambda region, floats: apart.add(region, floats))
    monkeypatch.setattr(threads._Local, "room", lambda _, floats: apart.give(floats))
    for layout in LAYOUTS:
        layout.cache_clear()
    yield apart
    apart.check()
    for layout in LAYOUTS:
        layout.cache_clear()


@pytest.mark.parametrize("name", [name for name in CASES if name != "write tiles"])
def test_no_kernel_leaves_its_regions(name: str, request: pytest.FixtureRequest) -> None:
    case = build(name)
    expected = case.run(NumbaBackend(1), case.tiles)
    apart = request.getfixturevalue("apart")
    assert_same_bits(case.run(NumbaBackend(1), case.tiles), expected)
    apart.check()
    assert apart.layouts > 0, "nothing was checked"


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels", [(1,), (9, 4), (16,), (33, 20), (7, 130)])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_no_convolution_of_many_tiles_leaves_its_regions(
    apart: Apart, weights: Any, channels: tuple[int, ...], kernel: int, stride: int
) -> None:
    for scale, residual in ((None, None), ("shared", "plain")):
        case = conv_case(
            kernel=(kernel, kernel),
            stride=stride,
            padding=(kernel // 2,) * 4,
            channels=channels,
            outputs=2 * TARGET.panel + 3,
            size=(14, 61),
            samples=2,
            scale=scale,
            residual=residual,
        )
        result = case.run(NumbaBackend(1, weights=weights), case.tiles)
        check(
            "conv2d" if weights == "float32" else "weights in bfloat16",
            result,
            case.oracle,
            largest=case.largest,
        )
    apart.check()
    assert apart.layouts == 2


def test_neither_moments_nor_windows_leave_their_regions(apart: Apart) -> None:
    rng, backend = np.random.default_rng(0), NumbaBackend(1)
    for scale in (None, normal(rng, 1, 53)):
        source = Source((normal(rng, 2, 9, 20, 33), normal(rng, 2, 9, 20, 20)), scale=scale, shift=scale)
        mean, variance = backend.channel_moments(source)
        v = (
            np.concatenate(source.parts, 3)
            if scale is None
            else np.concatenate(source.parts, 3) * scale + scale
        )
        np.testing.assert_allclose(mean, v.mean((1, 2)), atol=1e-5)
        np.testing.assert_allclose(variance, v.var((1, 2)), rtol=1e-4)
    for stored in ("float32", "bfloat16"):
        backend = NumbaBackend(1, weights=stored)  # type: ignore[arg-type]  # mypy widens the literal
        weights = backend.prepare_conv(normal(rng, 19, 6, 3, 3), None, padding=(1, 1, 1, 1), size=(1, 1))
        out = backend.alloc((40, 19))
        windows = rng.integers(-1, 5, (40, 9), dtype=np.int32)
        backend.convolve_windows(out, windows, normal(rng, 5, 6), weights)
        assert np.isfinite(out).all()
    apart.check()
    assert apart.layouts == 4


def test_every_layout_is_checked() -> None:
    """A layout function that this file does not know would be used as it is remembered, without gaps."""
    names = (
        "attention",
        "codebooks",
        "depthwise",
        "direct",
        "lookup",
        "moments",
        "winograd",
        "writing",
    )
    found = {
        value
        for name in names
        for value in vars(importlib.import_module(f"{regions.__package__}.{name}")).values()
        if hasattr(value, "cache_clear")
    }
    assert found == set(LAYOUTS)
