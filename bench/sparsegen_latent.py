"""sparsegen: latent diffusion, one step dense and edited, the decoder, and a session of image to image end to end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import sparsegen
from bench.cases import edit_name, step_name
from bench.engines import Answer, Job
from bench.harness import anonymous_bytes, measure, peak_bytes
from bench.latent_cases import NEGATIVE, PROMPT, Latent
from bench.trajectory import Edit, Trajectory, add_mean, measure_computed, painted
from sparsegen.backends.interface import Backend
from sparsegen.backends.registry import get_backend
from sparsegen.diffusion.registry import Step
from sparsegen.editing.state import State
from sparsegen.engine.journal import Journal
from sparsegen.images import write_png
from sparsegen.models.base import Inputs, Model
from sparsegen.pipelines.latents import LatentDiffusion
from sparsegen.pipelines.stable_diffusion import StableDiffusion
from sparsegen.tiling.policies import Policy

POLICIES = ("paper", "fast")


class SparsegenLatent:
    """The tasks of latent diffusion of the sparsegen engine; weights are stored as the checkpoint's, in float16."""

    backend: Backend
    options: dict[str, Any]
    """The backend's."""

    def latent_step(self, net: Latent, job: Job) -> Answer:
        """A guided step: dense, and of edits under `paper` and `fast`, by kind and on average over the usual steps."""
        models = self._models(job)
        unet, inputs = models.unet, net.inputs(models.unet)
        if job.check:
            return _outputs("step", unet, inputs, models.backend, partial(net.step_edit, net.everywhere()))
        answer = self._dense(models, unet, inputs, job.repeats)
        fast = unet.fast_for(net.usual_steps)
        trajectory = Trajectory(unet, inputs, fast, models.backend)
        for area in net.areas:
            edits = net.step_edits(area, unet.paper, job.repeats + 1)
            samples, step = measure_computed(trajectory.states[0], inputs, edits)
            _add(answer, edit_name(area, "paper"), samples, step.macs, step.macs_dense)
            timings, macs = trajectory.measure(net.step_edits(area, fast, job.repeats + 1))
            add_mean(timings, macs, trajectory.weights(net.usual_steps))
            for kind, samples in timings.items():
                _add(answer, step_name(area, kind), samples, macs[kind], macs["dense"])
        return answer

    def latent_decoder(self, net: Latent, job: Job) -> Answer:
        """The decoder: dense, and of small edits."""
        models = self._models(job)
        decoder, inputs = models.decoder, models.decoder.encode(models.unscaled(net.latents()))
        if job.check:
            return _outputs(
                "image", decoder, inputs, models.backend, partial(net.decoder_edit, net.everywhere())
            )
        answer = self._dense(models, decoder, inputs, job.repeats)
        state = painted(decoder, inputs, models.backend)
        for policy in POLICIES:
            edits = [
                net.decoder_edit(net.region(net.small, variant), decoder.policy(policy))
                for variant in range(job.repeats + 1)
            ]
            samples, step = measure_computed(state, inputs, edits)
            _add(answer, edit_name(net.small, policy), samples, step.macs, step.macs_dense)
        return answer

    def latent_session(self, net: Latent, job: Job) -> Answer:
        """A session with caches in float16: the run of an image, and small edits in a row, each to the PNG.

        As a check, what the encoders make of a text and of the image.
        """
        models = self._models(job)
        if job.check:
            latents = models.encode(models.checked(net.image()), None)
            return Answer({}, {"features": models.features([PROMPT]), "latents": latents}, {})
        timings: dict[str, list[float]] = {}
        most = [0]

        def watch(step: Step) -> None:
            most.append(anonymous_bytes())

        with StableDiffusion(
            models,
            PROMPT,
            negative=NEGATIVE,
            steps=net.steps,
            strength=net.strength,
            policy=job.policy,
            storage="float16",
        ) as session:
            plan = session.cache_plan(net.image())
            start = time.perf_counter()
            result = session.run(net.image(), on_step=watch)
            timings["run of the original"] = [(time.perf_counter() - start) * 1e3]
            for name, variant in (("first edit", 0), ("second edit", 1)):
                edited = net.painted(result.image, variant)
                most.append(anonymous_bytes())
                start = time.perf_counter()
                result = session.edit(edited)
                write_png(job.checkpoint / "ours.png", result.image)
                timings[name] = [(time.perf_counter() - start) * 1e3]
            stats = result.stats
            figures = {
                "second edit": {
                    "macs": stats.macs / stats.macs_dense,
                    "area": stats.edited_area,
                    "journal_bytes": stats.journal_bytes,
                    "steps_ms": [step.milliseconds for step in stats.steps],
                    "refreshed": [step.refreshed for step in stats.steps],
                },
                "memory": {
                    "caches": plan.ram_bytes,
                    "journals": stats.undo_bytes,
                    "scratch": plan.scratch_bytes,
                    "texts": plan.condition_bytes,
                    "weights": sum(map(_half_bytes, models.models.values())),
                    "own": max(*most, anonymous_bytes()),
                    "peak": peak_bytes(),
                },
            }
        return Answer(timings, {}, figures)

    def _models(self, job: Job) -> LatentDiffusion:
        has = "weights" in getattr(self.backend, "options", ())
        backend = get_backend(self.backend.name, **self.options, **({"weights": "float16"} if has else {}))
        return LatentDiffusion(sparsegen.load_bundle(job.checkpoint), backend=backend)

    def _dense(self, models: LatentDiffusion, model: Model, inputs: Inputs, repeats: int) -> Answer:
        """A model's dense runs into canvases that stay, and into none."""
        answer = Answer({}, {}, {})
        for name, keeps in (("dense", True), ("dense, nothing kept", False)):
            state = State(model, models.backend, allocator=models.allocator())

            def paint(state: State = state, keeps: bool = keeps) -> None:
                state.paint(inputs.canvases, inputs.conditions, keep_canvases=keeps)

            answer.timings[name] = list(measure(paint, repeats=repeats).samples)
        return answer


def _outputs(
    name: str, model: Model, inputs: Inputs, backend: Backend, edit: Callable[[Policy], Edit]
) -> Answer:
    """A model's output, and those after edits of everything in which no value changes; `edit` makes one."""
    state = painted(model, inputs, backend)
    outputs = {name: state.output()}
    for policy in POLICIES:
        everything = edit(model.policy(policy))
        values = everything.values(inputs.canvases, 0)
        state.repaint(values, everything.changed, everything.plan, journal=Journal())
        outputs[f"{name}, as an edit under {policy}"] = state.output()
    return Answer({}, outputs, {})


def _add(answer: Answer, name: str, samples: list[float], macs: float, macs_dense: float) -> None:
    """Add the times and the MACs of an edit's step to an answer."""
    answer.timings[name] = samples
    answer.figures[name] = {"macs": macs / macs_dense}


def _half_bytes(model: Model) -> int:
    """The memory of a model's weights in 16 bits."""
    return 2 * sum(math.prod(each.shape) for each in model.parameters().values())
