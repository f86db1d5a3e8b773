"""Convolutions by the kernels' own source on a CPU: every block of a product, and arrays aligned to 4 bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsegen.backends.cupy_cuda import convolutions
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.cupy_cuda.convolutions import BLOCKS, DIRECT_BLOCKS, direct_block, product_block
from sparsegen.backends.interface import Array, Host
from tests.backends.contract_cases import Case, assert_contract, assert_same_bits, conv_case
from tests.cuda import emulator
from tests.cuda.backends import emulated

needs_compiler = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)

CASES: dict[str, dict[str, Any]] = {
    # depths of 1, 2 and 3 steps of a block of 16 rows; columns of 2 and 3 blocks
    "winograd": {"channels": (60, 8), "outputs": 68, "size": (10, 11), "scale": "shared", "prologue": "silu"},
    "winograd, modulated": {
        "channels": (12,),
        "outputs": 20,
        "samples": 2,
        "modulation": "by code",
        "residual": "plain",
        "shift": "per sample",
        "activation": "leaky_relu",
    },
    "winograd, three outputs": {
        "channels": (40,),
        "outputs": 3,
        "size": (17, 22),
        "prologue": "leaky_relu",
        "activation": "tanh",
    },
    "direct": {
        "channels": (8, 68),
        "outputs": 132,
        "kernel": (1, 1),
        "padding": (0, 0, 0, 0),
        "size": (9, 10),
    },
    "direct, odd channels": {
        "channels": (7,),
        "outputs": 21,
        "kernel": (3, 2),
        "stride": 2,
        "residual": "plain",
    },
    "direct, taps of four channels": {
        "channels": (4,),
        "outputs": 24,
        "kernel": (5, 5),
        "padding": (2, 2, 2, 2),
    },
    "direct, in groups": {
        "channels": (16,),
        "outputs": 40,
        "groups": 2,
        "residual": "plain",
        "shift": "shared",
    },
    "direct, groups of odd outputs": {"channels": (8,), "outputs": 36, "groups": 2},
    # of 128, 128, …, 104 values of the depth
    "direct, several chains": {
        "channels": (50, 22),
        "outputs": 68,
        "stride": 2,
        "samples": 2,
        "residual": "plain",
        "shift": "per sample",
        "activation": "silu",
    },
    "direct, several chains, groups of odd outputs": {"channels": (80,), "outputs": 42, "groups": 2},
}


def case_of(name: str) -> Case:
    return conv_case(**CASES[name])


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_every_block_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, first = case_of(name), None
    for block in BLOCKS:

        def chosen(*given: Any, block: tuple[int, int] = block) -> tuple[int, int]:
            direct = given[-1] is convolutions.DIRECT_BLOCKS
            return (max(block[0], 16), min(block[1], 64)) if direct else block

        monkeypatch.setattr(convolutions, "product_block", chosen)
        result = case.run(emulated(), case.tiles)
        assert_contract(case, emulated(), np.random.default_rng(0))
        first = result if first is None else first
        assert_same_bits(result, first)


@needs_compiler
@pytest.mark.parametrize("name", [name for name in CASES if "chains" in name])
def test_chains_give_the_same_bits_apart_and_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, results = case_of(name), list[Host]()
    for block in DIRECT_BLOCKS:
        for apart in (False, True):
            monkeypatch.setattr(
                convolutions, "direct_block", lambda *_, block=block, apart=apart: (block, apart)
            )
            backend = CudaBackend(emulator.EmulatedDevice())
            results.append(case.run(backend, case.tiles))
            assert backend.device.counts["launch"] == 1 + apart
    for other in results[1:]:
        assert_same_bits(other, results[0])


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_alignment_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, case = emulated(), case_of(name)
    aligned = case.run(backend, case.tiles)

    def upload(host: Host) -> Array:
        """At an address that four bytes divide, and sixteen do not."""
        shifted = np.zeros(host.size + 1, host.dtype)
        shifted[1:] = host.reshape(-1)
        return backend.device.upload(shifted)[1:].reshape(host.shape)

    monkeypatch.setattr(backend, "upload", upload)
    assert_same_bits(case.run(backend, case.tiles), aligned)


@needs_compiler
@pytest.mark.parametrize(("name", "file"), [("winograd", "winograd"), ("direct", "direct")])
def test_the_order_of_threads_changes_no_bit(name: str, file: str) -> None:
    case, library = case_of(name), emulator.libraries()[file]
    forwards = case.run(emulated(), case.tiles)
    try:
        for order in (emulator.BACKWARDS, emulator.SHUFFLED):
            library.order(order)
            assert_same_bits(case.run(emulated(), case.tiles), forwards)
    finally:
        library.order(emulator.FORWARDS)


@pytest.mark.parametrize(
    ("rows", "outputs", "products", "expected"),
    [
        (16, 512, 36, (8, 64)),  # 16² pixels of DDPM
        (64, 256, 36, (32, 64)),
        (896, 128, 36, (128, 128)),  # a batch of 256² pixels
        (128, 128, 36, (32, 64)),  # what is left of 128²
        (65536, 256, 1, (128, 64)),  # 1×1, whole
        (65536, 4, 1, (64, 16)),
        (1664, 4, 36, (64, 16)),  # a batch of the last layer's tiles
        (50, 4, 36, (8, 64)),  # its tiles in an edit
    ],
)
def test_product_block(rows: int, outputs: int, products: int, expected: tuple[int, int]) -> None:
    assert (
        product_block(rows, outputs, products, 132, BLOCKS if products == 36 else DIRECT_BLOCKS) == expected
    )


@pytest.mark.parametrize(
    ("rows", "outputs", "depth", "expected"),
    [
        (256, 512, 512, ((32, 64), True)),  # 1×1 at 16² pixels
        (256, 512, 1024, ((32, 64), True)),
        (64, 512, 9 * 512, ((32, 64), True)),  # 3×3, stride 2, at 8²
        (1024, 512, 512, ((32, 64), False)),  # 1×1 at 32²
        (65536, 128, 256, ((128, 64), False)),  # at 256²
        (16, 64, 128, ((16, 64), False)),  # one chain
    ],
)
def test_direct_block(rows: int, outputs: int, depth: int, expected: tuple[tuple[int, int], bool]) -> None:
    assert direct_block(rows, outputs, 1, -(-depth // convolutions.CHAIN), 132) == expected
