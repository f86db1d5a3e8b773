"""A comparison's results: tables of text, JSON and an HTML page come out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.stats import counted
from ..page import Section, page, table, text
from .causes import Cause
from .difference import Difference
from .growth import Line, growth

GROWTH = 10
"""How far rounding may grow from layer to layer: the output's error may be so many times the tolerance."""
MOST_CAUSES = 8
"""Causes that a table lists; JSON has all."""


@dataclass(frozen=True)
class Layer:
    """One layer against the reference."""

    path: str
    shape: tuple[int, ...]
    """`(N, H, W, C)`; of rows `(1 or N, C)`."""
    inherited: Difference | None
    """Of two networks that both ran from the input; None: the reference has no values of it."""
    own: Difference | None
    """Of this layer alone, computed from the reference's values."""
    edited: tuple[Difference, Difference] | None
    """Of a sparse edit against the reference's dense run of the edited input: inside and outside of the mask."""
    missing: str
    """Why the reference has no values of it; else ""."""
    ours: tuple[str, ...]
    """Canvases that it reads of which the reference has no values: for its own error it read the model's."""
    remark: str = ""
    """What the reference's module does otherwise than the layer."""
    module: str = ""
    """The name of the reference's module that computes it, the first of several; empty: no module does alone."""

    @property
    def named(self) -> str:
        """The layer's path, and the name of its module where that is another."""
        other = self.module and self.module != self.path
        return f"{self.path} ({self.module} in PyTorch)" if other else self.path


@dataclass(frozen=True)
class Edit:
    """A sparse edit against the reference's dense run of the edited input."""

    policy: str
    area: float
    """The share of the input's pixels that changed."""
    inside: Difference
    """Of the output, inside of the mask of changed pixels."""
    outside: Difference
    layers: Mapping[str, tuple[Difference, Difference]]


@dataclass(frozen=True, repr=False)
class Parity:
    """A model against a reference, layer by layer. `print(parity)` shows the table."""

    model: str
    reference: str
    """What made the reference."""
    backend: str
    tolerance: float
    """The relative error up to which a layer's own difference is rounding."""
    notes: tuple[str, ...]
    """Settings that differ from those beside which the reference was recorded."""
    other_weights: tuple[str, ...]
    """Parameters that are others than the reference's, as far as fingerprints tell."""
    layers: tuple[Layer, ...]
    """In the order in which they are computed."""
    output: Difference
    """Of the dense run."""
    causes: tuple[Cause, ...]
    """Hypotheses about the first layer that differs on its own, tested; those that explain it first."""
    edit: Edit | None = None

    @property
    def divergent(self) -> tuple[Layer, ...]:
        """The layers that differ on their own by more than the tolerance."""
        return tuple(
            each for each in self.layers if each.own is not None and each.own.relative > self.tolerance
        )

    @property
    def first_divergent(self) -> Layer | None:
        """The first of them; None: no layer differs on its own."""
        return next(iter(self.divergent), None)

    @property
    def agrees(self) -> bool:
        """Whether no layer differs on its own, and the output by at most `GROWTH` times the tolerance."""
        return not self.divergent and self.output.relative <= GROWTH * self.tolerance

    # -- text --------------------------------------------------------------------------------------------

    def verdict(self) -> str:
        """The result in sentences."""
        first, compared = self.first_divergent, [each for each in self.layers if each.inherited is not None]
        if first is None:
            largest = max((each.own.relative for each in compared if each.own is not None), default=0.0)
            lines = [
                f"{len(compared)} layers agree, each on its own within {largest:.1e} of its largest value; "
                f"the output within {self.output.relative:.1e}."
            ]
            if not self.agrees:
                lines.append("No layer differs alone: the error of the output has grown over the depth.")
        else:
            own = first.own
            assert own is not None
            lines = [
                f"{first.named} is the first layer that differs on its own: by {own.relative:.1e} of its largest "
                f"value, at {_where(own)}. {len(self.divergent)} of {len(compared)} layers do."
            ]
            if first.remark:
                lines.append(f"There, {first.remark}.")
            explained = [each for each in self.causes if each.explains]
            if explained:
                best = explained[0]
                lines.append(f"Cause: {best.hypothesis} (then {best.after:.1e}).")
            elif self.causes:
                best = self.causes[0]
                lines.append(f"No cause was found; nearest: {best.hypothesis} (then {best.after:.1e}).")
        missing = [each for each in self.layers if each.missing]
        if missing:
            lines.append(
                f"Without counterpart: {counted(len(missing), 'layer')}, the first {missing[0].path} "
                f"({missing[0].missing})."
            )
        return " ".join(lines)

    def table(self) -> str:
        """Every layer as a line of text.

        `inherited`, `own` and those of an edit are relative to the layer's largest value. Max, mean, cosine and the
        worst place (sample, row, column, channel; tile: sample, tile row, tile column) are of the own error.
        """
        width = max((len(each.path) for each in self.layers), default=5)
        head = f"  {'layer':<{width}}  inherited  own      max      mean     cosine     worst          tile"
        if self.edit is not None:
            head += "       edit: inside, outside"
        return "\n".join([head, *self._lines(width), *self._legend()])

    def _legend(self) -> list[str]:
        """What the marks of a table mean."""
        marks = {
            "→ the first that differs on its own": bool(self.divergent),
            "! another": len(self.divergent) > 1,
            "~ reads values of the model where PyTorch has none": any(each.ours for each in self.layers),
        }
        return [f"  ({'; '.join(mark for mark, there in marks.items() if there)})"] * any(marks.values())

    def _lines(self, width: int) -> Iterator[str]:
        first = self.first_divergent
        for each in self.layers:
            mark = "→" if each is first else "!" if each in self.divergent else "~" if each.ours else " "
            if each.inherited is None or each.own is None:
                yield f"{mark} {each.path:<{width}}  {each.missing}"
                continue
            own, tile = each.own, ", ".join(map(str, each.own.tile))
            line = (
                f"{mark} {each.path:<{width}}  {each.inherited.relative:<9.1e}  {own.relative:.1e}  {own.largest:.1e}  "
                f"{own.mean:.1e}  {own.cosine:9.7f}  {', '.join(map(str, own.worst)):<13}  {tile:<8}"
            )
            if each.edited is not None:
                line += f"  {each.edited[0].relative:.1e}, {each.edited[1].relative:.1e}"
            yield line.rstrip()

    def __str__(self) -> str:
        lines = [f"{self.model} on {self.backend}, against {self.reference}"]
        lines += [f"note: {each}" for each in self._notes()]
        lines += ["", self.table(), "", f"output, dense: {self.output.relative:.1e} at {_place(self.output)}"]
        if self.edit is not None:
            edit = self.edit
            lines.append(
                f"output, edit of {edit.area:.1%} under {edit.policy}: {edit.inside.relative:.1e} inside of the mask, "
                f"{edit.outside.relative:.1e} outside"
            )
        if self.causes:
            lines += ["", f"causes of {self.causes[0].layer}, tested one by one: its error under each"]
            lines += [
                f"  {each.after:7.1e}  {each.kind}: {each.hypothesis}" + "  ← explains it" * each.explains
                for each in self.causes[:MOST_CAUSES]
            ]
        return "\n".join([*lines, "", self.verdict()])

    def _notes(self) -> list[str]:
        """What is known beside the values."""
        others = self.other_weights
        if not others:
            return list(self.notes)
        more = f" and {len(others) - 2} more" if len(others) > 2 else ""
        return [*self.notes, f"weights that are others than the reference's: {', '.join(others[:2])}{more}"]

    def __repr__(self) -> str:
        return f"<Parity: {self.verdict()}>"

    # -- files -------------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """Everything in plain values; a difference that is infinite is null."""
        return {
            "model": self.model,
            "reference": self.reference,
            "backend": self.backend,
            "tolerance": self.tolerance,
            "agrees": self.agrees,
            "verdict": self.verdict(),
            "notes": list(self.notes),
            "other_weights": list(self.other_weights),
            "first_divergent": None if self.first_divergent is None else self.first_divergent.path,
            "output": _plain(self.output),
            "layers": [
                {
                    "path": each.path,
                    "module": each.module,
                    "shape": list(each.shape),
                    "inherited": _plain(each.inherited),
                    "own": _plain(each.own),
                    "edited": None
                    if each.edited is None
                    else {"inside": _plain(each.edited[0]), "outside": _plain(each.edited[1])},
                    "missing": each.missing,
                    "remark": each.remark,
                    "read_ours": list(each.ours),
                }
                for each in self.layers
            ],
            "causes": [
                {
                    "layer": each.layer,
                    "kind": each.kind,
                    "hypothesis": each.hypothesis,
                    "before": _finite(each.before),
                    "after": _finite(each.after),
                    "explains": each.explains,
                }
                for each in self.causes
            ],
            "edit": None
            if self.edit is None
            else {
                "policy": self.edit.policy,
                "area": self.edit.area,
                "inside": _plain(self.edit.inside),
                "outside": _plain(self.edit.outside),
            },
        }

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write `as_json` to a file."""
        Path(path).write_text(json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n", "utf-8")

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write a self-contained page: the verdict, the growth of the error over the depth, every layer, the causes."""
        Path(path).write_text(self.html(), "utf-8")

    def html(self) -> str:
        """The page that `write_html` writes."""
        notes = "".join(f"<p>Note: {text(each)}.</p>" for each in self._notes())
        made = f"<p>{text(self.model)} on {text(self.backend)}, against {text(self.reference)}.</p>"
        sections = [
            Section("Verdict", f"<p><strong>{text(self.verdict())}</strong></p>{made}{notes}"),
            Section("Growth over the depth", self._curve()),
        ]
        if self.edit is not None:
            rows = [
                [where, f"{each.relative:.1e}", f"{each.largest:.1e}", f"{each.mean:.1e}", _place(each)]
                for where, each in (
                    ("dense", self.output),
                    ("edit, inside of the mask", self.edit.inside),
                    ("edit, outside", self.edit.outside),
                )
            ]
            caption = f"The output; an edit of {self.edit.area:.1%} under {self.edit.policy}"
            head = ["output", "relative", "largest", "mean", "worst at"]
            sections.append(Section("Dense and sparse", table(caption, head, rows, numbers=(1, 2, 3))))
        if self.causes:
            rows = [
                [
                    each.kind,
                    each.hypothesis,
                    f"{each.before:.1e}",
                    f"{each.after:.1e}",
                    "yes" if each.explains else "",
                ]
                for each in self.causes
            ]
            marked = [i for i, each in enumerate(self.causes) if each.explains]
            head = ["cause", "hypothesis", "error", "under it", "explains"]
            caption = f"Hypotheses about {self.causes[0].layer}"
            sections.append(Section("Causes", table(caption, head, rows, numbers=(2, 3), marked=marked)))
        sections.append(Section("Layer by layer", self._layer_table()))
        return page("Parity, layer by layer", sections, self.as_json())

    def _layer_table(self) -> str:
        head = [
            "layer",
            "in PyTorch",
            "inherited",
            "own",
            "own, largest",
            "own, mean",
            "cosine",
            "worst at",
            "tile",
            "values there",
        ]
        if self.edit is not None:
            head += ["edit, inside", "edit, outside"]
        rows: list[list[str]] = []
        for each in self.layers:
            if each.inherited is None or each.own is None:
                rows.append([each.path, each.module, each.missing, *[""] * (len(head) - 3)])
                continue
            own = each.own
            row = [each.path, each.module, f"{each.inherited.relative:.1e}", f"{own.relative:.1e}"]
            row += [
                f"{own.largest:.1e}",
                f"{own.mean:.1e}",
                f"{own.cosine:.7f}",
                _place(own),
                ", ".join(map(str, own.tile)),
            ]
            row.append(f"{own.ours:.6g} for {own.theirs:.6g}")
            if self.edit is not None:
                row += ["", ""] if each.edited is None else [f"{part.relative:.1e}" for part in each.edited]
            rows.append(row)
        marked = [i for i, each in enumerate(self.layers) if each is self.first_divergent]
        caption = "Each layer from the input and on its own, relative to its largest value; bold: the first to differ"
        return table(caption, head, rows, numbers=(2, 3, 4, 5, 6), marked=marked)

    def _curve(self) -> str:
        """How the error grows over the depth."""
        shown = [(each, each.inherited, each.own) for each in self.layers if each.inherited and each.own]
        if not shown:
            return "<p>No layer was compared.</p>"
        layers = [each for each, _, _ in shown]
        lines = [
            Line("inherited", [inherited.relative for _, inherited, _ in shown]),
            Line("own", [own.relative for _, _, own in shown]),
        ]
        if self.edit is not None:
            for side, where in enumerate(("inside", "outside")):
                values = [each.edited[side].relative if each.edited else None for each in layers]
                lines.append(Line(f"sparse edit, {where} of the mask", values))
        first = self.first_divergent
        marked = None if first is None or first.own is None else (layers.index(first), first.own.relative)
        return growth([each.path for each in layers], lines, tolerance=self.tolerance, marked=marked)


def _place(difference: Difference) -> str:
    return f"({', '.join(map(str, difference.worst))})"


def _where(difference: Difference) -> str:
    names = ("sample", "row", "column", "channel") if len(difference.worst) == 4 else ("sample", "channel")
    return ", ".join(f"{name} {number}" for name, number in zip(names, difference.worst, strict=False))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {
        "largest": _finite(difference.largest),
        "mean": _finite(difference.mean),
        "relative": _finite(difference.relative),
        "cosine": _finite(difference.cosine),
        "worst": list(difference.worst),
        "tile": list(difference.tile),
        "ours": _finite(difference.ours),
        "theirs": _finite(difference.theirs),
    }
