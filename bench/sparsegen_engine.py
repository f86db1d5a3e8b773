"""sparsegen: convolutions through the contract of backends, the big GauGANs through a session."""

from __future__ import annotations

from typing import Any

import numpy as np

import sparsegen
from bench import landscape, street
from bench.cases import CHECKED_AREA, Big, Case, edit_name
from bench.engines import Answer, Convolution, Job
from bench.harness import measure, peak_bytes
from bench.sparsegen_latent import SparsegenLatent
from bench.sparsegen_unets import SparsegenUnets
from sparsegen.backends.interface import Source
from sparsegen.backends.registry import get_backend
from sparsegen.tiling.tiles import TileSet


class SparsegenEngine(SparsegenUnets, SparsegenLatent):
    def __init__(self, backend: str | None, **options: Any) -> None:
        """`options` are the backend's."""
        self.backend, self.options = get_backend(backend, **options), options
        self.version = f"{sparsegen.__version__} ({self.backend.name})"

    def convolution(self, case: Case) -> Convolution:
        backend = self.backend
        x, weight, bias = case.values()
        padding = (case.padding,) * 4
        weights = backend.prepare_conv(
            weight, bias, stride=case.stride, padding=padding, size=case.output_size
        )
        source = Source((backend.upload(x),))
        out = backend.alloc((1, *case.output_size, case.outputs))
        tiles = TileSet.full(1, *case.output_size).tiles

        def call() -> None:
            backend.conv2d(out, tiles, source, weights)
            backend.synchronize()

        return Convolution(call, lambda: np.asarray(backend.download(out)))

    def gaugan(self, net: Big, job: Job) -> Answer:
        """Dense runs and edits: each edit compared with the dense run as a check, or all edits timed."""
        session = sparsegen.Session(sparsegen.load(job.checkpoint), self.backend)
        original = street.street(size=net.size)
        return self._check(session, original, net) if job.check else self._time(session, original, net, job)

    def _check(self, session: sparsegen.Session, original: street.Street, net: Big) -> Answer:
        """Edits against dense runs; where norms measure statistics, which edits reuse, from an edit back again."""
        outputs = {"original": _run(session, original).output}
        for name, area, policy in (("edited", CHECKED_AREA, "exact"), ("everything", 1.0, "paper")):
            changed, mask = street.edited(original, area)
            _run(session, original)
            edited = _edit(session, changed, mask, policy).output
            if net.widths:
                back = _edit(session, original, mask, policy).output
                outputs[f"original, as an edit back from {name}"] = back
            else:
                outputs[f"{name}, as an edit"] = edited
            outputs[name] = _run(session, changed).output
        return Answer({}, outputs, {})

    def _time(self, session: sparsegen.Session, original: street.Street, net: Big, job: Job) -> Answer:
        timings, figures = {}, {}
        other = street.street(1, net.size)
        # another street in between: no cached work of the timed street is left to be reused
        dense = measure(
            lambda: _run(session, original), repeats=job.repeats, between=lambda: _run(session, other)
        )
        timings["dense"] = list(dense.samples)
        figures["dense"] = {
            "canvas_bytes": _run(session, original).stats.canvas_bytes,
            "peak_bytes": peak_bytes(),
        }
        for policy in net.policies:
            for area in job.areas(net.areas):
                # every edit is new to the session: rows that an earlier edit added do not help
                fresh = iter([street.edited(original, area, variant=v) for v in range(job.repeats + 1)])
                results = []
                timing = measure(
                    lambda fresh=fresh, policy=policy, results=results: results.append(
                        _edit(session, *next(fresh), policy).stats
                    ),
                    repeats=job.repeats,
                    between=session.undo,
                )
                name, stats = edit_name(area, policy), results[-1]
                timings[name] = list(timing.samples)
                figures[name] = {
                    "area": stats.edited_area,
                    "macs": stats.macs / stats.macs_dense,
                    "journal_bytes": stats.journal_bytes,
                    "peak_bytes": peak_bytes(),
                }
        return Answer(timings, {}, figures)

    def landscape(self, net: None, job: Job) -> Answer:
        """The built-in landscape: the dense run and an edit as a check, or the times of a dense run and of edits."""
        session = sparsegen.Session(sparsegen.load("landscape"), self.backend)
        labels = landscape.original()
        if job.check:
            outputs = {"original": session.run(labels).output}
            outputs["edited"] = session.edit(landscape.edited(labels, CHECKED_AREA)[0]).output
            return Answer({}, outputs, {})
        timings = {"dense": measure(lambda: session.run(labels), repeats=job.repeats)}
        for area in job.areas(landscape.AREAS):
            for policy in landscape.POLICIES:
                timing, _ = landscape.time_edit(session, labels, area, policy, job.repeats)
                timings[edit_name(area, policy)] = timing
        return Answer({name: list(timing.samples) for name, timing in timings.items()}, {}, {})

    def default_threads(self, net: None, job: Job) -> Answer:
        """The number of threads that the backend takes where nobody names one."""
        return Answer({}, {}, {"default_threads": getattr(type(self.backend)(), "threads", 1)})


def _run(session: sparsegen.Session, scene: street.Street) -> sparsegen.Result:
    return session.run(scene.labels, instances=scene.instances)


def _edit(
    session: sparsegen.Session, scene: street.Street, mask: np.ndarray, policy: str
) -> sparsegen.Result:
    return session.edit(scene.labels, instances=scene.instances, mask=mask, policy=policy)


def open_engine(variant: str | None) -> SparsegenEngine:
    """`variant`: a backend, or the `numba` backend: "bfloat16", with products of it; "weights-…", with such weights."""
    if variant == "bfloat16":
        return SparsegenEngine("numba", precision=variant)
    if variant is not None and variant.startswith("weights-"):
        return SparsegenEngine("numba", weights=variant.removeprefix("weights-"))
    return SparsegenEngine(variant)
