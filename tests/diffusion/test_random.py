"""The numbers of PyTorch's CPU generator: against PyTorch, against pinned numbers, and as the noise of a trajectory."""

from __future__ import annotations

import numpy as np
import pytest

from sparsegen.diffusion.random import TorchRandom, torch_noise, torch_seeded
from sparsegen.diffusion.seeds import START
from sparsegen.errors import InputError
from tests.tolerances import check

SEEDS = (0, 1, 42, 5489, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63 + 1, 2**64 - 1)
SIZES = (*range(1, 70), 100, 623, 624, 625, 1000, 4 * 64 * 64, 4 * 64 * 96 + 7)


@pytest.mark.torch
@pytest.mark.parametrize("seed", SEEDS)
def test_every_size_has_the_numbers_of_pytorch(seed: int) -> None:
    torch = pytest.importorskip("torch")
    for size in SIZES:
        expected = torch.randn(size, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
        check("randn", TorchRandom(seed).normal((size,)), expected, largest=1)


@pytest.mark.torch
@pytest.mark.parametrize("seed", SEEDS[:4])
def test_a_stream_goes_on_as_in_pytorch(seed: int) -> None:
    """Large arrays and small ones in any order: a small one of odd size keeps a number for the next small one."""
    torch = pytest.importorskip("torch")
    theirs, ours, skipping = torch.Generator("cpu").manual_seed(seed), TorchRandom(seed), TorchRandom(seed)
    shapes = [(3,), (17,), (1,), (2, 4, 8), (15,), (0,), (5, 5), (1, 1), (4, 6, 7), (2,), (16,), (7,)]
    for i, shape in enumerate(np.random.default_rng(seed).permutation(np.array(shapes, object)).tolist()):
        expected = torch.randn(shape, generator=theirs).numpy()
        drawn = ours.normal(shape)
        assert drawn.dtype == np.float32
        check("randn", drawn, expected, largest=1)
        if i % 2:
            assert skipping.normal(shape).tobytes() == drawn.tobytes()
        else:
            skipping.skip(shape)


@pytest.mark.torch
def test_a_trajectory_draws_channels_first_and_step_after_step() -> None:
    torch = pytest.importorskip("torch")
    shape = (2, 6, 5, 4)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (7, 3)]
    fresh = torch_seeded([7, 3], shape)
    for index in (START, 0, 1, 2):
        drawn = [torch.randn(1, 4, 6, 5, generator=each) for each in generators]
        check("randn", fresh(index), torch.cat(drawn).permute(0, 2, 3, 1).numpy(), largest=1)


def test_the_numbers_of_seed_0() -> None:
    """PyTorch 2.13.0: `torch.randn(16)[:3]`, `torch.randn(3)`, each after `manual_seed(0)`."""
    large, small = TorchRandom(0).normal((16,))[:3], TorchRandom(0).normal((3,))
    check("randn", large, np.array([-1.1258398, -1.1523602, -0.25057858], np.float32), largest=1)
    check("randn", small, np.array([1.5409961, -0.2934289, -2.1787894], np.float32), largest=1)


def test_the_noise_of_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    shape = (2, 3, 3, 1)  # fewer than 16 numbers, of which an odd one is kept
    fresh = torch_seeded(5, shape)
    first = [fresh(index) for index in (START, 0, 1)]
    for index in (1, START, 0):
        assert fresh(index).tobytes() == first[index + 1].tobytes()
    assert len({noise.tobytes() for noise in first}) == 3
    # a sample has the bits that it has alone
    assert fresh(1)[1].tobytes() == torch_noise(6, 1, (1, *shape[1:]))[0].tobytes()


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True])
def test_a_seed_that_pytorch_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(
        InputError, match=r"seed is .*, expected a whole number from 0 to 18446744073709551615"
    ):
        TorchRandom(seed)
