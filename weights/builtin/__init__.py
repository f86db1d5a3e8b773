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
    """The original's, if only a mask is given."""
    caption: str
    prompt: str | None = None
    """For a model of texts: the text that the edit follows."""
    mask: Path | None = None
    """A PNG file, white where the image is to be painted; None: where the strokes are."""


@dataclass(frozen=True)
class Example:
    """An original label map (a PNG file with a palette) or image, and its edits."""

    original: Path
    caption: str
    edits: tuple[Edit, ...]
    prompt: str | None = None
    """For a model of texts: the text that the whole image is changed towards."""


@dataclass(frozen=True)
class BuiltIn:
    """A model of the package."""

    name: str
    checkpoint: Path
    """A file, or the folder of several models."""
    examples: tuple[Example, ...]
    """The first is used by the demo."""
    prompts: tuple[str, ...] = ()
    """For a model of texts: texts to make images of."""
    labels: Labels | None = None
    """For a model of label maps; None: its input is an image."""
    defaults: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Conditions of a run that the user does not give: `z`."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """For a diffusion model: its default `steps`, `noise_level`, `sampler`, `eta`, `schedule`, `guidance`."""
    size: tuple[int, int] | None = None
    """For a diffusion model: the (height, width) that it was trained on; None: its file says it, if anything does."""
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
        _example(folder, example)
        for example in sorted(described["examples"], key=lambda example: not example["demo"])
    )
    pipeline = (folder / "model_index.json").exists()
    checkpoint = folder if pipeline else FOLDER / f"{name}.safetensors"
    known = BuiltIn(name, checkpoint, examples, tuple(described.get("prompts", ())))
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


def _example(folder: Path, given: dict[str, Any]) -> Example:
    """An example of `examples.json`; its files lie in the folder, or beside it: "../NAME/lake.png"."""

    def path(name: str) -> Path:
        return (folder / name).resolve()

    edits = tuple(
        Edit(
            path(edit.get("file", given["original"])),
            edit["caption"],
            edit.get("prompt"),
            path(edit["mask"]) if "mask" in edit else None,
        )
        for edit in given["edits"]
    )
    return Example(path(given["original"]), given["caption"], edits, given.get("prompt"))


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found
