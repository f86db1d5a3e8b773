"""Backends, which compute the engine's primitives: the contract is `interface.py`, `registry.py` finds them by name.

Importing this package loads no accelerator; `get_backend(name)` does.
"""

from .interface import TILE, Backend, BackendError, Source
from .registry import backend_status, default_backend, get_backend

__all__ = ["TILE", "Backend", "BackendError", "Source", "backend_status", "default_backend", "get_backend"]
