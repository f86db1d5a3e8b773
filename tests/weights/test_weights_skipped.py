"""Histories, names and odd keys beside the weights: whatever their size and nesting, the tensors are read."""

from __future__ import annotations

import argparse
import datetime
import functools
import http
import io
import os
import pathlib
import signal
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsegen.weights import CheckpointError, read_checkpoint
from sparsegen.weights.pickles.refused_names import ATTACK, refusal
from tests.weights import hostile
from tests.weights.hostile import named, storage, tensor, text

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def read(path: Path, beside: Any, **options: Any) -> dict[str, np.ndarray]:
    """The tensors that a file of torch.save holds, one of them under "x"."""
    torch.save({"beside": beside, "x": torch.arange(3.0)}, path, **options)
    with read_checkpoint(path) as checkpoint:
        assert np.array_equal(checkpoint.tensors["x"].numpy(), [0, 1, 2])
        return {name: np.array(each.numpy()) for name, each in checkpoint.tensors.items()}


SHARED = (0.9, 0.999)

HISTORIES = {
    "records of lists": [{m: [float(e + i) for i in range(100)] for m in "abcde"} for e in range(250)],
    "epochs of lists": {
        f"epoch{e}": {m: [float(e + i) for i in range(100)] for m in "abcdefghij"} for e in range(120)
    },
    "records that share a tuple": [
        {"step": i, "betas": SHARED, "lr": 0.1 * i, "a": 1, "b": 2} for i in range(12_000)
    ],
    "lists that share a list": [[SHARED] * 200 for _ in range(200)],
    "a long tuple of texts": tuple(f"img{i:07d}.png" for i in range(400_000)),
    "a long frozenset of texts": frozenset(f"img{i:07d}.png" for i in range(400_000)),
    "a long integer": 1 << 3000,
}


@pytest.mark.parametrize("kind", HISTORIES)
@pytest.mark.parametrize("protocol", [2, 4])
def test_histories(kind: str, protocol: int, tmp_path: Path) -> None:
    assert list(read(tmp_path / "x.pth", HISTORIES[kind], pickle_protocol=protocol)) == ["x"]


def test_tensors_within_histories_are_kept(tmp_path: Path) -> None:
    """Nothing is dropped silently that a tensor is in, also where it is only referred to."""
    shared = {"deep": [torch.ones(2)]}
    beside = [{"losses": [float(i) for i in range(300)], "net": shared} for _ in range(300)]
    found = read(tmp_path / "x.pth", beside)
    assert len(found) == 301
    assert all(f"beside.{i}.net.deep.0" in found for i in range(300))
    mixed = (*(f"name{i}" for i in range(2000)), torch.full((2,), 7.0))
    found = read(tmp_path / "x.pth", mixed)
    assert [list(each) for name, each in found.items() if name != "x"] == [[7, 7]]


def test_more_entries_than_are_read_with_tensors_among_them(tmp_path: Path) -> None:
    shared = [torch.ones(1), *[0.5] * 199]
    beside = [shared] * 600
    with pytest.raises(
        CheckpointError,
        match=r"has more than .* entries when flattened, with tensors among .*save the weights alone",
    ):
        read(tmp_path / "x.pth", beside)


@pytest.mark.parametrize("legacy", [False, True])
def test_forty_thousand_tensors_of_one_number(legacy: bool, tmp_path: Path) -> None:
    losses = [torch.tensor(float(i)) for i in range(40_000)]
    found = read(tmp_path / "x.pth", losses, _use_new_zipfile_serialization=not legacy)
    assert len(found) == 40_001
    assert found["beside.39999"] == 39999


def test_more_tensors_than_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("x/data.pkl", b"")
        for i in range(60_001):
            file.writestr(f"x/data/{i}", b"")
    with pytest.raises(
        CheckpointError, match=r"60002 entries, at most 60000 are read.*save the weights alone"
    ):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "parts",
    [
        (np.int64(3), 1),
        (torch.float16, "cuda"),
        (datetime.date(2020, 1, 1), 1),
        (pathlib.PurePosixPath("x"), 1),
        ("a" * 300, 1),
        ("a" * 9000, 1),
    ],
)
def test_tuples_of_anything_as_keys(parts: tuple[Any, ...], tmp_path: Path) -> None:
    """Two keys that look the same to us are two keys."""
    other = tuple([np.int64(4) if type(each) is np.int64 else each for each in parts[:1]] + [1])
    table = {parts: torch.zeros(1), other: torch.ones(1)}
    found = read(tmp_path / "x.pth", table)
    assert len(found) == 1 + len(table)


@pytest.mark.parametrize(
    "value",
    [
        *(torch.nn.Linear, torch.nn.Conv2d, torch.nn.Identity, torch.nn.Module, torch.nn.Dropout),
        *(torch.relu, torch.tanh, functools.partial(torch.nn.Linear, bias=False)),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_layers_and_functions_may_be_named(value: Any, protocol: int, tmp_path: Path) -> None:
    assert list(read(tmp_path / "x.pth", value, pickle_protocol=protocol)) == ["x"]


@pytest.mark.parametrize("value", [torch.nn.MSELoss(), torch.nn.Linear(2, 2), torch.nn.Sequential()])
def test_objects_of_layers_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"a loss or layer object, torch\.nn\.modules\.\w+\.\w+, .*state_dict"
    ):
        read(tmp_path / "x.pth", value)


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"{type(each).__module__}.{type(each).__qualname__}"
            for each in (os.stat("/"), io.BytesIO(), http.HTTPStatus.OK)
        ),
        f"{signal.SIGINT.__class__.__module__}.Signals",
        *("code.Net", "trace.Config", "profile.Settings", "cmd.Options", "site.Model", "commands.Command"),
    ],
)
def test_names_that_execute_nothing_are_no_attack(name: str) -> None:
    assert refusal(name).advice != ATTACK


@pytest.mark.parametrize(
    "name",
    [
        *(
            "os.system",
            "posix.system",
            "io.open",
            "_io.FileIO",
            "signal.signal",
            "http.server.test",
            "sys.exit",
        ),
        *(
            "code.interact",
            "code.InteractiveInterpreter",
            "trace.Trace",
            "profile.run",
            "cmd.Cmd",
            "site.addsitedir",
        ),
    ],
)
def test_names_that_execute_may_be_an_attack(name: str) -> None:
    assert refusal(name).advice == ATTACK


def test_an_ordered_dict_of_python_2_with_many_entries(tmp_path: Path) -> None:
    pairs = b"](" + b"".join(b"](" + text(f"a{i}") + b"K\x01e" for i in range(1000)) + b"e"
    made = named("collections", "OrderedDict") + pairs + b"\x85R"
    body = b"}(" + text("log") + made + text("x") + tensor(storage("0", 6), (1,), (1,)) + b"u"
    path = tmp_path / "x.pth"
    path.write_bytes(hostile.torch_zip(body, hostile.small_storages()))
    with read_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["x"]


def test_what_a_mac_leaves_in_an_archive(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3)}, tmp_path / "net.pth")
    with (
        zipfile.ZipFile(tmp_path / "net.pth") as source,
        zipfile.ZipFile(tmp_path / "again.pth", "w") as made,
    ):
        for name in source.namelist():
            made.writestr(name, source.read(name))
        for name in ("__MACOSX/net/._data.pkl", "net/.DS_Store", ".DS_Store"):
            made.writestr(name, b"notes")
    with read_checkpoint(tmp_path / "again.pth") as checkpoint:
        assert list(checkpoint.tensors) == ["x"]


def test_namespaces_beside_the_weights_hold_nothing(tmp_path: Path) -> None:
    assert list(read(tmp_path / "x.pth", argparse.Namespace(values=list(range(9))))) == ["x"]
