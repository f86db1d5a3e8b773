"""Pickles that would grow: past memory, past time, past the stack. Each is refused within twice its size."""

from __future__ import annotations

import struct

import hostile
import pytest
from hostile import group, named, refused, storage, table, tensor, text

ST = storage("0", 6)
SAFE = named("collections", "OrderedDict")


def nested(levels: int) -> bytes:
    """Lists of ten references to the list before: ten to the power of `levels` leaves."""
    body = b"]q\x00" + b"K\x01a0"
    for level in range(levels):
        body += b"](" + (b"h" + bytes([level])) * 10 + b"eq" + bytes([level + 1]) + b"0"
    return body + b"h" + bytes([levels])


MANY = 500_000
BOMBS = {
    "dicts": b"(" + b"}" * MANY + b"t",
    "lists": b"(" + b"]" * MANY + b"t",
    "sets": b"(" + b"\x8f" * MANY + b"t",
    "tuples in tuples": b")" + b"\x85" * MANY,
    "lists in lists": b"]" * MANY + b"a" * (MANY - 1),
    "dicts in dicts": b"}" + b"".join(b"K\x01}" for _ in range(MANY)) + b"s" * MANY,
    "marks": b"(" * MANY,
    "numbers": b"(" + b"M\x00\x01" * MANY + b"t",
    "references": b"]q\x00(" + b"h\x00" * MANY + b"t",
    "the memo": b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(200_000)),
    "memo places far apart": b"N" + b"r\xff\xff\xff\xff" + b"\x94" * MANY,
    "steps that build nothing": b"N0" * MANY + b"N",
    "duplicates": b"]" + b"2" * MANY,
    "a doubling tuple": b")" + b"q\x00h\x00\x86" * 3000,
    "a billion laughs": nested(9),
    "a list in itself": b"]q\x00h\x00a",
    "a dict in itself": b"}q\x00K\x01h\x00s",
    "a tuple in itself through a list": b"]q\x00h\x00\x85a",
    "a dict as key": b"}}K\x01s",
    "a deep tuple as key": b"})" + b"\x85" * 20_000 + b"K\x01s",
    "a tensor as key": b"}" + tensor(ST, (1,), (1,)) + b"K\x01s",
    "keys of one hash": b"}("
    + b"".join(b"\x8a\x0d" + (i * ((1 << 61) - 1)).to_bytes(13, "little") + b"N" for i in range(1, 50_000))
    + b"u",
    "dicts from one list, over and over": b"]("
    + b"))\x86" * 100
    + b"eq\x00"
    + (SAFE + b"h\x00\x85R0") * 20_000
    + b"N",
    "one long string, encoded over and over": text("a" * 100_000)
    + b"q\x00"
    + (named("_codecs", "encode") + group(b"h\x00", text("latin1")) + b"R0") * 5_000
    + b"N",
    "wide characters": b"X" + struct.pack("<I", 6_000_000) + b"\xf0\x9f\x98\x80" + b"a" * 5_999_996,
    "an integer of a megabyte": b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20),
    "decimal digits": b"I" + b"9" * 100_000 + b"\n",
    "a number that is none": b"I0x41\n",
    "an integer of negative length": b"\x8b" + struct.pack("<i", -5),
    "a string of negative length": b"T" + struct.pack("<i", -5),
    "a string of 4 GB": b"X\xff\xff\xff\xff",
    "a string of 8 exabytes": b"\x8d" + struct.pack("<Q", 1 << 63),
    "bytes of 4 GB": b"B\xff\xff\xff\xff",
    "bytes of 8 exabytes": b"\x8e" + struct.pack("<Q", (1 << 64) - 1),
    "a bytearray of 8 exabytes": b"\x96" + struct.pack("<Q", (1 << 64) - 1),
    "a frame of 8 exabytes": b"\x95" + struct.pack("<Q", 1 << 63) + b"N",
    "a name without end": b"c" + b"a" * 100_000,
    "a name of a megabyte": text("a" * (1 << 20)) + text("b") + b"\x93",
    "a memo place that is empty": b"h\x07",
    "values below a mark": b"N(\x85",
    "values below a mark, as a key": b"}N(Ns",
    "an empty stack": b"0",
    "an odd dict": b"}(K\x01u",
    "a group that was never opened": b"t",
    "values left behind": b"NN",
    "protocol 9": b"\x80\x09N",
    "two tensors of one name": b"}("
    + text("a")
    + table({"b": tensor(ST, (1,), (1,))})
    + text("a.b")
    + tensor(ST, (1,), (1,))
    + b"u",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb, tmp_path):
    refused(tmp_path / "x.pth", hostile.torch_zip(BOMBS[bomb], hostile.small_storages()))
