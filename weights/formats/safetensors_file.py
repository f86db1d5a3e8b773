"""A safetensors file in; tensors that are views of the mapped file, and its metadata, out.

The safetensors library checks the header first (its limits, offsets without holes or overlaps, the file's exact end).
It accepts a name twice; that is refused here.
"""

from __future__ import annotations

import json
import math
import struct

from safetensors import SafetensorError, safe_open

from ..dtypes import DTYPES, SAFETENSORS_CODES
from ..errors import CheckpointError, shown
from ..limits import MAX_DIMENSIONS, MAX_STORAGES
from ..mapped import MappedFile
from ..tensor import Storage, Tensor, checked_layout, contiguous_strides

_ADVICE = "The file is cut short or damaged: download or copy it again"
_METADATA_ADVICE = (
    "Save the file again with metadata of strings: save_file(tensors, path, metadata={'epoch': '3'})"
)

# A header of a thousand tensors has 120 KB. As Python objects a header takes some 20 times its bytes.
_HEADER_BASE, _HEADER_MOST = 1 << 20, 16 << 20


def header_bytes(file: MappedFile) -> int | None:
    """The length of the header in bytes; None if `file` does not begin like a safetensors file."""
    if file.size < 10:
        return None
    (length,) = struct.unpack_from("<Q", file.bytes, 0)
    plausible = file.bytes[8:9] == b"{" and length <= 100_000_000
    return int(length) if plausible else None


def read_safetensors(file: MappedFile) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read `file`'s header; the tensors' bytes are not read.

    Raises
    ------
    CheckpointError
        The safetensors library refuses the header, or a name is in it twice.
    """
    length = header_bytes(file)
    if length is None:
        raise CheckpointError("does not begin with a header", where="header", advice=_ADVICE)
    if 8 + length > file.size:
        raise CheckpointError(
            f"has {length} bytes, the file only {file.size}", where="header", advice=_ADVICE
        )
    if length > min(_HEADER_BASE + file.size // 16, _HEADER_MOST):
        raise CheckpointError(
            f"has {length} bytes, far more than a file of {file.size} bytes needs", where="header"
        )
    raw = file.bytes[8 : 8 + length]
    try:
        with safe_open(file.path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        header = _header(raw)
        _check_metadata(header)  # names the entry, if metadata is the reason
        _check_length(header, 8 + length, file.size)
        raise CheckpointError(shown(str(error), 200), where="header", advice=_ADVICE) from None
    header = _header(raw)
    metadata = _check_metadata(header)
    header.pop("__metadata__", None)
    if len(header) > MAX_STORAGES:
        raise CheckpointError(f"names {len(header)} tensors, at most {MAX_STORAGES} are read", where="header")
    tensors = {name: _tensor(name, info, 8 + length, file) for name, info in header.items()}
    return tensors, metadata


def _check_metadata(header: dict[str, object]) -> dict[str, str]:
    """The header's metadata: strings by name. Raises CheckpointError."""
    metadata = header.get("__metadata__")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise CheckpointError(
            f"is {_json_kind(metadata)}, expected an object of strings",
            where="__metadata__",
            advice=_METADATA_ADVICE,
        )
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise CheckpointError(
                f"holds {_json_kind(value)} as {shown(name)!r}, expected a string",
                where="__metadata__",
                advice=_METADATA_ADVICE,
            )
    return metadata


def _check_length(header: dict[str, object], begin: int, size: int) -> None:
    """Raise CheckpointError unless the tensors of the header end where the file of `size` bytes does."""
    entries = [each for name, each in header.items() if name != "__metadata__" and isinstance(each, dict)]
    ends = [each["data_offsets"][1:] for each in entries if isinstance(each.get("data_offsets"), list)]
    numbers = [each for end in ends for each in end if type(each) is int]
    expected = begin + max(numbers, default=0)
    if expected != size:
        raise CheckpointError(
            f"has {size} bytes, its header describes {expected}",
            advice=_ADVICE,
        )


def _json_kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return f"the number {shown(value)}"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def _header(raw: bytes) -> dict[str, object]:
    """The header's JSON, whose nesting and types the library has checked. Raises CheckpointError."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # add is None: falsy
            raise CheckpointError(f"the name {shown(twice)!r} is there twice", where="header", advice=_ADVICE)
        return result

    try:
        header = json.loads(raw, object_pairs_hook=unique, parse_int=_integer)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise CheckpointError("is not JSON", where="header", advice=_ADVICE) from None
    if not isinstance(header, dict):
        raise CheckpointError("is not a JSON object", where="header", advice=_ADVICE)
    return header


def _integer(digits: str) -> int:
    if len(digits) > 19:
        raise CheckpointError("holds a number of more than 19 digits", where="header", advice=_ADVICE)
    return int(digits)


def _tensor(name: str, info: object, base: int, file: MappedFile) -> Tensor:
    """One tensor. The header was parsed a second time, so its numbers are checked a second time."""
    where = f"tensor {shown(name)!r}"
    if not isinstance(info, dict) or not {"dtype", "shape", "data_offsets"} <= info.keys():
        raise CheckpointError("lacks its dtype, shape or offsets", where=where, advice=_ADVICE)
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_CODES:
        raise CheckpointError(
            f"has the element type {shown(dtype)}, which is not supported",
            where=where,
            advice="Save it as float16, bfloat16 or float32",
        )
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise CheckpointError("has a shape or offsets that are not lists", where=where, advice=_ADVICE)
    # Before strides are multiplied: beside a size of 0, the library accepts any others, even a million of them.
    if len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"has {len(shape)} dimensions, at most {MAX_DIMENSIONS} are read", where=where)
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end <= file.size - base:
        raise CheckpointError("has offsets outside the file", where=where, advice=_ADVICE)
    element = SAFETENSORS_CODES[dtype]
    storage = Storage(element, name, end - begin, base + begin)
    try:
        layout = checked_layout(storage, None, 0, shape, contiguous_strides(_counts(shape)))
    except CheckpointError as error:
        error.where = where
        raise
    if math.prod(layout.shape) * DTYPES[element].itemsize != end - begin:
        raise CheckpointError(
            f"has shape {list(layout.shape)} of {element} in {end - begin} bytes", where=where, advice=_ADVICE
        )
    return Tensor(name, layout, file)


def _counts(shape: list[object]) -> tuple[int, ...]:
    """`shape` for its strides; `checked_layout` reports entries that are not counts."""
    return tuple(n if type(n) is int and n >= 0 else 0 for n in shape)
