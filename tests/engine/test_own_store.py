"""The memory of one session: arrays of their own, room that serves again, nothing that nobody uses after a trim."""

from __future__ import annotations

import errno
import gc

import numpy as np
import pytest

from sparsegen import SessionError
from sparsegen.engine import chunks, own_store
from sparsegen.engine.chunks import PAGE
from sparsegen.engine.own_store import OwnStore, own_allocator


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 4 to 16 pages, so that a test needs several."""
    monkeypatch.setattr(own_store, "LEAST", 4 * PAGE)
    monkeypatch.setattr(own_store, "MOST", 16 * PAGE)


def filled(store: OwnStore, pages: int, value: float) -> np.ndarray:
    array = store.allocate((pages, PAGE // 4))
    array[...] = value
    return array


def test_chunks_grow_and_a_larger_array_has_one_of_its_size():
    store = OwnStore()
    kept = []
    for pages, taken in ((1, 4), (3, 4), (1, 8), (8, 16), (16, 32), (1, 32), (2, 32), (20, 52)):
        kept.append(filled(store, pages, pages))
        assert store.ram_bytes == taken * PAGE
    assert all((array == len(array)).all() for array in kept)


def test_arrays_have_memory_of_their_own_and_what_is_freed_serves_again():
    rng, store, kept = np.random.default_rng(0), OwnStore(), []
    for i in range(400):
        kept.append((filled(store, int(rng.integers(1, 9)), i), i))
        if len(kept) > 8:
            array, value = kept.pop(int(rng.integers(8)))
            assert (array == value).all()
            del array
    assert all((array == value).all() for array, value in kept)
    assert store.ram_bytes <= 2 * 9 * 8 * PAGE


def test_trimmed_a_store_keeps_the_chunks_of_which_an_array_has_a_part():
    store = OwnStore()
    kept, others = filled(store, 2, 2.0), [filled(store, pages, 0.0) for pages in (2, 8, 16, 30)]
    assert store.ram_bytes == (4 + 8 + 16 + 30) * PAGE
    others.pop(1)
    store.trim()
    assert store.ram_bytes == (4 + 16 + 30) * PAGE
    del others
    gc.collect()
    assert store.ram_bytes == (4 + 16 + 30) * PAGE
    store.trim()
    assert store.ram_bytes == 4 * PAGE and (kept == 2).all()
    del kept
    store.trim()
    assert store.ram_bytes == 0


def test_only_large_copies_of_tiles_are_cut_from_chunks(monkeypatch):
    store = OwnStore()
    monkeypatch.setattr(own_store, "LARGE_COPY", 2 * 16 * 8 * 4)
    canvas = np.zeros((1, 9, 9, 8), np.float32)
    assert store.place_for_tiles(canvas, 1) is None and store.ram_bytes == 0
    place = store.place_for_tiles(canvas, 2)
    assert place is not None and place.shape == (2, 4, 4, 8) and place.dtype == np.float32
    assert store.place_for_tiles(canvas.astype(np.float16), 2) is None
    assert store.ram_bytes == 4 * PAGE


def test_out_of_memory_a_store_first_lets_go_of_what_nobody_uses(monkeypatch):
    """Nor does it ask for more than the array needs; the error names its size, and all arrays stay."""
    store = OwnStore()
    kept, other = filled(store, 4, 4.0), filled(store, 4, 0.0)
    del other
    most = [9]

    def mapping(number: int, size: int, **options: int) -> object:
        if size > most[0] * PAGE - store.ram_bytes:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return real(number, size, **options)

    real = chunks.mmap.mmap
    monkeypatch.setattr(chunks.mmap, "mmap", mapping)
    assert filled(store, 5, 5.0).shape[0] == 5 and store.ram_bytes == 9 * PAGE
    with pytest.raises(MemoryError, match=r"^an array of 0\.0 MB$"):
        store.allocate((6 * PAGE // 4,))
    most[0] = 10
    filled(store, 6, 6.0)
    assert (kept == 4).all()


def test_arrays_outlive_a_store_that_is_closed():
    store = OwnStore()
    array = filled(store, 3, 3.0)
    store.close()
    with pytest.raises(SessionError, match="closed"):
        store.allocate((1,))
    del store
    gc.collect()
    assert (array == 3).all()


def test_a_session_has_a_store_of_its_own_for_each_size(backend):
    allocator = own_allocator(backend)
    fresh = allocator.fresh()
    assert fresh is not allocator and fresh.turn is allocator.turn
    assert isinstance(allocator, OwnStore) == isinstance(fresh, OwnStore) == backend.in_main_memory
    assert own_allocator(backend, allocator.turn).turn is allocator.turn
    assert own_allocator(backend).turn is not allocator.turn
