"""One pass of a model over its canvases: a plan and canvases come in, recomputed tiles and a record come out.

`Run` is what a layer asks for everything it does not own: its canvas, its active tiles, its prepared weights, its
measured statistics. A dense run and an edit differ only in the run's plan. `Feature` is what layers pass on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from sparsegen.backends.interface import Activation, Array, Host, Source, Tiles, WindowSet

from ..errors import NonFiniteError, ShapeError
from ..tiling.policies import Plan
from ..tiling.tiles import TileSet, strip
from ..tiling.windows import Read, Window
from .codebook import Codebook, windows_path
from .journal import Journal
from .memory import Memory

T = TypeVar("T")


@dataclass(frozen=True)
class LayerRecord:
    """What one layer did in one run."""

    path: str
    height: int
    width: int
    active: int
    """Tiles recomputed."""
    total: int
    """Tiles of the canvas."""
    macs: int
    """Multiply-accumulates of the tiles recomputed, counted as the layer's plain formula (zeros included)."""
    macs_dense: int
    milliseconds: float


@dataclass
class Part:
    """A layer that another computes on its way, in no canvas of its own."""

    path: str
    macs_per_pixel: int
    milliseconds: float = 0.0
    """What it took; set as it is computed."""


class Run:
    """One execution of a model: dense when its plan is `Everything`, else an edit."""

    def __init__(
        self, memory: Memory, plan: Plan, *, journal: Journal | None = None, edited: Host | None = None
    ) -> None:
        """`edited` bool `[N]`: the samples that an edit touches; None: all."""
        self.memory = memory
        self.backend = memory.backend
        self.plan = plan
        self.journal = journal
        self.records: list[LayerRecord] = []
        self._edited = edited
        self._whole: dict[tuple[int, int, int], TileSet] = {}
        self._encoded: dict[
            tuple[int, int, int], tuple[tuple[Array, ...], tuple[TileSet, ...]]
        ] = {}  # parts, changed
        self._codebooks: dict[int, Codebook] = {}
        memory.begin()
        self.on_layer: Callable[[LayerRecord], None] | None = None

    def prepared(self, path: str, prepare: Callable[..., T], *purpose: Hashable) -> T:
        """A layer's weights in the backend's layout: `prepare(backend, *purpose)`, again only for another purpose."""
        return self.memory.prepared.get(path, purpose, lambda: prepare(self.backend, *purpose))

    def measured(self, path: str, measure: Callable[[], tuple[Array, ...]]) -> tuple[Array, ...]:
        """Statistics measured in the dense run and reused by every edit."""
        if path not in self.memory.measured:
            self.memory.measured[path] = measure()
        return self.memory.measured[path]

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
        within: Part | None = None,
    ) -> Feature:
        """Recompute the active tiles of a layer's canvas, in place; what comes out is said to have changed.

        Parameters
        ----------
        path
            The layer's path: its canvas's name.
        shape
            `(N, H, W, C)` of the canvas.
        reads
            All that the output depends on and that an edit may change.
        kernel
            `kernel(canvas, tiles)` writes those tiles.
        whole_tiles
            Every pixel of a recomputed tile may get other bits than before, not only those that read a changed one.
            (A tau above 0 takes that for no change.)
        within
            A layer that `kernel` computes on its way: it is recorded before this one.

        Raises
        ------
        NonFiniteError
            The layer computed a value that is not finite. (Left in a canvas it would spread through later edits.)
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
        start = time.perf_counter()
        if active.count:
            if self.journal is not None and not transient:
                self.journal.keep(self.memory, path, active)
                canvas = self.memory.canvas(path, shape, dtype)
            self.memory.fetch(reads, active)
            kernel(canvas, active.tiles)
            self.check_finite(path, canvas, active.tiles)
            self.memory.keep(path, canvas, active.tiles)
            if self.journal is not None and self.plan.tau is not None and not transient:
                _, old = self.journal.kept(self.backend, path)
                changed = self._settle(path, canvas, active, old, self.plan.tau)
            self.backend.synchronize()
        elapsed = (time.perf_counter() - start) * 1e3
        if within is not None:
            self._record(within.path, active, within.macs_per_pixel, within.milliseconds)
            elapsed -= within.milliseconds
        self._record(path, active, macs_per_pixel, elapsed)
        return Feature(self, (canvas,), (changed,))

    def _everything(self, active: TileSet) -> TileSet:
        """All tiles of the edited samples; `active` itself where it has them."""
        if active.shape not in self._whole:
            self._whole[active.shape] = TileSet.full(*active.shape, only=self._edited)
        whole = self._whole[active.shape]
        return active if active.count == whole.count else whole

    def check_finite(self, path: str, canvas: Array, tiles: Tiles) -> None:
        """Raise NonFiniteError if a value in `tiles` of a layer's canvas is not finite."""
        found = self.backend.find_non_finite(canvas, tiles)
        if found is not None:
            raise _not_finite(path, found)

    def encoded(self, indices: Feature, *, kernel: int, step: int = 1, size: tuple[int, int]) -> Feature:
        """The codes of the `kernel`² windows, `step` apart, of an index feature: a feature of `size`, one channel.

        Once in a run, however many layers ask; `memory.codebooks` has the windows under the codes' path.
        """
        source = indices.parts[0]
        key = (id(source), kernel, step)  # a canvas outlives the run
        if key not in self._encoded:
            of = next(path for path, canvas in self.memory.canvases.items() if canvas is source)
            path = windows_path(of, kernel, step)
            n, _, _, planes = indices.shape
            codebook = self.memory.codebooks.get(path)
            if codebook is None:
                codebook = self.memory.codebooks[path] = Codebook(WindowSet(kernel * kernel * planes))
            if self.journal is not None:
                self.journal.add_codebook(
                    path, len(codebook.window_set), codebook.window_set.windows[:0].copy()
                )

            def encode(codes: Array, tiles: Tiles) -> None:
                self.backend.encode_windows(
                    codes, tiles, source, codebook.window_set, kernel=kernel, step=step
                )

            half = kernel // 2
            reads = indices.reads(Window(kernel, top=half, left=half, step=step))
            codes = self.compute(path, (n, *size, 1), reads, encode, macs_per_pixel=0, dtype="int32")
            # not the feature: it holds the run, and the circle would keep the journal alive
            self._encoded[key] = codes.parts, codes.changed
            self._codebooks[id(codes.parts[0])] = codebook
        return Feature(self, *self._encoded[key])

    def codebook(self, codes: Feature) -> Codebook:
        """The codebook of `codes`, as `encoded` gave them."""
        return self._codebooks[id(codes.parts[0])]

    def tabulated(
        self,
        path: str,
        codes: Feature,
        channels: int,
        fill: Callable[[Array, Host], None],
        *,
        macs_per_pixel: int,
    ) -> Coded:
        """A layer's value for every window of `codes`, as `encoded` gave them: what `compute` is for pixels.

        `fill(rows, windows)` computes `rows` `[R, channels]` for `windows` int32 `[R, W]`. The layer is recorded as
        if it had computed the pixels: MACs count its plain formula.
        """
        start = time.perf_counter()
        codebook = self.codebook(codes)
        rows, new = codebook.rows(self.backend, path, channels, fill)
        if len(new):
            found = self.backend.find_non_finite(new.reshape(1, len(new), 1, channels), strip(len(new)))
            if found is not None:
                named = self.backend.download(codes.parts[0])[..., 0] == len(rows) - len(new) + found[1]
                raise _not_finite(path, (*map(int, np.argwhere(named)[0]), found[3]))
            self.backend.synchronize()
        self._record(path, codes.changed[0], macs_per_pixel, (time.perf_counter() - start) * 1e3)
        return Coded(codes, rows)

    def _record(self, path: str, active: TileSet, macs_per_pixel: int, milliseconds: float) -> None:
        """Note what a layer cost that recomputed `active`."""
        n, h, w = active.shape
        record = LayerRecord(
            path,
            h,
            w,
            active.count,
            active.total,
            macs_per_pixel * active.area,
            macs_per_pixel * n * h * w,
            milliseconds,
        )
        self.records.append(record)
        if self.on_layer is not None:
            self.on_layer(record)

    def _settle(self, path: str, canvas: Array, active: TileSet, old: Array, tau: float) -> TileSet:
        """The active tiles that moved by more than `tau` from their `old` values; whatever else did gets these back.

        That is the tiles that moved less, and in all tiles the pixels that nothing changed has reached: computed
        again, they show what an earlier edit held back, which their readers have not read.
        """
        backend = self.backend
        if not np.issubdtype(canvas.dtype, np.floating):
            tau = 0  # indices are near one another by accident
        moved = backend.largest_change(canvas, active.tiles, old).astype(np.float64) > tau
        new_pixels = active.pixels & moved[:, None, None]
        mixed = np.flatnonzero(~new_pixels.all((1, 2)))
        tiles = Tiles(active.tiles.host[mixed])
        backend.merge_tiles(canvas, tiles, old[backend.upload(mixed)], ~new_pixels[mixed])
        self.memory.keep(path, canvas, tiles)
        return TileSet.of_tiles(active.shape, active.tiles.host[moved], active.pixels[moved])


def _not_finite(path: str, at: tuple[int, ...]) -> NonFiniteError:
    return NonFiniteError(
        f"{path}: the value of sample {at[0]}, row {at[1]}, column {at[2]}, channel {at[3]} is not finite; "
        "look at this layer's weights, those of the layers before it, and the input"
    )


@dataclass(frozen=True)
class Feature:
    """An activation: canvases of one resolution, what may have changed in them, and work still pending.

    Pending work (a norm, a modulation, an activation, upsampling) is done by whoever reads the feature while it
    gathers its tiles, so normalised, activated, upsampled or concatenated copies never exist.
    """

    run: Run
    parts: tuple[Array, ...]
    """Canvases `[N, h, w, C_i]`, read as if concatenated along channels."""
    changed: tuple[TileSet, ...]
    """Per part: what this run recomputed."""
    upsample: int = 1
    scale: Array | None = None
    shift: Array | None = None
    modulation: Feature | Coded | None = None
    activation: Activation = "identity"

    @property
    def source(self) -> Source:
        """What a kernel reads."""
        modulation, codes = None, None
        if isinstance(self.modulation, Coded):
            modulation, codes = self.modulation.rows, self.modulation.codes.parts[0]
        elif self.modulation is not None:
            modulation = self.modulation.parts[0]
        return Source(self.parts, self.upsample, self.scale, self.shift, modulation, self.activation, codes)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, C)` as read."""
        n, h, w, c = self.parts[0].shape
        for part in self.parts[1:]:
            c += part.shape[3]
        return n, h * self.upsample, w * self.upsample, c

    def reads(self, window: Window) -> list[Read]:
        """What a layer that reads this feature through `window` depends on."""
        resampled = window if self.upsample == window.upsample else replace(window, upsample=self.upsample)
        reads = [
            Read(changed, resampled, canvas=part)
            for changed, part in zip(self.changed, self.parts, strict=True)
        ]
        return reads if self.modulation is None else reads + self.modulation.reads(window)

    def normalised(self, scale: Array, shift: Array) -> Feature:
        """`x * scale + shift` per channel (`[1 or N, C]`), pending. Before any other pending work but upsampling."""
        self._nothing_pending("a norm")
        return replace(self, scale=scale, shift=shift)

    def modulated(self, gamma_beta: Feature | Coded) -> Feature:
        """`x * (1 + gamma) + beta` per pixel, pending; `gamma_beta` is a plain feature of 2C channels."""
        if self.modulation is not None or self.activation != "identity":
            raise ShapeError("a modulation must come before an activation, and only once")
        n, h, w, c = self.shape
        plain = isinstance(gamma_beta, Coded)
        if isinstance(gamma_beta, Feature):
            gamma_beta._nothing_pending("a modulation")
            plain = gamma_beta.upsample == 1 and len(gamma_beta.parts) == 1
        if gamma_beta.shape != (n, h, w, 2 * c) or not plain:
            raise ShapeError(f"gamma and beta are {gamma_beta.shape}, expected {(n, h, w, 2 * c)}")
        return replace(self, modulation=gamma_beta)

    def activated(self, activation: Activation) -> Feature:
        """An activation, pending after everything else."""
        if self.activation != "identity":
            raise ShapeError(f"{self.activation} is pending already; write it out before {activation}")
        return replace(self, activation=activation)

    def upsampled(self) -> Feature:
        """Nearest upsampling by two, as a way to read. Per-channel work commutes with it, a modulation does not."""
        if self.modulation is not None or self.upsample != 1:
            raise ShapeError("upsampling must come before a modulation, and only once")
        return replace(self, upsample=2)

    def _nothing_pending(self, what: str) -> None:
        if self.scale is not None or self.modulation is not None or self.activation != "identity":
            raise ShapeError(f"{what} needs a feature without pending work")


@dataclass(frozen=True)
class Coded:
    """An activation that depends on a window of labels alone: each pixel's code, and a row of values for each code."""

    codes: Feature
    """int32 `[N, H, W, 1]`."""
    rows: Array
    """float32 `[R, C]`."""

    @property
    def run(self) -> Run:
        """The run that it belongs to."""
        return self.codes.run

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, C)`."""
        n, h, w, _ = self.codes.shape
        return n, h, w, int(self.rows.shape[1])

    def reads(self, window: Window) -> list[Read]:
        """What a layer that reads this feature through `window` depends on."""
        return self.codes.reads(window)


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
