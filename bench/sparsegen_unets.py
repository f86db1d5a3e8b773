"""sparsegen: the diffusion networks through sessions, one step dense and edited, and SDEdit end to end."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

import sparsegen
from bench.cases import SDEDIT_CACHE, SDEDIT_LEVEL, SDEDIT_STEPS, Unet, edit_name
from bench.engines import Answer, Job
from bench.harness import measure, peak_bytes
from sparsegen.backends.interface import Backend
from sparsegen.images import write_png


class SparsegenUnets:
    """The UNet tasks of the sparsegen engine."""

    backend: Backend

    def unet(self, net: Unet, job: Job) -> Answer:
        """One step: dense, and edits of rectangles; as a check, also the edit of everything."""
        model = sparsegen.load(job.checkpoint)
        told = {model.time: net.time}
        session = sparsegen.Session(model, self.backend)
        x = net.noisy()
        if job.check:
            outputs = {"dense": session.run(x, **told).output}
            whole = np.ones(x.shape[:2], bool)
            outputs["dense, as an edit"] = session.edit(x, mask=whole).output
            return Answer({}, outputs, {})
        start = time.perf_counter()
        session.run(x, **told)
        figures = {"first run": {"ms": (time.perf_counter() - start) * 1e3}}
        timings = {
            "dense": list(measure(lambda: session.run(x, **told), repeats=job.repeats).samples),
            "dense, nothing kept": [],
        }
        stats = session.run(x, **told).stats
        figures["dense"] = {"canvas_bytes": stats.canvas_bytes, "macs_dense": stats.macs_dense}
        for area in net.areas:
            results: list[sparsegen.Stats] = []
            variants = iter(range(job.repeats + 1))

            def edit(area: float = area, variants=variants, results=results) -> None:
                mask = net.strokes(area, next(variants))
                edited = np.where(mask[..., None], x + 1, x)
                results.append(session.edit(edited, mask=mask).stats)

            name = edit_name(area, "paper")
            timings[name] = list(measure(edit, repeats=job.repeats, between=session.undo).samples)
            figures[name] = {
                "area": results[-1].edited_area,
                "macs": results[-1].macs / results[-1].macs_dense,
                "journal_bytes": results[-1].journal_bytes,
            }
        figures["peak"] = {"peak_bytes": peak_bytes()}
        plain = sparsegen.Session(model, self.backend)
        nothing = measure(lambda: plain.run(x, keep_canvases=False, **told), repeats=job.repeats)
        timings["dense, nothing kept"] = list(nothing.samples)
        return Answer(timings, {}, figures)

    def memory(self, net: Unet, job: Job) -> Answer:
        """The peak of a process that loads the weights and runs one step, keeping nothing."""
        model = sparsegen.load(job.checkpoint)
        sparsegen.Session(model, self.backend).run(net.noisy(), keep_canvases=False, **{model.time: net.time})
        return Answer({}, {}, {"peak_bytes": peak_bytes()})

    def sdedit(self, net: Unet, job: Job) -> Answer:
        """The second edit of a session, from the strokes to the PNG; the caches of its steps beyond the RAM on disk."""
        model = sparsegen.load(job.checkpoint)
        picture = np.tanh(net.noisy(1))
        with (
            tempfile.TemporaryDirectory(dir=job.checkpoint.parent) as folder,
            sparsegen.SDEdit(
                model,
                steps=SDEDIT_STEPS,
                noise_level=SDEDIT_LEVEL,
                backend=self.backend,
                ram=SDEDIT_CACHE,
                folder=folder,
            ) as session,
        ):
            plan = session.cache_plan(picture)
            start = time.perf_counter()
            base = session.run(picture)
            timings = {"dense run of the original": [(time.perf_counter() - start) * 1e3]}
            anonymous = [_anonymous_bytes()]
            for name, variant in (("first edit", 0), ("second edit", 1)):
                start = time.perf_counter()
                base = session.edit(_painted(base.output[0], net, variant))
                write_png(job.checkpoint.with_name("ours.png"), base.image)
                timings[name] = [(time.perf_counter() - start) * 1e3]
                anonymous.append(_anonymous_bytes())
            figures = {
                "second edit": {
                    "macs": base.stats.macs / base.stats.macs_dense,
                    "area": base.stats.edited_area,
                    "journal_bytes": base.stats.journal_bytes,
                },
                "caches": {
                    "bytes_per_step": plan.bytes_per_step,
                    "ram_bytes": session.store.ram_bytes,
                    "file_bytes": session.store.file_bytes,
                },
                "memory": {"anonymous_bytes": max(anonymous), "peak_bytes": peak_bytes()},
            }
        return Answer(timings, {}, figures)


def _painted(picture: np.ndarray, net: Unet, variant: int) -> np.ndarray:
    """A stroke of 1.2 % on an image in [-1, 1]."""
    painted = picture.copy()
    painted[net.strokes(0.012, variant)] = 0.5
    return painted


def _anonymous_bytes() -> int:
    """Memory of this process that no file backs, in bytes; 0 if the system does not report it."""
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024 if "RssAnon:" in text else 0
