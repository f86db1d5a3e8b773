"""Backends, which compute the engine's primitives: the contract is `interface.py`, `registry.py` finds them by name.

Importing this loads no accelerator; `get_backend(name)` does. Floors, none importing what stands above it:

    3  registry · counting                            1  base
    2  reference · numba_cpu · cupy_cuda · shapes     0  interface · caches
"""

from .interface import TILE, Backend, BackendError, Source
from .registry import backend_status, default_backend, get_backend, warm_up

__all__ = [
    "TILE",
    "Backend",
    "BackendError",
    "Source",
    "backend_status",
    "default_backend",
    "get_backend",
    "warm_up",
]
