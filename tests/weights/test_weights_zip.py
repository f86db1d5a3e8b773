"""Zip archives that lie: sizes, places, names, roots, compression; no one gets past the directory."""

from __future__ import annotations

import struct
import zipfile

import pytest

from tests.weights import hostile
from tests.weights.hostile import one_tensor, refused

DATA = hostile.small_storages()["0"]
BODY = one_tensor()
GOOD = [("data.pkl", hostile.pickled(BODY)), ("data/0", DATA)]


def patched(signature: bytes, at: int, layout: str, value: int, raw: bytes | None = None) -> bytes:
    """A good archive with one field of its last record of that kind overwritten."""
    changed = bytearray(hostile.archive(GOOD) if raw is None else raw)
    struct.pack_into(layout, changed, changed.rindex(signature) + at, value)
    return bytes(changed)


def repeated(times: int) -> bytes:
    """The zip bomb without compression: a directory whose entries all name the same bytes."""
    whole = hostile.archive([*GOOD, ("data/1", b"x" * 1000)], zip64=False)
    end = whole.rindex(b"PK\5\6")
    (start,) = struct.unpack_from("<I", whole, end + 16)
    last = whole[whole.rindex(b"PK\1\2", start, end) : end]
    directory = whole[start:end] + last * times
    count = 3 + times
    return (
        whole[:start]
        + directory
        + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
    )


ZIP_LIES = {
    "compressed": (hostile.archive(GOOD, method=8), "compressed"),
    "compressed in the directory only": (hostile.archive(GOOD, lie={"data/0": {"method": 8}}), "compressed"),
    "compressed with lzma": (
        hostile.archive(GOOD, lie={"data.pkl": {"method": 14}}),
        "compressed (method 14)",
    ),
    "encrypted": (hostile.archive(GOOD, flags=0x1), "encrypted"),
    "encrypted in the directory only": (hostile.archive(GOOD, lie={"data/0": {"flags": 1}}), "encrypted"),
    "a size too large": (
        hostile.archive(GOOD, lie={"data/0": {"packed": 10**6, "unpacked": 10**6}}),
        "data/0",
    ),
    "a size of 8 exabytes": (
        hostile.archive(GOOD, lie={"data/0": {"packed": 1 << 63, "unpacked": 1 << 63}}),
        "",
    ),
    "a size too small": (
        hostile.archive(GOOD, lie={"data/0": {"packed": 20, "unpacked": 20}}),
        "according to the pickle",
    ),
    "two sizes": (
        hostile.archive(GOOD, lie={"data/0": {"packed": 24, "unpacked": 1 << 40}}),
        "24 bytes hold",
    ),
    "an offset past the end": (hostile.archive(GOOD, lie={"data/0": {"offset": 1 << 40}}), "begins at byte"),
    "an offset into another entry": (hostile.archive(GOOD, lie={"data/0": {"offset": 0}}), "another entry"),
    "an offset between entries": (hostile.archive(GOOD, lie={"data/0": {"offset": 5}}), "another entry"),
    "the same bytes many times": (repeated(1000), "twice"),
    "a name twice": (hostile.archive([*GOOD, GOOD[0]]), "twice"),
    "a storage twice": (hostile.archive([*GOOD, GOOD[1]]), "twice"),
    "a parent folder": (hostile.archive([*GOOD, ("../evil", b"x")]), "not a plain path"),
    "a parent folder inside": (hostile.archive([*GOOD, ("data/../data.pkl", b"x")]), "not a plain path"),
    "an absolute path": (hostile.archive(GOOD, root="/archive/"), "not a plain path"),
    "a backslash": (hostile.archive([*GOOD, ("data\\0", b"x")]), "not a plain path"),
    "a drive": (hostile.archive(GOOD, root="c:/archive/"), "not a plain path"),
    "a dot": (hostile.archive([*GOOD, ("./data.pkl", b"x")]), "not a plain path"),
    "an empty part": (hostile.archive([*GOOD, ("data//0", b"x")]), "not a plain path"),
    "a folder entry with bytes": (hostile.archive([*GOOD, ("data/", b"x")]), "folder that holds bytes"),
    "a root folder with bytes": (hostile.archive([*GOOD, ("", b"x")]), "folder that holds bytes"),
    "a folder entry twice": (hostile.archive([*GOOD, ("data//", b"")]), "not a plain path"),
    "a folder entry of another root": (
        hostile.archive([("a/" + n, d) for n, d in GOOD] + [("b/", b"")], root=""),
        "two roots",
    ),
    "a folder entry over data": (
        hostile.archive([*GOOD, ("data/", b"")], lie={"data/": {"offset": 0}}),
        "another entry",
    ),
    "a folder entry that is compressed": (
        hostile.archive([*GOOD, ("data/", b"")], lie={"data/": {"method": 8}}),
        "compressed",
    ),
    "a folder entry that is encrypted": (
        hostile.archive([*GOOD, ("data/", b"")], lie={"data/": {"flags": 1}}),
        "encrypted",
    ),
    "data.pkl below another folder": (hostile.archive(GOOD, root="backup/archive/"), "one folder"),
    "data.pkl as a folder": (hostile.archive([("data.pkl/", b""), GOOD[1]]), "without data.pkl"),
    "a zero byte": (hostile.archive([*GOOD, ("data/0\0.png", b"x")]), "not a plain path"),
    "a name that is not UTF-8": (hostile.archive([*GOOD, ("\udcff", b"x")]), "not UTF-8"),
    "a name of many bytes": (hostile.archive([*GOOD, ("x" * 60000, b"x")]), "bytes"),
    "no folder": (hostile.archive(GOOD, root=""), "one folder"),
    "no data.pkl": (hostile.archive([GOOD[1]]), "without data.pkl"),
    "nothing": (hostile.archive([]) + b"", "empty zip"),
    "bytes after the pickle": (
        hostile.archive([("data.pkl", GOOD[0][1] + b"N."), GOOD[1]]),
        "follow the pickle",
    ),
    "a strange byte order": (hostile.archive([*GOOD, ("byteorder", b"middle")]), "byteorder"),
    "something after the archive": (hostile.archive(GOOD) + b"x", "does not end the file"),
    "a comment longer than the file": (patched(b"PK\5\6", 20, "<H", 9), "does not end the file"),
    "more entries than there are": (patched(b"PK\5\6", 10, "<H", 9, hostile.archive(GOOD, zip64=False)), ""),
    "two counts": (patched(b"PK\5\6", 10, "<H", 9), "disks"),
    "a million entries": (patched(b"PK\6\6", 32, "<Q", 10**6), ""),
    "several disks": (patched(b"PK\5\6", 4, "<H", 1), "disks"),
    "a directory past the end": (patched(b"PK\6\6", 48, "<Q", 1 << 62), "contradict"),
    "a directory of huge size": (patched(b"PK\6\6", 40, "<Q", 1 << 62), "contradict"),
    "a zip64 record elsewhere": (patched(b"PK\6\7", 8, "<Q", 1 << 62), "zip64"),
    "a zip64 record over the first entry": (patched(b"PK\6\7", 8, "<Q", 0), "zip64"),
    "a damaged directory": (patched(b"PK\1\2", 0, "<I", 0), "no entry"),
    "a directory entry with a long name": (patched(b"PK\1\2", 28, "<H", 60000), "longer than the directory"),
    "a missing 64-bit size": (patched(b"PK\1\2", 20, "<I", 0xFFFFFFFF), "64-bit"),
    "another local name": (patched(b"PK\3\4", 30, "<B", 0x41), "another entry"),
    "a local entry that is compressed": (patched(b"PK\3\4", 8, "<H", 8), "contradicts"),
    "a local entry that is encrypted": (patched(b"PK\3\4", 6, "<H", 1), "contradicts"),
    "another local size": (patched(b"PK\3\4", 18, "<I", 99), "contradicts"),
    "a local extra field past the end": (patched(b"PK\3\4", 28, "<H", 0xFFFF), "past the end"),
}


@pytest.mark.parametrize("lie", ZIP_LIES)
def test_lying_zip_files(lie, tmp_path):
    raw, expected = ZIP_LIES[lie]
    if lie == "nothing":
        raw = raw[raw.index(b"PK\5\6") :]
    assert expected in refused(tmp_path / "x.pth", raw)


def test_an_entry_inside_another(tmp_path):
    """The bomb that quotes headers: data/0 holds the whole of data/1, header and all."""
    inner = hostile.archive([("data/1", DATA)])
    inner = inner[: inner.index(DATA) + len(DATA)]
    outer = hostile.archive([GOOD[0], ("data/0", inner)])
    place = outer.index(inner)
    both = hostile.archive([GOOD[0], ("data/0", inner), ("data/1", DATA)], lie={"data/1": {"offset": place}})
    assert "share the bytes" in refused(tmp_path / "x.pth", both)


def test_two_roots(tmp_path):
    first, second = hostile.archive(GOOD, zip64=False), hostile.archive(GOOD, root="b/", zip64=False)
    names = [("data.pkl", GOOD[0][1]), ("data/0", DATA)]
    both = hostile.archive([("a/" + n, d) for n, d in names] + [("b/" + n, d) for n, d in names], root="")
    assert "two roots" in refused(tmp_path / "x.pth", both)
    refused(tmp_path / "x.pth", first + second)


def test_a_deflate_bomb_is_never_inflated(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", hostile.pickled(BODY))
        file.writestr("archive/data/0", bytes(1 << 28))
    assert path.stat().st_size < 1 << 19
    assert "compressed" in refused(path, path.read_bytes())
