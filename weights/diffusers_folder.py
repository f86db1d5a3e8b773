"""A folder in; the config.json and the weights file of the diffusers UNet in it out.

A pipeline's folder (`model_index.json`, the network in `unet/`) or the network's own. Nothing in it is run; only files
of known names are opened, and none that a link leads out of the folder for.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError, shown
from .mapped import MappedFile

UNET_CLASS = "UNet2DModel"

_SCHEDULES = {
    ("linear", 0.0001, 0.02): "linear",
    ("scaled_linear", 0.00085, 0.012): "scaled_linear",
    ("squaredcos_cap_v2", None, None): "cosine",
}
"""A scheduler's `beta_schedule`, `beta_start`, `beta_end` (None: has no say) -> the noise schedule of that kind."""
_TIMESTEPS = 1000

_LONGEST_JSON = 1 << 16
"""Bytes. A network's configuration takes about 1000."""

_WEIGHTS = tuple(
    f"diffusion_pytorch_model{variant}.{suffix}"
    for variant in ("", ".fp16")
    for suffix in ("safetensors", "bin")
)


@dataclass(frozen=True)
class UNetFolder:
    """What was found: the parsed config.json, not yet judged, and where the tensors are."""

    config: dict[str, Any]
    weights: Path
    schedule: str | None
    """The noise that the network was trained on, where the folder says it: linear, scaled_linear or cosine."""


def find_unet(folder: str | os.PathLike[str]) -> UNetFolder:
    """Look into a folder.

    Raises
    ------
    CheckpointError
        For a folder that is not a diffusers pipeline's or network's, or whose pipeline is more than one network of
        pixels.
    """
    top = Path(folder)
    root = _root(top)
    unet, schedule = top, None
    if _there(top / "model_index.json"):
        _check_pipeline(_json(top / "model_index.json", root))
        unet = top / "unet"
        scheduler = top / "scheduler" / "scheduler_config.json"
        if _there(scheduler):
            schedule = _schedule(_json(scheduler, root), scheduler)
    elif _there(top / "unet" / "config.json"):
        unet = top / "unet"
    elif not _there(top / "config.json"):
        raise CheckpointError(
            "is a folder without model_index.json, unet/config.json or config.json",
            path=str(top),
            advice="Give the path of one checkpoint file, or the folder of a diffusers pipeline or UNet",
        )
    config = _json(unet / "config.json", root)
    for name in _WEIGHTS:
        if _there(unet / name):
            return UNetFolder(config, _inside(unet / name, root), schedule)
    if any(_there(unet / f"{name}.index.json") for name in _WEIGHTS):
        raise CheckpointError(
            "has its weights cut into several files, which are not read",
            path=str(unet),
            advice='Save it in one with diffusers: save_pretrained(folder, max_shard_size="100GB")',
        )
    raise CheckpointError(f"has none of the files {', '.join(_WEIGHTS)}", path=str(unet))


def _check_pipeline(index: dict[str, Any]) -> None:
    """That a pipeline is one network that sees pixels, and a scheduler."""
    parts = {
        name: value
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] is not None
    }
    where = "model_index.json"
    _, kind = parts.get("unet", (None, "missing"))
    if kind != UNET_CLASS:
        raise CheckpointError(f"its unet is {shown(kind)}, supported is {UNET_CLASS}", where=where)
    others = sorted(set(parts) - {"unet", "scheduler"})
    if others:
        raise CheckpointError(
            f"its pipeline has {', '.join(map(shown, others[:5]))} beside unet and scheduler, which are not computed",
            where=where,
            advice="To load the network alone, give the unet folder",
        )


def _schedule(config: dict[str, Any], path: Path) -> str:
    """The name of a scheduler's noise schedule; what it does not say is what diffusers takes then."""
    predicts = config.get("prediction_type", "epsilon")
    if predicts != "epsilon":
        raise CheckpointError(
            f"prediction_type is {shown(predicts)}, supported: epsilon (the noise)", path=str(path)
        )
    kind = config.get("beta_schedule", "linear")
    betas = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    said = (kind, None, None) if kind == "squaredcos_cap_v2" else (kind, *betas)
    steps = config.get("num_train_timesteps", _TIMESTEPS)
    found = next((name for known, name in _SCHEDULES.items() if known == said), None)
    if found is None or steps != _TIMESTEPS or config.get("trained_betas") is not None:
        raise CheckpointError(
            f"its noise grows as no schedule here: beta_schedule {shown(kind)} from {shown(betas[0])} to "
            f"{shown(betas[1])} in {shown(steps)} timesteps",
            path=str(path),
            advice="To load the network alone, give the unet folder",
        )
    return found


def _root(folder: Path) -> Path:
    """The folder that links may not lead out of: this one, or the model's in the hub's cache, which is all links."""
    real = Path(os.path.realpath(folder))
    for parent in (real, *real.parents):
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent
    return real


def _there(path: Path) -> bool:
    return os.path.lexists(path)


def _inside(path: Path, root: Path) -> Path:
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise CheckpointError(
            "is a link out of its folder, which is not followed", path=str(path), advice="Copy the file there"
        )
    return path


def _json(path: Path, root: Path) -> dict[str, Any]:
    file = MappedFile(_inside(path, root))
    try:
        if file.size > _LONGEST_JSON:
            raise CheckpointError(f"has {file.size} bytes, at most {_LONGEST_JSON} are read", path=str(path))
        try:
            found = json.loads(file.bytes[:].decode("utf-8"))
        except (ValueError, RecursionError):
            found = None
    finally:
        file.close()
    if not isinstance(found, dict):
        raise CheckpointError("is no JSON object", path=str(path), advice="Download or copy it again")
    return found
