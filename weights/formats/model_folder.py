"""The folder of one model in; its config.json and the weights files that are taken out.

Sources: github.com/huggingface/diffusers (models/modeling_utils.py) and github.com/huggingface/transformers
(modeling_utils.py) for the names of files.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, listed, shown
from ..which import Chosen, Kind, Which, averages_of, kind_of
from .json_file import followed, read_json, there

_LONGEST_INDEX = 4 << 20
"""Bytes of a list of shards: 100 for each of 40,000 tensors."""
_MOST_SHARDS = 200

_PLAIN_NAME = re.compile(r"\w[\w.+-]{0,250}\.(?:safetensors|bin)", re.ASCII)


class FileNames:
    """The names of a library's weights files."""

    def __init__(self, stem: str, also: str = "") -> None:
        either = f"(?:{stem}|{also})" if also else stem
        self.stem = stem
        # A variant is any word. In the names of shards it is before their number or, in old versions, after it.
        number = r"-\d{5}-of-\d{5}"
        self.whole = re.compile(rf"{either}(?:\.(?P<variant>[^.]+))?\.(?P<suffix>safetensors|bin)")
        self.index = re.compile(
            rf"{either}(?:\.(?P<a>[^.]+))?\.(?P<suffix>safetensors|bin)"
            r"(?:\.(?P<b>[^.]+))?\.index(?:\.(?P<c>[^.]+))?\.json"
        )
        self.shard = re.compile(rf"{either}(?:\.[^.]+)?{number}(?:\.[^.]+)?\.(?:safetensors|bin)")


DIFFUSERS = FileNames("diffusion_pytorch_model")
TRANSFORMERS = FileNames("model", "pytorch_model")


def file_names(config: Mapping[str, Any]) -> FileNames:
    """The names of the files beside a config.json."""
    return TRANSFORMERS if "_class_name" not in config and "model_type" in config else DIFFUSERS


@dataclass(frozen=True)
class ModelFolder:
    """A model in a folder: the parsed config.json, not yet checked, and the files of the tensors."""

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
class Candidate:
    """Weights that could be taken: one variant in a folder with a config.json."""

    folder: Path
    variant: str
    place: str
    kind: Kind | None
    file: Path
    """The file that holds them, or the index of their shards."""
    names: FileNames

    @property
    def plain(self) -> bool:
        """Whether there is no variant, or one that only names an average or its absence."""
        return not self.variant or kind_of(self.variant) in ("average", "no average")


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model's folder. Raises CheckpointError."""
    return read_json(folder / "config.json")


def listing(folder: Path) -> list[str]:
    """The names in a folder, sorted. Raises CheckpointError."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        if error.errno == errno.ENOMEM:  # the machine's fault, not the folder's
            raise
        raise CheckpointError(f"cannot be opened: {error.strerror or error}", path=str(folder)) from error


def candidates(folder: Path, place: str, inherited: Kind | None, names: FileNames) -> list[Candidate]:
    """Variants of the weights in a folder, each in its best form: safetensors before pickle, whole before shards."""
    files: dict[str, tuple[int, str]] = {}
    for name in listing(folder):
        whole, index = names.whole.fullmatch(name), names.index.fullmatch(name)
        match = whole or index
        if match is None or names.shard.fullmatch(name):
            continue
        variant = next(
            (each for each in (match.groupdict().get(key) for key in ("variant", *"abc")) if each), ""
        )
        rank = 2 * (match["suffix"] == "bin") + (whole is None)
        files[variant] = min(files.get(variant, (rank, name)), (rank, name))
    found = []
    for variant, (_, name) in sorted(files.items()):
        kind = kind_of(variant)
        file = f"{names.stem}.{variant}" if variant else "" if place else names.stem
        at = "/".join(filter(None, (place, file)))
        found.append(
            Candidate(folder, variant, at, inherited if kind is None else kind, folder / name, names)
        )
    return found


def choose(
    found: list[Candidate], which: Which | None, unusable: tuple[str, ...]
) -> tuple[Candidate | None, Chosen | None]:
    """The weights to take, and the choice in words; (None, None) if there are none to take."""
    averages = averages_of(found, [each.kind for each in found])
    others = [each for each in found if each not in averages]
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
            f", none of them {of_kind[0].names.stem}.safetensors or .bin",
            path=str(of_kind[0].folder),
            advice="Give a folder with config.json and one variant",
        )
    taken = (plain or of_kind)[0]
    if not averages and not unusable:
        return taken, None
    beside = tuple(shown(each.place) for each in found if each is not taken and each.plain)
    return taken, Chosen(shown(taken.place), taken in averages, beside, unusable)


def none_found(folder: Path, names: FileNames) -> CheckpointError:
    if any(map(names.shard.fullmatch, listing(folder))):
        return CheckpointError(
            f"has shards of weights without their index ({names.stem}.safetensors.index.json or .bin.index.json)",
            path=str(folder),
            advice="Download the whole folder again",
        )
    return CheckpointError(
        f"has none of the files {names.stem}.safetensors, {names.stem}.bin, with or without a variant in the name",
        path=str(folder),
        advice="Download the whole folder again",
    )


def read_index(path: Path) -> dict[str, str]:
    """Key of a tensor -> name of its shard; all shards exist. Raises CheckpointError."""
    weight_map = read_json(path, _LONGEST_INDEX).get("weight_map")
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
    missing = [name for name in shards if not there(path.parent / name)]
    if missing:
        raise CheckpointError(
            f"lacks {len(missing)} of the {len(shards)} shards that its index names: {listed(missing, 4)}",
            path=str(path.parent),
            advice="Download the whole folder again",
        )
    return weight_map


def taken_folder(
    taken: Candidate, config: dict[str, Any], schedule: str | None, chosen: Chosen | None
) -> ModelFolder:
    """The files of the weights that are taken, all of which exist. Raises CheckpointError."""
    index = None if taken.names.whole.fullmatch(taken.file.name) else read_index(taken.file)
    names: Sequence[str] = [taken.file.name] if index is None else sorted(set(index.values()))
    weights = tuple(followed(taken.folder / name) for name in names)
    return ModelFolder(config, weights, index, schedule, chosen, taken.place)
