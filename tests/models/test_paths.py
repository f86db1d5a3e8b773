"""Paths of layers: a model names every layer that it holds when it is built, or refuses to be built."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from sparsegen.layers import Conv2d, InstanceNorm, Layer, Parameter
from sparsegen.models.base import Model
from tests.networks import random_gaugan, random_mobile
from tests.unets import random_ddpm


class Held(Model):
    """A model that holds what it is given in its attribute `held`."""

    def __init__(self, held: Any) -> None:
        super().__init__(config=None)
        self.held = held


class Block(Layer):
    def __init__(self, held: Any) -> None:
        self.inner = held


def conv() -> Conv2d:
    return Conv2d(2, 3)


def test_a_model_has_its_paths_once_it_is_built():
    for model in (random_gaugan(), random_mobile(), random_ddpm()):
        paths = [layer.path for layer in model.layers()]
        assert paths[0] == ""
        assert all(paths[1:])
        assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    ("held", "paths"),
    [
        (lambda: conv(), ["held"]),
        (lambda: [conv(), conv()], ["held.0", "held.1"]),
        (lambda: (conv(), conv()), ["held.0", "held.1"]),
        (lambda: [None, conv()], ["held.1"]),
        (lambda: {"low": conv(), "high": conv()}, ["held.low", "held.high"]),
        (lambda: {64: conv(), 128: conv()}, ["held.64", "held.128"]),
        (lambda: {"low": None, "high": conv()}, ["held.high"]),
        (lambda: [Block(conv()), Block((conv(),))], ["held.0", "held.0.inner", "held.1", "held.1.inner.0"]),
    ],
)
def test_layers_are_found_in_attributes_lists_tuples_and_dicts(held, paths):
    model = Held(held())
    assert [layer.path for layer in model.layers()] == ["", *paths]
    convolutions = [layer.path for layer in model.layers() if isinstance(layer, Conv2d)]
    assert {name.rpartition(".")[0] for name in model.parameters()} == set(convolutions)


@pytest.mark.parametrize(
    ("held", "container"),
    [
        (lambda: {conv()}, "a set"),
        (lambda: frozenset([conv()]), "a frozenset"),
        (lambda: deque([conv()]), "a deque"),
        (lambda: [[conv()]], "a container in a list"),
        (lambda: [conv(), (conv(),)], "a container in a list"),
        (lambda: ({"low": conv()},), "a container in a tuple"),
        (lambda: {"low": [conv()]}, "a container in a dict"),
        (lambda: {conv(): "low"}, "a container in a dict"),
    ],
)
def test_a_layer_that_no_path_leads_to_is_refused(held, container):
    with pytest.raises(TypeError, match=rf"Held\.held: a layer in {container} has no path; expected"):
        Held(held())
    with pytest.raises(TypeError, match=r"Block\.inner: a layer in"):
        Held([Block(held())])


@pytest.mark.parametrize("keys", [("a.b",), ("",), ("1", 1)])
def test_keys_that_are_no_paths_are_refused(keys):
    with pytest.raises(TypeError, match=r"Held\.held: the keys .* become paths; expected different ones"):
        Held({key: conv() for key in keys})


def test_a_parameter_in_a_container_is_refused():
    with pytest.raises(TypeError, match=r"Held\.held: a parameter in a container has no path; make it"):
        Held([Parameter(2, 3)])


def test_one_layer_at_two_places_is_refused():
    twice = conv()
    for held in ([twice, twice], {"low": twice, "high": twice}, [twice, Block(twice)]):
        with pytest.raises(TypeError, match=r"(Held\.held\.\w+|Block\.inner): this Conv2d is Held\.held"):
            Held(held)
    block = Block(None)
    block.inner = block
    with pytest.raises(TypeError, match=r"Block\.inner: this Block is Held\.held too; a layer has one path"):
        Held(block)


def test_containers_without_layers_are_left_alone():
    held = [{1, 2}, np.zeros(3), "text", [["more"]], {"key": {"inner": 1}}]
    assert [layer.path for layer in Held(held).layers()] == [""]
    assert [layer.path for layer in Held([InstanceNorm(), *held]).layers()] == ["", "held.0"]
