"""Compiled kernels: made once, found by the next process, compiled again where damaged; what is said of it."""

from __future__ import annotations

import io
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sparsegen.backends import BackendError, caches
from sparsegen.backends.caches import Folders, KernelFiles
from sparsegen.cli import main

numba = pytest.importorskip("numba")

from sparsegen.backends.numba_cpu import NumbaBackend, backend, jit, room  # noqa: E402  (needs numba)
from tests.backends.numba_damage import DAMAGES  # noqa: E402  (needs numba)
from tests.backends.numba_work import ROOT, in_this_process  # noqa: E402  (needs numba)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# -- in processes of their own ---------------------------------------------------------------------------

PROCESS = """
import times
from numba.types import float64
from sparsegen.backends.numba_cpu import jit

jit._declared.clear()
for function in times.FUNCTIONS:
    jit.kernel(float64(float64))(function)
ready = jit._make_ready(jit._declared)
assert [kernel(2.0) for kernel in jit._declared] == [2.0 * n for n in range(len(times.FUNCTIONS))]
print(ready.compiled, ready.lost)
"""


def test_kernels_that_are_damaged_in_any_way_are_compiled_once_more(tmp_path: Path) -> None:
    """Real machine code in processes of their own: each kernel's file is damaged in another way."""
    functions = [f"def times_{n}(x):\n    return x * {n}.0\n" for n in range(len(DAMAGES))]
    listed = ", ".join(f"times_{n}" for n in range(len(DAMAGES)))
    (tmp_path / "times.py").write_text("\n".join([*functions, f"FUNCTIONS = [{listed}]\n"]))

    def process() -> str:
        done = subprocess.run(
            [sys.executable, "-c", PROCESS],
            cwd=tmp_path,
            env={**os.environ, "SPARSEGEN_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert process() == f"{len(DAMAGES)} None"
    assert process() == "0 None"
    files = sorted((tmp_path / "cache").rglob("*.nbc"))
    assert len(files) == len(DAMAGES)
    for path, damage in zip(files, DAMAGES.values(), strict=True):
        damage(path)
    assert process() == f"{len(DAMAGES)} None"
    assert process() == "0 None"
    assert sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file()) == files


NOBODY = """
import os, sys
import numba
import times
from numba.types import float64
from sparsegen.backends.numba_cpu import jit

numba.njit(lambda x: x + 1)(1.0)  # whatever Numba imports late: nobody may be unable to read it
os.setgroups([])
os.setgid(12345)
os.setuid(12345)  # a number without a name, as in a container
os.environ.pop("HOME")
jit._declared.clear()
jit.kernel(float64(float64))(times.double)
ready = jit._make_ready(jit._declared)
print(ready.compiled, ready.folders, ready.lost, ready.why, sep=";")
"""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="root alone can become nobody")
def test_a_user_without_a_name_or_a_home_finds_its_kernels_again() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        (folder / "temporary").mkdir()
        (folder / "temporary").chmod(0o1777)
        (folder / "times.py").write_text("def double(x):\n    return x * 2.0\n")
        unset = ("SPARSEGEN_CACHE_DIR", "XDG_CACHE_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        for compiled in (1, 0):
            done = subprocess.run(
                [sys.executable, "-c", NOBODY],
                cwd=folder,
                env={**environment, "TMPDIR": str(folder / "temporary")},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            (made,) = (folder / "temporary" / "sparsegen-12345").iterdir()
            expected = f"{compiled};({made!r},);None;this user has no home folder"
            assert done.stdout.strip() == expected
        assert names(folder / "temporary")[:2] == ["sparsegen-12345", f"sparsegen-12345/{made.name}"]
        assert len(names(folder / "temporary")) == 3, "one folder for every process"
    finally:
        shutil.rmtree(folder)


ALONE = """
from numba.core.runtime import rtsys

def initialize(target):
    raise AssertionError("loading a kernel compiles Numba's reference counting")

rtsys.initialize = initialize
from sparsegen.backends.numba_cpu import backend, jit
print(jit.compile_all().compiled)
"""


def test_kernels_are_loaded_without_numbas_runtime() -> None:
    """They count no references. Numba would compile its functions for that in each process, which takes 20 ms."""
    jit.compile_all()
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout.strip(), done.stderr) == ("0", "")


# -- what is said, and what a word may be relied on ------------------------------------------------------

TINY = """
def double(x):
    return x * 2.0


def triple(x):
    return x * 3.0
"""


Declare = Callable[[Path], list[jit.Kernel]]


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Declare:
    """Declares the functions of a source file as a new process would, with `tmp_path / "cache"` to keep them in."""

    def declare(source: Path, why: str | None = None) -> list[jit.Kernel]:
        folder = tmp_path / "cache"
        folder.mkdir(exist_ok=True)
        files = KernelFiles(Folders((folder,), folder, why))
        monkeypatch.setattr(jit, "kernel_files", lambda: files)
        monkeypatch.setattr(jit, "_declared", [])
        monkeypatch.setattr(jit, "_announced", False)
        jit._source.cache_clear()
        functions: dict[str, Any] = {"__name__": "tiny"}
        exec(compile(source.read_text(), source, "exec"), functions)
        for name in ("double", "triple"):
            jit.kernel(numba.types.float64(numba.types.float64))(functions[name])
        return jit._declared

    return declare


def test_it_is_said_whenever_something_is_compiled_and_only_then(
    declare: Declare, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another environment with the same sources finds what this one compiled."""
    here, there = tmp_path / "here" / "tiny.py", tmp_path / "there" / "tiny.py"
    for source in (here, there):
        source.parent.mkdir()
        source.write_text(TINY)
    for source, compiled in ((here, 2), (here, 0), (there, 0)):
        ready = jit._make_ready(declare(source))
        said = capfd.readouterr().err.splitlines()
        assert ready == jit.Ready(compiled, (tmp_path / "cache",), None, None)
        assert [line.split()[1] for line in said] == (["compiling", "compiled"] if compiled else [])
        assert [kernel(2.0) for kernel in jit._declared] == [4.0, 6.0]
    here.write_text(TINY.replace("3.0", "4.0"))
    assert jit._make_ready(declare(here)).compiled == 2
    assert "compiling" in capfd.readouterr().err
    assert [kernel(2.0) for kernel in jit._declared] == [4.0, 8.0]


def test_a_private_folder_is_named_with_the_reason(
    declare: Declare, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    tmp_path.chmod(0o700)
    for compiled in (2, 0):
        declare(tmp_path / "tiny.py", why="this user has no home folder")
        ready = jit._make_ready(jit._declared)
        assert ready == jit.Ready(compiled, (tmp_path / "cache",), None, "this user has no home folder")
        said = NumbaBackend().warm_up()
        assert str(tmp_path / "cache") in said and "because this user has no home folder" in said
    assert f"kept in {tmp_path / 'cache'} (this user has no home folder)" in capfd.readouterr().err


def test_somebody_elses_functions_are_not_announced(
    declare: Declare, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    declared = declare(tmp_path / "tiny.py")
    with numba.core.event.install_listener("numba:compile", jit._Progress(declared)):
        numba.njit(lambda x: x + 1)(1)
    assert capfd.readouterr().err == ""


def test_what_could_not_be_kept_is_said_and_is_no_success(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(caches, "_write", full)
        ready = jit._make_ready(declare(tmp_path / "tiny.py"))
    assert ready.compiled == 2 and ready.lost is not None and "No space left" in ready.lost
    assert [kernel(2.0) for kernel in jit._declared] == [4.0, 6.0], "it computes all the same"
    assert re.search(r"compiled in \d+ s; but not kept \(.*No space left", capfd.readouterr().err)
    assert jit._make_ready(declare(tmp_path / "tiny.py")).lost is None
    assert jit._make_ready(declare(tmp_path / "tiny.py")) == jit.Ready(0, (tmp_path / "cache",), None, None)


def test_warming_up_in_vain_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backend, "compile_all", lambda: jit.Ready(7, (), "No space left on device", None))
    with pytest.raises(BackendError, match=r"No space left on device.*SPARSEGEN_CACHE_DIR"):
        NumbaBackend().warm_up()
    assert main(["warmup", "--backend", "numba"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(backend, "compile_all", lambda: jit.Ready(0, (tmp_path,), None, None))
    assert str(tmp_path) in NumbaBackend().warm_up()


def test_without_memory_for_it_nothing_is_compiled_and_the_process_lives(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """LLVM would end the process."""
    (tmp_path / "tiny.py").write_text(TINY)

    def limited(most: int) -> Callable[..., io.BytesIO]:
        def mapped(_: int, size: int) -> io.BytesIO:
            if size > most:
                raise OSError(12, "Cannot allocate memory")
            return io.BytesIO()

        return mapped

    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", limited(room.LOADING - 1))
        with pytest.raises(MemoryError, match="loading kernels takes 199 MB"):
            jit._make_ready(declare(tmp_path / "tiny.py"))
        patch.setattr(mmap, "mmap", limited(room.LOADING))
        with pytest.raises(MemoryError, match="compiling kernels takes 268 MB"):
            jit._make_ready(declare(tmp_path / "tiny.py"))
        assert capfd.readouterr().err == ""
    assert jit._make_ready(declare(tmp_path / "tiny.py")).compiled == 2
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", limited(room.LOADING))
        assert jit._make_ready(declare(tmp_path / "tiny.py")).compiled == 0, "to load takes less"


def test_an_interrupted_start_can_be_taken_up_again(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    declared = declare(tmp_path / "tiny.py")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(declared[1].dispatcher, "compile", interrupt)
        with pytest.raises(KeyboardInterrupt):
            jit._make_ready(declared)
    jit._make_ready(declared)
    assert [kernel(2.0) for kernel in declared] == [4.0, 6.0]


def test_a_kernel_is_compiled_when_it_is_first_called_and_no_other_is(
    declare: Declare, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    double, triple = declare(tmp_path / "tiny.py")
    assert not double.is_ready
    assert double(2.0) == 4.0 and double.is_ready and not triple.is_ready
    assert len(names(tmp_path / "cache")) == 1
    assert triple(2.0) == 6.0
    assert [line.split()[1] for line in capfd.readouterr().err.splitlines()] == ["compiling"], (
        "once, and quick"
    )
    double, triple = declare(tmp_path / "tiny.py")
    assert triple(2.0) == 6.0 and not double.is_ready
    assert capfd.readouterr().err == ""


def test_threads_that_call_a_kernel_at_once_make_it_once(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    double, _ = declare(tmp_path / "tiny.py")
    made, make_ready = [], jit.Kernel.make_ready

    def count(kernel: jit.Kernel) -> None:
        made.append(kernel.name)
        make_ready(kernel)

    monkeypatch.setattr(jit.Kernel, "make_ready", count)
    meet = threading.Barrier(4)

    def call(x: float) -> float:
        meet.wait(10)
        return double(x)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, [1.0, 2.0, 3.0, 4.0])) == [2.0, 4.0, 6.0, 8.0]
    assert made == ["tiny.double"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # what is tested
def test_a_process_forked_while_a_thread_makes_a_kernel_ready_can_make_others(
    declare: Declare, tmp_path: Path
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    double, triple = declare(tmp_path / "tiny.py")
    begun, child = threading.Event(), 0

    def make() -> None:
        with jit._lock:
            begun.set()
            time.sleep(0.2)
            double.ready()

    thread = threading.Thread(target=make)
    thread.start()
    begun.wait(10)
    child = os.fork()
    if not child:
        os._exit(0 if triple(2.0) == 6.0 and double.is_ready else 1)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_what_numba_cannot_rebuild_is_compiled_again(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    jit._make_ready(declare(tmp_path / "tiny.py"))

    def fail(*_: Any) -> None:
        raise RuntimeError("another Numba wrote this")

    with monkeypatch.context() as patch:
        patch.setattr(jit.CompileResult, "_rebuild", fail)
        assert jit._make_ready(declare(tmp_path / "tiny.py")).compiled == 2
    assert jit._make_ready(declare(tmp_path / "tiny.py")).compiled == 0


def test_numba_keeps_no_files_of_its_own() -> None:
    kernels = [kernel.dispatcher for kernel in jit._declared]
    assert kernels and all(compiled.stats.cache_path is None for compiled in kernels)


@pytest.mark.slow
def test_a_cold_cache_is_filled_once_also_by_two_processes_and_mended_where_it_is_damaged(
    tmp_path: Path,
) -> None:
    """One of this test's processes compiles; it takes the time that a user waits for the first result."""
    code = "from tests.backends.numba_work import digest; print(digest(2))"
    environment = {**os.environ, "SPARSEGEN_CACHE_DIR": str(tmp_path / "cache")}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    both = [start(), start()]
    outputs = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs

    def later() -> tuple[str, str]:
        process = start()
        out, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return out.strip(), said

    assert later() == (in_this_process(2), ""), "what is compiled is loaded, without a word"
    assert {out.strip() for out, _ in outputs} == {in_this_process(2)}
    # the smallest are compiled again soonest
    files = sorted((tmp_path / "cache").rglob("*.nbc"), key=lambda path: path.stat().st_size)
    assert len(files) >= 3, "no kernel's file is damaged below"
    for path, damage in zip(files, ("a bit of the code", "empty", "a folder"), strict=False):
        DAMAGES[damage](path)
    out, said = later()
    assert out == in_this_process(2) and "compiling up to" in said
    assert later() == (out, "")
    for _, said in outputs:
        first, *others = said.splitlines()
        assert re.fullmatch(
            r"sparsegen: compiling up to \d+ kernels for this processor, each once, when it is first used …",
            first,
        )
        line = rf"sparsegen: compiled \w+\.\w+ in \d+ s; kept in {tmp_path}/cache/.*"
        assert others and all(re.fullmatch(line, other) for other in others)
