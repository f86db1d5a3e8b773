"""A reference: what another program computed in every layer comes in, one golden file goes out, and back.

A golden file is safetensors: arrays by name (`input.NAME`, `condition.NAME`, `value.PATH`, `output`, and the same after
`edited.`), and as metadata `sparsegen.golden`, a JSON object with everything else. Reading it runs no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host
from sparsegen.weights import read_checkpoint, write_safetensors

from ...errors import InputError
from ...layers import LabelConv, TokenEmbedding
from ...models.base import Inputs, Model

GOLDEN_KEY = "sparsegen.golden"
VERSION = 1


@dataclass(frozen=True)
class Values:
    """What a program computed for one input."""

    inputs: Inputs
    """As `Model.encode` gives them."""
    layers: Mapping[str, Host]
    """Path of a layer -> what its canvas stands for, float32 `[N, H, W, C]`; of rows `[1 or N, C]`."""
    output: Host
    """float32 `[N, H, W, C]`."""

    def checked(self, model: Model) -> Values:
        """The same, with inputs as the model encodes them. Raises InputError, ShapeError."""
        try:
            return replace(self, inputs=_encoded(model, self.inputs))
        except (LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"the golden file's inputs do not fit the model ({error!r}); make it again"
            ) from None


@dataclass(frozen=True)
class Reference:
    """What PyTorch computed in every layer, and what is known of its module."""

    family: str
    config: Mapping[str, Any]
    """Of the model beside which it was recorded."""
    original: Values
    edited: Values | None = None
    """The dense run of an edited input."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Path of a layer without values -> the reason."""
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Path of a layer -> settings of its module: class, eps, num_groups, padding."""
    weights: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Path of a parameter -> a fingerprint of the module's, see `fingerprint`."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """Path of a layer -> what its module does otherwise than the layer."""
    made_by: str = ""
    parameters: Mapping[str, Host] = field(default_factory=dict)
    """The module's weights by the paths of the model's parameters; a golden file has none."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a golden file. Raises CheckpointError: it cannot be written."""
        arrays: dict[str, Host] = {}
        for prefix, values in (("", self.original), ("edited.", self.edited)):
            if values is not None:
                arrays |= {f"{prefix}input.{name}": each for name, each in values.inputs.canvases.items()}
                arrays |= {
                    f"{prefix}condition.{name}": each for name, each in values.inputs.conditions.items()
                }
                arrays |= {f"{prefix}value.{name}": each for name, each in values.layers.items()}
                arrays[f"{prefix}output"] = values.output
        about = {
            "version": VERSION,
            "family": self.family,
            "config": dict(self.config),
            "missing": dict(self.missing),
            "facts": {path: dict(each) for path, each in self.facts.items()},
            "weights": dict(self.weights),
            "remarks": dict(self.remarks),
            "made_by": self.made_by,
        }
        held = {name: np.ascontiguousarray(each) for name, each in arrays.items()}
        write_safetensors(path, held, {GOLDEN_KEY: json.dumps(about, sort_keys=True)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reference:
        """Read a golden file. Raises CheckpointError: it is damaged; InputError: it is no golden file."""
        with read_checkpoint(path) as file:
            about = file.metadata.get(GOLDEN_KEY)
            if not isinstance(about, str):
                raise InputError(
                    f"{os.fspath(path)}: is not a golden file; make one with sparsegen.parity(…, golden=path)"
                )
            try:
                return cls._read(
                    json.loads(about), {name: each.numpy() for name, each in file.tensors.items()}
                )
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise InputError(
                    f"{os.fspath(path)}: is a damaged golden file, or one of another version ({error}); make it again"
                ) from None

    @classmethod
    def _read(cls, about: Any, arrays: Mapping[str, Host]) -> Reference:
        if about["version"] != VERSION:
            raise ValueError(f"version {about['version']}, expected {VERSION}")

        def under(prefix: str) -> dict[str, Host]:
            return {
                name.removeprefix(prefix): np.ascontiguousarray(each)
                for name, each in arrays.items()
                if name.startswith(prefix)
            }

        def values(prefix: str) -> Values:
            inputs = Inputs(under(f"{prefix}input."), under(f"{prefix}condition."))
            layers = {name: np.asarray(each, np.float32) for name, each in under(f"{prefix}value.").items()}
            return Values(inputs, layers, np.asarray(under(f"{prefix}output")[""], np.float32))

        return cls(
            str(about["family"]),
            dict(about["config"]),
            values(""),
            values("edited.") if "edited.output" in arrays else None,
            {str(path): str(each) for path, each in about["missing"].items()},
            {str(path): dict(each) for path, each in about["facts"].items()},
            {str(path): (float(each[0]), float(each[1])) for path, each in about["weights"].items()},
            {str(path): str(each) for path, each in about["remarks"].items()},
            str(about["made_by"]),
        )

    def checked(self, model: Model) -> Reference:
        """The same, with inputs as the model encodes them: kernels do not check what they index.

        Raises
        ------
        InputError, ShapeError
            It is of another family than the model, or its inputs are none of the model's.
        """
        if self.family != model.family:
            raise InputError(
                f"the golden file is of family {self.family!r}, the model of {model.family!r}; give one of this model"
            )
        original, edited = self.original.checked(model), self.edited and self.edited.checked(model)
        if edited is not None and edited.inputs.shape != original.inputs.shape:
            raise InputError(
                "the golden file's edited input has another size than its original; make it again"
            )
        return replace(self, original=original, edited=edited)

    def other_weights(self, model: Model) -> list[str]:
        """The parameters of the model that are others than the module's, as far as fingerprints tell."""
        found = []
        for path, parameter in model.parameters().items():
            theirs = self.weights.get(path)
            if theirs is not None:
                ours = fingerprint(parameter.float32)
                if max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 1e-5 * max(
                    ours[0], theirs[0]
                ):
                    found.append(path)
        return found

    def differences(self, model: Model) -> list[str]:
        """The settings in which the model is another than the one beside which the reference was recorded."""
        ours = json.loads(json.dumps(asdict(model.config)))
        theirs = json.loads(json.dumps(dict(self.config)))
        return [
            f"{name} is {ours.get(name)!r} here, {theirs.get(name)!r} where it was recorded"
            for name in sorted({*ours, *theirs})
            if ours.get(name) != theirs.get(name)
        ]


def _encoded(model: Model, inputs: Inputs) -> Inputs:
    """The inputs, with conditions as `Model.encode` gives them; raises an error unless it gives these canvases.

    (Of label maps, it does not give the channels that mark the borders of instances.)
    """
    name = model.inputs[0]
    canvas = inputs.canvases[name]
    if canvas.ndim != 4 or set(inputs.canvases) != set(model.inputs):
        raise InputError(
            f"the golden file's inputs: expected {', '.join(model.inputs)}, each [N, H, W, C]; make it again"
        )
    layers = list(model.layers())
    image = canvas
    if np.issubdtype(canvas.dtype, np.integer):
        tokens = any(isinstance(layer, TokenEmbedding) for layer in layers)
        image = canvas[..., 0].reshape(len(canvas), -1) if tokens else canvas[..., 0]
    given: dict[str, Any] = {
        key: each.item() if each.ndim == 0 else each for key, each in inputs.conditions.items()
    }
    again = model.encode(image, **given)
    expected = again.canvases[name]
    if (expected.shape, expected.dtype) != (canvas.shape, canvas.dtype):
        raise InputError(
            f"the golden file's {name} is {canvas.dtype} {list(canvas.shape)}, the model reads {expected.dtype} "
            f"{list(expected.shape)}; make it again"
        )
    tables = [layer.weight.shape[1] for layer in layers if isinstance(layer, LabelConv)]
    marks = canvas[..., 1:]  # of instances' borders, which labels do not tell
    if tables and marks.size and not -1 <= marks.min() <= marks.max() < min(tables):
        raise InputError(f"the golden file's {name} has a channel beyond {min(tables) - 1}; make it again")
    if not tables and not np.array_equal(expected, canvas):
        raise InputError(f"the golden file's {name} is none that the model makes of an input; make it again")
    return Inputs(inputs.canvases, again.conditions)


_SAMPLES = 1 << 16


def fingerprint(values: Host) -> tuple[float, float]:
    """Two numbers by which weights are told apart: the root of the mean square, and a sum that depends on the order."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if not flat.size:
        return 0.0, 0.0
    some = flat[:: -(-len(flat) // _SAMPLES)].astype(np.float64)
    waves = np.sin(np.arange(1, len(some) + 1))
    return float(np.linalg.norm(flat)) / float(np.sqrt(len(flat))), float(some @ waves) / len(some)
