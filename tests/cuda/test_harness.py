"""The emulated device finds faults that a card may forgive for years: each is planted in a small kernel."""

from __future__ import annotations

import os
import re
import struct
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sparsegen.backends import BackendError, Source
from sparsegen.backends.cupy_cuda import sources
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.cupy_cuda.sources import kernels
from sparsegen.backends.interface import Host, Tiles
from tests.backends.contract_cases import all_tiles, assert_same_bits, normal
from tests.cuda import emulator
from tests.cuda.backends import emulated
from tests.cuda.emulator import BACKWARDS, FORWARDS, OPTIMISED, SANITIZED, SHUFFLED, KernelError, Library

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)

ORDERS = {"forwards": FORWARDS, "backwards": BACKWARDS, "shuffled": SHUFFLED}
KERNELS = Path(__file__).with_name("faults.cu").read_text("utf-8")
FAULTS = {name: number for number, name in enumerate(re.findall(r"^  ([A-Z_]+),", KERNELS, re.MULTILINE))}
FROM = np.random.default_rng(0).standard_normal(64).astype(np.float32)


@cache
def faulty(flags: tuple[str, ...] = OPTIMISED) -> Library:
    """The kernels of `faults.cu`."""
    return Library(emulator.build(KERNELS, "faults", flags=flags))


def copied(kernel: str, fault: str = "NONE", at: int = 0, *, order: int = FORWARDS) -> Host:
    """What a kernel of `faults.cu` makes of FROM."""
    library, out = faulty(), np.full(64, np.nan, np.float32)
    library.order(order)
    library.launch(
        kernel, (1, 1, 1), struct.pack("QQii", FROM.ctypes.data, out.ctypes.data, at, FAULTS[fault])
    )
    return out


def product(fault: str, depth: int, order: int) -> Host:
    """The product of two matrices of ones, `[16, depth]` and `[depth, 16]`, whose rows count up by 16 of the depth."""
    left = np.ones((16, depth), np.float32) + np.arange(depth, dtype=np.float32) // 16
    right, out = np.ones((depth, 16), np.float32), np.zeros((16, 16), np.float32)
    library = faulty()
    library.order(order)
    addresses = [each.ctypes.data for each in (left, right, out)]
    library.launch("product", (1, 1, 1), struct.pack("QQQii", *addresses, depth, FAULTS[fault]))
    return out


@pytest.mark.parametrize("order", ORDERS)
def test_kernels_without_a_fault_are_right_in_every_order(order: str) -> None:
    number = ORDERS[order]
    assert (product("NONE", 48, number) == 16 * (1 + 2 + 3)).all()
    assert np.array_equal(copied("reverse", order=number), FROM[::-1])
    assert np.array_equal(copied("meet", order=number), FROM)
    assert np.allclose(copied("sum_of_block", order=number), FROM.sum(), atol=1e-5)
    crossed = FROM[np.arange(64) ^ 32] + FROM[np.arange(64) ^ 1]
    assert np.array_equal(copied("cross", order=number), crossed)
    for kernel, lanes in (("sum_of_warp", 32), ("sum_of_half", 16)):
        sums = FROM.reshape(-1, lanes).sum(1).repeat(lanes)
        assert np.allclose(copied(kernel, order=number), sums, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", ["NO_FIRST_BARRIER", "NO_SECOND_BARRIER"])
def test_a_barrier_of_a_product_is_missing(fault: str, order: str) -> None:
    assert not (product(fault, 48, ORDERS[order]) == 16 * (1 + 2 + 3)).all()


def windows_times_weights(text: str, left: Host, right: Host, order: int, block: str = "16x64") -> Host:
    """The products of Winograd's convolution, `[36, rows, outputs]`, by another text of a kernel of theirs."""
    (_, rows, depth), outputs = left.shape, right.shape[2]
    out, tiles = np.zeros((36, rows, outputs), np.float32), np.array([rows, *[0] * (3 + 3 * rows)], np.int32)
    values = {"left": left, "right": right, "out": out, "tiles": tiles, "first_tile": 0, "stride": rows}
    kernel = f"winograd_product_{block}"
    packed = kernels()[kernel].arguments.pack(
        lambda array: array.ctypes.data, {**values, "depth": depth, "outputs": outputs}
    )
    library = Library(emulator.build(text, "winograd"))
    library.order(order)
    library.launch(kernel, (1, 1, 36), packed)
    library.order(FORWARDS)  # other tests may share the library
    return out


def test_each_barrier_of_our_products_is_missing() -> None:
    text, header = sources.source("winograd"), sources.headers()["product.cuh"]
    rng = np.random.default_rng(1)
    left, right = normal(rng, 36, 16, 48), normal(rng, 36, 48, 64)
    barrier = "__syncthreads();"
    parts = header.split(barrier)
    assert len(parts) > 1
    for order in ORDERS.values():
        blocks = ("16x64", "128x64")  # one whose steps stream, one whose steps pass through registers
        whole = windows_times_weights(text, left, right, order)
        assert np.allclose(whole, left @ right, atol=1e-4)
        for i in range(1, len(parts)):
            without = barrier.join(parts[:i]) + barrier.join(parts[i:])
            damaged = text.replace('#include "product.cuh"', without)
            found = [windows_times_weights(damaged, left, right, order, block) for block in blocks]
            assert not all(np.array_equal(each, whole) for each in found), f"barrier {i}"


@pytest.mark.parametrize("order", ORDERS)
def test_an_exchange_of_each_warp_is_no_barrier_between_them(order: str) -> None:
    assert np.isnan(copied("cross", "NO_BARRIER", order=ORDERS[order])).sum() >= 1


@pytest.mark.parametrize("order", ORDERS)
def test_an_asynchronous_copy_is_not_waited_for(order: str) -> None:
    assert np.isnan(copied("reverse", "NO_WAIT", order=ORDERS[order])).all()


@pytest.mark.parametrize("order", ORDERS)
def test_shared_memory_is_read_before_it_is_written(order: str) -> None:
    copied("sum_of_block", order=ORDERS[order])  # leaves good values there, for a careless reader
    assert np.isnan(copied("sum_of_block", "UNWRITTEN", order=ORDERS[order])).all()


def test_a_lane_reads_another_that_its_mask_does_not_name() -> None:
    assert np.isnan(copied("sum_of_half", "OTHER_HALF")).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "fault", "message"),
    [
        ("meet", "TWO_LINES", r"threads meet at different __syncthreads \(lines {line}, {line}\)"),
        (
            "sum_of_warp",
            "ABSENT",
            r"deadlock: lanes 0x100 of warp 1 never come to an exchange \(line {line}\)",
        ),
        (
            "sum_of_warp",
            "ENDED",
            r"deadlock: lanes 0x100 of warp 1 never come to an exchange \(line {line}\)",
        ),
        ("sum_of_warp", "WITHOUT", r"a lane exchanges under a mask without it \(line {line}\)"),
        ("sum_of_warp", "TWO_MASKS", r"lanes of a warp name the masks 0x\w+ and 0x\w+ \(line {line}\)"),
        (
            "sum_of_warp",
            "TWO_EXCHANGES",
            r"lanes of a warp meet at different exchanges \(lines {line}, {line}\)",
        ),
    ],
)
def test_threads_that_do_not_meet(kernel: str, fault: str, message: str, order: str) -> None:
    with pytest.raises(KernelError, match=rf"^{kernel}: block \(0, 0, 0\): {message.format(line='[0-9]+')}"):
        copied(kernel, fault, order=ORDERS[order])
    assert np.isfinite(copied(kernel, order=ORDERS[order])).all()  # the next launch is none the worse


def test_more_than_a_block_may_have() -> None:
    with pytest.raises(KernelError, match="64 threads, 102400 bytes of shared memory: too many"):
        faulty().launch("meet", (1, 1, 1), bytes(24), 100 * 1024)
    with pytest.raises(KernelError, match="meet: 20 bytes of arguments, the kernel takes 24"):
        faulty().launch("meet", (1, 1, 1), bytes(20))


# -- stray accesses --------------------------------------------------------------------------------------

STRAY = {
    ("read_global", 1): "heap-buffer-overflow.*READ of size 4",
    ("read_global", -1): "heap-buffer-overflow.*READ of size 4",
    ("write_global", 1): "heap-buffer-overflow.*WRITE of size 4",
    ("read_shared", 1): "global-buffer-overflow.*READ of size 4",
    ("write_shared", 1): "index 64 out of bounds",
    ("write_dynamic", 1): "use-after-poison.*WRITE of size 4",
    ("read_four", 2): "misaligned address",
}
"""Kernel, and how far on it accesses -> what the sanitizers say."""


def stray() -> None:
    """Run each of STRAY, right and wrong, in a process of its own, with arrays as large as the right one needs."""
    library = faulty(SANITIZED)
    for kernel, fault in STRAY:
        for at in (0, fault):
            print(f"= {kernel}, {at}", file=sys.stderr, flush=True)
            process = os.fork()
            if not process:
                start, out = np.array(FROM), np.zeros(64, np.float32)
                arguments = struct.pack("QQii", start.ctypes.data, out.ctypes.data, at, 0)
                library.launch(kernel, (1, 1, 1), arguments, 256)
                os._exit(not np.array_equal(out, FROM))
            os.waitpid(process, 0)


@pytest.fixture(scope="module")
def reports() -> dict[str, str]:
    """What the sanitizers say of each process of `stray`."""
    if emulator.sanitizers() is None:
        pytest.skip("this compiler has no sanitizers: take g++")
    emulator.build(
        KERNELS, "faults", flags=SANITIZED
    )  # the process would run the compiler with the sanitizers, too
    done = emulator.sanitized("-c", "from tests.cuda.test_harness import stray; stray()")
    assert done.returncode == 0, done.stderr
    return dict(part.split("\n", 1) for part in done.stderr.split("= ")[1:] if "\n" in part)


@pytest.mark.parametrize(("kernel", "at"), STRAY)
def test_an_access_beyond_an_array_is_reported(kernel: str, at: int, reports: dict[str, str]) -> None:
    assert reports[f"{kernel}, 0"] == ""
    report = reports[f"{kernel}, {at}"]
    assert re.search(STRAY[kernel, at], report, re.DOTALL), report
    assert "faults.cu:" in report  # the line


# -- the host's side -------------------------------------------------------------------------------------


@pytest.fixture
def backend() -> CudaBackend:
    return emulated()


def test_a_recording_uploads_waits_and_computes_nothing(backend: CudaBackend) -> None:
    canvas, tiles = backend.alloc((1, 8, 8, 4)), all_tiles(1, 8, 8)
    for work, message in (
        (lambda: backend.upload(np.zeros(3, np.float32)), "an upload while launches are recorded"),
        (lambda: backend.download(canvas), "a download while"),
        (backend.synchronize, "a wait while"),
        (
            lambda: backend.device.write(canvas, np.zeros((1, 8, 8, 4), np.float32)),
            "a copy to the device while",
        ),
        (lambda: backend.xp.concatenate([canvas, canvas]), "concatenate of the array module while"),
    ):
        with pytest.raises(KernelError, match=message):
            backend.record(work, [tiles])
    backend.upload(np.zeros(3, np.float32))  # the failed recordings have ended


def test_a_recording_was_not_given_a_list(backend: CudaBackend) -> None:
    canvas, given, other = backend.alloc((1, 8, 8, 4)), all_tiles(1, 8, 8), all_tiles(1, 4, 4)
    with pytest.raises(BackendError, match="a list of tiles that the recording was not given"):
        backend.record(lambda: backend.read_tiles(canvas, other) and None, [given])
    with pytest.raises(BackendError, match="a recording inside a recording"):
        backend.record(lambda: backend.record(lambda: None, []) and None, [given])


def test_a_recording_is_replayed_with_other_tiles(backend: CudaBackend) -> None:
    rng = np.random.default_rng(2)
    before, values = normal(rng, 1, 9, 10, 3), normal(rng, 9, 4, 4, 3)
    recorded, direct = backend.upload(before), backend.upload(before)
    tiles = all_tiles(1, 9, 10)
    given = backend.upload(values)
    recording = backend.record(lambda: backend.write_tiles(recorded, tiles, given), [tiles])
    assert_same_bits(backend.download(recorded), before)  # nothing ran
    counts = backend.device.counts
    for some in (tiles.host[3:5], tiles.host[:0], tiles.host[::-1]):
        lists, launches, graphs = [Tiles(some)], counts["launch"], counts["graph"]
        recording.replay(lists)
        assert (counts["launch"], counts["graph"]) == (launches, graphs + 1)
        backend.write_tiles(direct, lists[0], given)
        assert_same_bits(backend.download(recorded), backend.download(direct))
    with pytest.raises(BackendError, match=f"25 tiles, in a recording with room for {recording.room[0]}"):
        recording.replay([all_tiles(1, 20, 20)])


def test_host_arrays_are_refused(backend: CudaBackend) -> None:
    canvas, tiles = normal(np.random.default_rng(3), 1, 8, 8, 4), all_tiles(1, 8, 8)
    out = backend.alloc(canvas.shape)
    with pytest.raises(TypeError, match="expected an array of the device, got ndarray"):
        backend.write_tiles(out, tiles, canvas.reshape(4, 4, 4, 4))
    weights = backend.prepare_conv(np.zeros((4, 4, 3, 3), np.float32), None, padding=(1, 1, 1, 1))
    with pytest.raises(TypeError, match="expected an array of the device, got ndarray"):
        backend.conv2d(out, tiles, Source((canvas,)), weights)


def test_arrays_of_undefined_values(backend: CudaBackend) -> None:
    for shape in ((), (0,), (0, 4), (3, 0), (2, 3)):
        for dtype in (np.float16, np.float32, np.float64):
            made = backend.download(backend.device.empty(shape, np.dtype(dtype)))
            assert made.shape == shape
            assert np.isnan(made).all()
    assert (backend.download(backend.device.empty((2, 3), np.dtype(np.int32))) == -1).all()


def test_only_contiguous_arrays_have_an_address(backend: CudaBackend) -> None:
    array = backend.alloc((6, 4))
    assert backend.device.address(array[2:4]) == backend.device.address(array) + 2 * 4 * 4
    with pytest.raises(AssertionError, match=r"an array \(6, 2\) with strides \(16, 4\)"):
        backend.device.address(array[:, :2])


def test_one_wait_serves_all_copies_queued_before_it(backend: CudaBackend) -> None:
    array, counts = backend.alloc((2, 3)), backend.device.counts
    first, second = backend.device.fetch(array), backend.device.fetch(array)
    waits = counts["wait"]
    first(), second()
    assert counts["wait"] == waits + 1
    backend.device.fetch(array)()
    assert counts["wait"] == waits + 2
