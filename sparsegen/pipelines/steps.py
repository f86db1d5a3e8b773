"""Denoising steps: a state for each step, the memory that they take, and the loop from noise to an image.

A sampler only adds, multiplies and clips pixel by pixel. So an edit runs it on the tiles of its region alone,
`[K, TILE, TILE, C]`: no step copies or converts a whole image. Noise alone is drawn for the whole image (once for a
trajectory; at every step of a stochastic sampler), since its generator gives it in order.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from sparsegen.backends.interface import Host, Tiles
from sparsegen.backends.shapes import ShapesBackend

from ..diffusion import seeds
from ..diffusion.registry import Step
from ..diffusion.schedules import Image
from ..diffusion.seeds import START, Noise
from ..diffusion.settings import DiffusionDefaults, OnStep, Settings
from ..editing.dry_run import dry_run
from ..editing.state import State
from ..engine.allocator import BackendAllocator
from ..engine.carried import Deltas
from ..engine.chunks import block_bytes
from ..engine.journal import Journal
from ..engine.memory import input_path
from ..engine.memory_float16 import memory_kind
from ..engine.stats import LayerRecord, StepRecord
from ..models.base import Inputs, Model
from ..tiling.policies import Everything, Plan, Policy
from ..tiling.tiles import TileSet, gather_tiles, scatter_tiles

Compute = Callable[[int, Image, float], Image]
"""`compute(i, x, time)`: the model's output at step i for x, of x's first three dimensions."""


@dataclass(frozen=True)
class CachePlan:
    """The memory that the canvases of an image will take, over all steps."""

    steps: int
    bytes_per_step: int
    """Canvases of one step."""
    ram_bytes: int
    disk_bytes: int
    disk_free: int
    """Bytes free on the disk of the cache's folder."""
    shared_bytes: int = 0
    """Canvases that all steps share: of the resolutions that every edit computes whole, and (float16 storage) of all
    others.
    """
    undo_bytes: int = 0
    """Most memory that journals may take beside the canvases, once many edits can be undone."""
    undo_disk_bytes: int = 0
    """The part of `undo_bytes` that goes to the disk, beside `disk_bytes`."""
    scratch_bytes: int = 0
    """Arrays that layers without canvases compute in, beside `ram_bytes`."""
    condition_bytes: int = 0
    """Arrays that all steps share which depend on a text alone, its keys and values, beside `ram_bytes`."""

    @property
    def fits(self) -> bool:
        """Whether there is room on the disk, for canvases and journals."""
        return self.disk_bytes + self.undo_disk_bytes <= self.disk_free

    def __str__(self) -> str:
        shared = f" and {self.shared_bytes / 1e6:.1f} MB for all" if self.shared_bytes else ""
        beside = self.scratch_bytes + self.condition_bytes
        scratch = f" and {beside / 1e6:.1f} MB to compute in" if beside > 10**5 else ""
        on_disk = f", {self.undo_disk_bytes / 1e9:.2f} GB of it on disk" if self.undo_disk_bytes else ""
        return (
            f"{self.steps} steps of {self.bytes_per_step / 1e6:.1f} MB{shared}: {self.ram_bytes / 1e9:.2f} GB in RAM"
            f"{scratch}, {self.disk_bytes / 1e9:.2f} GB on disk ({self.disk_free / 1e9:.1f} GB free); to undo, up to "
            f"{self.undo_bytes / 1e9:.2f} GB{on_disk}"
        )


class StepBlocks(NamedTuple):
    """The memory of the states of all steps, in bytes."""

    steps: list[list[int]]
    """Of each canvas that a step keeps, for every step."""
    shared: list[int]
    """Of the canvases that all steps share."""
    scratch: int
    """Of the arrays that scratch layers compute in, in all."""
    conditioned: int
    """Of the arrays that layers compute of a condition alone, in all."""

    @property
    def canvases(self) -> list[int]:
        """All canvases."""
        return self.shared + [block for step in self.steps for block in step]


def step_blocks(
    model: Model, inputs: Inputs, storage: str, *, least_size: int = 0, rows: Sequence[int] = (0,)
) -> StepBlocks:
    """The memory of a model's states of these inputs, one for each of `rows`, the `carried_rows` of its `Memory`."""
    backend = ShapesBackend()
    memory = memory_kind(storage)(backend, BackendAllocator(backend))
    memory.inputs = {name: input_path(name) for name in inputs.canvases}
    full = TileSet.full(*inputs.shape)
    of_rows: dict[int, list[int]] = {}
    shared: dict[str, int] = {}
    scratch = conditioned = 0
    for carried in dict.fromkeys(rows):
        run = dry_run(model, inputs, Everything(), full, least_size=least_size, carried_rows=carried)
        dry, of_rows[carried] = run.memory, []
        scratch = max(scratch, dry.allocator.scratch_bytes)
        arrays = [array for _, found in dry.allocator.conditioned.values() for array in found]
        conditioned = max(conditioned, sum(int(array.nbytes) for array in arrays))
        shared |= {path: block_bytes(array.nbytes) for path, array in dry.allocator.shared_arrays.items()}
        for path, canvas in dry.canvases.items():
            kept = np.dtype(memory.kept_as(path, canvas.shape, str(canvas.dtype)))
            of_rows[carried].append(block_bytes(canvas.size * kept.itemsize))
            if kept != canvas.dtype:
                shared[path] = block_bytes(canvas.nbytes)
    return StepBlocks([of_rows[each] for each in rows], [*shared.values()], scratch, conditioned)


def denoised(
    model: Any, diffusion: DiffusionDefaults, settings: Settings, compute: Compute, x: Image, noise: Noise
) -> Iterator[Step]:
    """The sampler's steps from `x` on, float32 `[..., C]`: whole images, or tiles of them.

    `noise(i)` is the standard normal noise of step i, of x's shape. Between two steps the caller may write into
    `step.x`.
    """

    def predict(x: Image, i: int, now: float) -> Image:
        predicted: Image = model.prediction(compute(i, x, now), x, now)
        return predicted

    return settings.trajectory(predict, x, predicts=diffusion.predicts, noise=noise)


class Repainting:
    """An edit on its way through the states of all steps.

    Parameters
    ----------
    states, journals
        One of each for every step.
    changed
        The pixels of the model's input that change.
    spread
        The pixels from which active tiles grow.
    plan
        Makes the plan of the edit.
    rows
        For each step, the rows of the first resolution whose deltas are carried on; 0: every layer is computed.
    """

    def __init__(
        self,
        states: Sequence[State],
        journals: Sequence[Journal],
        changed: TileSet,
        spread: TileSet,
        plan: Callable[[], Plan],
        rows: Sequence[int],
    ) -> None:
        self.records: list[LayerRecord] = []
        self.steps: list[StepRecord] = []
        self.active = TileSet.empty(*changed.shape)
        """Tiles of the output that the last step repainted."""
        self._states, self._journals, self._rows = states, journals, rows
        self._changed, self._spread = changed, spread
        self._make_plan, self.plan = plan, plan()
        self._deltas: list[Deltas] = []
        """Of the last three steps that computed every layer."""

    def __call__(self, i: int, x: Host) -> Host:
        """The output of step i in the changed tiles, whose values are `x`; both `[K, TILE, TILE, C]`."""
        began, state, rows = time.perf_counter(), self._states[i], self._rows
        # with a tau, active tiles depend on values: each step has a plan
        if i and self.plan.tau is not None:
            self.plan = self._make_plan()
        deltas = self._deltas
        run, self.active, values = state.repaint(
            {"x": x},
            self._changed,
            self.plan,
            journal=self._journals[i],
            spread=self._spread,
            carried=deltas[-1].at(i, *deltas[:-1]) if rows[i] else None,
            wanted=self._changed.tiles,
        )
        if any(rows) and not rows[i]:
            deltas[:] = [*deltas[-2:], state.deltas(i, self._journals[i], max(rows))]
        self.records.extend(run.records)
        self.steps.append(StepRecord.of(i, not rows[i], run.records, time.perf_counter() - began))
        return values


def carried_rows(policy: Policy, height: int, width: int, steps: int) -> tuple[int, ...]:
    """For each step, the rows of the first resolution that is carried, of inputs of that size; 0: none is."""
    frontier = policy.frontier
    while frontier and min(height, width) >> frontier < policy.least_size:
        frontier -= 1  # of a resolution that is computed whole, no step keeps a canvas
    return tuple(0 if every else height >> frontier for every in policy.refreshed(steps))


class Denoising:
    """One image, and its edits, taken through every denoising step.

    Parameters
    ----------
    model
        A diffusion model.
    settings
        The settings of the denoising.
    states
        One for each step, painted or to be painted with the noised image.
    diffusion
        The diffusion side of the model; None: its family's.
    draw
        `draw(i, shape)` is the noise of step i, or of `START`; None: `seeds.noise` of the seed.
    most
        The result is cut to ±most; None: it is not.
    """

    def __init__(
        self,
        model: Any,
        settings: Settings,
        states: Sequence[State],
        *,
        diffusion: DiffusionDefaults | None = None,
        draw: Callable[[int, tuple[int, ...]], Host] | None = None,
        most: float | None = 1.0,
    ) -> None:
        self.model, self.settings, self.states = model, settings, states
        self.diffusion: DiffusionDefaults = model.diffusion if diffusion is None else diffusion
        self._draw = partial(seeds.noise, settings.seed) if draw is None else draw
        self._most = most
        self.times = settings.times()
        self.schedule = settings.noise_schedule()
        self._noise: Host | None = None
        """The noise that every trajectory of the last image's size starts from."""

    def noised(self, image: Host) -> Iterator[tuple[int, dict[str, Any], Host, Step]]:
        """For each step: its number, its condition, the noised image `[N, H, W, C]`, and the step for callbacks."""
        noise = self._start_noise(image.shape)
        ends: list[float | None] = [*self.times[1:], None]
        for i, (now, after) in enumerate(zip(self.times, ends, strict=True)):
            x = self.schedule.noised(image, noise, now)
            yield i, {self.diffusion.time: now}, x, Step(i, len(self.times), now, after, x, image)

    def edited(
        self, image: Host, before: Host, region: TileSet, compute: Compute, on_step: OnStep | None
    ) -> Host:
        """The image that results from an edited one in `region`; every other pixel is that of `before`.

        Parameters
        ----------
        image, before
            The edited image and the current one, float32 `[N, H, W, C]` in [-1, 1].
        region
            The pixels to recompute. At every step, the other pixels are those of `before`, noised alike.
        compute
            Takes and returns the tiles of the region, `[K, TILE, TILE, C]`.
        on_step
            Called after every step with whole images; its `x0` is a preview in the region, `before` elsewhere.
        """
        tiles, pixels = region.tiles, region.pixels[..., None]

        def noise(i: int) -> Host:  # of the whole image, since a generator gives it in order
            whole = self._start_noise(before.shape) if i == START else self._draw(i, before.shape)
            return gather_tiles(whole, tiles)

        x = self.schedule.noised(gather_tiles(image, tiles), noise(START), self.times[0])
        # of all steps before the first is computed: on a device, one wait then serves them all
        held = [state.fetch_input("x", tiles) for state in self.states]
        np.copyto(x, held[0]()[..., : x.shape[-1]], where=~pixels)
        for step in denoised(self.model, self.diffusion, self.settings, compute, x, noise):
            x, last = step.x, step.next_timestep is None
            if last and self._most is not None:
                np.clip(x, -self._most, self._most, out=x)
            around = gather_tiles(before, tiles) if last else held[step.index + 1]()
            np.copyto(x, around[..., : x.shape[-1]], where=~pixels)
            if on_step is not None:
                image = _with(before, tiles, x) if last else self.input(step.index + 1, len(before), tiles, x)
                preview = _with(before, tiles, np.where(pixels, step.x0, gather_tiles(before, tiles)))
                preview.flags.writeable = False
                on_step(dataclasses.replace(step, x=image, x0=preview))
        return _with(before, tiles, x)

    def _start_noise(self, shape: tuple[int, ...]) -> Host:
        if self._noise is None or self._noise.shape != shape:
            self._noise = self._draw(START, shape)
        return self._noise

    def input(self, i: int, samples: int, tiles: Tiles, values: Host) -> Host:
        """The noisy image `[N, H, W, C]` that step i reads of the first samples, with other values in some tiles.

        Of the step's channels, the first C, as `values` `[K, TILE, TILE, C]` have.
        """
        return _with(self.states[i].input("x")[:samples, ..., : values.shape[-1]], tiles, values)


def _with(image: Host, tiles: Tiles, values: Host) -> Host:
    """A copy of an image with other values in some tiles."""
    copy = np.array(image)
    scatter_tiles(copy, tiles, values)
    return copy
