"""The models in the package: a name comes in; its file, settings and example edits come out.

Paths and plain values only: the engine builds the model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Labels:
    """Class names and colours of a label map, both indexed by label."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Edit:
    """An edited label map, or an image with strokes painted over it: a PNG file."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Example:
    """An original label map (a PNG file with a palette) or image, and its edits."""

    original: Path
    caption: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class BuiltIn:
    """A model of the package."""

    name: str
    checkpoint: Path
    """A file, or the folder of several models."""
    examples: tuple[Example, ...]
    """The first is used by the demo."""
    labels: Labels | None = None
    """For a model of label maps; None: its input is an image."""
    defaults: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Conditions of a run that the user does not give: `z`."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """For a diffusion model: its default `steps`, `noise_level`, `sampler`, `eta`, `schedule`."""
    size: tuple[int, int] | None = None
    """For a diffusion model: the (height, width) that it was trained on."""
    paper: dict[str, Any] = field(default_factory=dict)
    """Settings of the `paper` policy that differ from the family's: a small model may need another `least_size`."""


def names() -> list[str]:
    """Names of the built-in models: files of one model, and folders of several, as diffusers lays them out."""
    return sorted(
        [path.stem for path in FOLDER.glob("*.safetensors")]
        + [path.parent.name for path in FOLDER.glob("*/model_index.json")]
    )


def get(name: str) -> BuiltIn | None:
    """The built-in model of that name, or None."""
    if name not in names():
        return None
    folder = FOLDER / name
    described = _read(folder / "examples.json")
    examples = tuple(
        Example(
            folder / example["original"],
            example["caption"],
            tuple(Edit(folder / edit["file"], edit["caption"]) for edit in example["edits"]),
        )
        for example in sorted(described["examples"], key=lambda example: not example["demo"])
    )
    pipeline = (folder / "model_index.json").exists()
    known = BuiltIn(name, folder if pipeline else FOLDER / f"{name}.safetensors", examples)
    if pipeline or described["kind"] == "strokes":
        settings = _read(folder / "settings.json")
        size = tuple(settings["size"]) if "size" in settings else None
        return replace(known, sampling=settings["sampling"], paper=settings["paper"], size=size)
    maps = _read(FOLDER / "labels.json")
    palette = tuple((r, g, b) for r, g, b in maps["palette"])
    return replace(
        known,
        labels=Labels(tuple(maps["names"]), palette),
        defaults={"z": tuple(maps["style"]["default"])},
    )


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found
