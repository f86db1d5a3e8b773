"""One engine in a separate process: a task comes in as options, one JSON line comes out.

    python -m bench.worker --engine torch-nhwc --task layers --repeats 5

Tasks: `layers`; of a big network (`--net`): `checkpoint` (PyTorch writes random weights), `gaugan`, `image` (PyTorch,
once); of a UNet (`--net`): `unet_checkpoint` (PyTorch), `unet` (steps), `memory` (of one step), `sdedit` (end to end);
of Stable Diffusion: `latent_folder` (PyTorch), `latent_step`, `latent_decoder`, `latent_session` (end to end); of
sparsegen alone: `landscape` (the built-in model), `default_threads`.
`contest.py` starts these.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import big, layers, unets
from bench.engines import BFLOAT16, OURS, RIVALS, STORED, Answer, Engine, Job, open_engine
from bench.harness import measure, peak_bytes
from bench.latent_cases import latent

OF_GAUGAN = ("checkpoint", "gaugan", "image")
OF_UNETS = ("unet_checkpoint", "unet", "memory", "sdedit")
OF_LATENT = ("latent_folder", "latent_step", "latent_decoder", "latent_session")
OF_OURS = ("landscape", "default_threads")
TASKS = ("layers", *OF_GAUGAN, *OF_UNETS, *OF_LATENT, *OF_OURS)
LAYER_SECONDS = 0.15
"""Seconds for which a layer is repeated at least: the smallest layers take less than a millisecond."""


def answer_layers(engine: Engine, job: Job) -> Answer:
    """Every layer's output as a check, or its milliseconds."""
    answer = Answer({}, {}, {})
    for case in layers(job.quick):
        layer = engine.convolution(case)
        if job.check:
            layer.call()
            answer.outputs[case.name] = layer.read()
        else:
            seconds = 0.0 if job.quick else LAYER_SECONDS
            timing = measure(layer.call, repeats=job.repeats, seconds=seconds)
            answer.timings[case.name] = list(timing.samples)
    answer.figures["peak_bytes"] = peak_bytes()
    return answer


def case_of(job: Job) -> Any:
    """The network of a task; None: the task has its own."""
    if job.task in OF_OURS:
        return None
    if job.task in OF_LATENT:
        return latent(job.quick)
    return unets(job.quick)[job.net] if job.task in OF_UNETS else big(job.quick, job.net or "gaugan")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=(*RIVALS, OURS, *BFLOAT16, *STORED), required=True)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--net", default="", help="the UNet of a UNet task, or the big network (gaugan)")
    parser.add_argument("--check", action="store_true", help="reply with outputs instead of timings")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--backend", help="sparsegen's backend")
    parser.add_argument("--policy", default="paper", help="sparsegen's policy of SDEdit")
    parser.add_argument("--storage", default="float32", help="how its caches are kept")
    parser.add_argument("--area", type=float, help="time a dense run and edits of this area alone")
    parser.add_argument(
        "--cores", type=int, help="limit the process to so many cores (where affinity exists)"
    )
    parser.add_argument("--checkpoint", type=Path, default=Path())
    parser.add_argument("--outputs", type=Path, help="where a check's arrays are written (.npz)")
    options = vars(parser.parse_args())
    outputs, cores = options.pop("outputs"), options.pop("cores")
    if cores is not None:  # before the engine starts threads, and sparsegen counts cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    job = Job(**options)

    engine = open_engine(job.engine, job.backend)
    if job.task == "layers":
        answer = answer_layers(engine, job)
    else:
        net = case_of(job)
        answer = getattr(engine, job.task)(net, job)
    if outputs is not None:
        np.savez(outputs, **answer.outputs)
    print(json.dumps({"version": engine.version, "timings": answer.timings, "figures": answer.figures}))


if __name__ == "__main__":
    main()
