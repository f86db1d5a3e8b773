"""Files of compiled kernels: kept where the user says, trusted where nobody else writes, a miss where damaged."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sparsegen.backends import caches
from sparsegen.backends.caches import Folders, KernelFiles
from tests.backends.numba_damage import DAMAGES


def test_kernels_are_kept_where_the_user_says_else_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARSEGEN_CACHE_DIR", str(tmp_path / "mine"))
    assert caches.user_folder() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEGEN_CACHE_DIR", "mine")
    assert caches.user_folder() == tmp_path / "mine", "also once the working folder is another"
    monkeypatch.setenv("SPARSEGEN_CACHE_DIR", "~/mine")
    assert caches.user_folder() == Path.home() / "mine"
    monkeypatch.setenv("SPARSEGEN_CACHE_DIR", "")
    for system, variable, expected in (
        ("linux", "XDG_CACHE_HOME", tmp_path / "sparsegen"),
        ("win32", "LOCALAPPDATA", tmp_path / "sparsegen"),
        ("darwin", "XDG_CACHE_HOME", Path.home() / "Library" / "Caches" / "sparsegen"),
    ):
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setenv(variable, str(tmp_path))
        assert caches.user_folder() == expected


# -- which folder ----------------------------------------------------------------------------------------

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no owners and modes to ask for")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """The user's folder and the private one, neither of which exists, of kernels called "kernels"."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("SPARSEGEN_CACHE_DIR", str(tmp_path / "user"))
    return tmp_path / "user" / "kernels", caches.private_folder() / "kernels"


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
        assert caches.choose("kernels") == Folders((user, private), user, None, private)
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
    second = KernelFiles(caches.choose("kernels"))
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
    folders = caches.choose("kernels")
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
    folders = caches.choose("kernels")
    assert folders == Folders((private,), private, "this user has no home folder")
    save_and_load(folders)


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_nothing_is_loaded_from_where_others_may_write(places: tuple[Path, Path], mode: int) -> None:
    user, private = places
    filled(user).chmod(mode)
    folders = caches.choose("kernels")
    assert folders.keep == private and f"others may write to {user}" in str(folders.why)
    assert KernelFiles(folders).load("code", "key") is None
    user.chmod(0o700)
    (user / "code.nbc").chmod(mode)
    files = KernelFiles(caches.choose("kernels"))
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
        assert caches._trusted(state) == trusted
    if me == 0:
        folders = caches.choose("kernels")
        assert folders.keep == caches.private_folder() / "kernels" != private
        assert folders.why == f"{user} belongs to another user"
        assert KernelFiles(folders).load("code", "key") == b"machine code"


@posix
def test_a_private_folder_that_is_not_this_users_alone_is_not_used(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    user, private = places
    user.parent.write_text("no folder")

    def refused(objection: str) -> None:
        files = KernelFiles(caches.choose("kernels"))
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
    files = KernelFiles(caches.choose("kernels"))
    assert files.folders.keep == private
    private.parent.mkdir()
    private.parent.chmod(0o777)
    files.save("code", "key", b"new code")
    assert "others may write to" in str(files.lost) and not names(private.parent)


def test_where_the_users_folder_is_full_a_private_one_takes_what_is_new(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    user, private = places
    filled(user)
    write = caches._write

    def full(path: Path, content: bytes) -> None:
        if path.parent == user:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(caches, "_write", full)
    files = KernelFiles(caches.choose("kernels"))
    files.save("more", "key", b"more code")
    why = f"{user}: No space left on device"
    assert (files.lost, files.kept, files.why, files.used) == (None, private, why, {private})
    later = KernelFiles(caches.choose("kernels"))
    assert later.load("code", "key") == b"machine code" and later.load("more", "key") == b"more code"
    monkeypatch.setattr(caches, "_write", lambda *_: full(user / "any", b""))
    later.save("most", "key", b"most code")
    assert later.lost == f"{why}; {private}: No space left on device"


def test_several_processes_may_replace_a_folder_in_a_files_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path / "kernels")
    DAMAGES["a folder"](folder / "code.nbc")
    rmtree = shutil.rmtree

    def race(path: Path, **how: Any) -> None:
        """Another process is faster, and a third one puts a folder there again."""
        rmtree(path)
        rmtree(path, **how)
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        path.mkdir()

    monkeypatch.setattr(shutil, "rmtree", race)
    filled(folder)
    assert names(folder) == ["code.nbc"]


# -- damaged files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_miss_and_overwritten(tmp_path: Path, damage: str) -> None:
    folder = filled(tmp_path / "kernels")
    files = KernelFiles(Folders((folder,), folder, None))
    files.save("other", "key", b"other code")
    DAMAGES[damage](folder / "code.nbc")
    assert files.load("code", "key") is None
    files.save("code", "key", b"machine code")
    assert files.lost is None
    assert files.load("code", "key") == b"machine code"
    assert names(folder) == ["code.nbc", "other.nbc"]


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
        assert files.lost == f"{folder}: No space left on device"
        assert names(folder) == ["code.nbc"] and files.load("code", "key") == b"machine code"
