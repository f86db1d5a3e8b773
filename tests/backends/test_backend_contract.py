"""The contract of `backends/interface.py`, held by every backend that can run here, against naive float64 loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.signal import correlate

from sparsegen.backends import Backend, BackendError, Source
from sparsegen.backends.interface import Activation, Tiles
from tests.backends.contract_cases import (
    ACTIVATIONS,
    CASES,
    Case,
    Uploads,
    all_tiles,
    assert_contract,
    assert_same_bits,
    build,
    changed_canvas,
    combined_source,
    conv_case,
    inside,
    lookup_case,
    make_source,
    normal,
)
from tests.oracles import naive
from tests.tolerances import check


@pytest.mark.parametrize("name", CASES)
def test_tiles_hold_the_formula_whatever_their_company(backend: Backend, name: str) -> None:
    assert_contract(build(name), backend, np.random.default_rng(len(name)))


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """Any convolution that the contract allows, small."""
    groups = draw(st.integers(1, 3))
    parts = draw(st.integers(1, 2))
    upsample = draw(st.sampled_from([1, 2]))
    k = draw(st.sampled_from([1, 3, 5]))
    padding = tuple(draw(st.integers(0, k - 1)) for _ in range(4))
    smallest = max(1, -(-(k - min(padding[0] + padding[1], padding[2] + padding[3])) // upsample))
    stride = draw(st.sampled_from([1, 2]))
    size = (draw(st.integers(smallest, 11)), draw(st.integers(smallest, 11)))
    out = [
        (side * upsample + before + after - k) // stride + 1
        for side, before, after in ((size[0], *padding[:2]), (size[1], *padding[2:]))
    ]
    residuals = [None, "plain", "pending"] + ["upsampled"] * (out[0] % 2 == out[1] % 2 == 0)
    return conv_case(
        kernel=(k, k),
        stride=stride,
        padding=padding,
        groups=groups,
        outputs=groups * draw(st.integers(1, 5)),
        bias=draw(st.booleans()),
        shift=draw(st.sampled_from([None, "shared", "per sample"])),
        residual=draw(st.sampled_from(residuals)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        samples=draw(st.integers(1, 2)),
        size=size,
        channels=tuple(groups * draw(st.integers(1, 4)) for _ in range(parts)),
        upsample=upsample,
        scale=draw(st.sampled_from([None, "shared", "per sample"])),
        modulation=draw(st.sampled_from([None, "by pixel", "by code"])),
        prologue=draw(st.sampled_from(ACTIVATIONS)),
        seed=draw(st.integers(0, 1000)),
    )


@settings(max_examples=60)
@given(case=convolutions(), seed=st.integers(0, 1000))
def test_any_convolution_holds_the_contract(backend: Backend, case: Case, seed: int) -> None:
    assert_contract(case, backend, np.random.default_rng(seed))


@settings(max_examples=30)
@given(
    samples=st.integers(1, 2),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    planes=st.integers(1, 3),
    labels=st.integers(1, 5),
    outputs=st.integers(1, 9),
    kernel=st.sampled_from([1, 3, 5]),
    step=st.sampled_from([1, 2, 3, 4]),
    seed=st.integers(0, 1000),
)
def test_any_lookup_holds_the_contract(backend: Backend, seed: int, **options: Any) -> None:
    assert_contract(lookup_case(seed=seed, **options), backend, np.random.default_rng(seed))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_naive_convolution_is_scipys(kernel: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    v, weight = rng.standard_normal((2, 9, 8, 3)), rng.standard_normal((4, 3, kernel, kernel))
    half = kernel // 2
    expected = np.array(
        [
            [
                correlate(np.pad(x, ((half, half), (half, half), (0, 0))), w, "valid")[..., 0]
                for w in weight.transpose(0, 2, 3, 1)
            ]
            for x in v
        ]
    ).transpose(0, 2, 3, 1)[:, ::stride, ::stride]
    check("oracle", naive.conv2d(v, weight, stride=stride, padding=(half,) * 4), expected)


def test_reads_outside_the_image_are_zero_after_the_prologue(backend: Backend) -> None:
    # every pixel reads 0 * 1 + 1 = 1 inside and 0 outside: a 3×3 sum counts the pixels of its window inside
    source = Source(
        (backend.alloc((1, 3, 4, 1)),),
        scale=backend.upload(np.ones((1, 1), np.float32)),
        shift=backend.upload(np.ones((1, 1), np.float32)),
    )
    weights = backend.prepare_conv(np.ones((1, 1, 3, 3), np.float32), None, padding=(1, 1, 1, 1))
    out = backend.alloc((1, 3, 4, 1))
    backend.conv2d(out, all_tiles(1, 3, 4), source, weights)
    counted = backend.download(out)[0, :, :, 0]
    assert_array_equal(counted, [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]])


@pytest.mark.parametrize("size", [None, (3, 4), (2, 2), (512, 1024)])
def test_weights_laid_out_for_any_size_hold_the_formula_at_every_size(
    backend: Backend, size: tuple[int, int] | None
) -> None:
    rng = np.random.default_rng(0)
    weight, v = normal(rng, 12, 9, 3, 3, std=1 / 9), normal(rng, 2, 7, 10, 9)
    weights = backend.prepare_conv(weight, None, padding=(1, 1, 1, 1), size=size)
    out = backend.alloc((2, 7, 10, 12))
    backend.conv2d(out, all_tiles(2, 7, 10), Source((backend.upload(v),)), weights)
    check("conv2d", backend.download(out), naive.conv2d(v, weight, padding=(1, 1, 1, 1)))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_weights_and_tiles_may_be_read_only_and_lie_in_any_order(
    backend: Backend, k: int, groups: int
) -> None:
    """As a mapped file gives them, or a transposed tensor."""
    rng = np.random.default_rng(0)
    weight, bias, v = normal(rng, 12, 12 // groups, k, k), normal(rng, 12), normal(rng, 1, 16, 20, 12)
    tiles, source, results = all_tiles(1, 16, 20).host, Source((backend.upload(v),)), []
    for w, b, t in (
        (weight, bias, tiles),
        (np.asfortranarray(weight), np.repeat(bias, 2)[::2], np.asfortranarray(tiles)),
        (weight[::-1][::-1], bias[::-1][::-1], tiles[::-1][::-1]),
    ):
        for array in (w, b, t):
            array.setflags(write=False)
        active = Tiles(t)
        weights = backend.prepare_conv(w, b, padding=(k // 2,) * 4, groups=groups, size=(16, 20))
        out = backend.alloc((1, 16, 20, 12))
        backend.conv2d(out, active, source, weights)
        backend.write_tiles(out, active, backend.read_tiles(out, active))
        assert backend.find_non_finite(out, active) is None
        results.append(backend.download(out))
    for result in results[1:]:
        assert_array_equal(result, results[0])


@pytest.mark.parametrize("outputs", [5, 64])
def test_pixels_depend_on_what_they_read_or_the_weights_say_so(backend: Backend, outputs: int) -> None:
    rng = np.random.default_rng(0)
    v, weight = normal(rng, 1, 12, 12, 32), normal(rng, outputs, 32, 3, 3, std=1 / 17)
    weights = backend.prepare_conv(weight, None, padding=(1, 1, 1, 1), size=(12, 12))
    results = []
    for change in (0, 100):
        v[0, 5, 6] += change
        out = backend.alloc((1, 12, 12, outputs))
        backend.conv2d(out, all_tiles(1, 12, 12), Source((backend.upload(v),)), weights)
        results.append(backend.download(out))
    changed = (results[0] != results[1]).any((0, 3))
    reading = np.zeros_like(changed)
    reading[4:7, 5:8] = True
    assert changed[reading].all()
    if not weights.whole_tiles:
        assert not changed[~reading].any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_extreme_values_are_finite_and_silent(
    backend: Backend, activation: Activation
) -> None:
    values = np.array(
        [-1e30, -200, -100, -88, -20, -1, -1e-3, 0, 1e-3, 1, 20, 88, 100, 200, 1e30], np.float32
    )
    out = backend.alloc((1, 1, len(values), 1))
    source = Source((backend.upload(values.reshape(1, 1, -1, 1)),), activation=activation)
    backend.pointwise(out, all_tiles(*out.shape[:3]), source)
    result, oracle = backend.download(out)[0, 0, :, 0], naive.activate(values, activation)
    for value, got, expected in zip(values, result, oracle, strict=True):
        # relative to the value that went in: far below zero silu vanishes
        check("activation", np.array([got]), np.array([expected]), largest=max(1e-3, abs(float(value))))


# -- primitives that write no tiles ----------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (1, 300, 5), (7, 33, 130)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear(
    backend: Backend, rows: int, inputs: int, outputs: int, biased: bool, activation: Activation
) -> None:
    rng = np.random.default_rng(0)
    x, weight = normal(rng, rows, inputs), normal(rng, outputs, inputs, std=inputs**-0.5)
    bias = normal(rng, outputs) if biased else None
    oracle = np.array([[np.dot(w, row) for w in weight.astype(np.float64)] for row in x.astype(np.float64)])
    if bias is not None:
        oracle += bias
    put = Uploads(backend)
    result = backend.download(backend.linear(put(x), put(weight), put(bias), activation=activation))
    alone = backend.download(backend.linear(put(x[-1:]), put(weight), put(bias), activation=activation))
    stored = backend.linear(put(x), backend.upload_weight(weight), put(bias), activation=activation)
    put.assert_untouched()
    assert result.dtype == np.float32
    assert_same_bits(alone, result[-1:])
    assert_same_bits(backend.download(stored), result)
    check("linear", result, naive.activate(oracle, activation), largest=float(np.abs(oracle).max()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"samples": 3, "channels": (37,)},
        {"size": (1, 1)},
        {"channels": (2, 3), "upsample": 2, "samples": 2},
        {"scale": "per sample", "modulation": "by pixel", "activation": "silu", "samples": 2},
    ],
    ids=str,
)
def test_channel_moments(backend: Backend, options: dict[str, Any]) -> None:
    source = make_source(np.random.default_rng(0), **options)
    v = naive.read(source)
    put = Uploads(backend)
    mean, variance = (backend.download(m) for m in backend.channel_moments(put.source(source)))
    put.assert_untouched()
    assert mean.dtype == variance.dtype == np.float32
    check("mean", mean, v.mean((1, 2)), largest=float(np.abs(v).max()))
    check("variance", variance, v.var((1, 2)), largest=max(1e-6, float(v.var((1, 2)).max())))


def test_channel_moments_survive_a_large_mean(backend: Backend) -> None:
    part = normal(np.random.default_rng(0), 2, 40, 30, 5, mean=100)
    mean, variance = (backend.download(m) for m in backend.channel_moments(Source((backend.upload(part),))))
    v = part.astype(np.float64)
    check("mean", mean, v.mean((1, 2)))
    check("variance, large mean", variance, v.var((1, 2)))


@pytest.mark.parametrize("channels", [1, 5, 64, 84])
def test_channel_moments_survive_an_outlier_anywhere(backend: Backend, channels: int) -> None:
    """Also in a corner: the sums may be taken about no single pixel of the canvas."""
    for at in ((0, 0), (0, 1), (39, 29), (17, 11)):
        part = normal(np.random.default_rng(0), 1, 40, 30, channels, mean=3)
        part[0, at[0], at[1]] = 3e4
        part[0, 20, 20] = -5e3
        mean, variance = (
            backend.download(m) for m in backend.channel_moments(Source((backend.upload(part),)))
        )
        v = part.astype(np.float64)
        check("mean", mean, v.mean((1, 2)), largest=float(np.abs(v).mean()))
        check("variance", variance, v.var((1, 2)))


def test_channel_moments_of_a_constant_are_exact(backend: Backend) -> None:
    part = np.full((1, 33, 35, 20), 0.1, np.float32)
    mean, variance = (backend.download(m) for m in backend.channel_moments(Source((backend.upload(part),))))
    assert_array_equal(mean, part[:, 0, 0])
    assert (variance <= 1e-15).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("channels", [(5,), (3, 64), (2, 1, 4)], ids=str)
def test_join_channels(backend: Backend, channels: tuple[int, ...], dtype: str) -> None:
    hosts = [normal(np.random.default_rng(c), 3, c) for c in channels]
    put = Uploads(backend)
    joined = backend.download(backend.join_channels([put(host).astype(dtype) for host in hosts]))
    put.assert_untouched()
    assert joined.dtype == np.dtype(dtype)
    assert_array_equal(joined, np.concatenate(hosts, axis=1))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("channels", [2, 6, 64, 84])
@pytest.mark.parametrize(
    ("samples", "size"), [(1, (4, 8)), (3, (9, 10)), (2, (1, 2)), (2, (22, 41))], ids=str
)
def test_sum_change(backend: Backend, samples: int, size: tuple[int, int], channels: int, half: bool) -> None:
    rng = np.random.default_rng(0)
    before, after = changed_canvas(rng, backend, samples, size, channels, half=half)
    put = Uploads(backend)
    canvas, everywhere = put(after), all_tiles(samples, *size)
    for host in (everywhere.host[:0], everywhere.host[-1:], rng.permutation(everywhere.host)):
        tiles = Tiles(host)
        covered = inside(tiles, after.shape)[..., None]
        old = backend.read_tiles(before, tiles)
        kept = backend.download(old)
        change = backend.download(backend.sum_change(canvas, tiles, old))
        assert change.dtype == np.float64 and change.shape == (samples, 2, channels)
        assert_array_equal(backend.download(old), kept, "the old values changed")
        v, was = (np.where(covered, c, 0).astype(np.float64) for c in (after, backend.download(before)))
        check("sum of changes", change[:, 0], (v - was).sum((1, 2)), largest=float(np.abs(v - was).sum()))
        squares = v * v - was * was
        check("sum of changes", change[:, 1], squares.sum((1, 2)), largest=float(np.abs(squares).sum()))
    put.assert_untouched()


@pytest.mark.parametrize("channels", [1, 3, 37])
def test_sum_change_of_odd_channels_and_a_large_mean(backend: Backend, channels: int) -> None:
    """A change of one tile is small beside the sums of squares that it moves."""
    rng, tiles = np.random.default_rng(0), Tiles(all_tiles(2, 9, 10).host[3:9])
    before, after = (normal(rng, 2, 9, 10, channels, mean=1000) for _ in range(2))
    old = backend.read_tiles(backend.upload(before), tiles)
    change = backend.download(backend.sum_change(backend.upload(after), tiles, old))
    covered = inside(tiles, after.shape)[..., None]
    v, was = (np.where(covered, c, 0).astype(np.float64) for c in (after, before))
    expected = np.stack([(v - was).sum((1, 2)), (v * v - was * was).sum((1, 2))], axis=1)
    check("sum of changes", change, expected, largest=float(np.square(v).sum()))


def test_second_moments_are_those_of_a_mean_and_a_variance(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    mean, variance = normal(rng, 2, 37, mean=3), normal(rng, 2, 37) ** 2
    first, second = map(
        backend.download, backend.second_moments(backend.upload(mean), backend.upload(variance))
    )
    assert first.dtype == second.dtype == np.float64
    assert_array_equal(first, mean)
    assert_array_equal(second, variance.astype(np.float64) + mean.astype(np.float64) ** 2)


def test_copied_arrays_are_their_sources(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    sources = [backend.upload(normal(rng, *shape)) for shape in ((2, 3), (1, 700), (1, 1))]
    sources.append(sources[1].astype("float64"))
    targets = [backend.alloc(tuple(source.shape), dtype=str(source.dtype)) for source in sources]
    backend.copy_arrays([*zip(targets, sources, strict=True)])
    for target, source in zip(targets, sources, strict=True):
        assert_array_equal(backend.download(target), backend.download(source))
    backend.copy_arrays([])


@pytest.mark.parametrize("channels", [1, 5, 64])
@pytest.mark.parametrize("measured", [True, False])
def test_follow_moments(backend: Backend, channels: int, measured: bool) -> None:
    """Of four samples one is left alone, two are repainted in parts, and one whole."""
    rng, samples = np.random.default_rng(0), 4
    statistics, size, share = 0.4, (18, 5), [0, 0.1, 0.5, 1]
    pixels, weight = 90, [0.4, 0.46, 0.7, 1]  # 0.4 + 0.6 * share
    listed = [(n, tile // 2, tile % 2) for n, part in enumerate(share) for tile in range(round(part * 10))]
    tiles = Tiles(np.array(listed))
    used, stale, fresh = (
        (normal(rng, samples, channels, mean=3), normal(rng, samples, channels, mean=3) ** 2)
        for _ in range(3)
    )
    stale[1][1, 0] = fresh[1][1, 0] = 0  # mean² above the mean of squares: rounding may leave it so
    change = None if measured else normal(rng, samples, 2, channels, std=pixels)
    put = Uploads(backend)
    kinds = ("float32", "float64", "float64")
    given = [
        (put(first).astype(kind), put(second).astype(kind))
        for (first, second), kind in zip((used, stale, fresh), kinds, strict=True)
    ]
    moved = None if change is None else put(change).astype("float64")
    results = backend.follow_moments(*given, moved, tiles=tiles, size=size, statistics=statistics)
    put.assert_untouched()
    kept = [[backend.download(each) for each in two] for two in given]
    for two, as_given in zip(kept, (used, stale, fresh), strict=True):
        assert_array_equal(two, np.array(as_given), "an argument changed")
    now_used, now_stale, now_fresh = ([backend.download(each) for each in two] for two in results)
    assert {each.dtype for each in now_used} == {np.dtype(np.float32)}
    assert {each.dtype for each in (*now_stale, *now_fresh)} == {np.dtype(np.float64)}

    of_fresh, of_stale = (np.array(two, np.float64) for two in (fresh, stale))  # [2, N, C]
    if change is not None:
        of_fresh += change.astype(np.float64).transpose(1, 0, 2) / pixels
    w, s = (np.array(each)[:, None] for each in (weight, share))
    check("float64", np.array(now_fresh), of_fresh)
    check("float64", np.array(now_stale), of_stale + s * w * (of_fresh - of_stale))
    mean, square = of_stale + w * (of_fresh - of_stale)
    for got, expected, before in zip(now_used, (mean, np.maximum(square - mean**2, 0)), used, strict=True):
        assert_array_equal(got[0], before[0])
        check("rounding", got[1:], expected[1:])
    assert_array_equal(np.array(now_stale)[:, 0], np.array(stale)[:, 0])
    assert_array_equal(np.array(now_stale)[:, 3], np.array(now_fresh)[:, 3])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_rows_are_finite_and_silent_at_extremes(
    backend: Backend, activation: Activation
) -> None:
    values = np.array([-1e30, -200, -88, -1e-3, 0, 1e-3, 88, 200, 1e30], np.float32)
    one = backend.upload(np.ones((1, 1), np.float32))
    rows = backend.linear(backend.upload(values[:, None]), one, None, activation=activation)
    result, oracle = backend.download(rows)[:, 0], naive.activate(values, activation)
    for value, got, expected in zip(values, result, oracle, strict=True):
        check("activation", np.array([got]), np.array([expected]), largest=max(1e-3, abs(float(value))))


@pytest.mark.parametrize("groups", [1, 4, 12])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("film", [None, "shared", "per sample"])
def test_norm_affine(backend: Backend, groups: int, affine: bool, film: str | None) -> None:
    """Applied to a canvas, the scale and shift of its moments give PyTorch's group norm, to float32's rounding."""
    rng, (samples, channels) = np.random.default_rng(0), (2, 12)
    x = normal(rng, samples, 9, 10, channels, mean=0.5) * rng.uniform(0.5, 2, channels).astype(np.float32)
    weight, bias = (normal(rng, channels, mean=m, std=0.3) if affine else None for m in (1, 0))
    given = None if film is None else normal(rng, 1 if film == "shared" else samples, 2 * channels, std=0.3)
    put = Uploads(backend)
    moments = backend.channel_moments(Source((put(x),)))
    scale, shift = (
        backend.download(v)
        for v in backend.norm_affine(
            *moments, groups=groups, eps=1e-5, weight=put(weight), bias=put(bias), film=put(given)
        )
    )
    put.assert_untouched()
    assert scale.shape == shift.shape == (samples, channels) and scale.dtype == shift.dtype == np.float32
    grouped = x.astype(np.float64).reshape(samples, 90, groups, -1)
    mean, variance = (v[:, None, :, None] for v in (grouped.mean((1, 3)), grouped.var((1, 3))))
    y = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    if weight is not None and bias is not None:
        y = y * weight + bias
    if given is not None:
        gain, offset = np.split(given.astype(np.float64)[:, None, None], 2, axis=-1)
        y = y * (1 + gain) + offset
    check("norm_affine", x * scale[:, None, None] + shift[:, None, None], y)


def test_norm_affine_of_fixed_moments(backend: Backend) -> None:
    """A batch norm: one row of moments, every channel a group of its own."""
    rng = np.random.default_rng(0)
    mean, variance = normal(rng, 1, 7), normal(rng, 1, 7) ** 2
    put = Uploads(backend)
    scale, shift = backend.norm_affine(put(mean), put(variance), groups=7, eps=1e-5)
    expected = 1 / np.sqrt(variance.astype(np.float64) + 1e-5)
    check("rounding", backend.download(scale), expected)
    check("rounding", backend.download(shift), -mean * expected)


# -- what a source may be --------------------------------------------------------------------------------


def test_a_source_may_be_mapped_read_only_or_broadcast(backend: Backend, tmp_path: Path) -> None:
    if not isinstance(backend.alloc((1,)), np.ndarray):
        pytest.skip("this backend's arrays are not NumPy's")
    rng = np.random.default_rng(0)
    v, weight = normal(rng, 2, 8, 12, 20), normal(rng, 7, 20, 3, 3, std=1 / 13)
    np.save(tmp_path / "canvas.npy", v)
    mapped = np.load(tmp_path / "canvas.npy", mmap_mode="r")
    one = np.broadcast_to(v[:1, :1, :1], v.shape)
    weights = backend.prepare_conv(weight, None, padding=(1, 1, 1, 1), size=(8, 12))
    for source, plain in ((mapped, v), (one, np.array(one)), (v[:, :, ::-1], np.array(v[:, :, ::-1]))):
        results = []
        for canvas in (source, backend.upload(plain)):
            out = backend.alloc((2, 8, 12, 7))
            backend.conv2d(out, all_tiles(2, 8, 12), Source((canvas,)), weights)
            moments = backend.channel_moments(Source((canvas,)))
            tiles = backend.read_tiles(canvas, all_tiles(2, 8, 12))
            results.append([out, *moments, tiles])
        for a, b in zip(*results, strict=True):
            assert_array_equal(a, b)


def test_a_source_has_one_or_two_parts(backend: Backend) -> None:
    parts = [backend.alloc((1, 4, 4, c)) for c in (2, 3, 4)]
    for wrong in ((), tuple(parts)):
        with pytest.raises(BackendError, match=f"a source has {len(wrong)} parts, expected one or two"):
            Source(wrong)


@pytest.mark.parametrize(
    ("scale", "shift"),
    [((1, 3), None), (None, (2, 3)), ((1, 3), (2, 3)), ((2, 3), (1, 3)), ((3, 3), (3, 3)), ((1, 2), (1, 2))],
    ids=str,
)
def test_scale_and_shift_have_one_shape(backend: Backend, scale: Any, shift: Any) -> None:
    given = [None if shape is None else backend.alloc(shape) for shape in (scale, shift)]
    with pytest.raises(BackendError, match=r"expected both \(1, 3\) or both \(2, 3\)"):
        Source((backend.alloc((2, 4, 4, 3)),), 1, *given)


@pytest.mark.parametrize("work", ["layer norm", "geglu"])
def test_a_reader_of_other_pixels_is_refused(backend: Backend, work: Any) -> None:
    rng = np.random.default_rng(0)
    source = Uploads(backend).source(combined_source(rng, work, channels=8, size=(8, 8)))
    assert source is not None
    out, tiles = backend.alloc((1, 8, 8, 8)), all_tiles(1, 8, 8)
    plain = Source((out,))
    three = backend.prepare_conv(normal(rng, 8, 8, 3, 3), None, padding=(1, 1, 1, 1))
    grouped = backend.prepare_conv(normal(rng, 8, 4, 1, 1), None, groups=2)
    strided = backend.prepare_conv(normal(rng, 8, 8, 1, 1), None, stride=2)
    calls = [
        *(
            lambda weights=each: backend.conv2d(out, tiles, source, weights)
            for each in (three, grouped, strided)
        ),
        lambda: backend.conv2d(out, tiles, plain, three, residual=source),
        lambda: backend.pointwise(out, tiles, plain, residual=source),
        lambda: backend.attention(out, tiles, plain, source, plain, heads=1),
        lambda: backend.channel_moments(source),
    ]
    for call in calls:
        with pytest.raises(BackendError, match="is read by pointwise and by convolutions of kernel 1×1"):
            call()
