"""A folder in; the config.json, the weights files and the noise schedule of the diffusers UNet in it out.

A folder of a pipeline (`model_index.json`, the model in `unet/` or, in old versions, beside it), of a training
checkpoint (`unet/` and `unet_ema/`) or of the model. Nothing in it is run, and only files of known names are opened.
Links are followed: the hub's downloader makes folders of links.

Source: github.com/huggingface/diffusers (models/modeling_utils.py and training_utils.py) for the names of files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError, shown
from ..which import Chosen, Kind, Which, kind_of
from .json_file import followed, read_json, there
from .model_folder import (
    DIFFUSERS,
    Candidate,
    ModelFolder,
    candidates,
    choose,
    file_names,
    listing,
    none_found,
    read_config,
    read_index,
    taken_folder,
)
from .scheduler_config import NOISE, find_scheduler

UNET_CLASS = "UNet2DModel"

_CHECKPOINT = re.compile(r"\.(?:pth|pt|ckpt|bin|safetensors)$", re.IGNORECASE)
_OTHER_PART = re.compile(
    r"vae|vq|text|encoder|decoder|tokenizer|transformer|controlnet|discriminator", re.IGNORECASE
)


def find_model(
    folder: str | os.PathLike[str],
    which: Which | None = None,
    without: Mapping[str, str] = MappingProxyType({}),
) -> ModelFolder:
    """Find the one model in a folder: of a pipeline of pixels, of a training checkpoint, or of a model of any class.

    Parameters
    ----------
    folder : path
        Of a pipeline, a training checkpoint or a model.
    which : {"ema", "model"}, optional
        The weights to take, if there are averaged ones beside the last ones. Default: the averaged ones.
    without : mapping of str to str, optional
        Places of averaged weights that could not be opened -> the reason.

    Raises
    ------
    CheckpointError
        The folder is not of a diffusers pipeline or model, its pipeline has more parts than a model of pixels and a
        scheduler, or several of its weights could be meant.
    """
    top = Path(folder)
    unet = _unet(top)
    found = _found(top, unet, _averages(top, UNET_CLASS), which, without)
    if found is None:
        raise CheckpointError(
            "is a folder without model_index.json, unet/config.json or config.json",
            path=str(top),
            advice="Give the path of one checkpoint file, or the folder of a diffusers pipeline or model",
        )
    taken, config, chosen = found
    advice = (
        "To load the model alone, give a folder with its config.json and weights only"
        if taken.folder == top
        else "To load the model alone, give the unet folder"
    )
    scheduler = find_scheduler(top, advice, NOISE)
    return taken_folder(taken, config, None if scheduler is None else scheduler.schedule, chosen)


def find_part(
    folder: str | os.PathLike[str],
    part: str,
    which: Which | None = None,
    without: Mapping[str, str] = MappingProxyType({}),
) -> ModelFolder:
    """Find one of several models in a folder, by the name of its own, with averages beside it (`unet_ema/`).

    The other arguments and the errors are those of `find_model`.
    """
    top = Path(folder)
    averages: Sequence[str] = ()
    if part == "unet":
        # beside them may lie whole models, such as v1-5-ema.safetensors
        own = read_config(top / part).get("_class_name", UNET_CLASS)
        averages = [name for name in _averages(top, own) if os.path.isdir(top / name)]
    found = _found(top, top / part, averages, which, without)
    assert found is not None  # its config.json was read
    taken, config, chosen = found
    return taken_folder(taken, config, None, chosen)


def _found(
    top: Path,
    own: Path | None,
    averages: Sequence[str],
    which: Which | None,
    without: Mapping[str, str],
) -> tuple[Candidate, dict[str, Any], Chosen | None] | None:
    """The weights to take of a model's own folder and its averages', its configuration, and the choice in words."""
    if own is None and not averages:
        return None
    config = {} if own is None else read_config(own)
    found: list[Candidate] = []
    closed = dict(without)
    for name in averages:
        if name not in closed:
            try:
                found += _opened(top / name, name)
            except CheckpointError as error:
                if own is None:
                    raise
                closed[name] = ": ".join(filter(None, (os.path.basename(error.path), error.problem)))
    names = file_names(config)
    if own is not None:
        # diffusers' EMAModel writes these into the configuration of the model that it saves
        kind: Kind | None = "average" if {"decay", "optimization_step"} <= config.keys() else None
        found = [*candidates(own, "" if own == top else own.name, kind, names), *found]
    found = [each for each in found if each.place not in without]
    unusable = tuple(f"{shown(name)} ({reason})" for name, reason in closed.items())
    taken, chosen = choose(found, which, unusable)
    if taken is None:
        raise none_found(own or top / averages[0], names)
    return taken, config if taken.folder == own else read_config(taken.folder), chosen


def _opened(path: Path, name: str) -> list[Candidate]:
    """The weights in an averaged model's folder, if all its files exist. Raises CheckpointError."""
    if not path.is_dir():
        followed(path)
        raise CheckpointError("is a file, expected a folder with config.json and weights")
    if not there(path / "config.json"):
        raise CheckpointError("has no config.json")
    found = candidates(path, name, "average", file_names(read_config(path)))
    if not found:
        raise CheckpointError("has no weights file")
    for each in found:
        followed(each.file)
        if not each.names.whole.fullmatch(each.file.name):
            read_index(each.file)
    return found


def _unet(top: Path) -> Path | None:
    """The folder of the model's config.json, its pipeline checked; None if there can only be an average."""
    unet = top / "unet"
    if there(top / "model_index.json"):
        _check_pipeline(read_json(top / "model_index.json"))
        if not there(unet) and there(top / "config.json"):
            return top  # old pipelines: everything in one folder
        return None if not there(unet) and _averages(top, UNET_CLASS) else unet
    return unet if there(unet / "config.json") else top if there(top / "config.json") else None


def _averages(top: Path, kind: str) -> list[str]:
    """Names in this folder of averaged models of a class, such as unet_ema, readable or not."""
    return [
        name
        for name in listing(top)
        if kind_of(name.replace(".", "_")) == "average" and _may_be(kind, top / name)
    ]


def _may_be(kind: str, path: Path) -> bool:
    """Whether a path named as an average may be one of a model of a class: by its configuration, else by its name."""
    if not path.is_dir() and not path.is_symlink():
        return _CHECKPOINT.search(path.name) is not None and not path.name.startswith(DIFFUSERS.stem)
    try:
        if there(path / "config.json"):
            return bool(read_config(path).get("_class_name", kind) == kind)
    except CheckpointError:
        return True
    return _OTHER_PART.search(path.name) is None


def _check_pipeline(index: dict[str, Any]) -> None:
    """Raise CheckpointError unless a pipeline is one model of pixels and a scheduler."""
    parts = {
        name: value
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] is not None
    }
    where = "model_index.json"
    _, kind = parts.get("unet", (None, "missing"))
    if kind != UNET_CLASS:
        raise CheckpointError(f"its unet is {shown(kind)}, supported: {UNET_CLASS}", where=where)
    others = sorted(set(parts) - {"unet", "scheduler"})
    if others:
        raise CheckpointError(
            f"its pipeline has {', '.join(map(shown, others[:5]))} beside unet and scheduler, which are not supported",
            where=where,
            advice="To load the model alone, give the unet folder",
        )
