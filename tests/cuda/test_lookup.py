"""Look-ups of labels on the emulated device: each output is one chain of sums, whatever the labels and addresses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsegen.backends.interface import Array, Host
from tests.backends.contract_cases import all_tiles, assert_same_bits, normal
from tests.cuda import emulator
from tests.cuda.backends import emulated

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)

CASES: dict[str, dict[str, Any]] = {
    "one plane": {"outputs": 12},
    "two planes, step 2": {"outputs": 132, "planes": 2, "step": 2},
    "more turns than a block resolves at a time": {"outputs": 8, "side": 5, "planes": 4},
    "odd outputs": {"outputs": 133, "planes": 2},
    "one tap": {"outputs": 4, "side": 1},
}


def chain(indices: Host, table: Host, bias: Host, side: int, step: int) -> Host:
    """The sums in float32, tap by tap and plane by plane."""
    samples, height, width, planes = (
        size // s for size, s in zip(indices.shape, (1, step, step, 1), strict=True)
    )
    sums = np.broadcast_to(bias, (samples, height, width, len(bias))).copy()
    half = side // 2
    for tap in range(side * side):
        rows, columns = (
            np.arange(n) + tap_at - half for n, tap_at in zip((height, width), divmod(tap, side), strict=True)
        )
        inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
        of_tap = indices[:, (rows % height)[:, None] * step, columns % width * step]
        for plane in range(planes):
            label = np.where(inside, of_tap[..., plane], -1)[..., None]
            sums = np.where(label >= 0, sums + table[tap][label[..., 0]], sums)
    return sums


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_those_of_one_chain(name: str, aligned: bool) -> None:
    options = {"side": 3, "planes": 1, "step": 1, **CASES[name]}
    side, planes, step, outputs = (options[key] for key in ("side", "planes", "step", "outputs"))
    rng, backend, size = np.random.default_rng(0), emulated(), (2, 9, 10)
    # regions of one label, as maps have, beside pixels of random labels
    indices = np.full((2, 9 * step, 10 * step, planes), 3, np.int32)
    indices[:, : 5 * step] = rng.integers(-1, 6, indices[:, : 5 * step].shape)
    indices[0, -2 * step :] = -1
    table, bias = normal(rng, side * side, 6, outputs), normal(rng, outputs)

    def put(host: Host) -> Array:
        """At an address that 16 bytes divide, or only four."""
        begin = 0 if aligned else 1
        shifted = np.concatenate([np.zeros(begin, host.dtype), host.reshape(-1)])
        return backend.device.upload(shifted)[begin:].reshape(host.shape)

    out = put(np.zeros((*size, outputs), np.float32))
    backend.lookup(out, all_tiles(*size), put(indices), put(table), put(bias), step=step)
    assert_same_bits(backend.download(out), chain(indices, table, bias, side, step))
