"""3×3 convolutions of stride 1 by Winograd's F(4×4, 3×3): a tile's 6×6 window and 36 products instead of 144.

    y = Aᵀ [ Σ_inputs (G g Gᵀ) ⊙ (Bᵀ d B) ] A        d: window, g: kernel (`transforms.py` has the matrices)

The sum over inputs is, for each of the 36 positions in the transformed window, a plain product of [tiles, inputs] with
[inputs, outputs]. A batch of tiles goes through gather, transform, products, transform back and scatter while it is
in the cache.

Kernels are stored untransformed, 9 floats each, and transformed a piece of the depth at a time, just before they are
multiplied. Transformed kernels of 36 floats take 4 times the memory and 4 times as long to read, and reading limits few
tiles of many channels. The transform takes 54 operations on a vector of kernels, the products 36 for each
tile. Measured against transformed kernels in memory, with weights that no cache holds (2 cores, AVX-512), and against
F(2×2, 3×3) where that was better: 1.1 to 1.7 times as fast for 2 to 16 tiles of 256 to 1024 channels; within 10 % for
many tiles. For a few tiles even the transformed piece is not stored (`few_tiles.py`).

Errors relative to a layer's largest value: 1.6e-6 for 64 and 128 inputs, 1.5e-6 for 1024, because each piece of the
depth is summed by itself (one chain through all pieces: 5e-6). With weights in float16 2e-4, in bfloat16 1.7e-3, as in
a direct convolution: weights are rounded before they are transformed. Products of bfloat16 would round the transformed
windows and kernels too, and move results by 2e-2 (root mean square, of normal values after SiLU; 1e-2 with the points
0, ±√½ and ±√2), a direct convolution's by 2e-3: so these products are always float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.types import float32, int64, void

from ..interface import TILE, Array, Host, Tiles
from .arrays import aligned
from .few_tiles import PACE, TAP, TAPS, products_of_few
from .gemm import ADD, LINE, PANEL, REPLACE, multiply_rows
from .geometry import GEOMETRY, Geometry
from .handover import shared
from .items import COUNTER, TILES, take_items
from .jit import inline
from .launch import Launcher
from .packing import FLOAT32, PACKED, Packed, fetch_packed, widen_piece
from .reading import READING, Reading, read_window, rows_of, run_of
from .regions import OVERRUN, SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH
from .sizes import ceil_div, round_up, share_of, whole_vectors
from .target import TARGET
from .transforms import transform_input_4, transform_kernel_4, transform_output_4
from .writing import PIXELS, WRITING, Writing, residual_floats, scatter_tiles

WINDOW = TILE + 2
"""Pixels along one side of a tile's window."""
PRODUCTS = WINDOW * WINDOW
"""Positions in a transformed window, kernel or tile of sums."""
BAND, STRIP = 3, 16
"""Tile rows and tile columns of a block. Its tiles lie side by side and below one another, and share their windows."""
BATCH = BAND * STRIP
"""Tiles for which a piece of the weights is transformed once."""
PIECE = 64
"""Input channels transformed and multiplied at a time. It fixes the order in which sums are rounded.

A position's inputs, kernels and sums of a panel, 22 KB, fit a first-level cache."""
FEW = TARGET.few
"""Tiles of a batch for which transformed kernels are not worth storing: 0.3 to 0.75 times the time (AVX-512)."""
LEAST = (FEW or BATCH) // 2 + 1
"""Tiles for which a thread transforms the kernels of all panels rather than the windows of other threads' tiles."""
GROUP = 2
"""Panels transformed and multiplied at a time: inputs are read once for them."""
KEPT = 5 << 17
"""Floats of a layer's transformed weights that a thread keeps from one batch of tiles to the next."""
_POSITION = GROUP * PIECE * PANEL + LINE
"""Floats from one position's kernels to the next: a line more than needed keeps them in different sets of the cache."""
_WIDENED = PIECE * TAPS * WIDTH
"""Floats of a piece of the kernels of a vector of outputs, widened from 16 bits."""
_BLOCK = PRODUCTS * _POSITION
"""Floats of the transformed kernels of a group of panels and a piece of the inputs."""


# -- weights ---------------------------------------------------------------------------------------------


@inline
def kernels_of(output: int, depth: int) -> int:
    """Floats before the kernels `[I, TAPS, WIDTH]` of a vector of outputs, which begins with `output`.

    An output has `depth` weights, I * TAPS.
    """
    return output * depth


@shared(void(COUNTER, int64, float32[:, ::1], float32[::1]))
def pack(counter: Any, items: int, weight: Any, packed: Any) -> None:
    """`weight` `[O, I * TAPS]` → `packed` `[O / WIDTH, I * TAPS, WIDTH]`; items are panels, zeros fill the last."""
    outputs, depth = weight.shape
    for panel in take_items(counter, items):
        count = min(PANEL, outputs - panel * PANEL)
        for first in range(0, depth, LINE):  # a line of each output, which are a line of each panel's column
            steps = min(LINE, depth - first)
            for o in range(PANEL):
                at = kernels_of(panel * PANEL + o // WIDTH * WIDTH, depth) + first * TAP + o % WIDTH
                for k in range(steps):
                    packed[at + k * TAP] = weight[panel * PANEL + o, first + k] if o < count else 0.0


def prepare(launcher: Launcher, weight: Host) -> Array:
    """`[O, I, 3, 3]` → flat `[O / WIDTH, I, TAPS, WIDTH]`, of whole panels."""
    outputs, depth = len(weight), weight[0].size
    panels = ceil_div(outputs, PANEL)
    packed = aligned(panels * depth * PANEL, "float32")
    rows = np.ascontiguousarray(weight, np.float32).reshape(outputs, depth)
    launcher.run(pack, panels, (rows, packed), 0, 16.0 * weight.size)
    return packed


# -- scratch ---------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """A thread's scratch, for batches of B tiles and shares of P panels.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | kernels | [blocks, PRODUCTS, GROUP, PIECE, PANEL] | `_transform_kernels` | `_multiply` |
    | widened | [PANEL / WIDTH, PIECE, TAPS, WIDTH] | `_transform_kernels` (16-bit weights) | `_transform_kernels` |
    | inputs | [PRODUCTS, pieces, B, PIECE] | `_transform_windows` | `_multiply` |
    | sums | [PRODUCTS, GROUP, B, PANEL] | `_multiply` | `_transform_sums` |
    | results | [B, TILE, TILE, P, PANEL], runs line by line | `_transform_sums` | scatter |
    | residual | as `scatter_tiles` takes it | scatter | scatter |
    | windows | [WINDOW, B * TILE + 2, I in whole vectors] + OVERRUN | `_transform_windows` | `_transform_windows` |

    `kernels` lies first, where no item moves it: with `kept` it has a block for each group of panels and piece of the
    inputs, else one. A piece of a position's `inputs` is one stretch of memory. In `kernels`, `inputs` and `sums` a
    line separates positions, so that the same place of each lies in another set of the cache. `windows` holds one
    rectangle at a time; of those of B tiles, a single row or column of tiles has the largest window.
    """

    kernels: int
    widened: int
    inputs: int
    sums: int
    results: int
    residual: int
    windows: int
    size: int
    pixel: int
    """Floats from one pixel to the next in `windows`."""
    inputs_step: int
    """Floats from one position to the next in `inputs`."""
    sums_step: int
    """Floats from one position to the next in `sums`."""
    results_step: int
    """Floats from one pixel to the next in `results`."""


LAYOUT = layout_type(Layout)


def kernel_blocks(inputs: int, outputs: int) -> int:
    """Blocks of a layer's transformed kernels."""
    return ceil_div(outputs, GROUP * PANEL) * ceil_div(inputs, PIECE)


@remembered
def layout(batch: int, inputs: int, outputs: int, panels: int, *, residual: int, kept: bool) -> Layout:
    """The scratch for batches of `batch` tiles, shares of `panels` panels and `residual` floats for the residual."""
    pixel, results_step = whole_vectors(inputs), panels * PANEL
    inputs_step = batch * round_up(pixel, PIECE) + LINE
    sums_step = GROUP * batch * PANEL + LINE
    regions = Regions()
    return Layout(
        kernels=regions.add((kernel_blocks(inputs, outputs) if kept else 1) * _BLOCK),
        widened=regions.add(PANEL // WIDTH * _WIDENED),
        inputs=regions.add(PRODUCTS * inputs_step),
        sums=regions.add(PRODUCTS * sums_step),
        results=regions.add(batch * PIXELS * results_step),
        residual=regions.add(residual),
        windows=regions.add(WINDOW * (batch * TILE + 2) * pixel + OVERRUN),
        size=regions.size,
        pixel=pixel,
        inputs_step=inputs_step,
        sums_step=sums_step,
        results_step=results_step,
    )


# -- the steps -------------------------------------------------------------------------------------------


def in_blocks(tiles: Host) -> Host:
    """Tiles `[K, 3]` sorted by blocks of BAND × STRIP, and row by row in each."""
    n, row, column = tiles.T
    order = np.lexsort((column, row, column // STRIP, row // BAND, n))
    return np.ascontiguousarray(tiles[order])


@inline
def _transform_windows(
    source: Any, tiles: Any, first: int, batch: int, count: int, g: Any, at: Any, scratch: Any
) -> None:
    """`inputs[:, t] = Bᵀ d B` of `count` tiles from `first` on, `d` being the tile's gathered window.

    Tiles that fill a rectangle are gathered as one window: each pixel's prologue is computed once for them.
    """
    t = 0
    while t < count:
        n, row, column = tiles[first + t, 0], tiles[first + t, 1], tiles[first + t, 2]
        run = run_of(tiles, first + t, first + count)
        rows = rows_of(tiles, first + t, first + count, run)
        columns = TILE * run + 2
        line = columns * at.pixel
        y, x = row * TILE - g.top, column * TILE - g.left
        read_window(source, n, y, x, TILE * rows + 2, columns, scratch, at.windows, at.pixel, line)
        for i in range(rows * run):
            window = at.windows + TILE * (i // run * line + i % run * at.pixel)
            for c in range(0, at.pixel, WIDTH):
                to = at.inputs + (c // PIECE * batch + t + i) * PIECE + c % PIECE
                transform_input_4(scratch, window + c, at.pixel, line, to, at.inputs_step)
        t += rows * run


@inline
def _transform_kernels(
    weights: Any, first: int, depth: int, group: int, steps: int, at: Any, scratch: Any, kernels: int
) -> None:
    """`kernels` `[PRODUCTS, group, steps, PANEL] = G g Gᵀ` of a piece of `steps` inputs, for a group of panels.

    Kernels `g` of a vector of outputs are `[steps, TAPS, WIDTH]`: the first's from weight `first` on; an output has
    `depth` weights. A panel's vectors are taken step by step, for their results lie side by side.
    """
    for panel in range(group):
        values, start = weights.floats, first + kernels_of(panel * PANEL, depth)
        apart, to = kernels_of(WIDTH, depth), kernels + panel * PIECE * PANEL
        if weights.stored != FLOAT32:
            for v in range(PANEL // WIDTH):
                widen_piece(
                    weights, start + v * apart, scratch, at.widened + v * _WIDENED, steps * TAPS * WIDTH
                )
            values, start, apart = scratch, at.widened, _WIDENED
        for k in range(steps):
            for v in range(PANEL // WIDTH):
                g = start + v * apart + k * TAPS * TAP
                transform_kernel_4(values, g, TAP, scratch, to + k * PANEL + v * WIDTH, _POSITION)


@inline
def _multiply(
    weights: Any,
    next_piece: int,
    depth: int,
    group: int,
    batch: int,
    count: int,
    first: int,
    steps: int,
    at: Any,
    scratch: Any,
    kernels: int,
) -> None:
    """`sums[p, t, o] += Σ_k inputs[p, t, k] · kernels[p, k, o]` of each position p: the inputs k from `first` on.

    Meanwhile the weights of the next piece, from `next_piece` on, come from memory, a part with each product; -1: none.
    """
    resume = ADD if first > 0 else REPLACE
    for p in range(PRODUCTS):
        for panel in range(group):
            if next_piece >= 0:
                for o in range(panel * PANEL, (panel + 1) * PANEL, WIDTH):
                    fetch_packed(
                        weights, next_piece + kernels_of(o, depth), p, PRODUCTS, TAPS * PIECE * WIDTH
                    )
            inputs = at.inputs + p * at.inputs_step + first * batch
            kernel_at = kernels + p * _POSITION + panel * PIECE * PANEL
            sums = at.sums + p * at.sums_step + panel * batch * PANEL
            multiply_rows(
                scratch, inputs, PIECE, scratch, kernel_at, scratch, sums, PANEL, count, steps, resume
            )


@inline
def _no_products(*args: Any) -> None:
    """`_multiply_few` where FEW is 0: nothing calls it, and nothing is compiled."""


_multiply_few = products_of_few(PIECE) if FEW else _no_products


@inline
def _multiply_untransformed(
    weights: Any,
    this_piece: int,
    next_piece: int,
    depth: int,
    group: int,
    batch: int,
    count: int,
    first: int,
    steps: int,
    at: Any,
    scratch: Any,
) -> None:
    """`_transform_kernels` and `_multiply` in one, of few tiles: transformed kernels are not stored (`few_tiles.py`).

    Kernels of a vector of outputs are `[steps, TAPS, WIDTH]`: the first's from weight `this_piece` on; an output has
    `depth` weights.
    """
    for o in range(0, group * PANEL, WIDTH):
        kernels = kernels_of(o, depth)
        values, start, ahead = weights.floats, this_piece + kernels, next_piece + kernels
        coming, pace = weights.floats, PACE
        if weights.stored != FLOAT32:
            widen_piece(weights, start, scratch, at.widened, steps * TAPS * WIDTH)
            values, start = scratch, at.widened
            coming, ahead, pace = weights.halves.view(np.float32), ahead // 2, PACE // 2
        _multiply_few(
            values,
            start,
            scratch,
            at.inputs + first * batch,
            at.inputs_step,
            scratch,
            at.sums + o // PANEL * batch * PANEL + o % PANEL,
            at.sums_step,
            coming,
            ahead,
            pace,
            count,
            steps,
            ADD if first > 0 else REPLACE,
        )


@inline
def _transform_sums(
    tiles: Any, first: int, panel: int, group: int, batch: int, count: int, at: Any, scratch: Any
) -> None:
    """`results = Aᵀ sums A` of `count` tiles; `panel` counts within the share, from it on there are `group`."""
    t = 0
    while t < count:
        run = run_of(tiles, first + t, first + count)
        line = TILE * run * at.results_step
        for g in range(group):
            for i in range(run):
                sums = at.sums + (g * batch + t + i) * PANEL
                to = at.results + (t * PIXELS + i * TILE) * at.results_step + (panel + g) * PANEL
                for c in range(0, PANEL, WIDTH):
                    transform_output_4(scratch, sums + c, at.sums_step, to + c, at.results_step, line)
        t += run


@shared(void(COUNTER, int64, int64, int64, int64, TILES, READING, GEOMETRY, PACKED, WRITING, LAYOUT, SCRATCH))
def convolve(
    counter: Any,
    items: int,
    batch: int,
    splits: int,
    kept: int,
    tiles: Any,
    source: Any,
    g: Any,
    weights: Any,
    out: Any,
    at: Any,
    scratch: Any,
) -> None:
    """`out[tiles] = activation(Aᵀ [ Σ_inputs (G g Gᵀ) ⊙ (Bᵀ d B) ] A + bias + shift + residual)`.

    An item is a batch of tiles × one of `splits` shares of the output panels. With `kept`, the kernels that a thread
    transforms for its first item serve all its items; `splits` is 1 then.
    """
    inputs = source.first_channels + source.second_channels
    panels, pieces = ceil_div(out.channels, PANEL), ceil_div(inputs, PIECE)
    depth = inputs * TAPS  # weights of an output
    transforms = True
    for item in take_items(counter, items):
        first = item // splits * batch
        count = min(batch, len(tiles) - first)
        begin, end = share_of(panels, item % splits, splits)
        _transform_windows(source, tiles, first, batch, count, g, at, scratch)  # Bᵀ d B
        for panel in range(begin, end, GROUP):
            group = min(GROUP, end - panel)
            for piece in range(pieces):
                k = piece * PIECE
                steps = min(PIECE, inputs - k)
                kernels = at.kernels + (panel // GROUP * pieces + piece if kept else 0) * _BLOCK
                weight = kernels_of(panel * PANEL, depth) + k * TAPS * TAP
                last_piece = piece + 1 == pieces
                following = (
                    kernels_of((panel + GROUP) * PANEL, depth) if last_piece else weight + PIECE * TAPS * TAP
                )
                if count <= FEW and not kept:
                    _multiply_untransformed(
                        weights, weight, following, depth, group, batch, count, k, steps, at, scratch
                    )
                    continue
                if transforms:
                    _transform_kernels(weights, weight, depth, group, steps, at, scratch, kernels)  # G g Gᵀ
                else:
                    following = -1
                # Σ_inputs … ⊙ …
                _multiply(weights, following, depth, group, batch, count, k, steps, at, scratch, kernels)
            _transform_sums(tiles, first, panel - begin, group, batch, count, at, scratch)  # Aᵀ [ … ] A
        last = min(end * PANEL, out.channels)
        scatter_tiles(
            out, tiles, first, count, begin * PANEL, last, scratch, at.results, at.results_step, at.residual
        )
        transforms = not kept


def launch(
    launcher: Launcher, tiles: Tiles, source: Reading, g: Geometry, weights: Packed, out: Writing
) -> None:
    """Convolve `tiles`: choose the batch, the splits and whether threads keep transformed kernels, and run."""
    inputs, outputs = g.inputs, g.outputs
    panels = ceil_div(outputs, PANEL)
    work = 2.0 * PRODUCTS * inputs * outputs
    batch, splits = launcher.items(len(tiles), BATCH, panels, work, least=LEAST)
    items = ceil_div(len(tiles), batch) * splits
    kept = splits == 1 and items > launcher.threads and kernel_blocks(inputs, outputs) * _BLOCK <= KEPT
    share = ceil_div(panels, splits)
    at = layout(batch, inputs, outputs, share, residual=residual_floats(out, batch), kept=kept)
    args = (batch, splits, int(kept), tiles.on(in_blocks, in_blocks), source, g, weights, out, at)
    launcher.queue(convolve, items, args, at.size, work * len(tiles))
