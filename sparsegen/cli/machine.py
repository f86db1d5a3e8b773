"""Commands about this machine: the backends that can run here, the compilation of their kernels, the version."""

from __future__ import annotations

import platform
import time
from typing import Annotated

import typer

from sparsegen.backends import backend_status, default_backend, get_backend, warm_up

from .. import __version__
from .console import out, print_table


def backends() -> None:
    """List the backends and whether each can run here."""
    default = default_backend()
    available = {name: "available" + ", the default" * (name == default) for name in backend_status()}
    print_table("backends", [(name, why or available[name]) for name, why in backend_status().items()])


def warmup(
    backend: Annotated[str, typer.Option("--backend", help="Whose kernels.")] = "numba",
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            help="For cupy: the cards' architecture, such as sm_90; no card need be here.",
            show_default="this machine's card",
        ),
    ] = None,
) -> None:
    """Compile a backend's kernels now, for images and installers, so that the first edit need not wait for them.

    Prints the folder that keeps them (the user's cache folder, or SPARSEGEN_CACHE_DIR; if that cannot be written,
    one of the user's among temporary files), and fails if the next process would not find them.
    """
    start = time.perf_counter()
    ready = warm_up(backend, architecture=arch)
    out.print(f"{backend}: {ready} ({time.perf_counter() - start:.1f} s)", soft_wrap=True)


def print_version() -> None:
    """Print the version, Python's version and the default backend."""
    name = default_backend()
    count: int | None = getattr(get_backend(name), "threads", None)
    threads = "" if count is None else f", {count} thread{'s' * (count != 1)}"
    out.print(
        f"sparsegen {__version__} (Python {platform.python_version()}, backend {name}{threads})",
        soft_wrap=True,
    )
