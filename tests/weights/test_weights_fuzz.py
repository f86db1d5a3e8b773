"""Thirty thousand damaged files: each reads cleanly or raises CheckpointError, quickly, and in little memory.

Called without the net that `read_checkpoint` spreads below its checks: not one file may need it.
"""

from __future__ import annotations

import json
import os
import pickletools
import random
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from sparsegen.weights import CheckpointError
from sparsegen.weights.checkpoint import open_checkpoint
from tests.weights import hostile

FILES_PER_KIND = 10_000
SECONDS = 2.0
MEMORY_EVERY = 25
SMALL_CONSTANT = 1 << 19

INTERESTING = [0, 1, 2, 0x7F, 0x80, 0x81, 0xFE, 0xFF, *b"(){}[].NcRbQqh\x93\x95\x8a\x8b\x8d\x8e"]
WORDS = [
    0,
    1,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]

# What an attacker inserts: whole opcodes with their arguments, good and bad.
SNIPPETS = [
    *(
        bytes([code])
        for code in b"(){}]N0129.tlaesubRQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98"
    ),
    *(b"h" + bytes([index]) for index in range(8)),
    *(b"q" + bytes([index]) for index in range(8)),
    *(b"j" + struct.pack("<I", word & 0xFFFFFFFF) for word in WORDS),
    *(b"X" + struct.pack("<I", word & 0xFFFFFFFF) for word in WORDS),
    *(b"\x8d" + struct.pack("<Q", word) for word in WORDS),
    *(b"\x95" + struct.pack("<Q", word) for word in WORDS),
    *(hostile.number(value) for value in (-1, 0, 1, 6, 7, 1 << 31, -(1 << 63), 1 << 62)),
    *(hostile.text(value) for value in ("", "storage", "0", "1", "cpu", "module", "x" * 300, "\udcff")),
    hostile.named("os", "system"),
    hostile.named_by_stack("builtins", "eval"),
    hostile.named("collections", "OrderedDict"),
    hostile.named("collections", "defaultdict"),
    hostile.named("torch", "Size"),
    hostile.named("torch", "DoubleStorage"),
    hostile.named("torch", "UntypedStorage"),
    hostile.named("torch", "float64"),
    hostile.named("torch._utils", "_rebuild_tensor_v2"),
    hostile.named("torch._utils", "_rebuild_tensor_v3"),
    hostile.named("torch._utils", "_rebuild_parameter"),
    hostile.named("torch._tensor", "_rebuild_from_type_v2"),
    hostile.named("_codecs", "encode"),
    hostile.named("builtins", "set"),
    hostile.named("builtins", "bytearray"),
    hostile.named("pytorch_lightning", "Trainer"),
    hostile.named("collections", "deque") + b")R",
    hostile.named("builtins", "getattr"),
    hostile.named("builtins", "type") + b"N\x85R",
    hostile.named("functools", "partial"),
    hostile.named("zoneinfo", "ZoneInfo"),
    hostile.named("torch._utils", "_rebuild_meta_tensor_no_storage"),
    hostile.named("torch._utils", "_rebuild_parameter_with_state"),
    hostile.table({"neg": b"\x88"}),
    hostile.text("a" * 5000),
    b"(" + b"K\x01" * 300 + b"t",
    b"](" + b"NM\x00\x01" * 150 + b"e",
    b"}(" + hostile.number(1) + b"\x85Nu",
    hostile.storage("0", 6),
    hostile.storage("1", 1 << 40),
    hostile.tensor(hostile.storage("0", 6), (2, 2), (1, 2), 1),
    b"I12\n",
    b"G" + struct.pack(">d", float("nan")),
    b"\x8a\x00",
]


def flip(raw: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 8)):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def overwrite(raw: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(len(raw))] = rng.choice(INTERESTING)


def overwrite_word(raw: bytearray, rng: random.Random) -> None:
    layout, bits = rng.choice((("<H", 16), ("<I", 32), ("<Q", 64)))
    if len(raw) >= bits // 8:
        struct.pack_into(
            layout, raw, rng.randrange(len(raw) - bits // 8 + 1), rng.choice(WORDS) & ((1 << bits) - 1)
        )


def splice(raw: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(raw))
    piece = raw[start : start + rng.randint(1, 200)]
    at = rng.randrange(len(raw))
    raw[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece


def remove(raw: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(raw))
    del raw[start : start + rng.randint(1, 60)]


def truncate(raw: bytearray, rng: random.Random) -> None:
    del raw[rng.randrange(len(raw)) :]


def insert_opcodes(raw: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(raw) + 1)
        raw[at:at] = rng.choice(SNIPPETS)


def opcodes(pickle: bytes) -> list[bytes]:
    """A whole pickle, opcode by opcode with its argument."""
    places = [place for _, _, place in pickletools.genops(pickle)] + [len(pickle)]
    return [pickle[start:stop] for start, stop in pairwise(places)]


def rearranged(pickle: bytes, rng: random.Random) -> bytes:
    """Opcodes left out, repeated, swapped and inserted, each of them whole: what random bytes seldom come to."""
    steps = opcodes(pickle)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        at, other = rng.randrange(1, len(steps)), rng.randrange(1, len(steps))
        choice = rng.randrange(6)
        if choice == 0:
            del steps[at]
        elif choice == 1:
            steps.insert(at, steps[other])
        elif choice == 2:
            steps[at], steps[other] = steps[other], steps[at]
        elif choice == 3:
            steps[at] = rng.choice(SNIPPETS)
        elif choice == 4:
            steps[at:at] = steps[min(at, other) : max(at, other)][:20]
        else:
            steps.insert(at, rng.choice(SNIPPETS))
    return b"".join(steps)


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    *(flip, overwrite, overwrite_word, splice, remove, truncate, insert_opcodes),
]


def damage(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if changed:
            rng.choice(MUTATIONS)(changed, rng)
    return bytes(changed)


def damaged_zip(rng: random.Random) -> bytes:
    """Two times in three only the pickle is damaged, in a whole archive: so the damage reaches the machine."""
    pickle = hostile.pickled(hostile.small_body())
    choice = rng.randrange(3)
    if choice == 0:
        return damage(hostile.small_zip(), rng)
    pickle = damage(pickle, rng) if choice == 1 else rearranged(pickle, rng)
    stored = [(f"data/{key}", data) for key, data in hostile.small_storages().items()]
    return hostile.archive([("data.pkl", pickle), ("byteorder", b"little"), *stored])


def damaged_legacy(rng: random.Random) -> bytes:
    """Two times in three the first bytes, by which the file is recognised, are spared."""
    whole = hostile.small_legacy()
    choice = rng.randrange(3)
    if choice == 0:
        return damage(whole, rng)
    head = whole.index(hostile.MAGIC) + 11
    if choice == 1:
        return whole[:head] + damage(whole[head:], rng)
    pickle = hostile.pickled(hostile.small_body(legacy=True))
    return whole.replace(pickle, rearranged(pickle, rng))


def damaged_safetensors(rng: random.Random) -> bytes:
    """Damage to the file, to the header's text with its length put right, or to the header's values."""
    whole = hostile.small_safetensors()
    (length,) = struct.unpack_from("<Q", whole)
    head, data = whole[8 : 8 + length], whole[8 + length :]
    choice = rng.random()
    if choice < 0.4:
        return damage(whole, rng)
    if choice < 0.7:
        return hostile.safetensors(damage(head, rng), data)
    header = json.loads(head)
    name = rng.choice(["weight", "half", "counter", "nothing"])
    values: list[object] = [
        *WORDS,
        -1,
        0.5,
        None,
        True,
        "F32",
        [],
        {},
        [1 << 40] * 3,
        [0, 24],
        "F8_E4M3",
        "F4",
    ]
    field = rng.choice(["dtype", "shape", "data_offsets", "extra"])
    current = header[name].get(field)
    if isinstance(current, list) and current and rng.random() < 0.6:
        current[rng.randrange(len(current))] = rng.choice(values)
    else:
        header[name][field] = rng.choice(values)
    return hostile.safetensors(header, data)


KINDS = {"zip": damaged_zip, "legacy": damaged_legacy, "safetensors": damaged_safetensors}


def read_everything(path: Path) -> str:
    """What reading the file and every tensor of it came to; anything but an answer or CheckpointError escapes."""
    try:
        with open_checkpoint(path) as checkpoint:
            for tensor in checkpoint.tensors.values():
                array = tensor.numpy()
                assert array.shape == tensor.shape
                # Touch every byte: a view past the map would end the process here.
                assert len(array.tobytes()) == array.nbytes
    except CheckpointError as error:
        assert str(path) in str(error)
        return "refused"
    return "read"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind, tmp_path):
    rng = random.Random(f"damaged {kind}")
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for index in range(FILES_PER_KIND):
        raw = KINDS[kind](rng)
        # A new file each time: a file must not change under a map of it that still lives.
        path = tmp_path / f"{index}.pth"
        path.write_bytes(raw)
        measured = index % MEMORY_EVERY == 0
        if measured:
            tracemalloc.start()
        begun = time.process_time()
        try:
            outcomes[read_everything(path)] += 1
        except BaseException as error:
            error.add_note(f"damaged file {index} of kind {kind}: {raw!r}") if hasattr(
                error, "add_note"
            ) else None
            raise
        finally:
            if measured:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
        slowest = max(slowest, time.process_time() - begun)
        if measured:
            assert peak < 2 * len(raw) + SMALL_CONSTANT, raw
        os.unlink(path)
    assert slowest < SECONDS
    # Both must occur, or the damage is too great or too small to test anything.
    assert outcomes["refused"] > FILES_PER_KIND // 4
    assert outcomes["read"] > FILES_PER_KIND // 200


def test_there_are_at_least_twenty_thousand():
    assert FILES_PER_KIND * len(KINDS) >= 20_000
