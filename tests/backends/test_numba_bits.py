"""No thread, process, or cut of the work changes a bit of what the Numba backend computes."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from sparsegen.backends import Source, get_backend
from tests.backends.contract_cases import CASES, all_tiles, assert_same_bits, build, normal
from tests.networks import assert_same

numba = pytest.importorskip("numba")

from sparsegen.backends.numba_cpu import NumbaBackend, launch  # noqa: E402  (needs numba)
from tests.backends.numba_work import ROOT, digest, in_this_process, worked  # noqa: E402  (needs numba)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel runs in as many threads as it may, however little there is to do."""
    monkeypatch.setattr(launch, "ALONE", 0.0)


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
    rng = np.random.default_rng(2)
    rows, codes = normal(rng, 600, 45), rng.integers(0, 600, (2, 40, 30, 1), np.int32)
    for a, b in zip(one.coded_moments(codes, rows), three.coded_moments(codes, rows), strict=True):
        assert_same_bits(a, b)
    windows, weight = rng.integers(-1, 600, (900, 9), np.int32), normal(rng, 45, 1, 3, 3)
    convolved = []
    for backend in (one, three):
        weights = backend.prepare_conv(weight, None, padding=(1, 1, 1, 1), groups=45, size=(1, 1))
        convolved.append(backend.alloc((900, 45)))
        backend.convolve_windows(convolved[-1], windows, rows, weights)
    assert_same_bits(*convolved)
    canvas, tiles = source.parts[0], all_tiles(2, 40, 30)
    old = normal(np.random.default_rng(1), len(tiles), 4, 4, 21)
    assert_same_bits(one.sum_change(canvas, tiles, old), three.sum_change(canvas, tiles, old))


@pytest.mark.parametrize("each", [1, 3, 7, 8, 20, 40, 128, 200])
def test_a_norm_has_the_bits_of_the_reference(each: int) -> None:
    """Its kernel adds in NumPy's order, so results are those of versions that had none."""
    rng, (samples, groups) = np.random.default_rng(each), (2, 4)
    mean, offset, bias = (normal(rng, samples, groups * each, mean=5) for _ in range(3))
    film = normal(rng, samples, 2 * groups * each)
    for settings in (
        {},
        {"weight": offset[0], "bias": bias[0]},
        {"film": film},
        {"bias": bias[0], "film": film[:1]},
    ):
        results = (
            get_backend(name).norm_affine(mean, offset**2, groups=groups, eps=1e-5, **settings)
            for name in ("numba", "reference")
        )
        for a, b in zip(*results, strict=True):
            assert_same_bits(a, b)


def test_the_number_of_items_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """However a kernel's work is cut: in one thread, for many, in batches of other sizes."""
    source = Source((normal(np.random.default_rng(0), 1, 48, 52, 40),))
    weight = normal(np.random.default_rng(1), 72, 40, 3, 3, std=1 / 19)
    results = []
    for threads, alone in ((1, 1e7), (1, 0.0), (2, 0.0), (7, 0.0), (64, 0.0)):
        monkeypatch.setattr(launch, "ALONE", alone)
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
    code = "from tests.backends.numba_work import digest; print(digest({}))"
    for threads in (1, 3):
        done = subprocess.run(
            [sys.executable, "-c", code.format(threads)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == in_this_process(2)


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
