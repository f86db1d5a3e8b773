"""The job of commands that make images, for every kind of model: its files, its model, its settings."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsegen.backends.interface import Backend

from .. import __version__
from ..engine.stats import Stats
from ..models.base import Model
from ..pipelines.latents import LatentDiffusion
from ..tiling.policies import described
from .console import numbered, out, print_table
from .kept import Kept
from .reading import Fit


@dataclass(frozen=True)
class Engine:
    """A model, the backend that computes it, and the policy of its edits."""

    model: Model | LatentDiffusion
    backend: Backend
    policy: str | None
    """None: there are no edits."""

    @classmethod
    def of(
        cls, model: Model | LatentDiffusion, backend: Backend, policy: str | None, kept: Kept | None = None
    ) -> Engine:
        """An engine of edits; a policy that is not given is that of the `kept` session, or the default of its kind.

        Raises
        ------
        InputError
            The policy is unknown.
        """
        chosen = policy or ("paper" if model.diffusion is None else "fast")
        if policy is None and kept is not None and kept.session is not None:
            chosen = described(kept.session.policy)["policy"]
        (model.unet if isinstance(model, LatentDiffusion) else model).policy(chosen)
        return cls(model, backend, chosen)


@dataclass(frozen=True)
class Job:
    """The files and options of an edit, checked: every input can be read, every output written."""

    engine: Engine
    model: str
    """The name that the user gave."""
    original: Path
    edited: tuple[Path, ...]
    """Edited copies; none: the mask alone says where to paint."""
    output: Path
    mask: Path | None
    seed: int | None
    """None: not given."""
    count: int
    """Number of variations, with this seed and the following ones."""
    fit: Fit
    """The cropping and resizing of files whose size the model does not support."""
    policy: str | None = None
    """The policy that the user gave; None: the session's."""
    undo: str | None = None
    """Memory for undoing edits; None: the session's own choice."""
    kept: Kept | None = None
    """The file of the session, if it is kept in one."""

    @property
    def seeds(self) -> list[int | None]:
        """The seed of each variation; of several, the first is 0 if none is given."""
        return [self.seed] if self.count == 1 else [(self.seed or 0) + i for i in range(self.count)]

    def outputs(self, seed: int | None) -> list[Path]:
        """The PNG of each of `named` in the variation of that seed."""
        return output_paths(self.output, len(self.named), None if self.count == 1 else seed)

    @property
    def named(self) -> tuple[Path, ...]:
        """The file that gives each edit: the edited copies, or the mask."""
        return self.edited or ((self.mask,) if self.mask else ())

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that is read."""
        return (self.original, *self.edited, *((self.mask,) if self.mask else ()))


def output_paths(output: Path, edits: int, seed: int | None) -> list[Path]:
    """`out.png`; of several variations `out-seed3.png`; of several edits `out-1.png`, `out-2.png`, …"""
    named = output if seed is None else numbered(output, f"seed{seed}")
    return [named] if edits == 1 else [numbered(named, str(i + 1)) for i in range(edits)]


def settings_rows(engine: Engine, **settings: Any) -> list[tuple[str, str]]:
    """The settings in effect, given or not, as the rows of a table."""
    model, backend = engine.model, engine.backend
    if isinstance(model, LatentDiffusion):
        family, parts = f"Stable Diffusion, predicts {model.diffusion.predicts}", list(model.models.values())
        source = _sources(model)
    else:
        family, parts, source = model.family, [model], model.source
    count = sum(math.prod(parameter.shape) for part in parts for parameter in part.parameters().values())
    threads = getattr(backend, "threads", None)
    rows = [
        ("model", f"{model.name}: {family}, {count / 1e6:.2f} M parameters"),
        ("weights", source or None),
        ("backend", backend.name + ("" if threads is None else f", {threads} threads")),
        ("policy", engine.policy),
        *((name.replace("_", " "), shown(value)) for name, value in settings.items()),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _sources(models: LatentDiffusion) -> str:
    """The weights that each model has, LoRA files among them; of models without a choice only that there is none."""
    sources = {role: _PLACE.sub(_ONLY, model.source) for role, model in models.models.items()}
    if set(sources.values()) == {_ONLY}:
        return _ONLY
    return "; ".join(f"{role}: {source}" for role, source in sources.items())


_ONLY = "the only weights"
_PLACE = re.compile(rf"^{_ONLY} \([^)]*\)")


def print_result(job: Job, path: Path, target: Path, stats: Stats) -> None:
    """Print the cost of an edit, and the pixels that were not applied."""
    print_table(f"{path} → {target}", stats.lines())
    if stats.ignored_pixels:
        out.print(
            f"{stats.ignored_pixels} changed pixels lie outside {job.mask} and were not applied",
            soft_wrap=True,
        )


def ignore_printed() -> None:
    """Ignore the warnings of pixels that are not applied and of forgotten edits: `print_result` prints both."""
    for message in (r"\d+ changed pixels lie outside", "the last edit's journal does not fit"):
        warnings.filterwarnings("ignore", message, UserWarning)


def shown(value: Any) -> str | None:
    """A setting as text: a size as 128×128; None: it is not shown."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "×".join(map(str, value))
    return None if value is None else str(value)


def written_by(model: str, engine: Engine, **settings: Any) -> dict[str, str]:
    """The text chunks of a written PNG: the settings that it was made with, as JSON under the key "sparsegen".

    With a prompt, also under the key "parameters", for people, in the layout that other programs read.
    """
    settings = {"model": model, "policy": engine.policy, "backend": engine.backend.name, **settings}
    if isinstance(engine.model, LatentDiffusion):
        settings |= {"predicts": engine.model.diffusion.predicts, "weights": _sources(engine.model)}
    given = {name: value for name, value in settings.items() if value is not None}
    chunks = {"sparsegen": json.dumps({"version": __version__, **given}, ensure_ascii=False)}
    return {"parameters": _parameters(given), **chunks} if "prompt" in given else chunks


_NAMES = {
    "steps": "Steps",
    "sampler": "Sampler",
    "guidance": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "model": "Model",
    "strength": "Denoising strength",
    "skip": "Clip skip",
}
"""Setting -> its name in other programs' texts."""


def _parameters(given: dict[str, Any]) -> str:
    """The prompt, the negative one and the settings, a line each."""
    height, width = given["size"]
    changed = {"size": f"{width}x{height}", "skip": given.get("skip", 0) + 1}
    words = [f"{name}: {changed.get(key, given[key])}" for key, name in _NAMES.items() if key in given]
    negative = [f"Negative prompt: {given['negative']}"] if given.get("negative") else []
    return "\n".join([given["prompt"], *negative, ", ".join([*words, f"Version: sparsegen {__version__}"])])
