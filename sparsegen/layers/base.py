"""The base of layers: the tree of layers, the paths of its nodes, and their parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from sparsegen.backends.interface import (
    Host,
)

from ..tiling.tiles import TileSet


class Parameter:
    """One array of a layer: its shape when the model is built, its values when they are loaded."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        # zeros without storage: a model can be profiled before it has weights
        self.read: Callable[[], Host] = lambda: np.broadcast_to(np.float32(0), shape)
        """Returns the values: kept in memory, or read from the file at every call."""
        self.stored = "float32"
        """The element type of the file that holds the values exactly: "float32", "float16", "bfloat16"."""

    @property
    def value(self) -> Host:
        """The values as they were loaded."""
        return self.read()

    @property
    def float32(self) -> Host:
        """The values as float32 (exactly, from float16 and bfloat16)."""
        return np.asarray(self.value, np.float32)


class Layer:
    """A node of the model's tree: sublayers and parameters are the attributes that hold one."""

    path: str = ""

    def children(self) -> Iterator[tuple[str, Layer]]:
        """(name, sublayer), in order of definition.

        The layers of a list or tuple `block` are named `block.0`, `block.1`, …; those of a dict by its keys.
        """
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            else:
                for key, layer in _items(value):
                    if isinstance(layer, Layer):
                        yield f"{name}.{key}", layer

    def layers(self) -> Iterator[Layer]:
        """This layer and all below it."""
        yield self
        for _, child in self.children():
            yield from child.layers()

    def name_paths(self) -> None:
        """Set the path of this layer, the root of a tree, and of every layer below it. `Model` calls it when built.

        Raises
        ------
        TypeError
            A layer lies where `children` does not find it, or at two places; the message names the attribute.
        """
        self._name_paths("", {})

    def _name_paths(self, path: str, places: dict[Layer, str]) -> None:
        """`places`: the layers that have a path already, each with its attribute for the message."""
        self.path = path
        places.setdefault(self, f"the root {type(self).__name__}")
        for name, value in vars(self).items():
            _check_found(f"{type(self).__name__}.{name}", value)
        for name, child in self.children():
            place = f"{type(self).__name__}.{name}"
            if child in places:
                raise TypeError(
                    f"{place}: this {type(child).__name__} is {places[child]} too; a layer has one path, build a second"
                )
            places[child] = place
            child._name_paths(f"{path}.{name}" if path else name, places)

    def parameters(self) -> dict[str, Parameter]:
        """Path -> parameter, of this layer and all below it."""
        found: dict[str, Parameter] = {}
        for layer in self.layers():
            for name, value in vars(layer).items():
                if isinstance(value, Parameter):
                    found[f"{layer.path}.{name}" if layer.path else name] = value
        return found

    @property
    def macs_per_pixel(self) -> int:
        """Multiply-accumulates of one output pixel, by the layer's plain formula; 0 for a layer without products."""
        return 0

    def macs(self, tiles: TileSet) -> int:
        """Multiply-accumulates of recomputing `tiles` of the output; needs no run."""
        return self.macs_per_pixel * tiles.area


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """(name, item) of a list, tuple or dict; of anything else nothing."""
    if isinstance(value, list | tuple):
        yield from ((str(i), item) for i, item in enumerate(value))
    elif isinstance(value, dict):
        yield from ((str(key), item) for key, item in value.items())


def _contents(value: Any) -> Iterator[Any]:
    """Everything in a container of any kind, and in the containers in it."""
    if isinstance(value, Mapping):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, Collection) and not isinstance(value, str | bytes | np.ndarray):
        inner = list(value)
    else:
        return
    for item in inner:
        yield item
        yield from _contents(item)


def _check_found(place: str, value: Any) -> None:
    """Raise TypeError if the attribute `place` holds a layer or a parameter that no path leads to."""
    held = list(_contents(value))
    if any(isinstance(item, Parameter) for item in held):
        raise TypeError(f"{place}: a parameter in a container has no path; make it an attribute of the layer")
    found = sum(isinstance(item, Layer) for _, item in _items(value))
    if sum(isinstance(item, Layer) for item in held) > found:
        raise TypeError(
            f"{place}: a layer in {_kind(value)} has no path; expected an attribute, or a list, tuple or dict "
            "of layers in one"
        )
    if found and isinstance(value, dict):
        names = [str(key) for key in value]
        if any(not name or "." in name for name in names) or len(set(names)) < len(names):
            raise TypeError(f"{place}: the keys {names} become paths; expected different ones without dots")


def _kind(value: Any) -> str:
    """The type of a container, for a message."""
    name = type(value).__name__
    return f"a container in a {name}" if isinstance(value, list | tuple | dict) else f"a {name}"
