"""Masks: the dilation's shape, PyTorch's interpolation, and the paper's pyramid against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from sparsegen.backends.interface import Host
from sparsegen.tiling.masks import difference_mask, dilate, pyramid, resample
from sparsegen.tiling.policies import Paper, Plan
from sparsegen.tiling.tiles import TileSet
from sparsegen.tiling.windows import Read, Window
from tests.tolerances import check


def mask_of(size: tuple[int, int], *pixels: tuple[int, int]) -> Host:
    """bool `[1, H, W]`, True at `pixels`."""
    mask = np.zeros((1, *size), bool)
    for y, x in pixels:
        mask[0, y, x] = True
    return mask


def pixels_of(mask: Host) -> set[tuple[int, int]]:
    """The True pixels of a `[1, H, W]` mask."""
    return {(int(y), int(x)) for _, y, x in np.argwhere(mask)}


def levels_of(mask: Host, *, dilation: int, threshold: float = 0.3) -> list[Host]:
    """The pyramid of a mask, as masks."""
    return [level.mask() for level in pyramid(TileSet.of_mask(mask), dilation=dilation, threshold=threshold)]


def cross(y: int, x: int) -> set[tuple[int, int]]:
    """A pixel and its four neighbours."""
    return {(y, x), (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)}


# -- dilation --------------------------------------------------------------------------------------------


def test_dilation_is_a_cross() -> None:
    drawn = """
        . . . # . .
        . . . # . .
        . # # # # #
        . . . # . .
        . . . # . ."""
    expected = np.array([[c == "#" for c in line.split()] for line in drawn.strip().splitlines()])
    assert_array_equal(dilate(mask_of((5, 6), (2, 3)), 2)[0], expected)


def test_dilation_stops_at_the_border_and_keeps_its_input() -> None:
    mask = mask_of((3, 3), (0, 0))
    assert pixels_of(dilate(mask, 1)) == {(0, 0), (0, 1), (1, 0)}
    assert pixels_of(dilate(mask, 9)) == {(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)}
    assert pixels_of(mask) == {(0, 0)}
    assert_array_equal(dilate(mask, 0), mask)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10), st.integers(0, 1000))
def test_dilation_is_its_definition(height: int, width: int, radius: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((2, height, width)) < 0.1
    expected = np.zeros_like(mask)
    for n, y, x in np.ndindex(mask.shape):
        column = mask[n, max(0, y - radius) : y + radius + 1, x]
        row = mask[n, y, max(0, x - radius) : x + radius + 1]
        expected[n, y, x] = column.any() or row.any()
    assert_array_equal(dilate(mask, radius), expected)


# -- bilinear resampling ---------------------------------------------------------------------------------


def bilinear(v: Host, height: int, width: int) -> Host:
    """Both axes of `[N, H, W]`, whole."""
    rows, start = resample(v, 1, height, begin=0, length=v.shape[1])
    both, left = resample(rows, 2, width, begin=0, length=v.shape[2])
    assert (start, left) == (0, 0)
    return both


@pytest.mark.torch
@pytest.mark.parametrize(
    ("size", "to"),
    [
        ((8, 8), (4, 4)),
        ((9, 7), (4, 3)),
        ((5, 1), (2, 1)),
        ((2, 3), (1, 1)),
        ((6, 5), (11, 13)),
        ((12, 7), (5, 7)),
    ],
)
def test_bilinear_is_pytorchs(size: tuple[int, int], to: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    v = np.random.default_rng(0).random((2, *size)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(v)[:, None], size=to, mode="bilinear", align_corners=False
    )
    check("interpolate", bilinear(v, *to), expected[:, 0].numpy())


def test_halving_an_even_size_averages_two_by_two() -> None:
    v = np.array([[[1, 0, 0, 1], [0, 0, 0, 1]]], np.float32)
    assert_array_equal(bilinear(v, 1, 2), [[[0.25, 0.5]]])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_resampling_a_part_gives_the_bits_of_the_whole(length: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    begin = int(rng.integers(length))
    end = int(rng.integers(begin, length)) + 1
    v = np.zeros((1, length, 1), np.float32)
    v[:, begin:end] = rng.random((1, end - begin, 1))
    whole, _ = resample(v, 1, size, begin=0, length=length)
    part, start = resample(v[:, begin:end], 1, size, begin=begin, length=length)
    assert_array_equal(part, whole[:, start : start + part.shape[1]])
    assert np.count_nonzero(part) == np.count_nonzero(whole)


# -- the pyramid, by hand --------------------------------------------------------------------------------


def test_the_pyramid_of_one_pixel() -> None:
    # Each halving of an even size averages 2×2, so the pixel's value falls to a quarter and its threshold,
    # min(0.3, highest - 1e-3), lies just under it: the pixel's own cell stays, then grows by a cross.
    levels = [pixels_of(level) for level in levels_of(mask_of((16, 16), (5, 6)), dilation=1)]
    assert levels == [
        cross(5, 6),  # 1 > 0.3
        cross(2, 3),  # 1/4 > 0.249
        cross(1, 1),  # 1/16 > 0.0615
        {(0, 0), (0, 1), (1, 0)},  # 1/64 > 0.0146, the cross cut off by the border
        {(0, 0)},  # 1/256 = 0.0039 > 0.0029
    ]


def test_the_pyramid_of_a_square() -> None:
    # rows 4 to 6, columns 6 to 8
    square = mask_of((16, 16), *((y, x) for y in (4, 5, 6) for x in (6, 7, 8)))
    levels = [pixels_of(level) for level in levels_of(square, dilation=1)]

    # 16×16: every masked pixel is 1 > 0.3; the cross adds a rim without corners
    rim = {(3, x) for x in (6, 7, 8)} | {(7, x) for x in (6, 7, 8)}
    rim |= {(y, 5) for y in (4, 5, 6)} | {(y, 9) for y in (4, 5, 6)}
    assert levels[0] == pixels_of(square) | rim

    # 8×8: rows 4, 5 fill cell row 2, row 6 half of row 3; columns 6, 7 fill cell column 3, column 8 half of 4
    #   (2, 3) = 1   (2, 4) = 1/2
    #   (3, 3) = 1/2 (3, 4) = 1/4, not above min(0.3, 0.999)
    assert levels[1] == cross(2, 3) | cross(2, 4) | cross(3, 3)

    # 4×4, from the values before dilation and threshold: (1, 1) holds 1 and 1/2 -> 0.375 > min(0.3, 0.374);
    # (1, 2) holds 1/2 and 1/4 -> 0.1875, out
    assert levels[2] == cross(1, 1)

    # 2×2: (0, 0) = 0.375 / 4 = 0.09375 > 0.09275; (0, 1) = 0.1875 / 4 = 0.0469, out
    assert levels[3] == {(0, 0), (0, 1), (1, 0)}

    # 1×1: (0.09375 + 0.0469) / 4 = 0.035 > 0.034
    assert levels[4] == {(0, 0)}
    assert len(levels) == 5


def test_the_threshold_and_the_dilation_are_settings() -> None:
    square = mask_of((16, 16), *((y, x) for y in (4, 5, 6) for x in (6, 7, 8)))
    level = [pixels_of(level) for level in levels_of(square, dilation=0, threshold=0.2)][1]
    assert level == {(2, 3), (2, 4), (3, 3), (3, 4)}  # 1, 1/2, 1/2, 1/4 > 0.2
    level = [pixels_of(level) for level in levels_of(square, dilation=0, threshold=0.5)][1]
    assert level == {(2, 3)}  # 1/2 is not above 0.5


def test_levels_halve_rounding_down_to_one_pixel() -> None:
    sizes = [level.shape for level in levels_of(np.ones((2, 20, 3), bool), dilation=1)]
    assert sizes == [(2, 20, 3), (2, 10, 1), (2, 5, 1), (2, 2, 1), (2, 1, 1)]


@pytest.mark.parametrize("size", [(16, 16), (9, 5), (1, 1)])
def test_an_empty_mask_is_empty_at_every_level(size: tuple[int, int]) -> None:
    assert not any(level.any() for level in levels_of(np.zeros((2, *size), bool), dilation=3))


def test_a_full_mask_is_full_at_every_level() -> None:
    assert all(level.all() for level in levels_of(np.ones((1, 22, 13), bool), dilation=0))


def test_a_faded_mask_keeps_the_pixels_under_the_edit() -> None:
    # after five halvings a single pixel is worth 4**-5 = 9.8e-4 < 1e-3, so no threshold can find it
    levels = [pixels_of(level) for level in levels_of(mask_of((64, 64), (40, 20)), dilation=0)]
    assert levels == [{(40, 20)}, {(20, 10)}, {(10, 5)}, {(5, 2)}, {(2, 1)}, {(1, 0)}, {(0, 0)}]


def test_a_mask_between_the_samples_keeps_the_pixels_under_the_edit() -> None:
    # halving 5 to 2 reads at 0.75 and 3.25: rows and columns 0, 1 and 3, 4, never 2. Of the two halves that
    # meet in row 2 the edit's pixel belongs to the second (2 // 2 = 1).
    levels = [pixels_of(level) for level in levels_of(mask_of((5, 5), (2, 2)), dilation=0)]
    assert levels == [{(2, 2)}, {(1, 1)}, {(0, 0)}]


@given(st.integers(1, 33), st.integers(1, 33), st.integers(0, 1000))
def test_no_edit_is_lost_at_any_level(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = mask_of((height, width), (int(rng.integers(height)), int(rng.integers(width))))
    assert all(level.any() for level in levels_of(mask, dilation=0))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
def test_samples_do_not_see_each_other(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    both = rng.random((2, height, width)) < np.array([0.02, 0.4]).reshape(2, 1, 1)
    together = levels_of(both, dilation=1)
    for n in (0, 1):
        for level, alone in zip(together, levels_of(both[n : n + 1], dilation=1), strict=True):
            assert_array_equal(level[n : n + 1], alone)


# -- from masks to tiles ---------------------------------------------------------------------------------

THREE, ONE = Window(3, top=1, left=1), Window()


def active(plan: Plan, window: Window, height: int, width: int, *, samples: int = 1) -> list[tuple[int, ...]]:
    """(row, column) of the active tiles of a layer that reads changed pixels through `window`; (n, …) of several."""
    size = (height * window.stride, width * window.stride)
    tiles = plan.active([Read(TileSet.full(samples, *size), window)], (samples, height, width)).tiles.host
    return [tuple(map(int, tile[samples == 1 :])) for tile in tiles]


def test_active_tiles_of_one_pixel() -> None:
    # 32×32, pixel (5, 6). Tile (i, j) of a 3×3 layer reads rows 4i - 1 to 4i + 4 (6×6), of a 1×1 layer its own 4×4.
    plan = Paper(dilation=0, level_dilation=1, sparse_levels=9).plan(mask_of((32, 32), (5, 6)))
    # 32×32, cross around (5, 6): rows 4 to 6 and columns 5 to 7 lie in tile (1, 1);
    # pixel (4, 6) is also in the last row that tile (0, 1) reads, (5, 7) in the first column that (1, 2) reads
    assert active(plan, ONE, 32, 32) == [(1, 1)]
    assert active(plan, THREE, 32, 32) == [(0, 1), (1, 1), (1, 2)]
    # 16×16, cross around (2, 3): rows 1 to 3, columns 2 to 4, so (2, 4) lies in tile (0, 1);
    # row 3 is in the first row that tiles (1, ·) read, at column 3: read by tiles (1, 0) and (1, 1)
    assert active(plan, ONE, 16, 16) == [(0, 0), (0, 1)]
    assert active(plan, THREE, 16, 16) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    # 8×8, cross around (1, 1): rows and columns 0 to 2, all in tile (0, 0); tile 1 reads from 3 on
    assert active(plan, ONE, 8, 8) == [(0, 0)]
    assert active(plan, THREE, 8, 8) == [(0, 0)]


def test_active_tiles_of_a_square() -> None:
    # 32×32, rows 4 to 6 and columns 6 to 8, dilated once by the policy (a rim: rows 3 to 7, columns 5 to 9) and
    # not at the level: pixel (3, 7) lies in tile (0, 1), (5, 9) in tile (1, 2); (3, 8) lies in (0, 2)
    square = mask_of((32, 32), *((y, x) for y in (4, 5, 6) for x in (6, 7, 8)))
    plan = Paper(dilation=1, level_dilation=0, sparse_levels=9).plan(square)
    assert active(plan, ONE, 32, 32) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    # tiles (2, ·) read rows 7 to 12, and row 7 holds columns 6 to 8: tiles (2, 1), and (2, 2), which reads from 7
    assert active(plan, THREE, 32, 32) == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]


def test_a_strided_layer_uses_the_mask_of_what_it_reads() -> None:
    # stride 2: tile (i, j) reads rows 8i - 1 to 8i + 7 of the 32×32 mask, and not the mask of its own 16×16
    plan = Paper(dilation=0, level_dilation=0, sparse_levels=9).plan(mask_of((32, 32), (7, 16)))
    assert active(plan, Window(3, 2, 1, 1), 16, 16) == [(0, 2), (1, 2)]


def test_an_empty_mask_has_no_active_tile_at_any_level() -> None:
    plan = Paper(dilation=3, level_dilation=2, sparse_levels=2).plan(np.zeros((2, 32, 32), bool))
    for size in (32, 16, 8, 4, 2, 1):
        assert active(plan, THREE, size, size, samples=2) == []


def test_a_faded_mask_keeps_the_tiles_under_the_edit() -> None:
    plan = Paper(dilation=0, level_dilation=0, sparse_levels=9).plan(mask_of((256, 256), (160, 80)))
    for level, size in enumerate((256, 128, 64, 32, 16, 8, 4, 2, 1)):
        assert active(plan, ONE, size, size) == [((160 >> level) // 4, (80 >> level) // 4)]


def test_active_tiles_of_a_batch_are_those_of_each_sample() -> None:
    both = np.concatenate([mask_of((32, 32), (5, 6)), mask_of((32, 32), (30, 1), (0, 31), (0, 30))])
    settings = Paper(dilation=1, level_dilation=1, sparse_levels=3)
    together, alone = settings.plan(both), [settings.plan(both[:1]), settings.plan(both[1:])]
    for size in (32, 16, 8, 4, 2, 1):
        expected = [(n, *tile) for n in (0, 1) for tile in active(alone[n], THREE, size, size)]
        assert active(together, THREE, size, size, samples=2) == expected


# -- differences -----------------------------------------------------------------------------------------


def test_difference_mask_of_indices() -> None:
    original = np.random.default_rng(0).integers(-1, 4, (2, 5, 7, 2), dtype=np.int32)
    edited = original.copy()
    edited[0, 1, 2, 1] += 1
    edited[1, 4, 6] = 9
    expected = np.zeros((2, 5, 7), bool)
    expected[0, 1, 2] = expected[1, 4, 6] = True
    mask = difference_mask({"x": original}, {"x": edited})
    assert isinstance(mask, np.ndarray)
    assert mask.dtype == bool
    assert_array_equal(mask, expected)
    assert not difference_mask({"x": original}, {"x": original}).any()


def test_difference_mask_is_above_eps_on_any_channel() -> None:
    original = np.zeros((1, 1, 5, 2), np.float32)
    edited = original.copy()
    # exactly eps is no difference; either sign and either channel counts
    edited[0, 0, :, 0] = [0, 0.5, -0.5, 0.5000001, 0]
    edited[0, 0, 4, 1] = -0.75
    mask = difference_mask({"x": original}, {"x": edited}, eps=0.5)
    assert_array_equal(mask, [[[False, False, False, True, True]]])
    assert_array_equal(difference_mask({"x": original}, {"x": edited}), [[[False, True, True, True, True]]])


@pytest.mark.parametrize("eps", [0.0, 0.5, 1e30])
def test_a_nan_differs_from_everything_and_equal_infinities_do_not(eps: float) -> None:
    original = np.array([1, np.nan, np.nan, np.inf, -np.inf, np.inf, np.inf], np.float32)
    edited = np.array([np.nan, 1, np.nan, np.inf, -np.inf, -np.inf, 1], np.float32)
    mask = difference_mask({"x": original.reshape(1, 1, 7, 1)}, {"x": edited.reshape(1, 1, 7, 1)}, eps=eps)
    assert_array_equal(mask[0, 0], [True, True, True, False, False, True, True])


def test_the_difference_of_indices_is_above_eps() -> None:
    least, most = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    original = np.array([0, 5, 5, -3, least, least], np.int32)
    edited = np.array([0, 6, 7, -5, most, least], np.int32)
    a, b = original.reshape(1, 1, 6, 1), edited.reshape(1, 1, 6, 1)
    for eps, expected in (
        (0, [False, True, True, True, True, False]),
        (0.5, [False, True, True, True, True, False]),
        (1, [False, False, True, True, True, False]),
        (1.5, [False, False, True, True, True, False]),
        (2, [False, False, False, False, True, False]),
        (1e30, [False] * 6),
    ):
        assert_array_equal(difference_mask({"x": a}, {"x": b}, eps=eps)[0, 0], expected)
