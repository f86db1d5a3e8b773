"""What primitives tell about the tiles that they wrote: whether values are finite, and the moments for a norm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sparsegen.backends import Backend, BackendError, Source, get_backend
from sparsegen.backends.interface import Array, Host, Tiles
from tests.backends.contract_cases import all_tiles, assert_same_bits, normal

ODD = (np.nan, np.inf, -np.inf)
Write = Callable[[Backend, Host, Array, Tiles], bool]
"""Writes tiles of an output `[1, 10, 7, C]` that depend on values `[1, 10, 7, C]`; returns what the primitive does."""


def _conv(kernel: int, groups: int = 1, **settings: str) -> Write:
    def write(backend: Backend, values: Host, out: Array, tiles: Tiles) -> bool:
        channels = values.shape[3]
        weight = normal(np.random.default_rng(1), channels, channels // groups, kernel, kernel)
        weights = backend.prepare_conv(weight, None, padding=(kernel // 2,) * 4, groups=groups)
        return backend.conv2d(out, tiles, Source((backend.upload(values),)), weights, **settings)

    return write


def _pointwise(backend: Backend, values: Host, out: Array, tiles: Tiles) -> bool:
    return backend.pointwise(out, tiles, Source((backend.upload(values),)))


def _residual(backend: Backend, values: Host, out: Array, tiles: Tiles) -> bool:
    zeros = Source((backend.upload(np.zeros_like(values)),))
    return backend.pointwise(out, tiles, zeros, residual=Source((backend.upload(values),)))


def _attention(backend: Backend, values: Host, out: Array, tiles: Tiles) -> bool:
    plain, odd = (Source((backend.upload(each),)) for each in (np.ones_like(values), values))
    return backend.attention(out, tiles, plain, plain, odd, heads=1)


def _lookup(backend: Backend, values: Host, out: Array, tiles: Tiles) -> bool:
    _, height, width, channels = values.shape
    indices = np.arange(height * width, dtype=np.int32).reshape(1, height, width, 1)
    table = backend.upload(values.reshape(1, height * width, channels))
    return backend.lookup(out, tiles, backend.upload(indices), table, backend.alloc((channels,)))


def _windows(groups: int) -> Write:
    def write(backend: Backend, values: Host, out: Array, tiles: Tiles) -> bool:
        channels = values.shape[3]
        weight = normal(np.random.default_rng(1), channels, channels // groups, 3, 3)
        weights = backend.prepare_conv(weight, None, padding=(1, 1, 1, 1), groups=groups, size=(1, 1))
        table = backend.upload(values.reshape(-1, channels))
        windows = np.full((len(table), 9), -1, np.int32)
        windows[:, 4] = np.arange(len(table))
        return backend.convolve_windows(out.reshape(-1, channels), windows, table, weights)

    return write


WRITES: dict[str, Write] = {
    "3×3": _conv(3),
    "1×1": _conv(1),
    "depthwise": _conv(3, groups=21),
    "SiLU after it": _conv(1, activation="silu"),
    "pointwise": _pointwise,
    "residual": _residual,
    "attention": _attention,
    "lookup": _lookup,
    "windows": _windows(1),
    "depthwise windows": _windows(21),
}


@pytest.mark.parametrize("name", WRITES)
def test_values_that_are_not_finite_are_never_passed_over(backend: Backend, name: str) -> None:
    """In the first channel, the last one and one between, in every corner of an image with overhanging tiles."""
    if "depthwise windows" in name and not backend.codebooks:
        pytest.skip(f"backend {backend.name} keeps no codebooks")
    write, values = WRITES[name], normal(np.random.default_rng(0), 1, 10, 7, 21)
    tiles = all_tiles(1, 10, 7)
    known = write(backend, values, backend.alloc(values.shape), tiles)
    # those that look find that nothing is wrong; the others say that they did not look
    assert known is (backend.name == "numba")
    for odd, y, x, c in [*((odd, 9, 6, 20) for odd in ODD), (np.nan, 0, 0, 0), (np.nan, 5, 3, 16)]:
        damaged = values.copy()
        damaged[0, y, x, c] = odd
        with np.errstate(invalid="ignore"):
            assert write(backend, damaged, backend.alloc(values.shape), tiles) is False


def test_a_value_that_no_tile_reads_is_not_looked_at(backend: Backend) -> None:
    values = normal(np.random.default_rng(0), 1, 12, 12, 21)
    values[0, 11, 11, 3] = np.nan
    out = backend.alloc(values.shape)
    some = Tiles(np.array([(0, 0, 0), (0, 1, 1)], np.int32))
    assert _pointwise(backend, values, out, some) is (backend.name == "numba")
    assert _conv(3)(backend, values, out, Tiles(some.host[:1])) is (backend.name == "numba")


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    ("samples", "size", "channels"), [(2, (10, 7), 21), (1, (24, 70), 64), (1, (4, 4), 5)]
)
def test_moments_of_what_is_written_are_those_of_the_canvas(
    backend: Backend, kernel: int, samples: int, size: tuple[int, int], channels: int
) -> None:
    rng = np.random.default_rng(0)
    source = Source((backend.upload(normal(rng, samples, *size, 9, mean=3)),))
    added = Source((backend.upload(normal(rng, samples, *size, channels)),))
    weight, bias = normal(rng, channels, 9, kernel, kernel), normal(rng, channels, mean=50)
    weights = backend.prepare_conv(weight, bias, padding=(kernel // 2,) * 4, size=size)
    out, tiles = backend.alloc((samples, *size, channels)), all_tiles(samples, *size)
    finite, measured = backend.conv2d_measured(out, tiles, source, weights, residual=added)
    again = backend.alloc(out.shape)
    assert finite is backend.conv2d(again, tiles, source, weights, residual=added)
    assert_same_bits(backend.download(out), backend.download(again))
    values = backend.download(out).astype(np.float64)
    for found, same, exact in zip(
        measured,
        backend.channel_moments(Source((out,))),
        (values.mean((1, 2)), values.var((1, 2))),
        strict=True,
    ):
        assert_same_bits(backend.download(found), backend.download(same))
        np.testing.assert_allclose(backend.download(found), exact, rtol=3e-6)


def test_moments_are_of_all_tiles() -> None:
    """Of a backend that measures tiles while it writes them; others measure the canvas afterwards."""
    pytest.importorskip("numba")
    backend = get_backend("numba")
    weights = backend.prepare_conv(np.ones((5, 3, 1, 1), np.float32), None)
    out, source = backend.alloc((1, 8, 8, 5)), Source((backend.alloc((1, 8, 8, 3)),))
    with pytest.raises(BackendError, match="all 4 tiles, got 3"):
        backend.conv2d_measured(out, Tiles(all_tiles(1, 8, 8).host[:3]), source, weights)
    assert not backend.download(out).any()
