"""Each wrapper of `ptx.cuh` against a formula in NumPy: its twin on the CPU, and the instruction on a card, if any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sparsegen.backends import backend_status, get_backend
from sparsegen.backends.cupy_cuda import compile as compiler
from sparsegen.backends.cupy_cuda import sources
from sparsegen.backends.cupy_cuda.card import Card
from sparsegen.backends.cupy_cuda.device import Device
from sparsegen.backends.cupy_cuda.tensor import tf32
from sparsegen.backends.interface import Host
from tests.cuda import emulator
from tests.tolerances import check

CHECKS = Path(__file__).with_name("ptx_checks.cu")
ON_CPU, ON_CARD = "cupy on a CPU", "cupy"
Run: TypeAlias = "Callable[..., dict[str, Host]]"


def on_device(device: Device, launch: Callable[[str, tuple[int, int, int], bytes], None]) -> Run:
    """`run(kernel, blocks, **values)`: every array is uploaded, and downloaded after the kernel."""
    known = sources.kernels_of(CHECKS.stem, CHECKS.read_text("utf-8"))

    def run(kernel: str, blocks: int, **values: Any) -> dict[str, Host]:
        arrays = {name: device.upload(each) for name, each in values.items() if isinstance(each, np.ndarray)}
        launch(kernel, (blocks, 1, 1), known[kernel].arguments.pack(device.address, {**values, **arrays}))
        return {name: device.download(each) for name, each in arrays.items()}

    return run


NO_CARD = backend_status().get(ON_CARD, "there is no such backend")


@pytest.fixture(scope="module", params=[ON_CPU] if NO_CARD else [ON_CPU, ON_CARD])
def run(request: pytest.FixtureRequest) -> Run:
    """The checks on the CPU, and on the card that the backend "cupy" chooses, if there is one."""
    if request.param == ON_CPU:
        if emulator.COMPILER is None:
            pytest.skip(emulator.MISSING)
        library = emulator.Library(emulator.build(CHECKS.read_text("utf-8"), CHECKS.stem))
        return on_device(emulator.EmulatedDevice(), library.launch)
    card: Card = get_backend(ON_CARD).device  # type: ignore[attr-defined]  # of CudaBackend alone
    text, architecture = CHECKS.read_text("utf-8"), compiler.target(card.architecture)
    cubin, _ = compiler.compiled(CHECKS.stem, architecture, source=text)
    card.add({CHECKS.stem: cubin}, sources.kernels_of(CHECKS.stem, text))
    return on_device(card, card.launch)


def test_the_instructions_are_checked_too() -> None:
    if NO_CARD:
        pytest.skip(f"the twins alone were checked; backend {ON_CARD}: {NO_CARD}")


def any_values(rng: np.random.Generator) -> Host:
    """float32 of every exponent, ties of both roundings, numbers next to them, the largest, zeros, infinities, NaN."""
    bits = rng.integers(0, 1 << 32, 20_000, dtype=np.uint32)
    ties = bits[:4000] & ~np.uint32(0x1FFF) | np.uint32(0x1000)  # both keep 10 bits of mantissa
    near = [ties - np.uint32(1), ties, ties + np.uint32(1)]
    special = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 1e-45, 6e-8, 3e-8], np.float32
    )
    largest = np.array([0x7F7FFFFF, 0x7F7FEFFF, 0x7F7FF000, 0xFF7FFFFF, 0x00800000, 0x007FFFFF], np.uint32)
    return np.concatenate([bits, *near, special.view(np.uint32), largest]).view(np.float32)


def nearest_tf32(values: Host) -> Host:
    """float32: 10 bits of mantissa, to the nearest, ties away from zero, in float64, which is exact here."""
    v = values.astype(np.float64)
    unit = np.exp2(np.maximum(np.frexp(v)[1] - 1, -126) - 10.0)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.copysign(np.floor(np.abs(v) / unit + 0.5) * unit, v)
        return np.where(np.isfinite(v), rounded, v).astype(np.float32)


def assert_same_numbers(bits: Host, expected: Host) -> None:
    """Equal to the last bit, but for NaNs, which have many."""
    nan = np.isnan(expected)
    assert_array_equal(np.isnan(bits.view(expected.dtype)), nan)
    kind = f"u{expected.itemsize}"
    assert_array_equal(bits.view(kind)[~nan], expected.view(kind)[~nan])


def test_numbers_are_rounded_to_the_nearest(run: Run) -> None:
    with np.errstate(invalid="ignore"):
        values = any_values(np.random.default_rng(0))
    count = len(values)
    halves = np.arange(count, dtype=np.uint16)
    made = run(
        "round_values",
        -(-count // 128),
        values=values,
        halves=halves,
        tf32=np.zeros(count, np.uint32),
        narrowed=np.zeros(count, np.uint16),
        widened=np.zeros(count, np.float32),
        count=count,
    )
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same_numbers(made["tf32"], nearest_tf32(values))
        assert_same_numbers(made["narrowed"], values.astype(np.float16))
        assert_same_numbers(made["widened"], halves.view(np.float16).astype(np.float32))


def test_weights_are_rounded_as_activations() -> None:
    with np.errstate(invalid="ignore"):
        values = any_values(np.random.default_rng(1))
        finite = values[np.abs(values) < 3e38]
    assert_array_equal(tf32(finite).view(np.uint32), nearest_tf32(finite).view(np.uint32))


def test_matrices_are_loaded_by_rows(run: Run) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 1 << 32, (32, 4), dtype=np.uint32)
    order = rng.permutation(32).astype(np.int32)
    made = run("load_matrices", 1, rows=rows, order=order, words=np.zeros((4, 32), np.uint32))
    lanes = np.arange(32)
    for m in range(4):
        assert_array_equal(made["words"][m], rows[order[8 * m + lanes // 4], lanes % 4])


def multiplied(run: Run, left: Host, right: Host, sums: Host) -> Host:
    """`sums` `[B, 16, 8]` + `left` `[B, 16, D]` `right` `[B, D, 8]`, of float16 (D = 16), else in TF32 (D = 8)."""
    halves = left.dtype == np.float16
    words = [np.ascontiguousarray(each).view(np.uint32) for each in (left, right.swapaxes(1, 2))]
    made = run("multiply_matrices", len(left), left=words[0], right=words[1], sums=sums, halves=int(halves))
    return made["sums"]


DEPTHS: list[tuple[Any, int]] = [(np.float32, 8), (np.float16, 16)]


@pytest.mark.parametrize(("kind", "depth"), DEPTHS)
def test_whole_numbers_are_multiplied_exactly(run: Run, kind: Any, depth: int) -> None:
    """So a value in another place of a fragment would show."""
    rng = np.random.default_rng(0)
    left, right, sums = (rng.integers(-99, 99, (5, *shape)) for shape in ((16, depth), (depth, 8), (16, 8)))
    made = multiplied(run, left.astype(kind), right.astype(kind), sums.astype(np.float32))
    assert_array_equal(made, sums + left @ right)


@pytest.mark.parametrize(("kind", "depth"), DEPTHS)
def test_sums_are_float32(run: Run, kind: Any, depth: int) -> None:
    rng = np.random.default_rng(0)
    left, right = (
        rng.standard_normal((50, 16, depth)).astype(kind),
        rng.standard_normal((50, depth, 8)).astype(kind),
    )
    sums = rng.standard_normal((50, 16, 8)).astype(np.float32)
    if kind is np.float32:
        left, right = tf32(left), tf32(right)
    made = multiplied(run, left, right, sums)
    check("matrix product", made, sums + left.astype(np.float64) @ right.astype(np.float64))


def test_the_lowest_bits_of_a_word_are_ignored(run: Run) -> None:
    rng = np.random.default_rng(0)
    left, right = (
        rng.standard_normal((5, 16, 8)).astype(np.float32),
        rng.standard_normal((5, 8, 8)).astype(np.float32),
    )
    cut = [(each.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for each in (left, right)]
    sums = np.zeros((5, 16, 8), np.float32)
    assert_array_equal(multiplied(run, left, right, sums), multiplied(run, *cut, sums))


@pytest.mark.parametrize(("kind", "depth"), DEPTHS)
def test_bits_do_not_depend_on_the_row_or_column(run: Run, kind: Any, depth: int) -> None:
    """Nor on the other rows and columns: else a tile's bits would depend on its company."""
    rng = np.random.default_rng(0)
    left, right = (
        rng.standard_normal((20, 16, depth)).astype(kind),
        rng.standard_normal((20, depth, 8)).astype(kind),
    )
    sums = rng.standard_normal((20, 16, 8)).astype(np.float32)
    made = multiplied(run, left, right, sums)
    rows, columns = rng.permutation(16), rng.permutation(8)
    moved = multiplied(run, left[:, rows], right[:, :, columns], sums[:, rows][:, :, columns])
    assert_array_equal(moved.view(np.uint32), made[:, rows][:, :, columns].view(np.uint32))
    alone = np.zeros_like(left)
    alone[:, 3] = left[:, 3]
    assert_array_equal(multiplied(run, alone, right, sums)[:, 3].view(np.uint32), made[:, 3].view(np.uint32))


@pytest.mark.parametrize(("kind", "depth"), DEPTHS)
def test_a_product_with_zeros_keeps_a_sum(run: Run, kind: Any, depth: int) -> None:
    """The depth is padded by zeros."""
    sums = np.random.default_rng(0).standard_normal((5, 16, 8)).astype(np.float32)
    made = multiplied(run, np.zeros((5, 16, depth), kind), np.ones((5, depth, 8), kind), sums)
    assert_array_equal(made, sums)


def test_copies_land_group_by_group(run: Run) -> None:
    rng = np.random.default_rng(0)
    given = rng.standard_normal((3, 64, 4)).astype(np.float32)
    valid = rng.integers(0, 2, (3, 64), dtype=np.int32)
    first, everything = np.zeros((64, 4), np.float32), np.zeros((3, 64, 4), np.float32)
    made = run("copy_chunks", 1, **{"from": given, "valid": valid, "first": first, "all": everything})
    expected = np.where(valid[..., None] != 0, given, np.float32(0))
    assert_array_equal(made["first"], expected[0])
    assert_array_equal(made["all"], expected)
