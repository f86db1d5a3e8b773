"""Layers of labels by code: index features come in, codes and one row of values for each code come out.

What `Run.compute` is for pixels, `tabulate` is for the distinct windows of labels (see `codebook.py`): a layer that
depends on such a window alone is computed once for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sparsegen.backends.interface import Array, Host, Position, Tiles, WindowSet

from ..errors import NonFiniteError, ShapeError
from ..tiling.tiles import strip
from ..tiling.windows import Read, Window
from .codebook import Codebook, codebook_path
from .feature import Feature, concat
from .finite import not_finite
from .memory import Memory
from .run import Affine, NormStep, Run


@dataclass(frozen=True)
class Coded:
    """An activation that depends on a window of labels alone: each pixel's code, and a row of values for each code."""

    codes: Feature
    """int32 `[N, H, W, 1]`."""
    codebook: Codebook
    """Of these codes."""
    path: str
    """The path of the layer whose values these are."""
    channels: int
    affine: Affine | None = None
    """A pending norm's scale and shift, `[1, C]`."""
    copies: int = 1
    """How often the layer's values stand side by side."""

    @property
    def rows(self) -> Array:
        """float32 `[R, C]`, as the present run has them, before the pending norm."""
        table = self.codebook.tables[self.path]
        return self.run.backend.join_channels([table.rows[: table.count]] * self.copies)

    @property
    def run(self) -> Run:
        """The run that it belongs to."""
        return self.codes.run

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, C)`."""
        n, h, w, _ = self.codes.shape
        return n, h, w, self.channels

    @property
    def modulation(self) -> tuple[Array, Array]:
        """The rows, and the codes that choose among them. Raises ShapeError: a norm is pending."""
        if self.affine is not None:
            raise ShapeError("a modulation needs a feature without pending work")
        return self.rows, self.codes.parts[0].array

    def reads(self, window: Window) -> list[Read]:
        """The canvases that a layer depends on if it reads this through `window`."""
        return self.codes.reads(window)


def twice(x: Feature | Coded) -> Feature | Coded:
    """`x` read twice, side by side: `[N, H, W, 2C]`."""
    if isinstance(x, Feature):
        return concat(x, x)
    return replace(x, copies=2 * x.copies, channels=2 * x.channels)


def measured(path: str, x: Coded, affine: Callable[[Array, Array], tuple[Array, Array]]) -> Coded:
    """`x` with a norm pending, of the moments that the dense run measures; no edit changes them. The norm is at `path`.

    `affine(mean, variance)` is the scale and shift, from the mean and variance of each channel, two `[1, C]`.

    Raises
    ------
    ShapeError
        The batch has several samples: each has moments of its own, and rows are shared by all.
    """
    run, codes = x.run, x.codes.parts[0]
    if codes.shape[0] != 1:
        raise ShapeError(f"{path}: rows are normalised for one sample, not for {codes.shape[0]}")
    norm = Affine(None, None)

    def set_affine() -> None:
        norm.scale, norm.shift = run.once_per_base(
            path, lambda: affine(*run.backend.coded_moments(codes.array, x.rows))
        )

    run.do(NormStep(path, set_affine, (codes,)))
    return replace(x, affine=norm)


def encode(indices: Feature, *, kernel: int, step: int = 1, size: tuple[int, int]) -> Feature:
    """The codes of the `kernel`² windows, `step` apart, of an index feature: int32 `[N, *size, 1]`.

    They are computed once in a run, however many layers need them. Border: -1 outside the image.
    """
    run, source = indices.run, indices.parts[0]
    n, _, _, planes = indices.shape
    codebook = _codebook(run.memory, source.path, kernel, step, planes)
    path = codebook.path
    if path not in run.codes:

        def note_windows() -> None:
            if run.journal is not None:
                run.journal.add_windows(
                    path, len(codebook.window_set), codebook.window_set.windows[:0].copy()
                )

        def encode_tiles(codes: Array, tiles: Tiles) -> bool:
            run.backend.encode_windows(
                codes, tiles, source.array, codebook.window_set, kernel=kernel, step=step
            )
            return True  # codes are whole numbers

        half = kernel // 2
        reads = indices.reads(Window(kernel, top=half, left=half, step=step))
        run.do(note_windows)
        codes = run.compute(path, (n, *size, 1), reads, encode_tiles, macs_per_pixel=0, dtype="int32")
        run.codes[path] = codes
    return Feature(run, (run.codes[path],))


def _codebook(memory: Memory, source: str, kernel: int, step: int, planes: int) -> Codebook:
    """The memory's codebook of these windows of the canvas `source`, new if there is none."""
    inner = memory.codebooks.get(source)
    names = {path: name for name, path in memory.inputs.items()}
    name = f"{names[source] if inner is None else inner.name}.{kernel}.{step}"
    path = codebook_path(name)
    if path not in memory.codebooks:
        memory.codebooks[path] = Codebook(name, source, WindowSet(kernel * kernel * planes))
    return memory.codebooks[path]


def tabulate(
    path: str,
    codes: Feature,
    channels: int,
    fill: Callable[[Array, Host], bool],
    *,
    macs_per_pixel: int,
) -> Coded:
    """A layer's values for every window of `codes`, as `encode` returned them.

    `fill(rows, windows)` computes `rows` `[R, channels]` for `windows` int32 `[R, W]`, and returns whether it knows
    them to be finite. The layer is recorded as if it had computed the pixels: MACs count its plain formula.

    A value that is not finite is reported at the end of the run, by a pixel with that code.
    """
    run, canvas = codes.run, codes.parts[0]
    codebook, backend = run.memory.codebooks[canvas.path], run.backend

    def fill_rows() -> None:
        start = run.clock()
        rows, new, finite = codebook.rows(backend, path, channels, fill)
        if not finite:
            first = len(rows) - len(new)

            # (without the run, which holds the check: the circle would keep the journal alive)
            def error(at: Position) -> NonFiniteError:  # names the first pixel with that code
                n, y, x = np.argwhere(backend.download(canvas.array)[..., 0] == first + at[1])[0]
                return not_finite(path, (int(n), int(y), int(x), at[3]))

            as_pixels = new.reshape(1, len(new), 1, channels)
            run.finite.watch.watch(as_pixels, strip(len(new)), run.finite.entry(error))
        run.record(path, canvas.changed, macs_per_pixel, run.elapsed(start))

    run.do(fill_rows)
    return Coded(codes, codebook, path, channels)
