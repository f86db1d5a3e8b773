"""A zip archive with uncompressed entries in; the place of each entry out.

`zipfile` trusts an archive's description of itself. This reads the same structures and checks them all: entries are
stored uncompressed, lie inside the file, do not overlap, agree with their headers, and have one plain name each, all
under one root. So the contents are never larger than the file.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise

from ..errors import CheckpointError, shown
from ..limits import MAX_STORAGES, SAVE_ALONE, Budget
from .not_checkpoints import refuse_other_archives

_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")

_ENCRYPTED = 0x1 | 0x40
_STORED = 0
_IN_ZIP64 = 0xFFFFFFFF
_ENTRY_COST = 300
_LONGEST_NAME = 512

_CUT_SHORT = "The file is cut short or damaged: download or copy it again"
_REFUSED = "torch.save does not write such archives: download the file from its source again"


@dataclass(frozen=True, slots=True)
class Entry:
    """The bytes of one entry: `file[start:start + size]`."""

    start: int
    size: int


def _damaged(problem: str, where: str = "zip directory") -> CheckpointError:
    return CheckpointError(problem, where=where, advice=_CUT_SHORT)


def _directory(data: mmap.mmap, size: int) -> tuple[int, int, int]:
    """Start, length and entry count of the central directory."""
    # The end record ends the file, but for a comment of up to 64 KiB.
    at = data.rfind(b"PK\x05\x06", max(0, size - _END.size - 0xFFFF))
    if at < 0 or at + _END.size > size:
        raise _damaged("the archive has no end record")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(data, at)
    if at + _END.size + comment != size:
        raise _damaged("the archive's end record does not end the file")
    limit = at
    if disk or first_disk or here != count:
        raise _damaged("the archive claims to be spread over several disks")
    locator = at - _LOCATOR64.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        _, disk, limit, disks = _LOCATOR64.unpack_from(data, locator)
        if disk or disks > 1 or limit + _END64.size > locator:
            raise _damaged("the archive's zip64 record lies outside it")
        signature, _, _, _, disk, first_disk, here, count64, length64, start64 = _END64.unpack_from(
            data, limit
        )
        if signature != b"PK\x06\x06" or disk or first_disk or here != count64:
            raise _damaged("the archive's zip64 record is invalid")
        for small, large, marker in (
            (count, count64, 0xFFFF),
            (length, length64, _IN_ZIP64),
            (start, start64, _IN_ZIP64),
        ):
            if small not in (large, marker):
                raise _damaged("the archive's two end records contradict each other")
        count, length, start = count64, length64, start64
    if start + length > limit or count * _CENTRAL.size > length:
        raise _damaged(
            f"the archive claims {count} entries in {length} bytes at byte {start}, past its own end"
        )
    return start, length, count


def _zip64_fields(extra: bytes, values: list[int], name: str) -> list[int]:
    """`values` (size, packed size, offset); values that do not fit 32 bits are read from the extra field."""
    wanted = [index for index, value in enumerate(values) if value == _IN_ZIP64]
    at = 0
    while wanted and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        at += 4
        if kind == 1:
            if length < 8 * len(wanted) or at + 8 * len(wanted) > len(extra):
                break
            for index, value in zip(wanted, struct.unpack_from(f"<{len(wanted)}Q", extra, at), strict=True):
                values[index] = value
            return values
        at += length
    if wanted:
        raise _damaged("its 64-bit size is missing", f"entry {shown(name)}")
    return values


def _check_path(name: str) -> None:
    """Raise CheckpointError unless a name is a plain path; a folder's ends with a slash."""
    parts = name.removesuffix("/").split("/")
    # The root folder has the name of the file that torch.save wrote: it may contain a colon, but no drive.
    drive = len(parts[0]) == 2 and parts[0][1] == ":"
    if drive or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise CheckpointError(f"an entry's name is not a plain path: {shown(name)}", advice=_REFUSED)


@dataclass(frozen=True, slots=True)
class _Listed:
    """One entry as the directory lists it, not checked against its header."""

    raw_name: bytes
    flags: int
    method: int
    packed: int
    unpacked: int
    offset: int
    extra: bytes

    @property
    def name(self) -> str:
        """Its path, decoded as far as possible: `read_directory` refuses invalid UTF-8 later."""
        return self.raw_name.decode("utf-8", "replace")


def _list(data: mmap.mmap, size: int, budget: Budget) -> tuple[list[_Listed], int]:
    """The directory's entries, and its first byte."""
    start, length, count = _directory(data, size)
    if count > MAX_STORAGES:
        raise CheckpointError(
            f"the archive has {count} entries, at most {MAX_STORAGES} are read: one for each tensor and a few more",
            advice=SAVE_ALONE,
        )
    at, end = start, start + length
    found: list[_Listed] = []
    for _ in range(count):
        if at + _CENTRAL.size > end:
            raise _damaged("the directory ends in the middle of an entry")
        fields = _CENTRAL.unpack_from(data, at)
        signature, flags, method, packed, unpacked = (fields[i] for i in (0, 3, 4, 8, 9))
        name_bytes, extra_bytes, comment_bytes = fields[10:13]
        if signature != b"PK\x01\x02":
            raise _damaged(f"there is no entry at byte {at}")
        names_at = at + _CENTRAL.size
        extra_at = names_at + name_bytes
        at = extra_at + extra_bytes + comment_bytes
        if at > end:
            raise _damaged("an entry is longer than the directory")
        if name_bytes > _LONGEST_NAME:
            raise _damaged(f"an entry's name has {name_bytes} bytes")
        budget.take(_ENTRY_COST + 2 * name_bytes + extra_bytes)
        extra = data[extra_at : extra_at + extra_bytes]
        found.append(_Listed(data[names_at:extra_at], flags, method, packed, unpacked, fields[16], extra))
    if at != end:
        raise _damaged(f"the directory has {end - at} bytes after its {count} entries")
    return found, start


def read_directory(data: mmap.mmap, size: int, budget: Budget) -> dict[str, Entry]:
    """The places of the entries of an archive of torch.save.

    Parameters
    ----------
    data : mmap
        The mapped file.
    size : int
        Its size in bytes.
    budget : Budget
        Pays for the table.

    Returns
    -------
    dict of str to Entry
        By name without the root folder: "data.pkl" (always there), "data/0". Folders, which packing tools list as
        entries, are omitted.

    Raises
    ------
    CheckpointError
        The archive is of another program (TorchScript, NumPy, a zip around a checkpoint) or compressed; an entry is
        encrypted, outside the file, overlaps another, or its name is not a plain path, not unique or not under the one
        root.
    """
    found, start = _list(data, size, budget)
    # First the kind of the archive: for another program's, compression is not the fault to report.
    for each in found:
        _check_path(each.name)
    method = next((each.method for each in found if each.method != _STORED), _STORED)
    refuse_other_archives([each.name for each in found], method)
    entries: dict[str, Entry] = {}
    spans: list[tuple[int, int]] = []
    root = ""
    for each in found:
        full = each.name
        if full.encode("utf-8", "replace") != each.raw_name:
            raise _damaged(f"an entry's name is not UTF-8: {shown(each.raw_name)}")
        left_out = full.startswith("__MACOSX/") or full.rpartition("/")[2] == ".DS_Store"
        if "/" not in full and not left_out:
            raise CheckpointError(
                f"an entry lies outside the archive's one folder: {shown(full)}", advice=_REFUSED
            )
        where = f"entry {shown(full)}"
        if each.flags & _ENCRYPTED:
            raise CheckpointError("is encrypted", where=where, advice=_REFUSED)
        unpacked, packed, offset = _zip64_fields(each.extra, [each.unpacked, each.packed, each.offset], full)
        if packed != unpacked:
            raise _damaged(f"is stored uncompressed, but {packed} bytes hold {unpacked}", where)
        entry = _local(data, offset, packed, each.raw_name, start, where)
        spans.append((offset, entry.start + entry.size))
        if left_out:
            continue  # files that macOS adds when it packs an archive
        folder, _, name = full.partition("/")
        if root and folder != root:
            raise CheckpointError(
                f"the archive has two roots, {shown(root)} and {shown(folder)}", where=where, advice=_REFUSED
            )
        root = folder
        if name in entries:
            raise CheckpointError("is in the archive twice", where=where, advice=_REFUSED)
        if not name or name.endswith("/"):
            if entry.size:
                raise CheckpointError("is a folder that holds bytes", where=where, advice=_REFUSED)
        else:
            entries[name] = entry
    spans.sort()
    for (_, before), (after, _) in pairwise(spans):
        if after < before:
            raise CheckpointError(f"two entries share the bytes from {after} on", advice=_REFUSED)
    return entries


def _local(data: mmap.mmap, offset: int, size: int, raw_name: bytes, limit: int, where: str) -> Entry:
    """The bytes of an entry, by its header, which must agree with the directory."""
    if offset + _LOCAL.size > limit:
        raise _damaged(f"begins at byte {offset}, past the end of the data", where)
    signature, _, flags, method, _, _, _, packed, unpacked, name_bytes, extra_bytes = _LOCAL.unpack_from(
        data, offset
    )
    names_at = offset + _LOCAL.size
    if signature != b"PK\x03\x04" or data[names_at : names_at + name_bytes] != raw_name:
        raise _damaged("its own header names another entry", where)
    # 0: the sizes follow the data (torch.save streams them); all ones: they are in the extra field.
    if flags & _ENCRYPTED or method != _STORED or {packed, unpacked} - {size, 0, _IN_ZIP64}:
        raise _damaged("its own header contradicts the directory", where)
    start = names_at + name_bytes + extra_bytes
    if start + size > limit:
        raise _damaged(f"its {size} bytes at byte {start} run past the end of the data", where)
    return Entry(start, size)
