"""Checkpoint files made byte by byte, whole ones and lying ones; and what must become of those that lie."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from sparsegen.weights import CheckpointError
from sparsegen.weights.checkpoint import open_checkpoint
from sparsegen.weights.limits import BASE_BYTES

MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")


# Pickle, opcode by opcode.


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def named_by_stack(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def table(pairs: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in pairs.items()) + b"u"


def pickled(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def storage(key: str, numel: int, kind: str = "FloatStorage", *, legacy: bool = False) -> bytes:
    fields = [text("storage"), named("torch", kind), text(key), text("cpu"), number(numel)]
    return group(*fields, *([b"N"] if legacy else [])) + b"Q"


def counts(values: Sequence[int]) -> bytes:
    return group(*map(number, values))


def tensor(stored: bytes, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> bytes:
    hooks = named("collections", "OrderedDict") + b")R"
    arguments = [stored, number(offset), counts(shape), counts(strides), b"\x89", hooks]
    return named("torch._utils", "_rebuild_tensor_v2") + group(*arguments) + b"R"


# Containers.


def archive(
    entries: Sequence[tuple[str, bytes]],
    *,
    root: str = "archive/",
    method: int = 0,
    flags: int = 0x0808,
    lie: Mapping[str, Mapping[str, int]] | None = None,
    zip64: bool = True,
) -> bytes:
    """A zip as torch.save writes it (stored, streamed sizes, zip64 records).

    `lie[name]` overrides `packed`, `unpacked`, `offset`, `flags` or `method` of an entry in the directory.
    """
    out = bytearray()
    directory = bytearray()
    for name, data in entries:
        told = dict((lie or {}).get(name, {}))
        raw = (root + name).encode("utf-8", "surrogateescape")
        offset = told.get("offset", len(out))
        padding = -(len(out) + 30 + len(raw) + 4) % 64
        extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        out += struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 0, flags, method, 0, 0, 0, 0, 0, len(raw), len(extra))
        out += raw + extra + data
        out += struct.pack("<4sIII", b"PK\7\10", 0, len(data), len(data))
        packed, unpacked = told.get("packed", len(data)), told.get("unpacked", len(data))
        large = [value for value in (unpacked, packed, offset) if value >= 0xFFFFFFFF]
        more = (
            struct.pack("<HH", 1, 8 * len(large)) + struct.pack(f"<{len(large)}Q", *large) if large else b""
        )
        small = [min(value, 0xFFFFFFFF) for value in (packed, unpacked)]
        directory += struct.pack(
            "<4sHHHHHHIIIHHHHHII",
            *(b"PK\1\2", 0, 0, told.get("flags", flags), told.get("method", method), 0, 0, 0, *small),
            *(len(raw), len(more), 0, 0, 0, 0, min(offset, 0xFFFFFFFF)),
        )
        directory += raw + more
    start, count, length = len(out), len(entries), len(directory)
    out += directory
    if zip64:
        at = len(out)
        out += struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 798, 45, 0, 0, count, count, length, start)
        out += struct.pack("<4sIQI", b"PK\6\7", 0, at, 1)
    out += struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, length, start, 0)
    return bytes(out)


def torch_zip(body: bytes, storages: Mapping[str, bytes] | None = None, **how: object) -> bytes:
    """What torch.save writes for the object that `body` builds."""
    stored = [(f"data/{key}", data) for key, data in (storages or {}).items()]
    entries = [("data.pkl", pickled(body)), ("byteorder", b"little"), *stored, ("version", b"3\n")]
    return archive(entries, **how)  # type: ignore[arg-type]  # options by name, checked by the call


def torch_legacy(
    body: bytes, storages: Sequence[tuple[str, int, bytes]] = (), keys: bytes | None = None
) -> bytes:
    """What torch.save wrote before 1.6; `storages` are (key, elements, bytes)."""
    listed = b"](" + b"".join(text(key) for key, _, _ in storages) + b"e"
    system = table({"protocol_version": b"M\xe9\x03", "little_endian": b"\x88"})
    head = [b"\x8a\x0a" + MAGIC, b"M\xe9\x03", system, body, listed if keys is None else keys]
    data = b"".join(struct.pack("<q", count) + raw for _, count, raw in storages)
    return b"".join(map(pickled, head)) + data


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # As the library does, so that the data is aligned.
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


# Whole small files, to read and to damage.


def small_body(*, legacy: bool = False) -> bytes:
    first = storage("0", 6, legacy=legacy)
    second = storage("1", 4, "BFloat16Storage", legacy=legacy)
    return table(
        {
            "model": table(
                {
                    "weight": tensor(first, (2, 3), (3, 1)),
                    "transposed": tensor(first, (3, 2), (1, 3)),
                    "bias": tensor(second, (3,), (1,), 1),
                }
            ),
            "steps": b"](" + number(7) + tensor(first, (), (), 5) + b"e",
            "name": text("small"),
        }
    )


def small_storages() -> dict[str, bytes]:
    return {"0": struct.pack("<6f", *range(6)), "1": bytes(range(8))}


def small_zip() -> bytes:
    return torch_zip(small_body(), small_storages())


def small_legacy() -> bytes:
    data = small_storages()
    return torch_legacy(small_body(legacy=True), [("0", 6, data["0"]), ("1", 4, data["1"])])


def small_safetensors() -> bytes:
    header = {
        "__metadata__": {"format": "pt", "note": "small"},
        "weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "half": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "counter": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
        "nothing": {"dtype": "F16", "shape": [0, 5], "data_offsets": [40, 40]},
    }
    return safetensors(header, bytes(range(40)))


# What must become of a file that lies.

SECONDS = 2.0
"""How long any file may take, whatever is in it: of the processor, so that a busy machine does not decide."""


def assert_in_time(read: Callable[[], object]) -> None:
    """Call `read`, and once more if it took too long: on a busy machine shared caches slow a process down."""
    begun = time.process_time()
    read()
    if time.process_time() - begun >= SECONDS:
        begun = time.process_time()
        read()
        assert time.process_time() - begun < SECONDS


def memory_limit(size: int) -> int:
    """Twice the file, and what any file may take however small it is."""
    return 2 * size + BASE_BYTES


def refused(path: Path, raw: bytes) -> str:
    """Read `raw` within its time and memory; the message of the CheckpointError that must come."""
    path.write_bytes(raw)

    def opened() -> None:
        with pytest.raises(CheckpointError):
            open_checkpoint(path)

    assert_in_time(opened)
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < memory_limit(len(raw))
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isascii() and len(message) < 1000
    return message


def one_tensor(
    shape: Sequence[int] = (2, 3),
    strides: Sequence[int] = (3, 1),
    offset: int = 0,
    stored: bytes | None = None,
) -> bytes:
    """A dict with one tensor over a storage of six numbers."""
    return table({"x": tensor(storage("0", 6) if stored is None else stored, shape, strides, offset)})
