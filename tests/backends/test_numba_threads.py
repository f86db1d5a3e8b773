"""The Numba backend's threads: as many as asked for, none that is waited for in vain, none that writes too late."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from sparsegen.backends import BackendError, get_backend
from sparsegen.backends.interface import Host

numba = pytest.importorskip("numba")

from sparsegen.backends.numba_cpu import NumbaBackend, cores, launch  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.jit import compile_all  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.threads import Pool  # noqa: E402  (needs numba)
from tests.backends.numba_work import worked  # noqa: E402  (needs numba)


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
        meet, seen = threading.Barrier(room + 1), []

        def call(counter: Host, scratch: Host, meet: Any = meet, seen: Any = seen) -> None:
            meet.wait(10)
            seen.append(threading.get_ident())

        pool.count(call, 0, 4)
        assert len(set(seen)) == room + 1
    assert len(started) == room and pool._jobs.empty(), "a job waits for a thread that does not exist"


def test_every_thread_takes_part_and_has_scratch_of_its_own() -> None:
    pool, meet = Pool(3), threading.Barrier(3)
    seen = []

    def call(scratch: Host) -> None:
        meet.wait(10)
        assert len(scratch) >= 1000 and scratch.ctypes.data % 64 == 0
        seen.append((threading.get_ident(), scratch.ctypes.data))

    for _ in range(3):
        pool.run(call, 1000, 99)
    assert len(seen) == 9 and len(set(seen)) == 3 and len({data for _, data in seen}) == 3


@pytest.fixture
def watchful() -> Pool:
    """A pool whose helpers have looked out for a kernel before: they are awake."""
    compile_all()
    pool = Pool(3, watchful=True)
    pool.count(lambda counter, scratch: None, 0, 3)
    return pool


def test_helpers_come_to_kernels_that_are_watched_and_to_others(watchful: Pool) -> None:
    for i in range(300):
        meet, taken = threading.Barrier(3), []

        def call(counter: Host, scratch: Host, meet: Any = meet, taken: Any = taken) -> None:
            assert counter.dtype == np.int64 and counter.shape == (1,)
            counter[0] += 1  # as a kernel does with its first item
            taken.append(threading.get_ident())
            meet.wait(10)

        if i % 5 == 4:
            time.sleep(0.003)  # they sleep
        if i % 7 == 6:
            counter = np.zeros(1, np.int64)
            watchful.run(lambda scratch, call=call, counter=counter: call(counter, scratch), 0, 3)
        else:
            watchful.count(call, 0, 3)
        assert len(set(taken)) == 3


def test_kernels_at_once_have_counters_of_their_own(watchful: Pool) -> None:
    meet, seen = threading.Barrier(2), {}

    def give(name: str) -> None:
        def call(counter: Host, scratch: Host) -> None:
            if threading.current_thread().name == name:
                seen[name] = counter
                meet.wait(10)  # both are under way

        watchful.count(call, 0, 2)

    threads = [threading.Thread(target=give, args=(name,), name=name) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not np.shares_memory(seen["one"], seen["other"])


def test_idle_helpers_sleep(watchful: Pool) -> None:
    watchful.count(lambda counter, scratch: None, 0, 3)
    time.sleep(0.05)  # they have looked long enough
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_a_failure_leaves_nothing_to_look_out_for(watchful: Pool) -> None:
    def fail(counter: Host, scratch: Host) -> None:
        counter[0] += 1
        raise MemoryError("no room")

    for _ in range(3):
        with pytest.raises(MemoryError):
            watchful.count(fail, 0, 1 + 2)
        seen: list[Host] = []
        watchful.count(lambda counter, scratch, seen=seen: seen.append(counter.copy()), 0, 3)
        assert all(counter[0] == 0 for counter in seen) and seen


def test_a_failure_in_any_thread_is_raised_where_the_work_was_given_and_leaves_the_pool_whole() -> None:
    pool, main = Pool(3), threading.get_ident()
    for failing in (True, False):
        meet = threading.Barrier(3)

        def call(_: Host, failing: bool = failing, meet: threading.Barrier = meet) -> None:
            meet.wait(10)
            if (threading.get_ident() == main) == failing:
                raise MemoryError("no room")

        with pytest.raises(MemoryError, match="no room"):
            pool.run(call, 0, 3)
    meet, count = threading.Barrier(3), []
    pool.run(lambda _: count.append(meet.wait(10)), 0, 3)
    assert len(count) == 3


def test_work_does_not_wait_for_threads_that_are_busy_with_other_work() -> None:
    """A helper that comes when no item is left finds nothing to do, and nobody waiting for it."""
    pool, busy, release = Pool(2), threading.Barrier(3), threading.Event()

    def long(_: Host) -> None:
        busy.wait(10)
        release.wait(20)

    other = threading.Thread(target=pool.run, args=(long, 0, 2))
    other.start()
    busy.wait(10)  # the pool's only helper, and the other session's own thread
    late = []
    try:
        for _ in range(50):
            pool.run(lambda _: late.append(threading.get_ident()), 0, 2)
        assert not release.is_set()
    finally:
        release.set()
        other.join(20)
    meet = threading.Barrier(2)
    pool.run(
        lambda _: meet.wait(10) and None, 0, 2
    )  # the helper is there again, and has been through its queue
    assert late == [threading.get_ident()] * 50, "a helper worked on what was over"


def test_a_canvas_does_not_stay_for_a_helper_that_comes_too_late() -> None:
    pool, busy, release = Pool(2), threading.Barrier(3), threading.Event()

    def long(_: Host) -> None:
        busy.wait(10)
        release.wait(20)

    other = threading.Thread(target=pool.run, args=(long, 0, 2))
    other.start()
    busy.wait(10)
    try:
        canvas = np.zeros(3)
        kept = weakref.ref(canvas)
        pool.run(lambda _, canvas=canvas: None, 0, 2)
        del canvas
        gc.collect()
        assert kept() is None
    finally:
        release.set()
        other.join(20)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
def test_an_interrupt_waits_for_every_thread_that_writes() -> None:
    pool, main, release = Pool(3), threading.get_ident(), threading.Event()
    written, meet, met = [], threading.Barrier(3), threading.Event()

    def call(_: Host) -> None:
        meet.wait(10)
        met.set()  # an interrupt before that would find no thread that has begun
        if threading.get_ident() != main:
            release.wait(20)
            time.sleep(0.05)
            written.append(1)

    def interrupt() -> None:
        met.wait(10)
        for _ in range(3):
            time.sleep(0.1)
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.1)
        release.set()

    sender = threading.Thread(target=interrupt)
    # a process that a shell starts in the background ignores Ctrl-C
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        pool.run(call, 0, 3)
    assert len(written) == 2, "a thread still writes although the caller goes on"
    sender.join()
    signal.signal(signal.SIGINT, handler)


def test_an_interrupt_while_work_is_handed_out_waits_for_who_began() -> None:
    pool, began = Pool(3), threading.Event()
    pool.run(lambda _: None, 0, 3)  # its threads run
    written = []

    class Interrupting:
        """The pool's queue; after the first job is handed out and begun, Ctrl-C is pressed."""

        def __init__(self, jobs: SimpleQueue[Any]) -> None:
            self.jobs = jobs

        def put(self, job: Any) -> None:
            self.jobs.put(job)
            assert began.wait(10)
            raise KeyboardInterrupt

    def call(_: Host) -> None:
        began.set()
        time.sleep(0.1)
        written.append(1)

    jobs = pool._jobs
    pool._jobs = Interrupting(jobs)  # type: ignore[assignment]  # it quacks
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.run(call, 0, 3)
        assert written == [1], "a helper still writes although the caller goes on"
    finally:
        pool._jobs = jobs
    meet = threading.Barrier(3)
    pool.run(lambda _: meet.wait(10) and None, 0, 3)


@pytest.mark.parametrize("threads", [0, -2])
def test_no_threads_are_refused(threads: int) -> None:
    with pytest.raises(BackendError, match=f"threads is {threads}, expected a whole number, 1 or more"):
        NumbaBackend(threads)
