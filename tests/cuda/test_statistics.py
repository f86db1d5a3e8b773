"""Statistics and rows on a device, beyond the contract: orders of threads, samples alone, alignment, recorded runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest

from sparsegen.backends import Source, get_backend
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.interface import Array, Backend, Host, Tiles
from tests.backends.contract_cases import all_tiles, assert_same_bits, normal
from tests.cuda.backends import emulated
from tests.cuda.emulator import BACKWARDS, COMPILER, FORWARDS, MISSING, SHUFFLED, libraries
from tests.tolerances import check

pytestmark = pytest.mark.skipif(COMPILER is None, reason=MISSING)


@pytest.fixture
def backend() -> CudaBackend:
    return emulated()


def results(backend: Backend, put: Callable[[Host], Array], out: Callable[..., Array]) -> list[Host]:
    """What every primitive on statistics and rows makes of one set of values."""
    rng, shape = np.random.default_rng(0), (2, 22, 41, 36)
    x, old, film, matrix = normal(rng, *shape), normal(rng, *shape), normal(rng, 2, 72), normal(rng, 36, 36)
    tiles = Tiles(rng.permutation(all_tiles(*shape[:3]).host)[:40])
    canvas = put(x)
    scale = put(normal(rng, 2, 36))
    source = Source((canvas,), scale=scale, shift=scale, activation="silu")
    moments = backend.channel_moments(source)
    as_doubles = tuple(each.astype("float64") for each in backend.channel_moments(Source((canvas,))))
    change = backend.sum_change(canvas, tiles, backend.read_tiles(put(old), tiles))
    followed = backend.follow_moments(
        moments, as_doubles, as_doubles, change, tiles=tiles, size=(22, 41), statistics=0.4
    )
    affine = backend.norm_affine(*moments, groups=4, eps=1e-6, film=put(film))
    rows = backend.linear(moments[0], put(matrix), put(film[0, :36].copy()), activation="tanh")
    joined = backend.join_channels([*moments, rows])
    written = out(*shape)
    backend.pointwise(written, tiles, source, residual=Source((canvas,)))
    return [
        backend.download(each)
        for each in (*moments, change, *chain(*followed), *affine, rows, joined, written)
    ]


def test_bits_depend_on_no_order_of_threads(backend: CudaBackend) -> None:
    def in_order(order: int) -> list[Host]:
        for library in libraries().values():
            library.order(order)
        try:
            return results(backend, backend.upload, lambda *shape: backend.alloc(shape))
        finally:
            for library in libraries().values():
                library.order(FORWARDS)

    expected = in_order(FORWARDS)
    for order in (BACKWARDS, SHUFFLED):
        for got, as_before in zip(in_order(order), expected, strict=True):
            assert_same_bits(got, as_before)


def test_bits_depend_on_no_alignment(backend: CudaBackend) -> None:
    """An array may begin at any float, where four cannot be read at once."""

    def shifted(host: Host) -> Array:
        return backend.upload(np.append(np.float32(0), host))[1:].reshape(host.shape)

    expected = results(backend, backend.upload, lambda *shape: backend.alloc(shape))
    got = results(backend, shifted, lambda *shape: shifted(np.zeros(shape, np.float32)))
    for one, other in zip(got, expected, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("channels", [3, 40])
def test_a_samples_statistics_do_not_depend_on_the_others(backend: CudaBackend, channels: int) -> None:
    rng, shape = np.random.default_rng(0), (3, 30, 50, channels)
    x, old = normal(rng, *shape), normal(rng, *shape)
    tiles = rng.permutation(all_tiles(*shape[:3]).host)[:200]  # in any order, the samples mixed

    def statistics(x: Host, old: Host, tiles: Host) -> list[Host]:
        canvas, some = backend.upload(x), Tiles(tiles)
        change = backend.sum_change(canvas, some, backend.read_tiles(backend.upload(old), some))
        return [backend.download(each) for each in (change, *backend.channel_moments(Source((canvas,))))]

    together = statistics(x, old, tiles)
    for n in range(3):
        own = tiles[tiles[:, 0] == n] * [0, 1, 1]
        alone = statistics(x[n : n + 1], old[n : n + 1], own)
        for got, expected in zip(alone, together, strict=True):
            assert_same_bits(got, expected[n : n + 1])


def test_moments_survive_a_mean_far_beyond_the_deviation(backend: CudaBackend) -> None:
    """A deviation of a few units in the last place, also where the first pixel lies far off."""
    for first in (1e4, -2e5):
        x = normal(np.random.default_rng(0), 1, 40, 30, 5, mean=1e4, std=3e-3)
        x[0, 0, 0] = first
        _, variance = backend.channel_moments(Source((backend.upload(x),)))
        check("rounding", backend.download(variance), x.astype(np.float64).var((1, 2)))


@pytest.mark.parametrize(("rows", "films"), [(1, 3), (3, 1), (3, 3), (1, None)])
@pytest.mark.parametrize("groups", [1, 2, 90])
def test_norms_of_double_moments(backend: CudaBackend, rows: int, films: int | None, groups: int) -> None:
    rng = np.random.default_rng(0)
    mean, variance = normal(rng, rows, 90, mean=3), normal(rng, rows, 90) ** 2
    film = None if films is None else normal(rng, films, 180)
    made = []
    for each in (backend, get_backend("reference")):
        put = each.upload
        moments = put(mean).astype("float64"), put(variance).astype("float64")
        affine = each.norm_affine(*moments, groups=groups, eps=1e-5, film=None if film is None else put(film))
        made.append([each.download(v).astype(np.float64) for v in affine])
    for got, expected in zip(*made, strict=True):
        check("rounding", got, expected)


def test_a_recorded_change_reads_its_old_values_where_a_pointer_says(backend: CudaBackend) -> None:
    rng, shape = np.random.default_rng(0), (2, 13, 18, 6)
    canvas, before, after = backend.alloc(shape), *(backend.upload(normal(rng, *shape)) for _ in range(2))
    lists = [Tiles(rng.permutation(all_tiles(*shape[:3]).host)[:count]) for count in (5, 12)]
    made: list[Array] = []
    place = backend.alloc((0, 4, 4, 6))

    def work() -> None:
        change = backend.sum_change(canvas, lists[0], place)
        made.extend((change, backend.join_channels(backend.channel_moments(Source((canvas,))))))

    recording = backend.record(work, lists[:1], saves=[(canvas, lists[0], place)])
    for tiles in (lists[0], Tiles(lists[1].host[:7])):
        backend.copy_arrays([(canvas, before)])
        saved = recording.save([tiles])
        backend.copy_arrays([(canvas, after)])
        recording.replay([tiles])
        (old,) = saved.arrays()
        assert saved.nbytes == len(tiles) * 16 * 6 * 4
        assert_same_bits(backend.download(old), backend.download(backend.read_tiles(before, tiles)))
        expected = backend.sum_change(canvas, tiles, old), *backend.channel_moments(Source((canvas,)))
        change, moments = map(backend.download, made)
        assert_same_bits(change, backend.download(expected[0]))
        assert_same_bits(moments, backend.download(backend.join_channels(expected[1:])))
