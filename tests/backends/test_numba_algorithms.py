"""The Numba backend's algorithms: each holds the contract where it is chosen, however weights are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsegen.backends import BackendError, Source
from sparsegen.backends.interface import Host, Tiles
from tests.backends.contract_cases import CASES, all_tiles, assert_contract, assert_same_bits, build, normal
from tests.oracles import naive
from tests.tolerances import check

numba = pytest.importorskip("numba")

from sparsegen.backends.numba_cpu import NumbaBackend  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.gemm import PANEL  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.packing import PAIRS, store_as_pairs  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.target import TARGET, TARGETS  # noqa: E402  (needs numba)


def test_direct_convolutions_are_closer_to_the_formula() -> None:
    backend = NumbaBackend(direct=True)
    for name in (name for name in CASES if name.startswith("conv")):
        case = build(name)
        check("conv2d, direct", case.run(backend, case.tiles), case.oracle, largest=case.largest)
    weight = np.zeros((16, 16, 3, 3), np.float32)
    assert NumbaBackend().prepare_conv(weight, None).whole_tiles
    assert not backend.prepare_conv(weight, None).whole_tiles


@pytest.mark.parametrize("side", [4, 8, 12, 64, 128])
@pytest.mark.parametrize("inputs", [7, 8, 130])
def test_any_algorithm_holds_the_contract_at_the_size_it_is_chosen_for(side: int, inputs: int) -> None:
    backend, rng = NumbaBackend(2), np.random.default_rng(side)
    weight, v = normal(rng, 24, inputs, 3, 3, std=(9 * inputs) ** -0.5), normal(rng, 1, 12, 12, inputs)
    weights = backend.prepare_conv(weight, None, padding=(1, 1, 1, 1), size=(side, side))
    out = backend.alloc((1, 12, 12, 24))
    backend.conv2d(out, all_tiles(1, 12, 12), Source((v,)), weights)
    check("conv2d", out, naive.conv2d(v, weight, padding=(1, 1, 1, 1)))
    some = np.full_like(out, np.nan)
    backend.conv2d(some, Tiles(all_tiles(1, 12, 12).host[[7, 2]]), Source((v,)), weights)
    assert_same_bits(some[:, 8:, 4:8], out[:, 8:, 4:8])
    assert np.isnan(some).sum() == out.size - 2 * 16 * 24


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_in_16_bits_round_weights_and_nothing_else(stored: Any) -> None:
    backend, rng = NumbaBackend(2, weights=stored), np.random.default_rng(0)
    for name in ("conv 3×3, many channels", "conv 1×1, whole epilogue", "conv 3×3, groups", "conv 5×5"):
        case = build(name)
        check(f"weights in {stored}", case.run(backend, case.tiles), case.oracle, largest=case.largest)
    # powers of two lose nothing: the contract as it is
    v, weight = normal(rng, 1, 12, 12, 9), 2.0 ** rng.integers(-3, 3, (5, 9, 1, 1)).astype(np.float32)
    weights, out = backend.prepare_conv(weight, None), backend.alloc((1, 12, 12, 5))
    backend.conv2d(out, all_tiles(1, 12, 12), Source((v,)), weights)
    check("conv2d", out, naive.conv2d(v, weight))
    assert_contract(build("lookup, two samples"), backend, rng)


def test_weights_stored_in_no_known_way_are_refused() -> None:
    with pytest.raises(BackendError, match=r"'float8'.*float32"):
        NumbaBackend(weights="float8")  # type: ignore[arg-type]  # what a caller may get wrong


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
@pytest.mark.parametrize(("kernel", "direct"), [(1, True), (3, True), (3, False)])
def test_weights_stored_in_16_bits_are_widened_as_they_are(stored: Any, kernel: int, direct: bool) -> None:
    """The bits of a convolution by weights that were rounded before, in half the memory."""
    if stored == "float16" and not TARGET.half:
        pytest.skip("this processor cannot widen float16")
    rng = np.random.default_rng(0)
    weight = normal(rng, 40, 700, kernel, kernel, std=1 / 30)  # deeper than the pieces it is multiplied in
    if stored == "float16":
        rounded = weight.astype(np.float16).astype(np.float32)
    else:
        bits = weight.view(np.uint32).astype(np.uint64)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    source, results, sizes = Source((normal(rng, 1, 9, 10, 700),)), [], []
    for backend, given in (
        (NumbaBackend(direct=direct, weights=stored), weight),
        (NumbaBackend(direct=direct), rounded),
    ):
        weights = backend.prepare_conv(given, None, padding=(kernel // 2,) * 4, size=(9, 10))
        out = backend.alloc((1, 9, 10, 40))
        backend.conv2d(out, all_tiles(1, 9, 10), source, weights)
        results.append(out)
        sizes.append(weights.packed.values.floats.nbytes + weights.packed.values.halves.nbytes)
    assert_same_bits(*results)
    assert sizes[0] * 2 == sizes[1]


@pytest.mark.skipif(not TARGET.dot, reason="this processor cannot multiply bfloat16")
@pytest.mark.parametrize(
    ("kernel", "stride", "inputs"), [(1, 1, 1402), (3, 2, 50), (5, 1, 66), (3, 2, 51), (3, 1, 16)]
)
def test_products_of_bfloat16_round_inputs_and_weights_and_nothing_else(
    kernel: int, stride: int, inputs: int
) -> None:
    rng, pad = np.random.default_rng(0), kernel // 2
    size = tuple((side + 2 * pad - kernel) // stride + 1 for side in (13, 18))
    exact, rounded = NumbaBackend(), NumbaBackend(precision="bfloat16")

    def convolved(backend: NumbaBackend, v: Any, weight: Any, tiles: Tiles) -> Any:
        geometry = {"stride": stride, "padding": (pad,) * 4, "size": size}
        out = backend.alloc((1, *size, 40))
        backend.conv2d(out, tiles, Source((v,)), backend.prepare_conv(weight, None, **geometry))
        return out

    # small numbers lose nothing, and their sums are exact
    v = rng.integers(-8, 9, (1, 13, 18, inputs)).astype(np.float32)
    weight = 2.0 ** rng.integers(-3, 3, (40, inputs, kernel, kernel)).astype(np.float32)
    tiles = all_tiles(1, *size)
    if (kernel, stride) != (3, 1):
        assert_same_bits(convolved(rounded, v, weight, tiles), convolved(exact, v, weight, tiles))
    v, weight = normal(rng, 1, 13, 18, inputs), normal(rng, 40, inputs, kernel, kernel, std=inputs**-0.5)
    expected, found = (convolved(backend, v, weight, tiles) for backend in (exact, rounded))
    # an odd pixel has no whole pairs, and Winograd's transforms would enlarge the rounding
    if inputs % 2 or (kernel, stride) == (3, 1):
        assert_same_bits(found, expected)
    else:
        assert 1e-4 < np.abs(found - expected).max() / np.abs(expected).max() < 5e-3
    some = convolved(rounded, v, weight, Tiles(tiles.host[[5, 2]]))
    written = some != 0
    assert_same_bits(some[written], found[written])


@pytest.mark.skipif(not TARGET.dot, reason="this processor cannot multiply bfloat16")
def test_windows_by_products_of_bfloat16_round_inputs_and_weights_and_nothing_else() -> None:
    rng, results = np.random.default_rng(0), []
    windows = rng.integers(-1, 37, (60, 9)).astype(np.int32)
    table = rng.integers(-8, 9, (37, 26)).astype(np.float32)  # small numbers lose nothing
    weight = 2.0 ** rng.integers(-3, 3, (40, 26, 3, 3)).astype(np.float32)
    for backend in (NumbaBackend(), NumbaBackend(precision="bfloat16")):
        weights = backend.prepare_conv(weight, None, padding=(1,) * 4, size=(1, 1))
        out = backend.alloc((60, 40))
        backend.convolve_windows(out, windows, table, weights)
        results.append(out)
    assert weights.packed.values.stored == PAIRS
    assert_same_bits(*results)


def test_products_of_bfloat16_are_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"'float8'; choose one of float32, bfloat16"):
        NumbaBackend(precision="float8")  # type: ignore[arg-type]  # what a caller may get wrong
    monkeypatch.setattr("sparsegen.backends.numba_cpu.backend.TARGET", TARGETS["portable"])
    with pytest.raises(BackendError, match="cannot multiply bfloat16"):
        NumbaBackend(precision="bfloat16")


def test_a_pair_holds_two_inputs_of_one_output() -> None:
    values = np.arange(6 * PANEL, dtype=np.float32)  # exact in 8 bits up to 256
    halves = store_as_pairs(values % 256).floats.view(np.uint16).reshape(3, PANEL, 2)
    widened = (halves.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(widened, (values % 256).reshape(3, 2, PANEL).transpose(0, 2, 1))
    with pytest.raises(BackendError, match="too large for bfloat16; leave precision at float32"):
        store_as_pairs(np.full(2 * PANEL, 3.4e38, np.float32))


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
@pytest.mark.parametrize(("rows", "inputs"), [(1, 1), (2, 8 * TARGET.width), (19, 301)])
def test_dense_layers_take_weights_in_16_bits(stored: Any, rows: int, inputs: int) -> None:
    rng = np.random.default_rng(0)
    x, bias = normal(rng, rows, inputs), normal(rng, 37)
    weight = 2.0 ** rng.integers(-3, 3, (37, inputs)).astype(np.float32)  # powers of two lose nothing
    backend = NumbaBackend(2, weights=stored)
    halves = backend.upload_weight(weight)
    assert halves.nbytes <= 2 * 37 * (inputs + TARGET.width - 1)
    expected = NumbaBackend(2).linear(x, weight, bias, activation="gelu")
    assert_same_bits(backend.linear(x, halves, bias, activation="gelu"), expected)
    assert_same_bits(backend.linear(x[-1:], halves, bias, activation="gelu"), expected[-1:])
    weight = normal(rng, 37, inputs, std=inputs**-0.5)
    oracle = x.astype(np.float64) @ weight.T.astype(np.float64)
    largest = float((np.abs(x) @ np.abs(weight).T).max())
    result = backend.linear(x, backend.upload_weight(weight), None)
    check(f"weights in {stored}", result, oracle, largest=largest)


@pytest.mark.parametrize(("stored", "value"), [("float16", 7e4), ("bfloat16", 3.4e38)])
def test_weights_too_large_for_16_bits_are_refused(stored: Any, value: float) -> None:
    """They would be infinite."""
    weight = np.zeros((4, 8, 3, 3), np.float32)
    weight[1, 2, 2, 2] = value
    for direct in (True, False):
        backend = NumbaBackend(weights=stored, direct=direct)
        with pytest.raises(BackendError, match=f"too large for {stored}; store weights as float32"):
            backend.prepare_conv(weight, None)
        with pytest.raises(BackendError, match=f"too large for {stored}; store weights as float32"):
            backend.upload_weight(weight.reshape(4, -1))
    NumbaBackend(weights="float32").prepare_conv(weight, None)


def test_an_output_that_is_read_only_or_in_pieces_is_refused() -> None:
    backend, v = NumbaBackend(1), np.ones((1, 8, 8, 4), np.float32)
    weights = backend.prepare_conv(np.ones((4, 4, 3, 3), np.float32), None, padding=(1, 1, 1, 1))
    for out, why in (
        (np.broadcast_to(np.float32(0), (1, 8, 8, 4)), "is not contiguous"),
        (np.zeros((1, 8, 8, 4), np.float32), "is read-only, expected a writable one"),
    ):
        out.setflags(write=False)
        for write in (
            lambda out=out: backend.conv2d(out, all_tiles(1, 8, 8), Source((v,)), weights),
            lambda out=out: backend.write_tiles(out, all_tiles(1, 8, 8), np.ones((4, 4, 4, 4), np.float32)),
        ):
            with pytest.raises(BackendError, match=why):
                write()


@pytest.mark.parametrize("wrong", ["float64", "float16", "int32"])
def test_arrays_of_another_type_are_refused(wrong: str) -> None:
    """Machine code would take their bits for float32's."""
    backend, tiles = NumbaBackend(1), all_tiles(1, 8, 8)
    v, out, row = (np.ones(shape, np.float32) for shape in ((1, 8, 8, 4), (1, 8, 8, 4), (1, 4)))
    values, weights = backend.read_tiles(v, tiles), backend.prepare_conv(np.ones((4, 4, 1, 1)), None)
    codes, rows = np.zeros((1, 8, 8, 1), np.int32), np.ones((3, 8), np.float32)
    expected = f"is {wrong}, expected float32; use alloc or upload"

    def convolve(canvas: Host, source: Source, **settings: Any) -> None:
        backend.conv2d(canvas, tiles, source, weights, **settings)

    for call in (
        lambda: convolve(out.astype(wrong), Source((v,))),
        lambda: convolve(out, Source((v.astype(wrong),))),
        lambda: convolve(out, Source((v,), scale=row, shift=row.astype(wrong))),
        lambda: convolve(out, Source((v,), modulation=rows.astype(wrong), codes=codes)),
        lambda: convolve(out, Source((v,)), shift=row.astype(wrong)),
        lambda: convolve(out, Source((v,)), residual=Source((v.astype(wrong),))),
        lambda: backend.add_tiles(v, tiles, values.astype(wrong)),
        lambda: backend.add_tiles(v.astype(wrong), tiles, values),
        lambda: backend.sum_change(v.astype(wrong), tiles, values),
        lambda: backend.norm_affine(row, row, groups=2, eps=1e-5, weight=row[0].astype(wrong)),
    ):
        with pytest.raises(BackendError, match=expected):
            call()
    with pytest.raises(BackendError, match="is int64, expected int32"):
        convolve(out, Source((v,), modulation=rows, codes=codes.astype(np.int64)))


def test_winograds_weights_take_what_the_layer_has() -> None:
    """Transformed they would take four times as much; and the same layout serves every size but a single tile's."""
    backend = NumbaBackend(2)
    weight = normal(np.random.default_rng(0), 2 * TARGET.panel, 48, 3, 3)
    weights = backend.prepare_conv(weight, None, padding=(1, 1, 1, 1), size=(8, 8))
    assert weights.whole_tiles and weights.packed.values.floats.nbytes == weight.nbytes
    sizes = ((8, 8), (5, 4), (256, 512), None)
    assert len({backend.conv_layout(weights.geometry, size) for size in sizes}) == 1


@pytest.mark.parametrize("channels", [512, 1024])
def test_sums_of_many_channels_are_as_close_to_the_formula(channels: int) -> None:
    """Depth is summed in pieces: 1024 channels round hardly more than 130."""
    rng = np.random.default_rng(0)
    v, weight = normal(rng, 1, 8, 8, channels), normal(rng, 32, channels, 3, 3, std=(9 * channels) ** -0.5)
    backend = NumbaBackend(2)
    weights, out = backend.prepare_conv(weight, None, padding=(1, 1, 1, 1)), backend.alloc((1, 8, 8, 32))
    backend.conv2d(out, all_tiles(1, 8, 8), Source((v,)), weights)
    check("conv2d", out, naive.conv2d(v, weight, padding=(1, 1, 1, 1)))
