"""sparsegen: the diffusion networks, one step dense and edited, the steps of an edit, and SDEdit end to end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import sparsegen
from bench.cases import (
    CHECKED_AREA,
    FAST_AREAS,
    SDEDIT_CACHE,
    SDEDIT_LEVEL,
    SDEDIT_STEPS,
    Unet,
    edit_name,
    step_name,
)
from bench.engines import Answer, Job
from bench.harness import Timing, anonymous_bytes, measure, peak_bytes
from bench.trajectory import Edit, Trajectory, add_mean
from sparsegen.backends.interface import Backend
from sparsegen.backends.shapes import ShapesBackend
from sparsegen.images import write_png


class SparsegenUnets:
    """The UNet tasks of the sparsegen engine."""

    backend: Backend

    def unet(self, net: Unet, job: Job) -> Answer:
        """Steps, dense and edited: as a check, the dense run and edits of everything, else their times."""
        model = sparsegen.load(job.checkpoint)
        if job.check:
            return self._check_steps(model, net)
        answer = self._one_step(model, net, job)
        self._steps(model, net, job, answer)
        return answer

    def _check_steps(self, model: Any, net: Unet) -> Answer:
        """The dense run, and edits of everything."""
        outputs, x = {}, net.noisy()
        for name, policy in (("dense, as an edit", "paper"), ("dense, as an edit under fast", "fast")):
            session = sparsegen.Session(model, self.backend, policy=policy)
            outputs["dense"] = session.run(x, **{model.time: net.time}).output
            outputs[name] = session.edit(x, mask=np.ones(x.shape[:2], bool)).output
        return Answer({}, outputs, {})

    def _one_step(self, model: Any, net: Unet, job: Job) -> Answer:
        """A session: dense, and edits of rectangles under `paper`."""
        told, repeats = {model.time: net.time}, job.repeats
        session = sparsegen.Session(model, self.backend, policy="paper")
        x = net.noisy()
        start = time.perf_counter()
        session.run(x, **told)
        figures: dict[str, Any] = {"first run": {"ms": (time.perf_counter() - start) * 1e3}}
        timings = {"dense": list(measure(lambda: session.run(x, **told), repeats=repeats).samples)}
        if job.area is None:
            timings["dense, nothing kept"] = []  # measured last, shown here
        stats = session.run(x, **told).stats
        figures["dense"] = {"canvas_bytes": stats.canvas_bytes, "macs_dense": stats.macs_dense}
        for area in job.areas(net.areas):
            results: list[sparsegen.Stats] = []
            variants = iter(range(repeats + 1))

            def edit(area: float = area, variants=variants, results=results) -> None:
                mask = net.strokes(area, next(variants))
                edited = np.where(mask[..., None], x + 1, x)
                results.append(session.edit(edited, mask=mask).stats)

            name = edit_name(area, "paper")
            timings[name] = list(measure(edit, repeats=repeats, between=session.undo).samples)
            figures[name] = {
                "area": results[-1].edited_area,
                "macs": results[-1].macs / results[-1].macs_dense,
                "journal_bytes": results[-1].journal_bytes,
            }
        if job.area is None:
            plain = sparsegen.Session(model, self.backend)
            nothing = measure(lambda: plain.run(x, keep_canvases=False, **told), repeats=repeats)
            timings["dense, nothing kept"] = list(nothing.samples)
        return Answer(timings, {}, figures)

    def _steps(self, model: Any, net: Unet, job: Job, answer: Answer) -> None:
        """The steps of edits under `fast`, by kind and on average; and the Python in them, with kernels left out."""
        policy, steps = model.fast, len(model.diffusion.edit.times())
        inputs = model.encode(net.noisy(), **{model.time: net.time})

        def edits(area: float) -> Iterator[Edit]:
            return (Edit.of(net.strokes(area, variant), policy) for variant in range(job.repeats + 1))

        trajectory = Trajectory(model, inputs, policy, self.backend)
        for area in job.areas(FAST_AREAS):
            timings, macs = trajectory.measure(edits(area))
            add_mean(timings, macs, trajectory.weights(steps))
            for kind, samples in timings.items():
                name = step_name(area, kind)
                answer.timings[name] = samples
                answer.figures[name] = {
                    "area": area,
                    "macs": macs[kind] / macs["dense"],
                    "macs_step": macs[kind],
                }
        timings, _ = Trajectory(model, inputs, policy, ShapesBackend()).measure(edits(CHECKED_AREA))
        answer.figures["python"] = {kind: Timing(tuple(samples)).median for kind, samples in timings.items()}

    def memory(self, net: Unet, job: Job) -> Answer:
        """The peak of a process that loads the weights and runs one step, keeping nothing."""
        model = sparsegen.load(job.checkpoint)
        sparsegen.Session(model, self.backend).run(net.noisy(), keep_canvases=False, **{model.time: net.time})
        return Answer({}, {}, {"peak_bytes": peak_bytes()})

    def sdedit(self, net: Unet, job: Job) -> Answer:
        """The second edit of a session, from the strokes to the PNG; the caches of its steps beyond the RAM on disk."""
        model = sparsegen.load(job.checkpoint)
        image = np.tanh(net.noisy(1))
        timings: dict[str, list[float]] = {}
        # the weights are laid out now, for all sessions of the model: the run of the original is timed without that
        sparsegen.Session(model, self.backend).run(net.noisy(), **{model.time: net.time})
        with (
            tempfile.TemporaryDirectory(dir=job.checkpoint.parent) as folder,
            sparsegen.SDEdit(
                model,
                steps=SDEDIT_STEPS,
                noise_level=SDEDIT_LEVEL,
                policy=job.policy,
                storage=job.storage,
                backend=self.backend,
                ram=SDEDIT_CACHE,
                folder=folder,
            ) as session,
        ):
            plan = session.cache_plan(image)
            start = time.perf_counter()
            base = session.run(image)
            timings["dense run of the original"] = [(time.perf_counter() - start) * 1e3]
            anonymous = [anonymous_bytes()]
            figures: dict[str, Any] = {
                "planned": {"ram_bytes": plan.ram_bytes, "file_bytes": plan.disk_bytes},
                "after the run": _store_bytes(session),
            }
            for name, variant in (("first edit", 0), ("second edit", 1)):
                start = time.perf_counter()
                base = session.edit(_painted(base.output[0], net, variant))
                write_png(job.checkpoint.with_name("ours.png"), base.image)
                timings[name] = [(time.perf_counter() - start) * 1e3]
                anonymous.append(anonymous_bytes())
            figures |= {
                "second edit": {
                    "macs": base.stats.macs / base.stats.macs_dense,
                    "area": base.stats.edited_area,
                    "journal_bytes": base.stats.journal_bytes,
                    "steps_ms": [step.milliseconds for step in base.stats.steps],
                    "refreshed": [step.refreshed for step in base.stats.steps],
                },
                "after the edits": _store_bytes(session),
                "memory": {"anonymous_bytes": max(anonymous), "peak_bytes": peak_bytes()},
            }
        return Answer(timings, {}, figures)


def _store_bytes(session: sparsegen.SDEdit) -> dict[str, int]:
    """What a session's caches and journals take."""
    return {"ram_bytes": session.store.ram_bytes, "file_bytes": session.store.file_bytes}


def _painted(image: np.ndarray, net: Unet, variant: int) -> np.ndarray:
    """A stroke of 1.2 % on an image in [-1, 1]."""
    painted = image.copy()
    painted[net.strokes(0.012, variant)] = 0.5
    return painted
