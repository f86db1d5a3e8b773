"""Convolutions as they are defined: any kernel, stride, padding and grouping.

    out[y, x, o] = Σ_i,j,c weight[o, c, i, j] · in[y · stride + i - top, x · stride + j - left, c]

Outputs are rows of one matrix product: row = output pixel, depth = (kernel row, kernel column, input channel). Tiles
that lie side by side give their rows line by line: a processor fetches ahead what is read and written in long
stretches, and nothing else has to. The matrix of inputs is not built. The product takes a table of where each row's
inputs begin, and takes the depth in pieces that lie side by side in memory: a row of the kernel's taps in a gathered
window. A 1×1 kernel reads pixels out of the canvases themselves if no work is pending on them.

With `precision="bfloat16"` inputs and weights are rounded to bfloat16, and a step of the product adds two k at once to
a float32: errors are 1e-3 to 2e-3 of a layer's largest value. Grouped convolutions, odd numbers of inputs and shallow
taps are not rounded. Nor are the products of Winograd's algorithm: they are a quarter as many, and rounded to bfloat16
they would be off by 2e-2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.types import int64, void

from ..interface import TILE, Host, Tiles
from .gemm import DEPTH, PANEL
from .geometry import GEOMETRY, Geometry
from .handover import shared
from .items import COUNTER, TILES, take_items
from .jit import both, inline
from .launch import Launcher
from .packing import PACKED, PAIRS, WIDENED, Packed, multiply_piece, pack, store_as, store_as_pairs
from .reading import READING, Reading, is_plain, read_combined_window, read_window, run_of
from .regions import OVERRUN, SCRATCH, Regions, layout_type, remembered
from .simd import WIDTH, load, store, store_pairs
from .sizes import ceil_div, share_of
from .writing import GATHERED, PIXELS, WRITING, Writing, residual_floats, scatter_tiles

SHALLOW = 48
"""Steps of k below which sums would be loaded and stored too often: such taps are copied side by side first."""
CACHE = 1 << 18
"""Floats of windows and sums that a batch may take: they fit a core's second-level cache."""
CACHE_IN_PLACE = 1 << 17
"""Floats of inputs that a batch may have where they are read in place: they stay in that cache for the next panels."""
SUMS = 1 << 16
"""Floats of sums after which outputs are written, before the next panels are computed."""
BATCH = 32
"""Tiles in a batch, at most."""
BATCH_IN_PLACE = 64
"""The same where inputs are read in place: the longer a line of the canvas, the better processors fetch it ahead."""
LEAST = 4
"""Tiles for which a thread reads all weights rather than the inputs of other threads' tiles."""

IN_WINDOWS, IN_ROWS, IN_PLACE = range(3)
"""Where the product finds its inputs: in gathered windows; in rows of copied taps; in the source's canvases."""


def prepare(weight: Host, groups: int, stored: str, *, pairs: bool) -> Packed:
    """`[O, I / groups, kh, kw]` → panels, flat `[groups, panels, kh * kw * I / groups, PANEL]`, in the stored type.

    With `pairs` as PAIRS where the kernel can take these: a pair is two channels of a pixel in a gathered window.
    Raises BackendError where a value is too large for the type.
    """
    outputs, inputs, _, columns = weight.shape
    by_group = weight.reshape(groups, outputs // groups, *weight.shape[1:])
    packed = pack(by_group.transpose(0, 3, 4, 2, 1).reshape(groups, -1, outputs // groups))
    if pairs and groups == 1 and inputs % 2 == 0 and _piece(columns, inputs, groups) >= SHALLOW:
        return store_as_pairs(packed)
    return store_as(packed, stored)


# -- scratch ---------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """A thread's scratch, for batches of B tiles and P panels at a time; R = B * PIXELS rows of the product.

    | region | shape | written by | read by |
    | --- | --- | --- | --- |
    | places | int64 [R] | `_locate`, `_gather` | `_multiply`, `_copy_taps` |
    | others | int64 [R] | `_locate`, `_copy_taps` | `_multiply` |
    | sums | [R, P, PANEL] + OVERRUN | `_multiply` | `_join`, scatter |
    | joined | [R, O] + OVERRUN, with groups | `_join` | scatter |
    | widened | [DEPTH, PANEL] | the product, of 16-bit weights | the product |
    | windows | [lines, line] + OVERRUN, unless IN_PLACE | `_gather` | `_multiply`, `_copy_taps` |
    | rows | [R, depth] + OVERRUN, if IN_ROWS | `_copy_taps` | `_multiply` |
    | residual | as `scatter_tiles` takes it | scatter | scatter |

    `places` says where a row's inputs begin in the windows or in the source's first canvas; `others` in `rows` or the
    second canvas. Windows of neighbours share columns, so a line of them holds at most B times a single tile's columns,
    or, where a stride skips inputs, B times those that a tile steps over.
    """

    places: int
    others: int
    sums: int
    joined: int
    widened: int
    windows: int
    rows: int
    residual: int
    size: int
    pixel: int
    """Floats from one pixel to the next in `sums`."""
    line: int
    """Floats from one line of windows to the next."""


LAYOUT = layout_type(Layout)


@remembered
def layout(batch: int, g: Geometry, panels: int, *, residual: int, inputs_in: int) -> Layout:
    """The scratch for batches of `batch` tiles, `panels` panels at a time and `residual` floats for the residual.

    `inputs_in` is IN_WINDOWS, IN_ROWS or IN_PLACE.
    """
    rows = batch * PIXELS
    lines = (TILE - 1) * g.stride + g.kernel_rows
    columns = (TILE - 1) * g.stride + max(g.kernel_columns, g.stride)
    line = batch * columns * g.inputs + OVERRUN
    depth = g.kernel_rows * g.kernel_columns * g.inputs // g.groups
    pixel = panels * PANEL
    regions = Regions()
    return Layout(
        places=regions.add(2 * rows),
        others=regions.add(2 * rows),
        sums=regions.add(rows * pixel + OVERRUN),
        joined=regions.add(rows * g.outputs + OVERRUN if g.groups > 1 else 0),
        widened=regions.add(WIDENED),
        windows=regions.add(0 if inputs_in == IN_PLACE else lines * line + OVERRUN),
        rows=regions.add(rows * depth + OVERRUN if inputs_in == IN_ROWS else 0),
        residual=regions.add(residual),
        size=regions.size,
        pixel=pixel,
        line=line,
    )


# -- the steps -------------------------------------------------------------------------------------------


@both
def _piece(kernel_columns: int, inputs: int, groups: int) -> int:
    """Inputs of an output that lie side by side in a window: a kernel row's taps, or with groups a tap's channels."""
    return kernel_columns * inputs if groups == 1 else inputs // groups


@inline
def _locate(source: Any, tiles: Any, first: int, count: int, stride: int, places: Any, others: Any) -> None:
    """Where the inputs of `count` tiles' outputs lie in the canvases of a source that is read in place.

    An output outside the image reads the last pixel of its line, and is not written.
    """
    height, width = source.height >> source.halved, source.width >> source.halved
    t = 0
    while t < count:
        n: Any = np.int64(tiles[first + t, 0])
        top, left = np.int64(tiles[first + t, 1]) * TILE, np.int64(tiles[first + t, 2]) * TILE
        run = run_of(tiles, first + t, first + count)
        row = t * PIXELS
        for i in range(TILE):
            y = min((top + i) * stride, source.height - 1) >> source.halved
            for j in range(TILE * run):
                x = min((left + j) * stride, source.width - 1) >> source.halved
                pixel = (n * height + y) * width + x
                places[row] = pixel * source.first_channels
                others[row] = pixel * source.second_channels
                row += 1
        t += run


@inline
def _gather(
    source: Any,
    tiles: Any,
    first: int,
    count: int,
    g: Any,
    inputs: int,
    pair: int,
    at: Any,
    scratch: Any,
    places: Any,
) -> None:
    """The windows of `count` tiles from `first` on, side by side, and where each output's window begins.

    Neighbours in a row share their windows' columns: each pixel's prologue is computed once for them. Where `pair` is
    2, not 1, windows are rounded in place to pairs of bfloat16, which fill half of each line.
    """
    lines = (TILE - 1) * g.stride + g.kernel_rows
    t, window = 0, at.windows
    while t < count:
        n: Any = np.int64(tiles[first + t, 0])
        y = np.int64(tiles[first + t, 1]) * TILE * g.stride - g.top
        x = np.int64(tiles[first + t, 2]) * TILE * g.stride - g.left
        run = run_of(tiles, first + t, first + count)
        columns = (TILE * run - 1) * g.stride + g.kernel_columns
        if source.combined:
            read_combined_window(source, n, y, x, lines, columns, scratch, window, inputs, at.line)
        else:
            read_window(source, n, y, x, lines, columns, scratch, window, inputs, at.line)
        if pair == 2:
            for line in range(lines):
                start = window + line * at.line
                for c in range(0, columns * inputs, WIDTH):
                    store_pairs(scratch, start + c // 2, load(scratch, start + c))
        row = t * PIXELS
        for i in range(TILE):
            for j in range(TILE * run):
                places[row] = window + (i * at.line + j * (inputs // pair)) * g.stride
                row += 1
        window += columns * inputs
        t += run


@inline
def _tap(piece: int, g: Any, line: int, inputs: int) -> Any:
    """Where a piece of the depth lies in a window, from its first: a row of taps, or with groups a single tap."""
    if g.groups == 1:
        return piece * line
    return piece // g.kernel_columns * line + piece % g.kernel_columns * inputs


@inline
def _copy(scratch: Any, source: int, to: int, count: int) -> None:
    """`count` floats, and up to WIDTH - 1 more of no meaning."""
    if count < WIDTH:
        for c in range(count):
            scratch[to + c] = scratch[source + c]
        return
    for c in range(0, count, WIDTH):
        store(scratch, to + c, load(scratch, source + c))


@inline
def _copy_taps(
    rows: int,
    group: int,
    g: Any,
    inputs: int,
    at: Any,
    scratch: Any,
    places: Any,
    others: Any,
) -> None:
    """`rows[i]`: the inputs of output i in one group, side by side."""
    piece = _piece(g.kernel_columns, inputs, g.groups)
    depth = g.kernel_rows * g.kernel_columns * (inputs // g.groups)
    for i in range(rows):
        others[i] = i * depth
        for k in range(depth // piece):
            tap = places[i] + _tap(k, g, at.line, inputs) + group * piece
            _copy(scratch, tap, at.rows + i * depth + k * piece, piece)


@inline
def _multiply(
    inputs_in: int,
    source: Any,
    group: int,
    g: Any,
    weights: Any,
    weight: int,
    rows: int,
    at: Any,
    scratch: Any,
    places: Any,
    others: Any,
    sums: int,
) -> None:
    """`sums[row, o] = Σ_k in[row, k] · weights[k, o]` of one panel, its weights `[depth, PANEL]` from `weight` on.

    In windows the depth lies in pieces; copied taps are one piece; in place each canvas is one. A pair is one k.
    """
    inputs = (source.first_channels + source.second_channels) // (2 if weights.stored == PAIRS else 1)
    piece = _piece(g.kernel_columns, inputs, g.groups)
    depth = g.kernel_rows * g.kernel_columns * (inputs // g.groups)
    pieces = depth // piece
    if inputs_in == IN_PLACE:
        pieces = 2 if source.second_channels > 0 else 1
    elif inputs_in == IN_ROWS:
        pieces = 1
    done = 0
    for k in range(pieces):
        if inputs_in == IN_PLACE:
            values, where = (source.first, places) if k == 0 else (source.second, others)
            start, deep = 0, source.first_channels if k == 0 else source.second_channels
        elif inputs_in == IN_ROWS:
            values, where, start, deep = scratch, others, at.rows, depth
        else:
            start = group * (inputs // g.groups) + _tap(k, g, at.line, inputs)
            values, where, deep = scratch, places, piece
        for first in range(0, deep, DEPTH):
            steps, a, w = min(DEPTH, deep - first), start + first, weight + done * PANEL
            multiply_piece(
                values, a, where, weights, w, scratch, sums, at.pixel, rows, steps, done, at.widened
            )
            done += steps


@inline
def _join(rows: int, outputs: int, channels: int, group: int, at: Any, scratch: Any) -> None:
    """A group's `sums` to its place in `joined`, whose rows hold the outputs of all groups."""
    for i in range(rows):
        joined = at.joined + i * channels + group * outputs
        for c in range(outputs):
            scratch[joined + c] = scratch[at.sums + i * at.pixel + c]


@shared(
    void(
        COUNTER, int64, int64, int64, int64, int64, TILES, READING, GEOMETRY, PACKED, WRITING, LAYOUT, SCRATCH
    )
)
def convolve(
    counter: Any,
    items: int,
    batch: int,
    splits: int,
    together: int,
    inputs_in: int,
    tiles: Any,
    source: Any,
    g: Any,
    weights: Any,
    out: Any,
    at: Any,
    scratch: Any,
) -> None:
    """`out[tiles] = activation(Σ_pieces in[rows, piece] @ weights[piece, outputs] + bias + shift + residual)`.

    An item is a batch of tiles × one of `splits` shares of the output panels (1 with groups), of which `together` are
    computed before they are written (with groups all).
    """
    inputs, pair = source.first_channels + source.second_channels, 2 if weights.stored == PAIRS else 1
    own_inputs, own_outputs = inputs // g.groups, out.channels // g.groups
    depth = g.kernel_rows * g.kernel_columns * own_inputs // pair
    panels = ceil_div(own_outputs, PANEL)
    for item in take_items(counter, items):
        first = item // splits * batch
        count = min(batch, len(tiles) - first)
        begin, end = share_of(panels, item % splits, splits)
        rows = count * PIXELS
        places = scratch[at.places : at.places + 2 * rows].view(np.int64)
        others = scratch[at.others : at.others + 2 * rows].view(np.int64)
        if inputs_in == IN_PLACE:
            _locate(source, tiles, first, count, g.stride, places, others)
        else:
            _gather(source, tiles, first, count, g, inputs, pair, at, scratch, places)

        for panel in range(begin, end, together):
            after = min(panel + together, end)
            for group in range(g.groups):
                if inputs_in == IN_ROWS and (panel == begin or g.groups > 1):
                    _copy_taps(rows, group, g, inputs, at, scratch, places, others)
                for each in range(panel, after):
                    weight = (group * panels + each) * depth * PANEL
                    sums = at.sums + (each - panel) * PANEL
                    _multiply(
                        inputs_in,
                        source,
                        group,
                        g,
                        weights,
                        weight,
                        rows,
                        at,
                        scratch,
                        places,
                        others,
                        sums,
                    )
                if g.groups > 1:
                    _join(rows, own_outputs, out.channels, group, at, scratch)

            last, results, pixel = min(after * PANEL, out.channels), at.sums, at.pixel
            if g.groups > 1:
                last, results, pixel = out.channels, at.joined, out.channels
            scatter_tiles(out, tiles, first, count, panel * PANEL, last, scratch, results, pixel, at.residual)


def launch(
    launcher: Launcher, tiles: Tiles, source: Reading, g: Geometry, weights: Packed, out: Writing
) -> None:
    """Convolve `tiles`: choose where the product finds its inputs, the batch and the splits, and run."""
    own_inputs = g.inputs // g.groups
    # a 1×1 kernel's inputs lie in the canvases already, if none is outside and no work is pending on them
    in_place = (
        g.kernel_rows == g.kernel_columns == g.groups == 1
        and g.top == g.left == 0
        and is_plain(source)
        and weights.stored != PAIRS
    )
    in_place &= (out.height - 1) * g.stride < source.height and (out.width - 1) * g.stride < source.width
    shallow = _piece(g.kernel_columns, g.inputs, g.groups) < SHALLOW
    inputs_in = IN_PLACE if in_place else IN_ROWS if shallow else IN_WINDOWS

    own_panels = ceil_div(g.outputs // g.groups, PANEL)
    work = 2.0 * PIXELS * g.kernel_rows * g.kernel_columns * own_inputs * g.outputs
    window = ((TILE - 1) * g.stride + g.kernel_rows) * TILE * g.stride * g.inputs
    # a residual that is gathered is gathered anew for each of an item's writes
    whole = g.groups > 1 or out.has_residual == GATHERED
    sums = PIXELS * (g.outputs if whole else min(g.outputs, PANEL))
    limit = min(BATCH_IN_PLACE, CACHE_IN_PLACE // window) if in_place else BATCH
    limit = max(1, min(limit, CACHE // (window + sums)))
    batch, splits = launcher.items(len(tiles), limit, own_panels if g.groups == 1 else 1, work, least=LEAST)
    share = ceil_div(own_panels, splits)
    together = share if whole else max(1, min(share, SUMS // (batch * PIXELS * PANEL)))
    at = layout(batch, g, together, residual=residual_floats(out, batch), inputs_in=inputs_in)
    args = (batch, splits, together, inputs_in, tiles.host, source, g, weights, out, at)
    launcher.queue(convolve, ceil_div(len(tiles), batch) * splits, args, at.size, work * len(tiles))
