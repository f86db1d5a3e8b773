"""sparsegen: edit a generated image and recompute only what the edit touches, without a framework.

**Every activation is a canvas. An edit repaints tiles.** The first run of a model paints every canvas; an edit's
difference mask becomes active 4×4 tiles at every resolution, and the program that the model's code left is replayed
over those tiles alone, in place. Dense is the edit in which every tile is active.

    import sparsegen
    session = sparsegen.Session(sparsegen.load("landscape"))
    first = session.run(labels)              # uint8 [256, 512] class numbers -> first.image, uint8 [256, 512, 3]
    second = session.edit(edited_labels)     # recomputes what differs -> second.image, second.stats
    session.undo()                           # bit for bit as before

How an edit travels, one stair down and back: `editing.session` makes the mask; a policy of `tiling` turns it into tiles
per layer; `models` call their `layers`; each layer asks the run of the `engine` for its canvas and its tiles and hands
both to the backend; the journal keeps what was there. (The repository's `docs/how-an-edit-travels.md` follows an edit
with code.) Floors, none importing what stands above it:

    9  cli                  6  editing              3  engine · images
    8  loading · tools      5  models               2  tiling · diffusion
    7  pipelines            4  layers               1  backends · weights · checks
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("sparsegen.backends") is None:
    # in a checkout, the package's other folders lie beside this one
    raise ImportError(
        "this sparsegen is the folder of a checkout, which Python prefers to an installed package; "
        "run pip install -e . there, or start Python in another folder"
    )

if TYPE_CHECKING:
    from sparsegen.backends.interface import BackendError
    from sparsegen.weights import CheckpointError

    from . import models as models
    from .editing.door import Result
    from .editing.session import Session
    from .engine.stats import Stats
    from .errors import InputError, NonFiniteError, SessionError, ShapeError, SparsegenError
    from .loading import Bundle, load, load_bundle
    from .models.base import Model
    from .pipelines import LatentDiffusion, SDEdit, StableDiffusion, generate, open_session, sample
    from .tiling.policies import Adaptive, Exact, Fast, Paper
    from .tools.explain import Explanation, explain
    from .tools.parity import parity
    from .tools.profile import profile
    from .tools.report import Profile

__version__ = "0.1.0"

__all__ = [
    "Adaptive",
    "BackendError",
    "Bundle",
    "CheckpointError",
    "Exact",
    "Explanation",
    "Fast",
    "InputError",
    "LatentDiffusion",
    "Model",
    "NonFiniteError",
    "Paper",
    "Profile",
    "Result",
    "SDEdit",
    "Session",
    "SessionError",
    "ShapeError",
    "SparsegenError",
    "StableDiffusion",
    "Stats",
    "explain",
    "generate",
    "load",
    "load_bundle",
    "open_session",
    "parity",
    "profile",
    "sample",
]

_HOMES = {
    "backends.interface": ["BackendError"],
    "weights": ["CheckpointError"],
    "editing.door": ["Result"],
    "editing.session": ["Session"],
    "engine.stats": ["Stats"],
    "errors": ["InputError", "NonFiniteError", "SessionError", "ShapeError", "SparsegenError"],
    "loading": ["Bundle", "load", "load_bundle"],
    "models.base": ["Model"],
    "pipelines": ["LatentDiffusion", "SDEdit", "StableDiffusion", "generate", "open_session", "sample"],
    "tiling.policies": ["Adaptive", "Exact", "Fast", "Paper"],
    "tools.explain": ["Explanation", "explain"],
    "tools.parity": ["parity"],
    "tools.profile": ["profile"],
    "tools.report": ["Profile"],
}
"""Module -> the names that are taken from it when they are first used: a program imports what it uses."""
_ROOMS = {
    *("backends", "diffusion", "editing", "engine", "errors", "layers", "loading"),
    *("models", "pipelines", "tiling", "tools", "weights"),
}
"""Modules of this package that `import sparsegen` is enough for."""

if not TYPE_CHECKING:  # a type checker reads the imports above

    def __getattr__(name: str) -> Any:
        home = next((module for module, names in _HOMES.items() if name in names), None)
        if home is None and name not in _ROOMS:
            raise AttributeError(f"module 'sparsegen' has no attribute {name!r}")
        found = import_module(f"sparsegen.{home or name}")
        return globals().setdefault(name, found if home is None else getattr(found, name))

    def __dir__() -> list[str]:
        return sorted({*__all__, *_ROOMS, *(name for name in globals() if name.startswith("__"))})
