"""A user's PyTorch module comes in, runs once or twice, and what it computed for each layer of the model comes out.

PyTorch is imported when `record` is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host

from ...errors import InputError
from ...models.base import Model
from .calling import Call, output_of, usual_call
from .following import Followed, Start, followed, host, view
from .names import Computed, Names, names_of
from .reference import Reference, Values, fingerprint
from .walk import Walk, Wire

_FACTS = ("eps", "num_groups", "padding", "stride", "groups", "negative_slope")


def record(
    model: Model,
    module: Any,
    image: Any,
    *,
    edited: Any = None,
    call: Call | None = None,
    names: Mapping[str, str] | None = None,
    **conditions: Any,
) -> Reference:
    """Run a `torch.nn.Module` on a model's inputs, and keep what it computes for each layer.

    The module runs in evaluation mode, without gradients, on its own device; its mode and hooks are then as before. The
    parameters are those of `sparsegen.parity`.

    Raises
    ------
    InputError
        PyTorch is not installed; `module` is no module, or of no known family, or its result is no image of the model.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            "PyTorch is not installed here; install torch, or check a golden file that was made beside it"
        ) from None
    module = getattr(module, "_orig_mod", module)  # of torch.compile, which hooks do not reach into
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"module is {type(module).__name__}, expected a torch.nn.Module or the path of a golden file"
        )
    state = {name: view(value) for name, value in module.state_dict().items()}
    found = names_of(model, state, config=_config(module), names=names)
    weight = next(module.parameters(), None)
    device = "cpu" if weight is None else weight.device
    kind = torch.float32 if weight is None else weight.dtype

    def tensor(array: Host) -> Any:
        made = torch.from_numpy(np.array(array)).to(device)
        return made.to(kind) if made.is_floating_point() else made

    base = model.encode(image, **conditions)
    runs = [base] if edited is None else [base, model.encode(edited, base=base, **conditions)]
    chosen = usual_call(model, tensor) if call is None else call
    walk = Walk(model, base)
    wires = walk.wires()
    starts, inputs_of = _starts(found, wires)
    values: list[Values] = []
    missing: dict[str, str] = {}
    for inputs in runs:
        taps, result = followed(module, starts, inputs_of, partial(chosen, module, inputs))
        output = output_of(result)
        if not isinstance(output, torch.Tensor):
            raise InputError(
                f"the module returned {type(output).__name__}, expected a tensor; give call=, which returns one"
            )
        layers, missing = _layers(wires, found, taps, walk.output_path, output, base.shape[0])
        shown = layers.get(walk.output_path)
        if shown is None:
            raise InputError(
                f"the module returned {list(output.shape)}, expected the output of the model, "
                f"{list(wires[walk.output_path].shape)} with channels second; give call= if it is called otherwise"
            )
        values.append(Values(inputs, layers, shown))
    return Reference(
        model.family,
        asdict(model.config),
        values[0],
        values[1] if len(values) > 1 else None,
        missing,
        _facts(found, dict(module.named_modules())),
        {path: fingerprint(np.asarray(each)) for path, each in found.parameters.items()},
        {
            path: taps.remarks[name]
            for path, computed in found.layers.items()
            for name in computed.modules
            if name in taps.remarks
        },
        f"torch {torch.__version__}, {type(module).__name__}, {str(kind).removeprefix('torch.')}",
        found.parameters,
    )


def _starts(names: Names, wires: Mapping[str, Wire]) -> tuple[dict[str, Start], list[str]]:
    """The chain behind each module that computes a layer; and the modules whose inputs are other layers' values."""
    starts = {
        name: Start(wire.adds, wire.activation)
        for path, wire in wires.items()
        if (computed := _computed(names, path)) is not None
        for name in computed.modules
    }
    readers = [path for path, role in (wire.stands_for for wire in wires.values()) if role == "input"]
    return starts, [name for path in readers for name in (names.layers.get(path) or Computed(())).modules]


def _computed(names: Names, path: str) -> Computed | None:
    """The modules of a layer; of an embedding of time its last layer's."""
    return names.layers.get(path) or names.layers.get(f"{path}.dense.1")


def _layers(
    wires: Mapping[str, Wire], names: Names, taps: Followed, output_path: str, output: Any, samples: int
) -> tuple[dict[str, Host], dict[str, str]]:
    """The values of each layer, and why others have none."""
    found: dict[str, Host] = {}
    missing: dict[str, str] = {}
    for path, wire in wires.items():
        computed = _computed(names, path)
        reason = ""
        parts: list[Host] = []
        if path == output_path:
            parts, computed = [host(output)], Computed(())
        elif computed is not None:
            parts = [taps.outputs[name] for name in computed.modules if name in taps.outputs]
            if len(parts) < len(computed.modules):
                reason = f"PyTorch does not call {computed.modules[len(parts)]}"
        else:
            reader, role = wire.stands_for
            there = names.layers.get(reader)
            held = taps.inputs if role == "input" else taps.residuals
            parts = [held[name] for name in (there.modules if there else ()) if name in held][:1]
            reason = "" if parts else "no module computes it alone"
        if not reason:
            arrays = [_as_ours(each, wire.shape, samples) for each in parts]
            fitting = [each for each in arrays if each is not None]
            value = np.concatenate(fitting, -1) if len(fitting) == len(parts) else None
            if value is not None and computed is not None and computed.rows is not None:
                value = value[..., computed.rows[0] : computed.rows[1]]
            if value is None or value.shape != wire.shape:
                shape = list(parts[0].shape) if value is None else list(value.shape)
                reason = f"PyTorch has {shape} there, the model {list(wire.shape)}"
            else:
                found[path] = np.ascontiguousarray(value)
        if reason:
            missing[path] = reason
    return found, missing


def _as_ours(array: Host, shape: tuple[int, ...], samples: int) -> Host | None:
    """A tensor of any channels as `[N, H, W, C]`, or as rows `[1 or N, C]`; None: it does not fit."""
    if len(shape) == 2:
        if array.ndim != 2 or len(array) not in (1, samples):
            return None
        return array[: shape[0]]
    n, h, w, _ = shape
    if array.ndim == 4 and array.shape[0] == n:
        if array.shape[2:] == (h, w):
            return np.asarray(array.transpose(0, 2, 3, 1))
        return array if array.shape[1:3] == (h, w) else None
    if array.ndim == 3 and array.shape[0] == n:
        if array.shape[1] == h * w:
            return np.asarray(array.reshape(n, h, w, -1))
        return np.asarray(array.transpose(0, 2, 1).reshape(n, h, w, -1)) if array.shape[2] == h * w else None
    if array.ndim == 2 and array.shape[0] == n and array.shape[1] % (h * w) == 0:
        return np.asarray(array.reshape(n, -1, h, w).transpose(0, 2, 3, 1))
    return None


def _config(module: Any) -> dict[str, Any] | None:
    """The configuration of a module of diffusers or transformers, as its file has it."""
    config = getattr(module, "config", None)
    if config is None:
        return None
    plain = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(plain, Mapping):
        return None
    listed = {name: list(each) if isinstance(each, tuple) else each for name, each in plain.items()}
    kind = "architectures" if hasattr(config, "to_dict") else "_class_name"
    name = type(module).__name__
    listed.setdefault(kind, [name] if kind == "architectures" else name)
    if listed[kind] is None:
        listed[kind] = [name]
    return listed


def _facts(names: Names, modules: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of the modules that compute each layer."""
    found: dict[str, dict[str, Any]] = {}
    for path, computed in names.layers.items():
        module = modules.get(computed.modules[0])
        if module is not None:
            facts: dict[str, Any] = {"class": type(module).__name__, "module": computed.modules[0]}
            for name in _FACTS:
                value = getattr(module, name, None)
                if isinstance(value, int | float | str):
                    facts[name] = value
                elif isinstance(value, tuple) and all(isinstance(each, int) for each in value):
                    facts[name] = list(value)
            if getattr(module, "weight", None) is not None:
                facts["bias"] = getattr(module, "bias", None) is not None
            found[path] = facts
    return found
