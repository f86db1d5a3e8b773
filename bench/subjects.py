"""Models whose edits are measured: files come in as a kind of model reads them, sessions that edit go out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import sparsegen
from bench.triples import Input
from sparsegen.errors import InputError
from sparsegen.images import Frame, read_file, read_image, read_labels
from sparsegen.models.spade import SPADEGenerator
from sparsegen.weights import builtin


class Opened(Protocol):
    """A session, as far as it is needed here."""

    def run(self, original: Any, **conditions: Any) -> sparsegen.Result: ...
    def edit(self, edited: Any, **conditions: Any) -> sparsegen.Result: ...
    def undo(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class Given:
    """A file's content as a session takes it."""

    input: np.ndarray
    """Labels `[H, W]`, or an image uint8 `[H, W, 3]`."""
    conditions: dict[str, np.ndarray]


class Subject(Protocol):
    """A model with its backend, and the kind of session that edits with it."""

    def session(
        self, policy: str | None, options: Mapping[str, Any], prompt: str | None
    ) -> AbstractContextManager[Opened]:
        """A session; `policy` None: the usual one. Raises InputError: an option or the prompt is not for it."""
        ...

    def dense(self, session: Any, after: Given) -> sparsegen.Result:
        """The dense edit of what a session has run."""
        ...

    def read(self, given: Input, like: Input, size: tuple[int, int] | None) -> Given:
        """The content of a file of an edit of the original `like`; `size` (height, width) None: its own.

        Raises
        ------
        InputError, ShapeError, OSError
            The file cannot be read.
        """
        ...


@lru_cache(maxsize=1)
def subject(model: str, backend: str) -> Subject:
    """A model by its name or path, loaded once in a process.

    Raises
    ------
    InputError, CheckpointError, BackendError
        It cannot be loaded, or not be edited.
    """
    bundle = sparsegen.load_bundle(model)
    if len(bundle.models) > 1:
        return Prompted(sparsegen.LatentDiffusion(bundle, backend=backend), backend)
    only = bundle.model
    if only.diffusion is not None:
        return Images(only, backend)
    if not isinstance(only, SPADEGenerator):
        raise InputError(f"{model}: one part of Stable Diffusion ({only.family}); give the whole checkpoint")
    return LabelMaps(only, backend)


@dataclass(frozen=True, eq=False)
class LabelMaps:
    """A GauGAN, edited by `Session`."""

    model: Any
    backend: str

    def session(
        self, policy: str | None, options: Mapping[str, Any], prompt: str | None
    ) -> AbstractContextManager[Opened]:
        given = [*options, *([] if prompt is None else ["prompt"])]
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(
                f"{names}: not for a GauGAN, which has no denoising steps and reads no text; omit it"
            )
        return nullcontext(sparsegen.Session(self.model, self.backend, policy=policy or "paper"))

    def dense(self, session: Any, after: Given) -> sparsegen.Result:
        other = sparsegen.Session(self.model, self.backend)
        return other.run(after.input, keep_canvases=False, **after.conditions)

    def read(self, given: Input, like: Input, size: tuple[int, int] | None) -> Given:
        known = builtin.get(self.model.name)
        palette = known.labels.palette if known and known.labels else None

        def labels(path: Path, beside: Path | None) -> np.ndarray:
            if path.suffix == ".npy":
                return resized(array(path), size, path)
            return resized(read_labels(path, palette, like=beside), size, path)

        conditions = {}
        if given.instances is not None and self.model.config.edge_channel:
            conditions["instances"] = labels(given.instances, None)
        beside = like.path if like.path.suffix != ".npy" else None
        return Given(labels(given.path, beside), conditions)


@dataclass(frozen=True, eq=False)
class Images:
    """A diffusion model, edited by `SDEdit`."""

    model: Any
    backend: str

    def session(
        self, policy: str | None, options: Mapping[str, Any], prompt: str | None
    ) -> AbstractContextManager[Opened]:
        if prompt is not None:
            raise InputError("--prompt: only Stable Diffusion reads a text; omit it")
        for name in ("strength", "guidance"):
            if name in options:
                raise InputError(f"--{name}: only Stable Diffusion has one; omit it")
        return sparsegen.SDEdit(self.model, policy=policy or "fast", backend=self.backend, **options)

    def dense(self, session: Any, after: Given) -> sparsegen.Result:
        found: sparsegen.Result = session.dense(after.input)
        return found

    def read(self, given: Input, like: Input, size: tuple[int, int] | None) -> Given:
        if given.path.suffix == ".npy":
            image = array(given.path)
            if size is not None and image.shape[:2] != size:
                raise InputError(f"{given.path}: an image as .npy is not resized; omit --size, or give a PNG")
            return Given(image, {})
        source = read_file(given.path)
        frame = None if size is None else Frame(source.size, source.size, size, str(given.path))
        return Given(np.asarray(read_image(source, frame=frame)), {})


class Prompted(Images):
    """The models of Stable Diffusion, edited by `StableDiffusion`."""

    def session(
        self, policy: str | None, options: Mapping[str, Any], prompt: str | None
    ) -> AbstractContextManager[Opened]:
        if prompt is None:
            raise InputError("--prompt: missing; the edits of Stable Diffusion follow a text")
        if "noise_level" in options:
            raise InputError("--noise-level: Stable Diffusion has a --strength; give that")
        return sparsegen.StableDiffusion(self.model, prompt, policy=policy or "fast", **options)


def array(path: Path) -> np.ndarray:
    """The array of numbers in a .npy. Raises InputError, OSError."""
    try:
        found = np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        reason = str(error).partition(".")[0]
        raise InputError(f"{path}: not a whole .npy of numbers ({reason})") from None
    if found.dtype.kind not in "biuf":
        raise InputError(f"{path}: an array of {found.dtype}, expected numbers")
    return found


def resized(values: np.ndarray, size: tuple[int, int] | None, path: Path) -> np.ndarray:
    """Labels or a mask `[H, W]` at that size, by the nearest pixel. Raises InputError: it has other dimensions."""
    if values.ndim != 2:
        raise InputError(f"{path}: an array of shape {values.shape}, expected [H, W]")
    if size is None or values.shape == size:
        return values
    height, width = values.shape
    return Frame((height, width), (height, width), size, str(path)).nearest(values, path)
