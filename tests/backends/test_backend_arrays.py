"""What a backend does with memory, tiles and masks: copies are copies, borders are kept, differences are found."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sparsegen.backends import TILE, Backend, BackendError
from sparsegen.backends.interface import Host, Tiles
from tests.backends.contract_cases import Uploads, all_tiles, changed_canvas, inside, normal


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_alloc_gives_zeros(backend: Backend, dtype: str) -> None:
    array = backend.alloc((2, 5, 3, 4), dtype=dtype)
    host = backend.download(array)
    assert tuple(array.shape) == host.shape == (2, 5, 3, 4)
    assert array.nbytes == 2 * 5 * 3 * 4 * 4
    assert host.dtype == np.dtype(dtype)
    assert not host.any()


def test_alloc_is_float32_unless_told(backend: Backend) -> None:
    assert backend.download(backend.alloc((1, 1, 1, 1))).dtype == np.float32


@pytest.mark.parametrize(
    ("given_as", "kept_as"),
    [
        ("float32", "float32"),
        ("float64", "float32"),
        ("float16", "float32"),
        ("int32", "int32"),
        ("bool", "bool"),
    ],
)
def test_upload_and_download_give_values_back(backend: Backend, given_as: str, kept_as: str) -> None:
    host = np.random.default_rng(0).integers(0, 2, (2, 3, 4, 5)).astype(given_as)
    for view in (host, host[:, ::2], host.transpose(3, 1, 0, 2), host[:0]):
        back = backend.download(backend.upload(view))
        assert back.dtype == np.dtype(kept_as)
        assert_array_equal(back, view)


def test_upload_and_download_are_copies(backend: Backend) -> None:
    host = np.zeros((1, 4, 4, 2), np.float32)
    array = backend.upload(host)
    host += 1
    before = backend.download(array)
    backend.write_tiles(array, all_tiles(1, 4, 4), backend.upload(np.full((1, 4, 4, 2), 2, np.float32)))
    assert not before.any(), "an upload shares memory with its host array, or a download with its canvas"
    assert (backend.download(array) == 2).all()
    before[:] = 3
    assert (backend.download(array) == 2).all()


def test_tiles_are_a_read_only_copy() -> None:
    host = np.arange(12).reshape(4, 3)[:, ::-1]
    tiles = Tiles(host)
    expected = host.copy()
    host[0] = 99
    assert_array_equal(tiles.host, expected)
    assert tiles.host.dtype == np.int32 and tiles.host.flags.c_contiguous and not tiles.host.flags.writeable
    assert len(tiles) == 4 and repr(tiles) == "<Tiles: 4>"


@pytest.mark.parametrize("shape", [(3,), (4, 2), (1, 4, 3)], ids=str)
def test_tiles_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BackendError, match=r"tiles have shape .*, expected \(K, 3\)"):
        Tiles(np.zeros(shape, int))


def test_a_backends_form_of_tiles_is_made_once(backend: Backend) -> None:
    tiles, calls = all_tiles(1, 9, 10), []

    def make(host: Host) -> object:
        calls.append(host)
        return object()

    assert tiles.on(backend, make) is tiles.on(backend, make)
    assert tiles.on("another owner", make) is not tiles.on(backend, make)
    assert len(calls) == 2 and all(host is tiles.host for host in calls)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_read_tiles_copies_and_write_tiles_puts_back(backend: Backend, dtype: str) -> None:
    host = np.random.default_rng(0).integers(1, 100, (2, 9, 10, 3)).astype(dtype)
    canvas, tiles = backend.upload(host), Tiles(all_tiles(2, 9, 10).host[[13, 2, 8, 5]])
    kept = backend.read_tiles(canvas, tiles)
    before = backend.download(kept)
    # the tile (0, 2, 2) holds rows 8 and columns 8 and 9: one row of two pixels lies inside
    expected = np.zeros((len(tiles), TILE, TILE, 3), dtype)
    for k, (n, row, column) in enumerate(tiles.host):
        cut = host[n, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        expected[k, : cut.shape[0], : cut.shape[1]] = cut
    assert before.dtype == np.dtype(dtype)
    assert_array_equal(before, expected)

    place = backend.upload(np.full_like(expected, 5))
    assert backend.read_tiles(canvas, tiles, place) is place
    assert_array_equal(backend.download(place), expected, "it is filled in whole")

    backend.write_tiles(canvas, tiles, backend.upload(np.full_like(expected, 7)))
    covered = inside(tiles, host.shape)[..., None]
    assert_array_equal(backend.download(canvas), np.where(covered, 7, host))
    assert_array_equal(backend.download(kept), before, "what was read follows the canvas")
    backend.write_tiles(canvas, tiles, kept)
    assert_array_equal(backend.download(canvas), host)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_merge_tiles_writes_the_given_pixels(backend: Backend, dtype: str) -> None:
    rng = np.random.default_rng(0)
    host, new = (rng.integers(1, 100, (2, 9, 10, 3)).astype(dtype) for _ in range(2))
    tiles = Tiles(all_tiles(2, 9, 10).host[[13, 2, 8, 5]])
    pixels = rng.random((len(tiles), TILE, TILE)) < 0.5
    expected = host.copy()
    for (n, row, column), taken in zip(tiles.host, pixels, strict=True):
        place = np.s_[n, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        cut = expected[place]
        expected[place] = np.where(taken[: cut.shape[0], : cut.shape[1], None], new[place], cut)
    canvas, put = backend.upload(host), Uploads(backend)
    values = backend.read_tiles(put(new), tiles)
    backend.merge_tiles(canvas, tiles, values, pixels)
    assert_array_equal(backend.download(canvas), expected)
    backend.merge_tiles(canvas, tiles, values, np.zeros_like(pixels))
    assert_array_equal(backend.download(canvas), expected)
    backend.merge_tiles(canvas, tiles, values, np.ones_like(pixels))
    covered = inside(tiles, host.shape)[..., None]
    assert_array_equal(backend.download(canvas), np.where(covered, new, host))
    none = Tiles(tiles.host[:0])
    backend.merge_tiles(canvas, none, values[:0], pixels[:0])
    put.assert_untouched()


def test_merge_tiles_takes_what_a_float16_copy_held(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    host, new = (rng.integers(1, 100, (2, 9, 10, 4)).astype(np.float32) for _ in range(2))  # in whole words
    tiles = Tiles(all_tiles(2, 9, 10).host[[13, 2, 8, 5]])
    halves = backend.alloc(host.shape, dtype="float16")
    whole = all_tiles(2, 9, 10)
    backend.narrow_tiles(halves, backend.upload(host), whole, watch=backend.watch_run(), layer=0)
    old, canvas = backend.read_tiles(halves, tiles), backend.upload(new)
    assert old.dtype == np.float16
    backend.merge_tiles(canvas, tiles, old, np.ones((len(tiles), TILE, TILE), bool))
    found, covered = backend.download(canvas), inside(tiles, host.shape)[..., None]
    assert found.dtype == np.float32
    assert_array_equal(found, np.where(covered, host, new))


def test_reading_no_tiles_gives_none(backend: Backend) -> None:
    kept = backend.read_tiles(backend.alloc((1, 5, 5, 2)), Tiles(np.zeros((0, 3), np.int32)))
    assert backend.download(kept).shape == (0, TILE, TILE, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0, 0, 0), (1, 8, 9, 36), (0, 6, 3, 17), (1, 4, 8, 5)], ids=str)
def test_find_non_finite_says_where(backend: Backend, value: float, at: tuple[int, int, int, int]) -> None:
    host, tiles = normal(np.random.default_rng(0), 2, 9, 10, 37), all_tiles(2, 9, 10)
    assert backend.find_non_finite(backend.upload(host), tiles) is None
    host[at] = value
    put = Uploads(backend)
    found = backend.find_non_finite(put(host), tiles)
    assert found == at and all(type(index) is int for index in found)
    elsewhere = Tiles(tiles.host[(tiles.host != (at[0], at[1] // TILE, at[2] // TILE)).any(1)])
    assert backend.find_non_finite(put(host), elsewhere) is None
    assert backend.find_non_finite(put(host), Tiles(tiles.host[:0])) is None
    put.assert_untouched()


def test_find_non_finite_gives_the_first_in_the_order_of_tiles_then_pixels(backend: Backend) -> None:
    host = np.zeros((1, 8, 8, 2), np.float32)
    tiles = Tiles(all_tiles(1, 8, 8).host[[3, 0]])
    for at in ((0, 3, 3, 0), (0, 2, 3, 1), (0, 2, 3, 0), (0, 2, 2, 1), (0, 7, 7, 1), (0, 6, 4, 0)):
        # each comes before all that were set before it
        host[at] = np.nan
        assert backend.find_non_finite(backend.upload(host), tiles) == at


def test_the_largest_values_are_finite_and_indices_always(backend: Backend) -> None:
    host = np.array([np.finfo(np.float32).max, np.finfo(np.float32).min, 1e-45, -0.0], np.float32)
    assert backend.find_non_finite(backend.upload(host.reshape(1, 1, 4, 1)), all_tiles(1, 1, 4)) is None
    indices = np.array([-1, 0, 0x7F800000, 0x7FFFFFFF], np.int32)  # the bits of inf and NaN among them
    assert backend.find_non_finite(backend.upload(indices.reshape(1, 1, 4, 1)), all_tiles(1, 1, 4)) is None


def test_a_watch_gives_the_first_of_its_calls(backend: Backend) -> None:
    """In the order of the calls, not of tiles; values outside the watched tiles do not count."""
    host, tiles = normal(np.random.default_rng(0), 1, 8, 8, 5), all_tiles(1, 8, 8)
    first, last = Tiles(tiles.host[:1]), Tiles(tiles.host[3:])
    broken = host.copy()
    broken[0, 7, 6, 2], broken[0, 1, 2, 4] = np.nan, np.inf
    whole, damaged = backend.upload(host), backend.upload(broken)
    indices = backend.alloc((1, 8, 8, 1), dtype="int32")
    watch = backend.watch_run()
    watch.watch(whole, tiles, 0)
    watch.watch(indices, tiles, 1)
    watch.watch(damaged, Tiles(tiles.host[1:3]), 2)
    watch.watch(damaged, Tiles(tiles.host[:0]), 3)
    assert watch.first_watched() is None
    watch = backend.watch_run()
    watch.watch(whole, tiles, 4)
    watch.watch(damaged, last, 5)
    watch.watch(damaged, first, 6)
    watch.watch(damaged, tiles, 7)
    assert watch.first_watched() == (5, (0, 7, 6, 2))
    assert backend.watch_run().first_watched() is None, "a run begins without what others found"


def test_a_watch_checks_values_as_they_were(backend: Backend) -> None:
    """A later run of a layer, or a roll-back, may have written over them."""
    host, tiles = np.zeros((1, 4, 4, 1), np.float32), all_tiles(1, 4, 4)
    host[0, 3, 1, 0] = np.inf
    canvas, watch = backend.upload(host), backend.watch_run()
    watch.watch(canvas, tiles, 0)
    backend.write_tiles(canvas, tiles, backend.upload(np.zeros((1, TILE, TILE, 1), np.float32)))
    watch.watch(canvas, tiles, 1)
    assert watch.first_watched() == (0, (0, 3, 1, 0))


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("channels", [1, 3, 37])
def test_largest_change_by_tile(backend: Backend, dtype: str, channels: int) -> None:
    rng = np.random.default_rng(0)
    before, after = (rng.integers(-9, 10, (2, 9, 10, channels)).astype(dtype) for _ in range(2))
    tiles = Tiles(rng.permutation(all_tiles(2, 9, 10).host))
    put = Uploads(backend)
    values = backend.read_tiles(put(before), tiles)
    change = backend.largest_change(put(after), tiles, values)
    assert isinstance(change, np.ndarray) and change.dtype == np.float32
    expected = [
        np.abs(after - before)[n, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE].max()
        for n, row, column in tiles.host
    ]
    assert_array_equal(change, expected)
    assert_array_equal(backend.largest_change(put(before), tiles, values), np.zeros(len(tiles)))
    assert backend.largest_change(put(after), Tiles(tiles.host[:0]), values[:0]).shape == (0,)
    put.assert_untouched()


def test_largest_change_counts_no_pixel_outside_the_image(backend: Backend) -> None:
    values = np.full((1, TILE, TILE, 2), 9, np.float32)
    values[0, :1, :2] = [[[1, -2], [0, 0.5]]]
    canvas = backend.alloc((1, 1, 2, 2))
    assert_array_equal(backend.largest_change(canvas, all_tiles(1, 1, 2), backend.upload(values)), [2])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("channels", [2, 6, 64])
@pytest.mark.parametrize(("samples", "size"), [(1, (4, 8)), (2, (9, 10)), (1, (1, 2))], ids=str)
def test_tile_change_is_what_add_tiles_adds(
    backend: Backend, samples: int, size: tuple[int, int], channels: int, half: bool
) -> None:
    rng = np.random.default_rng(0)
    before, after = changed_canvas(rng, backend, samples, size, channels, half=half)
    was, everywhere = backend.download(before).astype(np.float32), all_tiles(samples, *size)
    for host in (everywhere.host[:0], everywhere.host[-1:], rng.permutation(everywhere.host)):
        tiles, put = Tiles(host), Uploads(backend)
        old = backend.read_tiles(before, tiles)
        change = backend.tile_change(put(after), tiles, old)
        assert backend.download(change).dtype == np.float32
        difference = backend.read_tiles(put(after - was), tiles)
        assert_array_equal(backend.download(change), backend.download(difference))
        assert_array_equal(backend.download(old), backend.download(backend.read_tiles(before, tiles)))

        kept, canvas = backend.download(change), backend.upload(was)
        backend.add_tiles(canvas, tiles, change)
        covered = inside(tiles, was.shape)[..., None]
        assert_array_equal(backend.download(canvas), np.where(covered, was + (after - was), was))
        assert_array_equal(backend.download(change), kept)
        put.assert_untouched()


@pytest.mark.parametrize("channels", [1, 3, 37])
def test_tile_change_and_add_tiles_of_odd_channels(backend: Backend, channels: int) -> None:
    rng, tiles = np.random.default_rng(0), Tiles(all_tiles(2, 9, 10).host[::-1])
    host, values = normal(rng, 2, 9, 10, channels), normal(rng, 2, 9, 10, channels)
    canvas, put = backend.upload(host), Uploads(backend)
    added = backend.read_tiles(put(values), tiles)
    backend.add_tiles(canvas, tiles, added)
    assert_array_equal(backend.download(canvas), host + values)
    old = backend.read_tiles(put(host), tiles)
    change = backend.tile_change(canvas, tiles, old)
    expected = backend.read_tiles(put((host + values) - host), tiles)
    assert_array_equal(backend.download(change), backend.download(expected))
    put.assert_untouched()


def test_add_tiles_drops_what_overhangs_the_border(backend: Backend) -> None:
    values = np.full((1, TILE, TILE, 3), np.nan, np.float32)
    values[0, :1, :2] = 2
    canvas = backend.upload(np.ones((1, 1, 2, 3), np.float32))
    backend.add_tiles(canvas, all_tiles(1, 1, 2), backend.upload(values))
    assert (backend.download(canvas) == 3).all()
