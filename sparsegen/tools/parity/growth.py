"""Errors of layers come in, an image of their growth over the depth comes out, readable without colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..page import text

LOW, HIGH = -9.0, 1.0
"""The powers of ten at the bottom and at the top."""
WIDTH, HEIGHT, LEFT = 720, 260, 60
"""Of the image, and of its scale, in pixels."""


@dataclass(frozen=True)
class Line:
    """The errors of layers in one respect."""

    name: str
    values: Sequence[float | None]
    """Relative, in the order of the layers; None: unknown."""


_DASHES = (("solid", ""), ("dashed", "8 4"), ("dash-dotted", "8 3 2 3"), ("finely dashed", "3 3"))
"""How lines are told apart: in words, and as SVG has it."""


def growth(
    names: Sequence[str], lines: Sequence[Line], *, tolerance: float, marked: tuple[int, float] | None = None
) -> str:
    """Relative errors of layers by name, as a figure of SVG; up to four lines.

    A circle lies at `marked`: the number of a layer and its error.
    """
    parts = []
    for power in range(int(LOW), int(HIGH) + 1, 2):
        _, y = _at(0, 10.0**power, 2)
        parts.append(_level(y, 'opacity=".25"'))
        parts.append(f'<text x="8" y="{y + 4}">1e{power}</text>')
    _, y = _at(0, tolerance, 2)
    parts.append(_level(y, 'stroke-dasharray="1 5" stroke-width="2"'))
    parts.append(f'<text x="{WIDTH - 90}" y="{y - 5}">tolerance</text>')
    for line, (_, dashes) in zip(lines, _DASHES, strict=False):
        places = [_at(i, each, len(names)) for i, each in enumerate(line.values) if each is not None]
        style = f' stroke-dasharray="{dashes}"' if dashes else ""
        points = " ".join(f"{x},{y}" for x, y in places)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="2"{style}/>'
        )
    if marked is not None:
        x, y = _at(*marked, len(names))
        parts.append(f'<circle cx="{x}" cy="{y}" r="6" fill="none" stroke="currentColor" stroke-width="3"/>')
    ends = f"{text(names[0])} → {text(names[-1])}"
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">{ends}</text>')
    title = f"Relative errors of {len(names)} layers, from the input (left) to the output"
    legend = [f"{word}: {text(line.name)}" for line, (word, _) in zip(lines, _DASHES, strict=False)]
    legend += ["dotted: the tolerance"] + ["circle: the first layer that differs on its own"] * (
        marked is not None
    )
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
        f"<figcaption>{title}; {'; '.join(legend)}.</figcaption></figure>"
    )


def _at(number: int, value: float, count: int) -> tuple[float, float]:
    """The place of a value of one of `count` layers."""
    power = min(max(math.log10(value) if value > 0 else LOW, LOW), HIGH)
    x = LEFT + (WIDTH - LEFT - 10) * number / max(count - 1, 1)
    return round(x, 1), round(HEIGHT - 30 - (HEIGHT - 50) * (power - LOW) / (HIGH - LOW), 1)


def _level(y: float, style: str) -> str:
    return f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y}" y2="{y}" stroke="currentColor" {style}/>'
