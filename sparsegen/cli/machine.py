"""Commands about this machine: which backends can run here, and their kernels made ready."""

from __future__ import annotations

import time

from sparsegen.backends import backend_status, default_backend, get_backend

from .console import out, print_table
from .options import BackendOption


def backends() -> None:
    """List the backends and whether each can run here."""
    default = default_backend()
    available = {name: "available" + ", the default" * (name == default) for name in backend_status()}
    print_table("backends", [(name, why or available[name]) for name, why in backend_status().items()])


def warmup(backend: BackendOption = None) -> None:
    """Compile a backend's kernels now, for images and installers, so that the first edit need not wait for them."""
    engine, start = get_backend(backend), time.perf_counter()
    ready = engine.warm_up()
    out.print(f"{engine.name}: {ready} ({time.perf_counter() - start:.1f} s)", soft_wrap=True)
