"""Denoising steps: a state for each step, the memory that they take, and the loop from noise to an image.

A sampler only adds, multiplies and clips pixel by pixel. So an edit runs it on the tiles of its region alone,
`[K, TILE, TILE, C]`: no step copies, noises or converts a whole image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host, Tiles
from sparsegen.backends.shapes import ShapesBackend

from ..diffusion import samplers
from ..diffusion.samplers import START, Noise, Step
from ..diffusion.schedules import Image
from ..diffusion.settings import DiffusionDefaults, OnStep, Settings
from ..editing.dry_run import dry_run
from ..editing.state import State
from ..engine.allocator import BackendAllocator
from ..engine.memory import input_path
from ..engine.memory_float16 import memory_kind
from ..engine.store import block_bytes
from ..tiling.policies import Everything
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
    """Most memory that journals may take beside the canvases."""

    @property
    def fits(self) -> bool:
        """Whether there is room on the disk."""
        return self.disk_bytes <= self.disk_free

    def __str__(self) -> str:
        shared = f" and {self.shared_bytes / 1e6:.1f} MB for all" if self.shared_bytes else ""
        return (
            f"{self.steps} steps of {self.bytes_per_step / 1e6:.1f} MB{shared}: {self.ram_bytes / 1e9:.2f} GB in RAM, "
            f"{self.disk_bytes / 1e9:.2f} GB on disk ({self.disk_free / 1e9:.1f} GB free); to undo, up to "
            f"{self.undo_bytes / 1e9:.2f} GB"
        )


def cache_blocks(
    model: Any, x: Host, time: float, storage: str, *, least_size: int, carried_rows: int
) -> tuple[list[int], dict[str, int]]:
    """Bytes of the canvases that a step keeps of a noisy image, and of the canvases that all steps share, by path.

    `least_size` and `carried_rows` are those of the step's `Memory`.
    """
    inputs = model.encode(x, **{model.diffusion.time: time})
    backend = ShapesBackend()
    memory = memory_kind(storage)(backend, BackendAllocator(backend))
    memory.inputs = {name: input_path(name) for name in inputs.canvases}
    full = TileSet.full(*inputs.shape)
    dry = dry_run(model, inputs, Everything(), full, least_size=least_size, carried_rows=carried_rows).memory
    each = []
    shared = {path: block_bytes(array.nbytes) for path, array in dry.allocator.shared_arrays.items()}
    for path, canvas in dry.canvases.items():
        kept = np.dtype(memory.kept_as(path, canvas.shape, str(canvas.dtype)))
        each.append(block_bytes(canvas.size * kept.itemsize))
        if kept != canvas.dtype:
            shared[path] = block_bytes(canvas.nbytes)
    return each, shared


def denoised(model: Any, settings: Settings, compute: Compute, x: Image, noise: Noise) -> Iterator[Step]:
    """The sampler's steps from `x` on, float32 `[..., C]`: whole images, or tiles of them.

    `noise(i)` is the standard normal noise of step i, of x's shape. Between two steps the caller may write into
    `step.x`.
    """

    def predict(x: Image, i: int, now: float) -> Image:
        predicted: Image = model.prediction(compute(i, x, now), x, now)
        return predicted

    diffusion: DiffusionDefaults = model.diffusion
    return settings.trajectory(predict, x, predicts=diffusion.predicts, noise=noise)


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
    """

    def __init__(self, model: Any, settings: Settings, states: Sequence[State]) -> None:
        self.model, self.settings, self.states = model, settings, states
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
            yield i, {self.model.diffusion.time: now}, x, Step(i, len(self.times), now, after, x, image)

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
        tiles, pixels, seed = region.tiles, region.pixels[..., None], self.settings.seed

        def noise(i: int) -> Host:  # of the whole image, since a generator gives it in order
            whole = self._start_noise(before.shape) if i == START else samplers.noise(seed, i, before.shape)
            return gather_tiles(whole, tiles)

        x = self.schedule.noised(gather_tiles(image, tiles), noise(START), self.times[0])
        # of all steps before the first is computed: on a device, one wait then serves them all
        held = [state.fetch_input("x", tiles) for state in self.states]
        np.copyto(x, held[0](), where=~pixels)
        for step in denoised(self.model, self.settings, compute, x, noise):
            x, last = step.x, step.next_timestep is None
            if last:
                np.clip(x, -1, 1, out=x)
            around = gather_tiles(before, tiles) if last else held[step.index + 1]()
            np.copyto(x, around, where=~pixels)
            if on_step is not None:
                image = _with(before, tiles, x) if last else self.input(step.index + 1, tiles, x)
                preview = _with(before, tiles, np.where(pixels, step.x0, gather_tiles(before, tiles)))
                preview.flags.writeable = False
                on_step(dataclasses.replace(step, x=image, x0=preview))
        return _with(before, tiles, x)

    def _start_noise(self, shape: tuple[int, ...]) -> Host:
        if self._noise is None or self._noise.shape != shape:
            self._noise = samplers.noise(self.settings.seed, START, shape)
        return self._noise

    def input(self, i: int, tiles: Tiles, values: Host) -> Host:
        """The noisy image `[N, H, W, C]` that step i reads, with other values in some tiles."""
        state = self.states[i]
        return _with(state.memory.whole(state.inputs["x"]), tiles, values)


def _with(image: Host, tiles: Tiles, values: Host) -> Host:
    """A copy of an image with other values in some tiles."""
    copy = np.array(image)
    scatter_tiles(copy, tiles, values)
    return copy
