"""A card without a card: what is missing in a sentence, and `Card` against a stand-in of CuPy's modules."""

from __future__ import annotations

import gc
import os
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparsegen.backends import BackendError, backend_status, default_backend, get_backend, registry
from sparsegen.backends.cupy_cuda import card as card_module
from sparsegen.backends.cupy_cuda import compile as compiler
from sparsegen.backends.cupy_cuda import presence, sources, staging
from sparsegen.backends.cupy_cuda.card import Card, CardMemoryError, CupyBackend, parse_memory
from sparsegen.backends.interface import Tiles
from sparsegen.cli import messages
from tests.cuda import emulator
from tests.cuda.fake_cupy import H100, T4, CudaError, FakeCuda, Install

# -- what is missing -------------------------------------------------------------------------------------


def test_a_machine_says_in_a_sentence_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OPEN", {})
    monkeypatch.setattr(presence, "_installed", lambda package: False)
    assert backend_status()["cupy"] == (
        "CuPy is not installed: pip install 'sparsegen[cuda13]' (cuda12 for older drivers)"
    )
    monkeypatch.setattr(presence, "_installed", lambda package: True)
    monkeypatch.setattr(presence, "_driver_loads", lambda: False)
    assert backend_status()["cupy"] == "there is no NVIDIA driver here"
    with pytest.raises(
        BackendError, match=r"^backend 'cupy:1' cannot be used \(there is no NVIDIA driver here\)"
    ):
        get_backend("cupy:1")


@pytest.mark.parametrize(
    ("cards", "versions", "sentence"),
    [
        ((H100,), {"driver": 0}, "there is no NVIDIA driver here"),
        (
            (H100,),
            {"driver": 12040},
            "the NVIDIA driver is too old: it supports CUDA 12.4, and CuPy is built for CUDA 13; update the driver, "
            "or pip install 'sparsegen[cuda12]'",
        ),
        (
            (H100,),
            {"driver": 11080, "built": 12090},
            "the NVIDIA driver is too old: it supports CUDA 11.8, and CuPy is built for CUDA 12; update the driver",
        ),
        ((), {}, "the NVIDIA driver finds no card"),
        (
            (T4,),
            {},
            "cupy:0 Tesla T4 (sm_75, 80 GB) is too old; the kernels need sm_80 (Ampere) or newer",
        ),
        (
            (("A card to come", 14, 0),),
            {},
            "NVRTC 13.5 does not know sm_140: pip install --upgrade nvidia-cuda-nvrtc",
        ),
        ((H100,), {"driver": 13000, "built": 13020}, None),
    ],
)
def test_a_driver_and_a_card_are_checked(
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    cards: tuple[tuple[str, int, int], ...],
    versions: dict[str, int],
    sentence: str | None,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    install(*cards, **versions)
    assert backend_status()["cupy"] == sentence


def test_hidden_cards_are_named(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    install()
    assert backend_status()["cupy"] == "the NVIDIA driver finds no card (CUDA_VISIBLE_DEVICES is '-1')"


def test_a_missing_compiler_is_said(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(H100)

    def missing() -> Any:
        raise BackendError("NVRTC is not installed")

    monkeypatch.setattr(compiler, "nvrtc", missing)
    assert backend_status()["cupy"] == "NVRTC is not installed"


def test_an_architecture_is_compiled_for_by_the_nearest_that_is_known(install: Install) -> None:
    install(H100)
    assert [compiler.target(f"sm_{number}") for number in (80, 87, 90, 103, 121)] == [
        *("sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
    ]
    for wrong in ("90", "sm_9x", "compute_90", ""):
        with pytest.raises(BackendError, match=r"unknown; write sm_80, sm_86"):
            compiler.target(wrong)


def test_a_card_computes_here() -> None:
    """The suites run on a card where there is one (`make test-gpu`)."""
    why = backend_status()["cupy"]
    if why is not None:
        pytest.skip(f"backend cupy: {why}")
    backend = get_backend("cupy")
    tiles = Tiles(np.array([[0, 1, 1]]))
    canvas = backend.upload(np.arange(8 * 8 * 4, dtype=np.float32).reshape(1, 8, 8, 4))
    assert np.array_equal(
        backend.download(backend.read_tiles(canvas, tiles))[0], backend.download(canvas)[0, 4:, 4:]
    )


def test_cupy_has_what_a_card_calls() -> None:
    """The stand-in's names are CuPy's."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    import cupy
    import cupyx
    from cupy_backends.cuda.api import driver, runtime

    def check(real: Any, pretended: Any, path: str) -> None:
        for name, value in vars(pretended).items():
            assert hasattr(real, name), f"{path}.{name}"
            if isinstance(value, SimpleNamespace):
                check(getattr(real, name), value, f"{path}.{name}")

    pretended = FakeCuda(H100).modules()
    check(cupy, pretended.cupy, "cupy")
    check(cupyx, pretended.cupyx, "cupyx")
    check(runtime, pretended.runtime, "runtime")
    check(driver, pretended.driver, "driver")


# -- names -----------------------------------------------------------------------------------------------


def test_a_number_after_the_name_is_a_device(install: Install) -> None:
    fake = install(H100, ("NVIDIA A100", 8, 0))
    first, second = get_backend("cupy"), get_backend("cupy:1")
    assert repr(first) == "<backend cupy:0, NVIDIA H100 80GB HBM3>" and first.name == "cupy"
    assert repr(second) == "<backend cupy:1, NVIDIA A100>" and second.name == "cupy"
    assert get_backend("cupy", device=1) is second is get_backend("cupy:1", device=1)
    assert get_backend("cupy:0") is first is get_backend("cupy", device=0, memory=None)
    assert not fake.calls, "to name a card takes no memory on it"
    with pytest.raises(
        BackendError,
        match=r"'cupy:2' cannot be used \(there is no device 2; devices: cupy:0 NVIDIA H100 80GB HBM3 \(sm_90, "
        r"80 GB\), cupy:1 NVIDIA A100",
    ):
        get_backend("cupy:2")
    with pytest.raises(BackendError, match="'cupy:1' and device=0 name two devices"):
        get_backend("cupy:1", device=0)
    assert get_backend("cupy:1", precision="tf32").precision == "tf32"  # type: ignore[attr-defined]  # CupyBackend
    with pytest.raises(BackendError, match="unknown precision 'half'; known: float32, tf32, float16"):
        get_backend("cupy", precision="half")
    for unknown in ("cupy:", "cupy:one", "cupy:-1", "other:1"):
        with pytest.raises(BackendError, match=rf"'{unknown}' cannot be used \(unknown\)"):
            get_backend(unknown)
    with pytest.raises(BackendError, match="takes no device"):
        get_backend("reference:1")


def test_a_good_card_behind_an_old_one_is_used_by_its_name(install: Install) -> None:
    install(T4, H100)
    assert "too old" in (backend_status()["cupy"] or "")
    assert repr(get_backend("cupy:1")) == "<backend cupy:1, NVIDIA H100 80GB HBM3>"


def test_a_card_is_no_default(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(H100)
    assert backend_status()["cupy"] is None and default_backend() != "cupy"
    built_in = {name: registry._BUILT_IN[name] for name in ("reference", "cupy")}
    monkeypatch.setattr(registry, "_BUILT_IN", built_in)
    assert default_backend() == "reference"


def test_memory_is_an_amount() -> None:
    assert [parse_memory(given) for given in ("8GB", " 1.5 gib ", "500MB", 4096, None)] == [
        *(8 * 10**9, 3 << 29, 5 * 10**8, 4096, None)
    ]
    for wrong in ("8", "lots", "", 0, -1, True, 0.5):
        with pytest.raises(BackendError, match="expected an amount such as 8GB"):
            parse_memory(wrong)  # type: ignore[arg-type]  # what a caller may get wrong


# -- a card ----------------------------------------------------------------------------------------------


def test_launches_reach_the_driver_as_they_are(install: Install) -> None:
    fake = install(H100)
    card = Card()
    assert (card.name, card.multiprocessors, card.architecture) == ("NVIDIA H100 80GB HBM3", 132, "sm_90")
    structure = sources.kernels()["read_tiles"].arguments
    arguments = bytes(range(1, structure.layout.size + 1))
    for shared in (0, 60_000, 1000, 60_000, 90_000):
        card.launch("read_tiles", (7, 3, 1), arguments, shared)
    threads = sources.kernels()["read_tiles"].threads
    assert fake.launched == [
        ("read_tiles", (7, 3, 1), threads, shared, arguments) for shared in (0, 60_000, 1000, 60_000, 90_000)
    ]
    allowed = [call for call in fake.calls if call[0] == "attribute"]
    assert allowed == [("attribute", "read_tiles", 8, 60_000), ("attribute", "read_tiles", 8, 90_000)]
    assert [call[0] for call in fake.calls].count("load") == len(sources.files()), "each file is loaded once"


def test_a_launch_that_the_driver_refuses_names_the_kernel(install: Install) -> None:
    fake = install(H100)
    card = Card()

    def refuse(*_: Any) -> None:
        raise CudaError("CUDA_ERROR_INVALID_VALUE")

    fake.modules()
    card._cuda.driver.launchKernel = refuse
    with pytest.raises(BackendError, match=r"H100.*kernel read_tiles, grid \(1, 1, 1\): CUDA_ERROR_INVALID"):
        card.launch("read_tiles", (1, 1, 1), bytes(64))


def test_arrays_travel_there_and_back(install: Install) -> None:
    install(H100)
    card = Card()
    generator = np.random.default_rng(0)
    for shape, dtype in (
        *(((3, 5), np.float32), ((1 << 20, 5), np.float32), ((7,), np.uint8), ((), np.int32)),
        *(((0, 4), np.float32), ((5,), np.float16), ((6 << 20,), np.float32)),
    ):
        host = np.array(generator.random(shape) * 100, dtype)
        array = card.upload(host)
        sent = host.copy()
        host[...] = 0  # it may change at once
        back = card.download(array)
        assert back.dtype == dtype and back.shape == shape and np.array_equal(back, sent)
    array = card.zeros((4, 4), np.float32)
    card.write(array, np.arange(16, dtype=np.float32))
    assert np.array_equal(card.download(array).ravel(), np.arange(16))
    with pytest.raises(TypeError, match="expected an array of the card, got ndarray"):
        card.address(np.zeros(3))


def test_an_upload_waits_for_nothing_while_the_ring_has_room(install: Install) -> None:
    fake = install(H100)
    card = Card()
    arrays = [card.upload(np.full(staging.PIECE // 4, n, np.float32)) for n in range(4)]
    assert ("wait", 1) not in fake.calls
    arrays.append(card.upload(np.full(10, 4, np.float32)))
    assert fake.calls.count(("wait", 1)) == 1, "for the oldest piece alone"
    values = [card.fetch(array) for array in arrays]
    assert [set(value().tolist()) for value in values] == [{n} for n in range(5)]


def test_pinned_memory_is_used_again_only_behind_the_copy(install: Install) -> None:
    """Random sizes through the ring; copies run as late as they may."""
    fake = install(H100)
    card = Card()
    generator = np.random.default_rng(1)
    sizes = generator.integers(1, staging.PIECE * 3, 60)
    arrays = [card.upload(np.full(size, n, np.uint8)) for n, size in enumerate(sizes)]
    assert all((card.download(array) == n).all() for n, array in enumerate(arrays))
    assert any(call[0] == "wait" for call in fake.calls)


def test_one_wait_serves_all_copies_before_it(install: Install) -> None:
    fake = install(H100)
    card = Card()
    arrays = [card.upload(np.arange(n + 3, dtype=np.float32)) for n in range(3)]

    def waits() -> int:
        return fake.calls.count(("wait", 1))

    fetched = [card.fetch(array) for array in arrays]
    later = card.fetch(arrays[0])
    assert waits() == 0
    assert len(fetched[2]()) == 5 and waits() == 1
    assert [len(fetched[0]()), len(fetched[1]())] == [3, 4] and waits() == 1
    assert len(later()) == 3 and waits() == 2
    after = card.fetch(arrays[1])
    card.synchronize()
    assert waits() == 3
    assert len(after()) == 4 and waits() == 3
    assert np.array_equal(after(), after()) and len(card.fetch(card.zeros((0,), np.int32))()) == 0


def test_a_download_that_nobody_asks_for_keeps_its_memory_until_it_is_done(install: Install) -> None:
    install(H100)
    card = Card()
    card.fetch(card.upload(np.ones(1000, np.float32)))
    gc.collect()
    assert len(card._held) == 1
    card.synchronize()
    card.fetch(card.upload(np.ones(10, np.float32)))
    assert len(card._held) == 1


def test_all_threads_queue_on_one_stream_which_is_current_in_each(install: Install) -> None:
    fake = install(H100, H100)
    card, other = Card(1), Card(0)
    found: list[Any] = []

    def work() -> None:
        card.zeros((3,), np.float32)
        found.append((fake.thread.stream.ptr, fake.thread.device))
        other.zeros((3,), np.float32)
        found.append((fake.thread.stream.ptr, fake.thread.device))
        assert card.xp.float32 is np.float32, "the array module brings its card with it"
        found.append((fake.thread.stream.ptr, fake.thread.device))

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [(1, 1), (2, 0), (1, 1)] * 2


def test_somebody_elses_stream_is_left_for_the_cards(install: Install) -> None:
    fake = install(H100)
    card = Card()
    card.zeros((3,), np.float32)
    own = fake.thread.stream
    card._cuda.cupy.cuda.Stream(non_blocking=True).use()
    card.launch("read_tiles", (1, 1, 1), bytes(64))
    assert fake.thread.stream is own


def test_a_recording_is_captured_on_a_stream_and_replayed_on_the_queue(install: Install) -> None:
    fake = install(H100)
    card = Card()
    card.zeros((3,), np.float32)
    del fake.calls[:]
    seen: list[str] = []
    fake.kernel = lambda kernel, *_: seen.append(kernel)

    def work() -> None:
        card.launch("read_tiles", (1, 1, 1), bytes(64))
        card.empty((5,), np.float32)
        card.launch("write_tiles", (1, 1, 1), bytes(64))
        for refused in (
            lambda: card.upload(np.zeros(3)),
            card.synchronize,
            lambda: card.fetch(card.empty((3,), np.int32)),
            lambda: card.record(lambda: None),
        ):
            with pytest.raises(BackendError, match="while launches are recorded"):
                refused()

    graph = card.record(work)
    order = [call for call in fake.calls if call[0] != "load"]
    assert order == [
        *(("use", 2), ("begin", 2)),
        *(("use", 1), ("malloc", 20, 1), ("use", 2)),  # the queue's memory
        *(("use", 1), ("malloc", 12, 1), ("use", 2)),
        *(("end", 2), ("use", 1)),
    ]
    assert not seen
    for _ in range(2):
        graph.launch()
    card.synchronize()
    assert seen == ["read_tiles", "write_tiles"] * 2
    assert fake.calls[-3:-1] == [("graph", 1), ("graph", 1)]
    with pytest.raises(BackendError, match="a replay while"):
        card.record(graph.launch)


def test_the_memory_of_a_recording_lives_as_long_as_it_or_its_arrays(install: Install) -> None:
    install(H100)
    card = Card()
    made: list[Any] = []
    first = card.record(lambda: made.append(card.empty((5,), np.int32)))
    pool = card._pools[0][1]
    card.record(lambda: None)  # dropped at once, and made no array
    gc.collect()
    card.record(lambda: None)
    assert [each for _, each in card._pools[:-1]] == [pool]
    del first
    gc.collect()
    card.record(lambda: None)
    assert pool in [each for _, each in card._pools], "an array of it may be alive"
    pool.used = 0
    card.record(lambda: None)
    assert pool not in [each for _, each in card._pools]


def test_a_recording_that_fails_leaves_the_card_as_it_was(install: Install) -> None:
    fake = install(H100)
    card = Card()
    with pytest.raises(KeyError, match="missing"):
        card.record(lambda: {}["missing"])
    assert [call[0] for call in fake.calls][-3:] == ["begin", "end", "use"]
    assert np.array_equal(card.download(card.upload(np.arange(3))), np.arange(3))


def test_another_thread_works_on_during_a_recording(install: Install) -> None:
    install(H100)
    card = Card()
    array = card.upload(np.arange(3))
    found: list[Any] = []

    def work() -> None:
        thread = threading.Thread(target=lambda: found.append(card.download(array)))
        thread.start()
        thread.join()

    card.record(work)
    assert np.array_equal(found[0], np.arange(3))


def test_too_little_memory_says_how_much_and_what_helps(install: Install) -> None:
    fake = install(H100)
    card = Card(memory="10MB")
    card.zeros((10**6,), np.float32)
    with pytest.raises(CardMemoryError) as caught:
        card.empty((2, 10**6), np.float32)
    assert str(caught.value) == (
        "NVIDIA H100 80GB HBM3 has no room for 8.0 MB more: this process holds 4.0 MB of its 80.0 GB, 300.0 MB are "
        'free; the limit is 10.0 MB (memory=). To take less: fewer samples at once, or storage="float16"'
    )
    assert isinstance(caught.value, MemoryError) and isinstance(caught.value, BackendError)
    assert ("free_all_blocks",) in fake.calls, "memory that is free, but cached, was given back first"
    assert messages.message_of(caught.value, None) == str(caught.value), "the advice is about the card alone"
    card.empty((10,), np.float32)


def test_caches_fill_a_card_up_to_a_reserve_and_the_limit(install: Install) -> None:
    fake = install(H100)
    assert Card().memory_left() == 0, "0.3 GB are free, a sixteenth of 80 GB is reserved"
    card = Card(memory="160MB")
    card.zeros((10**6,), np.float32)
    assert card.memory_left() == 160e6 - 4e6 - 10e6
    fake.pool.used = 10**9
    assert card.memory_left() == 0


def test_arrays_in_ram_are_read_and_written_like_others_and_freed_behind_the_queue(install: Install) -> None:
    fake = install(H100)
    card = Card()
    array = card.in_ram((3, 4), "float32")
    host = np.arange(12, dtype=np.float32).reshape(3, 4)
    card.write(array, host)
    assert np.array_equal(card.download(array), host) and array.shape == (3, 4)
    (pinned,) = fake.pinned
    card.fetch(array)
    del array
    gc.collect()
    assert pinned() is not None, "a copy from it is queued"
    card.synchronize()
    card.download(card.upload(host))
    gc.collect()
    assert pinned() is None
    assert card.in_ram((0, 3), np.float16).shape == (0, 3)
    with pytest.raises(
        CardMemoryError, match=r"^main memory has no room for 4.0 GB, pinned \(cudaErrorMemory"
    ):
        card.in_ram((10**9,), np.float32)


def test_a_lost_card_says_to_restart(install: Install) -> None:
    install(H100)
    card = Card()

    class Lost:
        def synchronize(self) -> None:
            raise CudaError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    with pytest.raises(BackendError, match=r"H100.*cudaErrorIllegalAddress.*restart the process"):
        card._wait(99, Lost())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_is_refused(install: Install) -> None:
    install(H100)
    card = Card()
    array, graph = card.upload(np.arange(3)), card.record(lambda: None)
    child = os.fork()
    if not child:
        refused = 0
        try:
            for call in (
                lambda: card.zeros((3,), np.float32),
                lambda: card.write(array, np.arange(3)),
                lambda: card.fetch(array),
                card.synchronize,
                graph.launch,
                lambda: card.launch("read_tiles", (1, 1, 1), bytes(64)),
                lambda: card.xp.float32,
            ):
                with pytest.raises(BackendError, match="'spawn' or 'forkserver'"):
                    call()
                refused += 1
        finally:
            os._exit(refused)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7


@pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)
def test_the_backend_computes_through_a_card(install: Install) -> None:
    """Launches and copies as on a card, of kernels that run on the CPU: tiles are copied, recorded and replayed."""
    fake = install(H100)

    def kernel(name: str, grid: tuple[int, int, int], arguments: bytes, shared: int) -> None:
        emulator.libraries()[sources.kernels()[name].file].launch(name, grid, arguments, shared)

    fake.kernel = kernel
    backend = get_backend("cupy")
    assert isinstance(backend, CupyBackend) and isinstance(backend, card_module.CudaBackend)
    canvas = np.arange(2 * 8 * 8 * 4, dtype=np.float32).reshape(2, 8, 8, 4)
    source, out = backend.upload(canvas), backend.alloc((2, 8, 8, 4))
    tiles = Tiles(np.array([[0, 1, 0], [1, 0, 1]]))

    def work() -> None:
        backend.write_tiles(out, tiles, backend.read_tiles(source, tiles))

    work()
    expected = np.zeros_like(canvas)
    expected[0, 4:, :4], expected[1, :4, 4:] = canvas[0, 4:, :4], canvas[1, :4, 4:]
    assert np.array_equal(backend.download(out), expected)
    recording = backend.record(work, [tiles])
    recording.replay([Tiles(np.array([[0, 0, 0]]))])
    expected[0, :4, :4] = canvas[0, :4, :4]
    assert np.array_equal(backend.download(out), expected)
