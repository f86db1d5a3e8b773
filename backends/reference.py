"""The reference backend: the portable formulas on NumPy arrays, the oracle of every other backend."""

from __future__ import annotations

from .base import HostBackend


class ReferenceBackend(HostBackend):
    """NumPy alone: `base.py` as it stands, written to be read."""

    name = "reference"
