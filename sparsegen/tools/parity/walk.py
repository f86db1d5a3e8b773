"""A model walked without computing: inputs and values of canvases come in, layers that can compute alone come out.

The model's code runs once with no tile active. It leaves the steps of its layers, and every step reads canvases by
path: over canvases that hold a reference's values, a step computes its layer's own result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from sparsegen.backends.interface import Activation, Backend, Host, Source
from sparsegen.backends.shapes import ShapesBackend

from ...engine.allocator import BackendAllocator
from ...engine.feature import Feature
from ...engine.memory import Memory
from ...engine.run import LayerStep, Run
from ...layers import Conv2d, Layer, Linear
from ...models.base import Inputs, Model
from ...models.unet import TimeEmbedding
from ...tiling.policies import NOTHING
from ...tiling.tiles import TileSet
from .listening import Call, Change, Listening


@dataclass(frozen=True)
class Wire:
    """What a layer's canvas stands for: the layer's own product, and what is fused behind it."""

    path: str
    shape: tuple[int, ...]
    """`(N, H, W, C)`; of rows `(1 or N, C)`."""
    reads: tuple[str, ...] = ()
    """The canvases that it reads."""
    adds: int = 0
    """How many values are added to the product: a time's shift, a residual."""
    activation: Activation = "identity"
    stands_for: tuple[str, str] = ("", "")
    """Of a layer without weights: the layer with weights that reads this canvas as it is, and as what, "input" or
    "residual"."""


class Walk:
    """The layers of a model over one input, each of which can be computed alone.

    Parameters
    ----------
    model
        The model.
    inputs
        As `Model.encode` returns them.
    backend
        What computes; None: nothing can be computed, only `wires` is of use.
    values
        Path -> values of canvases `[N, H, W, C]` and of rows `[1 or N, C]`; the others hold zeros.
    """

    def __init__(
        self,
        model: Model,
        inputs: Inputs,
        backend: Backend | None = None,
        values: Mapping[str, Host] | None = None,
    ) -> None:
        self.model, self.inputs, values = model, inputs, values or {}
        self.listening = Listening(ShapesBackend() if backend is None else backend)
        self.rows = {
            layer.path: layer for layer in model.layers() if isinstance(layer, TimeEmbedding | Linear)
        }
        """The layers of rows by path; those inside an embedding are its own."""
        embeddings = [path for path, layer in self.rows.items() if isinstance(layer, TimeEmbedding)]
        for path in [path for path in self.rows if any(path.startswith(f"{at}.") for at in embeddings)]:
            del self.rows[path]
        memory = self._memory()
        upload = self.listening.upload
        for path, value in values.items():
            if path in self.rows:
                memory.statistics[path] = (upload(value),)
            else:
                memory.canvases[path] = upload(value)
        memory.take_inputs({name: upload(array) for name, array in inputs.canvases.items()})
        run = Run(memory, NOTHING)
        steps: list[Any] = []
        run.program = steps
        features = {name: Feature(run, (memory.input(name),)) for name in inputs.canvases}
        with np.errstate(all="ignore"):  # norms of canvases without values
            output = model.forward(features, inputs.conditions).parts[0]
        self.memory, self.output_path = memory, output.path
        self.steps: dict[str, LayerStep] = {
            step.canvas.path: step for step in steps if isinstance(step, LayerStep)
        }
        self.rows = {path: layer for path, layer in self.rows.items() if path in memory.statistics}
        self.layers: dict[str, Layer] = {layer.path: layer for layer in model.layers()}

    def _memory(self) -> Memory:
        backend = cast(Backend, self.listening)
        return Memory(backend, BackendAllocator(backend), keeps_scratch=True)

    @property
    def paths(self) -> list[str]:
        """Every layer that has values: rows, then canvases, in the order in which they are computed."""
        return [*self.rows, *self.steps]

    def shape(self, path: str) -> tuple[int, ...]:
        """The shape of a layer's values."""
        return tuple(self.memory.statistics[path][0].shape) if path in self.rows else self.steps[path].shape

    def compute(self, path: str, change: Change | None = None) -> Host:
        """A layer's own values, from the values that the canvases which it reads hold; under a change of its call."""
        backend = self.listening
        if path in self.rows:
            return np.asarray(backend.download(self._compute_rows(self.rows[path])))
        step = self.steps[path]
        out = backend.alloc(step.shape)
        with backend.changing(change), np.errstate(all="ignore"):
            step.kernel(out, TileSet.full(*step.shape[:3]).tiles)
        return np.asarray(backend.download(out))

    def _compute_rows(self, layer: Layer) -> Any:
        run = Run(self._memory(), NOTHING)  # with weights prepared anew: a hypothesis may have changed them
        if isinstance(layer, TimeEmbedding):
            model: Any = self.model
            return layer(run, model.embedded_time(self.inputs.conditions[model.time]))
        assert isinstance(layer, Linear)
        (embedding,) = (path for path, each in self.rows.items() if isinstance(each, TimeEmbedding))
        return layer(run, self.memory.statistics[embedding][0])

    def call(self, path: str) -> Call:
        """The kernel call by which a layer's canvas is computed."""
        self.listening.last = Call("")
        self.compute(path)
        return self.listening.last

    def wires(self) -> dict[str, Wire]:
        """Path -> what the layer's values stand for."""
        names = {id(array): path for path, array in self.memory.canvases.items()}
        found = {
            path: Wire(
                path, self.shape(path), activation="silu" if isinstance(layer, TimeEmbedding) else "identity"
            )
            for path, layer in self.rows.items()
        }
        stand: dict[str, tuple[str, str]] = {}
        for path, step in self.steps.items():
            call = self.call(path)
            reads = tuple(read.canvas.path for read in step.reads if read.canvas is not None)
            found[path] = Wire(path, step.shape, reads, call.adds, call.activation)
            if isinstance(self.layers.get(path), Conv2d):
                for role, source in (("input", call.source), ("residual", call.residual)):
                    if source is not None and _is_plain(source):
                        stand.setdefault(names.get(id(source.parts[0]), ""), (path, role))
        return {
            path: Wire(w.path, w.shape, w.reads, w.adds, w.activation, stand.get(path, ("", "")))
            for path, w in found.items()
        }


def _is_plain(source: Source) -> bool:
    """Whether a source is one canvas as it is."""
    return (
        len(source.parts) == 1
        and source.upsample == 1
        and source.scale is None
        and source.modulation is None
        and source.activation == "identity"
    )
