"""The state of a user's module comes in; for each layer of the model the module that computes it, and its weights, out.

The tables are those by which checkpoints are imported: a layer's output belongs to the module that holds its weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsegen.backends.interface import Host
from sparsegen.weights import Checkpoint, CheckpointError, convert, identify_all

from ...errors import InputError
from ...models.base import Model

_PARAMETER = re.compile(
    r"[.](?:parametrizations[.]weight[.]original|weight_orig|weight|running_mean|token_embedding[.]weight)$"
)
"""The end of a key, behind the name of the module whose output belongs to the layer."""
_MADE_OF = ("weight", "mean", "token_embedding")
"""The parameters of a layer that tell its module, in order of preference."""


@dataclass(frozen=True)
class Computed:
    """The modules that compute a layer: their outputs side by side along channels, of which these rows are its own."""

    modules: tuple[str, ...]
    rows: tuple[int, int] | None = None
    """The first channel and the one after the last; None: all."""


@dataclass(frozen=True)
class Names:
    """A module as the tables name it."""

    layers: Mapping[str, Computed]
    """Path of a layer -> the modules that compute it."""
    parameters: Mapping[str, Host] = field(default_factory=dict)
    """The module's weights by the paths of the model's parameters, read on access."""


def names_of(
    model: Model,
    state: Mapping[str, Host],
    *,
    config: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> Names:
    """The modules and the weights of a module's `state`, for each layer of the model.

    Parameters
    ----------
    state
        The module's `state_dict`, as arrays.
    config
        The configuration of a module of diffusers or transformers, as in its file.
    names
        Path of a layer -> name of the module, for modules of no known family.

    Raises
    ------
    InputError
        The module is of no known family, or of another than the model; its weights do not fit the model's shapes.
    """
    if names is not None:
        return _named(model, state, names)
    shapes = {path: parameter.shape for path, parameter in model.parameters().items()}
    if all(path in state and tuple(state[path].shape) == shape for path, shape in shapes.items()):
        paths = {path.rpartition(".")[0] for path in shapes}
        return Names({path: Computed((path,)) for path in paths}, {path: state[path] for path in shapes})
    checkpoint = Checkpoint.of_arrays("the module", state, config=config)
    try:
        found = identify_all(checkpoint)
    except CheckpointError as error:
        raise InputError(
            f"the module's layers cannot be told by their names: it {error.problem}; "
            "give names={path of a layer: name of its module}"
        ) from None
    families = [family for family, _ in found if family.model == model.family]
    if not families:
        raise InputError(
            f"the module is a {', '.join(family.model for family, _ in found)} ({found[0][0].name}), the model is of "
            f"family {model.family!r}; give two of one family"
        )
    try:
        parameters = convert(families[0], checkpoint, shapes)
    except CheckpointError as error:
        raise InputError(f"the module {error.problem}\nLoad the model with the module's sizes") from None
    layers: dict[str, Computed] = {}
    for parameter in _MADE_OF:
        for path in shapes:
            layer, _, name = path.rpartition(".")
            if name == parameter and layer not in layers:
                origin = parameters.origin(path)
                keys = [
                    origin.parts[part]
                    for part in ("first", "second", "value", "orig")
                    if part in origin.parts
                ]
                layers[layer] = Computed(tuple(_PARAMETER.sub("", key) for key in keys), origin.rows)
    return Names(layers, parameters)


def _named(model: Model, state: Mapping[str, Host], names: Mapping[str, str]) -> Names:
    """Names that the user gives. Raises InputError."""
    known = {layer.path for layer in model.layers()}
    unknown = [path for path in names if path not in known]
    if unknown:
        raise InputError(
            f"names: the model has no layer {unknown[0]!r}; it has {', '.join(sorted(known)[:5])}, …"
        )
    shapes = {path: parameter.shape for path, parameter in model.parameters().items()}
    given = {
        path: state[key]
        for path, shape in shapes.items()
        if (key := f"{names.get(path.rpartition('.')[0])}.{path.rpartition('.')[2]}") in state
        and tuple(state[key].shape) == shape
    }
    return Names({path: Computed((name,)) for path, name in names.items()}, given)
