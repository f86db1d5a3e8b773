"""Warnings about what is taken otherwise than it may have been meant: they name the user's own line."""

from __future__ import annotations

import sys
import warnings

from sparsegen.backends.interface import Host


def warn(message: str) -> None:
    """A UserWarning at the line that called the package, however deep inside this is found."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _inside(frame.f_globals):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _inside(variables: dict[str, object]) -> bool:
    """Whether these are the globals of a module of the package."""
    return str(variables.get("__name__")).partition(".")[0] == "sparsegen"


def warn_of_unit_range(picture: Host) -> None:
    """Warn where a picture of floats in [-1, 1] looks like one in [0, 1]: it varies, and nothing is negative.

    A picture of one value does not vary and is taken as it is.
    """
    least = picture.min()
    if 0 <= least < picture.max():
        warn(
            "no value of the picture is negative; floats are taken as [-1, 1], from black to white. "
            "Give 2 * picture - 1 where yours are in [0, 1], or uint8"
        )
