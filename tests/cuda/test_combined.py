"""Layer norms and geglu by the kernels' own source on a CPU: sizes at their edges, alignment, recordings, errors."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from sparsegen.backends import Source
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.cupy_cuda.tensor import Precision
from sparsegen.backends.interface import Activation, Array, Host, Tiles
from tests.backends.contract_cases import (
    Uploads,
    all_tiles,
    assert_contract,
    assert_same_bits,
    combined_case,
    combined_source,
    inside,
    normal,
)
from tests.cuda import emulator
from tests.cuda.backends import emulated
from tests.cuda.emulator import EmulatedDevice
from tests.tolerances import check

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)

Work = Literal["layer norm", "geglu"]
WORKS: tuple[Work, ...] = ("layer norm", "geglu")


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("outputs", [0, 12])
@pytest.mark.parametrize("channels", [1403, 1408])
def test_more_channels_than_a_warp_keeps_or_a_slice_has(work: Work, outputs: int, channels: int) -> None:
    case = combined_case(work, channels=channels, outputs=outputs, size=(4, 3))
    check(case.tolerance, case.run(emulated(), case.tiles), case.oracle, largest=case.largest)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "silu"])
def test_any_activation_follows(activation: Activation) -> None:
    case = combined_case(
        "layer norm", channels=20, samples=3, outputs=9, activation=activation, residual=True
    )
    assert_contract(case, emulated(), np.random.default_rng(0))


@pytest.mark.parametrize("outputs", [0, 8])
def test_each_sample_may_have_its_scale(outputs: int) -> None:
    """As three calls of one sample each."""
    rng, backend = np.random.default_rng(0), emulated()
    x, scale, shift = normal(rng, 3, 5, 6, 12), normal(rng, 3, 12), normal(rng, 3, 12)
    weights = backend.prepare_conv(normal(rng, 8, 12, 1, 1), None)

    def run(some: slice) -> Host:
        put = Uploads(backend)
        source = put.source(Source((x[some],), scale=scale[some], shift=shift[some], layer_eps=1e-5))
        assert source is not None
        out = backend.alloc((len(x[some]), 5, 6, outputs or 12))
        tiles = all_tiles(*out.shape[:3])
        if outputs:
            backend.conv2d(out, tiles, source, weights)
        else:
            backend.pointwise(out, tiles, source)
        return backend.download(out)

    assert_same_bits(run(slice(0, 3)), np.concatenate([run(slice(n, n + 1)) for n in range(3)]))


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("outputs", [0, 8])
def test_alignment_changes_no_bit(work: Work, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, case = emulated(), combined_case(work, channels=16, outputs=outputs, residual=True)
    aligned = case.run(backend, case.tiles)

    def upload(host: Host) -> Array:
        """At an address that four bytes divide, and sixteen do not."""
        shifted = np.zeros(host.size + 1, host.dtype)
        shifted[1:] = host.reshape(-1)
        return backend.device.upload(shifted)[1:].reshape(host.shape)

    monkeypatch.setattr(backend, "upload", upload)
    assert_same_bits(case.run(backend, case.tiles), aligned)


@pytest.mark.parametrize("precision", ["float32", "tf32", "float16"])
@pytest.mark.parametrize("work", WORKS)
def test_a_recorded_convolution_serves_other_tiles(work: Work, precision: Precision) -> None:
    """Its rows lie in the thread's scratch memory, in the order of the list."""
    rng, backend = np.random.default_rng(0), CudaBackend(EmulatedDevice(), precision=precision)
    put = Uploads(backend)
    source = put.source(combined_source(rng, work, channels=20, samples=2, size=(9, 10)))
    assert source is not None
    weights = backend.prepare_conv(normal(rng, 12, 20, 1, 1), None, size=(9, 10))
    full, out = (backend.upload(np.full((2, 9, 10, 12), np.nan, np.float32)) for _ in range(2))
    tiles = all_tiles(2, 9, 10)
    backend.conv2d(full, tiles, source, weights)
    recorded = Tiles(tiles.host[:2])
    recording = backend.record(lambda: backend.conv2d(out, recorded, source, weights), [recorded])
    for some in (tiles.host[3:7], tiles.host[[16, 11]]):
        recording.replay([Tiles(some)])
    covered = inside(Tiles(tiles.host[[3, 4, 5, 6, 11, 16]]), full.shape)[..., None]
    assert_same_bits(backend.download(out), np.where(covered, backend.download(full), np.float32(np.nan)))
