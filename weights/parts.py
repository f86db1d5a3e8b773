"""A path in; every model in that file or folder, recognised, and what lies beside them, out.

    with read_parts("v1-5-pruned.safetensors") as found:     # or the folder of a pipeline, or of one model
        for part in found.parts:                             # the UNet, both halves of the VAE, the text encoder
            parameters = convert(part.family, part.checkpoint, expected)

A file is opened once, for all of its models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from .checkpoint import Checkpoint, read_checkpoint, read_part
from .errors import CheckpointError
from .families import PARTS, identify_all
from .families.clip import MODEL as TEXT
from .families.native import SPARSEGEN, read_beside, read_stored_vocabulary
from .families.sd_unet import MODEL as UNET
from .formats.pipeline_folder import PipelineFolder, find_pipeline
from .keymap import Family
from .which import Which

_STABLE_DIFFUSION: Mapping[str, Any] = MappingProxyType(
    {"sampler": None, "steps_offset": 1, "set_alpha_to_one": False}
)
"""Settings of the samplers that all files of Stable Diffusion are used with."""
_PAD_OF_2 = "!"
"""The symbol of the id 0, by which the text encoder of 2.x was trained to pad."""


@dataclass(frozen=True)
class Part:
    """One model of a file or folder."""

    checkpoint: Checkpoint
    family: Family
    config: Mapping[str, Any]
    """The configuration of the model `family.model`."""


@dataclass(frozen=True)
class Parts:
    """The models of a file or folder.

    Attributes
    ----------
    path, format : str
        As of a `Checkpoint`.
    parts : tuple of Part
        One or more; several only of Stable Diffusion.
    schedule : str, optional
        The noise schedule of the training: linear, scaled_linear, cosine.
    prediction : str, optional
        The UNet's output, "noise" or "velocity"; None: unknown, since single files of 2.x do not hold it, or no UNet.
    scheduler : mapping
        Settings of the sampler: `sampler` (the engine's name, or None), `steps_offset`, `set_alpha_to_one`.
    tokenizer : Path, optional
        The folder with the vocabulary.
    vocabulary : bytes, optional
        The vocabulary itself, as it lies in a file of ours.
    padding : str, optional
        The symbol that pads a text; None: the end of a text.
    sampling : mapping
        Settings of sampling in which a file of ours differs from its family, by name.
    """

    path: str
    format: str
    parts: tuple[Part, ...]
    schedule: str | None = None
    prediction: str | None = None
    scheduler: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    tokenizer: Path | None = None
    vocabulary: bytes | None = None
    padding: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def close(self) -> None:
        """Close the files. Arrays that were read stay valid."""
        for part in self.parts:
            part.checkpoint.close()

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_parts(path: str | os.PathLike[str], *, which: Which | None = None) -> Parts:
    """Open a checkpoint and recognise its models.

    Parameters
    ----------
    path : path
        A file, or the folder of a diffusers pipeline, of one of its parts or of a UNet.
    which : {"ema", "model"}, optional
        As of `identify_all`: the weights to take where a model has averaged ones beside the last ones.

    Raises
    ------
    CheckpointError
        The file is damaged, hostile or of an unknown kind, or a part of a folder is missing; names the fault and its
        place.
    """
    pipeline = find_pipeline(path) if os.path.isdir(path) else None
    if pipeline is not None:
        return _of_pipeline(path, pipeline, which)
    checkpoint = read_checkpoint(path, which=which)
    try:
        found = identify_all(checkpoint, which=which)
        parts = tuple(Part(checkpoint, family, config) for family, config in found)
        opened = Parts(checkpoint.path, checkpoint.format, parts, checkpoint.schedule)
        if parts[0].family.name == SPARSEGEN.name:
            return _of_ours(opened, checkpoint)
    except BaseException:
        checkpoint.close()
        raise
    return opened if parts[0].family.model not in PARTS else _of_stable_diffusion(opened)


def _of_pipeline(path: str | os.PathLike[str], pipeline: PipelineFolder, which: Which | None) -> Parts:
    parts: list[Part] = []
    try:
        for name in pipeline.parts:
            # Averages lie beside the UNet alone.
            own = which if name == "unet" else None
            checkpoint = read_part(path, name, which=own)
            try:
                found = identify_all(checkpoint, which=own)
            except BaseException as error:
                checkpoint.close()
                if isinstance(error, CheckpointError):
                    error.path = os.path.join(os.fspath(path), name)
                raise
            parts += [Part(checkpoint, family, config) for family, config in found]
    except BaseException:
        for part in parts:
            part.checkpoint.close()
        raise
    scheduler = pipeline.scheduler
    return Parts(
        os.fspath(path),
        f"diffusers pipeline ({', '.join(pipeline.parts)})",
        tuple(parts),
        None if scheduler is None else scheduler.schedule,
        None if scheduler is None else scheduler.prediction,
        MappingProxyType({}) if scheduler is None else scheduler.settings,
        pipeline.tokenizer,
        padding=pipeline.padding or _padding(parts),
    )


def _of_ours(opened: Parts, checkpoint: Checkpoint) -> Parts:
    """The same, with what a file of ours holds beside its models; its metadata has the schedule. CheckpointError."""
    beside = read_beside(checkpoint)
    return replace(
        opened,
        prediction=beside.prediction,
        scheduler=beside.scheduler,
        vocabulary=read_stored_vocabulary(checkpoint),
        padding=beside.padding or _padding(opened.parts),
        sampling=beside.sampling,
    )


def _of_stable_diffusion(opened: Parts) -> Parts:
    """The same, with the settings that single files do not hold, since all of them have the same."""
    unet = next((part for part in opened.parts if part.family.model == UNET), None)
    return replace(
        opened,
        schedule=None if unet is None else "scaled_linear",
        prediction=None if unet is None else _prediction(unet),
        scheduler=opened.scheduler if unet is None else _STABLE_DIFFUSION,
        padding=_padding(opened.parts),
    )


def _prediction(part: Part) -> str | None:
    """The output of a single file's UNet: noise of 1.x, whose projections are convolutions; of 2.x unknown."""
    projection = next(
        (t for name, t in part.family.tensors(part.checkpoint).items() if name.endswith("proj_in.weight")),
        None,
    )
    return "noise" if projection is not None and len(projection.shape) == 4 else None


def _padding(parts: Sequence[Part]) -> str | None:
    """The padding symbol that a text encoder was trained with: of 2.x, whose activation is the exact GELU, id 0."""
    text = next((part for part in parts if part.family.model == TEXT), None)
    return _PAD_OF_2 if text is not None and text.config["activation"] == "gelu" else None
