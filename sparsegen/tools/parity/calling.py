"""A model's inputs come in, a PyTorch module is called with them, its output comes out: each family's usual way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host

from ...errors import InputError
from ...models.base import Inputs, Model

Call = Callable[[Any, Inputs], Any]
"""`call(module, inputs)`: runs the module on a model's inputs (`Model.encode`), and returns the output tensor."""


def usual_call(model: Model, tensor: Callable[[Host], Any]) -> Call:
    """The call of the modules that a model's checkpoints come from, by its inputs; `tensor` uploads an array.

    Raises
    ------
    InputError
        Its inputs have no usual call.
    """
    usual: dict[str, Call] = {
        "labels": lambda module, inputs: module(*_labels(model, inputs, tensor)),
        "x": lambda module, inputs: _denoise(model, module, inputs, tensor),
        "image": lambda module, inputs: module.encode(tensor(channels_first(inputs.canvases["image"]))),
        "latents": lambda module, inputs: module.decode(tensor(channels_first(inputs.canvases["latents"]))),
        "tokens": lambda module, inputs: module(tensor(_tokens(inputs))),
    }
    if len(model.inputs) != 1 or model.inputs[0] not in usual:
        raise InputError(
            f"family {model.family!r}: give call=, a function of (module, inputs) that returns the module's output"
        )
    return usual[model.inputs[0]]


def output_of(result: Any) -> Any:
    """The tensor of a result: itself, the first of a tuple, or the attribute that libraries put it in."""
    for name in ("sample", "last_hidden_state", "latent_dist", "parameters"):
        value = getattr(result, name, None)
        if value is not None and not callable(value) and not hasattr(result, "dim"):
            result = value
    return result[0] if isinstance(result, tuple | list) else result


def channels_first(array: Host) -> Host:
    """`[N, H, W, C]` → `[N, C, H, W]`."""
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def _labels(model: Any, inputs: Inputs, tensor: Callable[[Host], Any]) -> tuple[Any, ...]:
    """One-hot labels `[N, V, H, W]`, and the latent vector of a model that has one."""
    canvas = inputs.canvases["labels"]
    classes = np.arange(model.config.semantic_nc)
    one_hot = (canvas[..., None] == classes).any(3).astype(np.float32)
    z = inputs.conditions.get("z")
    return (tensor(channels_first(one_hot)), *(() if z is None else (tensor(z),)))


def _denoise(model: Model, module: Any, inputs: Inputs, tensor: Callable[[Host], Any]) -> Any:
    """Noisy images `[N, C, H, W]`, their times `[N]`, and the features of a text `[N, T, C]`."""
    x, time = inputs.canvases["x"], "timestep" if model.diffusion is None else model.diffusion.time
    times = np.ascontiguousarray(np.broadcast_to(inputs.conditions[time], len(x)))
    given = [tensor(channels_first(x)), tensor(times)]
    text = inputs.conditions.get("text")
    if text is None:
        return module(*given)
    features = tensor(np.ascontiguousarray(np.broadcast_to(text, (len(x), *text.shape[1:]))))
    takes = inspect.signature(module.forward).parameters
    return module(*given, **{"context" if "context" in takes else "encoder_hidden_states": features})


def _tokens(inputs: Inputs) -> Host:
    """Ids `[N, T]`."""
    if int(inputs.conditions["skip"]):
        raise InputError("skip: a text encoder is compared with all its layers; give skip=0, or call=")
    canvas = inputs.canvases["tokens"]
    return canvas[..., 0].reshape(len(canvas), -1).astype(np.int64)
