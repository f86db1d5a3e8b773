"""What every kernel takes of a multiprocessor, for every architecture, as NVRTC reports it; and a table of that.

`python -m tests.cuda.usage` prints what differs from the table, with `--write` it writes the table anew. Files compile
in several processes; what they took is kept among temporary files, by a digest of everything that it depends on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path

from sparsegen.backends.cupy_cuda import compile as compiler
from sparsegen.backends.cupy_cuda import sources
from sparsegen.backends.cupy_cuda.compile import ARCHITECTURES, Usage

TABLE = Path(__file__).with_name("usage.json")


def version() -> str:
    """NVRTC's."""
    return ".".join(map(str, compiler.nvrtc().getVersion()))


def of_file(file: str, architecture: str) -> dict[str, Usage]:
    """Of each kernel of a file. Raises BackendError: it does not compile."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"sparsegen-usage-{user}"
    path = folder / f"{file}-{architecture}-{compiler.key(file, architecture)[:16]}.json"
    if path.exists():
        return {name: Usage(**each) for name, each in json.loads(path.read_text("utf-8")).items()}
    remembers = compiler.nvrtc().getVersion() >= (12, 9)  # cubins, from then on, but not what they take
    _, log = compiler.compiled(file, architecture, *["--no-cache"] * remembers)
    found = compiler.usage(log)
    folder.mkdir(mode=0o700, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps({name: asdict(each) for name, each in found.items()}), "utf-8")
    part.replace(path)
    return found


@cache
def measured() -> Mapping[str, Mapping[str, Usage]]:
    """Architecture -> kernel -> usage, of all files. Raises BackendError: one does not compile."""
    work = [(file, architecture) for file in sources.files() for architecture in ARCHITECTURES]
    found: dict[str, dict[str, Usage]] = {architecture: {} for architecture in ARCHITECTURES}
    # NVRTC holds a lock of its own while it compiles, so processes; the tests' threads forbid a fork
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for (_, architecture), of in zip(work, pool.map(of_file, *zip(*work, strict=True)), strict=True):
            found[architecture].update(of)
    return found


def table_of(usage: Mapping[str, Mapping[str, Usage]]) -> dict[str, dict[str, list[int]]]:
    """Kernel -> architecture -> registers and bytes of static shared memory."""
    return {
        kernel: {
            each: [usage[each][kernel].registers, usage[each][kernel].shared_bytes] for each in ARCHITECTURES
        }
        for kernel in sorted(sources.kernels())
    }


def written() -> tuple[str, dict[str, dict[str, list[int]]]]:
    """The table in the repository: NVRTC's version, and what `table_of` gave."""
    table = json.loads(TABLE.read_text("utf-8"))
    return table["nvrtc"], table["registers, shared bytes"]


def write() -> None:
    """Write the table."""
    rows = [f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in table_of(measured()).items()]
    text = ",\n".join(rows)
    TABLE.write_text(
        f'{{\n  "nvrtc": {json.dumps(version())},\n  "registers, shared bytes": {{\n{text}\n  }}\n}}\n',
        "utf-8",
    )


def differences() -> list[str]:
    """A line for each kernel that takes something else than the table has."""
    _, pinned = written()
    now = table_of(measured())
    return [
        f"{kernel}: {pinned.get(kernel, 'not in the table')} -> {now.get(kernel, 'no such kernel')}"
        for kernel in sorted(pinned.keys() | now.keys())
        if pinned.get(kernel) != now.get(kernel)
    ]


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    else:
        print("\n".join(differences()) or "as in the table")
