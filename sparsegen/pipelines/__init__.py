"""Pipelines: models that run many times for one image."""

from .opening import open_session
from .sampling import sample
from .sdedit import SDEdit

__all__ = ["SDEdit", "open_session", "sample"]
