"""Arguments of PyTorch's rebuild functions in, `Layout`s out. Every argument is applied or refused by name.

Source: torch/_utils.py and torch/_tensor.py (`_rebuild_*`, `Tensor.__reduce_ex__`, `Tensor.__setstate__`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..errors import CheckpointError, shown
from ..tensor import Layout, checked_layout, meta_layout
from .stand_ins import Global

Arguments = tuple[object, ...]

# Attributes of a tensor that are its values or its type.
_VALUES = ("data", "real", "imag", "__class__", "__dict__")


def taken(args: Arguments, least: int, most: int, name: str) -> Arguments:
    """`args`, if there are as many as `name` takes. Raises CheckpointError."""
    if not least <= len(args) <= most:
        expected = f"{least}" if least == most else f"{least} to {most}"
        raise CheckpointError(f"{name} is given {len(args)} arguments, expected {expected}")
    return args


def _check_gradient(requires_grad: object, hooks: object, name: str) -> None:
    """Raise CheckpointError unless the arguments that only training uses are a flag and no hooks."""
    if type(requires_grad) is not bool:
        raise CheckpointError(f"{name} is given {shown(requires_grad)} as requires_grad, expected a bool")
    if hooks is not None and (type(hooks) is not dict or hooks):
        raise CheckpointError(
            f"{name} is given backward hooks, which are not read",
            advice="Save the tensor without them: torch.save(model.state_dict(), path)",
        )


def _marked(layout: Layout, metadata: object, name: str) -> Layout:
    """`layout` with the negative and conjugate bits of `metadata`, as `torch._utils.set_tensor_metadata` sets them."""
    if metadata is None:
        return layout
    if type(metadata) is not dict:
        raise CheckpointError(f"{name} is given a {type(metadata).__name__} as metadata, expected a dict")
    for key, value in metadata.items():
        if key not in ("neg", "conj") or value is not True:
            given = f"{shown(key)}={shown(value)}"
            raise CheckpointError(f"{name} is given the metadata {given}, supported: neg=True, conj=True")
    negative, conjugate = "neg" in metadata, "conj" in metadata
    if conjugate and not layout.dtype.startswith("complex"):
        raise CheckpointError(f"{name} is given conj=True for {layout.dtype}, which is not complex")
    if negative and layout.dtype == "bool":
        raise CheckpointError(f"{name} is given neg=True for bool, which has no negative")
    return replace(layout, negative=negative, conjugate=conjugate)


def _dtype(value: object, name: str) -> str:
    if type(value) is not Global or value.dtype is None:
        raise CheckpointError(f"{name} is given a {type(value).__name__} as dtype, expected a dtype")
    return value.dtype


def _tensor(args: Arguments) -> Layout:
    """(storage, offset, size, stride)"""
    storage, offset, size, stride = taken(args, 4, 4, "_rebuild_tensor")
    return checked_layout(storage, None, offset, size, stride)


def _tensor_v2(args: Arguments) -> Layout:
    """(storage, offset, size, stride, requires_grad, hooks[, metadata])"""
    name = "_rebuild_tensor_v2"
    storage, offset, size, stride, requires_grad, hooks, *metadata = taken(args, 6, 7, name)
    _check_gradient(requires_grad, hooks, name)
    layout = checked_layout(storage, None, offset, size, stride)
    return _marked(layout, metadata[0] if metadata else None, name)


def _tensor_v3(args: Arguments) -> Layout:
    """(storage, offset, size, stride, requires_grad, hooks, dtype[, metadata]): bytes, and their element type."""
    name = "_rebuild_tensor_v3"
    storage, offset, size, stride, requires_grad, hooks, dtype, *metadata = taken(args, 7, 8, name)
    _check_gradient(requires_grad, hooks, name)
    layout = checked_layout(storage, _dtype(dtype, name), offset, size, stride)
    return _marked(layout, metadata[0] if metadata else None, name)


def _meta_tensor(args: Arguments) -> Layout:
    """(dtype, size, stride, requires_grad): a tensor of the meta device, without numbers."""
    name = "_rebuild_meta_tensor_no_storage"
    dtype, size, stride, requires_grad = taken(args, 4, 4, name)
    _check_gradient(requires_grad, None, name)
    return meta_layout(_dtype(dtype, name), size, stride)


def _data(value: object) -> Layout:
    if not isinstance(value, Layout):
        raise CheckpointError(f"a parameter is built from a {type(value).__name__}, expected a tensor")
    return value


def new_parameter(args: Arguments) -> Layout:
    """Parameter(data[, requires_grad]): the data."""
    data, *requires_grad = taken(args, 1, 2, "Parameter")
    _check_gradient(requires_grad[0] if requires_grad else True, None, "Parameter")
    return _data(data)


def _parameter(args: Arguments) -> Layout:
    """(data, requires_grad, hooks): the data."""
    data, requires_grad, hooks = taken(args, 3, 3, "_rebuild_parameter")
    _check_gradient(requires_grad, hooks, "_rebuild_parameter")
    return _data(data)


def _parameter_with_state(args: Arguments) -> Layout:
    """(data, requires_grad, hooks, state): the data; the state's attributes are not read."""
    data, requires_grad, hooks, state = taken(args, 4, 4, "_rebuild_parameter_with_state")
    _check_gradient(requires_grad, hooks, "_rebuild_parameter_with_state")
    _check_attributes(state)
    return _data(data)


def _from_type(args: Arguments) -> Layout:
    """(function, type, arguments, state): a plain tensor; the state's attributes are not read."""
    function, kind, arguments, state = taken(args, 4, 4, "_rebuild_from_type_v2")
    if not isinstance(kind, Global) or not kind.tensor_type:
        raise CheckpointError("_rebuild_from_type_v2 is given a type other than a plain tensor's")
    if not isinstance(function, Global) or function.name not in REBUILDERS or type(arguments) is not tuple:
        raise CheckpointError("_rebuild_from_type_v2 is given a function that does not build a plain tensor")
    _check_attributes(state)
    return REBUILDERS[function.name](arguments)


def _check_attributes(state: object) -> None:
    """Raise CheckpointError if attributes for a tensor (a dict, or two for a class with slots) replace its values."""
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    for part in parts:
        if part is None:
            continue
        if type(part) is not dict:
            raise CheckpointError(
                f"a tensor's attributes are given as a {type(part).__name__}, expected a dict"
            )
        wrong = [key for key in part if type(key) is not str or key in _VALUES]
        if wrong:
            raise CheckpointError(f"a tensor's attributes replace its {shown(wrong[0])}, which is not read")


def check_state(state: object) -> None:
    """Check that the state that BUILD gives a tensor does not replace its values.

    A state is attributes, or (requires_grad, volatile, hooks) of PyTorch 0.2 to 0.3.

    Raises
    ------
    CheckpointError
        The state is another, such as the whole tensor in files of PyTorch 0.1.
    """
    if type(state) is not tuple or len(state) == 2:
        _check_attributes(state)
        return
    if len(state) != 3:
        raise CheckpointError(
            f"a tensor is given a state of {len(state)} parts, as before PyTorch 0.2",
            advice="Load and save it again with a newer PyTorch",
        )
    requires_grad, volatile, hooks = state
    _check_gradient(requires_grad, hooks, "a tensor's state")
    if type(volatile) not in (bool, type(None)):
        raise CheckpointError(f"a tensor's state is given {shown(volatile)} as volatile, expected a bool")


REBUILDERS: dict[str, Callable[[Arguments], Layout]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
}
"""Functions that build a tensor from a storage; `_rebuild_from_type_v2` may name them too."""

CALLS: dict[str, Callable[[Arguments], Layout]] = {
    **REBUILDERS,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
