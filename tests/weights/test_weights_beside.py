"""What training scripts leave beside the weights: passed over, and the weights read as if it were not there."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import functools
import itertools
import logging
import pathlib
import random
import re
import sys
import time
import tracemalloc
import types
import uuid
import zoneinfo

import numpy as np
import pytest

from sparsegen.weights import CheckpointError, read_checkpoint
from sparsegen.weights.limits import KEPT_VALUES, LONGEST_TEXT
from tests.weights import hostile


def weights():
    import torch

    return {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


MEMORY = 4 << 20
"""Bytes that reading any of these files may take: much less than building what is passed over."""


def read_within_memory(path):
    """The checkpoint's tensors, placeholders and metadata."""
    tracemalloc.start()
    with read_checkpoint(path) as checkpoint:
        found = {name: tensor.numpy().copy() for name, tensor in checkpoint.tensors.items()}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY
    return found, set(checkpoint.placeholders), checkpoint.metadata


def same_weights(found):
    assert np.array_equal(found["model.w"], [[0, 1, 2], [3, 4, 5]]) and np.array_equal(
        found["model.b"], [1, 1]
    )


class Config(dict):
    """A class that no list knows."""


def harmless():
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    zone = datetime.timezone(datetime.timedelta(hours=2), "there")
    return {
        "path": [pathlib.Path("a/b"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("c:/a")],
        "times": [datetime.datetime(2024, 1, 2, tzinfo=zone), datetime.date(2024, 1, 2), datetime.time(3)],
        "zones": [zone, datetime.timezone.utc, zoneinfo.ZoneInfo("UTC"), zoneinfo.ZoneInfo("UTC")],
        "moment": time.localtime(0),
        "numbers": [
            3 + 4j,
            decimal.Decimal("0.1"),
            fractions.Fraction(1, 3),
            1 << 200,
            range(3),
            slice(1, 9, 2),
        ],
        "constants": [Ellipsis, NotImplemented, type(None)],
        "collections": [
            collections.deque([1, 2], maxlen=5),
            collections.deque(),
            collections.ChainMap({"a": 1}),
            collections.UserDict(a=1),
            collections.UserList([1]),
            collections.Counter("aab"),
            collections.defaultdict(list, {"a": [1]}),
            collections.defaultdict(functools.partial(collections.defaultdict, int)),
            collections.OrderedDict(a=1),
        ],
        "namespace": types.SimpleNamespace(a=1, b=weights()["w"]),
        "uuid": uuid.UUID(int=5),
        "sets": [{1, 2}, frozenset({("a", 1)}), {"a"}],
        "bytes": [b"\x00\xff", bytearray(b"\x00\xff")],
        "array": array.array("d", [1.0, 2.0]),
        "random": [random.getstate(), random.Random(3)],
        "numpy": [
            np.random.get_state(),  # noqa: NPY002  # the global state is what is saved
            np.random.RandomState(0),
            generator,
            generator.bit_generator,
            np.random.SeedSequence(3),
            np.float64(0.5),
            np.float32,
            np.dtype("f4"),
            np.bool_(True),
            np.str_("a"),
            np.datetime64("2024-01-02"),
            np.array(["a", None], dtype=object),
            np.arange(3),
        ],
        "torch": [
            torch.Generator(),
            torch.get_rng_state(),
            torch.float16,
            torch.strided,
            torch.Size([2, 3]),
            torch.optim.Adam,
            torch.nn.ReLU,
            torch.nn.functional.gelu,
            torch.amp.GradScaler("cpu"),
            torch.nn.parameter.UninitializedParameter(),
        ],
        "partial": functools.partial(torch.nn.functional.leaky_relu, negative_slope=0.2),
        "schedule": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), 3),
        "others": [re.compile("a+"), itertools.count(3), logging.getLogger("a")],
        "safe": uuid.SafeUUID.safe,
    }


HARMLESS = (
    *("path", "times", "zones", "moment", "numbers", "constants", "collections", "namespace", "uuid", "sets"),
    *("bytes", "array", "random", "numpy", "torch", "partial", "schedule", "others", "safe"),
)


@pytest.mark.torch
@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_objects_are_passed_over(kind, save):
    value = harmless()[kind]
    path = save({"before": value, "model": weights(), "after": [value], "epoch": 7})
    before = set(sys.modules)
    found, _, metadata = read_within_memory(path)
    same_weights(found)
    assert metadata["epoch"] == 7
    assert not set(sys.modules) - before - {"tracemalloc"}


def test_every_harmless_object_is_tried():
    pytest.importorskip("torch")
    assert set(harmless()) == set(HARMLESS)


@pytest.mark.torch
def test_what_is_passed_over_is_noted(save):
    kept = {key: harmless()[key] for key in ("path", "uuid", "partial", "zones")}
    _, placeholders, _ = read_within_memory(save({"model": weights(), **kept}))
    assert placeholders >= {
        "uuid.UUID",
        "functools.partial",
        "datetime.timezone",
        "zoneinfo.ZoneInfo._unpickle",
    }
    assert placeholders & {"pathlib.PosixPath", "pathlib._local.PosixPath"}


@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"])
def test_paths_of_python_3_13(name, tmp_path):
    body = hostile.named("pathlib._local", name) + hostile.group(hostile.text("a"), hostile.text("b")) + b"R"
    data = hostile.torch_zip(
        hostile.table({"path": body, "x": hostile.one_tensor()}), hostile.small_storages()
    )
    (tmp_path / "x.pth").write_bytes(data)
    with read_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert checkpoint.placeholders == (f"pathlib._local.{name}",)


# Keys.


class Split(enum.Enum):
    TRAIN = 1


@pytest.mark.torch
def test_tuples_and_objects_as_keys(save):
    torch = pytest.importorskip("torch")
    keyed = {
        (0, 1): torch.tensor([1.0]),
        (0, "1"): torch.tensor([2.0]),
        ("a.b", (None, True, 2.5)): {"x": torch.tensor([3.0])},
        (7,): torch.tensor([4.0]),
        (): torch.tensor([5.0]),
        datetime.date(2024, 1, 2): torch.tensor([6.0]),
        datetime.date(2024, 1, 3): torch.tensor([7.0]),
        "a" * 5000: torch.tensor([8.0]),
        "b" * 5000: torch.tensor([9.0]),
        frozenset({1}): 8,
        "(0, 2)": 9,
    }
    found, _, metadata = read_within_memory(save({"model": weights(), "keyed": keyed}))
    same_weights(found)
    names = {
        "keyed.(0, 1)": 1,
        "keyed.(0, '1')": 2,
        "keyed.('a.b', (None, True, 2.5)).x": 3,
        "keyed.(7,)": 4,
        "keyed.()": 5,
        "keyed.datetime.date": 6,
        "keyed.datetime.date[2]": 7,
        "keyed.a long text or array": 8,
        "keyed.a long text or array[2]": 9,
    }
    assert {name: found[name].item() for name in names} == names
    assert metadata["keyed.(0, 2)"] == 9


# Long histories, of every form.

LONG = 20_000
HISTORIES = {
    "floats": lambda: np.random.default_rng(1).standard_normal(2_000_000).tolist(),
    "integers": lambda: list(range(LONG)),
    "large integers": lambda: [10**18 + i for i in range(LONG)],
    "mixed": lambda: [None, True, 3, 70_000, 1 << 40, -0.5] * (LONG // 3),
    "a tuple": lambda: tuple(float(i) for i in range(1_000_000)),
    "a set": lambda: {float(i) for i in range(LONG)},
    "a frozen set": lambda: frozenset(range(LONG)),
    "a deque": lambda: collections.deque(float(i) for i in range(LONG)),
    "by step": lambda: {step: step / 7 for step in range(LONG)},
    "by time": lambda: {1_700_000_000_000_000_000 + step: step / 7 for step in range(LONG)},
    "by name": lambda: {f"step {step}": step / 7 for step in range(LONG)},
    "by pair": lambda: {(step, "loss"): step / 7 for step in range(LONG)},
    "a counter": lambda: collections.Counter(range(LONG)),
    "pairs": lambda: [(step, step / 7) for step in range(LONG)],
    "lists": lambda: [[step, step / 7] for step in range(LONG)],
    "records": lambda: [{"step": step, "loss": step / 7, "phase": "train"} for step in range(LONG)],
    "texts": lambda: [f"step {step}: loss {step / 7}" for step in range(LONG)],
    "rows": lambda: [[float(i)] * 500 for i in range(LONG // 50)],
    "rows of rows": lambda: [[[float(i)] * 10 for _ in range(300)] for i in range(LONG // 300)],
    "by epoch": lambda: {f"epoch {i}": [float(i)] * 2000 for i in range(LONG // 200)},
    "times": lambda: [datetime.timedelta(seconds=i) for i in range(LONG // 5)],
    "scalars": lambda: [np.float64(i) for i in range(LONG // 10)],
    "an array": lambda: np.random.default_rng(2).standard_normal(1_000_000),
    "arrays": lambda: [np.full(1000, i) for i in range(LONG // 50)],
    "arrays by name": lambda: {str(i): np.full(200, i) for i in range(100)},
    "an object array": lambda: np.array([None, "a"] * (LONG // 2), dtype=object),
    "Python's array": lambda: array.array("d", range(LONG)),
    "bytes": lambda: bytes(10_000_000),
    "a byte array": lambda: bytearray(10_000_000),
    "a text": lambda: "loss, größer 🎨\n" * 1_000_000,
}


@pytest.mark.torch
@pytest.mark.parametrize("kind", HISTORIES)
@pytest.mark.parametrize("how", [(True, 2), (True, 5)], ids=["protocol2", "protocol5"])
def test_long_histories_cost_nothing(kind, how, tmp_path):
    torch = pytest.importorskip("torch")
    as_zip, protocol = how
    history = HISTORIES[kind]()
    path = tmp_path / "long.pth"
    torch.save(
        {"log": {"all": history}, "model": weights(), "again": history, "epoch": 3},
        path,
        _use_new_zipfile_serialization=as_zip,
        pickle_protocol=protocol,
    )
    found, placeholders, metadata = read_within_memory(path)
    same_weights(found)
    assert metadata["epoch"] == 3 and len(metadata) < 100_000
    assert placeholders


@pytest.mark.torch
def test_tensors_in_long_lists_are_kept(save):
    """Only plain values are passed over: a list of a thousand tensors, and a state dict of as many, are whole."""
    torch = pytest.importorskip("torch")
    shared = torch.tensor([-1.0])
    tensors = [torch.tensor([float(i)]) for i in range(1000)]
    mixed = [float(i) for i in range(1000)]
    mixed[500] = shared
    path = save(
        {
            "log": [float(i) for i in range(5000)],
            "list": tensors,
            "named": {f"t{i}": value for i, value in enumerate(tensors)},
            "mixed": mixed,
            "again": [shared] * 400,
            "queue": collections.deque(tensors[:300]),
            "negative": torch._neg_view(torch.ones(2)),
        }
    )
    found, _, metadata = read_within_memory(path)
    for i in range(1000):
        assert found[f"list.{i}"] == found[f"named.t{i}"] == i
    assert found["mixed.500"] == -1 and metadata["mixed.999"] == 999
    assert all(found[f"again.{i}"] == -1 for i in range(400))
    assert all(found[f"queue.{i}"] == i for i in range(300))
    assert found["negative"].tolist() == [-1, -1]


@pytest.mark.torch
def test_short_lists_and_texts_are_kept(save):
    values = {"list": [float(i) for i in range(KEPT_VALUES)], "text": "a" * LONGEST_TEXT}
    values["dict"] = {str(i): i for i in range(KEPT_VALUES // 2)}
    _, placeholders, metadata = read_within_memory(save({"model": weights(), **values}))
    assert metadata[f"list.{KEPT_VALUES - 1}"] == KEPT_VALUES - 1
    assert metadata["text"] == values["text"]
    assert metadata[f"dict.{KEPT_VALUES // 2 - 1}"] == KEPT_VALUES // 2 - 1
    assert not placeholders


@pytest.mark.torch
def test_fifty_megabytes_of_numpy_beside_small_weights(save):
    torch = pytest.importorskip("torch")
    data = np.random.default_rng(3).integers(0, 256, 50 << 20, np.uint8)
    path = save({"model": {name: value.to(torch.float32) for name, value in weights().items()}, "data": data})
    assert path.stat().st_size > 50 << 20
    tracemalloc.start()
    with read_checkpoint(path) as checkpoint:
        assert len(checkpoint.tensors) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert checkpoint.placeholders == ("numpy.ndarray",)


# What is not on the list.


@pytest.mark.torch
@pytest.mark.parametrize("value", [Config(a=1), Split.TRAIN, Split, Config], ids=str)
def test_unknown_classes_are_not_on_the_list_and_no_attack(value, save):
    with pytest.raises(CheckpointError, match=r"which is not on the list of safe names") as caught:
        read_checkpoint(save({"model": weights(), "config": value}))
    assert "attack" not in str(caught.value) and "state_dict()" in str(caught.value)
    assert type(value).__name__ in str(caught.value) or value.__name__ in str(caught.value)
