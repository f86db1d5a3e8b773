"""The models that come with the package: a name comes in, its file, labels and example edits come out.

NumPy arrays and paths only; what a network is, the engine knows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
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
    """An edited label map, a PNG file with a palette."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Example:
    """An original label map, a PNG file with a palette, and edits of it."""

    original: Path
    caption: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class BuiltIn:
    """A model of the package."""

    name: str
    checkpoint: Path
    labels: Labels
    examples: tuple[Example, ...]
    """The first is the demo's."""
    defaults: dict[str, tuple[float, ...]]
    """What the network is given where the user says nothing: `z`."""


def names() -> list[str]:
    """Names of the built-in models."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def get(name: str) -> BuiltIn | None:
    """The built-in model of that name, or None."""
    checkpoint = FOLDER / f"{name}.safetensors"
    if name not in names():
        return None
    folder = FOLDER / name
    described: dict[str, Any] = json.loads((FOLDER / "labels.json").read_text("utf-8"))
    examples: list[Any] = json.loads((folder / "examples.json").read_text("utf-8"))["examples"]
    return BuiltIn(
        name,
        checkpoint,
        Labels(tuple(described["names"]), tuple((r, g, b) for r, g, b in described["palette"])),
        tuple(
            Example(
                folder / example["original"],
                example["caption"],
                tuple(Edit(folder / edit["file"], edit["caption"]) for edit in example["edits"]),
            )
            for example in sorted(examples, key=lambda example: not example["demo"])
        ),
        {"z": tuple(described["style"]["default"])},
    )
