"""The start of a process: modules are imported within `starting`, and are never searched for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def starting() -> Iterator[None]:
    """Collect no garbage within the context; what exists when it ends is not searched either, until `gc.unfreeze()`.

    Imported modules stay, and have the most of a process's objects: a tenth of a short command's time would go into
    looking at them again and again.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
