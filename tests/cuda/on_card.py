"""`make test-gpu`: on a machine with an NVIDIA card, the suites on the card, then under compute-sanitizer.

First each PTX wrapper against its meaning on the CPU, on which the emulated tests rest; then the suites, unchanged,
with the `cupy` backend; then compute-sanitizer's memcheck, racecheck and initcheck on the contract suite. All parts
run, whatever fails before them; the last line says which failed. `python -m tests.cuda.on_card suites` runs one part.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsegen.backends import backend_status, get_backend

ON_CARD = "cupy and not CPU"
"""The tests of the backend on the card, without the backend whose kernels run on a CPU."""
SUITES = [
    "tests/backends",
    "tests/engine",
    "tests/editing",
    "tests/pipelines",
    "tests/models",
    "tests/diffusion",
]
CONTRACT = "tests/backends/test_backend_contract.py"
TOOLS = ("memcheck", "racecheck", "initcheck")
PACKAGE = (
    "compute-sanitizer is not here: it comes with the CUDA toolkit, or pip install nvidia-cuda-sanitizer-api"
)


def sanitizer() -> str | None:
    """The path of compute-sanitizer: on the path, in the toolkit, or in a package of this Python."""
    toolkit = Path(os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda") / "bin"
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=str(toolkit))
    if found is None:
        for folder in map(Path, sys.path):
            for path in sorted(folder.glob("nvidia/**/compute-sanitizer*")):
                if path.is_file() and path.stem == "compute-sanitizer":
                    return str(path)
    return found


def pytest_command(*arguments: str) -> list[str]:
    """A command that runs tests, and names each that fails at once."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "tests.cuda.failures_at_once", *arguments]


def parts(tool: str | None) -> dict[str, list[str]]:
    """Name -> command. `tool`: compute-sanitizer's path; None: it is not here."""
    card = ["tests/cuda/test_ptx.py", "tests/cuda/test_card.py", "tests/cuda/test_compile.py"]
    commands = {
        "instructions": pytest_command(*(each for each in card if Path(each).exists())),
        "suites": pytest_command(*(each for each in SUITES if Path(each).exists()), "-k", ON_CARD),
    }
    if tool is not None:
        # each array in memory of its own: in a pool, what is past its end is another array
        contract = pytest_command("-x", "-p", "tests.cuda.without_pool", CONTRACT, "-k", ON_CARD)
        for name in TOOLS:
            commands[name] = [tool, "--tool", name, "--error-exitcode", "1", *contract]
    return commands


def main(arguments: Sequence[str]) -> int:
    """Run every part, or those that are named; returns the exit code."""
    why = backend_status()["cupy"]
    if why is not None:
        print(f"nothing to test on: {why}")
        return 2
    print(get_backend("cupy"), flush=True)
    tool = sanitizer()
    failed = []
    for name, command in parts(tool).items():
        if arguments and name not in arguments:
            continue
        print(f"\n== {name}: {' '.join(command)}", flush=True)
        if subprocess.run(command).returncode:
            failed.append(name)
    if tool is None:
        print(f"\n{PACKAGE}")
        failed += TOOLS if not arguments else []
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
