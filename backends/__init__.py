"""Backends: how the engine's primitives are computed. The contract is `interface.py`; names are in `registry.py`.

Importing this loads no accelerator; `get_backend(name)` does. Floors, none importing what stands above it:

    4  registry                  2  base
    3  reference · numba_cpu     1  shapes
                                 0  interface
"""

from .interface import TILE, Backend, BackendError, Source
from .registry import backend_status, default_backend, get_backend

__all__ = ["TILE", "Backend", "BackendError", "Source", "backend_status", "default_backend", "get_backend"]
