"""Global names that a pickle may mention: each becomes an inert stand-in, and every other name is refused.

Nothing is imported and nothing of the named modules is run. A name on the list is answered with an object of
this file; "calling" one runs a few lines of this file, which build tuples, dicts and tensor descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .dtypes import DTYPES, TORCH_STORAGES
from .errors import CheckpointError, shown
from .tensor import Layout, checked_layout


@dataclass(eq=False, frozen=True)
class Global:
    """The stand-in for a name. `call` is what REDUCE and NEWOBJ do with it; without one they are refused."""

    name: str
    call: Callable[[tuple[object, ...]], object] | None = None
    storage: str | None = None
    dtype: str | None = None
    tensor_type: bool = False


@dataclass(eq=False, frozen=True)
class Placeholder:
    """An object of a training framework's class: it holds nothing and does nothing; its presence is noted."""

    name: str


# Classes that training scripts leave beside the weights. What the file says of their contents is dropped.
_PLACEHOLDER = re.compile(
    r"(?:(?:pytorch_lightning|lightning|lightning_fabric|lightning_utilities|omegaconf)(?:\.\w+)*\._?[A-Z]\w*"
    r"|argparse\.Namespace|pathlib\.(?:Pure)?(?:Posix|Windows)?Path|datetime\.(?:datetime|timedelta|date)"
    r"|numpy\.ndarray|torch\.torch_version\.TorchVersion)",
    re.ASCII,
)

_SAFE_NAME = re.compile(r"\w+(?:\.\w+)*", re.ASCII)

# What Python 2 called them.
_OLD_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}


def _arguments(args: tuple[object, ...], least: int, most: int, name: str) -> tuple[object, ...]:
    if not least <= len(args) <= most:
        raise CheckpointError(f"{name} is given {len(args)} arguments, expected {least} to {most}")
    return args


def _mapping(args: tuple[object, ...]) -> object:
    """OrderedDict(), OrderedDict([[key, value], ...]) or Counter({...})."""
    if not args:
        return {}
    (given,) = _arguments(args, 0, 1, "a dict")
    if type(given) is dict:
        return dict(given)
    if type(given) is not list:
        raise CheckpointError(f"a dict is built from a {type(given).__name__}")
    result: dict[object, object] = {}
    for pair in given:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise CheckpointError("a dict is built from something that is no list of pairs")
        result[checked_key(pair[0])] = pair[1]
    return result


def checked_key(key: object) -> object:
    """`key`, when it may be the key of a dict.

    Tuples may not: hashing one that is nested a million deep exhausts the C stack. Nor may integers over
    60 bits, which can be chosen to share one hash and make a dict quadratic.
    """
    kind = type(key)
    if kind is int and not -(1 << 60) < key < 1 << 60:  # type: ignore[operator]  # an int, by its kind
        raise CheckpointError("a dict has a key of more than 60 bits")
    if kind not in (str, int, bytes, bool, float, type(None), Global, Placeholder):
        raise CheckpointError(f"a dict has a {kind.__name__} as key, expected a string or a number")
    return key


def _default_dict(args: tuple[object, ...]) -> object:
    _arguments(args, 0, 1, "collections.defaultdict")
    return {}  # Its factory would only make missing entries: no entry of the file needs it.


def _sequence(args: tuple[object, ...]) -> object:
    """set([...]), frozenset([...]) and torch.Size((...)): as tuples, so that nothing is hashed."""
    (given,) = _arguments(args, 0, 1, "a sequence") or ((),)
    if type(given) not in (tuple, list):
        raise CheckpointError(f"a sequence is built from a {type(given).__name__}")
    assert isinstance(given, (tuple, list))
    return tuple(given)


def _text(args: tuple[object, ...]) -> object:
    """torch.device("cuda", 0), torch.serialization._get_layout("torch.strided"): what they are called."""
    _arguments(args, 1, 2, "a device or layout")
    if not all(type(arg) in (str, int) for arg in args):
        raise CheckpointError("a device or layout is built from something that is no name")
    return ":".join(shown(arg) for arg in args)


def _encode(args: tuple[object, ...]) -> object:
    """_codecs.encode(text, "latin1"): how pickle protocol 2 spells bytes."""
    text, encoding = _arguments(args, 2, 2, "_codecs.encode")
    if type(text) is not str or type(encoding) is not str or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("_codecs.encode is asked for more than latin1 bytes")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise CheckpointError("_codecs.encode is given text that is not latin1") from None


def _bytes(args: tuple[object, ...]) -> object:
    """bytearray(b"...") and bytes()."""
    (given,) = _arguments(args, 0, 1, "bytes") or (b"",)
    if type(given) is not bytes:
        raise CheckpointError(f"bytes are built from a {type(given).__name__}")
    return given


def _rebuild(name: str, most: int) -> Callable[[tuple[object, ...]], Layout]:
    def rebuild(args: tuple[object, ...]) -> Layout:
        storage, offset, size, stride = _arguments(args, 4, most, name)[:4]
        return checked_layout(storage, None, offset, size, stride)

    return rebuild


def _rebuild_v3(args: tuple[object, ...]) -> Layout:
    """(storage, offset, size, stride, requires_grad, hooks, dtype[, metadata]): bytes, and what they are."""
    storage, offset, size, stride, _, _, dtype = _arguments(args, 7, 8, "_rebuild_tensor_v3")[:7]
    if type(dtype) is not Global or dtype.dtype is None:
        raise CheckpointError(f"_rebuild_tensor_v3 is given a {type(dtype).__name__} as dtype")
    return checked_layout(storage, dtype.dtype, offset, size, stride)


def _parameter(args: tuple[object, ...]) -> Layout:
    """_rebuild_parameter(data, requires_grad, hooks[, state]), Parameter(data, requires_grad): the data."""
    data = _arguments(args, 1, 4, "a parameter")[0]
    if not isinstance(data, Layout):
        raise CheckpointError(f"a parameter is built from a {type(data).__name__}, expected a tensor")
    return data


def _rebuild_from_type(args: tuple[object, ...]) -> object:
    """_rebuild_from_type_v2(function, type, arguments, state): a tensor with attributes, now dropped."""
    function, kind, arguments, _ = _arguments(args, 4, 4, "_rebuild_from_type_v2")
    if not isinstance(kind, Global) or not kind.tensor_type:
        raise CheckpointError("_rebuild_from_type_v2 is given a type that is no plain tensor")
    if not isinstance(function, Global) or function.name not in _REBUILDERS or type(arguments) is not tuple:
        raise CheckpointError("_rebuild_from_type_v2 is given a function that builds no plain tensor")
    return _REBUILDERS[function.name](arguments)


def _numpy_value(name: str) -> Callable[[tuple[object, ...]], object]:
    """A NumPy scalar, array or dtype in a training state (a best score, a random state): noted, not read."""

    def ignored(args: tuple[object, ...]) -> object:
        return Placeholder(name)

    return ignored


_REBUILDERS: dict[str, Callable[[tuple[object, ...]], Layout]] = {
    "torch._utils._rebuild_tensor": _rebuild("_rebuild_tensor", 4),
    "torch._utils._rebuild_tensor_v2": _rebuild("_rebuild_tensor_v2", 7),
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}

_CALLS: dict[str, Callable[[tuple[object, ...]], object]] = {
    **_REBUILDERS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _sequence,
    "torch.device": _text,
    "torch.serialization._get_layout": _text,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _default_dict,
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    "_codecs.encode": _encode,
    "numpy._core.multiarray.scalar": _numpy_value("numpy scalar"),
    "numpy._core.multiarray._reconstruct": _numpy_value("numpy.ndarray"),
    "numpy._core.numeric._frombuffer": _numpy_value("numpy.ndarray"),
    "numpy.dtype": _numpy_value("numpy.dtype"),
}

# Types that a training state refers to (an omegaconf schema, a default factory). Naming one is harmless.
_NAMED_ONLY = (
    *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "complex", "object")),
    *(f"builtins.{name}" for name in ("list", "dict", "tuple", "long", "unicode")),
    "typing.Any",
)


def _table() -> dict[str, Global]:
    table = {name: Global(name, call) for name, call in _CALLS.items()}
    table.update((name, Global(name)) for name in _NAMED_ONLY)
    for name in ("torch.Tensor", "torch.nn.parameter.Buffer"):
        table[name] = Global(name, tensor_type=True)
    name = "torch.nn.parameter.Parameter"
    table[name] = Global(name, _parameter, tensor_type=True)
    for name in DTYPES:
        table["torch." + name] = Global("torch." + name, dtype=name)
    for storage, dtype in TORCH_STORAGES.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            name = f"{module}.{storage}"
            table[name] = Global(name, storage=dtype)
    table["torch.storage._UntypedStorage"] = Global("torch.storage._UntypedStorage", storage="uint8")
    return table


_TABLE = _table()

_SHIPPED_WHOLE = ("torch.nn.", "models.", "__main__.", "modules.", "networks.", "ldm.")
_QUANTIZED = (
    "qtensor",
    "QInt8Storage",
    "QUInt8Storage",
    "QInt32Storage",
    "QUInt4x2Storage",
    "QUInt2x4Storage",
)


def resolve(module: str, name: str) -> Global:
    """The stand-in for `module.name`, or CheckpointError naming it."""
    full = f"{_OLD_MODULES.get(module, module)}.{name}"
    known = _TABLE.get(full)
    if known is not None:
        return known
    if _PLACEHOLDER.fullmatch(full):
        placeholder = Placeholder(full)
        return Global(full, lambda args: placeholder)
    advice = "It may be an attack: do not open it with torch.load either"
    if full.endswith(_QUANTIZED) or "sparse" in full or "nested" in full:
        advice = "Quantized, sparse and nested tensors are not read: save plain ones"
    elif full.startswith(_SHIPPED_WHOLE) and _SAFE_NAME.fullmatch(full):
        advice = "If this is a model saved whole, save its model.state_dict() instead, where its code is"
    raise CheckpointError(
        f"the file asks for {shown(full)}, which is not on the list of safe names", advice=advice
    )
