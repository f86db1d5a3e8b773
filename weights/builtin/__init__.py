"""The models that come with the package: a name comes in, its file, settings and example edits come out.

NumPy arrays and paths only; what a network is, the engine knows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Labels:
    """Class names and colours of a label map: position is the label."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Edit:
    """An edited label map, or a picture with strokes painted over it, a PNG file."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Example:
    """An original label map, a PNG file with a palette, or a picture; and edits of it."""

    original: Path
    caption: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class BuiltIn:
    """A model of the package."""

    name: str
    checkpoint: Path
    examples: tuple[Example, ...]
    """The first is the demo's."""
    labels: Labels | None = None
    """Of a model that paints label maps; None: it takes pictures."""
    defaults: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """What the network is given where the user says nothing: `z`."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Of a model that takes pictures: its own `steps`, `noise_level`, `sampler`, `eta`, `schedule`."""
    size: tuple[int, int] | None = None
    """Of a model that takes pictures: the (height, width) that it was trained on."""
    paper: dict[str, int] = field(default_factory=dict)
    """What is its own of the `paper` policy: a small network may want another `least_size`."""


def names() -> list[str]:
    """Names of the built-in models."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


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
    known = BuiltIn(name, FOLDER / f"{name}.safetensors", examples)
    if described["kind"] == "strokes":
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
