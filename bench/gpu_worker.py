"""One engine on a card, in a process of its own: a task comes in, messages come out, a JSON line each.

    python -m bench.gpu_worker TASK      # as `gpu_cases.Task.written`
    python -m bench.gpu_worker probe ENGINE

Precision by precision: the outputs first, if they are to be checked, in a file that the message names; then the worker
reads a line, and times only after "go". `gpu.py` starts these.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.gpu_cases import Task
from sparsegen.backends.interface import BackendError

Message = dict[str, Any]


def work(task: Task, approved: Callable[[], bool]) -> Iterator[Message]:
    """The messages of a task; `approved()` is asked after each message that has outputs."""
    module = importlib.import_module(f"bench.gpu_{task.engine}")
    engine = module.GpuTorch(task) if task.engine == "torch" else module.GpuSparsegen(task)
    for precision in task.precisions:
        common = {"precision": precision, "version": engine.version}
        try:
            engine.open(precision)
        except BackendError as error:
            yield {**common, "what": precision, "refused": str(error)}
            continue
        if task.check:
            path = task.checkpoint.with_name(f"{task.engine}-{task.case}-{precision}.npz")
            np.savez(path, **engine.outputs())
            yield {**common, "outputs": str(path)}
            if not approved():
                continue
        for message in engine.timings():
            yield {**common, **message}
        if task.layers:
            for message in engine.layers():
                yield {**common, **message}


def probe(engine: str) -> Message:
    """Why an engine cannot compute on a card here ("missing"), or the card."""
    try:
        module = importlib.import_module(f"bench.gpu_{engine}")
    except ModuleNotFoundError as error:
        return {"missing": f"{error.name} is not installed: pip install 'sparsegen[bench]'"}
    why = module.missing()
    if why is not None:
        return {"missing": why}
    return module.card_figures() if engine == "sparsegen" else {}


def main() -> None:
    if sys.argv[1] == "probe":
        print(json.dumps(probe(sys.argv[2])))
        return
    for message in work(Task.read(sys.argv[1]), lambda: sys.stdin.readline().strip() == "go"):
        print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
