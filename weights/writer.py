"""Arrays by name in; a safetensors file out, complete or not at all, with one array in memory at a time."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError, shown

_CODES = {
    "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "b1": "BOOL",
    "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64", "u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64",
}  # fmt: skip
"""NumPy's types -> safetensors' types."""
_FLOATING = {"float16": 2, "bfloat16": 2, "float32": 4}
"""Types that floating-point arrays are cast to -> bytes of an element."""
_ENTRY = 512
"""Bytes that a tensor's entry in the header takes at most, without its name: 20 sizes and two offsets."""


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
    dtype: Literal["float16", "float32"] | Mapping[str, str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Write `tensors` to `path`; a file that is there is replaced once the new one is complete on the disk.

    Parameters
    ----------
    path : path
        The file to create or replace.
    tensors : mapping of str to ndarray
        May be lazy: each is read once.
    metadata : mapping of str to str, optional
        Stored in the header, as it is after the last tensor was read: a digest may then replace a placeholder of the
        same length.
    dtype : {"float16", "float32"} or mapping of str to str, optional
        The type that floating-point tensors are cast to; others keep theirs. A mapping gives one for each name, also
        "bfloat16"; tensors that it omits keep theirs. Of several types, the wider ones are read and written first.
    progress : callable, optional
        Called as `progress(done, total, name)` after each tensor was read.

    Raises
    ------
    CheckpointError
        A value does not fit float16, safetensors does not support a type, or the disk fails. The old file is then
        unchanged, and no other file is left.
    """
    path = os.fspath(path)
    kinds = dict(dtype) if isinstance(dtype, Mapping) else dict.fromkeys(tensors, dtype) if dtype else {}
    for kind in kinds.values():
        if kind not in _FLOATING:
            raise CheckpointError(
                f"cannot be written as {shown(kind)}, expected float16, bfloat16 or float32", path=path
            )
    existed = os.path.lexists(path)
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise CheckpointError(
                "metadata holds a value that is not a string",
                path=path,
                where=shown(key),
                advice="Use json.dumps",
            )
    folder, name = os.path.split(os.path.abspath(path))
    temporary = ""
    try:
        # In the same folder, so that the replacement is a rename and never a copy.
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=folder)
        with open(handle, "wb") as file:
            _write(file, path, tensors, metadata or {}, kinds, progress)
        os.chmod(temporary, _mode(path))
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise CheckpointError(
                f"could not be written: {getattr(error, 'strerror', None) or error}",
                path=path,
                advice="The file that was there before is unchanged"
                if existed
                else "Nothing was left behind",
            ) from error
        raise
    with contextlib.suppress(OSError):
        _flush(folder)


def _write(
    file: BinaryIO,
    path: str,
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
    kinds: Mapping[str, str],
    progress: Callable[[int, int, str], None] | None,
) -> None:
    """Write the tensors' bytes one after another, then the header into the space left for it at the start.

    (The library's writer copies everything at once; a session's canvases leave no memory for that.)
    """
    room = len(json.dumps(dict(metadata))) + sum(len(json.dumps(key)) + _ENTRY for key in tensors)
    room += -room % 8
    file.write(bytes(8 + room))
    header: dict[str, Any] = {}
    end = 0

    def put(key: str, code: str, array: NDArray[Any]) -> None:
        nonlocal end
        header[key] = {
            "dtype": code,
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        if array.nbytes:
            file.write(array.reshape(-1).view(np.uint8).data)
        end += array.nbytes

    # narrower types are written last, so that every array is aligned to its item size
    width = {key: _FLOATING.get(kinds.get(key, ""), 4) for key in tensors}
    narrow: dict[str, tuple[str, NDArray[Any]]] = {}
    for done, key in enumerate(sorted(tensors, key=lambda key: -width[key]), start=1):
        code, array = _ready(path, key, tensors[key], kinds.get(key))
        if array.dtype.itemsize < width[key]:
            narrow[key] = code, array
        else:
            put(key, code, array)
        if progress is not None:
            progress(done, len(tensors), key)
    for key, (code, array) in sorted(narrow.items(), key=lambda item: -item[1][1].dtype.itemsize):
        put(key, code, array)
    if metadata:
        header["__metadata__"] = dict(metadata)
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > room:
        raise CheckpointError("the metadata grew while the tensors were written", path=path)
    file.seek(0)
    file.write(room.to_bytes(8, "little") + text.ljust(room))


def _ready(path: str, name: str, array: NDArray[Any], dtype: str | None) -> tuple[str, NDArray[Any]]:
    """safetensors' type, and `array` cast to `dtype`, contiguous and little-endian. Raises CheckpointError."""
    array, bits = np.asarray(array), False
    if dtype is not None and array.dtype.kind == "f" and array.dtype.name != dtype:
        with np.errstate(over="ignore"):
            bits = dtype == "bfloat16"
            cast = _rounded(array.astype(np.float32)) if bits else array.astype(dtype)
        if np.count_nonzero(np.isinf(cast)) != np.count_nonzero(np.isinf(array)):
            raise CheckpointError(
                f"holds values up to {np.max(np.abs(array[np.isfinite(array)])):.6g}, too large for {dtype}",
                path=path,
                where=f"tensor {shown(name)}",
                advice="Write it as float32",
            )
        # the upper half of a float32 is the bfloat16 of the same value
        array = (cast.view(np.uint32) >> 16).astype(np.uint16) if bits else cast
    if array.dtype.str[1:] not in _CODES:
        raise CheckpointError(
            f"has the type {array.dtype}, which safetensors does not support",
            path=path,
            where=f"tensor {shown(name)}",
        )
    code = "BF16" if bits else _CODES[array.dtype.str[1:]]
    return code, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def _rounded(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """`array` rounded to the nearest bfloat16, of two the even one; NaN and infinity stay."""
    bits = np.ascontiguousarray(array).view(np.uint32).reshape(array.shape)
    half = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    nearest = np.where(np.isfinite(array), bits + half, bits) & np.uint32(0xFFFF0000)
    return np.asarray(np.where(np.isnan(array), np.float32(np.nan), nearest.view(np.float32)))


def _mode(path: str) -> int:
    """The permissions of the file that is replaced, or of a new file."""
    try:
        return os.stat(path).st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _flush(path: str) -> None:
    """Wait until `path` is on the disk: a power cut after the rename must not leave an empty file."""
    # Windows flushes only files that are open for writing, and has no handles of folders.
    handle = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
