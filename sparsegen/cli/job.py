"""What `sparsegen edit` and `sparsegen demo` were told, whatever kind of model it is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsegen.backends.interface import Backend

from .. import __version__
from ..model import Model
from .reading import Fit


@dataclass(frozen=True)
class Engine:
    """A network, what computes it, and by which policy."""

    network: Model
    backend: Backend
    policy: str


@dataclass(frozen=True)
class Job:
    """Files of an edit, all of which were looked at: what can be written, and what it is painted from."""

    engine: Engine
    model: str
    """As the user called it."""
    original: Path
    edited: tuple[Path, ...]
    outputs: tuple[Path, ...]
    """One for each of `edited`."""
    mask: Path | None
    seed: int | None
    fit: Fit
    """What is done with files of a size that the network cannot take."""

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that is read."""
        return (self.original, *self.edited, *((self.mask,) if self.mask else ()))

    def text(self, **settings: Any) -> dict[str, str]:
        """What a written PNG says of how it was made; `settings` say more, or better."""
        said = {
            "model": self.model,
            "policy": self.engine.policy,
            "backend": self.engine.backend.name,
            "seed": self.seed,
            **settings,
        }
        return {"sparsegen": " ".join([__version__, *(f"{name}={value}" for name, value in said.items())])}
