"""Memory for canvases: a budget that is kept, blocks that serve again, files that nobody sees or must remove."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from sparsegen import InputError, SessionError
from sparsegen.engine import store as module
from sparsegen.engine.chunks import PAGE
from sparsegen.engine.store import Store, parse_size


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Files of 16 pages, so that a test needs several."""
    monkeypatch.setattr(module, "CHUNK", 16 * PAGE)


def filled(store: Store, pages: int, value: float) -> np.ndarray:
    array = store.allocate((pages, PAGE // 4))
    array[...] = value
    return array


# -- sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (None, None),
        (0, 0),
        (4_000_000_000, 4_000_000_000),
        ("0", 0),
        ("0.0", 0),
        ("123b", 123),
        ("4GB", 4 * 10**9),
        ("4 gb", 4 * 10**9),
        ("4G", 4 * 10**9),
        ("500 MB", 500 * 10**6),
        (" 2GiB ", 2**31),
        ("1.5kB", 1500),
        ("0.5Ki", 512),
        ("1.TB", 10**12),
        (".5GB", 5 * 10**8),
        ("7b", 7),
        ("9" * 400 + "B", int("9" * 400)),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "GB",
        ".GB",
        "1.5.GB",
        "-1",
        "4 PB",
        "1e9",
        "4,5GB",
        "4GBs",
        "nan",
        "inf",
        -1,
        4e9,
        True,
        b"4GB",
        [4],
    ],
)
def test_what_is_no_size_is_said(text):
    with pytest.raises(InputError, match="not an amount of memory; write 4GB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["4", " 4 ", "0.5", "4000000000"])
def test_a_number_in_text_needs_a_unit(text):
    with pytest.raises(
        InputError, match=f"'{text}' has no unit; write 4GB, 500MB, or {text.strip()}B for bytes"
    ):
        parse_size(text)


def test_a_folder_that_cannot_serve_is_said_before_anything_is_computed(tmp_path):
    script = tmp_path / "script"
    script.touch(mode=0o777)
    for folder in (tmp_path / "missing", script):
        for budget in (None, 0):
            with pytest.raises(InputError, match=f"{folder.name}: not a writable folder"):
                Store(budget, folder)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if not os.access(locked, os.W_OK):  # root may write anywhere
        with pytest.raises(InputError, match="not a writable folder"):
            Store(0, locked)


# -- arrays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 0, "1MB"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 7, 3), (2, 30, 40, 8)])
@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8", "float64"])
def test_an_array_is_an_array(tmp_path, budget, shape, dtype):
    store = Store(budget, tmp_path)
    array, other = store.allocate(shape, dtype=dtype), store.allocate(shape, dtype=dtype)
    assert array.shape == shape and array.dtype == dtype
    assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    other[...] = 7
    array[...] = values
    assert np.array_equal(array, values) and (other == 7).all()


def test_the_budget_is_kept_and_the_rest_goes_into_files(tmp_path):
    store = Store(10 * PAGE, tmp_path)
    arrays = [filled(store, pages, pages) for pages in (3, 3, 3, 3, 1, 30)]
    assert store.ram_bytes == 10 * PAGE  # the last page went to the fifth
    assert store.file_bytes == 16 * PAGE + 30 * PAGE  # the sixth is larger than a file
    store.drop_pages()
    for array in arrays:
        assert (array == len(array)).all()
    assert list(tmp_path.iterdir()) == []  # the files have no name


def test_without_a_budget_no_file_is_made(tmp_path):
    store = Store(None, tmp_path)
    arrays = [filled(store, 100, i) for i in range(5)]
    assert store.ram_bytes == 500 * PAGE and store.file_bytes == 0
    store.drop_pages()
    assert [array[0, 0] for array in arrays] == [0, 1, 2, 3, 4]


def test_the_budget_is_that_of_the_pages_that_are_taken(tmp_path):
    store = Store(PAGE - 1, tmp_path)
    store.allocate((1,))
    assert store.ram_bytes == 0 < store.file_bytes
    store = Store(PAGE, tmp_path)
    store.allocate((1,))
    assert store.ram_bytes == PAGE and store.file_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 0, "1MB"])
def test_a_block_serves_again(tmp_path, budget):
    store = Store(budget, tmp_path)
    for i in range(8):
        array = filled(store, 5, i)
        if not i:
            taken = store.ram_bytes, store.file_bytes
        assert (array == i).all()
        del array
        gc.collect()
    assert (store.ram_bytes, store.file_bytes) == taken


def test_blocks_of_other_sizes_serve_again(tmp_path):
    """Edits of any sizes, taken back, must not fill the disk."""
    rng = np.random.default_rng(1)
    store = Store(0, tmp_path)
    base = filled(store, 3, 1.0)
    for _ in range(200):
        arrays = [filled(store, int(pages), pages) for pages in rng.integers(1, 12, 4)]
        assert all((array == len(array)).all() for array in arrays)
        del arrays
    assert store.file_bytes <= 6 * 16 * PAGE
    assert (base == 1).all()


def test_ram_of_other_sizes_serves_again(tmp_path):
    rng = np.random.default_rng(2)
    store = Store(20 * PAGE, tmp_path)
    for pages in rng.integers(1, 20, 100):
        array = filled(store, int(pages), pages)
        assert store.ram_bytes <= 20 * PAGE and store.file_bytes == 0
        del array


def test_ram_that_nobody_uses_is_let_go_without_a_budget(tmp_path):
    store = Store(None, tmp_path)
    for pages in range(1, 200):
        filled(store, pages, 0)
    gc.collect()
    assert store.ram_bytes <= 2 * 200 * PAGE


def test_out_of_memory_a_store_first_lets_go_of_what_it_keeps(tmp_path, monkeypatch):
    """What waits for reuse is no reason to fail; without it, the error names the size, and all arrays stay."""
    store = Store(None, tmp_path)
    kept, other = filled(store, 5, 5.0), filled(store, 4, 4.0)
    del other
    gc.collect()
    least = [1]

    def mapping(*args, **options):
        if store.ram_bytes // PAGE > least[0]:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return real(*args, **options)

    real = module.mmap.mmap
    monkeypatch.setattr(module.mmap, "mmap", mapping)
    with pytest.raises(MemoryError, match=r"^an array of 0\.0 MB$"):
        store.allocate((2 * PAGE // 4,))
    least[0] = 5
    filled(store, 2, 2.0)
    assert store.ram_bytes == 7 * PAGE and (kept == 5).all()


@pytest.mark.parametrize("budget", [None, 0])
def test_a_view_keeps_its_block(tmp_path, budget):
    store = Store(budget, tmp_path)
    array = filled(store, 4, 5.0)
    view = array.reshape(-1)[7:9].view(np.int32)[::-1].reshape(2, 1)
    seen = view.copy()
    del array
    gc.collect()
    others = [filled(store, 4, i) for i in range(20)]
    assert np.array_equal(view, seen)
    gone = weakref.ref(others.pop())
    assert gone() is None  # nothing else holds an array


def test_a_system_that_cannot_find_pages_at_once_finds_them_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_POPULATE_WRITE", 9999)
    array = filled(Store(0, tmp_path), 4, 5.0)
    assert (array == 5).all()


@pytest.mark.parametrize("budget", [None, 0])
def test_arrays_outlive_their_store(tmp_path, budget):
    store = Store(budget, tmp_path)
    array = filled(store, 4, 5.0)
    store.close()
    with pytest.raises(SessionError, match="closed"):
        store.allocate((1,))
    store.drop_pages()
    store.close()
    del store
    gc.collect()
    assert (array == 5).all()
    array[...] = 6


def test_threads_may_share_a_store(tmp_path):
    store, wrong = Store(50 * PAGE, tmp_path), []

    def work(seed):
        rng, held = np.random.default_rng(seed), []
        for i in range(150):
            value = 1000 * seed + i
            held.append((filled(store, int(rng.integers(1, 6)), value), value))
            if len(held) > 5:
                array, value = held.pop(int(rng.integers(5)))
                if not (array == value).all():
                    wrong.append((seed, value))
            if i % 20 == 0:
                store.drop_pages()
                store.check_room([PAGE])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and store.ram_bytes <= 50 * PAGE


# -- room ------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_clear_error_and_touches_nothing(tmp_path, monkeypatch):
    store = Store(0, tmp_path)
    kept = filled(store, 16, 3.0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(
        SessionError, match=rf"{tmp_path.name}: no room for another .* MB of caches .*No space left"
    ):
        store.allocate((PAGE,))
    assert store.file_bytes == 16 * PAGE and (kept == 3).all()
    monkeypatch.undo()
    monkeypatch.setattr(module, "CHUNK", 16 * PAGE)
    assert (filled(store, 4, 1) == 1).all()
    assert list(tmp_path.iterdir()) == []


def test_a_nearly_full_disk_is_used_to_its_end(tmp_path, monkeypatch):
    """A file for several arrays does not fit any more, one for this array does."""
    real, room = os.posix_fallocate, [8 * PAGE]

    def allocate(handle, offset, length):
        if length > room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= length
        real(handle, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    store = Store(0, tmp_path)
    arrays = filled(store, 5, 1), filled(store, 3, 1)
    assert all((array == 1).all() for array in arrays)
    with pytest.raises(SessionError, match="no room"):
        store.allocate((1,))


def test_room_is_counted_over_ram_and_disk(tmp_path, monkeypatch):
    free = [100 * PAGE]
    monkeypatch.setattr(Store, "disk_free", lambda store: free[0])
    store = Store(10 * PAGE, tmp_path)
    store.check_room([110 * PAGE])
    with pytest.raises(
        SessionError, match=rf"caches need .* disk of {tmp_path}, where .* are free; give more"
    ):
        store.check_room([111 * PAGE])
    held = filled(store, 10, 0)
    store.check_room([100 * PAGE])
    with pytest.raises(SessionError):
        store.check_room([101 * PAGE])
    del held  # RAM that waits to serve again is there
    store.check_room([110 * PAGE])
    held = [filled(store, 10, 0), filled(store, 10, 0)]
    free[0] -= 16 * PAGE
    store.check_room([90 * PAGE])  # what is left of a file, too
    held.pop()
    store.check_room([100 * PAGE])
    with pytest.raises(SessionError):
        store.check_room([101 * PAGE])


def test_without_a_budget_the_disk_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "disk_free", lambda store: 0)
    Store(None, tmp_path).check_room([10**15])


# -- the end ---------------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from sparsegen.engine.store import Store
store = Store(0, sys.argv[1])
array = store.allocate((1 << 20,))
array[...] = 1
store.drop_pages()
print(len(os.listdir(sys.argv[1])), store.file_bytes > 0, flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="files lose their names at once on POSIX alone")
@pytest.mark.parametrize("end", ["kill", "leave"])
def test_nothing_is_left_of_a_process_however_it_ends(tmp_path, end):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), end],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.stdout.split() == ["0", "True"], done.stderr
    assert (done.returncode == 0) == (end == "leave") and not done.stderr
    assert list(tmp_path.iterdir()) == []
