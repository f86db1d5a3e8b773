"""One pass of a model over its canvases: a plan and canvases come in, recomputed tiles and a record come out.

`Run` gives a layer everything that is not a parameter: its canvas, its active tiles, its prepared weights, its
statistics. A dense run and an edit differ only in the run's plan. `Feature` is what layers pass on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from sparsegen.backends.interface import Activation, Array, Host, Source, Tiles

from ..errors import ShapeError
from ..tiling.canvas import Canvas
from ..tiling.policies import Plan
from ..tiling.tiles import TileSet
from ..tiling.windows import Read, Window
from .finite import FiniteChecks
from .journal import Journal
from .memory import Memory
from .stats import LayerRecord

T = TypeVar("T")
OnLayer = Callable[[LayerRecord], None]
"""Called after every layer of a run, with its record."""


@dataclass
class Inner:
    """A layer that another one computes on its way, without a canvas."""

    path: str
    macs_per_pixel: int
    milliseconds: float | None = None
    """Its time; set when it is computed in a run that measures."""


class Run:
    """One execution of a model: dense when its plan is `Everything`, else an edit."""

    def __init__(
        self,
        memory: Memory,
        plan: Plan,
        *,
        journal: Journal | None = None,
        edited: Host | None = None,
        on_layer: OnLayer | None = None,
    ) -> None:
        """`edited` bool `[N]`: the samples that an edit touches; None: all. Only with `on_layer` is time measured."""
        self.memory = memory
        self.backend = memory.backend
        self.plan = plan
        self.journal = journal
        self.records: list[LayerRecord] = []
        self.finite = FiniteChecks(self.backend)
        """The pending checks of values that layers wrote."""
        self.codes: dict[str, tuple[Canvas, TileSet]] = {}
        """Path -> the canvas of codes that this run computed, and the tiles that may have changed."""
        self._edited = edited
        self._on_layer = on_layer
        self._full_sets: dict[tuple[int, int, int], TileSet] = {}
        memory.begin()

    def prepared(self, path: str, prepare: Callable[..., T], *purpose: Hashable) -> T:
        """A layer's weights in the backend's layout: `prepare(backend, *purpose)`, once for each purpose."""
        return self.memory.prepared.get(path, purpose, lambda: prepare(self.backend, *purpose))

    def once_per_base(self, path: str, compute: Callable[[], tuple[Array, ...]]) -> tuple[Array, ...]:
        """Arrays that the dense run computes and every edit of its base reuses: statistics, embeddings."""
        if path not in self.memory.statistics:
            self.memory.statistics[path] = compute()
        return self.memory.statistics[path]

    def compute(
        self,
        path: str,
        shape: tuple[int, int, int, int],
        reads: Sequence[Read],
        kernel: Callable[[Array, Tiles], None],
        *,
        macs_per_pixel: int,
        whole_tiles: bool = False,
        dtype: str = "float32",
        inner: Inner | None = None,
    ) -> Feature:
        """Recompute the active tiles of a layer's canvas, in place, and return them as changed.

        Parameters
        ----------
        path
            The layer's path: the name of its canvas.
        shape
            `(N, H, W, C)` of the canvas.
        reads
            Everything that the output depends on and that an edit may change.
        kernel
            `kernel(array, tiles)` writes those tiles.
        whole_tiles
            Whether every pixel of a recomputed tile may get new bits, not only the pixels that read a changed one.
            (Under a tau above 0 such a pixel counts as unchanged.)
        inner
            A layer that `kernel` computes on its way: it is recorded before this one.
        """
        active = self.plan.active(reads, shape[:3])
        if whole_tiles and self.plan.whole_tiles:
            active = active.whole()
        changed = active
        transient = self.memory.is_transient(reads, dtype)
        if transient:
            canvas, active = self.memory.transient(path, shape), self._everything(active)
        else:
            canvas = self.memory.canvas(path, shape, dtype)
        start = self.clock()
        if active.count:
            if self.journal is not None and not transient:
                self.journal.save_before(self.memory, path, active)
                canvas = self.memory.canvas(path, shape, dtype)
            self.memory.fetch(reads, active)
            kernel(canvas.array, active.tiles)
            self.finite.layer(path, canvas.array, active.tiles)
            self.memory.commit(canvas, active.tiles, self.finite)
            if self.journal is not None and self.plan.tau is not None and not transient:
                changed = self._hold_back(canvas, active, self.journal, self.plan.tau)
        elapsed = self.elapsed(start)
        if inner is not None:
            self.record(inner.path, active, inner.macs_per_pixel, inner.milliseconds)
            if elapsed is not None:
                elapsed -= inner.milliseconds or 0.0
        self.record(path, active, macs_per_pixel, elapsed)
        return Feature(self, (canvas,), (changed,))

    def end(self) -> None:
        """End the run: wait until every value is computed and checked.

        Raises
        ------
        NonFiniteError, SessionError
            A layer computed a value that is not finite, or that float16 cannot hold. The caller takes the run back:
            left in a canvas, the value would spread through later edits.
        """
        self.finite.raise_first()

    def _everything(self, active: TileSet) -> TileSet:
        """All tiles of the edited samples; `active` itself where it has them."""
        if active.shape not in self._full_sets:
            self._full_sets[active.shape] = TileSet.full(*active.shape, only=self._edited)
        whole = self._full_sets[active.shape]
        return active if active.count == whole.count else whole

    def _hold_back(self, canvas: Canvas, active: TileSet, journal: Journal, tau: float) -> TileSet:
        """The active tiles that moved by more than `tau`; all other values are restored from the journal.

        Restored are the tiles that moved less, and in all tiles the pixels that no changed pixel reaches: recomputed,
        they hold changes that an earlier edit held back and that their readers have not read.
        """
        backend, array = self.backend, canvas.array
        _, old = journal.saved(backend, canvas.path)
        if not np.issubdtype(array.dtype, np.floating):
            tau = 0  # codes are labels: close numbers do not mean close values
        moved = backend.largest_change(array, active.tiles, old).astype(np.float64) > tau
        new_pixels = active.pixels & moved[:, None, None]
        mixed = np.flatnonzero(~new_pixels.all((1, 2)))
        if len(mixed):
            tiles = Tiles(active.tiles.host[mixed])
            backend.merge_tiles(array, tiles, old[mixed], ~new_pixels[mixed])
            self.memory.commit(canvas, tiles, self.finite)
        return TileSet.of_tiles(active.shape, active.tiles.host[moved], active.pixels[moved])

    # -- the record --------------------------------------------------------------------------------------

    def clock(self) -> float | None:
        """The time now, in seconds; None if the run does not measure."""
        return None if self._on_layer is None else time.perf_counter()

    def elapsed(self, start: float | None) -> float | None:
        """Milliseconds since `start`, once everything queued is computed; None if the run does not measure."""
        if start is None:
            return None
        self.backend.synchronize()
        return (time.perf_counter() - start) * 1e3

    def record(self, path: str, active: TileSet, macs_per_pixel: int, milliseconds: float | None) -> None:
        """Note the cost of a layer that recomputed `active`."""
        n, h, w = active.shape
        macs, dense = macs_per_pixel * active.area, macs_per_pixel * n * h * w
        record = LayerRecord(path, h, w, active.count, active.total, macs, dense, milliseconds)
        self.records.append(record)
        if self._on_layer is not None:
            self._on_layer(record)


class Modulation(Protocol):
    """Gamma and beta for every pixel, as a `Source` takes them."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, 2C)`: gamma in the first C channels, beta in the last C."""

    @property
    def modulation(self) -> tuple[Array, Array | None]:
        """A canvas and None; or rows `[R, 2C]` and the canvas of codes that choose among them."""

    def reads(self, window: Window) -> list[Read]:
        """The canvases that a layer depends on if it reads this through `window`."""


@dataclass(frozen=True)
class Feature:
    """An activation: canvases of one resolution, the tiles that may have changed in them, and pending work.

    Pending work (a norm, a modulation, an activation, upsampling) is applied by the layer that reads the feature while
    it gathers its tiles, so normalised, activated, upsampled or concatenated copies never exist.
    """

    run: Run
    parts: tuple[Canvas, ...]
    """Canvases `[N, h, w, C_i]`, read as if concatenated along channels."""
    changed: tuple[TileSet, ...]
    """Per part: the tiles that this run recomputed."""
    upsample: int = 1
    scale: Array | None = None
    shift: Array | None = None
    modulated_by: Modulation | None = None
    activation: Activation = "identity"

    @property
    def source(self) -> Source:
        """The arrays and the pending work, as a kernel reads them."""
        arrays = tuple(part.array for part in self.parts)
        modulation, codes = (None, None) if self.modulated_by is None else self.modulated_by.modulation
        return Source(arrays, self.upsample, self.scale, self.shift, modulation, self.activation, codes)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, C)` as read."""
        n, h, w, c = self.parts[0].shape
        for part in self.parts[1:]:
            c += part.shape[3]
        return n, h * self.upsample, w * self.upsample, c

    @property
    def modulation(self) -> tuple[Array, None]:
        """The canvas of a modulating feature. Raises ShapeError: it has several parts, upsampling or pending work."""
        if len(self.parts) != 1 or self.upsample != 1:
            raise ShapeError(
                "gamma and beta must be one canvas of the size of the feature that they modulate"
            )
        self._nothing_pending("a modulation")
        return self.parts[0].array, None

    def reads(self, window: Window) -> list[Read]:
        """The canvases that a layer depends on if it reads this feature through `window`."""
        resampled = window if self.upsample == window.upsample else replace(window, upsample=self.upsample)
        reads = [
            Read(changed, resampled, canvas=part)
            for changed, part in zip(self.changed, self.parts, strict=True)
        ]
        return reads if self.modulated_by is None else reads + self.modulated_by.reads(window)

    def normalised(self, scale: Array, shift: Array) -> Feature:
        """`x * scale + shift` per channel (`[1 or N, C]`), pending. Before any other pending work but upsampling."""
        self._nothing_pending("a norm")
        return replace(self, scale=scale, shift=shift)

    def modulated(self, gamma_beta: Modulation) -> Feature:
        """`x * (1 + gamma) + beta` per pixel, pending; `gamma_beta` has 2C channels and nothing pending."""
        if self.modulated_by is not None or self.activation != "identity":
            raise ShapeError("a modulation must come before an activation, and only once")
        n, h, w, c = self.shape
        if gamma_beta.shape != (n, h, w, 2 * c):
            raise ShapeError(f"gamma and beta are {gamma_beta.shape}, expected {(n, h, w, 2 * c)}")
        _ = gamma_beta.modulation  # raises where it cannot modulate
        return replace(self, modulated_by=gamma_beta)

    def activated(self, activation: Activation) -> Feature:
        """An activation, pending after everything else."""
        if self.activation != "identity":
            raise ShapeError(f"{self.activation} is pending already; write it out before {activation}")
        return replace(self, activation=activation)

    def upsampled(self) -> Feature:
        """Nearest upsampling by two, as a way to read. Per-channel work commutes with it, a modulation does not."""
        if self.modulated_by is not None or self.upsample != 1:
            raise ShapeError("upsampling must come before a modulation, and only once")
        return replace(self, upsample=2)

    def _nothing_pending(self, operation: str) -> None:
        if self.scale is not None or self.modulated_by is not None or self.activation != "identity":
            raise ShapeError(f"{operation} needs a feature without pending work")


def upsample(x: Feature) -> Feature:
    """Nearest upsampling by two."""
    return x.upsampled()


def leaky_relu(x: Feature) -> Feature:
    """`x if x > 0 else 0.2 x`."""
    return x.activated("leaky_relu")


def silu(x: Feature) -> Feature:
    """`x * sigmoid(x)`."""
    return x.activated("silu")


def concat(*features: Feature) -> Feature:
    """Concatenation along channels, as a list of parts to read; no part may have pending work but upsampling."""
    first = features[0]
    for feature in features:
        feature._nothing_pending("concatenation")
        if feature.upsample != first.upsample or feature.shape[:3] != first.shape[:3]:
            raise ShapeError(f"cannot concatenate {feature.shape} with {first.shape}")
    return replace(
        first,
        parts=tuple(part for f in features for part in f.parts),
        changed=tuple(changed for f in features for changed in f.changed),
    )
