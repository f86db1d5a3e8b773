"""Tile sets keep the pixels they were given, and grow through a window exactly, at a cost that follows the set."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from sparsegen.backends.interface import TILE, Host
from sparsegen.tiling.tiles import TileSet, union
from sparsegen.tiling.windows import Window, grow

shapes = st.tuples(st.integers(1, 3), st.integers(1, 14), st.integers(1, 14))


@st.composite
def masks(draw: st.DrawFn) -> Host:
    """bool `[N, H, W]`, ragged sizes; from no pixel to all."""
    shape = draw(shapes)
    density = draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 10_000))).random(shape) < density


def whole_tiles(mask: Host) -> Host:
    """bool `[N, H, W]`: every pixel of a tile that holds a True one, block after block."""
    whole = np.zeros_like(mask)
    for n, y, x in np.argwhere(mask):
        y, x = y // TILE * TILE, x // TILE * TILE
        whole[n, y : y + TILE, x : x + TILE] = True
    return whole


def assert_well_formed(tiles: TileSet) -> None:
    """Types, order, no tile twice, none outside, no pixel outside the image, none empty."""
    assert tiles.tiles.host.dtype == np.int32
    assert tiles.tiles.host.shape == (tiles.count, 3)
    assert tiles.pixels.dtype == bool
    assert tiles.pixels.shape == (tiles.count, TILE, TILE)
    listed = [tuple(map(int, tile)) for tile in tiles.tiles.host]
    assert listed == sorted(set(listed))
    for (n, row, column), pixels in zip(listed, tiles.pixels, strict=True):
        assert 0 <= n < tiles.samples
        assert pixels.any()
        dy, dx = np.nonzero(pixels)
        assert row >= 0
        assert column >= 0
        assert (row * TILE + dy < tiles.height).all()
        assert (column * TILE + dx < tiles.width).all()


def pixel_set(shape: tuple[int, int, int], *pixels: tuple[int, int]) -> TileSet:
    """Some pixels (row, column) of sample 0."""
    mask = np.zeros(shape, bool)
    for y, x in pixels:
        mask[0, y, x] = True
    return TileSet.of_mask(mask)


# -- tile sets -------------------------------------------------------------------------------------------


@given(masks())
def test_a_mask_comes_back_as_it_went_in(mask: Host) -> None:
    tiles = TileSet.of_mask(mask)
    assert_well_formed(tiles)
    assert tiles.shape == mask.shape
    assert_array_equal(tiles.mask(), mask)
    assert_array_equal(tiles.mask(whole_tiles=True), whole_tiles(mask))
    assert tiles.area == whole_tiles(mask).sum()


@given(shapes)
def test_full_is_everything_and_empty_nothing(shape: tuple[int, int, int]) -> None:
    full, empty = TileSet.full(*shape), TileSet.empty(*shape)
    for tiles in (full, empty):
        assert_well_formed(tiles)
        assert tiles.shape == shape
        assert tiles.total == full.count
    assert full.mask().all()
    assert full.area == np.prod(shape)
    assert_array_equal(full.tiles.host, TileSet.of_mask(np.ones(shape, bool)).tiles.host)
    assert not empty.mask().any()
    assert (empty.count, empty.area) == (0, 0)
    assert_array_equal(empty.tiles.host, TileSet.of_mask(np.zeros(shape, bool)).tiles.host)


def test_the_ragged_edge_by_hand() -> None:
    # 9 rows are tiles of 4, 4 and 1; 6 columns are tiles of 4 and 2
    full = TileSet.full(1, 9, 6)
    assert full.tiles.host[:, 1:].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert full.pixels.sum((1, 2)).tolist() == [16, 8, 16, 8, 4, 2]
    corner = pixel_set((1, 9, 6), (8, 5))
    assert corner.tiles.host.tolist() == [[0, 2, 1]]
    assert corner.pixels[0].nonzero()[0].tolist() == [0]
    assert corner.pixels[0].nonzero()[1].tolist() == [1]
    assert corner.area == 2
    assert corner.whole().mask().sum() == 2


def test_full_of_some_samples_only() -> None:
    chosen = TileSet.full(3, 5, 4, only=np.array([True, False, True]))
    assert_well_formed(chosen)
    assert chosen.mask().all((1, 2)).tolist() == [True, False, True]
    assert chosen.mask().any((1, 2)).tolist() == [True, False, True]
    assert (chosen.count, chosen.total, chosen.area) == (4, 6, 40)
    assert TileSet.full(3, 5, 4, only=np.zeros(3, bool)).count == 0


@given(masks(), st.integers(0, 1000))
def test_a_union_holds_what_any_of_its_sets_holds(mask: Host, seed: int) -> None:
    other = np.random.default_rng(seed).random(mask.shape) < 0.1
    nothing = TileSet.empty(*mask.shape)
    both = union([TileSet.of_mask(mask), nothing, TileSet.of_mask(other)])
    assert_well_formed(both)
    assert_array_equal(both.mask(), mask | other)
    assert_array_equal(union([TileSet.of_mask(mask)]).mask(), mask)
    assert union([nothing, nothing]).count == 0


# -- growing ---------------------------------------------------------------------------------------------


def axis_reads(window: Window, before: int, size: int, out: int) -> Host:
    """bool `[out, size]`: output position o reads canvas position p, straight from `Window`'s definition."""
    reads = np.zeros((out, size), bool)
    for o in range(out):
        for t in range(window.kernel):
            read = o * window.stride + t - before
            # a read above or left of the image is a border zero: no pixel of the canvas
            if read >= 0 and read * window.step // window.upsample < size:
                reads[o, read * window.step // window.upsample] = True
    return reads


def grown_by_definition(mask: Host, window: Window, height: int, width: int) -> Host:
    """Each output pixel in turn: does its window meet the mask?"""
    rows = axis_reads(window, window.top, mask.shape[1], height)
    columns = axis_reads(window, window.left, mask.shape[2], width)
    grown = np.zeros((len(mask), height, width), bool)
    for n, y, x in np.ndindex(grown.shape):
        grown[n, y, x] = mask[n][np.ix_(rows[y], columns[x])].any()
    return grown


windows = st.builds(
    Window,
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    top=st.integers(0, 3),
    left=st.integers(0, 3),
    step=st.integers(1, 4),
    upsample=st.integers(1, 2),
)


@settings(max_examples=150)
@given(masks(), windows, st.integers(1, 14), st.integers(1, 14))
def test_grow_is_its_definition(mask: Host, window: Window, height: int, width: int) -> None:
    grown = grow(TileSet.of_mask(mask), window, height, width)
    assert_well_formed(grown)
    assert grown.shape == (len(mask), height, width)
    assert_array_equal(grown.mask(), grown_by_definition(mask, window, height, width))


LAYERS = {
    "1×1": (Window(), 1),
    "3×3": (Window(3, top=1, left=1), 1),
    "3×3, stride 2": (Window(3, 2, 1, 1), 0.5),
    "3×3, stride 2, padded right and bottom": (Window(3, 2), 0.5),
    "3×3 of an upsampled canvas": (Window(3, top=1, left=1, upsample=2), 2),
    "3×3 of every fourth pixel": (Window(3, top=1, left=1, step=4), 0.25),
}


@pytest.mark.parametrize("name", LAYERS)
def test_grow_through_the_windows_of_the_layers(name: str) -> None:
    window, factor = LAYERS[name]
    height, width = int(8 * factor), int(12 * factor)
    for pixel in np.ndindex(2, 8, 12):
        mask = np.zeros((2, 8, 12), bool)
        mask[pixel] = True
        grown = grow(TileSet.of_mask(mask), window, height, width).mask()
        # a brute-force image of one sample is enough: the other must stay untouched
        n = pixel[0]
        assert_array_equal(grown[n : n + 1], grown_by_definition(mask[n : n + 1], window, height, width))
        assert not grown[1 - n].any()


def test_grow_by_hand() -> None:
    changed = pixel_set((1, 8, 8), (3, 4))
    grown = grow(changed, Window(3, top=1, left=1), 8, 8)
    # rows 2 to 4 and columns 3 to 5 read pixel (3, 4): all four tiles around the corner at (4, 4)
    assert grown.tiles.host.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert np.argwhere(grown.mask()[0]).tolist() == [[y, x] for y in (2, 3, 4) for x in (3, 4, 5)]
    # nearest downsampling by 4 reads rows and columns 0 and 4: pixel (3, 4) is never read, (4, 4) is
    assert grow(changed, Window(step=4), 2, 2).count == 0
    read = pixel_set((1, 8, 8), (4, 4))
    assert np.argwhere(grow(read, Window(step=4), 2, 2).mask()).tolist() == [[0, 1, 1]]


@given(masks(), windows)
def test_nothing_grows_to_nothing(mask: Host, window: Window) -> None:
    grown = grow(TileSet.empty(*mask.shape), window, 9, 5)
    assert (grown.count, grown.shape) == (0, (len(mask), 9, 5))


@pytest.mark.parametrize("name", LAYERS)
def test_growing_costs_what_the_set_costs_not_the_image(name: str) -> None:
    window, factor = LAYERS[name]

    def peak(size: int) -> int:
        """Bytes at the worst moment of growing a 24×24 edit in a `size` × `size` image."""
        mask = np.zeros((1, size, size), bool)
        mask[0, size // 2 : size // 2 + 24, size // 2 : size // 2 + 24] = True
        changed = TileSet.of_mask(mask)
        tracemalloc.start()
        grown = grow(changed, window, int(size * factor), int(size * factor))
        assert 0 < grown.count < 200
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(256)  # what NumPy keeps for itself is allocated now
    assert peak(2048) <= peak(256) + 1000  # of numbers that Python does not keep ready
    assert peak(2048) < 100_000


def test_windows_are_compared_by_value() -> None:
    # plans keep grown sets by window: two layers of one kind share them
    assert Window(3, top=1, left=1) == Window(3, 1, 1, 1)
    assert hash(replace(Window(3, top=1, left=1), step=2, upsample=1)) == hash(Window(3, 1, 1, 1, 2))


@given(masks())
def test_tiles_and_pixels_make_the_set_again(mask: Host) -> None:
    changed = TileSet.of_mask(mask)
    again = TileSet.of_tiles(changed.shape, changed.tiles.host, changed.pixels)
    assert_array_equal(again.mask(), mask)
    assert_array_equal(again.tiles.host, changed.tiles.host)
    assert_array_equal(
        TileSet.of_tiles(changed.shape, changed.tiles.host).mask(), changed.mask(whole_tiles=True)
    )
    assert_array_equal(changed.whole().mask(), changed.mask(whole_tiles=True))


@pytest.mark.parametrize("tile", [(1, 0, 0), (0, 3, 0), (0, 0, 2), (0, -1, 0)])
def test_tiles_outside_the_canvas_are_refused(tile: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="outside a canvas"):
        TileSet.of_tiles((1, 9, 6), np.array([tile], np.int32))
