"""Checks of a user's input: a number comes in, or InputError if it is out of range; doubtful images get a warning."""

from __future__ import annotations

import math
import sys
import warnings
from contextlib import suppress
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host

from .errors import InputError

# -- numbers ---------------------------------------------------------------------------------------------


def is_whole(value: Any) -> bool:
    """Whether `value` is an integer, Python's or NumPy's; a bool is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is an integer or a float, Python's or NumPy's; a bool is none."""
    return is_whole(value) or isinstance(value, float | np.floating)


def whole_number(name: str, value: Any, least: int, most: int | None = None, *, unit: str = "") -> int:
    """`value` as a Python integer, if `least` <= value <= `most` (None: any).

    Raises
    ------
    InputError
        "`name` is …, expected a whole number `unit` from `least` to `most`", such as `unit` "of pixels".
    """
    if is_whole(value) and value >= least and (most is None or value <= most):
        return int(value)
    kind = f"a whole number {unit}".rstrip()
    bounds = f", {least} or more" if most is None else f" from {least} to {most}"
    raise InputError(f"{name} is {value!r}, expected {kind}{bounds}")


def in_range(
    name: str, value: Any, least: float, most: float = math.inf, *, ends: str = "[]", otherwise: str = ""
) -> float:
    """`value` as a Python float, if it is a number between `least` and `most`.

    `ends`, in interval notation, includes the bounds, "[]", or excludes them: "[)", "(]", "()". (An infinite `most`
    too: "[)" takes finite numbers alone.)

    Raises
    ------
    InputError
        "`name` is …, expected `otherwise` or a number …"; `otherwise` names other values that the caller takes.
    """
    if is_number(value):
        above = value >= least if ends[0] == "[" else value > least
        below = value <= most if ends[1] == "]" else value < most
        with suppress(OverflowError):  # an integer beyond every float
            if above and below:
                return float(value)
    if most == math.inf:
        bounds = f"a number, {least:g} or more" if ends[0] == "[" else f"a number above {least:g}"
    else:
        bounds = {
            "[]": f"a number from {least:g} to {most:g}",
            "()": f"a number between {least:g} and {most:g}",
            "[)": f"a number, {least:g} or more and less than {most:g}",
            "(]": f"a number above {least:g}, up to {most:g}",
        }[ends]
    raise InputError(f"{name} is {value!r}, expected {f'{otherwise} or ' * bool(otherwise)}{bounds}")


# -- warnings --------------------------------------------------------------------------------------------


def warn(message: str) -> None:
    """A UserWarning at the line of the user's code that called the package, however deep the call is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _inside(frame.f_globals):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _inside(variables: dict[str, object]) -> bool:
    """Whether `variables` are the globals of a module of the package."""
    return str(variables.get("__name__")).partition(".")[0] == "sparsegen"


def warn_of_unit_range(image: Host) -> None:
    """Warn if an image of floats in [-1, 1] looks like one in [0, 1]: it varies, and no value is negative.

    An image of one value does not vary and causes no warning.
    """
    least = image.min()
    if 0 <= least < image.max():
        warn(
            "no value of the image is negative; floats are expected in [-1, 1], from black to white. "
            "If its range is [0, 1], give 2 * image - 1, or uint8"
        )
