"""A global name of a pickle in; its inert stand-in out, or an error for a name that is not on the list.

No named module is imported, and none of its code is run. A call of a stand-in runs a few lines of this package, which
build tuples, dicts, placeholders and tensor layouts.
"""

from __future__ import annotations

import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable

from ..dtypes import DTYPES, TORCH_STORAGES
from ..errors import CheckpointError, shown
from ..limits import SAVE_ALONE
from . import rebuild
from .rebuild import Arguments, taken
from .refused_names import refusal
from .stand_ins import MANY_VALUES, Global, Placeholder, Skipped

# Classes (and the functions by which pickle makes their objects) that training scripts leave beside the weights. The
# contents of such objects are dropped. None of these would run code of the file's choice.
_INERT = (
    # Training frameworks: all names of classes.
    r"(?:pytorch_lightning|lightning|lightning_fabric|lightning_utilities|omegaconf)(?:\.\w+)*\._?[A-Z]\w*",
    r"torch\.torch_version\.TorchVersion|torch\._C\.Generator|torch\._utils\.torch\.(?:channels_last(?:_3d)?"
    r"|contiguous_format|preserve_format)",
    r"torch\.optim(?:\.\w+)*\.[A-Z]\w*|torch(?:\.cuda)?\.amp\.grad_scaler\.\w+",
    r"torch\.nn\.parameter\.Uninitialized(?:Parameter|Buffer)",
    # Python's library.
    r"builtins\.(?:slice|range|complex|Ellipsis|NotImplemented)",
    r"argparse\.Namespace|types\.SimpleNamespace|uuid\.(?:UUID|SafeUUID)|decimal\.Decimal|fractions\.Fraction",
    r"pathlib(?:\._local)?\.(?:Pure)?(?:Posix|Windows)?Path",
    r"datetime\.(?:datetime|timedelta|date|time|timezone)|zoneinfo\.ZoneInfo|time\.struct_time",
    r"pytz\.(?:_UTC|_p)|dateutil\.tz\.tz\.tz\w+",
    r"collections\.(?:ChainMap|UserDict|UserList|UserString)|array\.(?:array|_array_reconstructor)",
    r"random\.Random|re\._compile|itertools\.count|logging\.(?:Logger|getLogger)",
    # NumPy: arrays, random states, scalar and dtype classes.
    r"numpy\.(?:ndarray|matrix|recarray|record)",
    r"numpy\.random\._pickle\.__(?:randomstate|generator|bit_generator)_ctor",
    r"numpy\.random\.(?:mtrand\.RandomState|_generator\.Generator|_\w+\.(?:MT19937|PCG64|PCG64DXSM|Philox|SFC64))",
    r"numpy\.random\.__RandomState_ctor|numpy\.random\.bit_generator\.(?:__pyx_unpickle_)?SeedSequence",
    r"numpy\.(?:u?int|float|complex|bool|str|bytes|object|void|datetime|timedelta|longdouble|clongdouble)[0-9_]*",
    r"numpy\.dtypes\.\w+DType",
)
_INERT_NAME = re.compile("|".join(_INERT), re.ASCII)

# Classes and functions that a training state refers to (a default factory, an activation). A reference is harmless; an
# object of one is a part of a model pickled whole, and is refused.
_NAMED = (
    r"builtins\.(?:int|float|str|bool|object|list|dict|tuple|long|unicode)",
    r"typing\.Any",
    r"torch\.nn\.functional\.\w+|torch\._C\._nn\.\w+",
    r"torch\.nn\.modules\.\w+\.[A-Z]\w*|torch\._C\._VariableFunctions(?:Class|\.\w+)|torch\.nn\.init\.\w+",
)
_FUNCTIONS = "torch._C._VariableFunctionsClass"
_NAMED_ONLY = re.compile("|".join(_NAMED), re.ASCII)

# Names in older versions of PyTorch and NumPy -> names now; for Python's library, pickle has a table.
_OLD_MODULES = {
    "torch.tensor": "torch._tensor",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}


def _mapping(args: Arguments) -> object:
    """OrderedDict(), OrderedDict([[key, value], ...]) or Counter({...})."""
    if not args:
        return {}
    (given,) = taken(args, 0, 1, "a dict")
    if type(given) is dict:
        return dict(given)
    if type(given) is not list:
        raise CheckpointError(f"a dict is built from a {type(given).__name__}")
    result: dict[object, object] = {}
    for pair in given:
        if pair is MANY_VALUES:
            result[pair] = None
            continue
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise CheckpointError("a dict is built from an item that is not a pair")
        check_key(pair[0])
        if type(pair[0]) is tuple:
            raise CheckpointError("a dict is built from pairs with a tuple as key")
        result[pair[0]] = pair[1]
    return result


def check_key(key: object) -> None:
    """Raise CheckpointError if `key` may not be the key of a dict; `tuple_key` checks the parts of a tuple.

    Integers over 64 bits may not: a file could choose ones that share one hash, and make a dict quadratic.
    """
    kind = type(key)
    if kind is int and not -(1 << 64) < key < 1 << 64:  # type: ignore[operator]  # an int, by its kind
        raise CheckpointError("a dict has a key of more than 64 bits", advice=SAVE_ALONE)
    if kind not in (str, int, bytes, bool, float, type(None), tuple, Global, Placeholder, Skipped):
        raise CheckpointError(
            f"a dict has a {kind.__name__} as key, expected a string or a number", advice=SAVE_ALONE
        )


def _default_dict(args: Arguments) -> object:
    taken(args, 0, 1, "collections.defaultdict")
    return {}  # its factory would only make missing entries


def _sequence(args: Arguments) -> object:
    """set([...]), frozenset([...]) and torch.Size((...)): as tuples, so that nothing is hashed."""
    (given,) = taken(args, 0, 1, "a sequence") or ((),)
    if type(given) not in (tuple, list):
        raise CheckpointError(f"a sequence is built from a {type(given).__name__}")
    assert isinstance(given, (tuple, list))
    return tuple(given)


def _deque(args: Arguments) -> object:
    """deque((), maxlen): a list, which the pickle then appends to."""
    given, *_ = taken(args, 0, 2, "collections.deque") or ((),)
    if type(given) not in (tuple, list):
        raise CheckpointError(f"a deque is built from a {type(given).__name__}")
    assert isinstance(given, (tuple, list))
    return list(given)


def _text(args: Arguments) -> object:
    """torch.device("cuda", 0), torch.serialization._get_layout("torch.strided"): their names."""
    taken(args, 1, 2, "a device or layout")
    if not all(type(arg) in (str, int) for arg in args):
        raise CheckpointError("a device or layout is built from a value that is not a name")
    return ":".join(shown(arg) for arg in args)


def _encode(args: Arguments) -> object:
    """_codecs.encode(text, "latin1"): bytes as pickle protocol 2 writes them."""
    text, encoding = taken(args, 2, 2, "_codecs.encode")
    if type(encoding) is not str or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("_codecs.encode is called for an encoding other than latin1")
    if isinstance(text, Skipped):
        return text
    if type(text) is not str:
        raise CheckpointError(f"_codecs.encode is given a {type(text).__name__}, expected text")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise CheckpointError("_codecs.encode is given text that is not latin1") from None


def _bytes(args: Arguments) -> object:
    """bytearray(b"..."), bytearray(text, "latin-1") of Python 2, and bytes()."""
    if len(args) == 2:
        return _encode(args)
    (given,) = taken(args, 0, 2, "bytes") or (b"",)
    if type(given) not in (bytes, Skipped):
        raise CheckpointError(f"bytes are built from a {type(given).__name__}")
    return given


def _placeholder(name: str) -> Callable[[Arguments], object]:
    """A call that gives an object of that class: a new one each time, so that two keys of a dict stay two."""

    def ignored(args: Arguments) -> object:
        return Placeholder(name)

    return ignored


# Names that could run code, but do not in the one kind of call that pickles of harmless objects make.


def _attribute(args: Arguments) -> object:
    """getattr(ZoneInfo, "_unpickle"), getattr(Outer, "Inner"): a name below a class that is inert itself.

    torch.relu is getattr(torch._C._VariableFunctionsClass, "relu"); it may be named, not called.
    """
    functions = isinstance(args[0], Global) and args[0].name == _FUNCTIONS if args else False
    if len(args) == 2 and isinstance(args[0], Global) and (functions or _INERT_NAME.fullmatch(args[0].name)):
        name = args[1]
        if isinstance(name, str) and len(name) <= 100 and name.isidentifier() and not name.startswith("__"):
            full = f"{args[0].name}.{name}"
            return Global(full, None if functions else _placeholder(full))
    raise refusal("builtins.getattr")


def _type(args: Arguments) -> object:
    """type(None): the class of None in a pickle."""
    if args == (None,):
        return Placeholder("NoneType")
    raise refusal("builtins.type")


def _partial(args: Arguments) -> object:
    """functools.partial(function) of a name on the list; the result is never called."""
    if len(args) == 1 and isinstance(args[0], Global) and not args[0].narrow:
        return Placeholder("functools.partial")
    raise refusal("functools.partial")


_CALLS: dict[str, Callable[[Arguments], object]] = {
    **rebuild.CALLS,
    "torch.Size": _sequence,
    "torch.device": _text,
    "torch.serialization._get_layout": _text,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _default_dict,
    "collections.deque": _deque,
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    "_codecs.encode": _encode,
    "numpy._core.multiarray.scalar": _placeholder("numpy scalar"),
    "numpy._core.multiarray._reconstruct": _placeholder("numpy.ndarray"),
    "numpy._core.numeric._frombuffer": _placeholder("numpy.ndarray"),
    "numpy.dtype": _placeholder("numpy.dtype"),
}

_NARROW: dict[str, Callable[[Arguments], object]] = {
    "builtins.getattr": _attribute,
    "builtins.type": _type,
    "functools.partial": _partial,
}


def _table() -> dict[str, Global]:
    table = {name: Global(name, call) for name, call in _CALLS.items()}
    table.update((name, Global(name, call, narrow=True)) for name, call in _NARROW.items())
    for name in ("torch.Tensor", "torch.nn.parameter.Buffer"):
        table[name] = Global(name, tensor_type=True)
    name = "torch.nn.parameter.Parameter"
    table[name] = Global(name, rebuild.new_parameter, tensor_type=True)
    for name in DTYPES:
        table["torch." + name] = Global("torch." + name, dtype=name)
    for storage, dtype in TORCH_STORAGES.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            name = f"{module}.{storage}"
            table[name] = Global(name, storage=dtype)
    table["torch.storage._UntypedStorage"] = Global("torch.storage._UntypedStorage", storage="uint8")
    return table


_TABLE = _table()


def resolve(module: str, name: str) -> Global:
    """The stand-in for `module.name`, or CheckpointError naming it."""
    # Up to protocol 2, which torch.save writes, Python 3 names things as Python 2 did.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{_OLD_MODULES.get(module, module)}.{name}"
    known = _TABLE.get(full)
    if known is not None:
        return known
    if _INERT_NAME.fullmatch(full):
        return Global(full, _placeholder(full))
    if _NAMED_ONLY.fullmatch(full):
        return Global(full)
    raise refusal(full)
