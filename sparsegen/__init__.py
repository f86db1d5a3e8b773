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

try:
    from sparsegen.backends.interface import BackendError
except ModuleNotFoundError as error:
    if error.name != "sparsegen.backends":
        raise
    # in a checkout, the package's other folders lie beside this one
    raise ImportError(
        "this sparsegen is the folder of a checkout, which Python prefers to an installed package; "
        "run pip install -e . there, or start Python in another folder"
    ) from None
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
