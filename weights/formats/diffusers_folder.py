"""A folder in; the config.json, the weights files and the noise schedule of the diffusers UNet in it out.

A folder of a pipeline (`model_index.json`, the model in `unet/` or, in old versions, beside it), of a training
checkpoint (`unet/` and `unet_ema/`) or of the model. Nothing in it is run, and only files of known names are opened.
Links are followed: the hub's downloader makes folders of links.

Source: github.com/huggingface/diffusers (models/modeling_utils.py and training_utils.py) for the names of files.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError, listed, shown
from ..mapped import MappedFile
from ..which import Chosen, Kind, Which, averages_of, kind_of

UNET_CLASS = "UNet2DModel"

_SCHEDULES = {
    ("linear", 0.0001, 0.02): "linear",
    ("scaled_linear", 0.00085, 0.012): "scaled_linear",
    ("squaredcos_cap_v2", None, None): "cosine",
}
"""A scheduler's `beta_schedule`, `beta_start`, `beta_end` (None: not used) -> the noise schedule."""
_TIMESTEPS = 1000

_PIXELS, _LATENTS, _LATENTS_SCALED = (
    ("linear", 0.0001, 0.02),
    ("linear", 0.00085, 0.012),
    ("scaled_linear", 0.00085, 0.012),
)
_SCHEDULERS = {
    **dict.fromkeys(("DDPMScheduler", "DDPMParallelScheduler", "RePaintScheduler"), _PIXELS),
    **dict.fromkeys(("DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler"), _PIXELS),
    **dict.fromkeys(("PNDMScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler"), _PIXELS),
    **dict.fromkeys(("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"), _PIXELS),
    **dict.fromkeys(("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"), _PIXELS),
    **dict.fromkeys(
        ("DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"), _PIXELS
    ),
    **dict.fromkeys(("HeunDiscreteScheduler", "DPMSolverSDEScheduler"), _LATENTS),
    **dict.fromkeys(("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"), _LATENTS),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), _LATENTS_SCALED),
}
"""diffusers' schedulers with betas -> their defaults of the three options."""

_LONGEST_JSON = 1 << 16
"""Bytes. A model's configuration takes about 1000."""
_LONGEST_INDEX = 4 << 20
"""Bytes of a list of shards: 100 for each of 40,000 tensors."""
_MOST_SHARDS = 200

_STEM = "diffusion_pytorch_model"
# A variant is any word. In the names of shards it is before their number or, in old versions, after it.
_NUMBER = r"-\d{5}-of-\d{5}"
_WHOLE = re.compile(rf"{_STEM}(?:\.(?P<variant>[^.]+))?\.(?P<suffix>safetensors|bin)")
_INDEX = re.compile(
    rf"{_STEM}(?:\.(?P<a>[^.]+))?\.(?P<suffix>safetensors|bin)(?:\.(?P<b>[^.]+))?\.index(?:\.(?P<c>[^.]+))?\.json"
)
_SHARD = re.compile(rf"{_STEM}(?:\.[^.]+)?{_NUMBER}(?:\.[^.]+)?\.(?:safetensors|bin)")
_CHECKPOINT = re.compile(r"\.(?:pth|pt|ckpt|bin|safetensors)$", re.IGNORECASE)
_OTHER_PART = re.compile(
    r"vae|vq|text|encoder|decoder|tokenizer|transformer|controlnet|discriminator", re.IGNORECASE
)
_PLAIN_NAME = re.compile(r"\w[\w.+-]{0,250}\.(?:safetensors|bin)", re.ASCII)


@dataclass(frozen=True)
class UNetFolder:
    """A UNet in a folder: the parsed config.json, not yet checked, and the files of the tensors."""

    config: dict[str, Any]
    weights: tuple[Path, ...]
    """One file, or all shards."""
    index: Mapping[str, str] | None
    """Of shards: a tensor's key -> the name of the file that holds it."""
    schedule: str | None
    """The noise schedule of the training, if the folder has it: linear, scaled_linear or cosine."""
    chosen: Chosen | None
    """The choice among the folder's weights, if it has averaged ones."""
    place: str
    """The place of the weights in the folder."""


@dataclass(frozen=True)
class _Candidate:
    """Weights that could be taken: one variant in a folder with a config.json."""

    folder: Path
    variant: str
    place: str
    kind: Kind | None
    file: Path
    """The file that holds them, or the index of their shards."""

    @property
    def plain(self) -> bool:
        """Whether there is no variant, or one that only names an average or its absence."""
        return not self.variant or kind_of(self.variant) in ("average", "no average")


def find_unet(
    folder: str | os.PathLike[str],
    which: Which | None = None,
    without: Mapping[str, str] = MappingProxyType({}),
) -> UNetFolder:
    """Find the UNet in a folder.

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
    unet = _network(top)
    averages = _averages(top)
    if unet is None and not averages:
        raise CheckpointError(
            "is a folder without model_index.json, unet/config.json or config.json",
            path=str(top),
            advice="Give the path of one checkpoint file, or the folder of a diffusers pipeline or UNet",
        )
    config = {} if unet is None else _config(unet)
    candidates: list[_Candidate] = []
    closed = dict(without)
    for name in averages:
        if name not in closed:
            try:
                candidates += _opened(top / name, name)
            except CheckpointError as error:
                if unet is None:
                    raise
                closed[name] = ": ".join(filter(None, (os.path.basename(error.path), error.problem)))
    if unet is not None:
        # diffusers' EMAModel writes these into the configuration of the model that it saves
        kind: Kind | None = "average" if {"decay", "optimization_step"} <= config.keys() else None
        place = "" if unet == top else unet.name
        own = _candidates(unet, place, kind)
        candidates = [*own, *candidates]
    candidates = [each for each in candidates if each.place not in without]
    unusable = tuple(f"{shown(name)} ({reason})" for name, reason in closed.items())
    taken, chosen = _choose(candidates, which, unusable)
    if taken is None:
        raise _none_found(unet or top / averages[0])
    index = None if _WHOLE.fullmatch(taken.file.name) else _index(taken.file)
    names = [taken.file.name] if index is None else sorted(set(index.values()))
    return UNetFolder(
        config if taken.folder == unet else _config(taken.folder),
        tuple(_followed(taken.folder / name) for name in names),
        index,
        _find_schedule(top, alone=taken.folder != top),
        chosen,
        taken.place,
    )


def _opened(path: Path, name: str) -> list[_Candidate]:
    """The weights in an averaged model's folder, if all its files exist. Raises CheckpointError."""
    if not path.is_dir():
        _followed(path)
        raise CheckpointError("is a file, expected a folder with config.json and weights")
    if not _there(path / "config.json"):
        raise CheckpointError("has no config.json")
    _config(path)
    found = _candidates(path, name, "average")
    if not found:
        raise CheckpointError("has no weights file")
    for each in found:
        _followed(each.file)
        if not _WHOLE.fullmatch(each.file.name):
            _index(each.file)
    return found


def _network(top: Path) -> Path | None:
    """The folder of the model's config.json, its pipeline checked; None if there can only be an average."""
    unet = top / "unet"
    if _there(top / "model_index.json"):
        _check_pipeline(_json(top / "model_index.json", _LONGEST_JSON))
        if not _there(unet) and _there(top / "config.json"):
            return top  # old pipelines: everything in one folder
        return None if not _there(unet) and _averages(top) else unet
    return unet if _there(unet / "config.json") else top if _there(top / "config.json") else None


def _config(folder: Path) -> dict[str, Any]:
    return _json(folder / "config.json", _LONGEST_JSON)


def _averages(top: Path) -> list[str]:
    """Names in this folder of averaged UNets, such as unet_ema, readable or not."""
    return [
        name
        for name in _names(top)
        if kind_of(name.replace(".", "_")) == "average" and _may_be_unet(top / name)
    ]


def _may_be_unet(path: Path) -> bool:
    """Whether a path named as an average may be one of a UNet: by its configuration, else by its name."""
    if not path.is_dir() and not path.is_symlink():
        return _CHECKPOINT.search(path.name) is not None and not path.name.startswith(_STEM)
    try:
        if _there(path / "config.json"):
            return bool(_config(path).get("_class_name", UNET_CLASS) == UNET_CLASS)
    except CheckpointError:
        return True
    return _OTHER_PART.search(path.name) is None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        if error.errno == errno.ENOMEM:  # the machine's fault, not the folder's
            raise
        raise CheckpointError(f"cannot be opened: {error.strerror or error}", path=str(folder)) from error


def _candidates(folder: Path, place: str, inherited: Kind | None) -> list[_Candidate]:
    """Variants of the weights in a folder, each in its best form: safetensors before pickle, whole before shards."""
    files: dict[str, tuple[int, str]] = {}
    for name in _names(folder):
        whole, index = _WHOLE.fullmatch(name), _INDEX.fullmatch(name)
        match = whole or index
        if match is None or _SHARD.fullmatch(name):
            continue
        variant = next(
            (each for each in (match.groupdict().get(key) for key in ("variant", *"abc")) if each), ""
        )
        rank = 2 * (match["suffix"] == "bin") + (whole is None)
        files[variant] = min(files.get(variant, (rank, name)), (rank, name))
    found = []
    for variant, (_, name) in sorted(files.items()):
        kind = kind_of(variant)
        file = f"{_STEM}.{variant}" if variant else "" if place else _STEM
        at = "/".join(filter(None, (place, file)))
        found.append(_Candidate(folder, variant, at, inherited if kind is None else kind, folder / name))
    return found


def _choose(
    candidates: list[_Candidate], which: Which | None, unusable: tuple[str, ...]
) -> tuple[_Candidate | None, Chosen | None]:
    """The weights to take, and the choice in words; (None, None) if there are none to take."""
    averages = averages_of(candidates, [each.kind for each in candidates])
    others = [each for each in candidates if each not in averages]
    if which == "model" and averages and not others:
        raise CheckpointError("holds no weights beside the averaged ones", advice="Omit `which=`")
    if which == "ema" and unusable and not averages:
        raise CheckpointError(
            f"its averaged weights cannot be taken: {', '.join(unusable)}",
            advice="Omit `which=` to take the last weights",
        )
    of_kind = averages if averages and which != "model" else others
    if not of_kind:
        return None, None
    plain = [each for each in of_kind if each.plain]
    if not plain and len({each.variant for each in of_kind}) > 1:
        raise CheckpointError(
            f"has its weights in several variants ({listed([shown(each.variant) for each in of_kind])})"
            f", none of them {_STEM}.safetensors or .bin",
            path=str(of_kind[0].folder),
            advice="Give a folder with config.json and one variant",
        )
    taken = (plain or of_kind)[0]
    if not averages and not unusable:
        return taken, None
    beside = tuple(shown(each.place) for each in candidates if each is not taken and each.plain)
    return taken, Chosen(shown(taken.place), taken in averages, beside, unusable)


def _none_found(folder: Path) -> CheckpointError:
    if any(_SHARD.fullmatch(name) for name in _names(folder)):
        return CheckpointError(
            f"has shards of weights without their index ({_STEM}.safetensors.index.json or .bin.index.json)",
            path=str(folder),
            advice="Download the whole folder again",
        )
    return CheckpointError(
        f"has none of the files {_STEM}.safetensors, {_STEM}.bin, with or without a variant in the name",
        path=str(folder),
        advice="Download the whole folder again",
    )


def _index(path: Path) -> dict[str, str]:
    """Key of a tensor -> name of its shard; all shards exist. Raises CheckpointError."""
    weight_map = _json(path, _LONGEST_INDEX).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) and _PLAIN_NAME.fullmatch(name) for name in weight_map.values())
    ):
        raise CheckpointError(
            "its weight_map is not a table from tensors to names of files in the same folder",
            path=str(path),
            advice="Download it again",
        )
    shards = sorted(set(weight_map.values()))
    if len(shards) > _MOST_SHARDS:
        raise CheckpointError(f"names {len(shards)} shards, at most {_MOST_SHARDS} are read", path=str(path))
    missing = [name for name in shards if not _there(path.parent / name)]
    if missing:
        raise CheckpointError(
            f"lacks {len(missing)} of the {len(shards)} shards that its index names: {listed(missing, 4)}",
            path=str(path.parent),
            advice="Download the whole folder again",
        )
    return weight_map


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


def _find_schedule(top: Path, *, alone: bool) -> str | None:
    """The noise schedule beside a model; `alone`: the model has a folder of its own."""
    for path in (top / "scheduler" / "scheduler_config.json", top / "scheduler_config.json"):
        if _there(path):
            return _schedule(_json(path, _LONGEST_JSON), path, alone)
    return None


def _schedule(config: dict[str, Any], path: Path, alone: bool) -> str:
    """The name of a scheduler's noise schedule; options that it omits have diffusers' defaults."""
    advice = (
        "To load the model alone, give the unet folder"
        if alone
        else "To load the model alone, give a folder with its config.json and weights only"
    )
    name = config.get("_class_name", "DDPMScheduler")
    defaults = _SCHEDULERS.get(name) if isinstance(name, str) else None
    if defaults is None:
        raise CheckpointError(
            f"is the configuration of a {shown(name)}, expected a scheduler with betas, such as DDPMScheduler",
            path=str(path),
            advice=advice,
        )
    predicts = config.get("prediction_type", "epsilon")
    if predicts != "epsilon":
        raise CheckpointError(
            f"prediction_type is {shown(predicts)}, supported: epsilon (the noise)",
            path=str(path),
            advice=advice,
        )
    for option in ("rescale_betas_zero_snr", "use_flow_sigmas"):
        if config.get(option, False) not in (False, None):
            raise CheckpointError(
                f"{option} is {shown(config[option])}, supported: false", path=str(path), advice=advice
            )
    kind, *betas = (
        config.get(option, default)
        for option, default in zip(("beta_schedule", "beta_start", "beta_end"), defaults, strict=True)
    )
    given = (kind, None, None) if kind == "squaredcos_cap_v2" else (kind, *betas)
    steps = config.get("num_train_timesteps", _TIMESTEPS)
    found = next((name for known, name in _SCHEDULES.items() if known == given), None)
    if found is None or steps != _TIMESTEPS or config.get("trained_betas") is not None:
        raise CheckpointError(
            f"its noise schedule is not supported: beta_schedule {shown(kind)} from {shown(betas[0])} to "
            f"{shown(betas[1])} in {shown(steps)} timesteps",
            path=str(path),
            advice=advice,
        )
    return found


def _there(path: Path) -> bool:
    return os.path.lexists(path)


def _followed(path: Path) -> Path:
    """`path`, unless it or its folder is a link to a file that does not exist. Raises CheckpointError."""
    for link in (path.parent, path):
        if link.is_symlink() and not os.path.exists(os.path.realpath(link)):
            raise CheckpointError(
                f"is a link to {shown(os.readlink(link))}, which does not exist",
                path=str(link),
                advice="Download or copy the folder again",
            )
    return path


def _json(path: Path, longest: int) -> dict[str, Any]:
    file = MappedFile(_followed(path))
    try:
        if file.size > longest:
            raise CheckpointError(f"has {file.size} bytes, at most {longest} are read", path=str(path))
        try:
            found = json.loads(file.bytes[:].decode("utf-8"))
        except (ValueError, RecursionError):
            found = None
    finally:
        file.close()
    if not isinstance(found, dict):
        raise CheckpointError("is not a JSON object", path=str(path), advice="Download or copy it again")
    return found
