"""The Numba backend's threads: as many as asked for, none that is waited for in vain, none that writes too late."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

from sparsegen.backends import BackendError, get_backend
from sparsegen.backends.interface import Host

numba = pytest.importorskip("numba")

from sparsegen.backends.numba_cpu import NumbaBackend, cores, jit, launch, threads  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.atomics import next_item, pause, watched, word_set  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.handover import shared  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.items import COUNTER, take_items  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.regions import SCRATCH  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.threads import Pool  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.waiting import ROOM  # noqa: E402  (needs numba)
from tests.backends.numba_work import worked  # noqa: E402  (needs numba)

int64, void = numba.types.int64, numba.types.void


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel runs in as many threads as it may, however little there is to do."""
    monkeypatch.setattr(launch, "ALONE", 0.0)


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 6, 8, 12])
def test_no_thread_is_without_an_item_and_no_batch_too_large(threads: int, eager: None) -> None:
    launcher = launch.Launcher(threads)
    for tiles in (*range(1, 60), 64, 100, 128, 300, 3000):
        for panels in (1, 2, 3, 16, 64):
            batch, shares = launcher.items(tiles, 48, panels, 1e9, least=5)
            assert 1 <= batch <= 48
            assert 1 <= shares <= panels
            if panels >= threads or tiles >= threads**2:
                assert -(-tiles // batch) * shares >= threads


def test_threads_take_tiles_of_their_own_where_each_gets_a_few() -> None:
    launcher = launch.Launcher(2)
    assert launcher.items(10, 48, 16, 1e9, least=5) == (5, 1)
    assert launcher.items(9, 48, 16, 1e9, least=5) == (9, 2)
    assert launcher.items(9, 48, 1, 1e9, least=5) == (5, 1)  # nothing but tiles to share
    assert launcher.items(64, 48, 16, 1e9, least=24) == (32, 1)


def helpers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("sparsegen-")}


def test_threads_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_backend("numba", threads=3).threads == 3  # type: ignore[attr-defined]  # it is NumbaBackend
    monkeypatch.setenv("SPARSEGEN_THREADS", "2")
    assert get_backend("numba") is get_backend("numba", threads=2)
    monkeypatch.delenv("SPARSEGEN_THREADS")
    assert NumbaBackend().threads == cores.available_cores() >= 1


def test_threads_start_with_the_first_work_for_them_and_end_with_their_backend(eager: None) -> None:
    gc.collect()
    before = helpers()
    backend = NumbaBackend(4)
    assert helpers() == before, "a backend that has computed nothing needs no thread"
    worked(backend)
    started = helpers() - before
    assert len(started) == 3, "the caller is one of the four"
    worked(NumbaBackend(1))
    assert helpers() - before == started
    del backend
    gc.collect()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


@shared(void(COUNTER, int64, int64[::1], SCRATCH))
def meet(counter: Any, items: int, met: Any, scratch: Any) -> None:
    """Item i waits for a thread at each other item; `met[i]` is 2 where all came and its scratch is its own."""
    for item in take_items(counter, items):
        scratch[len(scratch) - 1] = item
        for value in (1, 2):
            if value == 1 or scratch[len(scratch) - 1] == item:
                word_set(met, item, value)
            for other in range(items):
                polls = 0
                while watched(met, other) < value and polls < MANY:
                    polls += 1
                    pause()


@shared(void(COUNTER, int64, int64[::1], int64[::1], SCRATCH))
def hold(counter: Any, items: int, release: Any, written: Any, scratch: Any) -> None:
    """Every thread takes an item and all but the caller, whose scratch begins with `MARK`, hold it until released."""
    for item in take_items(counter, items):
        while watched(counter, 0) < items:
            pause()
        if scratch[0] != MARK:
            while watched(release, 0) == 0:
                pause()
            for _ in range(100000):
                pause()
            word_set(written, item, 1)


@shared(void(COUNTER, int64, int64[::1]))
def count(counter: Any, items: int, times: Any) -> None:
    """How many times each item is taken."""
    for item in take_items(counter, items):
        next_item(times[item : item + 1])


MANY = 10**9
"""Polls that take some ten seconds."""
MARK = 7.0
del jit._declared[-3:]  # the package's own kernels are counted elsewhere


def met(pool: Pool, threads: int, floats: int = 1000) -> bool:
    """Whether that many threads of a pool come to a kernel, each with so many floats of scratch of its own."""
    found = np.zeros(threads, np.int64)
    pool.run(meet.ready(), threads, (found,), floats, threads)
    return bool((found == 2).all())


@pytest.mark.parametrize("room", [0, 1, 2])
def test_where_no_more_threads_can_start_those_that_run_do_the_work(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """As under `ulimit -u` or `ulimit -v`: Python raises RuntimeError."""
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if len(started) == room:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    pool = Pool(4, watchful=True)
    for _ in range(3):
        times = np.zeros(40, np.int64)
        pool.run(count.ready(), 40, (times,), 0, 4)
        assert (times == 1).all()
        assert met(pool, room + 1)
    assert len(started) == room


@pytest.mark.parametrize("watchful", [True, False])
def test_every_thread_takes_part_and_has_scratch_of_its_own(watchful: bool) -> None:
    pool = Pool(3, watchful=watchful)
    for floats in (1000, 16, 50000):
        assert met(pool, 3, floats)


@pytest.mark.parametrize("watchful", [True, False])
def test_helpers_come_whether_they_are_awake_or_asleep(watchful: bool) -> None:
    pool = Pool(3, watchful=watchful)
    for i in range(300):
        if i % 5 == 4:
            time.sleep(0.003)  # they sleep
        assert met(pool, 2 + i % 2)


def test_no_helper_comes_that_is_not_wanted() -> None:
    pool = Pool(4, watchful=True)
    assert met(pool, 4)
    for _ in range(100):
        release, written = np.zeros(1, np.int64), np.zeros(2, np.int64)
        mark()
        release[0] = 1
        pool.run(hold.ready(), 2, (release, written), 16, 2)
        assert written.sum() == 1, "the caller and one helper took the two items"


def mark() -> None:
    """Let the scratch of this thread begin with `MARK`."""
    threads._local.room(16)
    threads._local.scratch[0] = MARK


def test_kernels_at_once_take_turns_and_compute_every_item_once() -> None:
    pool, wrong = Pool(3, watchful=True), []

    def work() -> None:
        for _ in range(300):
            times = np.zeros(30, np.int64)
            pool.run(count.ready(), 30, (times,), 0, 3)
            if not (times == 1).all():
                wrong.append(times)

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    assert not wrong


@pytest.mark.parametrize("watchful", [True, False])
def test_idle_helpers_sleep(watchful: bool) -> None:
    pool = Pool(3, watchful=watchful)
    assert met(pool, 3)
    time.sleep(0.05)  # they have looked long enough
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_where_there_is_no_room_for_scratch_the_pool_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(3, watchful=True)
    assert met(pool, 3, 16)
    given = threads.scratch

    def full(floats: int) -> Host:
        if threading.current_thread() is threading.main_thread() and floats == 123456:
            raise MemoryError("no room")
        return given(floats)

    threads._local.room(123456)  # the caller has its own
    with monkeypatch.context() as patch:
        patch.setattr(threads, "scratch", full)
        for _ in range(2):
            with pytest.raises(MemoryError, match="no room"):
                met(pool, 3, 123456)
            assert met(pool, 3, 16)
    assert met(pool, 3, 123456)


def test_no_array_stays_behind() -> None:
    pool = Pool(2, watchful=True)
    canvas = np.zeros(2, np.int64)
    kept = weakref.ref(canvas)
    pool.run(count.ready(), 2, (canvas,), 0, 2)
    del canvas
    gc.collect()
    assert kept() is None


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
def test_an_interrupt_waits_for_every_thread_that_writes() -> None:
    pool, main = Pool(3), threading.get_ident()
    assert met(pool, 3)
    release, written = np.zeros(1, np.int64), np.zeros(3, np.int64)

    def interrupt() -> None:
        for _ in range(3):
            time.sleep(0.1)
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.1)
        release[0] = 1

    sender = threading.Thread(target=interrupt)
    # a process that a shell starts in the background ignores Ctrl-C
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    mark()
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.run(hold.ready(), 3, (release, written), 16, 3)
        assert written.sum() == 2, "a thread still writes although the caller goes on"
    finally:
        sender.join()
        signal.signal(signal.SIGINT, handler)
    assert met(pool, 3), "the helpers are there for the next kernel"


def test_arguments_without_room_are_refused_when_the_kernel_is_compiled() -> None:
    many = [int64[::1]] * (ROOM // 56 + 1)

    def takes(counter: Any, items: int, arrays: Any) -> None: ...

    large = shared(void(COUNTER, int64, numba.types.UniTuple(int64[::1], len(many))))(takes)
    jit._declared.pop()
    with pytest.raises(TypeError, match=f"take more than {ROOM} bytes"):
        large.ready()


@pytest.mark.parametrize("threads", [0, -2])
def test_no_threads_are_refused(threads: int) -> None:
    with pytest.raises(BackendError, match=f"threads is {threads}, expected a whole number, 1 or more"):
        NumbaBackend(threads)
