"""The compiled kernels: kept where the user says, trusted where nobody else writes, compiled again where damaged."""

from __future__ import annotations

import os
import re
import shutil
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

from sparsegen.backends.numba_cpu import NumbaBackend, cache, jit  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.cache import Folders, KernelFiles  # noqa: E402  (needs numba)


def test_kernels_are_kept_where_the_user_says_else_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARSEGEN_CACHE_DIR", str(tmp_path / "mine"))
    assert cache.user_folder() == tmp_path / "mine"
    monkeypatch.setenv("SPARSEGEN_CACHE_DIR", "")
    for system, variable, expected in (
        ("linux", "XDG_CACHE_HOME", tmp_path / "sparsegen"),
        ("win32", "LOCALAPPDATA", tmp_path / "sparsegen"),
        ("darwin", "XDG_CACHE_HOME", Path.home() / "Library" / "Caches" / "sparsegen"),
    ):
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setenv(variable, str(tmp_path))
        assert cache.user_folder() == expected


# -- which folder ----------------------------------------------------------------------------------------

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no owners and modes to ask for")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """The user's folder and the private one, neither of which exists, of kernels called "kernels"."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("SPARSEGEN_CACHE_DIR", str(tmp_path / "user"))
    return tmp_path / "user" / "kernels", cache.private_folder() / "kernels"


def filled(folder: Path, key: str = "key") -> Path:
    """A folder with a kernel called "code" in it."""
    folder.mkdir(parents=True, mode=0o755, exist_ok=True)
    files = KernelFiles(Folders((folder,), folder, None))
    files.save("code", key, b"machine code")
    assert files.lost is None
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError(13, "Permission denied")


def test_the_users_folder_is_made_and_written_by_the_user_alone(places: tuple[Path, Path]) -> None:
    user, private = places
    for _ in range(2):
        assert cache.choose("kernels") == Folders((user,), user, None)
        assert not names(user)
    filled(user)
    if sys.platform != "win32":
        assert not (user.stat().st_mode | (user / "code.nbc").stat().st_mode) & 0o022
    assert not private.parent.exists()


@posix
def test_files_are_written_by_the_user_alone_whatever_the_mask_of_the_process(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = filled(tmp_path / "kernels")
    finally:
        os.umask(before)
    assert (folder / "code.nbc").stat().st_mode & 0o777 == 0o644
    assert folder.stat().st_mode & 0o777 == 0o755


def save_and_load(folders: Folders) -> None:
    """A kernel that is kept is found by the next process, which chooses the same folders."""
    first = KernelFiles(folders)
    assert first.load("code", "other key") is None
    first.save("code", "other key", b"new code")
    assert first.lost is None and first.used == {folders.keep}
    second = KernelFiles(cache.choose("kernels"))
    assert second.folders == folders and second.load("code", "other key") == b"new code"


@pytest.mark.parametrize("what", ["a file", "a file above", "no right to make it", "no right to write"])
def test_where_the_users_folder_cannot_be_written_a_private_one_serves_every_process(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    user, private = places
    if what == "a file":
        user.parent.mkdir()
    if what.startswith("a file"):
        (user if what == "a file" else user.parent).write_text("here already")
    elif what == "no right to make it":
        mkdir = Path.mkdir
        monkeypatch.setattr(Path, "mkdir", lambda path, **k: refuse() if path == user else mkdir(path, **k))
    else:
        filled(user)
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # as root, permissions refuse nothing
    folders = cache.choose("kernels")
    assert folders == Folders((user, private), private, folders.why) and str(user) in str(folders.why)
    assert not private.parent.exists(), "made only when something is kept there"
    if what == "no right to write":
        assert KernelFiles(folders).load("code", "key") == b"machine code", "it is read where it lies"
        assert not private.parent.exists()
    save_and_load(folders)
    assert names(private.parent) == ["kernels", "kernels/code.nbc"]
    if sys.platform != "win32":
        assert private.parent.stat().st_mode & 0o777 == 0o700


@posix
def test_without_a_home_a_private_folder_serves_every_process(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number nobody has: Python raises RuntimeError there."""
    _, private = places

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("SPARSEGEN_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    folders = cache.choose("kernels")
    assert folders == Folders((private,), private, "this user has no home folder")
    save_and_load(folders)


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_nothing_is_loaded_from_where_others_may_write(places: tuple[Path, Path], mode: int) -> None:
    user, private = places
    filled(user).chmod(mode)
    folders = cache.choose("kernels")
    assert folders.keep == private and f"others may write to {user}" in str(folders.why)
    assert KernelFiles(folders).load("code", "key") is None
    user.chmod(0o700)
    (user / "code.nbc").chmod(mode)
    files = KernelFiles(cache.choose("kernels"))
    assert files.folders.keep == user and files.load("code", "key") is None
    files.save("code", "key", b"new code")
    assert files.load("code", "key") == b"new code", "a file that others may write is replaced"


@posix
def test_nothing_is_loaded_from_another_users_folder_but_the_administrators(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    user, private = places
    filled(user)
    me = os.getuid()
    for owner, trusted in ((me + 12345, False), (0, True)):
        monkeypatch.setattr(os, "getuid", lambda: 54321)
        state = os.stat_result((0o100755, 0, 0, 1, owner, 0, 0, 0, 0, 0))
        assert cache._trusted(state) == trusted
    if me == 0:
        folders = cache.choose("kernels")
        assert folders.keep == cache.private_folder() / "kernels" != private
        assert folders.why == f"{user} belongs to another user"
        assert KernelFiles(folders).load("code", "key") == b"machine code"


@posix
def test_a_private_folder_that_is_not_this_users_alone_is_not_used(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    user, private = places
    user.parent.write_text("no folder")

    def refused(objection: str) -> None:
        files = KernelFiles(cache.choose("kernels"))
        assert files.folders.keep is None and objection in str(files.folders.why)
        assert files.load("code", "key") is None
        files.save("code", "key", b"new code")
        assert files.lost == files.folders.why and files.load("code", "key") is None

    filled(private)
    private.parent.chmod(0o777)
    refused("others may write to")
    private.parent.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    private.parent.symlink_to(tmp_path / "elsewhere")
    refused("is a link")
    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    refused("Permission denied")


@posix
def test_a_private_folder_that_another_user_makes_first_is_not_used(places: tuple[Path, Path]) -> None:
    user, private = places
    user.parent.write_text("no folder")
    files = KernelFiles(cache.choose("kernels"))
    assert files.folders.keep == private
    private.parent.mkdir()
    private.parent.chmod(0o777)
    files.save("code", "key", b"new code")
    assert "others may write to" in str(files.lost) and not names(private.parent)


# -- damaged files ---------------------------------------------------------------------------------------


def put_folder(path: Path) -> None:
    path.unlink()
    (path / "with").mkdir(parents=True)
    (path / "with" / "something").write_bytes(b"in it")


def put_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "shorter than its digest": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "its digest alone": lambda path: path.write_bytes(path.read_bytes()[:32]),
    "cut off in the middle": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its last byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "with a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(os.urandom(5000)),
    "a bit of the digest": lambda path: flip(path, 3),
    "a bit of the code": lambda path: flip(path, path.stat().st_size // 2),
    "a pickle of something else": lambda path: path.write_bytes(b"\x80\x04K\x01."),
    "a folder": put_folder,
    "a broken link": put_link,
}
if hasattr(os, "mkfifo"):
    DAMAGES["a pipe that nobody writes to"] = put_pipe


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_miss_and_overwritten(tmp_path: Path, damage: str) -> None:
    folder = filled(tmp_path / "kernels")
    DAMAGES[damage](folder / "code.nbc")
    files = KernelFiles(Folders((folder,), folder, None))
    assert files.load("code", "key") is None
    files.save("code", "key", b"machine code")
    assert files.lost is None
    assert files.load("code", "key") == b"machine code"
    assert names(folder) == ["code.nbc"]


def test_another_kernels_file_is_a_miss(tmp_path: Path) -> None:
    folder = filled(tmp_path / "kernels", "its key")
    assert KernelFiles(Folders((folder,), folder, None)).load("code", "another key") is None


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path / "kernels")
    files = KernelFiles(Folders((folder,), folder, None))
    for failure in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(*_: Any, failure: BaseException = failure) -> None:
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fail)
            if isinstance(failure, KeyboardInterrupt):
                with pytest.raises(KeyboardInterrupt):
                    files.save("code", "key", b"new code")
            else:
                files.save("code", "key", b"new code")
        assert files.lost == "[Errno 28] No space left on device"
        assert names(folder) == ["code.nbc"] and files.load("code", "key") == b"machine code"


PROCESS = """
import times
from numba.types import float64
from sparsegen.backends.numba_cpu import jit

jit._declared.clear()
for function in times.FUNCTIONS:
    jit.kernel(float64(float64))(function)
ready = jit._make_ready(jit._declared)
assert [compiled(2.0) for compiled, _ in jit._declared] == [2.0 * n for n in range(len(times.FUNCTIONS))]
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


# -- what is said, and what a word may be relied on ------------------------------------------------------

TINY = """
def double(x):
    return x * 2.0


def triple(x):
    return x * 3.0
"""


Declare = Callable[[Path], list[tuple[Any, Any]]]


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Declare:
    """Declares the functions of a source file as a new process would, with `tmp_path / "cache"` to keep them in."""

    def declare(source: Path, why: str | None = None) -> list[tuple[Any, Any]]:
        folder = tmp_path / "cache"
        folder.mkdir(exist_ok=True)
        files = KernelFiles(Folders((folder,), folder, why))
        monkeypatch.setattr(jit, "kernel_files", lambda: files)
        monkeypatch.setattr(jit, "_declared", [])
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
        assert [compiled(2.0) for compiled, _ in jit._declared] == [4.0, 6.0]
    here.write_text(TINY.replace("3.0", "4.0"))
    assert jit._make_ready(declare(here)).compiled == 2
    assert "compiling" in capfd.readouterr().err
    assert [compiled(2.0) for compiled, _ in jit._declared] == [4.0, 8.0]


def test_a_private_folder_is_named_with_the_reason(
    declare: Declare, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    tmp_path.chmod(0o700)
    for compiled in (2, 0):
        declare(tmp_path / "tiny.py", why="this user has no home folder")
        ready = jit._make_ready(jit._declared)
        assert ready == jit.Ready(compiled, (tmp_path / "cache",), None, "this user has no home folder")
        monkeypatch.setattr(jit, "_ready", ready)
        said = NumbaBackend().warm_up()
        assert str(tmp_path / "cache") in said and "because this user has no home folder" in said
    assert f"kept in {tmp_path / 'cache'} (this user has no home folder)" in capfd.readouterr().err


def test_somebody_elses_functions_are_not_announced(
    declare: Declare, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    declared = declare(tmp_path / "tiny.py")
    with numba.core.event.install_listener("numba:compile", jit._Progress([k for k, _ in declared])):
        numba.njit(lambda x: x + 1)(1)
    assert capfd.readouterr().err == ""


def test_what_could_not_be_kept_is_said_and_is_no_success(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_write", full)
        ready = jit._make_ready(declare(tmp_path / "tiny.py"))
    assert ready.compiled == 2 and ready.lost is not None and "No space left" in ready.lost
    assert [compiled(2.0) for compiled, _ in jit._declared] == [4.0, 6.0], "it computes all the same"
    assert re.search(r"compiled in \d+ s; but not kept \(.*No space left", capfd.readouterr().err)
    assert jit._make_ready(declare(tmp_path / "tiny.py")).lost is None
    assert jit._make_ready(declare(tmp_path / "tiny.py")) == jit.Ready(0, (tmp_path / "cache",), None, None)


def test_warming_up_in_vain_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jit, "_ready", jit.Ready(7, (), "No space left on device", None))
    with pytest.raises(BackendError, match=r"No space left on device.*SPARSEGEN_CACHE_DIR"):
        NumbaBackend().warm_up()
    assert main(["warmup", "--backend", "numba"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(jit, "_ready", jit.Ready(0, (tmp_path,), None, None))
    assert str(tmp_path) in NumbaBackend().warm_up()


def test_without_memory_for_it_nothing_is_compiled_and_the_process_lives(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """LLVM would end the process."""
    (tmp_path / "tiny.py").write_text(TINY)

    def full(*_: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(jit.mmap, "mmap", full)
        with pytest.raises(MemoryError, match="compiling kernels takes 268 MB"):
            jit._make_ready(declare(tmp_path / "tiny.py"))
        assert capfd.readouterr().err == ""
    assert jit._make_ready(declare(tmp_path / "tiny.py")).compiled == 2
    with monkeypatch.context() as patch:
        patch.setattr(jit.mmap, "mmap", full)
        assert jit._make_ready(declare(tmp_path / "tiny.py")).compiled == 0, "to load takes less"


def test_an_interrupted_start_can_be_taken_up_again(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    declared = declare(tmp_path / "tiny.py")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(declared[1][0], "compile", interrupt)
        with pytest.raises(KeyboardInterrupt):
            jit._make_ready(declared)
    jit._make_ready(declared)
    assert [compiled(2.0) for compiled, _ in declared] == [4.0, 6.0]


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
    kernels = [compiled for compiled, _ in jit._declared]
    assert kernels and all(compiled.stats.cache_path is None for compiled in kernels)


@pytest.mark.slow
def test_a_cold_cache_is_filled_once_also_by_two_processes_and_mended_where_it_is_damaged(
    tmp_path: Path,
) -> None:
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

    def later() -> tuple[str, str]:
        process = start()
        out, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return out.strip(), said

    assert later() == (in_this_process(2), ""), "what is compiled is loaded, without a word"
    assert {out.strip() for out, _ in outputs} == {in_this_process(2)}
    files = sorted((tmp_path / "cache").rglob("*tiles*.nbc"), key=lambda path: path.name)
    for path, damage in zip(files, ("a bit of the code", "empty", "a folder"), strict=False):
        DAMAGES[damage](path)
    out, said = later()
    assert out == in_this_process(2) and "compiled in" in said
    assert later() == (out, "")
    for _, said in outputs:
        before, after = said.splitlines()
        assert re.fullmatch(
            r"sparsegen: compiling up to \d+ kernels for this processor, once \(.*\) …", before
        )
        assert re.fullmatch(rf"sparsegen: compiled in \d+ s; kept in {tmp_path}/cache/.*", after)
