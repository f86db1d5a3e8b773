"""sparsegen's `cupy` backend on a card, or on the emulated device of the tests; one precision at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import sparsegen
from bench import street
from bench.cases import MEAN, Big, Unet, edit_name, step_name
from bench.engines import Job
from bench.gpu_cases import AS_AN_EDIT, DENSE, SDEDIT, Task, denoising, timed
from bench.gpu_clock import Clock, Sample
from bench.gpu_roofline import Cost, costs, together
from bench.sparsegen_engine import SparsegenEngine
from bench.trajectory import KINDS, Edit, Trajectory
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.cupy_cuda.device import Device, Graph
from sparsegen.backends.interface import Backend, BackendError, Host
from sparsegen.backends.registry import backend_status, get_backend
from sparsegen.tools.report import Profile

LAYER_RUNS = 3
"""Runs in which each layer is timed; medians count."""


class _TimedGraph(Graph):
    def __init__(self, graph: Graph, clock: Clock) -> None:
        self._graph, self._clock = graph, clock

    def launch(self) -> None:
        with self._clock.graph():
            self._graph.launch()


def clock_of(device: Device, *, emulated: bool) -> Clock:
    """The clock of a device, which from now on times its graphs."""
    if emulated:
        clock = Clock()
    else:
        import cupy

        def event() -> Any:
            made = cupy.cuda.Event()
            made.record()
            return made

        clock = Clock(event, cupy.cuda.get_elapsed_time, device.synchronize)
    recorded = device.record
    device.record = lambda work: _TimedGraph(recorded(work), clock)  # type: ignore[method-assign]  # to time graphs
    return clock


class GpuSparsegen(SparsegenEngine):
    """The engine of sparsegen, for one task."""

    backend: CudaBackend

    def __init__(self, task: Task) -> None:
        self.task, self.net = task, task.net
        self.version = sparsegen.__version__
        self._made: dict[Any, tuple[Host, dict[str, Any]]] = {}
        """Inputs and edits: a street takes longer to draw than a network to run."""

    @property
    def card(self) -> str:
        return self.backend.device.name

    def open(self, precision: str) -> None:
        """Load the network for a precision. Raises BackendError: the backend does not have it."""
        self.precision = precision
        self.backend = _backend(precision, self.task.emulated)
        self.clock = clock_of(self.backend.device, emulated=self.task.emulated)
        self.model = sparsegen.load(self.task.checkpoint)

    def outputs(self) -> dict[str, Host]:
        """Dense runs and edits, as `bench.gaugan` and `bench.diffusion` check them."""
        job = Job("sparsegen", self.task.case, check=True, checkpoint=self.task.checkpoint)
        answer = self.gaugan(self.net, job) if isinstance(self.net, Big) else self.unet(self.net, job)
        return answer.outputs

    # -- one input ---------------------------------------------------------------------------------------

    def _session(self, policy: str) -> sparsegen.Session:
        session = sparsegen.Session(self.model, self.backend, policy=policy)
        self._run(session)
        return session

    def _run(self, session: sparsegen.Session, **options: Any) -> sparsegen.Result:
        """A dense run of the case's input."""
        image, conditions = self._input()
        return session.run(image, **conditions, **options)

    def _input(self) -> tuple[Host, dict[str, Any]]:
        """The case's input and its conditions."""
        if () not in self._made:
            net = self.net
            if isinstance(net, Big):
                scene = street.street(size=net.size)
                self._made[()] = scene.labels, {"instances": scene.instances}
            else:
                self._made[()] = net.noisy(), {self.model.time: net.time}
        return self._made[()]

    def _edits(self, area: float, count: int) -> Iterator[tuple[Host, dict[str, Any]]]:
        """So many edits of an area, each elsewhere: the edited input, and the keywords of `Session.edit`."""
        for variant in range(count):
            if (area, variant) not in self._made:
                self._made[area, variant] = self._an_edit(area, variant)
            yield self._made[area, variant]

    def _an_edit(self, area: float, variant: int) -> tuple[Host, dict[str, Any]]:
        net = self.net
        if isinstance(net, Big):
            changed, mask = street.edited(street.street(size=net.size), area, variant=variant)
            return changed.labels, {"instances": changed.instances, "mask": mask}
        x, mask = net.noisy(), net.strokes(area, variant)
        return np.where(mask[..., None], x + 1, x), {"mask": mask}

    # -- times -------------------------------------------------------------------------------------------

    def timings(self) -> Iterator[dict[str, Any]]:
        """Dense runs, edits by policy and area, the steps of edits under `fast`, SDEdit."""
        yield from self._of_a_session(self._session("paper"))
        if self.task.sdedit and isinstance(self.net, Unet):
            for policy in self.task.policies:
                yield self._sdedit(policy)

    def _of_a_session(self, session: sparsegen.Session) -> Iterator[dict[str, Any]]:
        task, net = self.task, self.net
        if task.dense:
            yield timed(DENSE, self._measured(lambda: self._run(session)))
            yield self._edit(session, 1.0, "paper") | {"what": AS_AN_EDIT}
        if "paper" in task.policies:
            for area in task.areas:
                yield self._edit(session, area, "paper")
        if "fast" in task.policies:
            for area in task.areas:
                if isinstance(net, Unet):
                    yield from self._steps_of(area)
                else:
                    yield self._edit(session, area, "fast")

    def _measured(self, call: Callable[[], Any], between: Callable[[], Any] = lambda: None) -> list[Sample]:
        task = self.task
        return self.clock.measure(call, repeats=task.repeats, warm_ups=task.warm_ups, between=between)

    def _edit(self, session: sparsegen.Session, area: float, policy: str) -> dict[str, Any]:
        edits = iter([*self._edits(area, self.task.warm_ups + self.task.repeats)])
        stats: list[sparsegen.Stats] = []

        def edit() -> None:
            edited, options = next(edits)
            stats.append(session.edit(edited, policy=policy, **options).stats)

        samples = self._measured(edit, between=session.undo)
        last = stats[-1]
        figures = {"area": last.edited_area, "macs": last.macs / last.macs_dense}
        return timed(edit_name(area, policy), samples, **figures)

    def _steps_of(self, area: float) -> Iterator[dict[str, Any]]:
        """The three kinds of steps of an edit under `fast`, and their mean over the family's steps."""
        net, model = self.net, self.model
        assert isinstance(net, Unet)
        policy = model.policy("fast")
        inputs = model.encode(net.noisy(), **{model.time: net.time})
        trajectory = Trajectory(model, inputs, policy, self.backend)
        samples: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
        macs: dict[str, float] = {}
        for variant in range(self.task.warm_ups + self.task.repeats):
            self.clock.taken()
            steps = trajectory.edit(Edit.of(net.strokes(area, variant), policy))
            for kind, (wall, done, dense) in zip(KINDS, steps, strict=True):
                device, graphs = self.clock.taken()
                macs[kind] = done / dense
                if variant >= self.task.warm_ups:
                    samples[kind].append(Sample(wall, device, graphs))
        counts = trajectory.weights(len(denoising(net, emulated=False).times()))
        weights = [count / sum(counts) for count in counts]
        each = [*zip(*samples.values(), strict=True)]
        known = all(sample.device is not None for kinds in each for sample in kinds)
        samples[MEAN] = [
            Sample(
                sum(weight * sample.wall for weight, sample in zip(weights, kinds, strict=True)),
                sum(weight * (sample.device or 0.0) for weight, sample in zip(weights, kinds, strict=True))
                if known
                else None,
                max(sample.graphs for sample in kinds),
            )
            for kinds in each
        ]
        macs[MEAN] = sum(weight * macs[kind] for weight, kind in zip(weights, KINDS, strict=True))
        for kind, found in samples.items():
            yield timed(step_name(area, kind), found, area=area, macs=macs[kind])

    def _sdedit(self, policy: str) -> dict[str, Any]:
        """The edits of a session after the first, from the strokes to the image in main memory."""
        net, what = self.net, f"{SDEDIT} {policy}"
        assert isinstance(net, Unet)
        settings = denoising(net, self.task.emulated)
        try:
            session = sparsegen.SDEdit(
                self.model,
                steps=settings.steps,
                noise_level=settings.noise_level,
                policy=policy,
                backend=self.backend,
            )
        except (sparsegen.SparsegenError, BackendError) as error:
            return {"what": what, "refused": str(error)}
        image = np.tanh(net.noisy(1))
        with session:
            session.run(image)
            variants = iter(range(1, self.task.repeats + 9))
            images: list[Host] = [image]

            def edit() -> None:
                painted = images[-1].copy()
                painted[net.strokes(0.012, next(variants))] = 0.5
                images.append(session.edit(painted).output[0])

            samples = self.clock.measure(edit, repeats=min(self.task.repeats, 3), warm_ups=1)
        return timed(what, samples)

    # -- layers ------------------------------------------------------------------------------------------

    def layers(self) -> Iterator[dict[str, Any]]:
        """Each layer of a dense run and of a small edit, computed one by one, waiting after each."""
        session = self._session("paper")
        edits = iter([*self._edits(0.012, LAYER_RUNS + 1)])

        def nothing(record: Any) -> None: ...

        def dense() -> list[Cost]:
            return costs(self._counted(), self._run(session, progress=nothing).stats.layers)

        def edit() -> list[Cost]:
            edited, options = next(edits)
            stats = session.edit(edited, policy="paper", progress=nothing, **options).stats
            session.undo()
            return costs(self._counted(edited=edited, mask=options["mask"]), stats.layers)

        for what, run in ((DENSE, dense), (edit_name(0.012, "paper"), edit)):
            run()
            runs = [run() for _ in range(LAYER_RUNS)]
            paths = [[cost.path for cost in each] for each in runs]
            same = [each for each, found in zip(runs, paths, strict=True) if found == paths[0]]
            yield {"layers": what, "costs": [cost.__dict__ for cost in together(same)]}

    def _counted(self, **edit: Any) -> Profile:
        """The work of a dense run, or of an edit under `paper`. (Of new instances, edges are not counted.)"""
        image, conditions = self._input()
        return sparsegen.profile(self.model, image, backend=self.backend, **conditions, **edit)


def _backend(precision: str, emulated: bool) -> CudaBackend:
    """The backend with a precision. Raises BackendError: it does not have that option."""
    if emulated:
        from tests.cuda.emulator import EmulatedDevice

        takes = "precision" in CudaBackend.options
        if precision != "float32" and not takes:
            raise BackendError(f"backend {CudaBackend.name!r} takes no precision")
        options: dict[str, Any] = {"precision": precision} if takes else {}
        return CudaBackend(EmulatedDevice(), **options)
    made: Backend = get_backend("cupy", **({} if precision == "float32" else {"precision": precision}))
    assert isinstance(made, CudaBackend)
    return made


def missing() -> str | None:
    """Why the backend cannot run here; None: it can."""
    return backend_status().get("cupy", "no backend of that name is registered")


def card_figures() -> dict[str, Any]:
    """The card's name, and what a bound needs of a card that no table has; its kernels are compiled."""
    import cupy

    backend = get_backend("cupy")
    assert isinstance(backend, CudaBackend)
    backend.warm_up()
    clock = clock_of(backend.device, emulated=False)
    size = 1 << 28
    one, two = cupy.zeros(size, np.float32), cupy.zeros(size, np.float32)
    samples = clock.measure(lambda: cupy.copyto(one, two), repeats=5, warm_ups=1)
    taken = min(sample.device or sample.wall for sample in samples)
    attributes = cupy.cuda.Device().attributes
    return {
        "card": backend.device.name,
        "multiprocessors": backend.device.multiprocessors,
        "gigahertz": attributes.get("ClockRate", 0) / 1e6,
        "bandwidth": 2 * 4 * size / (taken * 1e-3) / 1e12,
    }
