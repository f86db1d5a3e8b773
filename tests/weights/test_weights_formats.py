"""Files that PyTorch and safetensors write, read without PyTorch: every bit as PyTorch reads them."""

from __future__ import annotations

import gc
import os
import struct
import subprocess
import sys
import tracemalloc
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest

from sparsegen.weights import CheckpointError, read_checkpoint
from sparsegen.weights.limits import BASE_BYTES
from tests.weights import hostile


def bits(tensor):
    """A torch tensor's elements, in order, as bytes."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def same(read, tensor):
    """`read.numpy()` is the torch tensor, bit for bit (bfloat16: of the float32 it is widened to)."""
    import torch

    assert read.shape == tuple(tensor.shape)
    assert read.dtype == str(tensor.dtype).removeprefix("torch.")
    assert read.nbytes == tensor.numel() * tensor.element_size()
    array = read.numpy()
    assert array.shape == read.shape
    assert not array.flags.writeable
    wanted = tensor.to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor
    assert array.tobytes() == bits(wanted)
    return True


@pytest.mark.torch
def test_every_element_type(save):
    torch = pytest.importorskip("torch")
    raw = torch.from_numpy(np.random.default_rng(1).integers(0, 256, 64, np.uint8))
    names = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128", "int8", "int16", "int32"]
    names += ["int64", "uint8", "uint16", "uint32", "uint64"]
    state = {name: raw.clone().view(getattr(torch, name)) for name in names}
    state["bool"] = raw > 100
    with read_checkpoint(save(state)) as checkpoint:
        assert list(checkpoint.tensors) == list(state)
        assert all(same(checkpoint.tensors[name], state[name]) for name in state)
        assert checkpoint.tensors["float16"].numpy().dtype == np.float16
        assert checkpoint.tensors["bfloat16"].numpy().dtype == np.float32
        assert checkpoint.tensors["bool"].numpy().dtype == np.bool_


@pytest.mark.torch
def test_bfloat16_is_widened_exactly_for_every_value(tmp_path):
    torch = pytest.importorskip("torch")
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    torch.save({"x": every}, tmp_path / "every.pth")
    with read_checkpoint(tmp_path / "every.pth") as checkpoint:
        read = checkpoint.tensors["x"].numpy()
    assert np.array_equal(read.view(np.uint32), np.arange(65536, dtype=np.uint32) << 16)


@pytest.mark.torch
def test_views_parameters_ties_and_odd_shapes(save):
    torch = pytest.importorskip("torch")
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    tied = torch.nn.Parameter(torch.randn(7, 2, generator=torch.Generator().manual_seed(2)))
    state = OrderedDict(
        base=base,
        transposed=base.permute(2, 0, 1),
        strided=base[:, ::2, 1::3],
        last=base[2, 3],
        expanded=torch.arange(3.0).reshape(3, 1).expand(3, 4),
        scalar=torch.tensor(3.5, dtype=torch.float64),
        empty=torch.zeros(0, 3),
        parameter=tied,
        again=tied,
        frozen=torch.nn.Parameter(torch.ones(2), requires_grad=False),
        buffer=torch.nn.Buffer(torch.full((2,), 9.0)),
        channels_last=base.reshape(1, 3, 4, 5).to(memory_format=torch.channels_last),
    )
    path = save(state)
    with read_checkpoint(path) as checkpoint:
        assert all(same(checkpoint.tensors[name], value) for name, value in state.items())
        tensors = checkpoint.tensors
        if checkpoint.format == "pytorch-zip":
            # Tied names, and views of one storage, look at the same bytes of the file.
            assert np.shares_memory(tensors["parameter"].numpy(), tensors["again"].numpy())
            assert np.shares_memory(tensors["base"].numpy(), tensors["strided"].numpy())


@pytest.mark.torch
def test_a_real_network_and_its_optimizer(save):
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 2, 1))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    whole = {
        "netG": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": 12,
        "loss": 0.25,
        "note": "größer",
        "done": True,
        "nothing": None,
        "sizes": [torch.Size([2, 3]), (4, 5)],
        "device": torch.device("cpu"),
        "counter": Counter([1, 1, 2]),
        "default": defaultdict(int, {"a": 1}),
        "seen": {3},
        "raw": b"\x00\xff",
        "random": torch.get_rng_state(),
    }
    path = save(whole)
    with read_checkpoint(path) as checkpoint:
        for name, value in network.state_dict().items():
            assert same(checkpoint.tensors["netG." + name], value)
        for index, state in optimizer.state_dict()["state"].items():
            assert same(checkpoint.tensors[f"optimizer.state.{index}.exp_avg"], state["exp_avg"])
        assert same(checkpoint.tensors["random"], whole["random"])
        metadata = checkpoint.metadata
        assert (metadata["epoch"], metadata["loss"], metadata["note"]) == (12, 0.25, "größer")
        assert metadata["done"] is True and metadata["nothing"] is None
        assert [metadata[f"sizes.0.{i}"] for i in (0, 1)] == [2, 3]
        assert metadata["schedule.milestones.2"] == 1
        assert metadata["counter.1"] == 2 and metadata["seen.0"] == 3
        assert metadata["optimizer.param_groups.0.lr"] == 0.001


@pytest.mark.torch
def test_a_tensor_alone_and_an_empty_file(save):
    torch = pytest.importorskip("torch")
    alone = torch.arange(3)
    with read_checkpoint(save(alone)) as checkpoint:
        assert same(checkpoint.tensors["tensor"], alone)
    with read_checkpoint(save({})) as checkpoint:
        assert dict(checkpoint.tensors) == {}


@pytest.mark.torch
@pytest.mark.parametrize("name", ["epoch 10: best (2).pth", "größer.pth", "no suffix", "a.b.c..pth"])
def test_any_file_name(name, tmp_path):
    """torch.save names the archive's folder after the file."""
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.ones(2)}, tmp_path / name)
    with read_checkpoint(tmp_path / name) as checkpoint:
        assert same(checkpoint.tensors["x"], torch.ones(2))


@pytest.mark.torch
def test_numpy_values_beside_the_tensors_are_noted(save):
    torch = pytest.importorskip("torch")
    values = {"score": np.float64(0.5), "array": np.arange(40.0), "state": np.random.default_rng(0).bytes(4)}
    with read_checkpoint(save({**values, "x": torch.ones(2)})) as checkpoint:
        assert list(checkpoint.tensors) == ["x"]
        assert set(checkpoint.placeholders) == {"numpy scalar", "numpy.ndarray"}


@pytest.mark.torch
def test_float8_is_listed_but_not_converted(save):
    torch = pytest.importorskip("torch")
    path = save({"eight": torch.ones(3).to(torch.float8_e4m3fn), "plain": torch.ones(3)})
    with read_checkpoint(path) as checkpoint:
        assert same(checkpoint.tensors["plain"], torch.ones(3))
        assert checkpoint.tensors["eight"].dtype == "float8_e4m3fn"
        with pytest.raises(CheckpointError, match="eight: has the element type float8_e4m3fn"):
            checkpoint.tensors["eight"].numpy()


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64", "int64", "int8", "bool"])
def test_safetensors_as_its_own_library_reads_it(kind, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    values = torch.from_numpy(np.random.default_rng(4).integers(0, 2, (3, 5)))
    state = {"b": values.to(getattr(torch, kind)), "a": torch.zeros(0, 2), "s": torch.tensor(1.5)}
    save_file(state, tmp_path / "x.bin", metadata={"made by": "a test"})
    with read_checkpoint(tmp_path / "x.bin") as checkpoint:
        assert checkpoint.format == "safetensors"
        assert dict(checkpoint.metadata) == {"made by": "a test"}
        assert set(checkpoint.tensors) == set(state)
        assert all(same(checkpoint.tensors[name], state[name]) for name in state)


@pytest.mark.parametrize("make", [hostile.small_zip, hostile.small_legacy], ids=["zip", "legacy"])
def test_files_made_by_hand_without_pytorch(make, tmp_path):
    path = tmp_path / "small.pth"
    path.write_bytes(make())
    with read_checkpoint(path) as checkpoint:
        tensors = {name: tensor.numpy() for name, tensor in checkpoint.tensors.items()}
    assert np.array_equal(tensors["model.weight"], [[0, 1, 2], [3, 4, 5]])
    assert np.array_equal(tensors["model.transposed"], tensors["model.weight"].T)
    assert tensors["steps.1"] == 5
    assert np.array_equal(tensors["model.bias"].view(np.uint32), [0x03020000, 0x05040000, 0x07060000])
    assert dict(checkpoint.metadata) == {"steps.0": 7, "name": "small"}


def test_big_endian_files_are_read_with_their_own_byte_order(tmp_path):
    body = hostile.table({"x": hostile.tensor(hostile.storage("0", 3), (3,), (1,))})
    data = struct.pack(">3f", 1, 2, 3)
    entries = [("data.pkl", hostile.pickled(body)), ("byteorder", b"big"), ("data/0", data)]
    (tmp_path / "big.pth").write_bytes(hostile.archive(entries))
    with read_checkpoint(tmp_path / "big.pth") as checkpoint:
        read = checkpoint.tensors["x"].numpy()
    assert read.tolist() == [1, 2, 3] and read.dtype.isnative


@pytest.mark.parametrize("make", [hostile.torch_zip, None], ids=["zip", "legacy"])
def test_python_2_files(make, tmp_path):
    """Keys as byte strings, dicts from lists of pairs, an integer in decimal, tensors of the first generation."""

    def old(value):
        return b"U" + bytes([len(value)]) + value.encode()

    stored = hostile.storage("0", 2, legacy=make is None).replace(hostile.text("storage"), old("storage"))
    rebuilt = hostile.named("torch._utils", "_rebuild_tensor") + hostile.group(
        stored, b"I0\n", b"I2\n\x85", b"I1\n\x85"
    )
    pair = b"](" + old("conv.weight") + rebuilt + b"Re"
    body = hostile.named("collections", "OrderedDict") + b"](" + pair + b"e\x85R"
    data = struct.pack("<2f", 3, 4)
    raw = make(body, {"0": data}) if make else hostile.torch_legacy(body, [("0", 2, data)])
    (tmp_path / "old.pth").write_bytes(raw)
    with read_checkpoint(tmp_path / "old.pth") as checkpoint:
        assert checkpoint.tensors["conv.weight"].numpy().tolist() == [3, 4]


def test_windows_into_a_storage_of_old_legacy_files(tmp_path):
    fields = [hostile.text("storage"), hostile.named("torch", "FloatStorage"), hostile.text("0")]
    window = hostile.group(hostile.text("w"), hostile.number(2), hostile.number(3))
    stored = hostile.group(*fields, hostile.text("cpu"), hostile.number(6), window) + b"Q"
    body = hostile.table({"x": hostile.tensor(stored, (2,), (1,), 1)})
    raw = hostile.torch_legacy(body, [("0", 6, struct.pack("<6f", *range(6)))])
    (tmp_path / "window.pth").write_bytes(raw)
    with read_checkpoint(tmp_path / "window.pth") as checkpoint:
        assert checkpoint.tensors["x"].numpy().tolist() == [3, 4]


def test_training_checkpoints_keep_their_tensors_and_only_name_their_classes(tmp_path):
    """As in sd-v1-4.ckpt: a Lightning callback's class as a key, and objects of it with a state."""
    checkpointing = hostile.named("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    namespace = hostile.named("argparse", "Namespace") + b")\x81" + hostile.table({"lr": b"K\x01"}) + b"b"
    attributes = hostile.named("lightning.fabric.utilities.data", "AttributeDict") + b")\x81"
    best = hostile.named("numpy.core.multiarray", "scalar") + hostile.group(
        hostile.named("numpy", "dtype") + hostile.group(hostile.text("f8"), b"K\x00K\x01") + b"R",
        hostile.named("_codecs", "encode")
        + hostile.group(hostile.text("\x00" * 8), hostile.text("latin1"))
        + b"R",
    )
    weight = hostile.tensor(hostile.storage("0", 6), (2, 3), (3, 1))
    body = (
        b"}("
        + hostile.text("callbacks")
        + (b"}" + checkpointing + hostile.table({"best_model_score": best + b"R"}) + b"s")
        + hostile.text("hyper_parameters")
        + namespace
        + hostile.text("more")
        + (attributes + b"(" + hostile.text("a") + b"K\x01u")
        + hostile.text("state_dict")
        + hostile.table({"w": weight})
        + b"u"
    )
    (tmp_path / "training.ckpt").write_bytes(hostile.torch_zip(body, hostile.small_storages()))
    before = set(sys.modules)
    with read_checkpoint(tmp_path / "training.ckpt") as checkpoint:
        assert list(checkpoint.tensors) == ["state_dict.w"]
        assert checkpoint.tensors["state_dict.w"].numpy()[1, 2] == 5
    assert set(checkpoint.placeholders) == {
        "argparse.Namespace",
        "lightning.fabric.utilities.data.AttributeDict",
        "numpy scalar",
    }
    assert not {name for name in set(sys.modules) - before if "lightning" in name}


def test_arrays_outlive_the_checkpoint_and_later_reads_are_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(hostile.small_zip())
    with read_checkpoint(tmp_path / "x.pth") as checkpoint:
        array = checkpoint.tensors["model.weight"].numpy()
        tensor = checkpoint.tensors["model.weight"]
    gc.collect()
    assert array.sum() == 15
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    with pytest.raises(CheckpointError, match="is closed"):
        tensor.numpy()


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_a_file_of_five_gigabytes_takes_no_memory(kind, tmp_path):
    """A sparse file: only what is touched is read. The zip needs its 64-bit fields."""
    path = tmp_path / "large"
    shape = (5, 1 << 28)
    size = 4 * shape[0] * shape[1]
    if kind == "safetensors":
        header = {"x": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}}
        head, tail = hostile.safetensors(header), b""
    else:
        body = hostile.table({"x": hostile.tensor(hostile.storage("0", size // 4), shape, (shape[1], 1))})
        marker = b"\x01" * 64
        whole = hostile.archive(
            [("data.pkl", hostile.pickled(body)), ("data/0", marker)],
            lie={"data/0": {"packed": size, "unpacked": size}},
        )
        cut = whole.index(marker)
        head, tail = whole[:cut], bytearray(whole[cut + 64 :])
        # The records at the end say where they are: shift them by what the hole adds.
        record, moved = tail.index(b"PK\6\6"), size - 64
        (start,) = struct.unpack_from("<Q", tail, record + 48)
        struct.pack_into("<Q", tail, record + 48, start + moved)
        (at,) = struct.unpack_from("<Q", tail, record + 56 + 8)
        struct.pack_into("<Q", tail, record + 56 + 8, at + moved)
        struct.pack_into("<I", tail, record + 56 + 20 + 16, 0xFFFFFFFF)
    with open(path, "wb") as file:
        file.write(head)
        file.seek(len(head) + size - 4)
        file.write(struct.pack("<f", 2.5) + bytes(tail))
    assert os.path.getsize(path) > 5 << 30
    tracemalloc.start()
    with read_checkpoint(path) as checkpoint:
        array = checkpoint.tensors["x"].numpy()
        assert array.shape == shape and array[-1, -1] == 2.5 and array[0, 0] == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_many_small_tensors_fit_the_budget(tmp_path):
    """4,000 tensors of one number each: as much structure for so few bytes as any model has."""
    stored = {str(i): struct.pack("<f", i) for i in range(4000)}
    body = hostile.table(
        {f"layer.{i}.weight": hostile.tensor(hostile.storage(str(i), 1), (1,), (1,)) for i in range(4000)}
    )
    (tmp_path / "many.pth").write_bytes(hostile.torch_zip(body, stored))
    tracemalloc.start()
    with read_checkpoint(tmp_path / "many.pth") as checkpoint:
        assert len(checkpoint.tensors) == 4000
        assert checkpoint.tensors["layer.3999.weight"].numpy()[0] == 3999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BASE_BYTES


NOT_CHECKPOINTS = {
    "a web page": (b"<!DOCTYPE html><html>", "is a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 50, "gzip"),
    "tar": (b"sys_info".ljust(257, b"\0") + b"ustar  \0" + b"\0" * 300, "a file of PyTorch before 0.4"),
    "a plain pickle": (hostile.pickled(b"}"), "plain pickle"),
    "text": (b"hello, this is text", "unknown format"),
    "nothing": (b"", "is empty"),
    "one byte": (b"\x80", "plain pickle"),
}


@pytest.mark.parametrize("kind", NOT_CHECKPOINTS)
def test_what_is_no_checkpoint_is_named(kind, tmp_path):
    raw, message = NOT_CHECKPOINTS[kind]
    path = tmp_path / "file.pth"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.torch
def test_torchscript_archives_and_whole_models_are_refused_by_name(tmp_path):
    torch = pytest.importorskip("torch")
    entries = [("constants.pkl", b""), ("data.pkl", hostile.pickled(b"}")), ("code/x.py", b"pass")]
    (tmp_path / "script.pt").write_bytes(hostile.archive(entries))
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint(tmp_path / "script.pt")
    for as_zip in (True, False):
        torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth", _use_new_zipfile_serialization=as_zip)
        with pytest.raises(CheckpointError, match="state_dict"):
            read_checkpoint(tmp_path / "whole.pth")


def test_folders_pipes_and_missing_files(tmp_path):
    cases = {"": "is a folder", "missing": "cannot be opened"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        cases["pipe"] = "not a regular file"
    for name, message in cases.items():
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / name)


def test_importing_loads_neither_pytorch_nor_an_accelerator(tmp_path):
    (tmp_path / "x.pth").write_bytes(hostile.small_zip())
    code = (
        "import sys; from sparsegen.weights import read_checkpoint;"
        "read_checkpoint(sys.argv[1]).tensors['model.weight'].numpy();"
        "print([name for name in ('torch', 'numba', 'cupy', 'pickle5') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.pth")],
        capture_output=True,
        text=True,
        cwd=Path(tmp_path),
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
