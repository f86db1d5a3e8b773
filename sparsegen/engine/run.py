"""One pass of a model over its canvases: a plan and canvases come in, recomputed tiles and a record come out.

The model's code runs once. Each of its layers hands the run a *step*: what to compute, from which canvases, into which
canvas. The run does it at once and notes it, and the steps in their order are the model's *program*. An edit is the
same program under another plan: no model code runs again. A dense run and an edit differ only in the run's plan.

`Run` gives a layer everything that is not a parameter: its canvas, its active tiles, its prepared weights, its
statistics. What layers pass on is a `Feature` (`feature.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from sparsegen.backends.interface import Array, Host, Source, Tiles

from ..errors import ShapeError
from ..tiling.canvas import Canvas, Compute
from ..tiling.policies import NOTHING, Everything, Plan
from ..tiling.tiles import TileSet
from ..tiling.windows import Read, Window
from .carried import Deltas
from .finite import FiniteChecks
from .journal import Journal
from .memory import Memory
from .moments import Moments
from .scratch import Computed, Inner, Scratch, flattened, scratch
from .stats import LayerRecord

T = TypeVar("T")
OnLayer = Callable[[LayerRecord], None]
"""Called after every layer of a run, with its record."""


@dataclass(eq=False)
class LayerStep:
    """A layer's step: its canvas, and all that computing some tiles of it takes."""

    run: Run
    canvas: Canvas
    shape: tuple[int, int, int, int]
    reads: tuple[Read, ...]
    """With the changes of the run that noted the step; later runs look the changes up in the canvases."""
    kernel: Compute
    macs_per_pixel: int
    whole_tiles: bool
    below: tuple[Scratch, ...]
    """The scratch layers that it reads."""
    inners: list[Inner]
    """The layers that it last computed on its way, in order."""
    keys: dict[Hashable, Hashable] = field(default_factory=dict)
    """The kind of a plan, and which of `reads` changed -> the key of its active tiles."""

    def __call__(self) -> None:
        self.run.recompute(self)

    @property
    def rows(self) -> int:
        """Rows of its canvas."""
        return self.shape[1]

    @cached_property
    def nothing(self) -> TileSet:
        """No tile of its canvas."""
        return TileSet.empty(*self.shape[:3])

    def key(self, plan: Plan) -> Hashable:
        """The key of its active tiles under a plan that is keyed; None: no input changed."""
        changed = (read.canvas.changed.count > 0 for read in self.reads if read.canvas is not None)
        kind = (type(plan), *changed)
        if kind not in self.keys:
            self.keys[kind] = plan.key([read.now() for read in self.reads], self.shape[:3])
        return self.keys[kind]

    def active(self, plan: Plan) -> TileSet:
        """Its active tiles under a plan."""
        if not plan.keyed:
            return plan.active([read.now() for read in self.reads], self.shape[:3])
        key = self.key(plan)
        return self.nothing if key is None else plan.tiles(key)


@dataclass(eq=False)
class NormStep:
    """A norm's step: the scale and shift of the present run."""

    path: str
    set_affine: Callable[[], None]
    parts: tuple[Canvas, ...]
    """The canvases that it normalises."""

    def __call__(self) -> None:
        self.set_affine()

    @property
    def rows(self) -> int:
        """Rows of these canvases."""
        return self.parts[0].shape[1]


@dataclass(eq=False)
class Affine:
    """The scale and shift of a norm, `[1 or N, C]`. A norm of measured moments sets them anew in every run."""

    scale: Array
    shift: Array


class Run:
    """One execution of a model: dense when its plan is `Everything`, else an edit.

    Parameters
    ----------
    memory
        The canvases.
    plan
        The active tiles.
    journal
        Of an edit: saves tiles before they change.
    edited
        bool `[N]`: the samples that an edit touches; None: all.
    on_layer
        Called after every layer; only then is time measured.
    carried
        Deltas of an earlier denoising step: the canvases that they are for take them, instead of being computed.
    """

    def __init__(
        self,
        memory: Memory,
        plan: Plan,
        *,
        journal: Journal | None = None,
        edited: Host | None = None,
        on_layer: OnLayer | None = None,
        carried: Deltas | None = None,
    ) -> None:
        self.memory = memory
        self.backend = memory.backend
        self.program: list[Callable[[], None]] | None = None
        """Where steps are noted; None: they are not."""
        self._scratch = Computed()
        self.begin(plan, journal=journal, edited=edited, on_layer=on_layer, carried=carried)

    def begin(
        self,
        plan: Plan,
        *,
        journal: Journal | None = None,
        edited: Host | None = None,
        on_layer: OnLayer | None = None,
        carried: Deltas | None = None,
    ) -> None:
        """Begin another execution, over the same memory; the parameters are those of the class."""
        self.plan = plan
        self.journal = journal
        self.carried = carried
        self.records: list[LayerRecord] = []
        self.finite = FiniteChecks(self.backend)
        """The pending checks of values that layers wrote."""
        self.codes: dict[str, Canvas] = {}
        """Path -> the canvas of codes that this run computed."""
        self.measured: dict[str, tuple[Array, Array]] = {}
        """Path -> the moments of a canvas that its layer measured while it wrote all tiles."""
        self._edited = edited
        self._on_layer = on_layer
        self._made: dict[Hashable, Any] = {}
        self._scratch.clear()
        self.memory.begin()

    @property
    def measures(self) -> bool:
        """Whether the time of each layer is measured."""
        return self._on_layer is not None

    def do(self, step: Callable[[], None]) -> None:
        """Do a step of the model, and note it in the program."""
        step()
        if self.program is not None:
            self.program.append(step)

    def prepared(self, path: str, prepare: Callable[..., T], *purpose: Hashable) -> T:
        """A layer's weights in the backend's layout: `prepare(backend, *purpose)`, once for each purpose."""
        return self.memory.prepared.get(path, purpose, lambda: prepare(self.backend, *purpose))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make()` returned at the first call with this key in this run: layers share it."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def once_per_base(self, path: str, compute: Callable[[], tuple[Array, ...]]) -> tuple[Array, ...]:
        """Arrays that the dense run computes and every edit of its base reuses: statistics, embeddings."""
        if path not in self.memory.statistics:
            self.memory.statistics[path] = compute()
        return self.memory.statistics[path]

    def once_per_condition(
        self, path: str, condition: Hashable, compute: Callable[[], tuple[Array, ...]]
    ) -> tuple[Array, ...]:
        """Arrays that a layer computes of a condition alone, such as the keys of a text.

        They are computed once for all memories of the model that share an allocator, until the condition is another.
        """
        known, condition = self.memory.allocator.conditioned, (condition, self.memory.prepared)
        if path not in known or known[path][0] != condition:
            known[path] = (condition, compute())
        return known[path][1]

    def compute(
        self,
        path: str,
        shape: tuple[int, int, int, int],
        reads: Sequence[Read],
        kernel: Compute,
        *,
        macs_per_pixel: int,
        whole_tiles: bool = False,
        dtype: str = "float32",
        kept: bool = True,
    ) -> Canvas:
        """Recompute the active tiles of a layer's canvas, in place; returns the canvas, with these as changed.

        Parameters
        ----------
        path
            The layer's path: the name of its canvas.
        shape
            `(N, H, W, C)` of the canvas.
        reads
            Everything that the output depends on and that an edit may change.
        kernel
            Writes the active tiles. Later runs call it again, so it reads arrays from canvases.
        whole_tiles
            Whether every pixel of a recomputed tile may get new bits, not only the pixels that read a changed one.
            (Under a tau above 0 such a pixel counts as unchanged.)
        kept
            False: a scratch layer, which is computed later, for the tiles that the layers compute that read it.
        """
        if not (kept or self.memory.keeps_scratch):
            allocator = self.memory.allocator
            return scratch(allocator, path, shape, reads, kernel, macs_per_pixel, whole_tiles)
        reads, below = flattened(path, reads)
        self.memory.keep_frontier(shape, reads, self.finite)
        canvas = self.memory.canvas(path, shape, dtype, reads)
        whole_tiles = whole_tiles or any(each.whole_tiles for each in below)
        step = LayerStep(self, canvas, shape, tuple(reads), kernel, macs_per_pixel, whole_tiles, below, [])
        for each in below:
            for other in each.chain():
                if not other.counted:
                    step.inners.append(other.inner)
                    other.counted = True
        step.inners.reverse()  # the deepest first
        self.do(step)
        return canvas

    def recompute(self, layer: LayerStep) -> None:
        """Compute the active tiles of a layer."""
        canvas, kernel = layer.canvas, layer.kernel
        transient = self.memory.ready(canvas, layer.shape)
        delta = None if self.carried is None else self.carried.kernel(self.backend, canvas)
        reads: Sequence[Read] = layer.reads
        if delta is not None:
            active, kernel = delta
            changed = active
            reads = [Read(active, Window(), canvas=canvas)]  # it is added to the canvas's own values
        else:
            active = layer.active(self.plan)
            if layer.whole_tiles and self.plan.whole_tiles:
                active = active.whole()
            if self.plan.computes_whole(canvas.path):
                active = self.everything(active)
            changed = active
            if transient:
                active = self.everything(active)
        start = self.clock()
        if active.count:
            if self.journal is not None and not transient:
                self.journal.save_before(self.memory, canvas.path, active, in_place=delta is not None)
            self.memory.fetch(reads, active)
            if delta is None:
                self.compute_below(layer, active.tiles)
            self.queue(canvas, active, kernel, layer.below)
            if self.journal is not None:
                if self.plan.tau is not None and not transient:
                    changed = self._hold_back(canvas, active, self.journal, self.plan.tau)
                self.follow_moments(canvas, active, self.journal)
        canvas.changed = changed
        self.record_layer(layer, active, self.elapsed(start), computed=delta is None)

    def queue(
        self,
        canvas: Canvas,
        active: TileSet,
        kernel: Compute,
        below: Sequence[Scratch] = (),
    ) -> None:
        """Queue the computation of some tiles of a canvas, and their check; `below`: scratch layers that it reads."""
        if not kernel(canvas.array, active.tiles):
            inners = [other.path for each in below for other in each.chain()]
            self.finite.layer(canvas.path, canvas.array, active.tiles, inners=[*dict.fromkeys(inners)])
        self.memory.commit(canvas, active.tiles, self.finite)

    def compute_below(self, layer: LayerStep, tiles: Tiles) -> None:
        """Queue the computation of some tiles of the scratch layers that a layer reads.

        They are not checked: a value that is not finite is found in the layer.
        """
        if layer.below:
            layer.inners = self._scratch.compute(layer.below, tiles, self._timed)

    def _timed(self, inner: Inner, work: Callable[[], None]) -> None:
        start = self.clock()
        work()
        inner.milliseconds = self.elapsed(start)

    def end(self) -> None:
        """End the run: wait until every value is computed and checked.

        Raises
        ------
        NonFiniteError, SessionError
            A layer computed a value that is not finite, or that float16 cannot hold. The caller takes the run back:
            left in a canvas, the value would spread through later edits.
        """
        self.finite.raise_first()

    def let_go(self) -> None:
        """Let go of the journal and of everything else that is of this execution alone, but for `records`."""
        self.program, self.journal, self.carried, self._on_layer = None, None, None, None
        self.plan, self.finite, self._edited = NOTHING, FiniteChecks(self.backend), None
        self.codes.clear()
        self.measured.clear()
        self._made.clear()
        self._scratch.clear()

    # -- norms -------------------------------------------------------------------------------------------

    def norm(
        self,
        path: str,
        parts: tuple[Canvas, ...],
        affine: Callable[[Array, Array], tuple[Array, Array]],
        *,
        follows: bool = True,
    ) -> Affine:
        """The scale and shift of a norm of canvases that are read side by side, by their moments.

        The dense run measures the moments. An edit uses the same, or under a plan with `statistics` a mixture of these
        and the moments of the values as they now are.

        Parameters
        ----------
        path
            The norm's path.
        affine
            `affine(mean, variance)` is the scale and shift, from the mean and variance of each channel, two `[N, C]`.
        follows
            False: every edit uses the dense run's, whatever the plan.

        Raises
        ------
        ShapeError
            A part is a scratch layer, of which no run has all values.
        """
        if any(isinstance(part, Scratch) for part in parts):
            raise ShapeError(f"{path}: moments are measured of layers that are kept, not of a scratch layer")
        norm = Affine(None, None)

        def set_affine() -> None:
            known = self.once_per_base(path, lambda: affine(*self._moments(parts, follows)))
            if follows and self.plan.statistics and any(part.changed.count for part in parts):
                known = affine(*self._moments(parts))
            norm.scale, norm.shift = known

        self.do(NormStep(path, set_affine, parts))
        return norm

    def wants_moments(self, path: str) -> bool:
        """Whether a layer is to measure its canvas's moments while it writes it, into `measured`.

        In a dense run, where a norm reads the canvas, as far as runs before this one tell, and its values are kept as
        they are written.
        """
        dense = self.journal is None and isinstance(self.plan, Everything)
        return dense and path in self.memory.prepared.normed and self.memory.storage == "float32"

    def _moments(self, parts: Sequence[Canvas], follows: bool = True) -> tuple[Array, Array]:
        """Mean and variance of each channel of canvases that are read side by side, two `[N, C]`.

        `follows`: they are kept, and edits follow them.
        """
        moments = self.memory.moments if follows else {}
        for part in parts:
            if part.path not in moments:
                self.memory.prepared.normed.add(part.path)
                measured = self.measured.get(part.path)
                if measured is None:
                    self.memory.fetch_whole(part)
                    measured = self.backend.channel_moments(Source((part.array,)))
                moments[part.path] = Moments.measured(self.backend, *measured)
        means, variances = zip(*(moments[part.path].used for part in parts), strict=True)
        return self.backend.join_channels(means), self.backend.join_channels(variances)

    def follow_moments(self, canvas: Canvas, active: TileSet, journal: Journal) -> None:
        """Move the moments of a canvas by the tiles that this run repainted."""
        memory, path = self.memory, canvas.path
        before = memory.moments.get(path)
        if before is None:
            return
        journal.save_moments(path, before)
        share = active.shares
        edited = {n for n, each in enumerate(share) if each}
        if not self.plan.statistics:
            memory.moments[path] = before.not_followed(edited)
            return
        measured = {n for n in edited if share[n] == 1 or n in before.unknown}
        change = None
        if measured < edited:
            _, old = journal.saved(self.backend, path)
            change = self.backend.sum_change(canvas.array, active.tiles, old)
        if measured:  # those samples alone: the bits of a sample do not depend on the others
            self.memory.fetch_whole(canvas)
            now = self.backend.second_moments(*self.backend.channel_moments(Source((canvas.array,))))
            before = before.with_fresh(now, measured)
            if change is not None:
                change[sorted(measured)] = 0
        memory.moments[path] = before.followed(
            self.backend, change, active=active, statistics=self.plan.statistics
        )

    def everything(self, active: TileSet) -> TileSet:
        """All tiles of the edited samples; `active` itself where it has them."""
        shape = active.shape
        whole = self.once(("everything", shape), lambda: TileSet.full(*shape, only=self._edited))
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
        mixed = ~new_pixels.all((1, 2))
        if mixed.any():
            backend.merge_tiles(array, active.tiles, old, ~new_pixels)
            self.memory.commit(canvas, Tiles(active.tiles.host[mixed]), self.finite)
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

    def record_layer(
        self, layer: LayerStep, active: TileSet, elapsed: float | None = None, *, computed: bool = True
    ) -> None:
        """Note the cost of a layer, and before it that of the layers that it computes on its way."""
        for inner in layer.inners:
            self.record(inner.path, active, inner.macs_per_pixel, inner.milliseconds, computed=computed)
            if elapsed is not None:
                elapsed -= inner.milliseconds or 0.0
        self.record(layer.canvas.path, active, layer.macs_per_pixel, elapsed, computed=computed)

    def record(
        self,
        path: str,
        active: TileSet,
        macs_per_pixel: int,
        milliseconds: float | None,
        *,
        computed: bool = True,
    ) -> None:
        """Note the cost of a layer that recomputed `active`; not `computed`: a carried delta was added there."""
        n, h, w = active.shape
        macs, dense = macs_per_pixel * active.area * computed, macs_per_pixel * n * h * w
        record = LayerRecord(path, h, w, active.count, active.total, macs, dense, milliseconds)
        self.records.append(record)
        if self._on_layer is not None:
            self._on_layer(record)
