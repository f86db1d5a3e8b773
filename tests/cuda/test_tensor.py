"""Convolutions by tensor cores: within their rounding of the formula, with bits that depend on the layer alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

from sparsegen.backends import BackendError, Source
from sparsegen.backends.cupy_cuda import sources, tensor
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.cupy_cuda.tensor import Precision
from sparsegen.backends.interface import ConvGeometry, ConvWeights, Host
from tests.backends.contract_cases import (
    Case,
    all_tiles,
    assert_contract,
    assert_same_bits,
    combined_case,
    conv_case,
    make_source,
    normal,
)
from tests.cuda import emulator
from tests.oracles import naive
from tests.tolerances import check

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)

PRECISIONS: tuple[Precision, ...] = ("tf32", "float16")
ROW = "conv2d, tensor cores"


@cache
def backend_of(precision: Precision) -> CudaBackend:
    return CudaBackend(emulator.EmulatedDevice(), precision=precision)


@pytest.fixture(params=PRECISIONS)
def backend(request: pytest.FixtureRequest) -> CudaBackend:
    return backend_of(request.param)


def tensor_case(*work: Any, **options: Any) -> Case:
    """A case of `conv_case`, or of `combined_case` for such work, held to the rounding of tensor cores."""
    case = combined_case(*work, **options) if work else conv_case(**options)
    return Case(ROW, case.oracle, case.largest, case.launch)


NONE = (0, 0, 0, 0)
DEEP = partial(tensor_case, size=(9, 8), channels=(72,), outputs=69, samples=2)
CASES: dict[str, Callable[[], Case]] = {
    "3×3, odd channels": partial(tensor_case, size=(7, 8), channels=(37,), outputs=19),
    "3×3, smaller than a tile": partial(tensor_case, size=(1, 2), channels=(9,), outputs=8),
    "3×3, without padding, no bias": partial(tensor_case, padding=NONE, channels=(8,), outputs=9, bias=False),
    "3×3, stride 2, padded right and bottom": partial(
        tensor_case, padding=(0, 1, 0, 1), stride=2, size=(10, 12), channels=(12,), outputs=8
    ),
    "3×3, three samples, shift and scale per sample": partial(
        tensor_case,
        samples=3,
        size=(6, 5),
        channels=(10,),
        outputs=12,
        scale="per sample",
        shift="per sample",
    ),
    "3×3, whole prologue and epilogue": partial(
        tensor_case,
        samples=2,
        size=(3, 4),
        channels=(12, 8),
        outputs=16,
        upsample=2,
        scale="shared",
        modulation="by code",
        prologue="silu",
        shift="shared",
        residual="pending",
        activation="leaky_relu",
    ),
    "3×3, plain residual of a multiple of four": partial(
        tensor_case, size=(5, 6), channels=(16,), outputs=20, residual="plain", activation="tanh"
    ),
    "3×3, modulated by pixel, parts of odd channels": partial(
        tensor_case, size=(5, 6), channels=(7, 6), outputs=10, modulation="by pixel", prologue="relu"
    ),
    "3×3, windows in several blocks of channels": partial(
        tensor_case, size=(5, 6), channels=(100, 40), outputs=8, scale="shared", prologue="silu"
    ),
    "3×3, stride 4, windows in several blocks of channels": partial(
        tensor_case, padding=(2, 1, 0, 2), stride=4, size=(13, 22), channels=(140,), outputs=8
    ),
    "1×1, two parts, samples": partial(
        tensor_case, kernel=(1, 1), padding=NONE, channels=(33, 20), outputs=24, samples=2
    ),
    "1×1, stride 2": partial(
        tensor_case, kernel=(1, 1), padding=NONE, stride=2, channels=(20,), outputs=9, size=(12, 19)
    ),
    "5×5, stride 2, padded unevenly": partial(
        tensor_case, kernel=(5, 5), padding=(1, 3, 0, 4), stride=2, channels=(9,), outputs=8
    ),
    "5×1, stride 2, upsampled": partial(
        tensor_case, kernel=(5, 1), padding=(2, 3, 2, 0), upsample=2, stride=2, channels=(8,), outputs=11
    ),
    "1×5, stride 3": partial(
        tensor_case, kernel=(1, 5), padding=(0, 3, 1, 2), stride=3, size=(19, 20), channels=(8,), outputs=8
    ),
    "deep, several chains": DEEP,
    "1×1, layer norm": partial(
        tensor_case, "layer norm", channels=37, outputs=19, samples=2, size=(9, 10), activation="gelu"
    ),
    "1×1, layer norm, several chains": partial(
        tensor_case, "layer norm", channels=320, outputs=70, residual=True
    ),
    "1×1, geglu, in two slices": partial(tensor_case, "geglu", channels=600, outputs=8, size=(3, 5)),
    "1×1, geglu": partial(tensor_case, "geglu", channels=20, outputs=24, samples=2, size=(9, 10)),
}


@pytest.mark.parametrize("name", CASES)
def test_tiles_hold_the_formula_whatever_their_company(backend: CudaBackend, name: str) -> None:
    case = CASES[name]()
    before = backend.device.counts["launch"]
    assert_contract(case, backend, np.random.default_rng(len(name)))
    assert backend.device.counts["launch"] > before


@cache
def deep() -> Case:
    return DEEP()


BLOCKS = [(16, 64), (32, 64), (64, 64), (128, 128)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits_depend_on_the_layer_alone(monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    """Whatever the shape of a block, and whether it makes one chain or all."""
    results: list[Host] = []
    for apart in (0, 1 << 20):
        for block in BLOCKS:
            backend = CudaBackend(emulator.EmulatedDevice(), precision=precision)
            backend.device.multiprocessors = apart
            monkeypatch.setattr(tensor, "_block", lambda *_, block=block: block)
            results.append(deep().run(backend, deep().tiles))
            assert backend.device.counts["launch"] == (3 if apart else 2)
    for other in results[1:]:
        assert_same_bits(other, results[0])


@pytest.fixture(scope="module")
def forwards() -> Callable[[Precision], Host]:
    """The result of the deep case in each precision, whose threads run in their order."""
    made = {precision: deep().run(backend_of(precision), deep().tiles) for precision in PRECISIONS}
    return made.__getitem__


@pytest.fixture(params=[emulator.BACKWARDS, emulator.SHUFFLED])
def any_order(request: pytest.FixtureRequest) -> Iterator[None]:
    of_tensors = [each for name, each in emulator.libraries().items() if name.startswith("tensor")]
    for library in of_tensors:
        library.order(request.param)
    yield
    for library in of_tensors:
        library.order(emulator.FORWARDS)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("multiprocessors", [0, 1 << 20])
def test_bits_do_not_depend_on_the_order_of_threads(
    forwards: Callable[[Precision], Host], any_order: None, precision: Precision, multiprocessors: int
) -> None:
    backend = CudaBackend(emulator.EmulatedDevice(), precision=precision)
    backend.device.multiprocessors = multiprocessors
    assert_same_bits(deep().run(backend, deep().tiles), forwards(precision))


FAULTS = {
    "a copy is not waited for": ("ptx::copy_wait<STAGES - 2>();", ""),
    "a stage is read before all copies landed": ("__syncthreads();  // the step", "// the step"),
    "a step is not fetched": ("if (step + STAGES - 1 < last) fetch();", "if (step + STAGES < last) fetch();"),
    "sums are written over a stage in use": (
        "made = (float*)shared;\n    __syncthreads();",
        "made = (float*)shared;",
    ),
    "sums are read before all are written": ("    __syncthreads();\n#pragma unroll 1", "#pragma unroll 1"),
    "a chunk lies elsewhere": ("(left_place ^ k * CHUNK)", "(left_place + k * CHUNK)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_product_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right, wrong = FAULTS[fault]
    text = (sources.FOLDER / "tensor.cuh").read_text("utf-8")
    assert text.count(right) == 1
    some = re.findall(r"^KERNEL\((?:tensor_windows|.*_32x64).*", sources.source("tensor_tf32"), re.MULTILINE)
    text = "\n".join([text.replace("#pragma once", "").replace(right, wrong), *some])
    library = emulator.Library(emulator.build(text, "faulty_tensor"))
    ordinary = emulator.libraries()
    monkeypatch.setattr(emulator, "libraries", lambda *_: {**ordinary, "tensor_tf32": library})
    monkeypatch.setattr(tensor, "_block", lambda *_: (32, 64))
    backend = CudaBackend(emulator.EmulatedDevice(), precision="tf32")
    backend.device.multiprocessors = 0
    case = tensor_case(
        size=(9, 8), channels=(76,), outputs=24
    )  # 22 steps: the last lies where the sums are written
    with pytest.raises(AssertionError, match="off by"):
        check(ROW, case.run(backend, case.tiles), case.oracle, largest=case.largest)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_batches_of_tiles_are_one_result(monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    case = tensor_case(size=(45, 49), channels=(8,), outputs=8)
    backend = backend_of(precision)
    whole = case.run(backend, case.tiles)
    monkeypatch.setattr(tensor, "WINDOW_BYTES", 0)
    before = backend.device.counts["launch"]
    assert_same_bits(case.run(backend, case.tiles), whole)
    assert backend.device.counts["launch"] == before + 4  # 156 tiles: 128, and 28
    case = tensor_case("layer norm", size=(45, 49), channels=8, outputs=8)
    in_batches = case.run(backend, case.tiles)
    monkeypatch.undo()
    assert_same_bits(in_batches, case.run(backend, case.tiles))


def prepared(backend: CudaBackend, weight: Host, **options: Any) -> ConvWeights:
    return backend.prepare_conv(weight, None, padding=(1, 1, 1, 1), **options)


def test_float16_takes_half_the_memory() -> None:
    weight = normal(np.random.default_rng(0), 24, 64, 3, 3)
    sizes = [prepared(backend_of(precision), weight).packed.nbytes for precision in PRECISIONS]
    assert sizes == [weight.nbytes, weight.nbytes // 2]


def test_thin_and_grouped_layers_stay_float32(backend: CudaBackend) -> None:
    plain = CudaBackend(emulator.EmulatedDevice())
    assert plain.precision == "float32"
    for geometry in (
        ConvGeometry(3, 64, (3, 3)),
        ConvGeometry(64, 3, (3, 3)),
        ConvGeometry(16, 16, (3, 3), groups=16),
        ConvGeometry(16, 16, (1, 1), groups=2),
    ):
        assert backend.conv_layout(geometry, None) == plain.conv_layout(geometry, None)
    wide = ConvGeometry(8, 8, (3, 3))
    assert backend.conv_layout(wide, (64, 64)) == backend.precision
    assert plain.conv_layout(wide, (64, 64)) == "winograd"
    assert plain.conv_layout(ConvGeometry(64, 3, (3, 3)), None) == "winograd"
    assert plain.conv_layout(ConvGeometry(3, 64, (3, 3)), None) == "direct"
    assert backend.conv_layout(wide, (1, 1)) == "direct"  # rows of a codebook


def test_a_nan_reaches_the_output(backend: CudaBackend) -> None:
    rng = np.random.default_rng(0)
    source = make_source(rng, size=(8, 8), channels=(16,))
    source.parts[0][0, 1, 1, 3] = np.nan
    weight = normal(rng, 8, 16, 3, 3)
    out = backend.alloc((1, 8, 8, 8))
    from_host = Source((backend.upload(source.parts[0]),))
    backend.conv2d(out, all_tiles(1, 8, 8), from_host, prepared(backend, weight))
    found = np.isnan(backend.download(out))
    expected = np.zeros_like(found)
    expected[:, :3, :3] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_rounding_is_that_of_inputs_and_weights(precision: Precision) -> None:
    """Of inputs and weights that are rounded beforehand, sums of float32 remain."""
    rng = np.random.default_rng(0)
    v, weight = normal(rng, 1, 8, 8, 64), normal(rng, 16, 64, 3, 3, std=1 / 24)
    if precision == "tf32":
        v, weight = tensor.tf32(v), tensor.tf32(weight)
    else:
        v, weight = (x.astype(np.float16).astype(np.float32) for x in (v, weight))
    expected = naive.conv2d(v.astype(np.float64), weight, padding=(1, 1, 1, 1))
    backend = backend_of(precision)
    out = backend.alloc((1, 8, 8, 16))
    backend.conv2d(out, all_tiles(1, 8, 8), Source((backend.upload(v),)), prepared(backend, weight))
    check("conv2d", backend.download(out), expected)


def test_errors_name_what_is_expected() -> None:
    with pytest.raises(BackendError, match="unknown precision 'half'; known: float32, tf32, float16"):
        CudaBackend(emulator.EmulatedDevice(), precision="half")  # type: ignore[arg-type]  # refused
    weight = np.full((8, 8, 1, 1), 65530, np.float32)
    with pytest.raises(BackendError, match=r'65530 is too large for float16 \(65504\): use precision="tf32"'):
        backend_of("float16").prepare_conv(weight, None)
    backend_of("tf32").prepare_conv(weight, None)
