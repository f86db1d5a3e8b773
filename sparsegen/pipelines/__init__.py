"""Pipelines: networks that run many times for one picture."""

from .sampling import sample
from .sdedit import SDEdit, open_session

__all__ = ["SDEdit", "open_session", "sample"]
