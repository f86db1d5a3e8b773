"""Folders of edits: a folder comes in; originals, the edited copies of each, their masks and true images come out.

Two layouts, both as SIGE publishes its sets (github.com/lmxyy/sige, diffusion/README.md and gaugan/README.md):

- Images or label maps (`church_outdoor_sdedit`): `original/NAME.png`, `edited/NAME.png`, `masks/NAME.npy`,
  `gt/NAME.png`, the same NAME in each. Here an original may have several edits too: `edited/NAME/*.png`, with
  `masks/NAME/*.npy`. `masks` and `gt` may be missing; PNGs may be .npy, masks PNGs.
- Cityscapes (`cityscapes-edit`): `meta.csv`, a line `gt,synthetic` for each pair after a heading; `gt_labels`,
  `gt_instances`, `synthetic_labels`, `synthetic_instances` and `masks` of .npy `[H, W]`, the masks by the synthetic
  map's name; `images` of the ground truth. Each pair is edited in both directions: NAME_synthetic, NAME_gt.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from sparsegen.errors import InputError

SUFFIXES = (".png", ".npy", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Input:
    """The files of an original, or of an edited copy."""

    path: Path
    """An image, a label map, or either as .npy."""
    instances: Path | None = None
    """Of a label map: which thing each pixel belongs to."""


@dataclass(frozen=True)
class Edit:
    """An edited copy of an original."""

    name: str
    """Unlike that of every other edit of the folder."""
    edited: Input
    mask: Path | None = None
    """Where it was edited; None: where the inputs differ."""
    truth: Path | None = None
    """The real image of the edited copy, if there is one."""


@dataclass(frozen=True)
class Original:
    """An original, and its edits: work for one session."""

    original: Input
    edits: tuple[Edit, ...]


@dataclass
class Folder:
    """What a folder holds, and a line for each file that is missing or superfluous."""

    originals: list[Original] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def edits(self) -> int:
        return sum(len(original.edits) for original in self.originals)

    def first(self, count: int) -> Folder:
        """The folder with that many edits at most."""
        kept: list[Original] = []
        for each in self.originals:
            some = each.edits[: count - sum(len(one.edits) for one in kept)]
            if some:
                kept.append(replace(each, edits=some))
        return Folder(kept, self.problems)


def read_folder(folder: Path, *, both_ways: bool = True) -> Folder:
    """The edits of a folder in either layout; `both_ways` False: of Cityscapes only those that end in a synthetic map.

    Raises
    ------
    InputError
        The folder has neither layout, or no edit that is whole (the first file that is missing is named).
    """
    if (folder / "meta.csv").is_file():
        found = _cityscapes(folder, both_ways)
    elif (folder / "original").is_dir() and (folder / "edited").is_dir():
        found = _pairs(folder)
    else:
        raise InputError(
            f"{folder}: expected the folders original and edited (and masks), or meta.csv as in SIGE's cityscapes-edit"
        )
    if not found.originals:
        why = f": {found.problems[0]}" if found.problems else ""
        raise InputError(f"{folder}: no edit to measure{why}")
    return found


# -- original, edited, masks -----------------------------------------------------------------------------


def _pairs(folder: Path) -> Folder:
    found = Folder()
    files = {kind: _by_name(folder / kind, found) for kind in ("original", "edited", "masks", "gt")}
    originals, edited, masks, truths = files.values()
    grouped: dict[str, list[Edit]] = {name: [] for name in originals}
    for name, path in edited.items():
        of = name if name in originals else name.rpartition("/")[0]
        if of not in originals:
            found.problems.append(f"{path}: there is no {folder / 'original' / name}.png; skipped")
        elif masks and name not in masks:
            found.problems.append(f"{path}: there is no {folder / 'masks' / name}.npy; skipped")
        else:
            grouped[of].append(Edit(name, Input(path), masks.get(name), truths.get(name)))
    for name, edits in grouped.items():
        if edits:
            found.originals.append(Original(Input(originals[name]), tuple(edits)))
        elif not any(of == name or of.startswith(f"{name}/") for of in edited):
            found.problems.append(f"{originals[name]}: there is no {folder / 'edited' / name}.png; skipped")
    return found


def _by_name(folder: Path, found: Folder) -> dict[str, Path]:
    """Name without suffix -> file, of a folder and of the folders in it; of two files of one name, the first."""
    files: dict[str, Path] = {}
    for path in sorted(_files(folder)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            found.problems.append(f"{path}: {files[name].name} has the same name; skipped")
        else:
            files[name] = path
    return files


def _files(folder: Path) -> Iterator[Path]:
    for pattern in ("*", "*/*"):
        for path in folder.glob(pattern):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.suffix.lower() in SUFFIXES and not hidden:
                yield path


# -- Cityscapes ------------------------------------------------------------------------------------------


def _cityscapes(folder: Path, both_ways: bool) -> Folder:
    found, meta = Folder(), folder / "meta.csv"
    grouped: dict[Input, list[Edit]] = {}
    seen: set[str] = set()
    with meta.open(newline="", encoding="utf-8") as lines:
        for number, cells in enumerate(csv.reader(lines), start=1):
            if number == 1 or not any(cells):
                continue
            if len(cells) < 2 or not all(cell.strip() for cell in cells[:2]):
                found.problems.append(
                    f"{meta}, line {number}: expected gt,synthetic, not {','.join(cells)}; skipped"
                )
                continue
            real, synthetic = (cell.strip() for cell in cells[:2])
            if synthetic in seen:
                found.problems.append(f"{meta}, line {number}: {synthetic} is there already; skipped")
                continue
            seen.add(synthetic)
            maps = {
                kind: Input(folder / f"{kind}_labels/{name}.npy", folder / f"{kind}_instances/{name}.npy")
                for kind, name in (("gt", real), ("synthetic", synthetic))
            }
            mask, truth = folder / f"masks/{synthetic}.npy", folder / f"images/{real}.png"
            needed = [path for each in maps.values() for path in (each.path, each.instances)]
            missing = next(
                (path for path in [*needed, mask] if path is not None and not path.is_file()), None
            )
            if missing is not None:
                found.problems.append(f"{meta}, line {number}: there is no {missing}; skipped")
                continue
            for one, other in (("gt", "synthetic"), ("synthetic", "gt"))[: 2 if both_ways else 1]:
                shown = truth if other == "gt" and truth.is_file() else None
                edit = Edit(f"{synthetic}_{other}", maps[other], mask, shown)
                grouped.setdefault(maps[one], []).append(edit)
    found.originals = [Original(original, tuple(edits)) for original, edits in grouped.items()]
    return found
