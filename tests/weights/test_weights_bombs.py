"""Pickles that would grow: past memory, past time, past the stack. Each is refused within twice its size."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from sparsegen.weights.checkpoint import open_checkpoint
from tests.weights import hostile
from tests.weights.hostile import group, named, refused, storage, table, tensor, text

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


# What is passed over must not open a way round the budget. Every one of these is a dict with one tensor, so that it
# would be read if it were cheap.

ONE = text("x") + tensor(ST, (1,), (1,))


def beside(body: bytes) -> bytes:
    return b"}(" + text("log") + body + ONE + b"u"


def numbered(value: bytes, count: int) -> bytes:
    """A list of so many values, each remembered under its own number and referred to once more."""
    made = b"".join(value + b"r" + struct.pack("<I", 10 + i) for i in range(count))
    used = b"".join(b"j" + struct.pack("<I", 10 + i) for i in range(count))
    return b"](" + made + b"e0](" + used + b"e"


PASSED_BY = {
    "values that are referred to again": beside(numbered(b"}", 100_000)),
    "texts that are referred to again": beside(numbered(text("a" * 60), 200_000)),
    "tuples that are referred to again": beside(numbered(b"K\x01K\x02\x86", 100_000)),
    "a list in each of many groups, kept by the memo": beside(
        b"](" + b"".join(b"](N}}}}}}}}eq\x01h\x010" for _ in range(20_000)) + b"e"
    ),
    "groups in groups": beside(b"](" * 200_000 + b"N" * 300 + b"e" * 200_000),
    "new names in groups": beside(
        b"](" + b"".join(named("pytorch_lightning", f"A{i:06d}") + b"0N" for i in range(100_000)) + b"e"
    ),
    "places that are referred to and never filled": beside(
        b"N" + b"".join(b"0j" + struct.pack("<I", i) for i in range(300_000))
    ),
    "a deep tuple as key": beside(b"}" + b")" + b"\x85" * 20_000 + b"Ns"),
    "a broad tuple as key": beside(b"}(" + b"K\x01" * 200 + b"tNs"),
    "tuples as keys, each large": beside(
        b"})q\x00" + text("a" * 250) * 8 + b"0" * 7 + b"\x85q\x010(" + b"h\x01N" * 200_000 + b"u"
    ),
    "tuples as keys, from one": beside(
        (b"(" + b"K\x01" * 15 + b"tq\x010") + b"](" + b"}h\x01Ns" * 300_000 + b"e"
    ),
    "a name that is a long text": beside(text("torch") + text("a" * 5000) + b"\x93"),
    "a long text of negative length": beside(b"T" + struct.pack("<i", -5000)),
    "a long text that is not there": beside(b"X" + struct.pack("<I", 1 << 30)),
    "a queue from a list, over and over": beside(
        b"](" + b"]" * 200 + b"eq\x000](" + (named("collections", "deque") + b"h\x00\x85R") * 20_000 + b"e"
    ),
    "a size that was passed over": beside(tensor(ST, (1,) * 300, (1,) * 300)),
    "strides that were passed over": beside(
        hostile.named("torch._utils", "_rebuild_tensor")
        + group(ST, b"K\x00", b"](" + b"K\x01" * 300 + b"e", b"](" + b"K\x01" * 300 + b"e")
        + b"R"
    ),
    "metadata that was passed over": beside(
        hostile.named("torch._utils", "_rebuild_tensor_v2")
        + group(ST, b"K\x00", b"K\x06\x85", b"K\x01\x85", b"\x89", b"N")[:-1]
        + (b"}(" + text("neg") + b"\x88" + b"".join(hostile.number(i) + b"N" for i in range(300)) + b"ut")
        + b"R"
    ),
    "two ways of numbering objects": beside(b"]q\x00]\x94h\x00"),
    "two ways of numbering objects, the other way round": beside(b"]\x94]q\x01h\x01"),
    "getattr, with a call of another": beside(
        named("builtins", "getattr") + b"0" + named("builtins", "type") + b"N\x85R"
    ),
    "getattr of a function": beside(
        named("builtins", "getattr") + group(named("_codecs", "encode"), text("__globals__")) + b"R"
    ),
    "getattr of a private name": beside(
        named("builtins", "getattr") + group(named("zoneinfo", "ZoneInfo"), text("__init__")) + b"R"
    ),
    "getattr as a value": beside(named("builtins", "getattr")),
    "type of three": beside(named("builtins", "type") + group(text("A"), b")", b"}") + b"R"),
    "partial of a text": beside(named("functools", "partial") + group(text("touch canary")) + b"R"),
    "partial of getattr": beside(named("functools", "partial") + group(named("builtins", "getattr")) + b"R"),
    "a call of a partial": beside(
        named("functools", "partial") + group(named("torch.nn.functional", "relu")) + b"R" + b")R"
    ),
    "an object of a class that may be named only": beside(
        named("torch.nn.modules.activation", "ReLU") + b")\x81"
    ),
}


@pytest.mark.parametrize("bomb", PASSED_BY)
def test_nothing_gets_round_the_budget(bomb, tmp_path):
    refused(tmp_path / "x.pth", hostile.torch_zip(PASSED_BY[bomb], hostile.small_storages()))


# And what is cheap is read: in time, and in little memory, however much of it there is.

ONE_HASH = [b"\x8a\x0d" + (i * ((1 << 61) - 1)).to_bytes(13, "little") + b"\x85N" for i in range(1, 10_000)]

CHEAP = {
    "numbers that end in no list": b"(" + b"K\x01" * MANY + b"0" + b"t",
    "numbers that end in a dict": b"}(" + b"G@\x00\x00\x00\x00\x00\x00\x00" * 600_000 + b"u",
    "a short text, encoded over and over": (
        text("a" * 4000)
        + b"q\x000"
        + (named("_codecs", "encode") + b"q\x010" + text("latin1") + b"q\x020")
        + (b"](" + b"h\x01h\x00h\x02\x86R" * 20_000 + b"e")
    ),
    "tuples of one hash as keys": b"}"
    + b"".join(b"(" + b"".join(ONE_HASH[i : i + 100]) + b"u" for i in range(0, len(ONE_HASH), 100)),
    "long texts as keys": b"}(" + (text("a" * 5000) + b"N") * 100 + b"u",
    "numbers": b"](" + b"N" * 3_000_000 + b"e",
    "numbers in a tuple": b"(" + b"K\x01" * 2_000_000 + b"t",
    "lists of numbers": b"](" + (b"](" + b"N" * 1000 + b"e") * 3000 + b"e",
    "many short lists": b"]" + (b"(" + (b"](" + b"N" * 100 + b"e") * 1000 + b"e") * 10,
    "a long text": text("a" * 8_000_000),
    "long texts": b"](" + text("a" * 10_000) * 500 + b"e",
    "objects remembered in vain": b"]("
    + b"".join(b"}r" + struct.pack("<I", i) for i in range(60_000))
    + b"e",
    "a queue": named("collections", "deque") + b")R(" + b"N" * 1_000_000 + b"e",
}


@pytest.mark.parametrize("kind", CHEAP)
def test_what_is_passed_over_costs_little(kind, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(hostile.torch_zip(beside(CHEAP[kind]), hostile.small_storages()))

    def opened() -> None:
        with open_checkpoint(path) as checkpoint:
            assert list(checkpoint.tensors) == ["x"]

    hostile.assert_in_time(opened)
    tracemalloc.start()
    open_checkpoint(path).close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < hostile.memory_limit(path.stat().st_size)
