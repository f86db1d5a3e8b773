"""Checks of values that are read wrongly without a trace: an array comes in, a UserWarning goes out."""

from __future__ import annotations

import warnings

from sparsegen.backends.interface import Host


def warn_of_unit_range(picture: Host, *, stacklevel: int = 1) -> None:
    """Warn where a picture of floats in [-1, 1] looks like one in [0, 1]: it varies, and nothing is negative.

    A picture of one value does not vary and is taken as it is. `stacklevel` 1 names the line that calls.
    """
    least = picture.min()
    if 0 <= least < picture.max():
        warnings.warn(
            "no value of the picture is negative; floats are taken as [-1, 1], from black to white. "
            "Give 2 * picture - 1 where yours are in [0, 1], or uint8",
            stacklevel=stacklevel + 1,
        )
