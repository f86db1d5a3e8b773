"""Depthwise convolutions by the kernel's own source on a CPU, beyond the cases of the contract suite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsegen.backends.cupy_cuda.depthwise import is_depthwise
from sparsegen.backends.interface import ConvGeometry
from tests.backends.contract_cases import assert_contract, assert_same_bits, conv_case
from tests.cuda import emulator
from tests.cuda.backends import emulated

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)

CASES: dict[str, dict[str, Any]] = {
    "more channels than a block has": {"channels": 70, "samples": 2},
    "stride 2, padded right and bottom": {"channels": 66, "stride": 2, "padding": (0, 1, 0, 1)},
    "7×7": {"channels": 5, "kernel": (7, 7), "padding": (3, 3, 3, 3)},
    "1×5, stride 3": {"channels": 6, "kernel": (1, 5), "padding": (0, 3, 1, 2), "stride": 3},
    "1×1": {"channels": 3, "kernel": (1, 1), "padding": (0, 0, 0, 0)},
    "whole prologue": {
        "channels": (33, 40),
        "samples": 2,
        "size": (5, 4),
        "upsample": 2,
        "scale": "per sample",
        "modulation": "by code",
        "prologue": "silu",
    },
    "whole epilogue": {
        "channels": 9,
        "samples": 2,
        "shift": "per sample",
        "residual": "pending",
        "activation": "leaky_relu",
    },
    "a window too large for shared memory": {
        "channels": 3,
        "kernel": (11, 11),
        "padding": (5, 5, 5, 5),
        "size": (5, 6),
    },
}


def case_of(name: str) -> Any:
    options = dict(CASES[name])
    channels = options.pop("channels")
    parts = channels if isinstance(channels, tuple) else (channels,)
    return conv_case(channels=parts, outputs=sum(parts), groups=sum(parts), **options)


@pytest.mark.parametrize("name", CASES)
def test_contract(name: str) -> None:
    assert_contract(case_of(name), emulated(), np.random.default_rng(0))


def test_the_order_of_threads_changes_no_bit() -> None:
    case, library = case_of("whole prologue"), emulator.libraries()["depthwise"]
    forwards = case.run(emulated(), case.tiles)
    try:
        for order in (emulator.BACKWARDS, emulator.SHUFFLED):
            library.order(order)
            assert_same_bits(case.run(emulated(), case.tiles), forwards)
    finally:
        library.order(emulator.FORWARDS)


@pytest.mark.parametrize(
    ("outputs", "groups", "kernel", "stride", "expected"),
    [
        (8, 8, (3, 3), 1, True),
        (8, 8, (9, 9), 1, True),
        (8, 8, (7, 7), 2, True),
        (8, 8, (11, 11), 1, False),  # 14 × 14 pixels of 64 channels are 50 KB
        (16, 8, (3, 3), 1, False),
        (8, 4, (3, 3), 1, False),
        (1, 1, (3, 3), 1, False),
    ],
)
def test_is_depthwise(
    outputs: int, groups: int, kernel: tuple[int, int], stride: int, expected: bool
) -> None:
    inputs = 8 if groups > 1 else 1
    weight = np.zeros((outputs, inputs // groups, *kernel), np.float32)
    assert is_depthwise(ConvGeometry.of(weight, stride, (0, 0, 0, 0), groups)) == expected
