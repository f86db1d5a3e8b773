"""Winograd's products of few tiles: right on every processor, and of the bits that many tiles have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsegen.backends import Source
from sparsegen.backends.interface import TILE, Tiles
from tests.backends.contract_cases import all_tiles, assert_same_bits, normal

numba = pytest.importorskip("numba")

from sparsegen.backends.numba_cpu import NumbaBackend  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.few_tiles import PACE, SIDE, TAPS, products_of_few  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.gemm import ADD, PANEL, REPLACE  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.simd import WIDTH  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.transforms import KERNEL_4  # noqa: E402  (needs numba)

STEPS = 20
_products = products_of_few(STEPS)


@numba.njit
def _multiply(weights: Any, inputs: Any, sums: Any, tiles: int, resume: int) -> None:
    step = tiles * STEPS
    _products(weights, 0, inputs, 0, step, sums, 0, tiles * PANEL, weights, 0, PACE, tiles, STEPS, resume)


@pytest.mark.parametrize("tiles", range(1, 20))
def test_products_are_the_formula(tiles: int) -> None:
    """On a processor whose `Target.few` is 0 too, where no convolution takes this way."""
    rng = np.random.default_rng(tiles)
    kernels, inputs = normal(rng, STEPS, TAPS, WIDTH), normal(rng, SIDE * SIDE, tiles, STEPS)
    transformed = np.einsum(
        "iy,jx,kyxo->ijko", KERNEL_4, KERNEL_4, kernels.reshape(STEPS, 3, 3, WIDTH).astype(np.float64)
    )
    exact = inputs.astype(np.float64) @ transformed.reshape(SIDE * SIDE, STEPS, WIDTH)
    sums = np.full((SIDE * SIDE, tiles, PANEL), np.nan, np.float32)
    for resume, expected in ((REPLACE, exact), (ADD, 2 * exact)):
        _multiply(kernels.ravel(), inputs.ravel(), sums.reshape(-1), tiles, resume)
        np.testing.assert_allclose(sums[..., :WIDTH], expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_few_tiles_have_the_bits_of_many(weights: Any, threads: int) -> None:
    """For every number of tiles around that from which transformed kernels are stored; 200 inputs are four pieces."""
    rng = np.random.default_rng(0)
    x, weight, bias = normal(rng, 1, 64, 32, 200), normal(rng, 75, 200, 3, 3, std=1 / 40), normal(rng, 75)
    backend = NumbaBackend(threads, weights=weights)
    prepared = backend.prepare_conv(weight, bias, padding=(1, 1, 1, 1), size=(64, 32))
    many = backend.alloc((1, 64, 32, 75))
    backend.conv2d(many, all_tiles(1, 64, 32), Source((x,)), prepared)
    for count in range(1, 36):
        tiles = Tiles(np.array([(0, 2 + i // 4, 1 + i % 4) for i in range(count)], np.int32))
        few = backend.alloc(many.shape)
        backend.conv2d(few, tiles, Source((x,)), prepared)
        for _, row, column in tiles.host:
            at = np.s_[0, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            assert_same_bits(few[at], many[at])
