"""Every kernel computes the same bits in whatever order its threads and blocks run."""

from __future__ import annotations

import pytest

from sparsegen.backends.cupy_cuda.sources import kernels
from tests.cuda import emulator
from tests.cuda.backends import emulated
from tests.cuda.calls import CALLS, missed
from tests.cuda.emulator import BACKWARDS, SHUFFLED, in_order

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)


def test_the_calls_run_every_kernel() -> None:
    assert missed(emulated(), kernels()) == []


@pytest.mark.parametrize("name", CALLS)
def test_any_order_of_threads_gives_the_same_bits(name: str) -> None:
    call, backend = CALLS[name], emulated()
    expected = call(backend)
    for order, seed in ((BACKWARDS, 1), (SHUFFLED, 1), (SHUFFLED, 2)):
        with in_order(order, seed):
            found = call(backend)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.tobytes() == theirs.tobytes()
