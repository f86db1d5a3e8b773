"""The reference backend: NumPy, written to be read. It is the oracle of every other backend."""

from .backend import ReferenceBackend

__all__ = ["ReferenceBackend"]
