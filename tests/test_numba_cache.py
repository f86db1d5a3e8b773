"""The compiled kernels: kept where the user says, trusted where nobody else writes, made with a word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsegen.backends import BackendError
from sparsegen.cli import main

numba = pytest.importorskip("numba")

from numba_work import HERE, in_this_process  # noqa: E402  (needs numba)

from sparsegen.backends.numba_cpu import NumbaBackend, jit  # noqa: E402  (needs numba)


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
    assert jit._usable(folder) == (folder, None)
    assert jit._usable(folder) == (folder, None), "and stays in use"
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
        used, why = jit._usable(folder)
        assert used.parent == private and not content(used) and str(folder) in why
    assert (tmp_path / "file").read_text() == "here already"


def test_a_folder_that_cannot_be_made_is_survived(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        used, why = jit._usable(tmp_path / "kernels")
    assert used.parent == private and not content(used) and "Permission denied" in why


def test_a_folder_that_cannot_be_written_is_copied(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # as root, permissions refuse nothing
    folder = kernels(tmp_path / "kernels")
    used, why = jit._usable(folder)
    assert used.parent == private and content(used) == ["winograd/convolve.nbc"]
    assert "Permission denied" in why
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
    used, why = jit._usable(folder)
    assert used.parent == private and not content(used)
    assert "others may write there" in why


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
            used, _ = jit._usable(folder)
        assert used.parent == private
        assert content(used) == (["winograd/convolve.nbc"] if trusted else [])


# -- what is said, and what a word may be relied on ------------------------------------------------------

TINY = """
def double(x):
    return x * 2.0


def triple(x):
    return x * 3.0
"""


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[tuple[Any, Any]]]:
    """Declares the functions of a source file as a new process would, with `tmp_path / "cache"` to keep them in."""
    monkeypatch.setattr(jit, "_folder", (tmp_path / "cache", None))

    def declare(source: Path) -> list[tuple[Any, Any]]:
        monkeypatch.setattr(jit, "_declared", [])
        functions: dict[str, Any] = {}
        exec(compile(source.read_text(), source, "exec"), functions)
        for name in ("double", "triple"):
            jit.kernel(numba.types.float64(numba.types.float64))(functions[name])
        return jit._declared

    return declare


def test_it_is_said_whenever_something_is_compiled_and_only_then(
    declare: Callable[..., list[tuple[Any, Any]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Numba files code by the place of its source: what another environment compiled is not there for this one."""
    here, there = tmp_path / "here" / "tiny.py", tmp_path / "there" / "tiny.py"
    for source in (here, there):
        source.parent.mkdir()
        source.write_text(TINY)
    for source, compiled in ((here, 2), (here, 0), (there, 2), (there, 0), (here, 0)):
        ready = jit._make_ready(declare(source), tmp_path / "cache", None)
        said = capfd.readouterr().err.splitlines()
        assert ready == jit.Ready(compiled, tmp_path / "cache", None)
        assert [line.split()[1] for line in said] == (["compiling", "compiled"] if compiled else [])
    here.write_text(TINY.replace("3.0", "4.0"))
    assert jit._make_ready(declare(here), tmp_path / "cache", None).compiled > 0
    assert "compiling" in capfd.readouterr().err
    assert [compiled(2.0) for compiled, _ in jit._declared] == [4.0, 8.0]


def test_somebody_elses_functions_are_not_announced(
    declare: Callable[..., list[tuple[Any, Any]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    declared = declare(tmp_path / "tiny.py")
    with numba.core.event.install_listener("numba:compile", jit._Progress([k for k, _ in declared])):
        numba.njit(lambda x: x + 1)(1)
    assert capfd.readouterr().err == ""


def test_what_could_not_be_kept_is_said_and_is_no_success(
    declare: Callable[..., list[tuple[Any, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
        ready = jit._make_ready(declare(tmp_path / "tiny.py"), tmp_path / "cache", None)
    assert ready.compiled == 2 and "No space left" in ready.lost
    assert [compiled(2.0) for compiled, _ in jit._declared] == [4.0, 6.0], "it computes all the same"
    assert re.search(r"compiled in \d+ s; but not kept \(.*No space left", capfd.readouterr().err)
    # a folder for this process alone: nothing is kept, unless there was nothing to compile
    ready = jit._make_ready(declare(tmp_path / "tiny.py"), tmp_path / "cache", "no right to write")
    assert ready == jit.Ready(2, tmp_path / "cache", "no right to write")
    ready = jit._make_ready(declare(tmp_path / "tiny.py"), tmp_path / "cache", "no right to write")
    assert ready == jit.Ready(0, tmp_path / "cache", None)


def test_warming_up_in_vain_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jit, "_ready", jit.Ready(7, tmp_path, "No space left on device"))
    with pytest.raises(BackendError, match=r"No space left on device.*SPARSEGEN_CACHE_DIR"):
        NumbaBackend().warm_up()
    assert main(["warmup", "--backend", "numba"]) != 0
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(jit, "_ready", jit.Ready(0, tmp_path, None))
    assert str(tmp_path) in NumbaBackend().warm_up()


def test_an_interrupted_start_can_be_taken_up_again(
    declare: Callable[..., list[tuple[Any, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    declared = declare(tmp_path / "tiny.py")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(declared[1][0], "compile", interrupt)
        with pytest.raises(KeyboardInterrupt):
            jit._make_ready(declared, tmp_path / "cache", None)
    jit._make_ready(declared, tmp_path / "cache", None)
    assert [compiled(2.0) for compiled, _ in declared] == [4.0, 6.0]


def test_other_functions_of_numba_keep_their_own_cache() -> None:
    assert Path(numba.config.CACHE_DIR or "/nowhere") != jit.cache_folder()
    stats = [Path(compiled.stats.cache_path) for compiled, _ in jit._declared]
    assert stats and all(path.is_relative_to(jit.cache_folder()) for path in stats)


@pytest.mark.slow
def test_a_cold_cache_is_filled_once_also_by_two_processes_and_says_so(tmp_path: Path) -> None:
    """One of this test's processes compiles; it takes the time that a user waits for the first result."""
    code = "from numba_work import digest; print(digest(2))"
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
        assert re.fullmatch(
            r"sparsegen: compiling up to \d+ kernels for this processor, once \(.*\) …", before
        )
        assert re.fullmatch(rf"sparsegen: compiled in \d+ s; kept in {tmp_path}/cache/.*", after)
