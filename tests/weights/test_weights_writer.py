"""Writing is whole or not at all: the old file stays until the new one is complete, and no other file is left."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file

from sparsegen.weights import CheckpointError, read_checkpoint, write_safetensors, writer

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0], np.float64),
    "c": np.array(7),
    "d": np.zeros((0, 4), np.float16),
    "e": np.array([True, False]),
}


def test_what_is_written_is_what_its_own_library_reads(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, {"note": "größer"})
    for name, value in load_file(path).items():
        assert value.dtype == TENSORS[name].dtype and np.array_equal(value, TENSORS[name])
    with read_checkpoint(path) as checkpoint:
        assert dict(checkpoint.metadata) == {"note": "größer"}
        assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {
            name: value.shape for name, value in TENSORS.items()
        }
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_views_in_any_order_are_written_as_they_look(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    views = {
        "transposed": base.T,
        "strided": base[:, ::2, ::-1],
        "broadcast": np.broadcast_to(base[0], (3, 3, 4)),
        "big": base.astype(">f4"),
        "scalar": base[1, 2, 3],
    }
    write_safetensors(tmp_path / "x", views)
    read = load_file(tmp_path / "x")
    for name, value in views.items():
        assert np.array_equal(read[name], value) and read[name].shape == value.shape


def test_casting_touches_floating_tensors_alone(tmp_path):
    write_safetensors(tmp_path / "x", TENSORS, dtype="float16")
    kinds = {name: value.dtype.name for name, value in load_file(tmp_path / "x").items()}
    assert kinds == {"a": "float16", "b": "float16", "c": "int64", "d": "float16", "e": "bool"}


def test_each_tensor_may_have_its_own_type_and_the_wide_ones_come_first(tmp_path):
    read: list[str] = []

    class Lazy(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    odd = Lazy({name: np.arange(3, dtype=np.float32) for name in "abcd"} | {"e": np.zeros(3, np.uint8)})
    write_safetensors(tmp_path / "x", odd, dtype={"a": "float16", "b": "bfloat16", "c": "float32"})
    assert read == ["c", "d", "e", "a", "b"]
    with read_checkpoint(tmp_path / "x") as checkpoint:
        assert {name: tensor.dtype for name, tensor in checkpoint.tensors.items()} == {
            "a": "float16",
            "b": "bfloat16",
            "c": "float32",
            "d": "float32",
            "e": "uint8",
        }
        for name, value in odd.items():
            found = checkpoint.tensors[name].numpy()
            assert np.array_equal(found, value) and found.flags.aligned


def test_bfloat16_is_the_nearest_of_two_the_even_one(tmp_path):
    step = 2.0**-7  # between bfloat16 numbers from 1 to 2
    given = np.array(
        [1 + step / 2, 1 + 3 * step / 2, 1 + 0.6 * step, -(1 + 0.4 * step), np.inf, np.nan], np.float32
    )
    wanted = np.array([1, 1 + 2 * step, 1 + step, -1, np.inf, np.nan], np.float32)
    write_safetensors(tmp_path / "x", {"t": given}, dtype={"t": "bfloat16"})
    with read_checkpoint(tmp_path / "x") as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensors["t"].numpy(), wanted)
    largest = np.finfo(np.float32).max  # rounds to infinity
    with pytest.raises(CheckpointError, match="too large for bfloat16"):
        write_safetensors(tmp_path / "y", {"t": np.array([largest])}, dtype={"t": "bfloat16"})


def test_values_too_large_for_float16_are_an_error_that_names_the_tensor(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    fits = {"edge": np.array([65504.0, -65504.0, np.inf, np.nan], np.float32)}
    write_safetensors(tmp_path / "fits", fits, dtype="float16")
    np.testing.assert_array_equal(load_file(tmp_path / "fits")["edge"], fits["edge"])
    too_large = {"fine": np.ones(3), "up_3.conv_0.weight": np.array([1.0, np.inf, -70000.0])}
    with pytest.raises(
        CheckpointError, match=r"up_3\.conv_0\.weight: holds values up to 70000, too large for float16"
    ):
        write_safetensors(tmp_path / "x", too_large, dtype="float16")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["fits", "x"]


class Failing(dict):
    """A lazy mapping whose last tensor cannot be read."""

    def __getitem__(self, name):
        if name == "e":
            raise self.error
        return super().__getitem__(name)


@pytest.mark.parametrize("error", [RuntimeError("a test"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_save_that_fails_while_reading_leaves_the_old_file(error, tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    tensors = Failing(TENSORS)
    tensors.error = error
    with pytest.raises(type(error)):
        write_safetensors(tmp_path / "x", tensors)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("step", ["_write", "os.chmod", "os.fsync", "os.replace"])
def test_a_save_that_fails_at_any_step_leaves_the_old_file(step, tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    target = writer if step == "_write" else writer.os
    monkeypatch.setattr(target, step.removeprefix("os."), full)
    with pytest.raises(CheckpointError, match=r"x: could not be written: No space left.*unchanged"):
        write_safetensors(tmp_path / "x", TENSORS)
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="could not be written: No such file or directory"):
        write_safetensors(tmp_path / "no" / "x", TENSORS)
    assert os.listdir(tmp_path) == []


def test_an_open_checkpoint_survives_its_own_replacement(tmp_path):
    path = tmp_path / "x"
    write_safetensors(path, TENSORS)
    with read_checkpoint(path) as checkpoint:
        array = checkpoint.tensors["a"].numpy()
        write_safetensors(
            path, {name: tensor.numpy() for name, tensor in checkpoint.tensors.items()}, dtype="float16"
        )
        assert np.array_equal(array, TENSORS["a"])
    assert load_file(path)["a"].dtype == np.float16


def test_permissions_are_kept_or_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_safetensors(tmp_path / "x", TENSORS)
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "x").chmod(0o640)
    write_safetensors(tmp_path / "x", TENSORS)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_progress_is_reported_tensor_by_tensor(tmp_path):
    told = []
    write_safetensors(tmp_path / "x", TENSORS, progress=lambda *step: told.append(step))
    assert told == [(index, 5, name) for index, name in enumerate(TENSORS, start=1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metadata": {"a": 1}}, "metadata holds a value that is not a string"),
        ({"dtype": "int8"}, "cannot be written as int8, expected float16, bfloat16 or float32"),
        ({"dtype": {"a": "int8"}}, "cannot be written as int8, expected float16, bfloat16 or float32"),
        ({"tensors": {"t": np.array(["text"])}}, "tensor t: has the type <U4"),
        ({"tensors": {"t": np.array([None])}}, "tensor t: has the type object"),
        ({"tensors": {"t": np.zeros(1, "c16")}}, "tensor t: has the type complex128"),
    ],
)
def test_what_safetensors_cannot_hold_is_refused(arguments, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        write_safetensors(tmp_path / "x", **{"tensors": TENSORS, **arguments})
    assert os.listdir(tmp_path) == []
