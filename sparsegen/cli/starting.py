"""The start of a process: modules are imported within `starting`, and Python never looks through them for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def starting() -> Iterator[None]:
    """Collect no garbage within the context, and never any of what is there when it ends, until `gc.unfreeze()`.

    Imported modules stay, and have the most of a process's objects: a tenth of a short command's time would go into
    looking at them again and again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
