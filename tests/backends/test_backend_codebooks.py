"""Codebooks, on every backend: windows of indices get codes, are forgotten and convolved; codes name rows to read.

The oracle of the codes is `naive.windows`: which pixels read the same window, whatever the codes are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from sparsegen.backends import Backend
from sparsegen.backends.interface import Host, Tiles, WindowSet
from tests.backends.contract_cases import Uploads, all_tiles, assert_same_bits, inside, make_source, normal
from tests.oracles import naive
from tests.tolerances import check


def encode(
    backend: Backend,
    indices: Host,
    window_set: WindowSet,
    *,
    kernel: int = 3,
    step: int = 1,
    tiles: Tiles | None = None,
    codes: Host | None = None,
) -> Host:
    """Codes after encoding `tiles` (all) of `codes` (-7 everywhere), int32 `[N, H, W]`; new windows are added."""
    put = Uploads(backend)
    samples, height, width = indices.shape[0], indices.shape[1] // step, indices.shape[2] // step
    canvas = backend.upload(np.full((samples, height, width, 1), -7, np.int32) if codes is None else codes)
    tiles = all_tiles(samples, height, width) if tiles is None else tiles
    backend.encode_windows(canvas, tiles, put(indices), window_set, kernel=kernel, step=step)
    backend.synchronize()
    put.assert_untouched()
    return backend.download(canvas)


def draw(seed: int, *shape: int, labels: int = 3, block: int = 3) -> Host:
    """Indices from -1 on, in blocks of `block`² pixels, so that many windows are alike."""
    rng = np.random.default_rng(seed)
    n, h, w, planes = shape
    coarse = rng.integers(-1, labels, (n, -(-h // block), -(-w // block), planes), dtype=np.int32)
    return np.ascontiguousarray(coarse.repeat(block, 1).repeat(block, 2)[:, :h, :w])


# -- encoding --------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    kernel=st.sampled_from([1, 3, 5]),
    step=st.sampled_from([1, 2, 4]),
    planes=st.integers(1, 3),
    samples=st.integers(1, 3),
    size=st.tuples(st.integers(1, 18), st.integers(1, 18)),
    block=st.sampled_from([3, 7]),
    seed=st.integers(0, 1000),
)
def test_a_code_names_the_window_that_lookup_reads(
    backend: Backend,
    kernel: int,
    step: int,
    planes: int,
    samples: int,
    size: tuple[int, int],
    block: int,
    seed: int,
) -> None:
    """Whatever the areas of one label: parts of a window (blocks of 3), or all windows of a tile (of 7 · step)."""
    indices = draw(seed, samples, size[0] * step, size[1] * step, planes, block=block * step)
    window_set = WindowSet(kernel * kernel * planes)
    codes = encode(backend, indices, window_set, kernel=kernel, step=step)
    windows = naive.windows(indices, kernel, step)
    assert window_set.windows.dtype == codes.dtype == np.int32
    assert_array_equal(window_set.windows[codes[..., 0]], windows)
    # each window once, and none that no pixel reads
    assert len(window_set) == len(np.unique(windows.reshape(-1, windows.shape[-1]), axis=0))
    assert len(window_set) == len(np.unique(window_set.windows, axis=0))


def test_the_window_of_a_code_is_read_by_lookup(backend: Backend) -> None:
    """`lookup` of a pixel is the sum over its code's window: what tables of codebooks rest on."""
    rng = np.random.default_rng(0)
    indices, table = draw(1, 2, 12, 20, 2), normal(rng, 9, 3, 7)
    window_set = WindowSet(18)
    codes = encode(backend, indices, window_set, step=2)
    windows = window_set.windows.reshape(len(window_set), 9, 2)
    rows = np.zeros((len(window_set), 7))
    for tap in range(9):
        for plane in range(2):
            label = windows[:, tap, plane]
            rows += np.where(label[:, None] >= 0, table[tap, label].astype(np.float64), 0)
    out = backend.alloc((2, 6, 10, 7))
    zero = backend.alloc((7,))
    backend.lookup(out, all_tiles(2, 6, 10), backend.upload(indices), backend.upload(table), zero, step=2)
    check("lookup", backend.download(out), rows[codes[..., 0]])


def test_only_the_given_tiles_get_codes(backend: Backend) -> None:
    indices = draw(2, 2, 9, 10, 1)
    tiles = Tiles(all_tiles(2, 9, 10).host[[5, 0, 13]])
    window_set = WindowSet(9)
    codes = encode(backend, indices, window_set, tiles=tiles)
    covered = inside(tiles, codes.shape)
    assert (codes[~covered] == -7).all()
    windows = naive.windows(indices, 3, 1)
    assert_array_equal(window_set.windows[codes[covered][..., 0]], windows[covered])
    assert len(window_set) == len(np.unique(windows[covered], axis=0))
    # no tile: nothing
    assert_array_equal(encode(backend, indices, window_set, tiles=Tiles(tiles.host[:0]), codes=codes), codes)


def test_a_window_keeps_its_code(backend: Backend) -> None:
    window_set, first = WindowSet(9), draw(3, 1, 16, 16, 1)
    codes = encode(backend, first, window_set)
    known = window_set.windows.copy()
    assert_array_equal(encode(backend, first, window_set), codes)
    assert_array_equal(
        encode(backend, first[:, ::-1], window_set), encode(backend, first[:, ::-1], window_set)
    )
    encode(backend, draw(4, 2, 13, 17, 1), window_set)
    assert_array_equal(window_set.windows[: len(known)], known)
    assert_array_equal(encode(backend, first, window_set), codes)


def test_a_window_set_grows_beyond_any_capacity(backend: Backend) -> None:
    """Every window distinct, several thousand: windows move to larger storage, codes stay."""
    indices = np.random.default_rng(5).integers(0, 1000, (2, 60, 44, 1), dtype=np.int32)
    window_set = WindowSet(9)
    capacity = len(window_set.storage)
    codes = encode(backend, indices, window_set)
    assert len(window_set) == 2 * 60 * 44 > 10 * capacity
    assert_array_equal(window_set.windows[codes[..., 0]], naive.windows(indices, 3, 1))
    assert_array_equal(encode(backend, indices, window_set), codes)


def test_a_window_set_can_begin_with_windows(backend: Backend) -> None:
    """As a session file gives them: new codes follow the old ones."""
    indices = draw(6, 1, 16, 20, 1)
    window_set = WindowSet(9)
    codes = encode(backend, indices, window_set)
    again = WindowSet(9, window_set.windows.copy())
    assert_array_equal(encode(backend, indices, again), codes)
    assert len(again) == len(window_set)
    more = draw(7, 1, 16, 20, 1)
    assert_array_equal(encode(backend, more, again), encode(backend, more, window_set))


# -- forgetting ------------------------------------------------------------------------------------------


def test_a_forgotten_window_gets_the_same_code_again(backend: Backend) -> None:
    window_set = WindowSet(9)
    maps = [np.random.default_rng(i).integers(0, 3, (1, 12, 16, 1), dtype=np.int32) for i in range(6)]
    sizes, codes = [0], []
    for indices in maps:
        codes.append(encode(backend, indices, window_set))
        sizes.append(len(window_set))
    assert sizes == sorted(set(sizes))
    windows = window_set.windows.copy()
    for back in (5, 3, 0):  # last in, first out
        backend.forget_windows(window_set, sizes[back])
        assert len(window_set) == sizes[back]
        assert_array_equal(window_set.windows, windows[: sizes[back]])
        for i in range(back, 6):
            assert_array_equal(encode(backend, maps[i], window_set), codes[i])
        assert_array_equal(window_set.windows, windows)


def test_forgetting_none_or_more_than_there_are_changes_nothing(backend: Backend) -> None:
    window_set, indices = WindowSet(9), draw(8, 1, 12, 12, 1)
    codes = encode(backend, indices, window_set)
    for count in (len(window_set), len(window_set) + 100):
        backend.forget_windows(window_set, count)
        assert_array_equal(encode(backend, indices, window_set), codes)
    loaded = WindowSet(9, window_set.windows.copy())  # no window was searched in it yet
    backend.forget_windows(loaded, 3)
    assert_array_equal(loaded.windows, window_set.windows[:3])
    encode(backend, indices, loaded)
    assert_array_equal(np.unique(loaded.windows, axis=0), np.unique(window_set.windows, axis=0))


# -- convolving ------------------------------------------------------------------------------------------


def convolve(
    backend: Backend, windows: Host, table: Host, weight: Host, bias: Host | None, put: Callable[[Host], Any]
) -> Host:
    half = weight.shape[2] // 2
    groups = len(weight) if weight.shape[1] == 1 < len(weight) else 1
    weights = backend.prepare_conv(weight, bias, padding=(half,) * 4, size=(1, 1), groups=groups)
    out = backend.upload(np.full((len(windows), len(weight)), np.nan, np.float32))
    backend.convolve_windows(out, windows, put(table), weights)
    backend.synchronize()
    return backend.download(out)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (4, 10), (37, 70), (130, 33)])
@pytest.mark.parametrize("rows", ["many share parts", "few"])
def test_windows_are_convolved_each_on_its_own(
    backend: Backend, kernel: int, inputs: int, outputs: int, rows: str
) -> None:
    """Against float64; and a row has the same bits alone, among few and among many."""
    rng = np.random.default_rng(kernel)
    codes, count = (5, 200) if rows == "many share parts" else (1000, 7)
    table = normal(rng, codes, inputs)
    weight = normal(rng, outputs, inputs, kernel, kernel, std=(inputs * kernel * kernel) ** -0.5)
    bias = normal(rng, outputs)
    windows = rng.integers(-1, codes, (count, kernel * kernel), dtype=np.int32)
    windows[0] = -1  # a window wholly outside the image
    parts = np.append(table, np.zeros((1, inputs), np.float32), 0).astype(np.float64)[windows]  # [R, taps, I]
    oracle = np.einsum("rti,oti->ro", parts, weight.reshape(outputs, inputs, -1).transpose(0, 2, 1)) + bias
    put = Uploads(backend)
    result = convolve(backend, windows, table, weight, bias, put)
    put.assert_untouched()
    check("conv2d", result, oracle)
    some = rng.permutation(count)[: max(1, count // 3)]
    for chosen in (some, some[:1], np.array([0]), np.array([], int)):
        assert_same_bits(convolve(backend, windows[chosen], table, weight, bias, put), result[chosen])
    doubled = np.concatenate([windows, windows, rng.integers(-1, codes, (5000, kernel * kernel), np.int32)])
    assert_same_bits(convolve(backend, doubled, table, weight, bias, put)[:count], result)
    none = convolve(backend, windows, table, weight, None, put)
    check("conv2d", none, oracle - bias, largest=float(np.abs(oracle).max()))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("channels", [2, 8, 37, 128])
def test_windows_are_convolved_channel_by_channel(backend: Backend, kernel: int, channels: int) -> None:
    """A depthwise convolution, against float64; and a row has the same bits among others."""
    rng = np.random.default_rng(kernel)
    table, bias = normal(rng, 30, channels), normal(rng, channels)
    weight = normal(rng, channels, 1, kernel, kernel, std=1 / kernel)
    windows = rng.integers(-1, 30, (600, kernel * kernel), dtype=np.int32)
    windows[0] = -1
    parts = np.append(table, np.zeros((1, channels), np.float32), 0).astype(np.float64)[
        windows
    ]  # [R, taps, C]
    oracle = np.einsum("rtc,ct->rc", parts, weight.reshape(channels, -1)) + bias
    put = Uploads(backend)
    result = convolve(backend, windows, table, weight, bias, put)
    put.assert_untouched()
    check("conv2d", result, oracle)
    for chosen in (rng.permutation(600)[:50], np.array([7]), np.array([], int)):
        assert_same_bits(convolve(backend, windows[chosen], table, weight, bias, put), result[chosen])
    none = convolve(backend, windows, table, weight, None, put)
    check("conv2d", none, oracle - bias, largest=float(np.abs(oracle).max()))


@pytest.mark.parametrize("channels", [1, 8, 37, 128])
def test_moments_of_rows_are_those_of_the_pixels(backend: Backend, channels: int) -> None:
    rng = np.random.default_rng(channels)
    rows = normal(rng, 50, channels) + 3
    codes = rng.integers(0, 40, (2, 9, 11, 1), dtype=np.int32)  # some rows are no pixel's
    put = Uploads(backend)
    mean, variance = (backend.download(each) for each in backend.coded_moments(put(codes), put(rows)))
    put.assert_untouched()
    pixels = rows[codes[..., 0]].astype(np.float64)
    check("rounding", mean, pixels.mean((1, 2)))
    check("rounding", variance, pixels.var((1, 2)))


def test_more_windows_than_are_computed_at_a_time(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    table, weight = normal(rng, 40, 3), normal(rng, 2, 3, 3, 3, std=1 / 5)
    windows = rng.integers(-1, 40, (40_000, 9), dtype=np.int32)
    result = convolve(backend, windows, table, weight, None, backend.upload)
    assert np.isfinite(result).all()
    for first in (0, 16_380, 39_990):
        some = slice(first, first + 10)
        assert_same_bits(convolve(backend, windows[some], table, weight, None, backend.upload), result[some])


# -- reading rows by code --------------------------------------------------------------------------------


@pytest.mark.parametrize("primitive", ["conv2d", "conv2d, stride 2", "pointwise", "residual"])
@pytest.mark.parametrize("channels", [(3,), (8,), (16, 5)])
def test_a_row_by_code_is_the_same_modulation_as_a_canvas_of_rows(
    backend: Backend, primitive: str, channels: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    source = make_source(
        rng,
        samples=2,
        size=(6, 7),
        channels=channels,
        upsample=2,
        scale="shared",
        modulation="by code",
        activation="leaky_relu",
    )
    shape, inputs = source.shape, source.shape[3]
    results = []
    for each in (source, replace(source, modulation=source.modulation[source.codes[..., 0]], codes=None)):
        put = Uploads(backend)
        uploaded = put.source(each)
        if primitive.startswith("conv2d"):
            stride = 2 if primitive.endswith("stride 2") else 1
            weight = normal(np.random.default_rng(1), 11, inputs, 3, 3, std=(9 * inputs) ** -0.5)
            weights = backend.prepare_conv(weight, None, stride=stride, padding=(1, 1, 1, 1))
            out = backend.alloc((2, shape[1] // stride, shape[2] // stride, 11))
            backend.conv2d(out, all_tiles(*out.shape[:3]), uploaded, weights)
        else:
            plain = make_source(np.random.default_rng(2), samples=2, size=shape[1:3], channels=(inputs,))
            read, residual = (each, None) if primitive == "pointwise" else (plain, each)
            out = backend.alloc(shape)
            tiles = all_tiles(*shape[:3])
            backend.pointwise(out, tiles, put.source(read), residual=put.source(residual))
        put.assert_untouched()
        results.append(backend.download(out))
    assert_same_bits(*results)
