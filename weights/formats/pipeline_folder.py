"""The folder of a Stable Diffusion pipeline in; the names of its parts, its scheduler and its tokenizer out.

A folder with `model_index.json`, or one of a training with `unet/` alone or beside other parts.
Source: github.com/huggingface/diffusers (pipelines/stable_diffusion), read for names of parts and classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, listed, shown
from .json_file import read_json, there
from .scheduler_config import Scheduler, find_scheduler

UNET_CLASS = "UNet2DConditionModel"

_PARTS: Mapping[str, tuple[str, ...]] = {
    "unet": (UNET_CLASS,),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
}
"""A part with weights -> the classes that it may be of."""
_BESIDE = {"scheduler", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"}
"""Parts without weights, and those that the engine does not need."""

_PIPELINES = {
    *("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    *("StableDiffusionInpaintPipelineLegacy", "StableDiffusionPipelineSafe"),
    *("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
}
# Words in the name of a pipeline's class -> the kind of model.
_OTHERS = {
    "StableDiffusionXL": "SDXL",
    "StableDiffusion3": "SD3",
    "Flux": "Flux",
    "Depth2Img": "a model that is conditioned on depth",
    "Upscale": "an upscaler",
    "InstructPix2Pix": "InstructPix2Pix",
    "ControlNet": "a ControlNet",
}

_TOKENIZER = ("vocab.json", "merges.txt")
"""A tokenizer's files, if it has no tokenizer.json, which holds both."""
_PAD = ("special_tokens_map.json", "tokenizer_config.json")
_ADVICE = "Give the folder of a Stable Diffusion 1.x or 2.x pipeline, or that of one of its parts"
_AGAIN = "Download the whole folder again"


@dataclass(frozen=True)
class PipelineFolder:
    """The parts of a pipeline in a folder."""

    parts: tuple[str, ...]
    """Names of the folders with weights: "unet", "vae", "text_encoder"; those that exist, in this order."""
    scheduler: Scheduler | None
    tokenizer: Path | None
    """The folder of the vocabulary; None: there is none."""
    padding: str | None
    """The symbol that pads a text, if the tokenizer's files name one."""


def find_pipeline(folder: str | os.PathLike[str]) -> PipelineFolder | None:
    """The parts in a folder; None: it is of another model, such as a UNet of pixels.

    Raises
    ------
    CheckpointError
        The pipeline or one of its parts is of a class that is not supported, or lacks a folder that it names.
    """
    top = Path(folder)
    index = top / "model_index.json"
    try:
        parts = _named(read_json(index), top) if there(index) else _found(top)
    except CheckpointError as error:
        error.path = error.path or str(top)
        raise
    if parts is None:
        return None
    tokenizer = top / "tokenizer"
    present = there(tokenizer)
    return PipelineFolder(
        parts,
        find_scheduler(top, "Give the folders of the parts (unet, vae, text_encoder) one by one"),
        tokenizer if present else None,
        _padding(tokenizer) if present else None,
    )


def _named(index: dict[str, Any], top: Path) -> tuple[str, ...] | None:
    """The parts that a model_index.json names. Raises CheckpointError."""
    classes = {
        name: value[1]
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] is not None
    }
    pipeline, where = index.get("_class_name"), "model_index.json"
    kind = next((kind for word, kind in _OTHERS.items() if word in shown(pipeline)), None)
    if kind is not None:
        raise CheckpointError(
            f"is a {shown(pipeline)} ({kind}), supported: StableDiffusionPipeline",
            where=where,
            advice=_ADVICE,
        )
    if classes.get("unet") != UNET_CLASS:
        return None
    strange = sorted(classes.keys() - _PARTS.keys() - _BESIDE)
    if strange or (shown(pipeline) not in _PIPELINES and "text_encoder" not in classes):
        beside = f" with {listed([shown(name) for name in strange])}" if strange else ""
        raise CheckpointError(
            f"is a {shown(pipeline)}{beside}, supported: StableDiffusionPipeline", where=where, advice=_ADVICE
        )
    parts = tuple(name for name in _PARTS if name in classes)
    for name in parts:
        if classes[name] not in _PARTS[name]:
            raise CheckpointError(
                f"its {name} is of the class {shown(classes[name])}, supported: {' or '.join(_PARTS[name])}",
                where=where,
                advice=_ADVICE,
            )
    missing = [f"{name}/config.json" for name in parts if not there(top / name / "config.json")]
    if "tokenizer" in classes and "text_encoder" in parts and not there(top / "tokenizer" / "tokenizer.json"):
        missing += [f"tokenizer/{name}" for name in _TOKENIZER if not there(top / "tokenizer" / name)]
    if missing:
        raise CheckpointError(f"lacks {', '.join(missing)}, which its model_index.json names", advice=_AGAIN)
    return parts


def _found(top: Path) -> tuple[str, ...] | None:
    """The parts in a folder without model_index.json, whose UNet is one of Stable Diffusion."""
    config = top / "unet" / "config.json"
    if not there(config) or read_json(config).get("_class_name") != UNET_CLASS:
        return None
    return tuple(name for name in _PARTS if there(top / name / "config.json"))


def _padding(folder: Path) -> str | None:
    """The padding symbol of a tokenizer's folder. Raises CheckpointError."""
    for name in _PAD:
        if there(folder / name):
            symbol = read_json(folder / name).get("pad_token")
            symbol = symbol.get("content") if isinstance(symbol, dict) else symbol
            if isinstance(symbol, str):
                return symbol
    return None
