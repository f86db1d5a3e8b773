"""Profiles as data: profiles by role come in, values for JSON and rows for CSV go out, every layer of its own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from .costs import LayerCost
from .report import Profile
from .roofline import Machine


def described(profiles: Mapping[str, Profile], machine: Machine | None = None) -> dict[str, Any]:
    """Profiles in plain values for JSON; numbers are sums over the steps, in MACs, bytes and milliseconds."""
    found: dict[str, Any] = {"models": {role: _profile(each, machine) for role, each in profiles.items()}}
    if machine is not None:
        found["machine"] = {name: getattr(machine, name) for name in ("multiply_adds", "bandwidth", "ridge")}
    return found


def csv_text(profiles: Mapping[str, Profile], machine: Machine | None = None) -> str:
    """A row for each layer, as `described` has it, after a row of names; the first column is the model's role."""
    rows = [{"model": role, **row} for role, each in profiles.items() for row in _layers(each, machine)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _profile(profile: Profile, machine: Machine | None) -> dict[str, Any]:
    names = [each.name for each in fields(profile) if each.name not in ("layers", "rest")]
    sums = ("macs_dense", "macs_paper", "macs", "multiplied", "canvas_bytes", "journal_bytes", "weight_bytes")
    return {
        **{name: getattr(profile, name) for name in (*names, *sums)},
        "rest": {"multiplied": profile.rest.multiplied, "moved_bytes": profile.rest.moved},
        "layers": [*_layers(profile, machine)],
    }


def _layers(profile: Profile, machine: Machine | None) -> Iterator[dict[str, Any]]:
    for layer in profile.layers:
        row = {each.name: getattr(layer, each.name) for each in fields(LayerCost) if each.name != "work"}
        work = layer.work
        row |= {
            "multiplied": work.multiplied,
            "read_bytes": work.read,
            "written_bytes": work.written,
            "moved_weight_bytes": work.weights,
        }
        least, bound = (None, None) if machine is None else machine.bound(work)
        yield {**row, "bound": bound, "least_milliseconds": least}
