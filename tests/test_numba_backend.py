"""What is the Numba backend's own: bits that no thread or process changes, its threads, its cache of kernels."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
from contract_cases import CASES, all_tiles, assert_contract, assert_same_bits, build, normal
from networks import assert_same, random_gaugan, random_labels, repaint, values
from tolerances import check

from sparsegen import Session
from sparsegen.backends import Backend, BackendError, Source, get_backend
from sparsegen.backends.interface import Host

numba = pytest.importorskip("numba")

from sparsegen.backends.numba_cpu import NumbaBackend, jit  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu import launch as module  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.target import TARGET  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.threads import Pool  # noqa: E402  (needs numba)

HERE = Path(__file__).parent


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel runs in as many threads as it may, however little there is to do."""
    monkeypatch.setattr(module, "ALONE", 0.0)


def worked(backend: Backend, seed: int = 0) -> dict[str, Host]:
    """What a session holds after a run and two edits of a network that takes every kernel of GauGAN's."""
    rng = np.random.default_rng(seed)
    session = Session(random_gaugan(1, ngf=4, nhidden=12, norm="instance"), backend)
    labels = random_labels(rng, (2, 32, 64))
    session.run(labels)
    for policy in ("paper", "exact"):
        labels = repaint(rng, labels)
        session.edit(labels, policy=policy)
    return values(session)


def digest(threads: int) -> str:
    """`worked` in one line, computed by a backend of its own; also what other processes run."""
    module.ALONE = 0.0
    found = worked(NumbaBackend(threads))
    return hashlib.sha256(b"".join(found[path].tobytes() for path in sorted(found))).hexdigest()


# -- the same bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_change_no_bit_of_a_session(eager: None, threads: int) -> None:
    expected = worked(NumbaBackend(1))
    backend = NumbaBackend(threads)
    for _ in range(2):
        assert_same(worked(backend), expected)


def test_threads_change_no_bit_of_any_primitive(eager: None) -> None:
    one, three = NumbaBackend(1), NumbaBackend(3)
    for name in CASES:
        case = build(name)
        assert_same_bits(case.run(three, case.tiles), case.run(one, case.tiles))
    source = Source((normal(np.random.default_rng(0), 2, 40, 30, 21),))
    for a, b in zip(one.channel_moments(source), three.channel_moments(source), strict=True):
        assert_same_bits(a, b)


def test_the_number_of_items_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """However a kernel's work is cut: in one thread, for many, in batches of other sizes."""
    source = Source((normal(np.random.default_rng(0), 1, 48, 52, 40),))
    weight = normal(np.random.default_rng(1), 72, 40, 3, 3, std=1 / 19)
    results = []
    for threads, alone in ((1, 1e7), (1, 0.0), (2, 0.0), (7, 0.0), (64, 0.0)):
        monkeypatch.setattr(module, "ALONE", alone)
        for direct in (False, True):
            backend = NumbaBackend(threads, direct=direct)
            out = backend.alloc((1, 48, 52, 72))
            weights = backend.prepare_conv(weight, None, padding=(1, 1, 1, 1))
            backend.conv2d(out, all_tiles(1, 48, 52), source, weights)
            results.append(out)
    for result in results[2::2]:
        assert_same_bits(result, results[0])
    for result in results[3::2]:
        assert_same_bits(result, results[1])


def test_another_process_computes_the_same_bits() -> None:
    code = "from test_numba_backend import digest; print(digest({}))"
    for threads in (1, 3):
        done = subprocess.run(
            [sys.executable, "-c", code.format(threads)],
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == in_this_process(2)


def in_this_process(threads: int) -> str:
    """`digest`, and the module as it was."""
    before = module.ALONE
    try:
        return digest(threads)
    finally:
        module.ALONE = before


@pytest.mark.parametrize("shared", [True, False], ids=["one backend", "a backend each"])
def test_sessions_in_several_threads_at_once_compute_the_bits_of_one_alone(eager: None, shared: bool) -> None:
    alone = [worked(NumbaBackend(1), seed) for seed in range(4)]
    backends = [NumbaBackend(2)] * 4 if shared else [NumbaBackend(2) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            for found, expected in zip(pool.map(worked, backends, range(4)), alone, strict=True):
                assert_same(found, expected)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_child_process_computes(method: str, eager: None) -> None:
    """Also one forked from a process whose pool has threads, which the child does not inherit."""
    backend = NumbaBackend(3)
    worked(backend)
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of any fork of a process with threads; this is the test that ours bear it
        warnings.simplefilter("ignore", DeprecationWarning)
        child = context.Process(target=_child, args=(theirs, backend if method == "fork" else None))
        child.start()
    try:
        assert ours.poll(120), "the child does not answer"
        assert ours.recv() == in_this_process(3)
    finally:
        child.kill()
        child.join()
    assert_same(worked(backend), worked(NumbaBackend(1)))


def _child(pipe: Any, backend: NumbaBackend | None) -> None:
    if backend is not None:
        worked(backend)  # the parent's own
    pipe.send(digest(3))


# -- threads ---------------------------------------------------------------------------------------------


def helpers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("sparsegen-")}


def test_threads_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_backend("numba", threads=3).threads == 3  # type: ignore[attr-defined]  # it is NumbaBackend
    monkeypatch.setenv("SPARSEGEN_THREADS", "2")
    assert get_backend("numba") is get_backend("numba", threads=2)
    monkeypatch.delenv("SPARSEGEN_THREADS")
    assert NumbaBackend().threads == module.available_cores() >= 1


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


def test_a_failure_in_any_thread_is_raised_where_the_work_was_given_and_leaves_the_pool_whole() -> None:
    pool, main = Pool(3), threading.get_ident()
    for failing in (True, False):

        def call(_: Host, failing: bool = failing) -> None:
            if (threading.get_ident() == main) == failing:
                raise MemoryError("no room")

        with pytest.raises(MemoryError, match="no room"):
            pool.run(call, 0, 3)
    count = []
    pool.run(lambda _: count.append(1), 0, 3)
    assert len(count) == 3


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
def test_an_interrupt_waits_for_every_thread_that_writes() -> None:
    pool, main, release = Pool(3), threading.get_ident(), threading.Event()
    written = []

    def call(_: Host) -> None:
        if threading.get_ident() != main:
            release.wait(20)
            time.sleep(0.05)
            written.append(1)

    def interrupt() -> None:
        for _ in range(3):
            time.sleep(0.1)
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.1)
        release.set()

    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        pool.run(call, 0, 3)
    assert len(written) == 2, "a thread still writes although the caller goes on"
    sender.join()


# -- algorithms ------------------------------------------------------------------------------------------


def test_direct_convolutions_are_closer_to_the_formula() -> None:
    backend = NumbaBackend(direct=True)
    for name in (name for name in CASES if name.startswith("conv")):
        case = build(name)
        check("conv2d, direct", case.run(backend, case.tiles), case.oracle, largest=case.largest)
    weight = np.zeros((16, 16, 3, 3), np.float32)
    assert NumbaBackend().prepare_conv(weight, None).whole_tiles
    assert not backend.prepare_conv(weight, None).whole_tiles


@pytest.mark.parametrize("side", [4, 8, 12, 64, 128])
@pytest.mark.parametrize("inputs", [7, 8, 130])
def test_any_algorithm_holds_the_contract_at_the_size_it_is_chosen_for(side: int, inputs: int) -> None:
    backend, rng = NumbaBackend(2), np.random.default_rng(side)
    weight, v = normal(rng, 24, inputs, 3, 3, std=(9 * inputs) ** -0.5), normal(rng, 1, 12, 12, inputs)
    weights = backend.prepare_conv(weight, None, padding=(1, 1, 1, 1), size=(side, side))
    out = backend.alloc((1, 12, 12, 24))
    backend.conv2d(out, all_tiles(1, 12, 12), Source((v,)), weights)
    check("conv2d", out, naive.conv2d(v, weight, padding=(1, 1, 1, 1)))
    some = np.full_like(out, np.nan)
    backend.conv2d(some, all_tiles(1, 12, 12)[[7, 2]], Source((v,)), weights)
    assert_same_bits(some[:, 8:, 4:8], out[:, 8:, 4:8])
    assert np.isnan(some).sum() == out.size - 2 * 16 * 24


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_in_16_bits_round_weights_and_nothing_else(stored: Any) -> None:
    backend, rng = NumbaBackend(2, weights=stored), np.random.default_rng(0)
    for name in ("conv 3×3, many channels", "conv 1×1, whole epilogue", "conv 3×3, groups", "conv 5×5"):
        case = build(name)
        check(f"weights in {stored}", case.run(backend, case.tiles), case.oracle, largest=case.largest)
    # powers of two lose nothing: the contract as it is
    v, weight = normal(rng, 1, 12, 12, 9), 2.0 ** rng.integers(-3, 3, (5, 9, 1, 1)).astype(np.float32)
    weights, out = backend.prepare_conv(weight, None), backend.alloc((1, 12, 12, 5))
    backend.conv2d(out, all_tiles(1, 12, 12), Source((v,)), weights)
    check("conv2d", out, naive.conv2d(v, weight))
    assert_contract(build("lookup, two samples"), backend, rng)


def test_weights_stored_in_no_known_way_are_refused() -> None:
    with pytest.raises(BackendError, match=r"'float8'.*float32"):
        NumbaBackend(weights="float8")  # type: ignore[arg-type]  # what a caller may get wrong


# -- the cache of kernels --------------------------------------------------------------------------------


def test_kernels_are_kept_where_the_user_says_else_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARSEGEN_CACHE_DIR", str(tmp_path / "mine"))
    assert jit.user_folder() == tmp_path / "mine"
    monkeypatch.setenv("SPARSEGEN_CACHE_DIR", "")
    for system, variable, expected in (
        ("linux", "XDG_CACHE_HOME", tmp_path / "sparsegen"),
        ("win32", "LOCALAPPDATA", tmp_path / "sparsegen"),
        ("darwin", "XDG_CACHE_HOME", Path.home() / "Library" / "Caches" / "sparsegen"),
    ):
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setenv(variable, str(tmp_path))
        assert jit.user_folder() == expected


def test_a_new_cache_folder_is_the_users_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert jit._usable(folder) == folder
    assert jit._usable(folder) == folder, "and stays in use"
    assert not list(folder.iterdir())
    if sys.platform != "win32":
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where folders for one process are made."""
    (tmp_path / "private").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "private"))
    return tmp_path / "private"


def kernels(folder: Path) -> Path:
    """A folder with something in it that would be run."""
    (folder / "winograd").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    (folder / "winograd" / "convolve.nbc").write_bytes(b"machine code")
    return folder


def content(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError(13, "Permission denied")


def test_a_file_where_the_folder_should_be_is_survived(private: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already")
    for folder in (tmp_path / "file", tmp_path / "file" / "kernels"):
        used = jit._usable(folder)
        assert used.parent == private and not content(used)
    assert (tmp_path / "file").read_text() == "here already"


def test_a_folder_that_cannot_be_made_is_survived(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        used = jit._usable(tmp_path / "kernels")
    assert used.parent == private and not content(used)


def test_a_folder_that_cannot_be_written_is_copied(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # as root, permissions refuse nothing
    folder = kernels(tmp_path / "kernels")
    used = jit._usable(folder)
    assert used.parent == private and content(used) == ["winograd/convolve.nbc"]
    assert content(folder) == ["winograd/convolve.nbc"]


posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no owners and modes to ask for")


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
@pytest.mark.parametrize("writable", [True, False])
def test_nothing_is_loaded_from_where_others_may_write(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, writable: bool
) -> None:
    folder = kernels(tmp_path / "kernels")
    folder.chmod(mode)
    if not writable:
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    used = jit._usable(folder)
    assert used.parent == private and not content(used)


@posix
def test_nothing_is_loaded_from_another_users_folder_but_the_administrators(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kernels(tmp_path / "kernels")
    real = os.stat(folder)
    for owner, trusted in ((real.st_uid + 12345, False), (0, True)):

        class Stat:
            st_uid, st_mode = owner, real.st_mode

        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: 54321)
            patch.setattr(Path, "stat", lambda _, Stat=Stat, **__: Stat())
            used = jit._usable(folder)
        assert used.parent == private
        assert content(used) == (["winograd/convolve.nbc"] if trusted else [])


def test_other_functions_of_numba_keep_their_own_cache() -> None:
    assert Path(numba.config.CACHE_DIR or "/nowhere") != jit.cache_folder()
    stats = [Path(compiled.stats.cache_path) for compiled, _ in jit._declared]
    assert stats and all(path.is_relative_to(jit.cache_folder()) for path in stats)


@pytest.mark.slow
def test_a_cold_cache_is_filled_once_also_by_two_processes_and_says_so(tmp_path: Path) -> None:
    """One of this test's processes compiles; it takes the time that a user waits for the first result."""
    code = "from test_numba_backend import digest; print(digest(2))"
    environment = {**os.environ, "SPARSEGEN_CACHE_DIR": str(tmp_path / "cache")}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=HERE,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    both = [start(), start()]
    outputs = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    third = start()
    out, said = third.communicate(timeout=300)
    assert third.returncode == 0 and said == "", "what is compiled is loaded, without a word"
    assert {o.strip() for o, _ in outputs} == {out.strip()} == {in_this_process(2)}
    for _, said in outputs:
        before, after = said.splitlines()
        assert re.fullmatch(r"sparsegen: compiling \d+ kernels for this processor, once \(.*\) …", before)
        assert re.fullmatch(rf"sparsegen: compiled in \d+ s; kept in {tmp_path}/cache/.*", after)


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_stored_in_16_bits_are_widened_as_they_are(stored: str, kernel: int) -> None:
    """The bits of a convolution by weights that were rounded before, in half the memory."""
    if stored == "float16" and not TARGET.half:
        pytest.skip("this processor cannot widen float16")
    rng = np.random.default_rng(0)
    weight = normal(rng, 40, 700, kernel, kernel, std=1 / 30)  # deeper than the pieces it is multiplied in
    if stored == "float16":
        rounded = weight.astype(np.float16).astype(np.float32)
    else:
        bits = weight.view(np.uint32).astype(np.uint64)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    source, results, sizes = Source((normal(rng, 1, 9, 10, 700),)), [], []
    for backend, given in (
        (NumbaBackend(direct=True, weights=stored), weight),
        (NumbaBackend(direct=True), rounded),
    ):
        weights = backend.prepare_conv(given, None, padding=(kernel // 2,) * 4, size=(9, 10))
        out = backend.alloc((1, 9, 10, 40))
        backend.conv2d(out, all_tiles(1, 9, 10), source, weights)
        results.append(out)
        sizes.append(weights.packed.values.floats.nbytes + weights.packed.values.halves.nbytes)
    assert_same_bits(*results)
    assert sizes[0] * 2 == sizes[1]
