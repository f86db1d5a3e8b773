"""Layers: parameters and how they are used. A feature comes in, a feature comes out; nothing else is remembered.

A layer holds its parameters and its path (`up_3.conv_0`); canvases, statistics and prepared weights are asked
of the `Run` under that path. No layer knows whether a run is dense or an edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
        """Gives the values: those that are kept here, or out of a file, each time anew."""

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
        """(name, sublayer), in order of definition; the layers of a list `block` are called `block.0`, `block.1`, …"""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list):
                for i, layer in enumerate(value):
                    if isinstance(layer, Layer):
                        yield f"{name}.{i}", layer

    def layers(self) -> Iterator[Layer]:
        """This layer and all below it."""
        yield self
        for _, child in self.children():
            yield from child.layers()

    def name_paths(self, path: str = "") -> None:
        """Give every layer below its path. Called once, by the model."""
        self.path = path
        for name, child in self.children():
            child.name_paths(f"{path}.{name}" if path else name)

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
        """Multiply-accumulates of one output pixel, by the layer's plain formula; 0 for what has no product."""
        return 0

    def macs(self, tiles: TileSet) -> int:
        """Multiply-accumulates of recomputing `tiles` of the output; no run is needed to know."""
        return self.macs_per_pixel * tiles.area
