"""Stable Diffusion against diffusers: a guided step, the decoder, a session end to end, its memory, MACs.

    python -m bench.stable_diffusion [--only macs step decoder session] [--folder WEIGHTS] [--rounds 2] [--repeats 2]

Random weights of the configuration of Stable Diffusion 1.x, in float16, which both load: sparsegen computes from them
in 16 bits, PyTorch in 32 (and in bfloat16 where the processor has it; the session is not timed so). Each part checks
the networks that it times, and records its figures when it ends. Every timed edit is a rectangle elsewhere. Under
`fast`, a step is one of three kinds (`bench.trajectory`); the mean is over the steps of a session with the default
settings. MACs are those of one of the two halves of a guided step.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import DENSE, MEAN, edit_name, step_name
from bench.contest import Errors, Reply, ask, check, in_turn, say_errors, together, worst
from bench.engines import BFLOAT16, OURS, TORCH
from bench.harness import Report, machine, parse
from bench.latent_cases import TIME, Latent, latent
from bench.trajectory import KINDS, Trajectory, computed, mean, painted
from sparsegen.backends.shapes import ShapesBackend
from sparsegen.models import SDUNet

FILE = "stable-diffusion"
"""Of the JSON lines."""
FORESEEN = ("caches", "journals", "scratch", "texts", "weights")
"""The parts of a session's memory: as its plan foresees them, the journals of its edits, the weights in 16 bits."""
PLACES = 20
"""Rectangles over which MACs are averaged."""


@dataclass
class Contest:
    """The engines, their weights, and the tasks that are checked."""

    net: Latent
    engines: Sequence[str]
    rounds: int
    repeats: int
    files: dict[str, Any]
    errors: dict[str, Errors] = field(default_factory=dict)
    """By task."""

    def check(self, *tasks: str) -> None:
        """Compare the outputs of the networks of these tasks, each once. Raises WrongResult."""
        others = [engine for engine in self.engines if engine != TORCH[0]]
        for task in tasks:
            if task not in self.errors:
                self.errors[task] = check(others, task, **self.files)

    def in_turn(self, task: str, **options: Any) -> dict[str, list[Reply]]:
        """The engines' replies of all rounds."""
        chosen = {"rounds": self.rounds, "repeats": self.repeats, **options}
        return in_turn(self.engines, task, **chosen, **self.files)


def macs(report: Report, contest: Contest) -> None:
    """Of a step of a small edit, counted without computing: a square in the middle, and rectangles elsewhere."""
    net = contest.net
    unet, backend = SDUNet(net.unet), ShapesBackend()
    inputs = unet.encode(net.latents(), timestep=TIME, text=net.features()[:1])
    state = painted(unet, inputs, backend)
    trajectories = {
        steps: Trajectory(unet, inputs, unet.fast_for(steps), backend)
        for steps in (net.usual_steps, len(net.settings().times()))
    }
    places = [net.region(net.small, variant) for variant in range(PLACES)]
    fast = edit_name(net.small, "fast")
    for where, regions in (("in the middle", [net.middle()]), (f"mean of {PLACES} places", places)):
        shares: dict[str, list[float]] = {}
        for region in regions:
            paper = computed(state, inputs, net.step_edit(region, unet.paper, halves=1))
            dense = paper.macs_dense
            shares.setdefault(edit_name(net.small, "paper"), []).append(paper.macs / dense)
            for steps, trajectory in trajectories.items():
                edit = net.step_edit(region, trajectory.policy, halves=1)
                kinds = [step.macs / dense for step in trajectory.edit(edit)]
                over = mean(kinds, trajectory.weights(steps))
                if steps == net.usual_steps:
                    shares.setdefault(f"{fast}, {KINDS[1]}", []).append(kinds[1])
                shares.setdefault(f"{fast}, mean over {steps} steps", []).append(over)
        if regions is not places:
            report.add("MACs, dense", dense / 1e9, "G")
        for case, found in shares.items():
            share = float(np.mean(found))
            asked = {"aim": f"≤ {net.macs / 1e9:g} G", "reached": share * dense <= net.macs}
            asked = asked if case.startswith(fast) else {}
            report.add(f"MACs, {case}, {where}", share * dense / 1e9, "G", macs=share, **asked)


def step(report: Report, contest: Contest) -> None:
    """A guided step: both halves in one call."""
    contest.check("latent_step")
    net = contest.net
    targets = {
        "dense" if area == DENSE else step_name(area, MEAN): factor for area, factor in net.over_torch.items()
    }
    _compare(report, "step", contest.in_turn("latent_step"), targets, contest.errors["latent_step"])


def decoder(report: Report, contest: Contest) -> None:
    """The autoencoder's decoder."""
    contest.check("latent_decoder")
    net = contest.net
    targets = {edit_name(net.small, "fast"): net.decoder_over_torch}
    replies = contest.in_turn("latent_decoder", rounds=1)
    _compare(report, "decoder", replies, targets, contest.errors["latent_decoder"])


def session(report: Report, contest: Contest) -> None:
    """Image to image: a session's second edit, to the PNG, beside diffusers' pipeline; the memory of the session."""
    contest = replace(contest, engines=[each for each in contest.engines if each not in BFLOAT16])
    contest.check("latent_step", "latent_decoder", "latent_session")
    net = contest.net
    replies = contest.in_turn("latent_session", rounds=1, policy="fast")
    _compare(report, "session", replies, {"second edit": net.session_over_torch}, {})
    for reply in replies.get(OURS, ()):
        memory = reply.figures["memory"]
        for what in FORESEEN:
            report.add(f"session, memory, {what}", memory[what] / 1e9, "GB")
        foreseen = sum(memory[what] for what in FORESEEN)
        report.add("session, memory, sum of these", foreseen / 1e9, "GB")
        asked = {"aim": f"≤ {net.ram_bytes / 1e9:g} GB", "reached": memory["own"] <= net.ram_bytes}
        report.add("session, memory, the process's own at most", memory["own"] / 1e9, "GB", **asked)


PARTS: dict[str, Callable[[Report, Contest], None]] = {
    "macs": macs,
    "step": step,
    "decoder": decoder,
    "session": session,
}


def _compare(
    report: Report,
    part: str,
    replies: Mapping[str, list[Reply]],
    targets: Mapping[str, float],
    errors: Errors,
) -> None:
    """Every timing beside the better of PyTorch's layouts; `targets`: our case -> the factor to reach."""
    timings = {engine: together(got) for engine, got in replies.items()}
    rivals = [times for engine, times in timings.items() if engine in TORCH]
    torch_ms = min((timing.median for times in rivals for timing in times.values()), default=float("nan"))
    for engine, times in timings.items():
        for case, timing in times.items():
            ratio = torch_ms / timing.median
            row: dict[str, Any] = {
                "engine": engine,
                "version": replies[engine][0].version,
                "spread": timing.spread,
                **worst(errors, engine),
                **replies[engine][0].figures.get(case, {}),
            }
            if engine == OURS and case in targets:
                row |= {"aim": f"≥ {targets[case]:g} ×", "reached": ratio >= targets[case]}
            report.add(f"{engine}, {part}, {case}", timing.median, "ms", ratio=ratio, **row)


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (all)")
        parser.add_argument("--folder", type=Path, help="where the weights are kept (written, if not there)")

    options = parse(__doc__, repeats=2, rounds=2, engines=(OURS, *TORCH, *BFLOAT16), more=more)
    net = latent(options.quick)
    common = {"quick": options.quick, "backend": options.backend, "plain_memory": options.plain_memory}
    print(machine())
    report = Report(FILE, net.name, common, options.results)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        files = {"checkpoint": folder, **common}
        contest = Contest(net, options.engines, options.rounds, options.repeats, files)
        if set(options.only) != {"macs"} and not (folder / "model_index.json").exists():
            made = ask(TORCH[0], "latent_folder", **files)
            print(f"{made.figures['parameters'] / 1e6:.1f} M parameters")
        for name in options.only:
            PARTS[name](report, contest)
    for task, errors in contest.errors.items():
        print(f"{task}:")
        say_errors(errors)
    report.print()


if __name__ == "__main__":
    main()
