"""The Numba backend's queue: kernels wait in it, in their order, and nobody sees a value that is not computed yet.

Most tests run `late`: no helper comes, so what is queued is computed when somebody waits for it, and not before. Then a
primitive that does not wait for what it reads gives wrong values every time, and not once in a thousand.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sparsegen import Session
from sparsegen.backends import Source
from sparsegen.backends.interface import Tiles
from tests.backends.contract_cases import CASES, all_tiles, assert_contract, build
from tests.networks import (
    assert_same,
    current_labels,
    random_gaugan,
    random_labels,
    random_mobile,
    repaint,
    values,
)
from tests.unets import at, noisy, painted, random_ddpm, random_pd

numba = pytest.importorskip("numba")

from sparsegen.backends.numba_cpu import NumbaBackend, jit, launch, queued, threads  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.handover import shared  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.items import COUNTER, take_items  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.threads import Pool  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.waiting import SLOTS  # noqa: E402  (needs numba)

int64, void = numba.types.int64, numba.types.void


@shared(void(COUNTER, int64, int64[::1], int64))
def add_and_double(counter: Any, items: int, values: Any, added: int) -> None:
    """`values = 2 * (values + added)`: the order of two such kernels shows in the result."""
    for item in take_items(counter, items):
        values[item] = 2 * (values[item] + added)


jit._declared.pop()  # the package's own kernels are counted elsewhere


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel of a queue is computed when somebody waits for it."""

    def start(pool: Pool) -> int:
        threads.drain.ready()
        pool._helpers = 1  # one that is believed to be there
        return 1

    monkeypatch.setattr(Pool, "_start", start)
    monkeypatch.setattr(launch.Launcher, "_threads_for", lambda launcher, items, work: 2)
    monkeypatch.setattr(launch, "available_cores", lambda: 2)


@pytest.mark.parametrize("helpers", [0, 1, 2, 5])
def test_kernels_compute_in_their_order_each_item_once(helpers: int) -> None:
    pool, numbers = Pool(1 + helpers, watchful=True), np.zeros(50, np.int64)
    for _ in range(20):
        numbers[:], expected = 0, 0
        with queued.within():
            for added in range(2 * SLOTS + 3):
                pool.queue(add_and_double.ready(), 50, (numbers, added), 0, 1 + added % (helpers + 1))
                expected = 2 * (expected + added)
        assert (numbers == expected).all()
        assert queued.queue() is None


def test_a_kernel_that_is_waited_for_computes_after_those_in_the_queue(late: None) -> None:
    pool, numbers = Pool(2, watchful=True), np.zeros(4, np.int64)
    with queued.within():
        pool.queue(add_and_double.ready(), 4, (numbers, 1), 0, 2)
        assert (numbers == 0).all(), "nobody has waited"
        pool.run(add_and_double.ready(), 4, (numbers, 3), 0, 2)
        assert (numbers == 10).all()
        pool.queue(add_and_double.ready(), 4, (numbers, 1), 0, 2)
        with queued.outside():
            assert (numbers == 22).all()
            assert not queued.is_within()
        assert queued.is_within()


def test_the_queue_keeps_arrays_until_they_are_used_and_no_longer(late: None) -> None:
    pool, numbers = Pool(2, watchful=True), np.zeros(4, np.int64)
    kept = weakref.ref(numbers)
    with queued.within():
        pool.queue(add_and_double.ready(), 4, (numbers, 1), 0, 2)
        del numbers
        gc.collect()
        assert kept() is not None
    gc.collect()
    assert kept() is None


def test_scratch_is_not_moved_under_a_kernel(late: None) -> None:
    backend, rng = NumbaBackend(2), np.random.default_rng(0)
    small, large = (backend.upload(rng.standard_normal((1, 8, 8, c), np.float32)) for c in (8, 160))
    weights = [
        backend.prepare_conv(rng.standard_normal((c, c, 3, 3), np.float32), None, padding=(1, 1, 1, 1))
        for c in (8, 160)
    ]
    tiles = all_tiles(1, 8, 8)
    outs = [[backend.alloc(each.shape) for each in (small, large)] for _ in range(2)]
    for within, (a, b) in zip((False, True), outs, strict=True):
        threads._local.__dict__.clear()
        threads._local.__init__()  # type: ignore[misc]  # as in a new thread
        with queued.within() if within else queued.outside():
            backend.conv2d(a, tiles, Source((small,)), weights[0])
            backend.conv2d(b, tiles, Source((large,)), weights[1])
    for a, b in zip(*outs, strict=True):
        assert_array_equal(a, b)


def test_an_error_within_a_queue_leaves_nothing_in_it(late: None) -> None:
    pool, numbers = Pool(2, watchful=True), np.zeros(4, np.int64)
    for error in (ValueError, KeyboardInterrupt):
        numbers[:] = 0
        with pytest.raises(error), queued.within():
            pool.queue(add_and_double.ready(), 4, (numbers, 1), 0, 2)
            raise error
        assert (numbers == 2).all()
        assert queued.queue() is None
        assert not queued.is_within()


def test_no_room_for_scratch_within_a_queue_leaves_nothing_in_it(
    late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, numbers = Pool(2, watchful=True), np.zeros(4, np.int64)

    def full(floats: int) -> Any:
        raise MemoryError("no room")

    with queued.within():
        pool.queue(add_and_double.ready(), 4, (numbers, 1), 0, 2)
        monkeypatch.setattr(threads, "scratch", full)
        with pytest.raises(MemoryError, match="no room"):
            pool.queue(add_and_double.ready(), 4, (numbers, 1), 1 << 40, 2)
        assert (numbers == 2).all()
        assert queued.queue() is None
        pool.queue(add_and_double.ready(), 4, (numbers, 1), 0, 2)
    assert (numbers == 6).all()


def test_other_threads_get_their_turn_while_one_queues() -> None:
    pool, mine, theirs = Pool(2, watchful=True), np.zeros(9, np.int64), np.zeros(9, np.int64)

    def work() -> None:
        for _ in range(50):
            pool.run(add_and_double.ready(), 9, (theirs, 0), 0, 2)

    with queued.within():
        pool.queue(add_and_double.ready(), 9, (mine, 0), 0, 2)
        other = threading.Thread(target=work)
        other.start()
        while other.is_alive():
            pool.queue(add_and_double.ready(), 9, (mine, 0), 0, 2)
        other.join()


def test_a_caller_whose_turn_does_not_come_computes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the thread that queues waits for something that this caller holds."""
    monkeypatch.setattr(threads, "PATIENCE", 0.05)
    pool, mine, theirs = Pool(2, watchful=True), np.zeros(9, np.int64), np.zeros(9, np.int64)

    def work() -> None:
        pool.run(add_and_double.ready(), 9, (theirs, 1), 0, 2)
        with queued.within():
            pool.queue(add_and_double.ready(), 9, (theirs, 1), 0, 2)

    with queued.within():
        pool.queue(add_and_double.ready(), 9, (mine, 1), 0, 2)
        other = threading.Thread(target=work)
        other.start()
        other.join(30)
        assert not other.is_alive()
        assert (theirs == 6).all()
    assert (mine == 2).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_finds_computed_what_its_parent_had_queued(late: None) -> None:
    pool, numbers = Pool(2, watchful=True), np.zeros(4, np.int64)
    with queued.within():
        pool.queue(add_and_double.ready(), 4, (numbers, 1), 0, 2)
        child = os.fork()
        if child == 0:
            os._exit(0 if (numbers == 2).all() and queued.queue() is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- primitives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_primitives_hold_the_contract_within_a_queue(name: str, late: None) -> None:
    with queued.within():
        assert_contract(build(name), NumbaBackend(2), np.random.default_rng(len(name)))


def test_primitives_wait_for_what_they_read(late: None) -> None:
    """Each is given what a queued one is about to write, and gives what it gives without a queue."""
    rng = np.random.default_rng(1)
    backend, tiles = NumbaBackend(2), all_tiles(2, 6, 7)
    x, y = (rng.standard_normal((2, 6, 7, 6), np.float32) for _ in range(2))
    pixels = rng.random((len(tiles), 4, 4)) < 0.5
    some = Tiles(tiles.host[1:3])

    def written(kind: str = "float32", values: Any = y) -> Any:
        out, new = (backend.upload(each).astype(kind) for each in (x, values))
        backend.write_tiles(out, tiles, backend.read_tiles(new, tiles))
        return out

    def halves(watch: Any) -> Any:
        out = written("float16")
        backend.narrow_tiles(out, written(), tiles, watch=watch, layer=0)
        return out

    def widened(canvas: Any) -> Any:
        backend.widen_tiles(canvas, written("float16"), tiles)
        return canvas

    def with_values(change: Callable[[Any, Any], None]) -> Any:
        out = written()
        change(out, backend.read_tiles(written(), tiles))
        return out

    mean = np.abs(x[:, 0, 0])
    calls: dict[str, Callable[[], Any]] = {
        "download": lambda: backend.download(written()),
        "read tiles": lambda: backend.read_tiles(written(), some),
        "write tiles, not contiguous": lambda: with_values(
            lambda out, v: backend.write_tiles(out, tiles, v[:, :, ::-1])
        ),
        "write tiles of another type": lambda: with_values(
            lambda out, v: backend.write_tiles(out, tiles, backend.read_tiles(written("float16"), tiles))
        ),
        "add tiles": lambda: with_values(lambda out, v: backend.add_tiles(out, tiles, v)),
        "merge tiles": lambda: with_values(lambda out, v: backend.merge_tiles(out, tiles, v, pixels)),
        "tile change": lambda: backend.tile_change(written(), tiles, backend.read_tiles(written(), tiles)),
        "tile change of halves": lambda: backend.tile_change(
            written(), tiles, backend.read_tiles(written("float16"), tiles)
        ),
        "sum change": lambda: backend.sum_change(
            written(), tiles, backend.read_tiles(written("float16"), tiles)
        ),
        "largest change": lambda: backend.largest_change(written(), tiles, x[:1].repeat(8, 0)[:, :4, :4]),
        "narrow tiles": lambda: halves(backend.watch_run()),
        "widen tiles": lambda: widened(written()),
        "moments": lambda: backend.channel_moments(Source((written(),))),
        "second moments": lambda: backend.second_moments(*backend.channel_moments(Source((written(),)))),
        "joined moments": lambda: backend.join_channels(backend.channel_moments(Source((written(),)))),
        "affine": lambda: backend.norm_affine(
            *backend.channel_moments(Source((written(),))), groups=3, eps=1e-5
        ),
        "affine of doubles": lambda: backend.norm_affine(
            *backend.second_moments(*backend.channel_moments(Source((written(),)))), groups=3, eps=1e-5
        ),
        "linear": lambda: backend.linear(
            backend.channel_moments(Source((written(),)))[0], backend.upload_weight(mean), None
        ),
        "linear of every second row": lambda: backend.linear(
            backend.read_tiles(written(), tiles).reshape(-1, 6)[::2], backend.upload_weight(mean), None
        ),
        "moments of every second column": lambda: backend.channel_moments(Source((written()[:, :, ::2],))),
        "moments of rows by code": lambda: backend.coded_moments(
            written("int32", np.abs(y * 9) % 3), backend.upload(np.abs(x[0, :3, 0]))
        ),
        "copy": lambda: copied(written()),
        "not finite": lambda: backend.find_non_finite(written(values=np.where(y > 2, np.inf, y)), tiles),
    }

    def copied(source: Any) -> Any:
        out = backend.alloc(source.shape)
        backend.copy_arrays([(out, source)])
        return out

    for name, call in calls.items():
        expected = call()  # kept: no result lies where the right one was
        with queued.within():
            result = call()
            backend.synchronize()
        for a, b in zip(_listed(result), _listed(expected), strict=True):
            assert_array_equal(a, b, err_msg=name)


def _listed(result: Any) -> list[Any]:
    return [*result] if isinstance(result, tuple) else [result]


def test_a_watch_finds_what_a_queue_computes(late: None) -> None:
    backend, tiles = NumbaBackend(2), all_tiles(1, 8, 8)
    fine, odd = np.ones((1, 8, 8, 4), np.float32), np.ones((1, 8, 8, 4), np.float32)
    odd[0, 5, 6, 3] = np.inf
    for sources, expected in (
        ((fine, fine), None),
        ((fine, odd), (1, (0, 5, 6, 3))),
        ((odd, odd), (0, (0, 5, 6, 3))),
    ):
        watch = backend.watch_run()
        with backend.queue():
            for layer, source in enumerate(sources):
                out = backend.alloc(source.shape)
                if not backend.pointwise(out, tiles, Source((source,))):
                    watch.watch(out, tiles, layer)
        assert watch.first_watched() == expected


@pytest.mark.parametrize("channels", [4, 16])  # rewritten by NumPy, and by a kernel
@pytest.mark.parametrize("spoiled", [False, True])
@pytest.mark.parametrize(("value", "layer"), [(1e6, 1), (np.inf, 0)])
def test_a_watch_tells_a_value_that_is_lost_from_one_that_is_not_finite(
    channels: int, spoiled: bool, value: float, layer: int, late: None
) -> None:
    backend, tiles = NumbaBackend(2), all_tiles(1, 8, 8)
    large, odd = (np.full((1, 8, 8, channels), each, np.float32) for each in (1, np.inf))
    large[0, 5, 6, 3] = value
    watch = backend.watch_run()
    with backend.queue():
        out, after = backend.alloc(large.shape), backend.alloc(large.shape)
        assert not backend.pointwise(out, tiles, Source((large,))), "nobody knows yet"
        watch.watch(out, tiles, 0)
        backend.narrow_tiles(backend.alloc(out.shape, dtype="float16"), out, tiles, watch=watch, layer=1)
        if spoiled:
            backend.pointwise(after, tiles, Source((odd,)))
            watch.watch(after, tiles, 2)
    assert watch.first_watched() == (layer, (0, 5, 6, 3))


# -- networks --------------------------------------------------------------------------------------------


def _of_labels(make: Callable[..., Any]) -> Callable[[NumbaBackend], Any]:
    def histories(backend: NumbaBackend) -> Any:
        rng = np.random.default_rng(3)
        session = Session(make(), backend)
        session.run(random_labels(rng))
        yield values(session)
        for policy in ("paper", "exact", "adaptive(0.02)", "paper"):
            session.edit(repaint(rng, current_labels(session)), policy=policy)
            yield values(session)
        session.undo()
        yield values(session)
        session.run(random_labels(rng))
        yield values(session)

    return histories


def _of_noise(make: Callable[..., Any], storage: str) -> Callable[[NumbaBackend], Any]:
    def histories(backend: NumbaBackend) -> Any:
        rng = np.random.default_rng(3)
        model, x = make(), noisy(rng)
        session = Session(model, backend, storage=storage, policy="fast")
        for _ in range(2):
            session.run(x, **at(model))
            yield values(session)
            for policy in ("paper", "fast", "exact"):
                x = painted(rng, x)
                session.edit(x, policy=policy)
                yield values(session)
            session.undo()
            yield values(session)

    return histories


@pytest.mark.parametrize(
    "history",
    [
        *(pytest.param(_of_labels(each), id=each.__name__) for each in (random_gaugan, random_mobile)),
        *(
            pytest.param(_of_noise(each, kind), id=f"{each.__name__}, {kind}")
            for each in (random_ddpm, random_pd)
            for kind in ("float32", "float16")
        ),
    ],
)
def test_sessions_have_the_same_bits_however_late_kernels_compute(
    history: Callable[[NumbaBackend], Any], late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted = []
    post = Pool.queue

    def counted(pool: Pool, *given: Any) -> None:
        post(pool, *given)
        posted.append(queued.queue() is not None)

    monkeypatch.setattr(Pool, "queue", counted)
    with_queue = list(history(NumbaBackend(2)))
    assert sum(posted) > 100, "they were queued"
    with monkeypatch.context() as patch:
        patch.setattr(NumbaBackend, "queue", lambda backend: queued.outside())
        without = list(history(NumbaBackend(2)))
    for a, b in zip(with_queue, without, strict=True):
        assert_same(a, b)
