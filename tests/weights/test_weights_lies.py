"""Pickles, containers and headers that contradict their files: refused, in time and within memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from sparsegen.weights import CheckpointError
from sparsegen.weights.checkpoint import open_checkpoint
from tests.weights import hostile
from tests.weights.hostile import (
    assert_in_time,
    group,
    named,
    one_tensor,
    refused,
    storage,
    table,
    tensor,
    text,
)

# Lies about tensors.


def raw_tensor(*arguments: bytes) -> bytes:
    return named("torch._utils", "_rebuild_tensor_v2") + group(*arguments) + b"R"


HUGE = 1 << 40
ST = storage("0", 6)
TENSOR_LIES = {
    "one row too many": one_tensor((3, 3)),
    "one step too far": one_tensor((2, 3), (4, 1)),
    "a huge shape": one_tensor((HUGE, HUGE), (1, 1)),
    "a huge shape that is empty": one_tensor((0, HUGE, HUGE), (1, 1, 1)),
    "a huge stride": one_tensor((2, 3), (HUGE, 1)),
    "a stride that overflows": one_tensor((2, 3), ((1 << 63) - 1, 1)),
    "an offset past the end": one_tensor(offset=1),
    "a huge offset": one_tensor((1,), (1,), 1 << 61),
    "a negative offset": one_tensor((1,), (1,), -1),
    "a negative stride": one_tensor((2, 3), (-3, 1), 5),
    "a negative size": one_tensor((-2, 3)),
    "sizes and strides of two lengths": one_tensor((2, 3), (1,)),
    "more axes than NumPy has": one_tensor((1,) * 65, (1,) * 65),
    "a size that is a string": raw_tensor(ST, b"K\x00", text("ab"), b"K\x01\x85", b"\x89", b"N"),
    "sizes that are strings": raw_tensor(ST, b"K\x00", text("a") + b"\x85", b"K\x01\x85", b"\x89", b"N"),
    "a size that is a bool": raw_tensor(ST, b"K\x00", b"\x88\x85", b"K\x01\x85", b"\x89", b"N"),
    "a size that is a float": raw_tensor(ST, b"K\x00", b"G@\0\0\0\0\0\0\0\x85", b"K\x01\x85", b"\x89", b"N"),
    "an offset that is a tuple": raw_tensor(ST, b")", b"K\x01\x85", b"K\x01\x85", b"\x89", b"N"),
    "too few arguments": raw_tensor(ST, b"K\x00", b"K\x01\x85"),
    "too many arguments": raw_tensor(*[ST] * 9),
    "no storage": raw_tensor(text("0"), b"K\x00", b"K\x01\x85", b"K\x01\x85", b"\x89", b"N"),
    "a storage of more elements": one_tensor(stored=storage("0", 7)),
    "a storage of fewer elements": one_tensor((5,), (1,), stored=storage("0", 5)),
    "a storage of a wider type": one_tensor(stored=storage("0", 6, "DoubleStorage")),
    "a storage of a narrower type": one_tensor(stored=storage("0", 6, "HalfStorage")),
    "a storage of huge size": one_tensor(stored=storage("0", 1 << 61)),
    "a storage of negative size": one_tensor(stored=storage("0", -1)),
    "a storage that is not there": one_tensor(stored=storage("9", 6)),
    "a storage by a path": one_tensor(stored=storage("../data/0", 6)),
    "a storage of two types": one_tensor(stored=storage("0", 3, "DoubleStorage") + b"0" + ST),
    "a storage of no known type": one_tensor(stored=storage("0", 6, "QInt8Storage")),
    "a storage whose type is a dtype": one_tensor(stored=storage("0", 6, "float32")),
    "a storage with a key that is a list": one_tensor(stored=ST.replace(text("0"), b"]")),
    "a storage's id cut short": one_tensor(
        stored=group(text("storage"), named("torch", "FloatStorage")) + b"Q"
    ),
    "a dtype that is none": (
        named("torch._utils", "_rebuild_tensor_v3")
        + group(ST, b"K\x00", b"K\x01\x85", b"K\x01\x85", b"\x89", b"N", named("torch", "Size"))
        + b"R"
    ),
    "a dtype wider than its bytes": (
        named("torch._utils", "_rebuild_tensor_v3")
        + group(ST, b"K\x00", b"K\x06\x85", b"K\x01\x85", b"\x89", b"N", named("torch", "float64"))
        + b"R"
    ),
}


@pytest.mark.parametrize("lie", TENSOR_LIES)
def test_lying_tensors(lie, tmp_path):
    refused(tmp_path / "zip.pth", hostile.torch_zip(TENSOR_LIES[lie], hostile.small_storages()))
    data = hostile.small_storages()["0"]
    refused(tmp_path / "legacy.pth", hostile.torch_legacy(TENSOR_LIES[lie], [("0", 6, data)]))


# A view of any size over one element lies about nothing, but no memory holds it.

REPEATED = {
    "repeated elements beyond the file": one_tensor((1 << 20,), (0,)),
    "a huge shape without steps": one_tensor((HUGE,), (0,)),
    "rows repeated": one_tensor((HUGE, 6), (0, 1)),
}


@pytest.mark.parametrize("name", REPEATED)
def test_repeated_elements_beyond_the_file_are_refused_when_they_are_read(name, tmp_path):
    data = hostile.small_storages()["0"]
    for raw in (
        hostile.torch_zip(REPEATED[name], hostile.small_storages()),
        hostile.torch_legacy(REPEATED[name], [("0", 6, data)]),
    ):
        (tmp_path / "x.pth").write_bytes(raw)
        with open_checkpoint(tmp_path / "x.pth") as checkpoint:
            tensor = checkpoint.tensors["x"]
            assert "repeating elements" in tensor.fault
            with pytest.raises(CheckpointError, match=r"x\.pth: x: claims \d+ bytes by repeating elements"):
                tensor.numpy()


# Lies about the legacy container.

DATA = hostile.small_storages()["0"]
BODY = one_tensor()


def legacy_system(system: bytes) -> bytes:
    parts = [b"\x8a\x0a" + hostile.MAGIC, b"M\xe9\x03", system, BODY, b"](" + text("0") + b"e"]
    return b"".join(map(hostile.pickled, parts)) + struct.pack("<q", 6) + DATA


LEGACY_LIES = {
    "bytes behind it": hostile.torch_legacy(BODY, [("0", 6, DATA)]) + b"1",
    "more elements": hostile.torch_legacy(BODY, [("0", 7, DATA + b"1234")]),
    "fewer elements": hostile.torch_legacy(BODY, [("0", 5, DATA)]),
    "a negative count": hostile.torch_legacy(BODY, [("0", -1, DATA)]),
    "a huge count": hostile.torch_legacy(BODY, [("0", 1 << 62, DATA)]),
    "a storage twice": hostile.torch_legacy(BODY, [("0", 6, DATA), ("0", 6, DATA)]),
    "a storage nobody uses": hostile.torch_legacy(BODY, [("0", 6, DATA), ("1", 6, DATA)]),
    "no list of storages": hostile.torch_legacy(BODY, [("0", 6, DATA)], keys=b"}"),
    "an empty list of storages": hostile.torch_legacy(BODY, [("0", 6, DATA)], keys=b"]"),
    "keys that are lists": hostile.torch_legacy(BODY, [("0", 6, DATA)], keys=b"](]e"),
    "a storage in the list of storages": hostile.torch_legacy(BODY, [("0", 6, DATA)], keys=ST),
    "data cut short": hostile.torch_legacy(BODY, [("0", 6, DATA[:-1])]),
    "a big-endian machine": legacy_system(table({"little_endian": b"\x89"})),
    "no machine": legacy_system(b"]"),
    "a number for a machine": legacy_system(table({"little_endian": b"K\x01"})),
    "another protocol": hostile.torch_legacy(BODY, [("0", 6, DATA)]).replace(b"M\xe9\x03.", b"M\xea\x03.", 1),
}


@pytest.mark.parametrize("lie", LEGACY_LIES)
def test_lying_legacy_files(lie, tmp_path):
    refused(tmp_path / "x.pth", LEGACY_LIES[lie])


# Lies about safetensors.


def header(**changes: object) -> dict[str, object]:
    return {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


def raw_header(body: str) -> bytes:
    return b'{"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]' + body.encode() + b"}}"


ONE = '{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}'
SAFETENSORS_LIES = {
    "a longer header than file": hostile.safetensors(header(), DATA, length=10**6),
    "a header of 100 MB": hostile.safetensors(header(), DATA, length=100_000_000),
    "a header of spaces": hostile.safetensors(b"{" + b" " * (4 << 20) + b"}", DATA),
    "a header that is no JSON": hostile.safetensors(b"{nothing", DATA),
    "a header that is a list": hostile.safetensors(b"{}[]", DATA),
    "data cut short": hostile.safetensors(header(), DATA[:-1]),
    "data too long": hostile.safetensors(header(), DATA + b"1234"),
    "a hole": hostile.safetensors(
        {**header(), "y": {"dtype": "U8", "shape": [1], "data_offsets": [25, 26]}}, DATA + b"12"
    ),
    "an overlap": hostile.safetensors(
        {**header(), "y": {"dtype": "U8", "shape": [1], "data_offsets": [23, 24]}}, DATA
    ),
    "a name twice": hostile.safetensors(f'{{"x":{ONE},"x":{ONE}}}'.encode(), DATA),
    "a name twice, spelled in two ways": hostile.safetensors(f'{{"x":{ONE},"\\u0078":{ONE}}}'.encode(), DATA),
    "metadata twice": hostile.safetensors(f'{{"__metadata__":{{"a":"1","a":"2"}},"x":{ONE}}}'.encode(), DATA),
    "a shape twice": hostile.safetensors(raw_header(',"shape":[6]'), DATA),
    "a shape too large": hostile.safetensors(header(shape=[3, 3]), DATA),
    "a shape too small": hostile.safetensors(header(shape=[2, 2]), DATA),
    "a shape that overflows": hostile.safetensors(header(shape=[1 << 62, 1 << 62]), DATA),
    "a negative size": hostile.safetensors(header(shape=[-2, -3]), DATA),
    "a size that is a fraction": hostile.safetensors(header(shape=[2.0, 3]), DATA),
    "a shape that is a number": hostile.safetensors(header(shape=6), DATA),
    "more axes than NumPy has": hostile.safetensors(header(shape=[1] * 70 + [2, 3]), DATA),
    "an empty shape of many huge axes": hostile.safetensors(
        {**header(), "y": {"dtype": "F32", "shape": [0] + [1 << 62] * 40_000, "data_offsets": [24, 24]}}, DATA
    ),
    "a wider type": hostile.safetensors(header(dtype="F64"), DATA),
    "an unknown type": hostile.safetensors(header(dtype="F31"), DATA),
    "a type of half a byte": hostile.safetensors(header(dtype="F4", shape=[48]), DATA),
    "offsets in reverse": hostile.safetensors(header(data_offsets=[24, 0]), DATA),
    "negative offsets": hostile.safetensors(header(data_offsets=[-24, 0]), DATA),
    "huge offsets": hostile.safetensors(header(data_offsets=[0, 1 << 63]), DATA),
    "three offsets": hostile.safetensors(header(data_offsets=[0, 24, 24]), DATA),
    "metadata that is no text": hostile.safetensors({"__metadata__": {"a": 1}, **header()}, DATA),
    "metadata that is a list": hostile.safetensors({"__metadata__": [], **header()}, DATA),
    "deep nesting": hostile.safetensors(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", DATA),
    "a number of many digits": hostile.safetensors(raw_header(',"more":' + "9" * 10_000), DATA),
    "not UTF-8": hostile.safetensors(b'{"\xff":' + ONE.encode() + b"}", DATA),
}


@pytest.mark.parametrize("lie", SAFETENSORS_LIES)
def test_lying_safetensors_files(lie, tmp_path):
    refused(tmp_path / "x.safetensors", SAFETENSORS_LIES[lie])


def test_a_header_of_many_tensors_is_read_in_time_or_refused(tmp_path):
    for count, expected in ((20_000, None), (60_000, "")):
        infos = {
            f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(count)
        }
        # Enough data beside it that the header's length is not what is judged.
        end = 4 * count
        infos["rest"] = {"dtype": "U8", "shape": [100 << 20], "data_offsets": [end, end + (100 << 20)]}
        raw = json.dumps(infos).encode()
        path = tmp_path / "many.safetensors"
        path.write_bytes(hostile.safetensors(raw))
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size + end + (100 << 20))

        def opened(path: Path = path, expected: object = expected, count: int = count) -> None:
            try:
                with open_checkpoint(path) as checkpoint:
                    found = len(checkpoint.tensors)
            except CheckpointError as error:
                assert expected is not None and "60001 tensors" in str(error)
            else:
                assert expected is None and found == count + 1

        assert_in_time(opened)


# Files cut short.

SEEDS = {
    "zip": hostile.small_zip(),
    "legacy": hostile.small_legacy(),
    "safetensors": hostile.small_safetensors(),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_truncation_at_every_64th(seed, tmp_path):
    whole = SEEDS[seed]
    for part in range(64):
        refused(tmp_path / "cut", whole[: len(whole) * part // 64])
    (tmp_path / "cut").write_bytes(whole)
    assert len(open_checkpoint(tmp_path / "cut").tensors) == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_truncation_at_every_byte(seed, tmp_path):
    whole = SEEDS[seed]
    path = tmp_path / "cut"
    for length in range(len(whole)):
        path.unlink(missing_ok=True)
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_names_cannot_write_to_the_terminal(tmp_path):
    evil = "\x1b[2J\x1b]0;owned\x07" + "a" * 4000
    one = tensor(ST, (1,), (1,))
    lied = table({"a": table({evil: one}), "a." + evil: one})
    message = refused(tmp_path / "x.pth", hostile.torch_zip(lied, {"0": DATA}))
    assert "\\x1b[2J" in message
    assert "\x1b" not in message
