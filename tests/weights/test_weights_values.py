"""Tensors whose values differ from those of their storage: negated, conjugated, expanded, without values."""

from __future__ import annotations

import numpy as np
import pytest

from sparsegen.weights import CheckpointError, read_checkpoint
from tests.weights import hostile
from tests.weights.hostile import group, named, refused, storage, table


@pytest.mark.torch
def test_negative_and_conjugate_bits_are_applied(save):
    """Against `torch.load`, bit for bit: real views of conjugated tensors are negated, and so on."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(4, 6, generator=generator)
    waves = torch.complex(real, torch.randn(4, 6, generator=generator))
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8)
    state = {
        "plain": real.clone(),
        "negative": torch._neg_view(real.clone()),
        "strided": torch._neg_view(real.clone())[1:, ::2].t(),
        "imaginary": waves.clone().conj().imag,
        "conjugate": waves.clone().conj(),
        "adjoint": waves.clone().mH,
        "both": torch._neg_view(waves.clone().conj()),
        "parameter": torch.nn.Parameter(torch._neg_view(real.clone())),
        "buffer": torch.nn.Buffer(torch._neg_view(real.clone())),
        "zero": torch._neg_view(torch.tensor([0.0, -0.0, float("inf")])),
        "scalar": torch._neg_view(torch.tensor(2.5)),
        "empty": torch._neg_view(torch.zeros(0, 3)),
        **{str(kind): torch._neg_view((real * 3).abs().to(kind)) for kind in kinds},
    }
    state["parameter"].note = "attributes come with another rebuild function"
    assert all(state[name].is_neg() for name in ("negative", "strided", "imaginary", "both"))
    assert state["conjugate"].is_conj() and state["both"].is_conj()
    path = save(state)
    wanted = torch.load(path, weights_only=False)
    with read_checkpoint(path) as checkpoint:
        for name in state:
            expected = wanted[name].detach().resolve_conj().resolve_neg()
            if expected.dtype == torch.bfloat16:
                expected = expected.float()
            array = checkpoint.tensors[name].numpy()
            assert array.dtype == expected.numpy().dtype and not array.flags.writeable
            assert array.shape == tuple(expected.shape)
            assert array.tobytes() == expected.contiguous().numpy().tobytes(), name


@pytest.mark.torch
def test_expanded_and_meta_tensors_load_and_are_refused_when_they_are_read(save):
    torch = pytest.importorskip("torch")
    path = save(
        {
            "weight": torch.ones(3),
            "small": torch.full((1,), 2.0).expand(5),
            "expanded": torch.zeros(1).expand(1 << 32),
            "meta": torch.empty(1 << 20, 3, device="meta"),
            "parameter": torch.nn.Parameter(torch.empty(2, device="meta")),
        }
    )
    with read_checkpoint(path) as checkpoint:
        tensors = checkpoint.tensors
        assert tensors["weight"].numpy().tolist() == [1, 1, 1] and tensors["weight"].fault == ""
        assert tensors["small"].numpy().tolist() == [2] * 5
        assert tensors["expanded"].shape == (1 << 32,) and tensors["meta"].shape == (1 << 20, 3)
        for name, reason in (
            ("expanded", "repeating"),
            ("meta", "meta device"),
            ("parameter", "meta device"),
        ):
            with pytest.raises(CheckpointError, match=rf"{name}: .*{reason}"):
                tensors[name].numpy()


# Arguments of rebuild functions: none is dropped unread.

ST = storage("0", 6)
ONE = hostile.counts((6,))
STEP = hostile.counts((1,))
NONE, YES, NO = b"N", b"\x88", b"\x89"
START = hostile.number(0)
SAFE_HOOKS = named("collections", "OrderedDict") + b")R"
DATA = hostile.tensor(ST, (6,), (1,))
FLOAT = named("torch", "float32")


def call(function: str, *arguments: bytes, module: str = "torch._utils") -> bytes:
    return named(module, function) + group(*arguments) + b"R"


def v2(*more: bytes) -> bytes:
    return call("_rebuild_tensor_v2", ST, START, ONE, STEP, *more)


def v3(*more: bytes) -> bytes:
    untyped = storage("0", 24, "UntypedStorage")
    return call("_rebuild_tensor_v3", untyped, START, ONE, STEP, *more)


HOOKS = table({"1": named("torch", "float32")})
FROM_TYPE = (named("torch._utils", "_rebuild_tensor_v2"), named("torch", "Tensor"))
PLAIN_ARGUMENTS = group(ST, START, ONE, STEP, NO, SAFE_HOOKS)

UNREAD = {
    "v2: another metadata key": (v2(NO, NONE, table({"zero": YES})), "metadata zero=True"),
    "v2: a bit that is not set": (v2(NO, NONE, table({"neg": NO})), "metadata neg=False"),
    "v2: a bit and another key": (v2(NO, NONE, table({"neg": YES, "x": YES})), "metadata x=True"),
    "v2: metadata that is a list": (v2(NO, NONE, b"]"), "list as metadata"),
    "v2: conj of a real tensor": (v2(NO, NONE, table({"conj": YES})), "not complex"),
    "v2: hooks": (v2(NO, HOOKS), "backward hooks"),
    "v2: hooks that are a list": (v2(NO, b"]"), "backward hooks"),
    "v2: requires_grad that is text": (v2(hostile.text("no"), NONE), "as requires_grad"),
    "v2: no hooks": (v2(NO), "5 arguments, expected 6 to 7"),
    "v2: eight arguments": (v2(NO, NONE, NONE, NONE), "8 arguments"),
    "v2: neg of bool": (
        call(
            "_rebuild_tensor_v2",
            storage("0", 24, "BoolStorage"),
            START,
            ONE,
            STEP,
            NO,
            NONE,
            table({"neg": YES}),
        ),
        "no negative",
    ),
    "v3: another metadata key": (v3(NO, NONE, FLOAT, table({"zero": YES})), "metadata zero=True"),
    "v3: conj of a real tensor": (v3(NO, NONE, FLOAT, table({"conj": YES})), "not complex"),
    "v3: hooks": (v3(NO, HOOKS, FLOAT), "backward hooks"),
    "v1: five arguments": (call("_rebuild_tensor", ST, START, ONE, STEP, NO), "5 arguments"),
    "parameter: hooks": (call("_rebuild_parameter", DATA, YES, HOOKS), "backward hooks"),
    "parameter: requires_grad": (call("_rebuild_parameter", DATA, NONE, SAFE_HOOKS), "as requires_grad"),
    "parameter: two arguments": (call("_rebuild_parameter", DATA, YES), "2 arguments, expected 3"),
    "parameter: a state where none belongs": (
        call("_rebuild_parameter", DATA, YES, SAFE_HOOKS, b"}"),
        "4 arguments",
    ),
    "state: data": (
        call("_rebuild_parameter_with_state", DATA, YES, SAFE_HOOKS, table({"data": DATA})),
        "replace its data",
    ),
    "state: data in slots": (
        call("_rebuild_parameter_with_state", DATA, YES, SAFE_HOOKS, group(b"}", table({"data": DATA}))),
        "replace its data",
    ),
    "state: a list": (call("_rebuild_parameter_with_state", DATA, YES, SAFE_HOOKS, b"]"), "expected a dict"),
    "state: three parts": (
        call("_rebuild_parameter_with_state", DATA, YES, SAFE_HOOKS, group(b"}", b"}", b"}")),
        "expected a dict",
    ),
    "from type: data": (
        call(
            "_rebuild_from_type_v2",
            *FROM_TYPE,
            PLAIN_ARGUMENTS,
            table({"real": DATA}),
            module="torch._tensor",
        ),
        "replace its real",
    ),
    "a state: data": (DATA + table({"data": DATA}) + b"b", "replace its data"),
    "a state: set_": (DATA + group(ST, START, ONE, STEP) + b"b", "before PyTorch 0.2"),
    "a state: a variable": (DATA + group(DATA, NO, NO, NO, SAFE_HOOKS) + b"b", "before PyTorch 0.2"),
    "a state: hooks": (DATA + group(NO, NO, HOOKS) + b"b", "backward hooks"),
    "meta: requires_grad": (
        call("_rebuild_meta_tensor_no_storage", FLOAT, ONE, STEP, NONE),
        "as requires_grad",
    ),
    "meta: a dtype that is none": (
        call("_rebuild_meta_tensor_no_storage", named("torch", "Size"), ONE, STEP, NO),
        "as dtype",
    ),
    "meta: an impossible shape": (
        call(
            "_rebuild_meta_tensor_no_storage", FLOAT, hostile.counts((1 << 61, 2)), hostile.counts((1, 1)), NO
        ),
        "impossible shape",
    ),
    "a storage of the meta device": (
        hostile.tensor(ST.replace(hostile.text("cpu"), hostile.text("meta")), (6,), (1,)),
        "the device meta",
    ),
    "a storage of no device": (
        hostile.tensor(ST.replace(hostile.text("cpu"), hostile.number(1)), (6,), (1,)),
        "the device 1",
    ),
}


@pytest.mark.parametrize("case", UNREAD)
def test_arguments_that_would_be_dropped_are_refused_by_name(case, tmp_path):
    body, expected = UNREAD[case]
    message = refused(tmp_path / "x.pth", hostile.torch_zip(table({"x": body}), hostile.small_storages()))
    assert expected in message
    assert "attack" not in message


READ = {
    "v2": v2(NO, NONE),
    "v2 with an empty metadata": v2(NO, NONE, b"}"),
    "v2 with none": v2(NO, SAFE_HOOKS, NONE),
    "v3": v3(YES, SAFE_HOOKS, FLOAT),
    "attributes": call("_rebuild_parameter_with_state", DATA, YES, SAFE_HOOKS, table({"note": NONE})),
    "slots": call("_rebuild_parameter_with_state", DATA, YES, SAFE_HOOKS, group(NONE, table({"note": NONE}))),
    "a state of PyTorch 0.2": named("torch.nn.parameter", "Parameter")
    + group(DATA)
    + b"\x81"
    + group(YES, NO, SAFE_HOOKS)
    + b"b",
    "the old name of a module": call(
        "_rebuild_from_type_v2", *FROM_TYPE, PLAIN_ARGUMENTS, b"}", module="torch.tensor"
    ),
}


@pytest.mark.parametrize("case", READ)
def test_arguments_that_change_nothing_are_accepted(case, tmp_path):
    (tmp_path / "x.pth").write_bytes(hostile.torch_zip(table({"x": READ[case]}), hostile.small_storages()))
    with read_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert np.array_equal(checkpoint.tensors["x"].numpy(), np.arange(6))


def test_both_bits_of_a_file_made_by_hand(tmp_path):
    storages = {"0": np.array([1 + 2j, 3 - 4j, 0], np.complex64).tobytes()}
    kind = storage("0", 3, "ComplexFloatStorage")
    body = call(
        "_rebuild_tensor_v2",
        *(kind, START, hostile.counts((3,)), STEP, NO, NONE, table({"neg": YES, "conj": YES})),
    )
    (tmp_path / "x.pth").write_bytes(hostile.torch_zip(table({"x": body}), storages))
    with read_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert np.array_equal(checkpoint.tensors["x"].numpy(), [-1 + 2j, -3 - 4j, 0])


@pytest.mark.torch
def test_the_bits_of_the_third_rebuild_function(tmp_path):
    """By hand: PyTorch takes it for element types alone that it cannot negate, but reads it for others too."""
    torch = pytest.importorskip("torch")
    body = table({"x": v3(NO, SAFE_HOOKS, FLOAT, table({"neg": YES}))})
    (tmp_path / "x.pth").write_bytes(hostile.torch_zip(body, hostile.small_storages()))
    wanted = torch.load(tmp_path / "x.pth", weights_only=False)["x"]
    with read_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert checkpoint.tensors["x"].numpy().tolist() == wanted.tolist() == [0, -1, -2, -3, -4, -5]
