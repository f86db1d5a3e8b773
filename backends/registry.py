"""Backends by name: a name comes in, a backend comes out, or one error that lists every backend with its state."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .interface import Backend, BackendError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "sparsegen.backends"
"""Entry-point group in which a third party's package registers `name = "module:BackendClass"`."""

_BUILT_IN = {
    "numba": "sparsegen.backends.numba_cpu:NumbaBackend",
    "reference": "sparsegen.backends.reference:ReferenceBackend",
    "cupy": "sparsegen.backends.cupy_cuda.card:CupyBackend",
}
"""In order of preference: the first that can run here is the default. `cupy` stands behind `reference`, which always
runs: a card, whose memory other work may need, is used only where it is named."""

_NO_SUCH_PLATFORM = {"numba": ("emscripten",)}
"""Built-in backend -> platforms (`sys.platform`) that its packages do not exist for."""

THREADS = "SPARSEGEN_THREADS"
"""Environment variable: the number of threads that compute, unless the call gives one."""


@dataclass(frozen=True)
class _BuiltIn:
    """A backend of this package, with what is used of a third party's entry point."""

    name: str
    value: str

    def load(self) -> Any:
        """Import its class."""
        module, _, kind = self.value.partition(":")
        return getattr(import_module(module), kind)


def _built_in() -> dict[str, _BuiltIn | EntryPoint]:
    """Name -> entry point of the built-in backends: found without installed metadata, which takes long to read."""
    return {name: _BuiltIn(name, value) for name, value in _BUILT_IN.items()}


def _third_parties() -> tuple[EntryPoint, ...]:
    """The entry points of installed packages."""
    from importlib.metadata import entry_points

    return tuple(entry_points(group=GROUP))


def _known() -> dict[str, _BuiltIn | EntryPoint]:
    """Name -> entry point: the built-in backends, then third parties'."""
    known = _built_in()
    for point in _third_parties():
        known.setdefault(point.name, point)
    return known


_NONE: Mapping[str, Any] = MappingProxyType({})

_OPEN: dict[tuple[_BuiltIn | EntryPoint, tuple[tuple[str, Any], ...]], Backend] = {}
"""One instance for each backend and its options, so that sessions on one model share its prepared weights."""


def _thread_count(threads: int | None) -> int | None:
    """The number of threads that the call gives, else the environment, else None. Raises BackendError."""
    name, value = ("threads", threads) if threads is not None else (THREADS, os.environ.get(THREADS) or None)
    if value is None:
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise BackendError(f"{name} is {value!r}, expected a whole number, 1 or more")
    return int(value)


def _open(point: _BuiltIn | EntryPoint, threads: int | None, options: Mapping[str, Any] = _NONE) -> Backend:
    """The instance of a backend with these options, made once. Raises BackendError, and whatever its import raises."""
    kind = point.load()
    has = getattr(kind, "options", ())
    foreign = sorted(set(options) - set(has))
    if foreign:
        raise BackendError(
            f"backend {point.name!r} takes no {', '.join(foreign)}; it takes {', '.join(has) or 'none'}"
        )
    given = {name: value for name, value in options.items() if value != _default(kind, name)}
    if threads is not None and getattr(kind, "takes_threads", False):
        given["threads"] = threads
    key = (point, tuple(sorted(given.items())))
    if key not in _OPEN:
        made = kind(**given)
        if not isinstance(made, Backend):
            raise BackendError(f"backend {point.name!r}: {point.value} is not a sparsegen.backends.Backend")
        _OPEN.setdefault(key, made)  # of two threads at once, both take the first instance
    return _OPEN[key]


def _default(kind: Any, option: str) -> Any:
    """What an option of a backend is where it is not given."""
    parameter = inspect.signature(kind).parameters.get(option)
    return inspect.Parameter.empty if parameter is None else parameter.default


def _why_not(
    point: _BuiltIn | EntryPoint, threads: int | None, options: Mapping[str, Any] = _NONE
) -> str | None:
    """None if the backend can run here, else the reason (one line). Raises MemoryError."""
    try:
        _open(point, threads, options)
    except (
        MemoryError
    ):  # no property of the backend: the next try may find memory, and a slower backend needs as much
        raise
    except BackendError as error:
        return " ".join(str(error).splitlines())
    except (Exception, SystemExit) as error:  # a third party's import may fail in any way
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def backend_status() -> dict[str, str | None]:
    """Every known backend: None if it can run here, else the reason (one line)."""
    threads = _thread_count(None)
    return {name: _why_not(point, threads) for name, point in _known().items()}


def default_backend() -> str:
    """The name of the fastest built-in backend that can run here: the one used where none is named."""
    return _preferred(_thread_count(None))[0]


def _preferred(threads: int | None) -> tuple[str, dict[str, str]]:
    """The default backend; and the preferred backends that cannot run here, each with the reason."""
    passed_over: dict[str, str] = {}
    for name, point in _built_in().items():
        why = _why_not(point, threads)
        if why is None:
            return name, passed_over
        passed_over[name] = why
    raise BackendError(f"no backend can run here: {passed_over}")


_WARNED: set[str] = set()
"""Backends that a warning has named."""


def _warn_once(chosen: str, passed_over: dict[str, str]) -> None:
    """Warn that a slower backend computes, once for each faster one that cannot run here.

    Not where the faster one does not exist for the platform: the user could do nothing about it.
    """
    for name, why in passed_over.items():
        if name not in _WARNED and sys.platform not in _NO_SUCH_PLATFORM.get(name, ()):
            _WARNED.add(name)
            warnings.warn(
                f"backend {name!r} cannot run here ({why}); {chosen!r} computes instead, which may take many times "
                "as long (name a backend to choose it without this warning)",
                RuntimeWarning,
                stacklevel=4,  # whoever opened a session
            )


def get_backend(name: str | Backend | None = None, *, threads: int | None = None, **options: Any) -> Backend:
    """The backend of that name, the same instance every time (a `Backend` is returned as it is).

    Parameters
    ----------
    name
        None: `default_backend()`; a RuntimeWarning says once which better one cannot run here, and why (none where
        that one does not exist for the platform, as Numba for emscripten). "cupy:1" is `cupy` with `device=1`.
    threads
        The most threads that compute, for backends with threads; None: SPARSEGEN_THREADS of the environment, else the
        backend chooses. Each number has its own instance.
    options
        Options of that backend (`Backend.options`; numba: `direct=True`, no Winograd transforms, for the closest
        parity; `weights="float16"` or `"bfloat16"`, half the memory; `precision="bfloat16"`, faster products; cupy:
        `device=1`, `memory="8GB"`, the most to take, `precision="tf32"` or `"float16"`, tensor cores). Each choice has
        its own instance.

    Raises
    ------
    BackendError
        The name is unknown, or the backend cannot run here: the message lists every backend with its state. `threads`
        is not a whole number of 1 or more. The backend does not have an option, or refuses its value.
    """
    if isinstance(name, Backend):
        return name
    count = _thread_count(threads)
    if name is None:
        name, passed_over = _preferred(count)
        _warn_once(name, passed_over)
    point, options = _named(name, options)
    device = {name: value for name, value in options.items() if name == "device"}
    reason = "unknown" if point is None else _why_not(point, count, device)
    if point is not None and reason is None:
        return _open(point, count, options)
    status = "; ".join(f"{n}: {'available' if why is None else why}" for n, why in backend_status().items())
    raise BackendError(f"backend {name!r} cannot be used ({reason}). Known backends: {status}")


def _named(
    name: str, options: Mapping[str, Any] = _NONE
) -> tuple[_BuiltIn | EntryPoint | None, dict[str, Any]]:
    """The backend of a name, and its options: "cupy:1" is `cupy` with `device=1`. Raises BackendError."""
    known = _built_in()
    known = known if name in known else _known()
    first, colon, device = name.rpartition(":")
    if name in known or not colon or first not in known or not device.isdecimal():
        return known.get(name), dict(options)
    if options.get("device", int(device)) != int(device):
        raise BackendError(
            f"backend {name!r} and device={options['device']!r} name two devices; give one of them"
        )
    return known[first], {**options, "device": int(device)}


def warm_up(name: str, *, architecture: str | None = None) -> str:
    """Compile a backend's kernels now; returns a line that says where they are.

    Parameters
    ----------
    architecture
        Of a card that need not be here, such as "sm_90", for backends that compile for another machine; None: this
        machine's.

    Raises
    ------
    BackendError
        As `get_backend`; or the kernels do not compile, cannot be kept, or compile for this machine alone.
    """
    if architecture is None:
        return get_backend(name).warm_up()
    point, _ = _named(name)
    if point is None:
        get_backend(name)  # raises: it lists the known ones
    compile_for = None if point is None else getattr(point.load(), "compile_for", None)
    if compile_for is None:
        raise BackendError(f"backend {name!r} compiles for this machine alone; omit the architecture")
    line: str = compile_for(architecture)
    return line
