"""Backends by name: a name comes in, a backend comes out, or one error that lists what can run here and why not."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from .interface import Backend, BackendError

GROUP = "sparsegen.backends"
"""Entry-point group: a third party's package registers `name = "module:BackendClass"` there."""

_BUILT_IN = {
    "numba": "sparsegen.backends.numba_cpu:NumbaBackend",
    "reference": "sparsegen.backends.reference:ReferenceBackend",
}


def _known() -> dict[str, EntryPoint]:
    """Name -> entry point: the built-in ones (also without installed metadata), then third parties'."""
    known = {name: EntryPoint(name, value, GROUP) for name, value in _BUILT_IN.items()}
    for point in entry_points(group=GROUP):
        known.setdefault(point.name, point)
    return known


_OPEN: dict[EntryPoint, Backend] = {}
"""Every backend that was asked for: one instance each, so that sessions on one model share its prepared weights."""


def _open(point: EntryPoint) -> Backend:
    if point not in _OPEN:
        made = point.load()()
        if not isinstance(made, Backend):
            raise BackendError(f"backend {point.name!r}: {point.value} is not a sparsegen.backends.Backend")
        _OPEN.setdefault(point, made)  # two threads may get here: the first instance is everyone's
    return _OPEN[point]


def backend_status() -> dict[str, str | None]:
    """Every known backend: None when it can run here, else why not (one line)."""
    status: dict[str, str | None] = {}
    for name, point in _known().items():
        try:
            _open(point)
            status[name] = None
        except (
            Exception,
            SystemExit,
        ) as error:  # a third party's import may fail in any way, not take us along
            status[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return status


def get_backend(name: str | Backend) -> Backend:
    """The backend of that name, the same instance every time (a `Backend` is returned as it is).

    Raises
    ------
    BackendError
        The name is unknown, or the backend cannot run here; lists every backend with its state.
    """
    if isinstance(name, Backend):
        return name
    point = _known().get(name)
    try:
        if point is not None:
            return _open(point)
        reason = "unknown"
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    status = "; ".join(f"{n}: {'available' if why is None else why}" for n, why in backend_status().items())
    raise BackendError(f"backend {name!r} cannot be used ({reason}). Known backends: {status}")
